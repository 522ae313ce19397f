//! The BPF objects, as `build.rs` left them.

/// The balancer: programs `balance` and, for generic mode, `balance_generic`.
pub static BALANCER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer"));

/// The balancer as it is while it captures: programs `capture` and `capture_generic`.
pub static CAPTURE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/capture"));

/// The decapsulator of backends: programs `decapsulate` and `decap_generic`.
pub static DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));

/// What counts the frames that are lost after the balancer has sent them: programs for tracepoints.
pub static TX_ERRORS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tx_errors"));

/// The programs of the benchmark; nothing that is installed contains them.
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench"));

/// The balancer without anything that it says: program `silent`. It is for the benchmark, too.
pub static SILENT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/silent"));

//! The object files of the programs in the kernel, as the build script has left them.

/// The balancer.
pub static BALANCER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer"));
/// Name of its program.
pub const BALANCE: &str = "balance";

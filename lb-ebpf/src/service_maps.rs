//! The maps that lead to a backend and count what it answers: of the balancer, and of the hooks for clients on the node.

use aya_ebpf::{
    Global,
    btf_maps::{Array, ArrayOfMaps, HashMap},
    macros::btf_map,
};
use lb_common::{
    abi::{
        Backend, DEFAULT_BACKENDS, DEFAULT_SERVICES, ReturnCounter, Service, ServiceKeyV4,
        ServiceKeyV6, Slot,
    },
    service_index::Entry,
};

/// `BPF_F_MMAPABLE` (Linux 5.5): the daemon reads and writes the array through memory.
pub const MMAPABLE: usize = 1 << 10;
/// `BPF_F_INNER_MAP` (Linux 5.10): the rings in `RINGS` may differ in size.
pub const INNER_MAP: usize = 1 << 12;

/// Entries for each CPU in `BACKEND_COUNTERS`: the size of `BACKENDS`.
#[unsafe(no_mangle)]
pub static BACKENDS_PER_CPU: Global<u32> = Global::new(DEFAULT_BACKENDS + 1);
/// The services by id, with their keys.
#[btf_map]
pub static SERVICE_ENTRIES: Array<Entry, { DEFAULT_SERVICES as usize }> = Array::new();

/// The services with an IPv4 VIP.
#[btf_map]
pub static SERVICES_V4: HashMap<ServiceKeyV4, Service, { DEFAULT_SERVICES as usize }> =
    HashMap::new();

/// The services with an IPv6 VIP.
#[btf_map]
pub static SERVICES_V6: HashMap<ServiceKeyV6, Service, { DEFAULT_SERVICES as usize }> =
    HashMap::new();

/// The ring of each service, by the service's id. A ring is made when a service needs it.
#[btf_map]
pub static RINGS: ArrayOfMaps<
    Array<Slot, 1, { MMAPABLE | INNER_MAP }>,
    { DEFAULT_SERVICES as usize },
> = ArrayOfMaps::new();

/// The backends by id; entry 0 stays empty.
#[btf_map]
pub static BACKENDS: Array<Backend, { DEFAULT_BACKENDS as usize + 1 }, MMAPABLE> = Array::new();

/// Answers of each backend in mode `nat`, for each CPU. The daemon sizes it.
#[btf_map]
pub static RETURN_COUNTERS: Array<ReturnCounter, { DEFAULT_BACKENDS as usize + 1 }, MMAPABLE> =
    Array::new();

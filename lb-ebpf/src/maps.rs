//! Every map of the balancer.
//!
//! Capacities here are the defaults; the daemon sets the ones that the configuration asks for when
//! it loads the object. Counters and budgets are plain arrays with a stretch for each CPU, not
//! per-CPU maps: they can be mapped into the daemon's memory, which reads them without a system
//! call, and a lookup is inlined on every kernel.

use aya_ebpf::{
    Global,
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use lb_common::{
    abi::{self, *},
    verdict::REASONS,
};

/// `BPF_F_MMAPABLE` (Linux 5.5): the daemon reads and writes the array through memory.
const MMAPABLE: usize = 1 << 10;
/// `BPF_F_INNER_MAP` (Linux 5.10): the rings in `RINGS` may differ in size.
const INNER_MAP: usize = 1 << 12;

/// Entries for each CPU in `BACKEND_COUNTERS`: the size of `BACKENDS`.
#[unsafe(no_mangle)]
static BACKENDS_PER_CPU: Global<u32> = Global::new(DEFAULT_BACKENDS + 1);
/// Entries for each CPU in `SYN_BUDGETS`.
#[unsafe(no_mangle)]
static SERVICES_PER_CPU: Global<u32> = Global::new(DEFAULT_SERVICES);

/// The services with an IPv4 VIP.
#[btf_map]
static SERVICES_V4: HashMap<ServiceKeyV4, Service, { DEFAULT_SERVICES as usize }> = HashMap::new();

/// The services with an IPv6 VIP.
#[btf_map]
static SERVICES_V6: HashMap<ServiceKeyV6, Service, { DEFAULT_SERVICES as usize }> = HashMap::new();

/// The ring of each service, by the service's id. A ring is made when a service needs it.
#[btf_map]
static RINGS: ArrayOfMaps<Array<Slot, 1, { MMAPABLE | INNER_MAP }>, { DEFAULT_SERVICES as usize }> =
    ArrayOfMaps::new();

/// The backends by id; entry 0 stays empty.
#[btf_map]
static BACKENDS: Array<Backend, { DEFAULT_BACKENDS as usize + 1 }, MMAPABLE> = Array::new();

/// Flows that a change of the ring would otherwise move.
#[btf_map]
static PINS: HashMap<FlowKey, Flow, { DEFAULT_PINS as usize }> = HashMap::new();

/// The flows of `tracked` UDP services.
#[btf_map]
static TRACKED: LruHashMap<FlowKey, Flow, { DEFAULT_TRACKED as usize }> = LruHashMap::new();

/// The QUIC connections that have told the id which their server chose.
#[btf_map]
static CONNECTIONS: LruHashMap<ConnectionKey, Flow, { DEFAULT_CONNECTIONS as usize }> =
    LruHashMap::new();

/// Fragmented packets whose first fragment was seen.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment, { DEFAULT_FRAGMENTS as usize }> =
    LruHashMap::new();

/// The addresses of all services.
#[btf_map]
static VIPS: HashMap<VipKey, u32, { DEFAULT_SERVICES as usize }> = HashMap::new();

/// The MAC addresses that this node answers to.
#[btf_map]
static OWN_MACS: Array<OwnMac, { abi::OWN_MACS as usize }, MMAPABLE> = Array::new();

/// Packets and bytes by verdict, [`REASONS`] for each CPU. The daemon sizes it.
#[btf_map]
static VERDICTS: Array<VerdictCounter, { REASONS as usize }, MMAPABLE> = Array::new();

/// What went to each backend, for each CPU. The daemon sizes it.
#[btf_map]
static BACKEND_COUNTERS: Array<BackendCounter, { DEFAULT_BACKENDS as usize + 1 }, MMAPABLE> =
    Array::new();

/// How many pins each CPU may make for each service. The daemon sizes it.
#[btf_map]
static SYN_BUDGETS: Array<SynBudget, { DEFAULT_SERVICES as usize }, MMAPABLE> = Array::new();

/// Marks of the SYNs seen last, to recognise one that is sent again.
#[btf_map]
static SYN_SEEN: PerCpuArray<SharedU32, { abi::SYN_SEEN as usize }> = PerCpuArray::new();

use lb_common::shared::SharedU32;

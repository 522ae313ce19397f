//! Which backend a socket of the node gets: the owner of a slot of the service's ring, as a new flow of any client.

use aya_ebpf::{
    Global,
    btf_maps::{Array, ArrayOfMaps, HashMap},
    helpers::{bpf_get_prandom_u32, bpf_get_smp_processor_id},
    macros::btf_map,
};
use lb_common::{
    abi::{
        Backend, DEFAULT_BACKENDS, DEFAULT_SERVICES, ReturnCounter, Service, ServiceKeyV4,
        ServiceKeyV6, Slot, backend_flags, local::LocalPeer, mapped,
    },
    hash::GOLDEN,
    nat,
    service_index::Entry,
};
use zerocopy::network_endian::U16;

use crate::{trie_key::halves, wide};

/// `BPF_F_MMAPABLE` (Linux 5.5), as the balancer's maps have it.
const MMAPABLE: usize = 1 << 10;
/// `BPF_F_INNER_MAP` (Linux 5.10), likewise.
const INNER_MAP: usize = 1 << 12;

/// Entries for each CPU in `RETURN_COUNTERS`: the size of `BACKENDS`.
#[unsafe(no_mangle)]
static BACKENDS_PER_CPU: Global<u32> = Global::new(DEFAULT_BACKENDS + 1);

// The balancer's maps, which the daemon sizes and pins.
#[btf_map]
static SERVICES_V4: HashMap<ServiceKeyV4, Service, { DEFAULT_SERVICES as usize }> = HashMap::new();
#[btf_map]
static SERVICES_V6: HashMap<ServiceKeyV6, Service, { DEFAULT_SERVICES as usize }> = HashMap::new();
#[btf_map]
static SERVICE_ENTRIES: Array<Entry, { DEFAULT_SERVICES as usize }> = Array::new();
#[btf_map]
static RINGS: ArrayOfMaps<Array<Slot, 1, { MMAPABLE | INNER_MAP }>, { DEFAULT_SERVICES as usize }> =
    ArrayOfMaps::new();
#[btf_map]
static BACKENDS: Array<Backend, { DEFAULT_BACKENDS as usize + 1 }, MMAPABLE> = Array::new();
#[btf_map]
static RETURN_COUNTERS: Array<ReturnCounter, { DEFAULT_BACKENDS as usize + 1 }, MMAPABLE> =
    Array::new();

/// Slots that are tried.
const TRIES: u32 = 4;

/// The service of an address, IPv4 as an IPv4-mapped IPv6 address, and a port.
#[inline(always)]
pub fn service(address: &[u8; 16], port: U16, proto: u8) -> Option<&'static Service> {
    let [.., a, b, c, d] = *address;
    let v4 = [a, b, c, d];
    let exact = if *address == mapped(v4) {
        let key = ServiceKeyV4 { address: v4, port, proto, reserved: 0 };
        // SAFETY: the entry's memory stays mapped while the program runs, and any bytes will do.
        unsafe { SERVICES_V4.get(key) }
    } else {
        let key = ServiceKeyV6 { address: *address, port, proto, reserved: 0 };
        // SAFETY: as above.
        unsafe { SERVICES_V6.get(key) }
    };
    if exact.is_some() {
        return exact;
    }
    let id = wide::find(halves(address), port, proto)?;
    SERVICE_ENTRIES.get(id).map(|entry| &entry.service)
}

#[inline(always)]
fn usable(id: u16) -> Option<&'static Backend> {
    let backend = BACKENDS.get(u32::from(id))?;
    (nat::is_nat(backend) && backend.flags & backend_flags::USABLE != 0).then_some(backend)
}

/// A backend of the service, by its id.
#[inline(always)]
pub fn backend(service: &Service) -> Option<(u16, &'static Backend)> {
    // SAFETY: the helper has no precondition.
    let mut random = unsafe { bpf_get_prandom_u32() };
    for _ in 0..TRIES {
        let index = (u64::from(random) * u64::from(service.slots)) >> 32;
        let owner = RINGS.get_value(u32::from(service.id), &(index as u32))?.owners().current;
        if let Some(backend) = usable(owner) {
            return Some((owner, backend));
        }
        random = random.wrapping_add(GOLDEN as u32 | 1);
    }
    None
}

/// Whether what a socket was given is a backend still, and the same.
#[inline(always)]
pub fn is_still(peer: &LocalPeer) -> bool {
    usable(peer.backend).is_some_and(|backend| backend.address == peer.address)
}

/// Counts a socket that was given a backend.
#[inline(always)]
pub fn count(backend: u16) {
    // SAFETY: the helper has no precondition.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    if let Some(counter) = RETURN_COUNTERS.get(cpu * BACKENDS_PER_CPU.load() + u32::from(backend)) {
        counter.local.bump(1);
    }
}

//! Which backend a socket of the node gets: the owner of a slot of the service's ring, as a new flow of any client.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_smp_processor_id};
use lb_common::{
    abi::{Backend, Service, ServiceKeyV4, ServiceKeyV6, backend_flags, local::LocalPeer, mapped},
    hash::GOLDEN,
    nat,
};
use zerocopy::network_endian::U16;

use crate::{
    service_maps::{
        BACKENDS, BACKENDS_PER_CPU, RETURN_COUNTERS, RINGS, SERVICE_ENTRIES, SERVICES_V4,
        SERVICES_V6,
    },
    trie_key::halves,
    wide,
};

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

/// Whether what a socket was given for a VIP is a backend of it still: its id may be another one's by now.
#[inline(always)]
pub fn is_still(peer: &LocalPeer, vip: &[u8; 16]) -> bool {
    usable(peer.backend).is_some_and(|backend| {
        let port = nat::port_of(backend);
        backend.address == peer.address
            && backend.vip == *vip
            && (port == peer.port || port.get() == 0)
    })
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

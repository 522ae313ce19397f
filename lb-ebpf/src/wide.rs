//! The services with several ports, or a prefix of VIPs, and how a packet finds the most specific one
//! ([`lb_common::wide`]).

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie},
    macros::btf_map,
};
use lb_common::{
    abi::{DEFAULT_SERVICES, Service},
    wide::{PORTS_PER_SERVICE, PortPrefix, WideKey},
};
use zerocopy::network_endian::U16;

use crate::trie_key::TrieKey;

/// The services with several ports, or a prefix of VIPs; the program reads them in `SERVICE_ENTRIES`.
#[btf_map]
static WIDE_SERVICES: HashMap<WideKey, Service, { DEFAULT_SERVICES as usize }> = HashMap::new();

/// The group of the longest prefix of VIPs around an address.
#[btf_map]
static WIDE_VIPS: LpmTrie<[u64; 2], u32, { DEFAULT_SERVICES as usize }> = LpmTrie::new();

/// The service of a group, a protocol and a port, by its id.
#[btf_map]
static WIDE_PORTS: LpmTrie<u64, u32, { PORTS_PER_SERVICE as usize * DEFAULT_SERVICES as usize }> =
    LpmTrie::new();

/// How many prefixes `WIDE_VIPS` has.
#[btf_map]
static WIDE_GROUPS: Array<u32, 1> = Array::new();

/// Whether there are such services.
#[inline(always)]
pub fn has_groups() -> bool {
    WIDE_GROUPS.get(0).is_some_and(|count| *count != 0)
}

/// Whether one has this VIP.
#[inline(always)]
pub fn has_vip(address: [u64; 2]) -> bool {
    has_groups() && WIDE_VIPS.get(TrieKey::new(128, address).get()).is_some()
}

/// The id of the one that a packet for this address and port is for.
#[inline(always)]
pub fn find([upper, lower]: [u64; 2], port: U16, proto: u8) -> Option<u32> {
    if !has_groups() {
        return None;
    }
    let to = u64::from(u16::from_ne_bytes(port.to_bytes())) | u64::from(proto) << 16;
    match wide_service(upper, lower, to) {
        0 => None,
        id => Some((id - 1) as u32),
    }
}

/// The id of the most specific service with several ports or VIPs that a packet fits, and one; 0 for none. The address
/// goes as two words, and `to` has the port, as on the wire, and the protocol above it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn wide_service(upper: u64, lower: u64, to: u64) -> u64 {
    let Some(group) = WIDE_VIPS.get(TrieKey::new(128, [upper, lower]).get()) else { return 0 };
    let key = PortPrefix::word((*group) as u16, (to >> 16) as u8, to as u16);
    match WIDE_PORTS.get(TrieKey::new(PortPrefix::BITS, key).get()) {
        Some(id) => u64::from(*id) + 1,
        None => 0,
    }
}

//! The backends in mode `nat`, by the source of their answers ([`lb_common::nat`]).

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie},
    macros::btf_map,
};
use lb_common::{
    abi::{DEFAULT_BACKENDS, ReverseKey, ReversePrefix},
    wide::PORTS_PER_SERVICE,
};

use crate::trie_key::{TrieKey, halves};

/// Those that listen at one port. The daemon sizes it.
#[btf_map]
static REVERSE_NAT: HashMap<ReverseKey, u32, { DEFAULT_BACKENDS as usize }> = HashMap::new();

/// Those that keep the ports that clients connect to, by ranges of them. The daemon sizes it.
#[btf_map]
static REVERSE_RANGES: LpmTrie<
    [u64; 3],
    u32,
    { PORTS_PER_SERVICE as usize * DEFAULT_BACKENDS as usize },
> = LpmTrie::new();

/// How many backends both have.
#[btf_map]
static NAT_BACKENDS: Array<u32, 1> = Array::new();

/// Whether there is any.
#[inline(always)]
pub fn has_backends() -> bool {
    NAT_BACKENDS.get(0).is_some_and(|count| *count != 0)
}

/// The backend whose answers have this source.
#[inline(always)]
pub fn find(key: &ReverseKey) -> Option<u16> {
    // SAFETY: the entry's memory stays mapped while the program runs, and any bytes will do.
    if let Some(id) = unsafe { REVERSE_NAT.get(key) } {
        return Some(*id as u16);
    }
    let [upper, lower] = halves(&key.address);
    let port = u16::from_ne_bytes(key.port.to_bytes());
    match reverse_range(upper, lower, ReversePrefix::word(key.proto, port)) {
        0 => None,
        id => Some(id as u16),
    }
}

/// The backend whose range of ports a source is in; 0 for none. The address goes as two words, protocol and port as one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reverse_range(upper: u64, lower: u64, rest: u64) -> u64 {
    let key = TrieKey::new(ReversePrefix::BEFORE_PORT + 16, [upper, lower, rest]);
    REVERSE_RANGES.get(key.get()).map_or(0, |id| u64::from(*id))
}

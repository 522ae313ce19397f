//! Fragments: the first one has the transport header and finds a backend, the others follow it.

use crate::{
    abi::{Fragment, FragmentKey, VipKey, mapped},
    choice::{Choice, Found},
    packet::{Packet, ipv4::Ipv4, ipv6::Ipv6},
    tables::Tables,
    verdict::{Drop, Pass},
};

/// Seconds for which the rest of a fragmented packet is awaited (Linux's `ipfrag_time`).
pub const FRAGMENT_TIMEOUT: u32 = 30;

/// A fragment to a VIP, without a transport header: it follows its first fragment. Returns a [`Found`] as a word.
#[inline(always)]
fn later_fragment<T: Tables>(tables: &T, key: &FragmentKey) -> u64 {
    match tables.fragment(key) {
        Some(first) if is_fresh(tables, first) => {
            if first.backend == 0 || first.is_return != 0 {
                return Found::Pass(Pass::Fragment).to_word();
            }
            Found::Choice(Choice::of(first.backend), first.entropy).to_word()
        }
        _ => Found::Drop(Drop::FragmentWithoutFirst).to_word(),
    }
}

/// Whether the rest of a packet is still awaited.
#[inline(always)]
pub(crate) fn is_fresh<T: Tables>(tables: &T, first: Fragment) -> bool {
    tables.now().wrapping_sub(first.seen) <= FRAGMENT_TIMEOUT
}

/// What happens to a fragment but the first of an IPv4 packet at `l3`. Returns a [`Found`] as a word.
#[inline(never)]
pub fn later_fragment_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    match is_to_vip_v4(pkt, tables, l3) {
        Some(true) => {}
        Some(false) => return Found::Pass(Pass::Fragment).to_word(),
        None => return Found::Pass(Pass::Truncated).to_word(),
    }
    match fragment_key_v4(pkt, l3) {
        Some(key) => later_fragment(tables, &key),
        None => Found::Pass(Pass::Truncated).to_word(),
    }
}

/// The same for IPv6; `id` is the packet's identification.
#[inline(never)]
pub fn later_fragment_v6<P, T>(pkt: &P, tables: &T, l3: usize, id: [u8; 4]) -> u64
where
    P: Packet + ?Sized,
    T: Tables,
{
    match is_to_vip_v6(pkt, tables, l3) {
        Some(true) => {}
        Some(false) => return Found::Pass(Pass::Fragment).to_word(),
        None => return Found::Pass(Pass::Truncated).to_word(),
    }
    match fragment_key_v6(pkt, l3, id) {
        Some(key) => later_fragment(tables, &key),
        None => Found::Pass(Pass::Truncated).to_word(),
    }
}

/// The decision for a first fragment as one word: a backend's id, 0 for the node itself, and the
/// entropy.
#[inline(always)]
pub const fn decision_word(backend: u16, entropy: u32) -> u64 {
    backend as u64 | (entropy as u64) << 16
}

/// Notes where the first fragment of a packet to a VIP went.
#[inline(always)]
fn remember<T: Tables>(tables: &T, key: &FragmentKey, decision: u64) {
    let value = Fragment {
        backend: decision as u16,
        is_return: 0,
        seen: tables.now(),
        entropy: (decision >> 16) as u32,
    };
    tables.insert_fragment(key, value);
}

/// Whether an IPv4 packet at `l3` is to a VIP. The answer comes before the key of a fragment is made: the stack has no
/// room for both.
#[inline(always)]
fn is_to_vip_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> Option<bool> {
    let ip = pkt.load::<Ipv4>(l3)?;
    Some(tables.is_vip(&VipKey { address: mapped(ip.destination) }))
}

/// The same for IPv6.
#[inline(always)]
fn is_to_vip_v6<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> Option<bool> {
    let ip = pkt.load::<Ipv6>(l3)?;
    Some(tables.is_vip(&VipKey { address: ip.destination }))
}

/// Stores where the first fragment of an IPv4 packet at `l3` went; `decision` as made by [`decision_word`].
#[inline(never)]
pub fn remember_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize, decision: u64) {
    if is_to_vip_v4(pkt, tables, l3) == Some(true)
        && let Some(key) = fragment_key_v4(pkt, l3)
    {
        remember(tables, &key, decision);
    }
}

/// The same for IPv6; `id` is the packet's identification.
#[inline(never)]
pub fn remember_v6<P, T>(pkt: &P, tables: &T, l3: usize, decision: u64, id: [u8; 4])
where
    P: Packet + ?Sized,
    T: Tables,
{
    if is_to_vip_v6(pkt, tables, l3) == Some(true)
        && let Some(key) = fragment_key_v6(pkt, l3, id)
    {
        remember(tables, &key, decision);
    }
}

#[inline(always)]
pub(crate) fn fragment_key_v4<P: Packet + ?Sized>(pkt: &P, l3: usize) -> Option<FragmentKey> {
    let ip = pkt.load::<Ipv4>(l3)?;
    Some(FragmentKey {
        source: mapped(ip.source),
        destination: mapped(ip.destination),
        id: [ip.id[0], ip.id[1], 0, 0],
        proto: ip.proto,
        reserved: [0; 3],
    })
}

#[inline(always)]
pub(crate) fn fragment_key_v6<P: Packet + ?Sized>(
    pkt: &P,
    l3: usize,
    id: [u8; 4],
) -> Option<FragmentKey> {
    let &Ipv6 { source, destination, .. } = pkt.load(l3)?;
    Some(FragmentKey { source, destination, id, proto: 0, reserved: [0; 3] })
}

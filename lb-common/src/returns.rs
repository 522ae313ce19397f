//! Answers of backends in mode `nat`: which packets they are.
//!
//! [`crate::forward::decide`] passes them, as they are for no service. Here the few packets that pass so are looked at
//! once more, and only where there is a backend in mode `nat`.

use zerocopy::network_endian::U16;

use crate::{
    abi::{Fragment, FragmentKey, ReverseKey, mapped},
    forward,
    fragment::{fragment_key_v4, fragment_key_v6, is_fresh},
    gso::Wire,
    nat::{self, Part},
    packet::{
        MAX_OFFSET, Packet, ethernet,
        icmp::{self, Icmp, QuotedPorts},
        ipv4::{self, Ipv4},
        ipv6::{self, Fragmentation, Ipv6},
        number,
        tcp::Tcp,
        udp,
    },
    tables::Tables,
    verdict::{Pass, Return, Verdict},
};

/// Decides what happens to a frame, answers in mode `nat` included: [`forward::decide`], then [`find`]. The program does the
/// same in two steps.
pub fn decide<'t, P, T>(pkt: &P, tables: &'t T) -> Verdict<T::Backend<'t>>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let verdict = forward::decide(pkt, tables);
    let Verdict::Pass(reason) = verdict else { return verdict };
    if !is_possible(tables, reason) {
        return Verdict::Pass(reason);
    }
    match find(pkt, tables) {
        0 => Verdict::Pass(reason),
        UNTRANSLATED => Verdict::Pass(Pass::ReturnUntranslated),
        word => match tables.backend(word as u16) {
            Some(backend) => Verdict::Return(Return::from_word(pkt, backend, word)),
            None => Verdict::Pass(reason),
        },
    }
}

/// Whether a frame that passes for this reason may be an answer: then [`find`] says so.
#[inline(always)]
pub fn is_possible<T: Tables>(tables: &T, reason: Pass) -> bool {
    matches!(reason, Pass::NotAService | Pass::Fragment) && tables.has_nat()
}

/// [`find`]: an answer whose time to live has run out. The kernel replies to it, as to any packet that it routes.
pub const UNTRANSLATED: u64 = 1 << 63;

const LEN_SHIFT: u32 = 16;
const L3_SHIFT: u32 = 32;
const V6: u64 = 1 << 40;

impl<B> Return<B> {
    /// That of a frame and its backend, by the word that [`find`] has returned.
    #[inline(always)]
    pub fn from_word<P: Packet + ?Sized>(pkt: &P, backend: B, word: u64) -> Self {
        let (l3, v6, len) = place(word);
        let headers = match pkt.segment() {
            0 => 0,
            _ => headers(pkt, l3, v6),
        };
        let Wire { packets, bytes, .. } = Wire::new(len, headers, pkt.segment());
        Self { id: word as u16, backend, l3, v6, len, packets, bytes }
    }
}

/// Of the word that [`find`] has returned: the offset of the IP header in bytes, whether the packet is IPv6, and its bytes.
#[inline(always)]
#[must_use]
pub const fn place(word: u64) -> (usize, bool, u16) {
    ((word >> L3_SHIFT) as usize & 0x1f, word & V6 != 0, (word >> LEN_SHIFT) as u16)
}

/// The word of a frame without a link layer, of which [`find`] has returned `word`, once an Ethernet header stands before it.
#[inline(always)]
#[must_use]
pub const fn behind_link(word: u64) -> u64 {
    word | (ethernet::LEN as u64) << L3_SHIFT
}

/// Bytes of the headers that each segment of a packet repeats; 0 of one that is never cut.
#[inline(always)]
fn headers<P: Packet + ?Sized>(pkt: &P, l3: usize, v6: bool) -> u16 {
    let Some(part) = Part::of(pkt, l3, v6) else { return 0 };
    let transport = match part.proto() {
        number::TCP => match pkt.load::<Tcp>(l3 + part.offset()) {
            Some(tcp) => usize::from(tcp.data_offset >> 4) * 4,
            None => return 0,
        },
        number::UDP => udp::LEN,
        _ => return 0,
    };
    (part.offset() + transport) as u16
}

/// The backend in mode `nat` whose answer a frame is, as a word for [`Return::from_word`]; 0 if it is none.
///
/// The frame must be one that [`forward::decide`] has let pass as [`Pass::NotAService`] or [`Pass::Fragment`], and so has
/// true lengths.
#[inline(never)]
pub fn find<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T) -> u64 {
    let Ok(link) = ethernet::parse(pkt) else { return 0 };
    match link.ethertype {
        ethernet::IPV4 => find_v4(pkt, tables, link.l3),
        ethernet::IPV6 => find_v6(pkt, tables, link.l3),
        _ => 0,
    }
}

/// The word of an answer of backend `id`.
#[inline(always)]
fn to_word<T: Tables>(tables: &T, id: u16, at: (usize, bool), len: u16, ttl: u8) -> u64 {
    let (l3, v6) = at;
    // The backend's entry is freed after the source of its answers; a packet may come between.
    if id == 0 || !tables.backend(id).is_some_and(|backend: T::Backend<'_>| nat::is_nat(&backend)) {
        return 0;
    }
    if ttl <= 1 {
        return UNTRANSLATED;
    }
    u64::from(id) | u64::from(len) << LEN_SHIFT | (l3 as u64) << L3_SHIFT | if v6 { V6 } else { 0 }
}

#[inline(always)]
fn find_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    let Some(ip) = pkt.load::<Ipv4>(l3) else { return 0 };
    let (len, ttl) = (ip.total_len.get(), ip.ttl);
    let id = if ip.fragment.get() & ipv4::OFFSET_MASK != 0 {
        later_v4(pkt, tables, l3)
    } else if ip.proto == number::ICMP {
        quoted_v4(pkt, tables, l3)
    } else {
        by_source_v4(pkt, tables, l3)
    };
    to_word(tables, id as u16, (l3, false), len, ttl)
}

#[inline(always)]
fn find_v6<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    let Some(ip) = pkt.load::<Ipv6>(l3) else { return 0 };
    let (len, ttl) = (ip.payload_len.get() + ipv6::LEN as u16, ip.hop_limit);
    let word = ipv6::transport_word(pkt, ip.next, l3 + ipv6::LEN);
    let Ok(transport) = ipv6::Transport::from_word(word) else { return 0 };
    let part = Part::new(transport.proto, transport.offset - l3);
    let id = match transport.fragmentation {
        Fragmentation::Later(packet) => later_v6(pkt, tables, l3, packet),
        _ if transport.proto == number::ICMPV6 => quoted_v6(pkt, tables, l3, part),
        Fragmentation::Whole => by_source_v6(pkt, tables, l3, part),
        Fragmentation::First(packet) => {
            let id = by_source_v6(pkt, tables, l3, part);
            if id != 0 {
                remember_v6(pkt, tables, l3, packet, id);
            }
            id
        }
    };
    to_word(tables, id as u16, (l3, true), len, ttl)
}

/// The backend at the source of a packet; 0 if there is none. Of a first fragment it is noted for the others.
#[inline(never)]
fn by_source_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    let Some(ip) = pkt.load::<Ipv4>(l3) else { return 0 };
    let Some(header_len) = ip.header_len() else { return 0 };
    let more = ip.fragment.get() & ipv4::MORE_FRAGMENTS != 0;
    let Some(port) = pkt.load::<U16>(l3 + header_len) else { return 0 };
    let key = ReverseKey { address: mapped(ip.source), port: *port, proto: ip.proto, reserved: 0 };
    let Some(id) = tables.reverse_nat(&key) else { return 0 };
    if more {
        remember_v4(pkt, tables, l3, id.into());
    }
    id.into()
}

/// The same for IPv6, without the note.
#[inline(never)]
fn by_source_v6<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize, part: Part) -> u64 {
    let Some(ip) = pkt.load::<Ipv6>(l3) else { return 0 };
    let Some(port) = pkt.load::<U16>(l3 + part.offset()) else { return 0 };
    let key = ReverseKey { address: ip.source, port: *port, proto: part.proto(), reserved: 0 };
    tables.reverse_nat(&key).unwrap_or(0).into()
}

#[inline(always)]
fn later<T: Tables>(tables: &T, key: &FragmentKey) -> u64 {
    match tables.fragment(key) {
        Some(first) if first.is_return != 0 && is_fresh(tables, first) => first.backend.into(),
        _ => 0,
    }
}

/// The backend whose answer a fragment but the first is of; 0 if there is none.
#[inline(never)]
fn later_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    fragment_key_v4(pkt, l3).map_or(0, |key| later(tables, &key))
}

/// The same for IPv6; `id` is the packet's identification.
#[inline(never)]
fn later_v6<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize, id: [u8; 4]) -> u64 {
    fragment_key_v6(pkt, l3, id).map_or(0, |key| later(tables, &key))
}

#[inline(always)]
fn remember<T: Tables>(tables: &T, key: &FragmentKey, backend: u64) {
    let value = Fragment { backend: backend as u16, is_return: 1, seen: tables.now(), entropy: 0 };
    tables.insert_fragment(key, value);
}

/// Notes of which backend's answer the first fragment of an IPv4 packet at `l3` was.
#[inline(never)]
fn remember_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize, backend: u64) {
    if let Some(key) = fragment_key_v4(pkt, l3) {
        remember(tables, &key, backend);
    }
}

/// The same for IPv6; `id` is the packet's identification.
#[inline(never)]
fn remember_v6<P, T>(pkt: &P, tables: &T, l3: usize, id: [u8; 4], backend: u64)
where
    P: Packet + ?Sized,
    T: Tables,
{
    if let Some(key) = fragment_key_v6(pkt, l3, id) {
        remember(tables, &key, backend);
    }
}

/// The backend that an ICMP error at `l3` belongs to: the quoted packet went to it from the client. 0 if there is none.
#[inline(never)]
fn quoted_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    find_quoted_v4(pkt, tables, l3).map_or(0, Into::into)
}

#[inline(always)]
fn find_quoted_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> Option<u16> {
    let outer = pkt.load::<Ipv4>(l3)?;
    let end = l3 + outer.total_len.get() as usize;
    let message = l3 + outer.header_len()?;
    if !pkt.load::<Icmp>(message)?.is_error() {
        return None;
    }
    let offset = message + icmp::LEN;
    let ip = pkt.load::<Ipv4>(offset)?;
    let ports_at = offset + ip.header_len()?;
    if ip.fragment.get() & ipv4::OFFSET_MASK != 0 || ip.source != outer.destination {
        return None;
    }
    let port = U16::from_bytes(pkt.load::<QuotedPorts>(ports_at)?.destination);
    if ports_at + size_of::<QuotedPorts>() > end {
        return None;
    }
    let address = mapped(ip.destination);
    tables.reverse_nat(&ReverseKey { address, port, proto: ip.proto, reserved: 0 })
}

/// The same for an ICMPv6 error.
#[inline(never)]
fn quoted_v6<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize, part: Part) -> u64 {
    find_quoted_v6(pkt, tables, l3, (l3 + part.offset()) & MAX_OFFSET).map_or(0, Into::into)
}

#[inline(always)]
fn find_quoted_v6<P, T>(pkt: &P, tables: &T, l3: usize, message: usize) -> Option<u16>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let outer = pkt.load::<Ipv6>(l3)?;
    if !pkt.load::<Icmp>(message)?.is_error_v6() {
        return None;
    }
    let end = l3 + ipv6::LEN + outer.payload_len.get() as usize;
    let offset = message + icmp::LEN;
    let ip = pkt.load::<Ipv6>(offset)?;
    if ip.version_class_label[0] >> 4 != 6 || ip.source != outer.destination {
        return None;
    }
    let address = ip.destination;
    let word = ipv6::transport_word(pkt, ip.next, offset + ipv6::LEN);
    let transport = ipv6::Transport::from_word(word).ok()?;
    if let Fragmentation::Later(_) = transport.fragmentation {
        return None;
    }
    let port = U16::from_bytes(pkt.load::<QuotedPorts>(transport.offset)?.destination);
    if transport.offset + size_of::<QuotedPorts>() > end {
        return None;
    }
    tables.reverse_nat(&ReverseKey { address, port, proto: transport.proto, reserved: 0 })
}

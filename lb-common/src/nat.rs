//! Mode `nat`: destination NAT without a table of sessions.
//!
//! A client's packet is for VIP and port, and gets the address and port of its backend as its destination. The backend's
//! route to clients leads through the node, where its answers get VIP and port as their source. That a packet is an
//! answer, and of what, follows from its protocol, source address and source port alone (`REVERSE_NAT`). So any node
//! translates any answer, and nothing is lost when one takes over. Where clients have several ports to connect to, the
//! ports stay as they are, and a trie has their ranges (`REVERSE_RANGES`).
//!
//! Checksums are updated by what has changed (RFC 1624). An ICMP error is translated with the addresses and the port in
//! its quote (RFC 5508, 4.2); the checksum of the quoted transport header stays, as most quotes end before it.

use core::mem::offset_of;

use zerocopy::{FromBytes, IntoBytes, KnownLayout, Unaligned, byteorder::network_endian::U16};

use crate::{
    abi::{Backend, backend_flags},
    packet::{
        MAX_OFFSET, Packet,
        icmp::{self, Icmp},
        ipv4::{self, Ipv4},
        ipv6::{self, Fragmentation, Ipv6},
        number,
        tcp::Tcp,
        udp::Udp,
    },
    rewrite::fold,
};

/// A frame that can be changed.
pub trait Writable: Packet {
    /// The `T` at byte `off`, to be changed, if the frame's first buffer holds it.
    ///
    /// What is read and written at one place is so by one call: LLVM takes the check of another one for it, of whose
    /// pointer the kernel's verifier knows nothing.
    fn edit<T>(&mut self, off: usize) -> Option<&mut T>
    where
        T: FromBytes + IntoBytes + KnownLayout + Unaligned;

    /// Updates the checksum of the transport header that is at `at`, by differences as [`difference`] returns them: of
    /// the addresses in the pseudo-header, and of bytes that it covers itself. `is_udp`: 0 means that there is none (RFC
    /// 768). The frame must not be used after it. False if the first buffer does not hold the checksum.
    #[inline(always)]
    fn update_checksum(
        &mut self,
        at: usize,
        pseudo: u32,
        covered: u32,
        Covering { is_udp, .. }: Covering,
    ) -> bool {
        let Some(check) = self.edit::<U16>(at) else { return false };
        let old = check.get();
        if is_udp && old == 0 {
            return true;
        }
        let new = updated(old, u32::from(fold(pseudo)) + u32::from(fold(covered)));
        check.set(if is_udp && new == 0 { 0xffff } else { new });
        true
    }
}

/// What a checksum is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covering {
    /// A UDP datagram.
    pub is_udp: bool,
    /// An IPv6 packet.
    pub v6: bool,
}

/// What follows the IP header of a packet that is translated, as one word: what it is, and its offset from the IP
/// header. It is [`Self::ADDRESS_ALONE`] for a fragment but the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part(pub u32);

impl Part {
    /// No transport header follows.
    pub const ADDRESS_ALONE: Self = Self(0);

    /// Of a protocol, with its header `offset` bytes behind the start of the IP header.
    #[must_use]
    #[inline(always)]
    pub const fn new(proto: u8, offset: usize) -> Self {
        Self((proto as u32) << 16 | offset as u32 & 0xffff)
    }

    /// That of the packet at `l3`; `None` if the first buffer does not hold its headers, or it has too many.
    #[inline(always)]
    pub(crate) fn of<P: Packet + ?Sized>(pkt: &P, l3: usize, v6: bool) -> Option<Self> {
        if !v6 {
            let ip = pkt.load::<Ipv4>(l3)?;
            if ip.fragment.get() & ipv4::OFFSET_MASK != 0 {
                return Some(Self::ADDRESS_ALONE);
            }
            return Some(Self::new(ip.proto, ip.header_len()?));
        }
        let next = pkt.load::<Ipv6>(l3)?.next;
        if matches!(next, number::TCP | number::UDP | number::ICMPV6) {
            return Some(Self::new(next, ipv6::LEN));
        }
        let word = ipv6::transport_word(pkt, next, l3 + ipv6::LEN);
        let transport = ipv6::Transport::from_word(word).ok()?;
        Some(match transport.fragmentation {
            Fragmentation::Later(_) => Self::ADDRESS_ALONE,
            _ => Self::new(transport.proto, transport.offset - l3),
        })
    }

    /// Its protocol.
    #[inline(always)]
    pub(crate) const fn proto(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// Its offset, within a bound that the kernel's verifier can see.
    #[inline(always)]
    pub(crate) const fn offset(self) -> usize {
        (self.0 as usize) & MAX_OFFSET
    }
}

/// The end of a packet that is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A client's packet: its destination.
    Destination,
    /// A backend's answer: its source.
    Source,
}

/// The difference of two texts of even and equal length, to be added to the complement of a checksum: the sum of the new
/// words and of the complements of the old ones (RFC 1624, equation 3). Below 2^22.
#[must_use]
#[inline(always)]
pub fn difference(old: &[u8], new: &[u8]) -> u32 {
    let mut sum = 0;
    for (old, new) in old.chunks_exact(2).zip(new.chunks_exact(2)) {
        sum += u32::from(!u16::from_be_bytes([old[0], old[1]]));
        sum += u32::from(u16::from_be_bytes([new[0], new[1]]));
    }
    sum
}

/// A checksum after a change by this [`difference`].
#[must_use]
#[inline(always)]
pub const fn updated(check: u16, difference: u32) -> u16 {
    !fold((!check) as u32 + difference)
}

/// Whether a backend's packets are translated.
#[must_use]
#[inline(always)]
pub const fn is_nat(backend: &Backend) -> bool {
    backend.flags & backend_flags::NAT != 0
}

/// Gives a client's packet at `l3` the backend's address and port as its destination, and returns what follows its IP
/// header; `None` if the first buffer does not hold what changes, and then the frame is spoilt. The TTL stays.
#[inline(always)]
pub fn to_backend<P: Writable + ?Sized>(
    pkt: &mut P,
    l3: usize,
    v6: bool,
    to: &Backend,
) -> Option<Part> {
    let part = Part::of(pkt, l3, v6)?;
    if v6 {
        translate_v6(pkt, l3, part, End::Destination, &to.vip, (&to.address, port_of(to)))?;
    } else {
        translate_v4(pkt, l3, part, End::Destination, [0; 4], (to.address_v4, port_of(to)))?;
    }
    Some(part)
}

/// Gives a backend's answer at `l3` VIP and port as its source, likewise.
#[inline(always)]
pub fn to_client<P: Writable + ?Sized>(
    pkt: &mut P,
    l3: usize,
    v6: bool,
    of: &Backend,
) -> Option<()> {
    let part = Part::of(pkt, l3, v6)?;
    if v6 {
        return translate_v6(pkt, l3, part, End::Source, &of.address, (&of.vip, of.vip_port));
    }
    let vip = *of.vip.last_chunk()?;
    translate_v4(pkt, l3, part, End::Source, of.address_v4, (vip, of.vip_port))
}

/// The port of a backend; 0 if it is the one that a client connects to.
#[must_use]
#[inline(always)]
pub const fn port_of(backend: &Backend) -> U16 {
    if backend.port.get() == 0 { backend.vip_port } else { backend.port }
}

#[inline(always)]
fn translate_v4<P: Writable + ?Sized>(
    pkt: &mut P,
    l3: usize,
    part: Part,
    end: End,
    own: [u8; 4],
    (address, port): ([u8; 4], U16),
) -> Option<()> {
    let l4 = l3 + part.offset();
    if part.proto() != number::ICMP {
        let (pseudo, _) = replace_v4(pkt.edit(l3)?, end, address);
        return transport(pkt, l4, part.proto(), end, port, pseudo, false);
    }
    // Nearer headers first: LLVM takes the check of a farther one for theirs.
    let outer = pkt.edit::<Ipv4>(l3)?;
    // An error of a router on the way is about the end that is translated, and not from it.
    if end == End::Destination || outer.source == own {
        replace_v4(outer, end, address);
    }
    let quoted = l4 + icmp::LEN;
    let inner = pkt.edit::<Ipv4>(quoted)?;
    let ihl = usize::from(inner.version_ihl & 0xf) * 4;
    // The words of the quoted header sum up to the same with its own checksum.
    replace_v4(inner, opposite(end), address);
    let covered = replace_port(pkt, quoted + ihl, opposite(end), port)?;
    (update_icmp(pkt, l4, 0, covered, false) != 0).then_some(())
}

#[inline(always)]
fn translate_v6<P: Writable + ?Sized>(
    pkt: &mut P,
    l3: usize,
    part: Part,
    end: End,
    own: &[u8; 16],
    (address, port): (&[u8; 16], U16),
) -> Option<()> {
    let l4 = l3 + part.offset();
    if part.proto() != number::ICMPV6 {
        let pseudo = replace_v6(pkt.edit(l3)?, end, address);
        return transport(pkt, l4, part.proto(), end, port, pseudo, true);
    }
    let outer = pkt.edit::<Ipv6>(l3)?;
    let is_from_end = end == End::Destination || outer.source == *own;
    let pseudo = if is_from_end { replace_v6(outer, end, address) } else { 0 };
    let quoted = l4 + icmp::LEN;
    let inner = pkt.edit::<Ipv6>(quoted)?;
    let next = inner.next;
    let covered = replace_v6(inner, opposite(end), address);
    let word = ipv6::transport_word(pkt, next, quoted + ipv6::LEN);
    let at = ipv6::Transport::from_word(word).ok()?.offset;
    let covered = covered + replace_port(pkt, at, opposite(end), port)?;
    (update_icmp(pkt, l4, pseudo, covered, true) != 0).then_some(())
}

/// The checksum of an ICMP message at `l4`; out of line, as it stands before what has been checked.
#[inline(never)]
fn update_icmp<P: Writable + ?Sized>(
    pkt: &mut P,
    l4: usize,
    pseudo: u32,
    covered: u32,
    v6: bool,
) -> u64 {
    let at = (l4 & MAX_OFFSET) + offset_of!(Icmp, check);
    pkt.update_checksum(at, pseudo, covered, Covering { is_udp: false, v6 }).into()
}

/// The other end: a quoted packet has gone the other way.
#[inline(always)]
const fn opposite(end: End) -> End {
    match end {
        End::Destination => End::Source,
        End::Source => End::Destination,
    }
}

/// The port and the checksum of a transport header at `l4`, where the address has changed by `pseudo`.
#[inline(always)]
fn transport<P: Writable + ?Sized>(
    pkt: &mut P,
    l4: usize,
    proto: u8,
    end: End,
    port: U16,
    pseudo: u32,
    v6: bool,
) -> Option<()> {
    let check = match proto {
        number::TCP => offset_of!(Tcp, check),
        number::UDP => offset_of!(Udp, check),
        _ => return Some(()),
    };
    let covered = replace_port(pkt, l4, end, port)?;
    let of = Covering { is_udp: proto == number::UDP, v6 };
    pkt.update_checksum(l4 + check, pseudo, covered, of).then_some(())
}

/// Replaces an address in a header, and updates its checksum. Returns the difference, and the address that it had.
#[inline(always)]
fn replace_v4(ip: &mut Ipv4, end: End, new: [u8; 4]) -> (u32, [u8; 4]) {
    let place = match end {
        End::Source => &mut ip.source,
        End::Destination => &mut ip.destination,
    };
    let old = core::mem::replace(place, new);
    let difference = difference(&old, &new);
    ip.check.set(updated(ip.check.get(), difference));
    (difference, old)
}

/// The same in an IPv6 header, which has no checksum. Returns the difference.
#[inline(always)]
fn replace_v6(ip: &mut Ipv6, end: End, new: &[u8; 16]) -> u32 {
    let place = match end {
        End::Source => &mut ip.source,
        End::Destination => &mut ip.destination,
    };
    let difference = difference(place, new);
    *place = *new;
    difference
}

/// Replaces a port of the transport header at `l4`, unless the new one is 0. Returns the difference.
#[inline(always)]
fn replace_port<P: Writable + ?Sized>(pkt: &mut P, l4: usize, end: End, new: U16) -> Option<u32> {
    let place = pkt.edit::<U16>(l4 + if matches!(end, End::Source) { 0 } else { 2 })?;
    if new.get() == 0 {
        return Some(0);
    }
    let difference = difference(&place.to_bytes(), &new.to_bytes());
    *place = new;
    Some(difference)
}

impl Writable for [u8] {
    fn edit<T>(&mut self, off: usize) -> Option<&mut T>
    where
        T: FromBytes + IntoBytes + KnownLayout + Unaligned,
    {
        T::mut_from_prefix(self.get_mut(off..)?).ok().map(|(value, _)| value)
    }
}

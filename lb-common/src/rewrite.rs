//! The bytes that are written: outer headers, ICMP errors, checksums (RFC 1071; RFC 1624 for a
//! change of one field).

use zerocopy::{IntoBytes, byteorder::network_endian::U16};

use crate::{
    abi::Backend,
    packet::{
        icmp::{self, Icmp},
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
    },
    verdict::ReplyKind,
};

/// Time to live of the packets that the balancer makes: outer headers and ICMP errors.
pub const TTL: u8 = 64;

/// How much of an IPv4 packet an ICMP error quotes, in bytes: as RFC 1812, 4.3.2.3 requires, a
/// datagram of up to 576 bytes.
pub const QUOTE_V4: usize = 576 - ipv4::LEN - icmp::LEN;
/// How much of an IPv6 packet an ICMPv6 error quotes, in bytes: as much as fits the minimum MTU of
/// 1280 (RFC 4443, 2.4 (c)).
pub const QUOTE_V6: usize = 1280 - ipv6::LEN - icmp::LEN;
/// How much is quoted of a packet that is shorter than the error would be: the header without
/// options and eight bytes (RFC 792), so that what is sent outgrows what came by its own headers at
/// most.
pub const QUOTE_SHORT_V4: usize = ipv4::LEN + 8;
/// The same for IPv6: the header and eight bytes.
pub const QUOTE_SHORT_V6: usize = ipv6::LEN + 8;

/// How much an ICMP error quotes of a packet of `len` bytes: so much that the error is no longer
/// than the packet, or the least that identifies its flow. Of packets whose time has run out,
/// traceroute's, the least will do.
#[must_use]
#[inline(always)]
pub const fn quote_len(kind: ReplyKind, v6: bool, len: u16) -> usize {
    let is_long = matches!(kind, ReplyKind::TooBig);
    match (v6, is_long) {
        (false, true) if len as usize >= ipv4::LEN + icmp::LEN + QUOTE_V4 => QUOTE_V4,
        (false, _) => QUOTE_SHORT_V4,
        (true, true) if len as usize >= ipv6::LEN + icmp::LEN + QUOTE_V6 => QUOTE_V6,
        (true, _) => QUOTE_SHORT_V6,
    }
}

/// Folds a sum of 16-bit words to 16 bits. The argument must be below 2^32 - 2^16.
#[must_use]
#[inline(always)]
pub const fn fold(mut sum: u32) -> u16 {
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// Sum of the 16-bit words of `bytes`, whose length is even and below 64 KiB.
#[must_use]
#[inline(always)]
pub fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0;
    for pair in bytes.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    sum
}

/// The checksum of an IPv4 header after its TTL was lowered by one (RFC 1624, equation 3; the
/// changed word is TTL and protocol, so it falls by 0x0100).
#[must_use]
#[inline(always)]
pub const fn check_after_ttl(check: u16) -> u16 {
    // HC' = ~(~HC + ~m + m') with m' = m - 0x0100, hence ~m + m' = 0xfeff in ones' complement.
    !fold((!check) as u32 + 0xfeff)
}

/// TTL, protocol and checksum of an IPv4 header, as they are read in one word by a little-endian
/// machine, after the TTL was lowered by one; it must not be 0. [`check_after_ttl`] in the order of
/// bytes that the word has: a sum in ones' complement has no other (RFC 1071, 2 (B)).
#[must_use]
#[inline(always)]
pub const fn hop_taken(word: u32) -> u32 {
    // The checksum is the upper half: one more there, one less below, and what is carried over
    // comes back as one more. All ones would be another zero.
    word.wrapping_add(if word >= 0xfffe_0000 { 0x1_ffff } else { 0xffff })
}

/// A checksum such that its completion over a segment writes the same again: the other words of the segment sum up
/// to `rest`, which must be below 2^32 - 2^16. To complete it is to replace it by the complement of the sum with it, so
/// that twice the checksum is the complement of the rest, modulo 2^16 - 1.
#[must_use]
#[inline(always)]
pub const fn settled_checksum(rest: u32) -> u16 {
    let twice = !fold(rest) as u32;
    (if twice & 1 == 0 { twice / 2 } else { (twice + 0xffff) / 2 }) as u16
}

/// The outer IPv4 header of every packet to a backend, but for what differs: DF, so that a path
/// that is too narrow is noticed; identification 0, as befits an atomic datagram (RFC 6864, 4.1).
#[must_use]
pub fn ipv4_template(source: [u8; 4], destination: [u8; 4]) -> Ipv4 {
    Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_len: U16::ZERO,
        id: [0; 2],
        fragment: U16::new(ipv4::DONT_FRAGMENT),
        ttl: TTL,
        proto: number::IPV4,
        check: U16::ZERO,
        source,
        destination,
    }
}

/// Sum of the words of [`ipv4_template`], for [`Backend::outer_sum`].
#[must_use]
pub fn ipv4_template_sum(source: [u8; 4], destination: [u8; 4]) -> u32 {
    sum(ipv4_template(source, destination).as_bytes())
}

/// The outer header of a tunnel whose packets are IPv4 in IPv4 (RFC 2003). `tos` and `inner_len`
/// are the inner header's (the ECN field is copied: RFC 6040, 4.1); `inner_len` is at most the
/// backend's MTU, so nothing overflows.
#[must_use]
#[inline(always)]
pub fn outer_v4(backend: &Backend, tos: u8, inner_len: u16, entropy: u32) -> Ipv4 {
    let vary = entropy & backend.source_mask;
    let total = inner_len.wrapping_add(ipv4::LEN as u16);
    let check =
        !fold(backend.outer_sum + tos as u32 + total as u32 + (vary >> 16) + (vary & 0xffff));
    Ipv4 {
        tos,
        total_len: U16::new(total),
        check: U16::new(check),
        source: (u32::from_be_bytes(backend.source_v4) | vary).to_be_bytes(),
        ..ipv4_template([0; 4], backend.address_v4)
    }
}

/// The outer header of a tunnel over IPv6 (RFC 2473): `next` is [`number::IPV4`] or
/// [`number::IPV6`]. The flow's entropy is in the source and in the flow label (RFC 6438).
#[must_use]
#[inline(always)]
pub fn outer_v6(backend: &Backend, class: u8, inner_len: u16, next: u8, entropy: u32) -> Ipv6 {
    let vary = (entropy & backend.source_mask).to_be_bytes();
    let mut source = backend.source;
    source[12] |= vary[0];
    source[13] |= vary[1];
    source[14] |= vary[2];
    source[15] |= vary[3];
    Ipv6 {
        version_class_label: [
            0x60 | class >> 4,
            class << 4 | (entropy >> 16 & 0xf) as u8,
            (entropy >> 8) as u8,
            entropy as u8,
        ],
        payload_len: U16::new(inner_len),
        next,
        hop_limit: TTL,
        source,
        destination: backend.address,
    }
}

/// The headers of an ICMP error to the sender of the packet with header `ip`, which is quoted in
/// `quote_len` bytes whose words sum up to `quote_sum`. `mtu` is for [`ReplyKind::TooBig`].
#[must_use]
#[inline(always)]
pub fn reply_v4(
    ip: &Ipv4,
    kind: ReplyKind,
    mtu: u16,
    quote_len: usize,
    quote_sum: u32,
) -> (Ipv4, Icmp) {
    let (kind, code, rest) = match kind {
        ReplyKind::TooBig => {
            (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, [0, 0, (mtu >> 8) as u8, mtu as u8])
        }
        ReplyKind::TtlExceeded => (icmp::TIME_EXCEEDED, 0, [0; 4]),
    };
    let mut message = Icmp { kind, code, check: U16::ZERO, rest };
    message.check = U16::new(!fold(quote_sum + sum(message.as_bytes())));
    let mut outer = Ipv4 {
        total_len: U16::new((ipv4::LEN + icmp::LEN + quote_len) as u16),
        fragment: U16::ZERO,
        proto: number::ICMP,
        ..ipv4_template(ip.destination, ip.source)
    };
    outer.check = U16::new(!fold(sum(outer.as_bytes())));
    (outer, message)
}

/// The same for IPv6; the checksum covers the pseudo-header (RFC 4443, 2.3).
#[must_use]
#[inline(always)]
pub fn reply_v6(
    ip: &Ipv6,
    kind: ReplyKind,
    mtu: u16,
    quote_len: usize,
    quote_sum: u32,
) -> (Ipv6, Icmp) {
    let (kind, rest) = match kind {
        ReplyKind::TooBig => (icmp::V6_TOO_BIG, [0, 0, (mtu >> 8) as u8, mtu as u8]),
        ReplyKind::TtlExceeded => (icmp::V6_TIME_EXCEEDED, [0; 4]),
    };
    let payload = (icmp::LEN + quote_len) as u16;
    let mut message = Icmp { kind, code: 0, check: U16::ZERO, rest };
    let pseudo =
        sum(&ip.source) + sum(&ip.destination) + u32::from(payload) + u32::from(number::ICMPV6);
    message.check = U16::new(!fold(quote_sum + pseudo + sum(message.as_bytes())));
    let outer = Ipv6 {
        version_class_label: [0x60, 0, 0, 0],
        payload_len: U16::new(payload),
        next: number::ICMPV6,
        hop_limit: TTL,
        source: ip.destination,
        destination: ip.source,
    };
    (outer, message)
}

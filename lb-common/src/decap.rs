//! The other end of a tunnel: what a backend without a tunnel device does with the packets that
//! the balancer encapsulated for it.
//!
//! Only packets for the host's own addresses are unwrapped, only if they come from an allowed source,
//! and only if what is inside is for an allowed VIP: otherwise anyone could put any packet behind the
//! host's filters, and a host that routes would forward it. What is not unwrapped passes as it came:
//! it may be of another tunnel that the host ends.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, network_endian::U16};

use crate::{
    abi::{VipKey, mapped},
    packet::{
        Packet, ethernet,
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
    },
    rewrite::fold,
};

/// What the decision reads.
pub trait Tables {
    /// Whether an address is one of the host's, to which the balancer sends.
    fn is_address(&self, key: &VipKey) -> bool;
    /// Whether packets from an outer source may be unwrapped.
    fn is_source(&self, key: &VipKey) -> bool;
    /// Whether packets for an address may be unwrapped.
    fn is_vip(&self, key: &VipKey) -> bool;
}

/// How many prefixes of outer sources there can be.
pub const MAX_SOURCES: u32 = 16;

/// A prefix of outer sources: the element of `DECAP_SOURCES`. IPv4 as IPv4-mapped IPv6 addresses. An
/// entry that is all zero is none: the prefix of all addresses has [`Source::used`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct Source {
    /// The address; what the mask leaves out is zero.
    pub address: [u64; 2],
    /// Ones for the bits that must be alike, in the order of the address's bytes.
    pub mask: [u64; 2],
    /// 1.
    pub used: u64,
}

impl Source {
    /// The prefix of `length` bits of an IPv6 address.
    #[must_use]
    pub const fn new(address: u128, length: u32) -> Self {
        let mask = match length {
            0 => 0,
            length => u128::MAX << (128 - length),
        };
        Self { address: halves(address & mask), mask: halves(mask), used: 1 }
    }

    /// Whether an address is in it.
    #[must_use]
    #[inline(always)]
    pub const fn contains(&self, key: &VipKey) -> bool {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = key.address;
        let high = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let low = u64::from_ne_bytes([i, j, k, l, m, n, o, p]);
        self.used != 0
            && high & self.mask[0] == self.address[0]
            && low & self.mask[1] == self.address[1]
    }
}

/// A number of 128 bits as the words that its bytes in network order are.
const fn halves(bits: u128) -> [u64; 2] {
    [((bits >> 64) as u64).to_be(), (bits as u64).to_be()]
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya::Pod is an unsafe trait; zerocopy has proved what it asks for")]
// SAFETY: FromBytes and IntoBytes hold: any bytes are a valid value, none is padding.
unsafe impl aya::Pod for Source {}

/// The last packet from a source that is not allowed: the element of `DECAP_UNLISTED`, one for each CPU.
/// All zero: there was none.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct Unlisted {
    /// Its outer source, IPv4 as an IPv4-mapped IPv6 address.
    pub source: [u8; 16],
    /// When it came, in nanoseconds of the monotonic clock.
    pub at: u64,
    /// How many have come.
    pub packets: u64,
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya::Pod is an unsafe trait; zerocopy has proved what it asks for")]
// SAFETY: FromBytes and IntoBytes hold: any bytes are a valid value, none is padding.
unsafe impl aya::Pod for Unlisted {}

/// What happens to a packet on the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The host's own network stack gets it untouched.
    Pass(Reason),
    /// It is from this source, which is not allowed; the host's own network stack gets it untouched.
    Unlisted(VipKey),
    /// It is dropped.
    Drop(Reason),
    /// The outer header is taken off; the host's own network stack gets the rest.
    Unwrap(Unwrap),
}

/// How to take an outer header off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwrap {
    /// Offset of the outer IP header, in bytes.
    pub l3: usize,
    /// Its length, in bytes.
    pub outer_len: usize,
    /// Whether the inner packet is IPv6.
    pub v6: bool,
    /// Whether the inner packet must be marked as having met congestion (RFC 6040, 4.2).
    pub congestion: bool,
}

/// Why a packet ended as it did: the counters in `DECAP_VERDICTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Not encapsulated, or not for one of the host's addresses.
    NotATunnel,
    /// The inner packet is for an address that is not allowed.
    NotAVip,
    /// A header is cut off, contradicts itself, or is of a kind that the balancer never sends.
    Malformed,
    /// The outer header marks congestion, the inner packet can't (RFC 6040, 4.2).
    Congestion,
    /// The frame could not be changed.
    NoHeadroom,
    /// Unwrapped.
    Unwrapped,
    /// From a source that is not allowed.
    NotASource,
}

impl Reason {
    /// All of them, in the order of their counters.
    pub const ALL: &'static [Self] = &[
        Self::NotATunnel,
        Self::NotAVip,
        Self::Malformed,
        Self::Congestion,
        Self::NoHeadroom,
        Self::Unwrapped,
        Self::NotASource,
    ];

    /// Index of the counter.
    #[must_use]
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The word used in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotATunnel => "not_a_tunnel",
            Self::NotAVip => "not_a_vip",
            Self::Malformed => "malformed",
            Self::Congestion => "congestion",
            Self::NoHeadroom => "no_headroom",
            Self::Unwrapped => "unwrapped",
            Self::NotASource => "not_a_source",
        }
    }
}

/// Counters per CPU in `DECAP_VERDICTS`.
pub const REASONS: u32 = 16;

const ECN_MASK: u8 = 3;
const ECN_CONGESTION: u8 = 3;

/// Decides what happens to a frame on the backend. It changes no byte of it.
#[inline(always)]
pub fn decide<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T) -> Verdict {
    match find(pkt, tables) {
        Ok(unwrap) => Verdict::Unwrap(unwrap),
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn find<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T) -> Result<Unwrap, Verdict> {
    const NOT_A_TUNNEL: Verdict = Verdict::Pass(Reason::NotATunnel);
    const MALFORMED: Verdict = Verdict::Pass(Reason::Malformed);
    let link = ethernet::parse(pkt).map_err(|_| NOT_A_TUNNEL)?;
    let l3 = link.l3;
    let (next, outer_class, outer_len, payload, own, source) = match link.ethertype {
        ethernet::IPV4 => {
            let ip = pkt.load::<Ipv4>(l3).ok_or(NOT_A_TUNNEL)?;
            // The balancer sends neither options nor fragments.
            let fragment = ip.fragment.get() & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK);
            if ip.version_ihl != 0x45 || ip.proto != number::IPV4 || fragment != 0 {
                return Err(NOT_A_TUNNEL);
            }
            let payload = (ip.total_len.get() as usize).checked_sub(ipv4::LEN).ok_or(MALFORMED)?;
            let (own, source) = (mapped(ip.destination), mapped(ip.source));
            (number::IPV4, ip.tos, ipv4::LEN, payload, own, source)
        }
        ethernet::IPV6 => {
            let ip = pkt.load::<Ipv6>(l3).ok_or(NOT_A_TUNNEL)?;
            let v6 = ip.version_class_label[0] >> 4 == 6;
            if !v6 || !matches!(ip.next, number::IPV4 | number::IPV6) {
                return Err(NOT_A_TUNNEL);
            }
            let payload = ip.payload_len.get() as usize;
            (ip.next, ip.class(), ipv6::LEN, payload, ip.destination, ip.source)
        }
        _ => return Err(NOT_A_TUNNEL),
    };
    if !tables.is_address(&VipKey { address: own }) {
        return Err(NOT_A_TUNNEL);
    }
    let source = VipKey { address: source };
    if !tables.is_source(&source) {
        return Err(Verdict::Unlisted(source));
    }
    let inner = l3 + outer_len;
    let v6 = next == number::IPV6;
    let (class, len, vip) = if v6 {
        let ip = pkt.load::<Ipv6>(inner).ok_or(MALFORMED)?;
        if ip.version_class_label[0] >> 4 != 6 {
            return Err(MALFORMED);
        }
        (ip.class(), ip.payload_len.get() as usize + ipv6::LEN, ip.destination)
    } else {
        let ip = pkt.load::<Ipv4>(inner).ok_or(MALFORMED)?;
        ip.header_len().ok_or(MALFORMED)?;
        (ip.tos, ip.total_len.get() as usize, mapped(ip.destination))
    };
    if len > payload || !pkt.holds(inner + len) {
        return Err(MALFORMED);
    }
    if !tables.is_vip(&VipKey { address: vip }) {
        return Err(Verdict::Pass(Reason::NotAVip));
    }
    let congestion = outer_class & ECN_MASK == ECN_CONGESTION && class & ECN_MASK != ECN_CONGESTION;
    if congestion && class & ECN_MASK == 0 {
        return Err(Verdict::Drop(Reason::Congestion));
    }
    Ok(Unwrap { l3, outer_len, v6, congestion })
}

/// An IPv4 header that is marked as having met congestion.
#[must_use]
#[inline(always)]
pub fn mark_v4(mut ip: Ipv4) -> Ipv4 {
    let old = ip.tos;
    ip.tos |= ECN_CONGESTION;
    // RFC 1624, equation 3, for the word of version and type of service.
    let sum = u32::from(!ip.check.get()) + u32::from(!u16::from(old)) + u32::from(ip.tos);
    ip.check = U16::new(!fold(sum));
    ip
}

/// An IPv6 header that is marked as having met congestion.
#[must_use]
#[inline(always)]
pub fn mark_v6(mut ip: Ipv6) -> Ipv6 {
    ip.version_class_label[1] |= ECN_CONGESTION << 4;
    ip
}

//! Reading a frame: the [`Packet`] trait and the headers, one file each.
//!
//! Every header is `Unaligned`, so that it can be read at any offset; what the wire has in network
//! order is a `network_endian` integer, which can't be confused with a number.

pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod quic;
pub mod tcp;
pub mod udp;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// The largest offset at which anything is read. The kernel's verifier wants offsets below 2^16;
/// no chain of headers that is followed gets this far.
pub const MAX_OFFSET: usize = 0x1fff;

/// A frame that can be read.
pub trait Packet {
    /// The `T` at byte `off`, if the frame's first buffer holds it.
    fn load<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, off: usize) -> Option<&T>;

    /// Whether the frame has at least `len` bytes, in whatever number of buffers.
    fn holds(&self, len: usize) -> bool;

    /// Whether the frame is raw IP: it begins with its IP header, as on an interface without a link layer (WireGuard, tun).
    #[inline(always)]
    fn is_raw_ip(&self) -> bool {
        false
    }

    /// Bytes of payload of each packet that the frame leaves in ([`crate::gso`]); 0 if it is one packet.
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }
}

impl Packet for [u8] {
    fn load<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, off: usize) -> Option<&T> {
        T::ref_from_prefix(self.get(off..)?).ok().map(|(value, _)| value)
    }

    fn holds(&self, len: usize) -> bool {
        len <= self.len()
    }
}

/// Protocol numbers that the walk through a packet knows (IANA, "Protocol Numbers").
pub mod number {
    /// IPv6 hop-by-hop options (RFC 8200, 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// IPv4 in IP (RFC 2003).
    pub const IPV4: u8 = 4;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: u8 = 41;
    /// IPv6 routing header (RFC 8200, 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200, 4.5).
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options (RFC 8200, 4.6).
    pub const DESTINATION: u8 = 60;
}

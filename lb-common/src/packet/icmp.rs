//! ICMP (RFC 792) and ICMPv6 (RFC 4443): the common start, and which messages are errors.
//!
//! ```text
//!  |     Type      |     Code      |          Checksum             |
//!  |                 depends on the type (4 bytes)                 |
//!  |        errors: the packet that caused it, or its start        |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

/// Bytes before the quoted packet.
pub const LEN: usize = 8;

/// ICMP: destination unreachable; code 4 is fragmentation needed.
pub const UNREACHABLE: u8 = 3;
/// ICMP: code of [`UNREACHABLE`].
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// ICMP: time exceeded; code 0 is in transit.
pub const TIME_EXCEEDED: u8 = 11;
/// ICMP: parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// ICMPv6: packet too big.
pub const V6_TOO_BIG: u8 = 2;
/// ICMPv6: time exceeded; code 0 is in transit.
pub const V6_TIME_EXCEEDED: u8 = 3;
/// ICMPv6: the last type of an error that is defined.
pub const V6_PARAMETER_PROBLEM: u8 = 4;

/// The start of every message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub check: U16,
    /// Unused, pointer or MTU, depending on the type.
    pub rest: [u8; 4],
}

impl Icmp {
    /// Whether an ICMP message quotes a packet that its receiver sent.
    #[must_use]
    #[inline(always)]
    pub const fn is_error(&self) -> bool {
        matches!(self.kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }

    /// The same for ICMPv6.
    #[must_use]
    #[inline(always)]
    pub const fn is_error_v6(&self) -> bool {
        matches!(self.kind, 1..=V6_PARAMETER_PROBLEM)
    }
}

/// The start of the transport header in a quoted packet, which is all that is sure to be there.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QuotedPorts {
    /// Source port: for a backend's packet, the service's.
    pub source: U16,
    /// Destination port: the client's.
    pub destination: [u8; 2],
    /// The rest of the eight bytes that RFC 792 promises.
    pub rest: [u8; 4],
}

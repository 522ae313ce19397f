//! IPv4 (RFC 791, 3.1).
//!
//! ```text
//!  |Version|  IHL  |Type of Service|          Total Length         |
//!  |         Identification        |Flags|      Fragment Offset    |
//!  |  Time to Live |    Protocol   |         Header Checksum       |
//!  |                       Source Address                          |
//!  |                    Destination Address                        |
//!  |                    Options                    |    Padding    |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

/// Bytes of the header without options.
pub const LEN: usize = 20;
/// Flag: don't fragment.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// Flag: more fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset, in units of eight bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// The header without options.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv4 {
    /// Version in the high half, header length in words of four bytes in the low one.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Bytes of header and payload.
    pub total_len: U16,
    /// Distinguishes the fragments of one packet from others.
    pub id: [u8; 2],
    /// Flags and fragment offset.
    pub fragment: U16,
    /// Time to live.
    pub ttl: u8,
    /// What the payload is.
    pub proto: u8,
    /// Checksum of the header.
    pub check: U16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

impl Ipv4 {
    /// Bytes of the header with its options, if version and length make sense.
    #[must_use]
    #[inline(always)]
    pub const fn header_len(&self) -> Option<usize> {
        // 0x45 to 0x4f: version 4, five to fifteen words.
        if self.version_ihl < 0x45 || self.version_ihl > 0x4f {
            return None;
        }
        Some((self.version_ihl & 0xf) as usize * 4)
    }
}

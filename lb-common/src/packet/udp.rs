//! UDP (RFC 768).
//!
//! ```text
//!  |          Source Port          |       Destination Port        |
//!  |            Length             |           Checksum            |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

/// Bytes of the header.
pub const LEN: usize = 8;

/// The header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub source: [u8; 2],
    /// Destination port.
    pub destination: U16,
    /// Bytes of header and payload.
    pub len: U16,
    /// Checksum.
    pub check: U16,
}

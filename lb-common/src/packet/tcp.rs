//! TCP (RFC 9293, 3.1), as far as a balancer reads it.
//!
//! ```text
//!  |          Source Port          |       Destination Port        |
//!  |                        Sequence Number                        |
//!  |                    Acknowledgment Number                      |
//!  | Offset| Rsrvd |    Flags      |            Window             |
//!  |           Checksum            |         Urgent Pointer        |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

/// Flag: no more data from the sender.
pub const FIN: u8 = 1;
/// Flag: opens a connection.
pub const SYN: u8 = 2;
/// Flag: ends the connection at once.
pub const RST: u8 = 4;
/// Flag: the acknowledgment number counts.
pub const ACK: u8 = 16;

/// The header without options.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Tcp {
    /// Source port.
    pub source: [u8; 2],
    /// Destination port.
    pub destination: U16,
    /// Sequence number.
    pub sequence: [u8; 4],
    /// Acknowledgment number.
    pub acknowledgment: [u8; 4],
    /// Header length in words of four bytes, in the high half.
    pub data_offset: u8,
    /// Flags.
    pub flags: u8,
    /// Window.
    pub window: U16,
    /// Checksum.
    pub check: U16,
    /// Urgent pointer.
    pub urgent: U16,
}

impl Tcp {
    /// A client's wish for a new connection: SYN, and nothing that contradicts it.
    #[must_use]
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// Nothing but an acknowledgment, in a segment of `len` bytes with its header.
    #[must_use]
    #[inline(always)]
    pub const fn is_bare_ack(&self, len: usize) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == ACK && (self.data_offset >> 4) as usize * 4 == len
    }

    /// The sender has no more to send.
    #[must_use]
    #[inline(always)]
    pub const fn closes(&self) -> bool {
        self.flags & (FIN | RST) != 0
    }
}

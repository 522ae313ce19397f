//! IPv6 (RFC 8200, 3) and the extension headers that stand before the transport.
//!
//! ```text
//!  |Version| Traffic Class |           Flow Label                  |
//!  |         Payload Length        |  Next Header  |   Hop Limit   |
//!  |                   Source Address (16 bytes)                   |
//!  |                Destination Address (16 bytes)                 |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

use super::{MAX_OFFSET, Packet, number};
use crate::verdict::Pass;

/// Bytes of the header.
pub const LEN: usize = 40;
/// How many extension headers are followed.
pub const MAX_EXTENSIONS: usize = 6;

/// The header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_class_label: [u8; 4],
    /// Bytes behind this header.
    pub payload_len: U16,
    /// What stands behind this header.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

impl Ipv6 {
    /// The traffic class: DSCP and ECN.
    #[must_use]
    #[inline(always)]
    pub const fn class(&self) -> u8 {
        self.version_class_label[0] << 4 | self.version_class_label[1] >> 4
    }
}

/// How an extension header starts (RFC 8200, 4.3): its length is in units of eight bytes, without
/// the first eight.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Extension {
    next: u8,
    len: u8,
}

/// The fragment header (RFC 8200, 4.5).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FragmentHeader {
    next: u8,
    reserved: u8,
    offset_more: U16,
    id: [u8; 4],
}

/// Whether a packet is a fragment, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragmentation {
    /// A whole packet.
    Whole,
    /// The first fragment, which has the transport header, of the packet with this identification.
    First([u8; 4]),
    /// Another fragment of it.
    Later([u8; 4]),
}

/// What stands behind the extension headers.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    /// Its protocol; meaningless in a later fragment.
    pub proto: u8,
    /// Its offset in the frame.
    pub offset: usize,
    /// Whether the packet is a fragment.
    pub fragmentation: Fragmentation,
}

impl Transport {
    const FIRST: u64 = 1 << 8;
    const LATER: u64 = 1 << 9;
    const TRUNCATED: u64 = 1 << 10;
    const TOO_MANY: u64 = 1 << 11;

    /// What [`transport_word`] returned.
    ///
    /// # Errors
    /// Those of [`transport`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Result<Self, Pass> {
        if word & Self::TRUNCATED != 0 {
            return Err(Pass::Truncated);
        }
        if word & Self::TOO_MANY != 0 {
            return Err(Pass::ExtensionHeaders);
        }
        let id = ((word >> 32) as u32).to_ne_bytes();
        Ok(Self {
            proto: word as u8,
            offset: (word >> 16) as usize & MAX_OFFSET,
            fragmentation: match word & (Self::FIRST | Self::LATER) {
                0 => Fragmentation::Whole,
                Self::FIRST => Fragmentation::First(id),
                _ => Fragmentation::Later(id),
            },
        })
    }
}

/// [`transport`] out of line, for the path of every packet: few have extension headers.
#[inline(never)]
pub fn transport_word<P: Packet + ?Sized>(pkt: &P, next: u8, offset: usize) -> u64 {
    match transport(pkt, next, offset & MAX_OFFSET) {
        Ok(found) => {
            let (kind, id) = match found.fragmentation {
                Fragmentation::Whole => (0, [0; 4]),
                Fragmentation::First(id) => (Transport::FIRST, id),
                Fragmentation::Later(id) => (Transport::LATER, id),
            };
            let id = u64::from(u32::from_ne_bytes(id)) << 32;
            u64::from(found.proto) | kind | (found.offset as u64) << 16 | id
        }
        Err(Pass::Truncated) => Transport::TRUNCATED,
        Err(_) => Transport::TOO_MANY,
    }
}

/// Follows the extension headers from the header of protocol `next` at `offset`.
///
/// # Errors
/// [`Pass::Truncated`] where the frame ends first; [`Pass::ExtensionHeaders`] where there are more
/// than [`MAX_EXTENSIONS`] or they lead too far.
#[inline(always)]
pub fn transport<P: Packet + ?Sized>(
    pkt: &P,
    mut next: u8,
    mut offset: usize,
) -> Result<Transport, Pass> {
    let mut fragmentation = Fragmentation::Whole;
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            number::HOP_BY_HOP | number::ROUTING | number::DESTINATION => {
                let header = pkt.load::<Extension>(offset).ok_or(Pass::Truncated)?;
                next = header.next;
                offset += 8 + 8 * header.len as usize;
            }
            number::FRAGMENT => {
                let header = pkt.load::<FragmentHeader>(offset).ok_or(Pass::Truncated)?;
                next = header.next;
                offset += 8;
                let offset_more = header.offset_more.get();
                if offset_more & !7 != 0 {
                    fragmentation = Fragmentation::Later(header.id);
                    return Ok(Transport { proto: next, offset, fragmentation });
                }
                // Neither offset nor more to come: an atomic fragment is whole (RFC 6946).
                if offset_more & 1 != 0 {
                    fragmentation = Fragmentation::First(header.id);
                }
            }
            _ => return Ok(Transport { proto: next, offset, fragmentation }),
        }
        if offset > MAX_OFFSET {
            return Err(Pass::ExtensionHeaders);
        }
    }
    Err(Pass::ExtensionHeaders)
}

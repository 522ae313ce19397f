//! QUIC's headers as far as they are invariant (RFC 8999) or fixed by versions 1 and 2 (RFC 9000,
//! 17.2; RFC 9369, 3.2).
//!
//! ```text
//!  long:  |1|1|T T|X X X X| Version (4) | DCID Len (1) | DCID (0..20) | SCID Len ...
//!  short: |0|1|X X X X X X| DCID (length known to its server only) | ...
//! ```
//!
//! When a client's address changes, the balancer follows the connection by the id that the server chose for the
//! handshake, which the client's later Initial packets and its Handshake packets show. Servers issue further ids
//! (NEW_CONNECTION_ID) under encryption, and a client that migrates on purpose must use one of them (RFC 9000,
//! 9.5). The balancer can't know these: such a connection goes where its new address leads. So it follows a client
//! whose address changes without its doing, as behind a NAT that has lost its state. Ids that name their backend
//! (draft-ietf-quic-load-balancers) are not read.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned, network_endian::U32};

use super::Packet;

/// Bytes of a connection id that distinguish it from others. Servers choose ids of eight bytes or more at
/// random; a shorter one is not followed.
pub const ID_LEN: usize = 8;

const VERSION_1: u32 = 1;
const VERSION_2: u32 = 0x6b33_43cf;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Long {
    first: u8,
    version: U32,
    id_len: u8,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Short {
    first: u8,
    id: [u8; ID_LEN],
}

/// The part of a datagram that identifies its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram {
    /// Opens a connection: Initial, 0-RTT, or a version that the balancer does not know, which the
    /// server will negotiate. With the connection id that it is sent to; zero if that is shorter.
    Opens([u8; ID_LEN]),
    /// Belongs to a connection by its id, and shows the id that the server chose: Handshake.
    Shows([u8; ID_LEN]),
    /// Belongs to a connection: a short header that starts with this id.
    Continues([u8; ID_LEN]),
    /// Too short to classify.
    Other,
}

/// Reads the start of the UDP payload at `offset`.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(pkt: &P, offset: usize) -> Datagram {
    let Some(first) = pkt.load::<u8>(offset) else { return Datagram::Other };
    if first & 0x80 == 0 {
        return match pkt.load::<Short>(offset) {
            Some(short) => Datagram::Continues(short.id),
            None => Datagram::Other,
        };
    }
    let Some(long) = pkt.load::<Long>(offset) else { return Datagram::Other };
    let id = if (long.id_len as usize) < ID_LEN {
        None
    } else {
        pkt.load::<[u8; ID_LEN]>(offset + size_of::<Long>())
    };
    let handshake = match long.version.get() {
        VERSION_1 => 2,
        VERSION_2 => 3,
        _ => return Datagram::Opens([0; ID_LEN]),
    };
    if long.first >> 4 & 3 != handshake {
        // Initial, 0-RTT; a Retry never comes from a client.
        return Datagram::Opens(id.copied().unwrap_or_default());
    }
    id.map_or(Datagram::Other, |id| Datagram::Shows(*id))
}

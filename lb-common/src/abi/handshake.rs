//! Marks of the QUIC handshakes that have begun.
//!
//! Handshakes are not exported to peers. At a failover a handshake of several flights stays on its backend if its
//! flow is pinned or its slot is steady. It must begin anew if its slot has got another current owner since its
//! first packet, which takes a change of the ring and a failover within one handshake.

use super::{stamp, stamp_age};
use crate::hash::GOLDEN;

/// Entries of `HANDSHAKES`; a power of two.
pub const HANDSHAKES: u32 = 1 << PLACE_BITS;

const PLACE_BITS: u32 = 18;
/// Bits of each of the two tags.
const TAG_BITS: u32 = 24;

/// A QUIC handshake that has begun: the element of `HANDSHAKES`, one word, so that no store is half
/// seen by another CPU.
///
/// The low 16 bits are the [`stamp`] of its first Initial or 0-RTT packet, or 0 for none; 24 bits distinguish
/// the flow from others at the same place ([`place`](Self::place)), and 24 the connection id that the client
/// made up for its server from the one that the server has chosen. A handshake is forgotten when
/// another one gets its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshake(pub u64);

impl Handshake {
    /// Where the mark of a flow with this hash is.
    #[must_use]
    #[inline(always)]
    pub const fn place(hash: u64) -> u32 {
        hash as u32 & (HANDSHAKES - 1)
    }

    /// That of a flow with this hash, to connection `id`, which begins now.
    #[must_use]
    #[inline(always)]
    pub const fn begun(hash: u64, id: [u8; 8], now_secs: u32) -> Self {
        Self(tag_of_id(id) << (16 + TAG_BITS) | tag_of_flow(hash) << 16 | stamp(now_secs) as u64)
    }

    /// Seconds since it began, if it is that of the flow with this hash.
    #[must_use]
    #[inline(always)]
    pub const fn age(self, hash: u64, now_secs: u32) -> Option<u16> {
        let then = self.0 as u16;
        if then == 0 || self.0 >> 16 & TAG != tag_of_flow(hash) {
            return None;
        }
        Some(stamp_age(stamp(now_secs), then))
    }

    /// The same, begun so many seconds later.
    #[cfg(not(target_arch = "bpf"))]
    #[must_use]
    pub const fn later(self, seconds: u32) -> Self {
        match self.0 as u16 {
            0 => self,
            then => {
                let then = stamp((then as u32).wrapping_add(seconds));
                Self(self.0 & !0xffff | then as u64)
            }
        }
    }

    /// Whether its first packet went to connection `id`.
    #[must_use]
    #[inline(always)]
    pub const fn is_to(self, id: [u8; 8]) -> bool {
        self.0 >> (16 + TAG_BITS) == tag_of_id(id)
    }
}

const TAG: u64 = (1 << TAG_BITS) - 1;

#[inline(always)]
const fn tag_of_flow(hash: u64) -> u64 {
    hash >> PLACE_BITS & TAG
}

/// Clients choose the id at random (RFC 9000, 7.2), and servers often not: all of it counts.
#[inline(always)]
const fn tag_of_id(id: [u8; 8]) -> u64 {
    u64::from_le_bytes(id).wrapping_mul(GOLDEN) >> (64 - TAG_BITS)
}

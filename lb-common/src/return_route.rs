//! Routes of answers that were found lately. The kernel's lookup of one takes longer than all else that is done to an
//! answer.
//!
//! Each CPU has [`SLOTS`] of them, in the map `RETURN_ROUTES`, one for each hash of a client's address: what comes later
//! takes the place. None is used for longer than [`LIFETIME`], so a change of the node's routes or neighbours needs no
//! notice, also while no daemon runs.

use crate::{packet::ethernet, shared::SharedU64};

/// Routes of one CPU; a power of two.
pub const SLOTS: u32 = 512;

/// For how long a route is used after the kernel has looked it up, in nanoseconds: so late may a change of it be heeded.
pub const LIFETIME: u64 = 100_000_000;

/// What a route depends on, but for the length of the packet, which must be no longer than the one that it was found for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The destination, as the words of an IPv6 address or an IPv4-mapped one.
    pub destination: [u64; 2],
    /// The source that the packet leaves with, likewise.
    pub source: [u64; 2],
    /// The interface that the packet came by.
    pub ingress: u32,
    /// Bytes of the packet; 0 if none is compared with the route's MTU.
    pub len: u16,
    /// Its traffic class.
    pub class: u8,
}

/// The bits of the traffic class that rules of routing can match: without those of ECN (RFC 2474).
const DSCP: u8 = 0xfc;

impl Wanted {
    /// Which of the CPU's slots it has.
    #[must_use]
    #[inline(always)]
    pub const fn slot(&self) -> u32 {
        let [a, b] = self.destination;
        let both = a ^ b;
        let folded = (both ^ both >> 32) as u32;
        folded.wrapping_mul(0x9e37_79b1) >> (32 - SLOTS.ilog2())
    }

    #[inline(always)]
    const fn low(&self, egress: u32) -> u64 {
        egress as u64 | (self.len as u64) << 32 | ((self.class & DSCP) as u64) << 48
    }
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The index of the interface.
    pub egress: u32,
    /// The destination MAC address and the first two bytes of the source, as they are in a frame, in little-endian order.
    pub begin: u64,
    /// The rest of it, likewise.
    pub end: u32,
}

const _: () = assert!(ethernet::LEN == 8 + 4 + 2);

/// A slot: the element of `RETURN_ROUTES`. Only its CPU uses it.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct ReturnRoute {
    destination: [SharedU64; 2],
    source: [SharedU64; 2],
    /// In nanoseconds of CLOCK_MONOTONIC.
    until: SharedU64,
    /// The egress interface; above it the length, then the class.
    low: SharedU64,
    begin: SharedU64,
    /// The rest of the source MAC address; above it the ingress interface.
    end: SharedU64,
}

const _: () = assert!(size_of::<ReturnRoute>() == 64);

impl ReturnRoute {
    /// The route for a packet, if this is it.
    #[inline(always)]
    pub fn find(&self, wanted: &Wanted, now: u64) -> Option<Link> {
        let [destination, source] = [&self.destination, &self.source];
        let is_it = destination[0].load() == wanted.destination[0]
            && destination[1].load() == wanted.destination[1]
            && source[0].load() == wanted.source[0]
            && source[1].load() == wanted.source[1];
        if !is_it || self.until.load() <= now {
            return None;
        }
        let (low, end) = (self.low.load(), self.end.load());
        let is_it = (end >> 32) as u32 == wanted.ingress
            && (low >> 48) as u8 == wanted.class & DSCP
            && (low >> 32) as u16 >= wanted.len;
        is_it.then(|| Link { egress: low as u32, begin: self.begin.load(), end: end as u32 })
    }

    /// Keeps what the kernel has found for a packet.
    #[inline(always)]
    pub fn keep(&self, wanted: &Wanted, link: &Link, now: u64) {
        self.destination[0].store(wanted.destination[0]);
        self.destination[1].store(wanted.destination[1]);
        self.source[0].store(wanted.source[0]);
        self.source[1].store(wanted.source[1]);
        self.low.store(wanted.low(link.egress));
        self.begin.store(link.begin);
        self.end.store(u64::from(link.end) | u64::from(wanted.ingress) << 32);
        self.until.store(now + LIFETIME);
    }
}

#[cfg(not(target_arch = "bpf"))]
impl ReturnRoute {
    /// The interface and the MAC address that frames went to by it, if it was kept after `since`, in nanoseconds of CLOCK_MONOTONIC.
    #[must_use]
    pub fn used_since(&self, since: u64) -> Option<(u32, [u8; 6])> {
        let [a, b, c, d, e, f, ..] = self.begin.load().to_le_bytes();
        let is_used = self.until.load() > since.saturating_add(LIFETIME);
        is_used.then(|| (self.low.load() as u32, [a, b, c, d, e, f]))
    }
}

/// A copy of a slot, as the kernel returns it.
#[cfg(not(target_arch = "bpf"))]
impl From<[u64; 8]> for ReturnRoute {
    fn from(words: [u64; 8]) -> Self {
        let [a, b, c, d, until, low, begin, end] = words.map(SharedU64::new);
        Self { destination: [a, b], source: [c, d], until, low, begin, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted =
        Wanted { destination: [1, 2], source: [3, 4], ingress: 5, len: 1_400, class: 0xb8 };
    const LINK: Link = Link { egress: 7, begin: 0x0201_0605_0403_0201, end: 0x0605_0403 };

    #[test]
    fn a_route_is_found_for_its_packets_until_its_time_is_over() {
        let route = ReturnRoute::default();
        assert_eq!(route.find(&WANTED, 0), None, "nothing is kept yet");
        route.keep(&WANTED, &LINK, 1_000);
        assert_eq!(route.find(&WANTED, 1_000), Some(LINK));
        assert_eq!(route.find(&WANTED, 999 + LIFETIME), Some(LINK));
        assert_eq!(route.find(&WANTED, 1_000 + LIFETIME), None);
        for same in [
            Wanted { len: 40, ..WANTED },
            Wanted { len: 0, ..WANTED },
            Wanted { class: WANTED.class | 3, ..WANTED },
        ] {
            assert_eq!(route.find(&same, 1_000), Some(LINK), "{same:?}");
        }
    }

    #[test]
    fn a_route_is_not_found_for_what_may_have_another_one() {
        let route = ReturnRoute::default();
        route.keep(&WANTED, &LINK, 1_000);
        for other in [
            Wanted { destination: [1, 3], ..WANTED },
            Wanted { destination: [2, 2], ..WANTED },
            Wanted { source: [3, 5], ..WANTED },
            Wanted { source: [4, 4], ..WANTED },
            Wanted { ingress: 6, ..WANTED },
            Wanted { len: 1_401, ..WANTED },
            Wanted { class: 0, ..WANTED },
        ] {
            assert_eq!(route.find(&other, 1_000), None, "{other:?}");
        }
    }

    #[test]
    fn a_copy_says_where_frames_have_gone_since() {
        assert_eq!(ReturnRoute::default().used_since(0), None, "nothing is kept yet");
        let route = ReturnRoute::default();
        route.keep(&WANTED, &LINK, 5_000);
        let ReturnRoute { destination: [a, b], source: [c, d], until, low, begin, end } = &route;
        let words = [a, b, c, d, until, low, begin, end].map(SharedU64::load);
        let copy = ReturnRoute::from(words);
        assert_eq!(copy.find(&WANTED, 5_000), Some(LINK));
        assert_eq!(copy.used_since(4_999), Some((7, [1, 2, 3, 4, 5, 6])));
        assert_eq!(copy.used_since(5_000), None);
    }

    #[test]
    fn neighbouring_clients_have_slots_of_their_own() {
        let mut taken = [false; SLOTS as usize];
        for n in 0..SLOTS {
            let address = u64::from((0x0a00_0000 + n).to_be()) << 32;
            taken[Wanted { destination: [0, address], ..WANTED }.slot() as usize] = true;
        }
        let taken = taken.iter().filter(|taken| **taken).count();
        assert!(taken > SLOTS as usize / 2, "{taken} of {SLOTS}");
    }
}

//! The index of the services: from VIP, port and protocol to a service without a call into the
//! kernel.
//!
//! `SERVICES_V4` and `SERVICES_V6` are the truth. A lookup in them is a function of the kernel's,
//! and every packet pays it, those of no service too. So the daemon keeps an index beside them, in
//! arrays, whose lookups are inlined: `SERVICE_INDEX`, buckets of four words, each a tag from the
//! key's hash and a service's id; and `SERVICE_ENTRIES`, by id, the service with its key. A bucket
//! that is too small for its services marks that in its last word, and then `SERVICES` is read.
//!
//! A word is written by one store, after the entry that it names; an id is at rest for a while
//! before it names another service. So a packet finds a service or does not, and never a wrong one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, network_endian::U16};

use crate::{
    abi::{Service, ServiceKeyV4, ServiceKeyV6},
    hash::GOLDEN,
    shared::SharedU32,
};

/// Words of a bucket.
pub const WAYS: usize = 4;
/// The last word of a bucket that has more services than words.
pub const OVERFLOW: u32 = u32::MAX;

/// Buckets for this many services: a power of two, so many that few have more than one service.
#[must_use]
pub const fn buckets(services: u32) -> u32 {
    (services * 4).next_power_of_two()
}

/// Element of `SERVICE_INDEX`.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct Bucket {
    /// Tag and id of a service each; 0 for none.
    pub words: [SharedU32; WAYS],
}

/// Element of `SERVICE_ENTRIES`: a service and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Entry {
    /// The service.
    pub service: Service,
    /// Its VIP; IPv4 as an IPv4-mapped IPv6 address.
    pub address: [u8; 16],
    /// Its port.
    pub port: U16,
    /// Its protocol.
    pub proto: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

impl Entry {
    /// Whether this is the service of an IPv4 packet.
    #[must_use]
    #[inline(always)]
    pub fn is_v4(&self, key: &ServiceKeyV4) -> bool {
        // A service of IPv4 has only its last four bytes to itself.
        let [upper, lower] = self.halves();
        let address = u64::from(u32::from_le_bytes(key.address));
        upper == 0
            && lower == (address << 32 | 0xffff_0000)
            && self.tail() == tail(key.port, key.proto)
    }

    /// The address in two words.
    #[inline(always)]
    fn halves(&self) -> [u64; 2] {
        let (upper, lower) = (self.address.first_chunk(), self.address.last_chunk());
        [upper, lower].map(|half| half.map_or(0, |half| u64::from_le_bytes(*half)))
    }

    /// All that follows the address, in one word.
    #[inline(always)]
    fn tail(&self) -> u64 {
        let ([a, b], [c, d, e, f, g]) = (self.port.to_bytes(), self.reserved);
        u64::from_le_bytes([a, b, self.proto, c, d, e, f, g])
    }

    /// Whether this is the service of an IPv6 packet.
    #[must_use]
    #[inline(always)]
    pub fn is_v6(&self, key: &ServiceKeyV6) -> bool {
        self.address == key.address && self.port == key.port && self.proto == key.proto
    }
}

/// [`Entry::tail`] of a service.
#[inline(always)]
fn tail(port: U16, proto: u8) -> u64 {
    u64::from(u16::from_le_bytes(port.to_bytes())) | u64::from(proto) << 16
}

/// Where a key is in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The bucket.
    pub bucket: u32,
    /// The tag, in the upper half of a word: neither 0 nor that of [`OVERFLOW`].
    pub tag: u32,
}

impl Place {
    /// From a product that holds the key; `mask` is the number of buckets less one. A product's low
    /// bits know nothing of its factors' high ones, hence once more.
    #[inline(always)]
    const fn of(product: u64, mask: u32) -> Self {
        let hash = (product ^ product >> 32).wrapping_mul(GOLDEN);
        Self { bucket: (hash >> 32) as u32 & mask, tag: (hash as u32 & 0x7fff_0000) | 1 << 16 }
    }

    /// The place of an IPv4 service among `mask` + 1 buckets. The keys are the operator's choice,
    /// so the hash needs no secret.
    #[must_use]
    #[inline(always)]
    pub fn of_v4(key: &ServiceKeyV4, mask: u32) -> Self {
        let address = u64::from(u32::from_le_bytes(key.address));
        let rest = u64::from(key.port.get()) << 8 | u64::from(key.proto);
        Self::of((address | rest << 32).wrapping_mul(GOLDEN), mask)
    }

    /// The place of an IPv6 service.
    #[must_use]
    #[inline(always)]
    pub fn of_v6(key: &ServiceKeyV6, mask: u32) -> Self {
        let half = |at: usize| {
            u64::from_le_bytes([
                key.address[at],
                key.address[at + 1],
                key.address[at + 2],
                key.address[at + 3],
                key.address[at + 4],
                key.address[at + 5],
                key.address[at + 6],
                key.address[at + 7],
            ])
        };
        let rest = u64::from(key.port.get()) << 8 | u64::from(key.proto);
        let upper = half(0).wrapping_add(rest).wrapping_mul(GOLDEN);
        Self::of((upper ^ upper >> 32).wrapping_add(half(8)).wrapping_mul(GOLDEN), mask)
    }

    /// The word of this service.
    #[must_use]
    #[inline(always)]
    pub const fn word(self, id: u16) -> u32 {
        self.tag | id as u32
    }
}

/// The words of a bucket, which are `stored` now, for services with these `words`; the stores may come in any
/// order.
///
/// A packet reads a bucket while it is written. So a service that stays keeps its word where it is,
/// unless [`OVERFLOW`] takes the place. That one goes with a change that finds a word of every service
/// in the bucket, not with the change that writes the last of them: a packet may have read a place
/// before its word came.
#[must_use]
pub fn rewritten(stored: [u32; WAYS], words: &[u32]) -> [u32; WAYS] {
    let mut bucket = stored.map(|word| if words.contains(&word) { word } else { 0 });
    let mut overflows = stored[WAYS - 1] == OVERFLOW;
    let found = |bucket: &[u32; WAYS], word: &u32| bucket.contains(word);
    if overflows && words.iter().all(|word| found(&bucket, word)) {
        return bucket;
    }
    overflows |= words.len() > WAYS;
    if overflows {
        bucket[WAYS - 1] = OVERFLOW;
    }
    for word in words {
        if !found(&bucket, word)
            && let Some(free) = bucket.iter_mut().find(|place| **place == 0)
        {
            *free = *word;
        }
    }
    bucket
}

const _: () = assert!(size_of::<Bucket>() == 16 && size_of::<Entry>() == 88);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeMap, vec::Vec};

    use super::*;
    use crate::abi::mapped;

    fn services() -> Vec<Place> {
        let mask = buckets(512) - 1;
        let mut places = Vec::new();
        for n in 0..64_u8 {
            for port in [80, 443, 8080, 8443] {
                let port = U16::new(port);
                let key = ServiceKeyV4 { address: [10, 0, 0, n], port, proto: 6, reserved: 0 };
                places.push(Place::of_v4(&key, mask));
                let mut address = mapped([10, 0, 0, n]);
                address[0] = 0x20;
                let key = ServiceKeyV6 { address, port, proto: 17, reserved: 0 };
                places.push(Place::of_v6(&key, mask));
            }
        }
        places
    }

    #[test]
    fn services_that_differ_in_little_fill_few_buckets() {
        let mut used = BTreeMap::<u32, usize>::new();
        for place in services() {
            *used.entry(place.bucket).or_default() += 1;
        }
        // 512 services in 2,048 buckets: two in a thousand buckets would have three or more.
        assert!(used.values().all(|&n| n <= WAYS), "{used:?}");
        assert!(used.len() > 400, "{} buckets are used", used.len());
    }

    #[test]
    fn a_word_is_never_empty_nor_an_overflow() {
        for place in services() {
            for id in [0, 1, u16::MAX] {
                assert!(!matches!(place.word(id), 0 | OVERFLOW), "{place:?}");
            }
        }
    }

    #[test]
    fn a_bucket_says_that_it_is_too_small() {
        assert_eq!(rewritten([0; WAYS], &[]), [0; WAYS]);
        assert_eq!(rewritten([0; WAYS], &[5, 6, 7, 8]), [5, 6, 7, 8]);
        assert_eq!(rewritten([5, 6, 7, 8], &[5, 6, 7, 8, 9]), [5, 6, 7, OVERFLOW]);
        assert_eq!(rewritten([5, 6, 7, OVERFLOW], &[6, 7, 8, 9]), [8, 6, 7, OVERFLOW]);
        assert_eq!(rewritten([8, 6, 7, OVERFLOW], &[6, 7, 8]), [8, 6, 7, 0]);
    }

    /// Whether a packet that reads place n of `states[at(n)]`, and then once more whether there are
    /// more services than words, finds the service of this word.
    fn is_found(states: &[[u32; WAYS]], at: impl Fn(usize) -> usize, word: u32) -> bool {
        (0..WAYS).any(|way| states[at(way)][way] == word) || states[at(WAYS)][WAYS - 1] == OVERFLOW
    }

    #[test]
    fn a_service_that_stays_is_found_after_each_store_and_by_a_reader_during_all_of_them() {
        const SERVICES: u32 = 6;
        let words = |set: u32| -> Vec<u32> {
            (0..SERVICES).filter(|n| set & 1 << n != 0).map(|n| n + 1).collect()
        };
        // All buckets that changes of one service after another lead to.
        let (mut todo, mut seen) = (Vec::from([([0; WAYS], 0_u32)]), BTreeMap::new());
        while let Some((bucket, set)) = todo.pop() {
            if seen.insert((bucket, set), ()).is_some() {
                continue;
            }
            let changes = (0..SERVICES).map(|n| set ^ 1 << n).chain([set]);
            for next in changes {
                let after = rewritten(bucket, &words(next));
                for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
                    let mut states = Vec::from([bucket]);
                    for way in order {
                        let mut state = states[states.len() - 1];
                        state[way] = after[way];
                        states.push(state);
                    }
                    for word in words(set & next) {
                        let case = std::format!("{word} of {bucket:?} to {after:?}, {order:?}");
                        for first in 0..states.len() {
                            for second in first..states.len() {
                                for until in 0..=WAYS {
                                    let at = |way| if way < until { first } else { second };
                                    assert!(is_found(&states, at, word), "{case}");
                                }
                            }
                        }
                    }
                }
                for word in words(next) {
                    assert!(is_found(&[after], |_| 0, word), "{word} in {after:?}");
                }
                todo.push((after, next));
            }
        }
        assert!(seen.len() > 100, "{} buckets", seen.len());
    }
}

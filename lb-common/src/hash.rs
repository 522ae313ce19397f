//! The keyed hash of a flow, and the slot that it gives.
//!
//! The senders of packets choose the tuples, so the hash must not let them choose the slots. Two
//! steps: a multilinear sum with secret 64-bit keys, under which any two tuples fixed in advance
//! collide with a probability below 2^-32 (Lemire and Kaser, "Strongly universal string hashing is
//! fast", Computer Journal 57, 2014), and MurmurHash3's 64-bit finalizer, a bijection, which hides
//! the sum's linearity from someone who sees which backend answered. All products are of
//! independent inputs, so they overlap in the pipeline, where a chain of rounds would not.

use core::hash::Hasher;

use siphasher::sip::SipHasher24;

/// The golden ratio's fraction in 64 bits, odd: a multiplier that spreads what differs in few bits (Knuth,
/// volume 3, 6.4).
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The secret keys of one service's flow hash. The VIP, the port and the protocol are in the keys
/// and not in the message: they are the same for all flows of a service. Of a service with several ports the port is
/// in the message, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKeys(pub [u64; 6]);

impl FlowKeys {
    /// Derives the keys of the service `name` (any bytes that distinguish it from the others) from the
    /// node pair's seed, by SipHash-2-4 (Aumasson and Bernstein, 2012) over name and key number.
    #[must_use]
    pub fn derive(seed: &[u8; 16], name: &[u8]) -> Self {
        let mut keys = [0; 6];
        for (number, key) in keys.iter_mut().enumerate() {
            let mut hasher = SipHasher24::new_with_key(seed);
            hasher.write(name);
            hasher.write_u8(number as u8);
            // Odd, so that every bit of a word counts in the product's high half.
            *key = hasher.finish() | 1;
        }
        Self(keys)
    }
}

/// Hash of an IPv4 flow: the client's address and port as they are on the wire, and `to`, the destination's port of a
/// service that has several ([`Destination`](crate::abi::Destination)), zero of others. Which VIP of a prefix it is makes
/// no difference.
#[must_use]
#[inline(always)]
pub fn flow_hash_v4(keys: &[u64; 6], source: [u8; 4], port: [u8; 2], to: [u8; 2]) -> u64 {
    let address = u64::from(u32::from_le_bytes(source));
    finish(
        keys[0]
            .wrapping_add(keys[1].wrapping_mul(address))
            .wrapping_add(keys[2].wrapping_mul(ports(port, to))),
    )
}

/// Both ports in one word of 32 bits, which is the most that a product takes without loss of strength.
#[inline(always)]
fn ports(source: [u8; 2], to: [u8; 2]) -> u64 {
    let ([a, b], [c, d]) = (source, to);
    u64::from(u32::from_le_bytes([a, b, c, d]))
}

/// Hash of an IPv6 flow, as [`flow_hash_v4`].
#[must_use]
#[inline(always)]
pub fn flow_hash_v6(keys: &[u64; 6], source: &[u8; 16], port: [u8; 2], to: [u8; 2]) -> u64 {
    let word = |i: usize| {
        u64::from(u32::from_le_bytes([
            source[4 * i],
            source[4 * i + 1],
            source[4 * i + 2],
            source[4 * i + 3],
        ]))
    };
    finish(
        keys[0]
            .wrapping_add(keys[1].wrapping_mul(word(0)))
            .wrapping_add(keys[2].wrapping_mul(word(1)))
            .wrapping_add(keys[3].wrapping_mul(word(2)))
            .wrapping_add(keys[4].wrapping_mul(word(3)))
            .wrapping_add(keys[5].wrapping_mul(ports(port, to))),
    )
}

/// MurmurHash3's fmix64.
#[inline(always)]
fn finish(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// The slot of a flow in a ring of `slots` slots: the high half of the hash, scaled. It is as even
/// as a remainder (the bias is below `slots` / 2^32) and costs no division.
#[must_use]
#[inline(always)]
pub const fn slot_of(hash: u64, slots: u32) -> u32 {
    (((hash >> 32) * slots as u64) >> 32) as u32
}

/// The bits of the hash that vary the outer source of a tunnel: those that the slot does not use.
#[must_use]
#[inline(always)]
pub const fn entropy_of(hash: u64) -> u32 {
    hash as u32
}

//! The log of pins that the daemon exports to peers, and until when pins may be made.

use zerocopy::{FromBytes, IntoBytes, KnownLayout, byteorder::network_endian::U16};

use super::FlowKey;
use crate::{hash::GOLDEN, shared::SharedU64};

/// Notes of each CPU in `PIN_LOG`; a power of two.
pub const PIN_NOTES: u32 = 4_096;

/// A note that a flow has a pin that is new or different: the element of `PIN_LOG`, which has
/// [`PIN_NOTES`] elements for each CPU in turn.
///
/// A CPU writes its notes one after the other, round and round, and then counts them in its
/// [`PinLogHead`]. The daemon reads while they are written, and nothing orders the stores of one
/// CPU for another. So a note proves itself: its check covers its words and its number, and one
/// that is half written, or of another round, has none that fits.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct PinNote {
    words: [SharedU64; 3],
    check: SharedU64,
}

impl PinNote {
    /// Writes the `number`th note of a CPU.
    #[inline(always)]
    pub fn write(&self, key: &FlowKey, number: u64) {
        let words = Self::words_of(key, number);
        self.words[0].store(words[0]);
        self.words[1].store(words[1]);
        self.words[2].store(words[2]);
        self.check.store(Self::check_of(words));
    }

    /// The flow, if this is the `number`th note of its CPU, whole.
    pub fn read(&self, number: u64) -> Option<FlowKey> {
        let check = self.check.load();
        let words = [self.words[0].load(), self.words[1].load(), self.words[2].load()];
        if check != Self::check_of(words) || words[2] >> 32 != number & 0xffff_ffff {
            return None;
        }
        Some(FlowKey::from_words(words))
    }

    #[inline(always)]
    const fn words_of(key: &FlowKey, number: u64) -> [u64; 3] {
        let [upper, lower, rest] = key.to_words();
        [upper, lower, rest | number << 32]
    }

    /// Not zero for words that are.
    #[inline(always)]
    const fn check_of(words: [u64; 3]) -> u64 {
        let sum = (words[0] ^ GOLDEN).wrapping_mul(GOLDEN);
        let sum = (sum.rotate_left(29) ^ words[1]).wrapping_mul(GOLDEN);
        (sum.rotate_left(29) ^ words[2]).wrapping_mul(GOLDEN)
    }
}

impl FlowKey {
    /// As three words, of which the last one has 32 bits.
    #[must_use]
    #[inline(always)]
    pub const fn to_words(&self) -> [u64; 3] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.source;
        let port = u16::from_ne_bytes(self.port.to_bytes());
        [
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
            port as u64 | (self.service as u64) << 16,
        ]
    }

    /// The inverse of [`Self::to_words`], whatever the last word has above its 32 bits.
    #[must_use]
    #[inline(always)]
    pub fn from_words(words: [u64; 3]) -> Self {
        let mut source = [0; 16];
        source[..8].copy_from_slice(&words[0].to_ne_bytes());
        source[8..].copy_from_slice(&words[1].to_ne_bytes());
        let port = U16::from_bytes((words[2] as u16).to_ne_bytes());
        Self { source, port, service: (words[2] >> 16) as u16 }
    }
}

/// How many notes a CPU has written: the element of `PIN_LOG_HEADS`, which has one for each CPU. One
/// cache line, since each CPU writes its own.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct PinLogHead {
    /// Notes so far.
    pub notes: SharedU64,
    /// Zero.
    pub reserved: [u64; 7],
}

/// The element of `PIN_LEASE`, which has one: until when pins may be made, in nanoseconds of
/// CLOCK_MONOTONIC; 0 for always.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct PinLease {
    /// The time.
    pub until: SharedU64,
}

//! The log of pins that the daemon exports to peers, and until when pins may be made.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

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
        let words = key.to_words();
        self.words[0].store(words[0]);
        self.words[1].store(words[1]);
        self.words[2].store(words[2]);
        self.check.store(Self::check_of(words, number));
    }

    /// The flow, if this is the `number`th note of its CPU, whole.
    pub fn read(&self, number: u64) -> Option<FlowKey> {
        let check = self.check.load();
        let words = [self.words[0].load(), self.words[1].load(), self.words[2].load()];
        if check != Self::check_of(words, number) {
            return None;
        }
        Some(FlowKey::from_words(words))
    }

    /// Not zero for words that are.
    #[inline(always)]
    const fn check_of(words: [u64; 3], number: u64) -> u64 {
        let sum = number.wrapping_mul(GOLDEN).rotate_left(29);
        let sum = (sum ^ words[0] ^ GOLDEN).wrapping_mul(GOLDEN);
        let sum = (sum.rotate_left(29) ^ words[1]).wrapping_mul(GOLDEN);
        (sum.rotate_left(29) ^ words[2]).wrapping_mul(GOLDEN)
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

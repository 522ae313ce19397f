//! The slots of rings, and the stamps in them.
//!
//! A slot has eight bytes: both owners in one word, which only the daemon writes, and two stamps, which the program
//! writes. A packet reads one slot, and its owners by one load. So the daemon changes a published ring in place. If
//! it replaced the ring by a copy, stamps of packets that arrive meanwhile would be lost. A new ring is filled
//! first, and one store into `RINGS` publishes it.
//!
//! The daemon takes a slot from its base owner when no packet without a pin has come for long. One that comes
//! between that look and the change has gone to the base owner, and the next packet of its flow must go there, too.
//! So this change is a compare-and-swap of the whole slot ([`Slot::replace_owners`]), and the program reads the
//! owners again after it has written the stamp ([`Slot::touched`]). Nothing orders that load after the store, since
//! the BPF target has no barrier for less than 64 bits: what is left is the time that a store waits in its CPU.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

#[cfg(not(target_arch = "bpf"))]
use crate::shared::SharedU64;
use crate::shared::{SharedU16, SharedU32};

/// Gives up seconds to a stamp of 16 bits in which 0 means never.
///
/// A stamp wraps after 18 hours. The daemon clears stamps long before; one that were missed would
/// cost a lookup, never a wrong answer.
#[must_use]
#[inline(always)]
pub const fn stamp(now_secs: u32) -> u16 {
    let low = now_secs as u16;
    if low == 0 { 1 } else { low }
}

/// Whole seconds from `then` to `now`, both from [`stamp`]; wraps as they do.
#[must_use]
#[inline(always)]
pub const fn stamp_age(now: u16, then: u16) -> u16 {
    now.wrapping_sub(then)
}

/// One slot of a ring: the element of the maps in `RINGS`.
///
/// The daemon writes `owners` whole, by one store of 32 bits; the program only reads it. The
/// program writes the stamps; the daemon clears them by compare-and-swap. So neither ever undoes
/// what the other wrote, and a packet, which reads one slot, sees it before a change or after it.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct Slot {
    owners: SharedU32,
    unpinned: SharedU16,
    pinned: SharedU16,
}

/// The owners of a slot: backend ids, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owners {
    /// Gets new flows.
    pub current: u16,
    /// Has the flows that are older than the first change of this slot; 0 in the steady state. The
    /// current owner itself while the slot is about to settle, and peers may not know that yet: flows
    /// are pinned still.
    pub base: u16,
}

impl Owners {
    /// The word that a [`Slot`] holds.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        self.current as u32 | (self.base as u32) << 16
    }

    /// The inverse of [`Self::to_word`].
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self { current: word as u16, base: (word >> 16) as u16 }
    }
}

/// A slot's owners and stamp of unpinned packets, as the daemon has read them before it changes the owners.
#[cfg(not(target_arch = "bpf"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotSnapshot {
    /// Both owners.
    pub owners: Owners,
    /// [`stamp`] of the last packet that went to the base owner without a pin; 0 for never.
    pub unpinned: u16,
}

#[cfg(not(target_arch = "bpf"))]
impl SlotSnapshot {
    /// From the bytes of a slot.
    const fn from_bytes([a, b, c, d, e, f, ..]: [u8; 8]) -> Self {
        let owners = Owners::from_word(u32::from_ne_bytes([a, b, c, d]));
        Self { owners, unpinned: u16::from_ne_bytes([e, f]) }
    }
}

impl Slot {
    /// A slot with these owners and no stamps.
    #[must_use]
    pub const fn new(owners: Owners) -> Self {
        Self {
            owners: SharedU32::new(owners.to_word()),
            unpinned: SharedU16::new(0),
            pinned: SharedU16::new(0),
        }
    }

    /// Both owners, from one load.
    #[inline(always)]
    pub fn owners(&self) -> Owners {
        Owners::from_word(self.owners.load())
    }

    /// Replaces both owners by one store. Only the daemon does so.
    #[inline(always)]
    pub fn set_owners(&self, owners: Owners) {
        self.owners.store(owners.to_word());
    }

    /// Both owners and the stamp of unpinned packets, from one load.
    #[cfg(not(target_arch = "bpf"))]
    pub fn snapshot(&self) -> SlotSnapshot {
        SlotSnapshot::from_bytes(self.word().load().to_ne_bytes())
    }

    /// Replaces both owners unless they, or the stamp of unpinned packets, have changed since `seen` was read;
    /// whether it did.
    #[cfg(not(target_arch = "bpf"))]
    pub fn replace_owners(&self, seen: SlotSnapshot, owners: Owners) -> bool {
        loop {
            let word = self.word().load();
            let mut bytes = word.to_ne_bytes();
            if SlotSnapshot::from_bytes(bytes) != seen {
                return false;
            }
            bytes[..4].copy_from_slice(&owners.to_word().to_ne_bytes());
            // It fails as well when a pin was used just now, whose stamp is to stay.
            if self.word().replace_if(word, u64::from_ne_bytes(bytes)) {
                return true;
            }
        }
    }

    /// All of it, for a compare-and-swap.
    #[cfg(not(target_arch = "bpf"))]
    #[expect(
        unsafe_code,
        reason = "the parts of a slot are written one by one, and the whole at once"
    )]
    const fn word(&self) -> &SharedU64 {
        const { assert!(size_of::<Self>() == 8 && align_of::<Self>() == 8) };
        // SAFETY: a slot has the size and the alignment of a word, any bytes are a valid word, and each part may
        // be written while the slot is borrowed.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }

    /// [`stamp`] of the last packet that went to the base owner without a pin; 0 for never.
    #[inline(always)]
    pub fn unpinned(&self) -> u16 {
        self.unpinned.load()
    }

    /// [`stamp`] of the last use of a pin whose flow hashes to this slot; 0 if there is no pin.
    #[inline(always)]
    pub fn pinned(&self) -> u16 {
        self.pinned.load()
    }

    /// Notes an unpinned packet; `stamp` as by [`stamp`]. Stores only a change, to keep the cache
    /// line shared between CPUs.
    #[inline(always)]
    pub fn touch_unpinned(&self, stamp: u16) {
        if self.unpinned.load() != stamp {
            self.unpinned.store(stamp);
        }
    }

    /// [`Self::touch_unpinned`] for a packet that is about to go to the base owner. Returns the owners as they
    /// are after that: the daemon may have changed them since they were read, and has not seen the stamp then.
    #[inline(always)]
    pub fn touched(&self, stamp: u16) -> Owners {
        self.touch_unpinned(stamp);
        self.owners()
    }

    /// Notes the use of a pin; `stamp` as by [`stamp`].
    #[inline(always)]
    pub fn touch_pinned(&self, stamp: u16) {
        if self.pinned.load() != stamp {
            self.pinned.store(stamp);
        }
    }

    /// Sets both stamps, for tests and for copying a ring.
    pub fn set_stamps(&self, unpinned: u16, pinned: u16) {
        self.unpinned.store(unpinned);
        self.pinned.store(pinned);
    }

    /// Clears the unpinned stamp if it is still `seen`; false if the program has written since.
    #[cfg(not(target_arch = "bpf"))]
    pub fn clear_unpinned(&self, seen: u16) -> bool {
        self.unpinned.replace_if(seen, 0)
    }

    /// Clears the pinned stamp if it is still `seen`; false if the program has written since.
    #[cfg(not(target_arch = "bpf"))]
    pub fn clear_pinned(&self, seen: u16) -> bool {
        self.pinned.replace_if(seen, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_replaced_only_as_it_was_seen() {
        let (before, after) =
            (Owners { current: 0x102, base: 0x304 }, Owners { current: 7, base: 0 });
        let slot = Slot::new(before);
        slot.set_stamps(0x506, 0x708);
        let seen = slot.snapshot();
        assert_eq!(seen, SlotSnapshot { owners: before, unpinned: 0x506 });
        slot.touch_pinned(0x709);
        assert!(slot.replace_owners(seen, after), "the use of a pin is none of its base owner");
        assert_eq!((slot.owners(), slot.unpinned(), slot.pinned()), (after, 0x506, 0x709));
        assert!(!slot.replace_owners(seen, before), "its owners are others");
        let seen = slot.snapshot();
        assert_eq!(slot.touched(0x507), after);
        assert!(!slot.replace_owners(seen, before), "a packet has come");
        assert_eq!((slot.owners(), slot.unpinned(), slot.pinned()), (after, 0x507, 0x709));
    }
}

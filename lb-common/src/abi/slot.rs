//! The slots of rings, and the stamps in them.
//!
//! A slot has eight bytes: both owners in one word, which only the daemon writes, and two stamps, which the program
//! writes. A packet reads one slot, and its owners by one load. So the daemon changes a published ring in place. If
//! it replaced the ring by a copy, stamps of packets that arrive meanwhile would be lost. A new ring is filled
//! first, and one store into `RINGS` publishes it.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

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

//! Since when the slots of a shared service wait that are in flux: in six bytes for each slot of its ring, while
//! one of them waits.

/// Beside the second since when a slot is closing: it was in use since.
const USED: u32 = 1 << 31;

/// How long a slot waits already; seconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// No wait is known.
    Unknown,
    /// A peer has reported last that it is in use there, or it was held up here.
    Used(u32),
    /// It is its own base owner and quiet: since when, the base owner before, and whether it was in use since.
    Closing { since: u32, before: u16, used: bool },
}

/// The waits of a ring's slots, by index.
///
/// A map with an entry for each slot in flux took 42 bytes for one, and as many slots as a ring has may be in flux.
/// No second is 2^31: those are 68 years of uptime.
#[derive(Debug, Default)]
pub(super) struct Flux {
    seconds: Vec<u32>,
    /// Base owners before; 0 if the slot is not closing.
    before: Vec<u16>,
}

impl Flux {
    pub(super) fn get(&self, index: u32) -> Wait {
        let at = index as usize;
        match (self.seconds.get(at).copied(), self.before.get(at).copied()) {
            (None | Some(0), _) | (_, None) => Wait::Unknown,
            (Some(second), Some(0)) => Wait::Used(second),
            (Some(second), Some(before)) => {
                Wait::Closing { since: second & !USED, before, used: second & USED != 0 }
            }
        }
    }

    /// Makes a slot wait, of a ring with so many; one that is not among them does not.
    pub(super) fn set(&mut self, slots: u32, index: u32, wait: Wait) {
        if index >= slots {
            return;
        }
        self.fit(slots as usize);
        let (second, before) = match wait {
            Wait::Unknown => (0, 0),
            Wait::Used(second) => (second, 0),
            Wait::Closing { since, before, used } => (since | if used { USED } else { 0 }, before),
        };
        self.seconds[index as usize] = second;
        self.before[index as usize] = before;
    }

    /// A slot is in use: one that is closing, since it is.
    pub(super) fn touch(&mut self, slots: u32, index: u32, second: u32) {
        let wait = match self.get(index) {
            Wait::Unknown | Wait::Used(_) => Wait::Used(second),
            Wait::Closing { since, before, .. } => Wait::Closing { since, before, used: true },
        };
        self.set(slots, index, wait);
    }

    /// A slot is its own base owner and quiet: since when, and the base owner before.
    pub(super) fn close(&mut self, slots: u32, index: u32, (since, before): (u32, u16)) {
        self.set(slots, index, Wait::Closing { since, before, used: false });
    }

    /// A slot is in flux no more.
    pub(super) fn forget(&mut self, index: u32) {
        let at = index as usize;
        if let (Some(second), Some(before)) = (self.seconds.get_mut(at), self.before.get_mut(at)) {
            (*second, *before) = (0, 0);
        }
    }

    /// Room for a ring with so many slots, and no more.
    fn fit(&mut self, slots: usize) {
        if self.seconds.len() == slots {
            return;
        }
        let more = slots.saturating_sub(self.seconds.len());
        self.seconds.reserve_exact(more);
        self.before.reserve_exact(more);
        self.seconds.resize(slots, 0);
        self.before.resize(slots, 0);
    }

    /// Bytes that it takes beside itself.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.seconds.capacity() * size_of::<u32>() + self.before.capacity() * size_of::<u16>()
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Slot;

    use super::*;

    const SLOTS: u32 = 65_537;

    #[test]
    fn waits_of_all_slots_of_a_ring_take_less_than_the_ring() {
        let mut flux = Flux::default();
        assert_eq!(flux.bytes(), 0);
        // A ring that grows.
        flux.touch(1_009, 5, 1);
        for index in 0..SLOTS {
            flux.set(SLOTS, index, Wait::Closing { since: 7, before: 3, used: false });
            flux.touch(SLOTS, index, 8);
        }
        assert_eq!(flux.bytes(), 6 * SLOTS as usize);
        assert!(flux.bytes() < SLOTS as usize * size_of::<Slot>());
    }

    #[test]
    fn a_peer_that_names_slots_that_are_not_there_takes_no_room() {
        let mut flux = Flux::default();
        flux.touch(1_009, 1_009, 1);
        flux.touch(1_009, u32::MAX, 1);
        assert_eq!((flux.bytes(), flux.get(u32::MAX)), (0, Wait::Unknown));
    }

    #[test]
    fn use_of_a_slot_that_is_closing_is_kept_beside_since_when_it_is() {
        let mut flux = Flux::default();
        flux.touch(10, 3, 40);
        assert_eq!((flux.get(3), flux.get(4)), (Wait::Used(40), Wait::Unknown));
        let closing = |used| Wait::Closing { since: 50, before: 2, used };
        flux.set(10, 3, closing(false));
        assert_eq!(flux.get(3), closing(false));
        flux.touch(10, 3, 60);
        assert_eq!(flux.get(3), closing(true));
        flux.forget(3);
        assert_eq!(flux.get(3), Wait::Unknown);
    }
}

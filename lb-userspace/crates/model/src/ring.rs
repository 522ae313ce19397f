//! The effect of a change of the ring on a slot, and when a slot in flux has settled.
//!
//! A slot in the steady state has a current owner only. When that changes, flows older than the
//! change stay with the base owner, and flows born while the two differ are pinned by the program,
//! so any sequence of changes leaves every flow where it is. The base is cleared when no unpinned
//! packet has come for the service's idle timeout, or when its owner is gone.

use lb_common::abi::{Owners, Slot, SlotSnapshot, stamp_age};

/// The owners of a slot after its current owner has become `new_current` (0: none).
///
/// `keeps_base` returns whether a backend may have older flows: it lives, and no command has moved its
/// flows by force.
#[must_use]
pub fn step(owners: Owners, new_current: u16, keeps_base: impl Fn(u16) -> bool) -> Owners {
    let Owners { current, base } = owners;
    let older = match base {
        0 if current != new_current => current,
        base => base,
    };
    // One that is its own base owner is about to settle, and goes on with that.
    let settles = base == current && current == new_current;
    let lives = older != 0 && (older != new_current || settles) && keeps_base(older);
    Owners { current: new_current, base: if lives { older } else { 0 } }
}

/// [`step`] for a slot that several nodes serve at once. The others may see backends otherwise, or later:
/// so new flows are pinned from any change on until the slot has settled on all nodes.
#[must_use]
pub fn step_shared(owners: Owners, new_current: u16, keeps_base: impl Fn(u16) -> bool) -> Owners {
    let after = step(owners, new_current, keeps_base);
    let had_flows = owners != Owners { current: 0, base: 0 };
    let is_changed = owners != Owners { current: new_current, base: 0 };
    match after.base {
        0 if had_flows && is_changed => Owners { base: new_current, ..after },
        _ => after,
    }
}

/// Whether the flows of a slot in flux that are older than its change have all ended: no unpinned
/// packet came for longer than the idle timeout. `now` is a stamp.
#[must_use]
#[inline]
pub const fn is_quiet(slot: SlotSnapshot, now: u16, idle_timeout: u32) -> bool {
    age(now, slot.unpinned) > idle_timeout
}

/// Seconds by which a stamp may be ahead of `now`: packets go on while the daemon looks at slots,
/// and a look can take longer than what is left of a second.
const AHEAD: u16 = 600;

/// Seconds since a stamp; none for one that was made after `now`.
#[must_use]
#[inline]
pub const fn age(now: u16, then: u16) -> u32 {
    match stamp_age(now, then) {
        age if age > u16::MAX - AHEAD => 0,
        age => age as u32,
    }
}

/// Seconds that a mark of live pins outlasts the last of them: the two sides' clocks are read at
/// different moments of a second.
const PIN_SLACK: u32 = 2;

/// Clears the mark of live pins when the last use of one is longer ago than a pin lives; true if
/// it is clear. A pin that is used at this moment keeps it.
#[must_use]
pub fn settle_pinned(slot: &Slot, now: u16, idle_timeout: u32) -> bool {
    let seen = slot.pinned();
    seen == 0 || (age(now, seen) > idle_timeout + PIN_SLACK && slot.clear_pinned(seen))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const fn owners(current: u16, base: u16) -> Owners {
        Owners { current, base }
    }

    #[test]
    fn a_slot_changes_by_the_rule() {
        let lives = |id| id != 9;
        for (before, new, after) in [
            // The first owner of an empty slot has no flows before it.
            (owners(0, 0), 1, owners(1, 0)),
            // No change.
            (owners(1, 0), 1, owners(1, 0)),
            (owners(2, 1), 2, owners(2, 1)),
            // Into flux, on through it, and back out of it.
            (owners(1, 0), 2, owners(2, 1)),
            (owners(2, 1), 3, owners(3, 1)),
            (owners(3, 1), 1, owners(1, 0)),
            // No backend is left for new flows, the old ones stay.
            (owners(1, 0), 0, owners(0, 1)),
            (owners(0, 1), 2, owners(2, 1)),
            (owners(0, 1), 1, owners(1, 0)),
            // About to settle: another change does not end that early.
            (owners(2, 2), 2, owners(2, 2)),
            (owners(2, 2), 3, owners(3, 2)),
            // The old owner is gone, before the change or by it. Flows of the owner in between are
            // pinned already, so it does not become the base in its turn.
            (owners(9, 0), 2, owners(2, 0)),
            (owners(2, 9), 2, owners(2, 0)),
            (owners(2, 9), 3, owners(3, 0)),
        ] {
            assert_eq!(step(before, new, lives), after, "{before:?} to {new}");
        }
    }

    #[test]
    fn a_slot_that_is_shared_stays_in_flux_by_any_change() {
        let lives = |id| id != 9;
        for (before, new, after) in [
            (owners(0, 0), 1, owners(1, 0)),
            (owners(1, 0), 1, owners(1, 0)),
            (owners(1, 0), 2, owners(2, 1)),
            (owners(2, 1), 1, owners(1, 1)),
            (owners(0, 1), 1, owners(1, 1)),
            (owners(1, 1), 2, owners(2, 1)),
            (owners(9, 0), 2, owners(2, 2)),
            (owners(2, 9), 2, owners(2, 2)),
        ] {
            assert_eq!(step_shared(before, new, lives), after, "{before:?} to {new}");
        }
    }

    #[test]
    fn a_slot_is_quiet_when_the_idle_timeout_has_passed() {
        let slot = Slot::new(owners(2, 1));
        slot.touch_unpinned(100);
        assert!(!is_quiet(slot.snapshot(), 100 + 900, 900));
        assert!(is_quiet(slot.snapshot(), 100 + 901, 900));
        slot.touch_unpinned(u16::MAX);
        assert!(!is_quiet(slot.snapshot(), 5, 900), "stamps wrap");
    }

    #[test]
    fn a_packet_after_the_look_began_is_no_silence() {
        let slot = Slot::new(owners(2, 1));
        slot.touch_unpinned(101);
        slot.touch_pinned(101);
        assert!(!is_quiet(slot.snapshot(), 100, 900));
        assert!(!settle_pinned(&slot, 100, 900));
        slot.touch_unpinned(1);
        assert!(!is_quiet(slot.snapshot(), u16::MAX, 900));
    }

    #[test]
    fn a_mark_of_pins_outlasts_them() {
        let slot = Slot::new(owners(1, 0));
        assert!(settle_pinned(&slot, 500, 60));
        slot.touch_pinned(100);
        assert!(!settle_pinned(&slot, 162, 60));
        assert!(settle_pinned(&slot, 163, 60));
        assert_eq!(slot.pinned(), 0);
    }

    /// The events of the one slot of the model.
    #[derive(Clone, Debug)]
    enum Event {
        /// The ring gives the slot to a backend, or to none.
        Own(u16),
        /// A backend is gone, by death or by force, and the ring gives the slot to another.
        Die(u16, u16),
        /// A new client comes.
        Open,
        /// Every client sends a packet.
        Packets,
        /// A client leaves.
        Close(usize),
        /// Time passes.
        Wait(u16),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => (0_u16..6).prop_map(Event::Own),
            1 => (1_u16..6, 0_u16..6).prop_map(|(dead, next)| Event::Die(dead, next)),
            4 => Just(Event::Open),
            3 => Just(Event::Packets),
            1 => (0_usize..40).prop_map(Event::Close),
            2 => (1_u16..8).prop_map(Event::Wait),
        ]
    }

    const IDLE: u32 = 10;

    /// Every flow by name, and what the balancer keeps.
    struct Model {
        slot: Slot,
        pins: BTreeMap<u32, u16>,
        flows: BTreeMap<u32, (u16, u16)>,
        dead: BTreeSet<u16>,
        now: u16,
        born: u32,
    }

    impl Model {
        fn new() -> Self {
            let slot = Slot::new(owners(1, 0));
            let (pins, flows, dead) = Default::default();
            Self { slot, pins, flows, dead, now: 1, born: 0 }
        }

        /// The program's rule (with a pin's lookup always made).
        fn packet(&self, flow: u32) -> u16 {
            let Owners { current, base } = self.slot.owners();
            if let Some(&backend) = self.pins.get(&flow) {
                self.slot.touch_pinned(self.now);
                return backend;
            }
            if base == 0 {
                return current;
            }
            self.slot.touch_unpinned(self.now);
            base
        }

        fn change(&mut self, new: u16) {
            let before = self.slot.owners();
            let after = step(before, new, |id| !self.dead.contains(&id));
            if before.base == 0 && after.base != 0 {
                self.slot.touch_unpinned(self.now);
            }
            self.slot.set_owners(after);
        }

        fn open(&mut self) {
            let Owners { current, base } = self.slot.owners();
            if current == 0 {
                return;
            }
            self.born += 1;
            if base != 0 {
                self.pins.insert(self.born, current);
            }
            self.flows.insert(self.born, (current, self.now));
        }

        fn sweep(&self) {
            let now = self.slot.owners();
            if now.base != 0 && is_quiet(self.slot.snapshot(), self.now, IDLE) {
                self.slot.set_owners(owners(now.current, 0));
            }
        }

        fn check(&mut self) -> Result<(), TestCaseError> {
            let flows: Vec<_> = self.flows.iter().map(|(&flow, &(to, _))| (flow, to)).collect();
            for (flow, backend) in flows {
                prop_assert_eq!(self.packet(flow), backend, "flow {} moved", flow);
                self.flows.insert(flow, (backend, self.now));
            }
            Ok(())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Flows that send a packet within the idle timeout never change their backend, unless it
        /// is gone.
        #[test]
        fn no_sequence_of_changes_moves_a_flow(events in prop::collection::vec(event(), 1..80)) {
            let mut model = Model::new();
            for event in events {
                match event {
                    Event::Own(new) if !model.dead.contains(&new) => model.change(new),
                    Event::Die(dead, next) if dead != next && !model.dead.contains(&next) => {
                        model.dead.insert(dead);
                        let current = model.slot.owners().current;
                        model.change(if current == dead { next } else { current });
                        model.pins.retain(|_, &mut backend| backend != dead);
                        model.flows.retain(|_, &mut (backend, _)| backend != dead);
                    }
                    Event::Own(_) | Event::Die(..) => {}
                    Event::Open => model.open(),
                    Event::Packets => model.check()?,
                    Event::Close(nth) => {
                        if let Some(&flow) = model.flows.keys().nth(nth) {
                            model.flows.remove(&flow);
                        }
                    }
                    Event::Wait(seconds) => {
                        model.now += seconds;
                        let now = model.now;
                        model.flows.retain(|_, &mut (_, seen)| u32::from(now - seen) <= IDLE);
                        model.sweep();
                    }
                }
            }
            model.check()?;
        }

        /// The base is cleared only after the slot was quiet.
        #[test]
        fn a_base_stays_while_unpinned_packets_come(gaps in prop::collection::vec(1_u16..=10, 1..50)) {
            let mut model = Model::new();
            model.open();
            model.change(2);
            for gap in gaps {
                model.now += gap;
                model.sweep();
                prop_assert_eq!(model.slot.owners(), owners(2, 1));
                model.check()?;
            }
            model.now += IDLE as u16 + 1;
            model.sweep();
            prop_assert_eq!(model.slot.owners(), owners(2, 0));
        }
    }
}

//! Sync groups: routers that are Active on one node together, or not at all.
//!
//! - A fault of one is a fault of all.
//! - All have the priority of the lowest, take over from a lower router only if all would, and the
//!   first one decides between equal priorities: members that differ there would each be right, and
//!   the group would never come to rest.
//! - One that becomes Active takes the others along, and so does one that ceases; but while one gives
//!   way by an order, each of them waits for its own peer.
//! - One that is new follows the others, whatever they are, unless it receives the Active router's advertisements.
//! - One that receives nothing waits while another receives the Active router: the other node is alive, and
//!   has all of the group. It also waits while another has not listened for long enough, but not if
//!   it has what a predecessor left, and others may miss it.

use std::{collections::BTreeSet, time::Instant};

use lb_model::router::{RouterKey, State, SyncGroup};

use super::{Machine, Name, Out};
use crate::fsm::{Action, Assessment, Event, Settings};

impl Machine {
    /// The routers of its sync group, itself too, in the order of the group.
    fn group_of(&self, index: usize) -> Vec<usize> {
        match self.group(index) {
            Some(group) => group.routers.iter().filter_map(|name| self.index(name)).collect(),
            None => vec![index],
        }
    }

    pub(super) fn group(&self, index: usize) -> Option<&SyncGroup> {
        let name = &self.routers[index].router.name;
        self.groups.iter().find(|group| group.routers.contains(name))
    }

    pub(super) fn with_mates(&self, key: RouterKey) -> Vec<usize> {
        let all: BTreeSet<_> = self.named(key).flat_map(|index| self.group_of(index)).collect();
        all.into_iter().collect()
    }

    /// How a router is configured, with what its group makes of that.
    pub(super) fn settings(&self, index: usize) -> Settings {
        let group = self.group_of(index);
        let all = || group.iter().map(|index| &self.routers[*index].router);
        Settings {
            preempt: all().all(|router| router.preempt),
            preempt_delay: all().map(|router| router.preempt_delay).max().unwrap_or_default(),
            defers: group.first() != Some(&index),
            ..Settings::from(&self.routers[index].router)
        }
    }

    /// A router's assessment, by its own tracks and those of its group.
    pub(super) fn assessment(&self, index: usize) -> Assessment {
        let group = self.group_of(index);
        let of = |other: usize| {
            let entry = &self.routers[other];
            let why = |reason: String| match other == index {
                true => reason,
                false => format!("{}, of its sync group: {reason}", entry.name),
            };
            let outcome = entry.tracks.outcome(entry.router.priority.get());
            (outcome.priority, outcome.fault.map(why), self.lacks(other).map(why), outcome.best)
        };
        // The own reasons come first.
        let own = of(index);
        let mates: Vec<_> =
            group.iter().filter(|mate| **mate != index).map(|mate| of(*mate)).collect();
        let external = self.external.as_ref();
        let any = |keys: &BTreeSet<RouterKey>| {
            group.iter().any(|index| keys.contains(&self.routers[*index].router.key))
        };
        let gave_way = group
            .iter()
            .map(|mate| &self.routers[*mate])
            .find(|mate| mate.machine.abstains() && mate.name != self.routers[index].name);
        let priority = mates.iter().map(|mate| mate.0).fold(own.0, u8::min);
        Assessment {
            priority,
            lowered: priority < mates.iter().map(|mate| mate.3).fold(own.3, u8::min),
            fault: own.1.or_else(|| mates.iter().find_map(|mate| mate.1.clone())),
            holds_back: own.2.or_else(|| mates.iter().find_map(|mate| mate.2.clone())),
            abstains: gave_way.map(|mate| {
                format!("{}, of its sync group: it has given way by an order", mate.name)
            }),
            known_after: external.and_then(|external| {
                external.transitions.get(&self.routers[index].router.name).copied()
            }),
            draining: external.is_some_and(|external| external.draining),
            drains_there: external.is_some_and(|external| any(&external.draining_peers)),
            lowered_there: external.is_some_and(|external| any(&external.lowered_peers)),
            handed_over: external.is_some_and(|external| any(&external.handed_over)),
        }
    }

    /// What a router lacks of another node's flows.
    fn lacks(&self, index: usize) -> Option<String> {
        let lacks = self.external.as_ref()?.unsynced.contains(&self.routers[index].router.key);
        lacks.then(|| "the flows of another node are not known here yet".into())
    }

    /// Whether a router, and all of its group, can begin.
    pub(super) fn is_ready(&self, index: usize) -> bool {
        self.routers[index].waiting.is_some()
            && self.group_of(index).iter().all(|mate| self.routers[*mate].tracks.are_known())
    }

    /// Brings the routers of each group to the same state after the transitions in `out[since..]`.
    pub(super) fn align_after(&mut self, since: usize, now: Instant, out: &mut Out) {
        let with = |is: fn(State, State) -> bool| -> BTreeSet<Name> {
            let all = out[since..].iter().filter(|(_, action)| {
                matches!(action, Action::Transition { from, to, .. } if is(*from, *to))
            });
            all.map(|(name, _)| name.clone()).collect()
        };
        let risen = with(|_, to| to == State::Active);
        let new = with(|from, to| (from, to) == (State::Initialize, State::Backup));
        self.align_groups(&risen, &new, now, out);
    }

    /// Brings the routers of each group to the same state after the groups were configured anew.
    pub(super) fn align_all_groups(&mut self, now: Instant, out: &mut Out) {
        let all = self.routers.iter().map(|entry| entry.name.clone()).collect();
        self.align_groups(&BTreeSet::new(), &all, now, out);
    }

    fn align_groups(
        &mut self,
        risen: &BTreeSet<Name>,
        new: &BTreeSet<Name>,
        now: Instant,
        out: &mut Out,
    ) {
        for group in self.groups.clone() {
            let members = group.routers.iter().filter_map(|name| self.index(name));
            self.align_group(&members.collect::<Vec<_>>(), risen, new, now, out);
        }
    }

    fn align_group(
        &mut self,
        members: &[usize],
        risen: &BTreeSet<Name>,
        new: &BTreeSet<Name>,
        now: Instant,
        out: &mut Out,
    ) {
        let machine = |index: &usize| &self.routers[*index].machine;
        if members.iter().any(|member| machine(member).is_yielding()) {
            return;
        }
        let in_state =
            |state| members.iter().copied().filter(move |member| machine(member).state() == state);
        let active: Vec<_> = in_state(State::Active).collect();
        let backup: Vec<_> = in_state(State::Backup).collect();
        let Some(ceased) = backup.first() else { return };
        let name = |index: usize| self.routers[index].router.name.clone();
        let up = active.iter().find(|member| risen.contains(&self.routers[**member].name));
        let follows = |member: &usize| {
            new.contains(&self.routers[*member].name) && !machine(member).sees_active(now)
        };
        let up = up.or_else(|| active.first().filter(|_| backup.iter().all(follows)));
        let (event, followers) = match up {
            Some(up) => (Event::MateActive(name(*up)), backup),
            None => (Event::MateBackup(name(*ceased)), active),
        };
        for follower in followers {
            self.routers[follower]
                .perform(out, |machine, out| machine.handle(event.clone(), now, out));
        }
    }

    /// Whether a router whose timer has run out waits, because another one of its group receives
    /// advertisements.
    pub(super) fn waits_for_mates(&mut self, index: usize, now: Instant, out: &mut Out) -> bool {
        if self.routers[index].machine.state() != State::Backup {
            return false;
        }
        let inherited = self.routers[index].machine.has_inherited_addresses();
        let awaited = |mate: &usize| {
            let entry = &self.routers[*mate];
            let until = entry.machine.deadline().filter(|until| *until > now)?;
            if inherited && !entry.machine.sees_active(now) {
                return None;
            }
            (entry.machine.state() == State::Backup).then(|| (until, entry.name.clone()))
        };
        let Some((until, mate)) = self.group_of(index).iter().filter_map(awaited).max() else {
            return false;
        };
        let entry = &mut self.routers[index];
        entry.deaf = Some(mate);
        entry.perform(out, |machine, out| machine.postpone(until, out));
        true
    }
}

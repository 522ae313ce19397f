//! The routers' status, for operators.

use std::time::{Instant, SystemTime};

use lb_api::routers::{Counters, RouterStatus};
use lb_model::router::State;

use super::{Entry, Machine};

impl Machine {
    /// The status of each router. Of the counters, these are counted here: received, became_active,
    /// transitions, priority_zero_received and two_active; the rest is the driver's and 0.
    #[must_use]
    pub fn status(&self, now: Instant, wall: SystemTime) -> Vec<RouterStatus> {
        (0..self.routers.len()).map(|index| self.status_of(index, now, wall)).collect()
    }

    fn status_of(&self, index: usize, now: Instant, wall: SystemTime) -> RouterStatus {
        let Entry { router, machine, tracks, deaf, .. } = &self.routers[index];
        let tally = machine.tally();
        let mut problems = tracks.outcome(router.priority.get()).problems;
        if let Some(mate) = deaf.as_ref().filter(|_| machine.state() == State::Backup) {
            problems.push(format!(
                "it receives no advertisements, but {mate}, of its sync group, does"
            ));
        }
        RouterStatus {
            name: router.name.clone(),
            key: router.key,
            interface: router.interface.clone(),
            source: self.observed.as_ref().and_then(|seen| seen.sources.get(&router.name).copied()),
            group: self.group(index).map(|group| group.name.clone()),
            state: machine.state(),
            since: wall
                .checked_sub(now.saturating_duration_since(machine.since()))
                .unwrap_or(SystemTime::UNIX_EPOCH),
            cause: self.cause(index),
            base_priority: router.priority.get(),
            priority: machine.priority(),
            interval_millis: machine.active_interval().as_millis() as u64,
            active: machine.active(),
            addresses: router
                .addresses
                .iter()
                .map(|address| format!("{}/{}", address.address, address.prefix))
                .collect(),
            problems,
            holds_back: machine.holds_back(now).filter(|_| machine.active().is_some()),
            wants: machine.wants(now),
            lowered: machine.is_lowered(),
            counters: Counters {
                received: tally.received,
                became_active: tally.became_active,
                transitions: tally.transitions,
                priority_zero_received: tally.priority_zero_received,
                two_active: tally.two_active,
                ..Counters::default()
            },
        }
    }

    fn cause(&self, index: usize) -> String {
        let entry = &self.routers[index];
        if entry.waiting.is_some() {
            return match self.external {
                None => "it waits for what the daemon knows".into(),
                Some(_) => "it waits until what it tracks is known".into(),
            };
        }
        entry.machine.cause().to_owned()
    }
}

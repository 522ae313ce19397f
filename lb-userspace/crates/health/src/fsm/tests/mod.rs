//! All pairs of state and event in a table, whole stories, and what holds for any history.

mod properties;
mod stories;
mod table;

use std::{
    num::NonZeroU8,
    time::{Duration, Instant},
};

use lb_model::check::Kind;

use super::*;

/// 2s, 500ms in transition, 3s when down; 1s for an answer; rise 2, fall 3; no jitter.
pub(super) fn check(kind: Kind) -> Check {
    Check {
        kind,
        interval: ms(2_000),
        fast_interval: ms(500),
        down_interval: ms(3_000),
        timeout: ms(1_000),
        rise: NonZeroU8::new(2).expect("not zero"),
        fall: NonZeroU8::new(3).expect("not zero"),
        jitter: 0,
        ..Check::default()
    }
}

pub(super) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) const HALF_LIFE: Duration = Duration::from_secs(60);

/// A machine with its clock and everything that it ever wanted.
pub(super) struct Bench {
    pub machine: Machine,
    pub now: Instant,
    pub actions: Vec<Action>,
}

impl Bench {
    pub fn new(check: Check, initial: Condition) -> Self {
        let now = Instant::now();
        let machine = Machine::new(check, HALF_LIFE, OnDown::Keep, initial, false, now, 1);
        Self { machine, now, actions: Vec::new() }
    }

    /// A backend of which an earlier run has found out that it is so.
    pub(crate) fn adopted(check: Check, initial: Condition) -> Self {
        let now = Instant::now();
        let machine = Machine::new(check, HALF_LIFE, OnDown::Keep, initial, true, now, 1);
        Self { machine, now, actions: Vec::new() }
    }

    /// A backend whose flows move whenever it is down.
    pub(crate) fn moving(check: Check) -> Self {
        let now = Instant::now();
        let machine = Machine::new(check, HALF_LIFE, OnDown::Move, Condition::Up, false, now, 1);
        Self { machine, now, actions: Vec::new() }
    }

    /// The event now; what it led to.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.machine.handle(event, self.now, &mut out);
        self.actions.extend(out.iter().cloned());
        out
    }

    /// Waits for the next probe, which must come; how long that took.
    pub(crate) fn until_probe(&mut self) -> Duration {
        let begun = self.now;
        while self.machine.pending.is_none() {
            let deadline = self.machine.deadline().expect("a question comes");
            self.now = self.now.max(deadline);
            self.handle(Event::Due);
        }
        self.now - begun
    }

    /// The next probe is answered so, `took` after it was sent, while other backends answer.
    pub(crate) fn answer_after(&mut self, took: Duration, outcome: Outcome) -> Vec<Action> {
        self.until_probe();
        self.now += took;
        self.handle(Event::Answered { outcome, took, others_answered: Some(self.now) })
    }

    /// The next probe is answered so, after a millisecond.
    pub fn answer(&mut self, outcome: Outcome) -> Vec<Action> {
        self.answer_after(ms(1), outcome)
    }

    pub(crate) fn condition(&self) -> Condition {
        self.machine.seen().condition
    }
}

pub(super) fn silent() -> Outcome {
    Outcome::Failed { how: Failure::Silence, reason: "no answer".into() }
}

pub(super) fn resolves() -> Outcome {
    Outcome::Failed { how: Failure::Resolves, reason: "its address resolves".into() }
}

pub(super) fn refused() -> Outcome {
    Outcome::Failed { how: Failure::Refusal, reason: "connection refused".into() }
}

pub(super) fn wrong() -> Outcome {
    Outcome::Failed { how: Failure::Wrong, reason: "status 503".into() }
}

pub(super) fn unknown() -> Outcome {
    Outcome::Unknown { reason: "too many open files".into() }
}

pub(super) fn suspected() -> Event {
    Event::Suspected { reason: "clients repeat their SYNs".into() }
}

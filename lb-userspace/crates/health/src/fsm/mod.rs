//! The state machine of one backend's checks: which probe is next and when, and what the answers
//! mean.
//!
//! ```text
//!             `fall` bad answers, after a suspicion two or one refusal,
//!      ┌───── or one if nothing was known before ───┐
//!      │                                            ▼
//!   ┌──────┐                               ┌───────────┐ silence ┌───────────┐
//!   │  up  │                               │ soft down │────────►│ hard down │
//!   └──────┘                               └───────────┘         └───────────┘
//!      ▲       `rise` good answers, or one if nothing │                │
//!      └────────────── was known before ──────────────┴────────────────┘
//! ```
//!
//! Silence is that of the host: `fall` probes in a row, each for its whole time, without an answer
//! of any kind to it or to what needs no listener ([`super::vip::Sign`]), while another backend of the service
//! gave one: where none does, the fault is likelier in the network between. Where its address still resolves,
//! its clients' packets must have gone unanswered, too. If these are all that bring a backend down, it is hard
//! down at once. A backend whose service has `on_down = "move"` is hard down whenever it is down.
//!
//! A probe that couldn't be sent changes nothing. Time is passed in and only ever compared, so
//! the time of day does not matter.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use lb_model::{
    check::{Check, Start},
    policy::OnDown,
    seen::{Condition, Seen},
};

use super::{
    damping::Damping,
    probe::{Failure, Outcome},
};

/// What a probe after a suspicion waits at least, unless the check itself waits less. A dead host
/// in the same network is found after twice that time.
const SHORTEST_DOUBT: Duration = Duration::from_millis(200);
/// How many times the usual latency a probe after a suspicion waits.
const DOUBT: u32 = 20;
/// How many silent answers a suspicion takes at most. Anybody can raise one with a SYN that is not
/// followed up, and a single packet may be lost: both together may not eject a backend.
const SILENT: u8 = 2;
/// How long suspicions are ignored at least after one that was wrong.
const SHORTEST_TRUST: Duration = Duration::from_millis(500);
/// How long an unchecked backend stays suspect.
const SUSPECT_FOR: Duration = Duration::from_secs(1);
/// How long after its time an answer is awaited, of whatever kind it is.
const OVERDUE: Duration = Duration::from_secs(5);

/// What happens to a machine.
#[derive(Clone, Debug)]
pub enum Event {
    /// The deadline has come.
    Due,
    /// The last probe was answered.
    Answered {
        /// What it found out.
        outcome: Outcome,
        /// How long that took.
        took: Duration,
        /// When another backend of its service has answered last; none: no other one answers.
        others_answered: Option<Instant>,
    },
    /// The backend does not answer its clients' packets.
    Suspected {
        /// The evidence of it.
        reason: String,
    },
    /// The last probe was dropped, since its path is no more.
    Interrupted,
    /// This process did not run for a while: silence of that time means nothing.
    Slept,
    /// The check was configured anew.
    Reconfigured {
        /// The check.
        check: Box<Check>,
        /// The half-life of the penalty for going down.
        half_life: Duration,
        /// What becomes of the flows of a backend that is down.
        on_down: OnDown,
    },
}

/// What a machine wants to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// To probe; the probe before, if there is one, is abandoned.
    Probe {
        /// How long the answer may take.
        timeout: Duration,
    },
    /// To abandon the last probe.
    Abandon,
    /// Report that what is seen has changed, and why if it is the condition.
    Report(Option<Change>),
}

/// A change of condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it was.
    pub from: Condition,
    /// What it is.
    pub to: Condition,
    /// Why: `3 failures in a row: no answer within 1s`.
    pub cause: String,
}

/// A probe that was not answered yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    at: Instant,
    /// When its answer is no longer awaited.
    overdue: Instant,
    timeout: Duration,
    /// Whether the process slept meanwhile.
    slept: bool,
}

/// The state machine of one backend.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    check: Check,
    on_down: OnDown,
    seen: Seen,
    /// Whether the condition was only assumed: the next answer decides alone.
    assumed: bool,
    /// Answers in a row that contradict the condition.
    against: u8,
    /// Whether the last probe got an answer of any kind; true before the first probe, too.
    answers: bool,
    /// Whether the backend refused the last probe.
    refused: bool,
    /// If the last probe timed out: the number of probes in a row that timed out without an answer of any kind while
    /// other backends answered.
    silent: Option<u8>,
    /// When the last probe that timed out was sent.
    silent_sent_at: Option<Instant>,
    /// When another backend had answered last, as of the last probe that timed out.
    silent_but: Option<Instant>,
    /// Probes in a row that couldn't be sent.
    unsent: u32,
    /// Whether a failure was forgiven because the process slept, and none since.
    excused: bool,
    pending: Option<Pending>,
    /// When the next probe is due, or, if there is none, when a suspicion lapses.
    next: Instant,
    /// The clients' evidence; the answers to the next probes decide.
    suspicion: Option<String>,
    /// Whether there was such evidence since the last good answer.
    blamed: bool,
    /// Until when suspicions are ignored.
    trusted: Option<Instant>,
    /// Smoothed latency of good answers.
    latency: Option<Duration>,
    damping: Damping,
    random: u64,
}

impl Machine {
    /// A backend whose condition is `initial` and which is first probed at `first`. If probes of an earlier run have
    /// established that condition (`is_adopted`), `rise` or `fall` answers in a row change it; otherwise the first
    /// answer does. The jitter of its intervals is computed from `seed`.
    #[must_use]
    pub fn new(
        check: Check,
        half_life: Duration,
        on_down: OnDown,
        initial: Condition,
        is_adopted: bool,
        first: Instant,
        seed: u64,
    ) -> Self {
        let condition = if check.is_active() { initial } else { Condition::Up };
        // Down is what `start` asks for, and then `rise` answers are needed.
        let is_settled = is_adopted || check.start == Start::Down;
        let assumed = !(check.is_active() && is_settled);
        Self {
            check,
            on_down,
            seen: Seen { condition, ..Seen::default() },
            assumed,
            against: 0,
            answers: true,
            refused: false,
            silent: None,
            silent_sent_at: None,
            silent_but: None,
            unsent: 0,
            excused: false,
            pending: None,
            next: first,
            suspicion: None,
            blamed: false,
            trusted: None,
            latency: None,
            damping: Damping::new(half_life),
            random: seed,
        }
    }

    /// What is seen of the backend.
    #[must_use]
    pub(crate) const fn seen(&self) -> Seen {
        self.seen
    }

    /// The check.
    #[must_use]
    pub const fn check(&self) -> &Check {
        &self.check
    }

    /// Whether the condition is only assumed, since nothing was answered yet.
    #[must_use]
    pub(crate) const fn is_assumed(&self) -> bool {
        self.assumed
    }

    /// Answers in a row that contradict the condition; `fall` of them bring it down, `rise` up.
    #[must_use]
    pub(crate) const fn against(&self) -> u8 {
        self.against
    }

    /// Probes in a row without an answer of any kind while the backend keeps its flows; `fall` of
    /// them move these.
    #[must_use]
    pub(crate) fn silent(&self) -> u8 {
        let is_soft = self.seen.condition == Condition::SoftDown;
        self.silent.filter(|_| is_soft).unwrap_or(0)
    }

    /// When the backend will be let go, if it is held.
    #[must_use]
    pub(crate) fn release(&self) -> Option<Instant> {
        self.damping.until().filter(|_| self.seen.held)
    }

    /// The last time that the backend went down was not its own doing: it is not held for that.
    pub(crate) fn forgive(&mut self) {
        self.damping.forgive();
    }

    /// When [`Event::Due`] is due; none: nothing will happen by itself.
    #[must_use]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waits = match self.pending {
            Some(pending) => Some(pending.overdue),
            None if self.check.is_active() || self.suspicion.is_some() => Some(self.next),
            None => None,
        };
        waits.into_iter().chain(self.release()).min()
    }

    /// Takes one event at `now`; the caller performs `out` in order.
    pub(crate) fn handle(&mut self, event: Event, now: Instant, out: &mut Vec<Action>) {
        let before = self.seen.condition;
        let cause = match event {
            Event::Due => self.due(now, out),
            Event::Answered { outcome, took, others_answered } => {
                self.answered(outcome, took, others_answered, now, out)
            }
            Event::Suspected { reason } => self.suspected(reason, now, out),
            Event::Interrupted => {
                if self.pending.take().is_some() {
                    out.push(Action::Abandon);
                    self.next = now;
                }
                None
            }
            Event::Slept => {
                if let Some(pending) = &mut self.pending {
                    pending.slept = true;
                    pending.overdue = now + pending.timeout + OVERDUE;
                }
                None
            }
            Event::Reconfigured { check, half_life, on_down } => {
                self.damping.set_half_life(half_life, now);
                self.on_down = on_down;
                self.reconfigure(*check, now, out)
            }
        };
        let to = self.seen.condition;
        if before == Condition::Up && to != Condition::Up {
            self.damping.went_down(now);
        }
        let is_up = to == Condition::Up && self.check.is_active();
        let seen = Seen {
            condition: to,
            held: is_up && self.damping.holds(now),
            suspect: self.suspicion.is_some(),
            doubted: self.suspicion.is_some() && (self.against > 0 || !self.check.is_active()),
            silent: to != Condition::Up && !self.answers,
            refuses: to != Condition::Up && self.refused,
        };
        let change = cause.map(|cause| Change { from: before, to, cause });
        if self.seen != seen || change.is_some() {
            self.seen = seen;
            out.push(Action::Report(change));
        }
    }

    fn due(&mut self, now: Instant, out: &mut Vec<Action>) -> Option<String> {
        match self.pending {
            Some(pending) if now < pending.overdue => return None,
            Some(pending) => {
                // Every probe ends by itself in its time. One that did not must not leave its
                // backend without probes for ever.
                out.push(Action::Abandon);
                let reason = format!("no answer within {}", text(pending.timeout));
                let outcome = Outcome::Failed { how: Failure::Wrong, reason };
                let took = now.saturating_duration_since(pending.at);
                return self.answered(outcome, took, None, now, out);
            }
            None if now < self.next => return None,
            None => {}
        }
        if self.check.is_active() {
            self.probe(now, out);
        } else {
            self.suspicion = None;
        }
        None
    }

    fn probe(&mut self, now: Instant, out: &mut Vec<Action>) {
        let timeout = if self.suspicion.is_some() { self.doubt() } else { self.check.timeout };
        let overdue = now + timeout + OVERDUE;
        self.pending = Some(Pending { at: now, overdue, timeout, slept: false });
        out.push(Action::Probe { timeout });
    }

    /// How long an answer after a suspicion may take.
    fn doubt(&self) -> Duration {
        let usual = self.latency.map_or(self.check.timeout, |latency| latency * DOUBT);
        usual.max(SHORTEST_DOUBT).min(self.check.timeout)
    }

    fn answered(
        &mut self,
        outcome: Outcome,
        took: Duration,
        others_answered: Option<Instant>,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Option<String> {
        let pending = self.pending.take()?;
        let cause = match outcome {
            Outcome::Unknown { .. } => {
                self.unsent = self.unsent.saturating_add(1);
                let backoff = 1 << (self.unsent - 1).min(16);
                let wait = self.check.fast_interval * backoff;
                let wait = wait.min(self.check.interval.max(self.check.fast_interval));
                self.next = now + self.vary(wait);
                return None;
            }
            Outcome::Failed {
                how: Failure::Silence | Failure::Resolves | Failure::Wrong, ..
            } if pending.slept && !self.excused => {
                self.excused = true;
                self.next = now;
                return None;
            }
            Outcome::Up => {
                // As TCP smooths its round-trip times (RFC 6298): an eighth of what is new.
                self.latency = Some(self.latency.map_or(took, |latency| (latency * 7 + took) / 8));
                self.good(now)
            }
            Outcome::Failed { how, reason } => {
                self.answers = how.is_answer();
                self.refused = how == Failure::Refusal;
                self.count_silence(how, pending.at, others_answered);
                self.bad(how, &reason)
            }
        };
        self.unsent = 0;
        self.excused = false;
        self.assumed = false;
        if self.suspicion.is_some() {
            // It is not decided yet, and clients wait.
            self.probe(now, out);
            return cause;
        }
        let interval = self.interval();
        // From probe to probe; an answer that took longer is followed by the next probe.
        self.next = (pending.at + self.vary(interval)).max(now);
        cause
    }

    fn good(&mut self, now: Instant) -> Option<String> {
        self.answers = true;
        self.refused = false;
        self.silent = None;
        self.blamed = false;
        if self.suspicion.take().is_some() {
            let trust = self.check.fast_interval.max(SHORTEST_TRUST);
            self.trusted = Some(now + trust);
        }
        if self.seen.condition == Condition::Up {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        if !self.assumed && self.against < self.check.rise.get() {
            return None;
        }
        let cause = match (self.assumed, self.against) {
            (true, _) => "the first answer is good".into(),
            (false, 1) => "a good answer".into(),
            (false, times) => format!("{times} good answers in a row"),
        };
        self.seen.condition = Condition::Up;
        self.against = 0;
        Some(cause)
    }

    /// Counts a probe without an answer if another backend has answered since the one before it was
    /// sent, or this one if it is the first: then the network between is in order. An answer proves that
    /// once. While nobody answers, what was counted before proves nothing any more: the answers that came
    /// as the network was about to fail, and those after it was mended, are none in a row.
    fn count_silence(&mut self, how: Failure, sent_at: Instant, others_answered: Option<Instant>) {
        if how.is_answer() || how == Failure::Resolves && !self.blamed {
            self.silent = None;
            return;
        }
        let since = self.silent_sent_at.replace(sent_at).filter(|_| self.silent.is_some());
        let Some(answer) = others_answered else {
            self.silent = Some(0);
            return;
        };
        let is_new = self.silent_but.replace(answer).is_none_or(|before| answer > before);
        let before = self.silent.unwrap_or(0);
        // lbd gives up a probe after a suspicion early.
        let counts = is_new && answer >= since.unwrap_or(sent_at) && self.suspicion.is_none();
        self.silent = Some(before.saturating_add(counts.into()));
    }

    fn bad(&mut self, how: Failure, reason: &str) -> Option<String> {
        let fall = self.check.fall.get();
        let is_silent = self.silent.is_some_and(|times| times >= fall);
        let moves = is_silent || self.on_down == OnDown::Move;
        match self.seen.condition {
            Condition::Up => {
                self.against = self.against.saturating_add(1);
                let needed = match self.suspicion {
                    _ if self.assumed => 1,
                    Some(_) if how == Failure::Refusal => 1,
                    Some(_) => fall.min(SILENT),
                    None => fall,
                };
                if self.against < needed {
                    return None;
                }
                let cause = match self.against {
                    1 => reason.into(),
                    times => format!("{times} failures in a row: {reason}"),
                };
                let cause = match self.suspicion.take() {
                    Some(clients) => format!("{cause}; asked because {clients}"),
                    None => cause,
                };
                self.against = 0;
                self.seen.condition = if moves { Condition::HardDown } else { Condition::SoftDown };
                Some(cause)
            }
            Condition::SoftDown if moves => {
                self.against = 0;
                self.seen.condition = Condition::HardDown;
                Some(match self.silent {
                    Some(times) if times > 1 => {
                        format!("{times} questions in a row without any answer: {reason}")
                    }
                    _ => reason.into(),
                })
            }
            Condition::SoftDown | Condition::HardDown => {
                self.against = 0;
                None
            }
        }
    }

    /// From the last probe to the next, as things are.
    fn interval(&self) -> Duration {
        match self.seen.condition {
            _ if self.against > 0 => self.check.fast_interval,
            // Whether its host is there decides on its flows.
            Condition::SoftDown if self.silent.is_some() => self.check.fast_interval,
            Condition::Up => self.check.interval,
            Condition::SoftDown | Condition::HardDown => self.check.down_interval,
        }
    }

    fn suspected(&mut self, reason: String, now: Instant, out: &mut Vec<Action>) -> Option<String> {
        self.blamed = true;
        if !self.check.is_active() {
            self.suspicion = Some(reason);
            self.next = now + SUSPECT_FOR;
            return None;
        }
        let is_trusted = self.trusted.is_some_and(|trusted| now < trusted);
        if self.seen.condition == Condition::Up && self.suspicion.is_none() && !is_trusted {
            self.suspicion = Some(reason);
            self.probe(now, out);
        }
        None
    }

    fn reconfigure(&mut self, check: Check, now: Instant, out: &mut Vec<Action>) -> Option<String> {
        let was_active = self.check.is_active();
        let same = (&self.check.kind, self.check.port, self.check.via)
            == (&check.kind, check.port, check.via);
        let earlier = self.interval();
        self.check = check;
        if same {
            // What was counted counts on; only a probe that would now be due sooner is.
            if self.pending.is_none() && self.unsent == 0 && self.interval() < earlier {
                let interval = self.interval();
                self.next = self.next.min(now + self.vary(interval));
            }
            if self.seen.condition == Condition::SoftDown && self.on_down == OnDown::Move {
                self.seen.condition = Condition::HardDown;
                return Some("flows of a backend that is down are to move".into());
            }
            return None;
        }
        if self.pending.take().is_some() {
            out.push(Action::Abandon);
        }
        self.against = 0;
        self.answers = true;
        self.refused = false;
        self.silent = None;
        self.unsent = 0;
        self.excused = false;
        self.trusted = None;
        self.latency = None;
        if !self.check.is_active() {
            self.suspicion = None;
            self.assumed = true;
            let was_up = self.seen.condition == Condition::Up;
            self.seen.condition = Condition::Up;
            return (!was_up).then(|| "it is not checked any more".into());
        }
        // Another probe may be a wrong one: where the condition was found out, it takes as many
        // answers as ever to overthrow it.
        self.assumed |= !was_active;
        self.next = if self.suspicion.is_some() {
            now
        } else {
            now + self.check.fast_interval.mul_f64(self.draw())
        };
        None
    }

    /// The interval, a little longer or shorter.
    fn vary(&mut self, interval: Duration) -> Duration {
        let percent = f64::from(self.check.jitter.min(100));
        interval.mul_f64(1.0 + (2.0 * self.draw() - 1.0) * percent / 100.0)
    }

    /// A number from 0 to 1 (SplitMix64, by Steele, Lea and Flood).
    fn draw(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.random;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        (word >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn text(duration: Duration) -> String {
    lb_model::units::format_duration(duration)
}

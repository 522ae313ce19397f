//! One virtual router: its inputs and what it does about them (RFC 9568, 6; RFC 3768, 6).
//!
//! ```text
//!                    ┌────────────┐
//!        ┌──────────►│ Initialize │◄──────────┐
//!        │   ┌───────┤            ├───────┐   │      Stop leads back to Initialize, from Active
//!        │   │ owner └─────┬──────┘ others│   │      when another router has taken over or none
//!        │   ▼             │ fault        ▼   │      does; every state leads to Fault while there is
//!    ┌───┴────────┐        │         ┌────────┴───┐  a fault, and Fault to Backup, or an owner's to Active.
//!    │   Active   │◄───────┼─────────┤   Backup   │
//!    │            ├────────┼────────►│            │
//!    └──────┬─────┘        ▼         └───┬────▲───┘
//!           │       ┌────────────┐       │    │
//!           └──────►│   Fault    │◄──────┘    │
//!                   │            ├────────────┘
//!                   └────────────┘
//! ```
//!
//! What the RFC does not have, and why:
//!
//! - A router that yields to a higher one sends a last advertisement, after its addresses are
//!   off. The winner receives a lower one, and answers as RFC 9568 wants it; and it announces the
//!   addresses, so that neighbours that learnt the loser's MAC address meanwhile are corrected.
//! - A router that has received nothing yet, after its start or a fault, listens for three seconds and the
//!   skew, however short its own interval is: the Active router's may be the RFC's second.
//! - Addresses that a predecessor left are kept, and it is Active after a short listening if no other
//!   router is: a daemon that is started again interrupts nothing.
//! - A planned end ([`Yield`](crate::Yield), `Stop`) keeps addresses until the other router advertises.
//! - A router that was not run for as long as others wait (it is late by its own clock) gives way to
//!   any router that then advertises.
//!
//! Two routers are Active for a moment when one preempts or takes over by an order, so no packet is lost. A node that
//! drains has priority 1 without a fault; a peer of the flow sync knows that from its state (`drains_there`).
//!
//! How long two can be Active, when packets take `D` at most and none is lost: the lower one receives
//! the next advertisement of the higher one, or the answer to its own, after at most
//! `min(I_higher + D, I_lower + 2 D)`, and ceases. A loss costs one interval more each. After
//! [`Event::Take`] and [`Event::Yield`] both are Active until the router that yields receives an
//! advertisement of the other one, [`VirtualRouter::yield_limit`] at most.

mod active;
mod backup;
mod ending;
mod inputs_outputs;
mod preempt;
mod timing;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_api::routers::ActiveRouter;
use lb_model::router::{OWNER, State};

pub use self::inputs_outputs::{Action, Assessment, Event, ReceivedAdvertisement, Settings, Tally};
use self::{
    active::{Answers, Displaced},
    ending::Yielding,
};
use super::{Notice, NoticeKind};

/// The last advertisement of another router that is Active.
#[derive(Clone, Copy, Debug)]
struct LastAdvertisement {
    from: IpAddr,
    priority: u8,
    /// The highest that it has advertised since its first one.
    highest: u8,
    at: Instant,
}

/// One virtual router.
#[derive(Debug)]
pub struct VirtualRouter {
    settings: Settings,
    assessment: Assessment,
    state: State,
    since: Instant,
    cause: String,
    tally: Tally,
    /// Active: the next advertisement (Adver_Timer). Backup: Active_Down_Timer.
    timer: Option<Instant>,
    /// Active_Adver_Interval: what the Active router advertises, or the own one.
    active_interval: Duration,
    /// Whether an Active router has advertised it.
    learnt: bool,
    /// The routers that advertise, by path.
    last_adverts: [Option<LastAdvertisement>; 2],
    /// Since when it could take over from a lower one.
    could_since: Option<Instant>,
    /// Since when it would take over from a lower one whose flows are not known here.
    lacks_since: Option<Instant>,
    /// It has given way by an order, and waits until it is needed.
    abstains: bool,
    when: When,
}

/// What belongs to the state that it is in, and ends with it.
#[derive(Debug, Default)]
struct When {
    /// Backup: the addresses are there, left by a predecessor.
    inherited: bool,
    /// Backup: the router that has ceased to be Active.
    left: Option<IpAddr>,
    /// Backup: it was late and has listened once more.
    listened: bool,
    /// Active: it is about to end that.
    yielding: Option<Yielding>,
    /// Active: the router that it has replaced knowingly.
    displaced: Option<Displaced>,
    /// Active: how many others that are Active were reported, and since when that is counted.
    alarms: Option<(Instant, u8)>,
    /// Active: the routers that it has answered, since when and how often.
    answered: BTreeMap<IpAddr, (Instant, u8)>,
    /// Active: when it is to answer what it couldn't at once.
    answer_at: Option<Instant>,
    /// Active: announcements in answers.
    answers: Answers,
    /// Active: the next announcement.
    announce_at: Option<Instant>,
    /// Active: the last advertisement.
    sent: Option<Instant>,
    /// Active: so many advertisements more are as frequent as before the interval has grown.
    hurry: Option<(u8, Duration)>,
    /// Active: the first and the last advertisement of another router with the same priority and a higher
    /// address, which this router does not yield to since another one decides.
    tie: Option<(Instant, Instant)>,
}

impl VirtualRouter {
    /// A virtual router in `Initialize`.
    #[must_use]
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            assessment: Assessment {
                priority: 100,
                fault: None,
                holds_back: None,
                abstains: None,
                known_after: None,
                draining: false,
                drains_there: false,
                lowered: false,
                lowered_there: false,
                handed_over: false,
            },
            state: State::Initialize,
            since: now,
            cause: "it has not begun yet".into(),
            tally: Tally::default(),
            timer: None,
            active_interval: settings.interval,
            learnt: false,
            last_adverts: [None; 2],
            could_since: None,
            lacks_since: None,
            abstains: false,
            when: When::default(),
            settings,
        }
    }

    /// From now on it is configured like this.
    pub fn set_settings(&mut self, settings: Settings, now: Instant, out: &mut Vec<Action>) {
        let before = std::mem::replace(&mut self.settings, settings);
        let paced =
            (before.interval, before.version) != (self.settings.interval, self.settings.version);
        let moved = before.addresses != self.settings.addresses;
        match self.state {
            State::Active => {
                self.reconfigured_active(paced.then_some(before.interval), moved, now, out)
            }
            State::Backup if paced && self.active().is_none() => self.listen_for_active(now),
            _ => {}
        }
        if before.announce != self.settings.announce && self.state == State::Active {
            self.plan_announcement(now, true);
        }
    }

    /// From now on it stands like this.
    pub fn set_assessment(&mut self, assessment: Assessment, now: Instant, out: &mut Vec<Action>) {
        let owned = self.priority() == OWNER;
        // It gave way so that the node could leave, and the node stays.
        self.abstains &= !self.assessment.draining || assessment.draining;
        self.assessment = assessment;
        if let Some(fault) = self.assessment.fault.clone() {
            match self.state {
                State::Active => self.fail(fault, now, out),
                State::Backup => {
                    if self.when.inherited {
                        out.push(Action::Release);
                    }
                    self.enter(State::Fault, fault, now, out);
                }
                State::Fault => self.cause = fault,
                State::Initialize => {}
            }
        } else if self.state == State::Fault {
            self.recover(now, out);
        } else if self.state == State::Backup
            && (self.priority() == OWNER && !owned)
            && self.may_preempt(now)
        {
            // RFC 9568, 6.4.1: an owner does not wait to see whether another router is there.
            self.become_active("it owns the addresses", None, now, out);
        }
    }

    /// Takes one event at `now`; the caller performs `out` in order.
    pub fn handle(&mut self, event: Event, now: Instant, out: &mut Vec<Action>) {
        if let Event::Received(advert) = &event {
            self.count(advert);
        }
        match (self.state, event) {
            // RFC 9568, 6.4.1.
            (State::Initialize, Event::Startup { inherited }) => self.start(inherited, now, out),
            (State::Initialize, Event::Stop { .. }) => out.push(Action::Stopped),

            // RFC 9568, 6.4.2.
            (State::Backup, Event::Timer) => self.backup_timer(now, out),
            (State::Backup, Event::Received(advert)) => self.backup_receive(advert, now, out),
            (State::Backup, Event::Stop { release }) => self.backup_stop(release, now, out),
            (State::Backup, Event::Take) => self.take(now, out),
            (State::Backup, Event::MateActive(mate)) => {
                let displaced = self.displace(false, now);
                let cause = format!("{mate}, of its sync group, is active");
                self.become_active(cause, displaced, now, out);
            }

            // RFC 9568, 6.4.3.
            (State::Active, Event::Timer) => self.active_timer(now, out),
            (State::Active, Event::Received(advert)) => self.active_receive(advert, now, out),
            (State::Active, Event::Stop { release }) => self.active_stop(release, now, out),
            (State::Active, Event::Yield(how)) => self.active_yield(how, now, out),
            (State::Active, Event::Take) => self.active_take(now, out),
            (State::Active, Event::MateBackup(mate)) => self.follow_to_backup(&mate, now, out),

            // No state of the RFC: it follows the Active router, and waits for its fault to end.
            (State::Fault, Event::Received(advert)) => self.fault_receive(&advert, now),
            (State::Fault, Event::Stop { .. }) => {
                self.enter(State::Initialize, "it was stopped", now, out);
                out.push(Action::Stopped);
            }

            (State::Initialize | State::Backup | State::Fault, Event::Yield(_)) => {
                self.yield_without_being_active(now, out);
            }
            (State::Initialize | State::Fault, Event::Take) => {
                let why = format!("it is in state {}: {}", self.state, self.cause);
                self.notice(NoticeKind::Trouble, "it can't take over", why, out);
            }

            // Nothing begins twice, nothing is due, and mates matter to those only that differ.
            (State::Backup | State::Active | State::Fault, Event::Startup { .. })
            | (State::Initialize | State::Fault, Event::Timer)
            | (State::Initialize, Event::Received(_))
            | (State::Initialize | State::Fault, Event::MateActive(_) | Event::MateBackup(_))
            | (State::Backup, Event::MateBackup(_))
            | (State::Active, Event::MateActive(_)) => {}
        }
    }

    /// When it wants [`Event::Timer`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let yielding = self.when.yielding.as_ref().map(|yielding| yielding.until);
        [self.timer, yielding, self.when.answer_at, self.when.answers.due, self.when.announce_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether another router is Active, as far as it has advertised.
    #[must_use]
    pub(crate) fn sees_active(&self, now: Instant) -> bool {
        let down = self.down(self.active_interval);
        self.last_adverts.iter().flatten().any(|last| now.saturating_duration_since(last.at) < down)
    }

    /// Whether it is Backup, and has the addresses that a predecessor left.
    #[must_use]
    pub(crate) const fn has_inherited_addresses(&self) -> bool {
        self.when.inherited
    }

    /// Waits with becoming Active until then: another router of its sync group still receives advertisements of one
    /// that has what a predecessor left here.
    pub(crate) fn postpone(&mut self, until: Instant, out: &mut Vec<Action>) {
        if self.state == State::Backup {
            self.timer = self.timer.max(Some(until));
            if std::mem::take(&mut self.when.inherited) {
                out.push(Action::Release);
            }
        }
    }

    /// Whether it would take over from a lower one, and waits for that one to hand over.
    #[must_use]
    pub fn wants(&self, now: Instant) -> bool {
        let owner = self.priority() == OWNER;
        let delay = if owner { Duration::ZERO } else { self.settings.preempt_delay };
        let since = self.could_since.filter(|_| self.assessment.handed_over);
        self.state == State::Backup
            && since.is_some_and(|since| now.saturating_duration_since(since) >= delay)
            && self.active().is_some_and(|active| active.priority < self.priority())
    }

    /// Its state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Since when.
    #[must_use]
    pub const fn since(&self) -> Instant {
        self.since
    }

    /// Why.
    #[must_use]
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// The priority that it advertises while it is Active. Its inputs, and the code that sets each:
    ///
    /// | input | effect | code |
    /// |---|---|---|
    /// | `priority` of the configuration | the base; 255, the owner's, stays whatever is tracked | `Router::priority` |
    /// | tracks with a weight | each adds its weight, a file its number times its weight; 1 to 254 | `Tracks::outcome` |
    /// | a failed service of weight 0, if another of the VIPs is served and `preempt` is set | 1, and no fault | `Tracks::outcome` |
    /// | the sync group | the lowest priority of its routers | `Machine::assessment` |
    /// | a drain of this node, unless a handover is under way | 1 | `ExternalState::draining`, by lb-daemon |
    ///
    /// [`Self::set_assessment`] sets the result. 0 is no priority of a router: `active.rs`, `backup.rs` and
    /// `ending.rs` put it into the advertisement by which a router ceases to be Active.
    #[must_use]
    pub const fn priority(&self) -> u8 {
        if self.assessment.draining { 1 } else { self.assessment.priority }
    }

    /// Whether something that is tracked has lowered its priority.
    #[must_use]
    pub(crate) const fn is_lowered(&self) -> bool {
        self.assessment.lowered
    }

    /// What it has counted.
    #[must_use]
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    /// Whether it is Active and about to end that.
    #[must_use]
    pub const fn is_yielding(&self) -> bool {
        self.when.yielding.is_some()
    }

    /// Whether it has given way by an order, and waits until it is needed.
    #[must_use]
    pub(crate) const fn abstains(&self) -> bool {
        self.abstains
    }

    /// Active_Adver_Interval: its own interval, or that of the Active router.
    #[must_use]
    pub(crate) fn active_interval(&self) -> Duration {
        if self.state == State::Backup { self.active_interval } else { self.settings.interval }
    }

    /// The other router that is Active, as far as it has advertised.
    #[must_use]
    pub(crate) fn active(&self) -> Option<ActiveRouter> {
        let last =
            self.last_adverts.iter().flatten().next().filter(|_| self.state != State::Active)?;
        Some(ActiveRouter { address: last.from, priority: last.priority })
    }

    fn enter(&mut self, to: State, cause: impl Into<String>, now: Instant, out: &mut Vec<Action>) {
        let from = std::mem::replace(&mut self.state, to);
        self.cause = cause.into();
        self.since = now;
        self.timer = None;
        self.has_no_claim();
        self.when = When::default();
        self.tally.transitions += 1;
        self.tally.became_active += u64::from(to == State::Active);
        out.push(Action::Transition { from, to, cause: self.cause.clone() });
    }

    fn count(&mut self, advert: &ReceivedAdvertisement) {
        self.tally.received += 1;
        self.tally.priority_zero_received += u64::from(advert.priority == 0);
    }

    /// Remembers the Active router.
    fn note(&mut self, advert: &ReceivedAdvertisement, now: Instant) {
        let last = &mut self.last_adverts[usize::from(advert.second_path)];
        if advert.priority > 0 {
            let (from, priority) = (advert.from, advert.priority);
            let before = last.filter(|last| last.from == from).map_or(0, |last| last.highest);
            *last =
                Some(LastAdvertisement { from, priority, highest: priority.max(before), at: now });
        } else if last.is_some_and(|last| last.from == advert.from) {
            self.last_adverts = [None; 2];
        }
    }

    fn notice(
        &self,
        kind: NoticeKind,
        what: &str,
        cause: impl Into<String>,
        out: &mut Vec<Action>,
    ) {
        let (router, message) = (self.settings.name.clone(), what.to_owned());
        out.push(Action::Notice(Notice { router, kind, message, cause: cause.into() }));
    }
}

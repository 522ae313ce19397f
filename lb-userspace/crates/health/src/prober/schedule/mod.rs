//! When each backend is probed: the machines of all backends, their deadlines, and what is done for them.
//!
//! It does nothing itself: what is to be done is left in [`Schedule::work`]. Time is passed in.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use lb_api::check_status::{CheckStatus, Counts, Histogram, Load};
use lb_model::{
    check::Kind,
    desired::ServiceKey,
    policy::OnDown,
    seen::{BackendKey, Condition},
};
use tracing::{info, warn};

use super::{Assignment, Report, trouble::Troubles};
use crate::{
    fsm::{Action, Event, Machine},
    probe::{Failure, Outcome, Probe, Route},
};

/// How many probes are begun in one turn, so that answers are taken in between.
const BATCH: usize = 128;
/// How far apart the first probes of many backends are, unless an interval is shorter.
const SPREAD: Duration = Duration::from_millis(1);
/// How often there is a turn at least while probes are in flight, and how much later a turn may
/// come before this process is held to have slept, unless timeouts are short.
const PULSE: Duration = Duration::from_millis(100);
/// Into how many pulses the shortest timeout in flight is divided at least: a sleep that is not
/// noticed leaves half of it.
const PULSES: u32 = 4;

/// What the prober's task is to do.
#[derive(Debug)]
pub(crate) enum Work {
    /// To take in packets from these addresses, and to send probes from none of them.
    SetVips(BTreeSet<IpAddr>),
    /// To probe; the answer comes back with the serial number.
    Probe {
        /// Whom it is about.
        target: BackendKey,
        /// The number of the probe.
        serial: u64,
        probe: Arc<Probe>,
    },
    /// To drop the probe of this number.
    Abandon(u64),
    /// Report what has changed.
    Report(Report),
}

#[derive(Debug)]
pub(crate) struct Answer {
    /// Whom it is about.
    pub target: BackendKey,
    /// The number of the probe.
    pub serial: u64,
    /// What it found out.
    pub outcome: Outcome,
    /// How long that took.
    pub took: Duration,
}

/// The probes that wait for their answer.
#[derive(Debug, Default)]
struct Flight {
    /// Descriptors that they may have, and have.
    limit: usize,
    used: usize,
    probes: usize,
    /// The number of the last one.
    serial: u64,
    /// How many have each timeout.
    timeouts: BTreeMap<Duration, usize>,
}

impl Flight {
    const fn is_full(&self) -> bool {
        self.used >= self.limit
    }

    fn start(&mut self, entry: &mut Entry, probe: Arc<Probe>, work: &mut Vec<Work>) {
        let descriptors = descriptors(&probe.kind);
        self.serial += 1;
        self.used += descriptors;
        self.probes += 1;
        let timeout = probe.timeout;
        *self.timeouts.entry(timeout).or_default() += 1;
        entry.in_flight = Some(InFlight { serial: self.serial, descriptors, timeout });
        work.push(Work::Probe { target: probe.target, serial: self.serial, probe });
    }

    fn abandon(&mut self, entry: &mut Entry, work: &mut Vec<Work>) {
        if let Some(in_flight) = entry.in_flight.take() {
            self.land(&in_flight);
            work.push(Work::Abandon(in_flight.serial));
        }
    }

    fn land(&mut self, in_flight: &InFlight) {
        self.used -= in_flight.descriptors;
        self.probes -= 1;
        if let Some(many) = self.timeouts.get_mut(&in_flight.timeout) {
            *many -= 1;
            if *many == 0 {
                self.timeouts.remove(&in_flight.timeout);
            }
        }
    }

    /// See [`PULSE`].
    fn pulse(&self) -> Duration {
        let shortest = self.timeouts.first_key_value();
        shortest.map_or(PULSE, |(timeout, _)| PULSE.min(*timeout / PULSES))
    }
}

#[derive(Debug)]
struct InFlight {
    serial: u64,
    descriptors: usize,
    timeout: Duration,
}

#[derive(Debug)]
struct Entry {
    machine: Machine,
    service: String,
    route: Option<Route>,
    half_life: Duration,
    on_down: OnDown,
    /// The probe as it was sent last.
    probe: Option<Arc<Probe>>,
    in_flight: Option<InFlight>,
    /// Where it stands in the order of deadlines.
    deadline: Option<Instant>,
    since: Instant,
    last: Option<(Outcome, Instant)>,
    /// When an answer of whatever kind came from its host.
    answered: Option<Instant>,
    took: Option<Duration>,
    counts: Counts,
    latency: Histogram,
    went_up: u64,
    went_down: u64,
    suspicions: u64,
}

impl Entry {
    /// Whether it can't be probed, though it should be.
    fn is_waiting(&self) -> bool {
        self.machine.check().is_active() && self.route.is_none()
    }

    fn probe(&mut self, target: BackendKey, route: Route, timeout: Duration) -> Arc<Probe> {
        if let Some(probe) = &self.probe
            && probe.timeout == timeout
        {
            return Arc::clone(probe);
        }
        let check = self.machine.check();
        let probe = Arc::new(Probe {
            service: self.service.clone(),
            target,
            kind: check.kind.clone(),
            port: check.port.unwrap_or(target.backend.port_or(target.service.port)),
            route,
            timeout,
        });
        self.probe = Some(Arc::clone(&probe));
        probe
    }
}

/// Everything that the prober knows.
#[derive(Debug)]
pub(crate) struct Schedule {
    entries: BTreeMap<BackendKey, Entry>,
    deadlines: BTreeSet<(Instant, BackendKey)>,
    vips: BTreeSet<IpAddr>,
    flight: Flight,
    seed: u64,
    /// When the next turn should be.
    expected: Option<Instant>,
    load: Load,
    troubles: Troubles,
    /// What a machine wants; kept for its memory.
    actions: Vec<Action>,
    /// What is to be done, in this order.
    pub work: Vec<Work>,
}

impl Schedule {
    /// No backend is probed yet. Probes may have `limit` descriptors at once; `seed` makes intervals
    /// vary otherwise than in other processes.
    pub fn new(limit: usize, seed: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            vips: BTreeSet::new(),
            flight: Flight { limit: limit.max(1), ..Flight::default() },
            seed,
            expected: None,
            load: Load::default(),
            troubles: Troubles::default(),
            actions: Vec::new(),
            work: Vec::new(),
        }
    }

    /// Replaces all assignments.
    pub fn assign(&mut self, mut assignments: BTreeMap<BackendKey, Assignment>, now: Instant) {
        // Also those that no probe goes to: none may come from one either.
        let vips: BTreeSet<_> = assignments.keys().map(|target| target.service.vip).collect();
        if vips != self.vips {
            self.work.push(Work::SetVips(vips.clone()));
            self.vips = vips;
        }
        let gone = |target: &BackendKey, _: &mut Entry| !assignments.contains_key(target);
        let gone: Vec<_> = self.entries.extract_if(.., gone).collect();
        for (target, mut entry) in gone {
            if let Some(deadline) = entry.deadline {
                self.deadlines.remove(&(deadline, target));
            }
            self.flight.abandon(&mut entry, &mut self.work);
        }
        let known: Vec<_> = self.entries.keys().copied().collect();
        for target in known {
            if let Some(assignment) = assignments.remove(&target) {
                self.change(target, assignment, now);
            }
        }
        let many = u32::try_from(assignments.len()).unwrap_or(u32::MAX);
        for (n, (target, assignment)) in (0u32..).zip(assignments) {
            let span = assignment.check.interval.min(SPREAD * many);
            let first = now + span.mul_f64(f64::from(n) / f64::from(many));
            self.add(target, assignment, first, now);
        }
    }

    fn add(&mut self, target: BackendKey, assignment: Assignment, first: Instant, now: Instant) {
        let Assignment { service, check, route, half_life, on_down, initial, is_adopted } =
            assignment;
        self.seed = self.seed.wrapping_add(1);
        let machine =
            Machine::new(check, half_life, on_down, initial, is_adopted, first, self.seed);
        let entry = Entry {
            machine,
            service,
            route,
            half_life,
            on_down,
            probe: None,
            in_flight: None,
            deadline: None,
            since: now,
            last: None,
            answered: None,
            took: None,
            counts: Counts::default(),
            latency: Histogram::default(),
            went_up: 0,
            went_down: 0,
            suspicions: 0,
        };
        self.entries.insert(target, entry);
        self.place(target);
    }

    fn change(&mut self, target: BackendKey, assignment: Assignment, now: Instant) {
        let Some(entry) = self.entries.get_mut(&target) else { return };
        let Assignment { service, check, route, half_life, on_down, .. } = assignment;
        let is_new_route = entry.route != route;
        let is_new_check = *entry.machine.check() != check
            || (entry.half_life, entry.on_down) != (half_life, on_down);
        if is_new_route || is_new_check || entry.service != service {
            entry.probe = None;
            entry.service = service;
            entry.route = route;
            entry.half_life = half_life;
            entry.on_down = on_down;
        }
        if is_new_check {
            let check = Box::new(check);
            self.step(target, Event::Reconfigured { check, half_life, on_down }, now);
        }
        if is_new_route {
            // The frames of a probe in flight may go to a MAC address that no host has.
            self.step(target, Event::Interrupted, now);
        }
    }

    /// A backend does not answer its clients' packets.
    pub(crate) fn suspect(&mut self, target: BackendKey, reason: String, now: Instant) {
        if self.entries.get(&target).is_some_and(|entry| !entry.is_waiting()) {
            self.step(target, Event::Suspected { reason }, now);
        }
    }

    /// Takes in answers, and begins what is due.
    pub(crate) fn turn(&mut self, answers: impl Iterator<Item = Answer>, now: Instant) {
        if self.expected.is_some_and(|expected| now > expected + self.flight.pulse()) {
            self.load.pauses += 1;
            let waiting = self.entries.iter().filter(|(_, entry)| entry.in_flight.is_some());
            let waiting: Vec<_> = waiting.map(|(target, _)| *target).collect();
            waiting.into_iter().for_each(|target| self.step(target, Event::Slept, now));
        }
        answers.for_each(|answer| self.answered(answer, now));
        for _ in 0..BATCH {
            if self.flight.is_full() {
                break;
            }
            let Some(&(deadline, target)) = self.deadlines.first() else { break };
            if deadline > now {
                break;
            }
            self.due(target, deadline, now);
        }
        // What is overdue is no sign of sleep if it was left over.
        self.expected = self.next(now).map(|next| next.max(now));
    }

    fn due(&mut self, target: BackendKey, deadline: Instant, now: Instant) {
        let before = self.serial(target);
        self.step(target, Event::Due, now);
        let after = self.serial(target);
        if before.is_none() && after.is_some() {
            self.load.lateness.add(now.saturating_duration_since(deadline));
        }
        if before.is_some() && before != after {
            let reason = "the check did not end in time".into();
            self.count(target, Outcome::Failed { how: Failure::Wrong, reason }, None, now);
        }
    }

    /// The number of the probe to this backend that waits.
    fn serial(&self, target: BackendKey) -> Option<u64> {
        self.entries.get(&target)?.in_flight.as_ref().map(|in_flight| in_flight.serial)
    }

    fn answered(&mut self, answer: Answer, now: Instant) {
        let Answer { target, serial, outcome, took } = answer;
        let Some(entry) = self.entries.get_mut(&target) else { return };
        // It may be an answer to a probe that was abandoned when it was already in flight.
        let Some(in_flight) = entry.in_flight.take_if(|probe| probe.serial == serial) else {
            return;
        };
        self.flight.land(&in_flight);
        let is_answer = match &outcome {
            Outcome::Up => true,
            Outcome::Failed { how, .. } => how.is_answer(),
            Outcome::Unknown { .. } => false,
        };
        if is_answer {
            entry.answered = Some(now);
        }
        self.count(target, outcome.clone(), Some(took), now);
        let others_answered = if is_answer { None } else { self.others_answered(target) };
        self.step(target, Event::Answered { outcome, took, others_answered }, now);
    }

    /// When another backend of the service has answered last; none while the last probe to each of
    /// them has no answer either.
    fn others_answered(&self, target: BackendKey) -> Option<Instant> {
        let first = BackendKey { backend: Ipv4Addr::UNSPECIFIED.into(), ..target };
        let all = self.entries.range(first..);
        let all = all.take_while(|(other, _)| other.service == target.service);
        let others = all.filter(|(other, _)| **other != target).map(|(_, entry)| entry);
        let answers = |entry: &Entry| entry.answered == entry.last.as_ref().map(|(_, at)| *at);
        let others: Vec<_> = others.filter(|entry| entry.answered.is_some()).collect();
        let last = others.iter().filter_map(|entry| entry.answered).max();
        last.filter(|_| others.iter().any(|entry| answers(entry)))
    }

    fn count(
        &mut self,
        target: BackendKey,
        outcome: Outcome,
        took: Option<Duration>,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(&target) else { return };
        let add = |counts: &mut Counts| match &outcome {
            Outcome::Up => counts.ok += 1,
            Outcome::Failed { .. } => counts.failed += 1,
            Outcome::Unknown { .. } => counts.unknown += 1,
        };
        add(&mut entry.counts);
        add(&mut self.load.counts);
        match &outcome {
            Outcome::Unknown { reason } => {
                if self.troubles.unsent(reason, now) {
                    warn!("checks can't be asked: {reason}; no backend changes for that");
                }
            }
            _ => {
                for (reason, probes) in self.troubles.sent(now) {
                    info!(questions = probes, "checks can be asked again, after: {reason}");
                }
            }
        }
        if outcome == Outcome::Up
            && let Some(took) = took
        {
            entry.latency.add(took);
        }
        entry.took = took;
        entry.last = Some((outcome, now));
    }

    /// Passes an event to a machine, and notes the actions that it wants.
    fn step(&mut self, target: BackendKey, event: Event, now: Instant) {
        let Some(entry) = self.entries.get_mut(&target) else { return };
        let mut actions = mem::take(&mut self.actions);
        let mut went_down = false;
        let was_suspect = entry.machine.seen().suspect;
        entry.machine.handle(event, now, &mut actions);
        entry.suspicions += u64::from(!was_suspect && entry.machine.seen().suspect);
        for action in actions.drain(..) {
            match action {
                Action::Probe { timeout } => {
                    self.flight.abandon(entry, &mut self.work);
                    if let Some(route) = entry.route.clone() {
                        let probe = entry.probe(target, route, timeout);
                        self.flight.start(entry, probe, &mut self.work);
                    }
                }
                Action::Abandon => self.flight.abandon(entry, &mut self.work),
                Action::Report(change) => {
                    if let Some(change) = &change {
                        if change.to == Condition::Up {
                            entry.went_up += 1;
                        } else if change.from == Condition::Up {
                            entry.went_down += 1;
                            went_down = true;
                        }
                        entry.since = now;
                    }
                    let seen = entry.machine.seen();
                    self.work.push(Work::Report(Report { target, seen, change }));
                }
            }
        }
        self.actions = actions;
        self.place(target);
        if went_down {
            self.forgive_outage(target.service);
        }
    }

    /// Where no backend of a service answers any more, that is likelier the doing of the network
    /// between than of each of them: none is held for it when they are back.
    fn forgive_outage(&mut self, service: ServiceKey) {
        let first = BackendKey { service, backend: Ipv4Addr::UNSPECIFIED.into() };
        let of_service = |target: &BackendKey| target.service == service;
        let answers =
            |entry: &Entry| !entry.is_waiting() && entry.machine.seen().condition == Condition::Up;
        let mut all = self.entries.range(first..).take_while(|(target, _)| of_service(target));
        if all.any(|(_, entry)| answers(entry)) {
            return;
        }
        let all = self.entries.range_mut(first..).take_while(|(target, _)| of_service(target));
        all.for_each(|(_, entry)| entry.machine.forgive());
    }

    /// Puts a backend where it belongs in the order of deadlines.
    fn place(&mut self, target: BackendKey) {
        let Some(entry) = self.entries.get_mut(&target) else { return };
        let deadline = if entry.is_waiting() { None } else { entry.machine.deadline() };
        let earlier = mem::replace(&mut entry.deadline, deadline);
        if earlier == deadline {
            return;
        }
        if let Some(earlier) = earlier {
            self.deadlines.remove(&(earlier, target));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, target));
        }
    }

    /// When the next turn should be, if nothing comes in; none: never.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let pulse = (self.flight.probes > 0).then(|| now + self.flight.pulse());
        // When all descriptors are taken only an answer helps.
        let first = self.deadlines.first().filter(|_| !self.flight.is_full());
        pulse.into_iter().chain(first.map(|(deadline, _)| *deadline)).min()
    }

    /// What is known of all backends.
    pub fn status(&self, now: Instant, wall: SystemTime) -> BTreeMap<BackendKey, CheckStatus> {
        let status = |entry: &Entry| {
            let machine = &entry.machine;
            let (check, seen) = (machine.check(), machine.seen());
            let since = wall.checked_sub(now.saturating_duration_since(entry.since));
            let since = since.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            CheckStatus {
                kind: check.kind.name().into(),
                condition: seen.condition,
                assumed: machine.is_assumed(),
                waiting: entry.is_waiting(),
                held_secs: machine
                    .release()
                    .map(|at| at.saturating_duration_since(now).as_secs_f64().ceil() as u64),
                suspect: seen.suspect,
                last: entry.last.as_ref().map(|(outcome, _)| text(outcome)),
                last_secs: entry
                    .last
                    .as_ref()
                    .map(|(_, at)| now.saturating_duration_since(*at).as_secs()),
                since: since.unwrap_or_default().as_secs(),
                latency_us: entry.took.map(micros),
                counts: entry.counts,
                latency: entry.latency.clone(),
                went_up: entry.went_up,
                went_down: entry.went_down,
                suspicions: entry.suspicions,
                against: machine.against(),
                silent: machine.silent(),
                rise: check.rise.get(),
                fall: check.fall.get(),
            }
        };
        self.entries.iter().map(|(target, entry)| (*target, status(entry))).collect()
    }

    /// The prober's own load.
    pub fn load(&self) -> Load {
        let is_probed = |entry: &&Entry| entry.machine.check().is_active();
        Load {
            backends: self.entries.values().filter(is_probed).count(),
            in_flight: self.flight.probes,
            limit: self.flight.limit,
            troubles: self.troubles.reasons(),
            ..self.load.clone()
        }
    }
}

/// How many descriptors a probe needs.
const fn descriptors(kind: &Kind) -> usize {
    match kind {
        // The command's output, its process, and what is needed to start it.
        Kind::Exec(_) => 6,
        // Its socket, and those that look for a sign of life of its host where that has no answer.
        _ => 4,
    }
}

fn text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Up => "ok".into(),
        Outcome::Failed { reason, .. } => reason.clone(),
        Outcome::Unknown { reason } => format!("can't be asked: {reason}"),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

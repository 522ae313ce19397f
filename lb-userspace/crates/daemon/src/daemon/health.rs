//! The daemon's side of health checks: it sets the backends that are probed, takes the results in, and
//! returns events of the changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lb_api::{
    check_status::{CheckStatus, Load},
    event::{EventBody, Kind},
    status::{Standing, Status},
};
use lb_health::{
    assign::assignments,
    prober::{Assignment, Prober, Report},
};
use lb_model::{
    check::Start,
    desired::{Desired, ServiceKey},
    hop::Neighbourhood,
    seen::{BackendKey, Condition, Seen, View},
    settings::Tunnel,
    units::counted,
};

/// The prober of the backends.
pub trait Checks: Send {
    /// See [`Prober::assign`].
    fn assign(&self, assignments: BTreeMap<BackendKey, Assignment>);
    /// See [`Prober::suspect`].
    fn suspect(&self, target: BackendKey, reason: String);
    /// See [`Prober::status`].
    fn status(&self) -> BTreeMap<BackendKey, CheckStatus>;
    /// See [`Prober::load`].
    fn load(&self) -> Load;
}

impl Checks for Prober {
    fn assign(&self, assignments: BTreeMap<BackendKey, Assignment>) {
        Self::assign(self, assignments);
    }

    fn suspect(&self, target: BackendKey, reason: String) {
        Self::suspect(self, target, reason);
    }

    fn status(&self) -> BTreeMap<BackendKey, CheckStatus> {
        Self::status(self)
    }

    fn load(&self) -> Load {
        Self::load(self)
    }
}

/// A suspicion is reported after this time at the earliest since the one before it of the same backend:
/// a port scan raises two a second of each.
const QUIET: Duration = Duration::from_secs(10);

/// The suspicion that clients' packets raise against a backend.
#[derive(Default)]
struct Suspected {
    reason: String,
    /// When an event was recorded last, and the number of suspicions without one since.
    reported: Option<Instant>,
    unreported: u32,
    /// Whether the last one was reported, and its end was not.
    is_open: bool,
}

impl Suspected {
    /// Counts a suspicion at `now`; the cause for the event, if one is due.
    fn again(&mut self, now: Instant) -> Option<String> {
        if self.reported.is_some_and(|at| now.saturating_duration_since(at) < QUIET) {
            self.unreported = self.unreported.saturating_add(1);
            return None;
        }
        self.reported = Some(now);
        self.is_open = true;
        Some(match std::mem::take(&mut self.unreported) {
            0 => self.reason.clone(),
            unreported => {
                format!("{}; {unreported} suspicions before were not reported", self.reason)
            }
        })
    }
}

/// The known health of the backends.
pub(super) struct Health {
    checks: Box<dyn Checks>,
    tunnel: Tunnel,
    /// The conditions that an earlier run has left, until they are taken up.
    adopted_view: View,
    /// The backends of which an earlier run has left a condition: probes of that run have established it, so it is
    /// not an assumption.
    adopted_targets: BTreeSet<BackendKey>,
    /// The backends that were assigned.
    known: BTreeSet<BackendKey>,
    view: View,
    neighbourhood: Option<Neighbourhood>,
    suspected: BTreeMap<BackendKey, Suspected>,
    standings: BTreeMap<ServiceKey, Standing>,
}

impl Health {
    pub(super) fn new(checks: Box<dyn Checks>, tunnel: Tunnel) -> Self {
        Self {
            checks,
            tunnel,
            adopted_view: View::new(),
            adopted_targets: BTreeSet::new(),
            known: BTreeSet::new(),
            view: View::new(),
            neighbourhood: None,
            suspected: BTreeMap::new(),
            standings: BTreeMap::new(),
        }
    }

    /// Takes over the conditions that an earlier run has left in the maps.
    pub(super) fn adopt(&mut self, adopted: View) {
        self.adopted_targets = adopted.keys().copied().collect();
        self.adopted_view = adopted;
    }

    /// The observed conditions.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The paths to the backends, as far as they are known.
    pub(super) fn neighbourhood(&self) -> Option<&Neighbourhood> {
        self.neighbourhood.as_ref()
    }

    /// Takes the new paths to the backends.
    pub(super) fn on_neighbourhood(&mut self, neighbourhood: Neighbourhood) {
        self.neighbourhood = Some(neighbourhood);
    }

    /// Assigns the desired backends to the prober, with the known paths.
    pub(super) fn assign_checks(&mut self, desired: &Desired) {
        let mut there = BTreeSet::new();
        for service in desired.services.values() {
            for (&backend, wanted) in &service.backends {
                let target = BackendKey { service: service.key, backend };
                there.insert(target);
                if self.known.contains(&target) {
                    continue;
                }
                let check = service.check_of(wanted);
                let down = check.is_active() && check.start == Start::Down;
                let seen = self.adopted_view.remove(&target).unwrap_or(Seen {
                    condition: if down { Condition::SoftDown } else { Condition::Up },
                    ..Seen::default()
                });
                self.see(target, seen);
            }
        }
        self.view.retain(|target, _| there.contains(target));
        self.suspected.retain(|target, _| there.contains(target));
        self.adopted_targets.retain(|target| there.contains(target));
        self.known = there;
        let neighbourhood = self.neighbourhood.as_ref();
        let assignments =
            assignments(desired, neighbourhood, self.tunnel, &self.view, &self.adopted_targets);
        self.checks.assign(assignments);
    }

    fn see(&mut self, target: BackendKey, seen: Seen) {
        if seen == Seen::default() {
            self.view.remove(&target);
        } else {
            self.view.insert(target, seen);
        }
    }

    /// A backend's clients find it silent.
    pub(super) fn suspect(&mut self, target: BackendKey, reason: String) {
        self.suspected.entry(target).or_default().reason.clone_from(&reason);
        self.checks.suspect(target, reason);
    }

    /// The prober has sent a report, at `now`; the events that follow.
    pub(super) fn on_report(
        &mut self,
        report: Report,
        desired: &Desired,
        now: Instant,
    ) -> Vec<EventBody> {
        let Report { target, seen, change } = report;
        let Some(name) = name_of(desired, target.service) else { return Vec::new() };
        if !self.known.contains(&target) {
            return Vec::new();
        }
        let before = self.view.get(&target).copied().unwrap_or_default();
        self.see(target, seen);
        let mut events = Vec::new();
        let mut record = |kind, what: &str, cause: &str| {
            let message = format!("{name} {} {what}", target.backend);
            events.push(EventBody::new(kind, message, cause).of_backend(name, target.backend));
        };
        // A suspicion that the next answer clears is counted and not reported.
        if seen.doubted
            && !before.doubted
            && let Some(cause) = self.suspected.entry(target).or_default().again(now)
        {
            record(Kind::BackendSuspect, "is suspected to be silent", &cause);
        }
        if before.suspect
            && !seen.suspect
            && let Some(suspected) = self.suspected.get_mut(&target)
            && std::mem::take(&mut suspected.is_open)
            && seen.condition == Condition::Up
        {
            let cause = "neither its check nor its clients' packets find it silent";
            record(Kind::BackendAnswers, "is suspected no more", cause);
        }
        if let Some(change) = change {
            match change.to {
                Condition::Up => record(Kind::BackendUp, "is up", &change.cause),
                Condition::SoftDown => record(
                    Kind::BackendDown,
                    "is down: no new flows, it keeps the ones it has",
                    &change.cause,
                ),
                Condition::HardDown => {
                    record(Kind::BackendDown, "is down: its flows move", &change.cause);
                }
            }
        }
        match (before.held, seen.held) {
            (false, true) => record(
                Kind::BackendHeld,
                "is up and gets no new flows yet",
                "it went down too often of late",
            ),
            (true, false) if seen.condition == Condition::Up => {
                record(Kind::BackendUp, "gets new flows again", "it has stayed up");
            }
            _ => {}
        }
        events
    }

    /// The engine has computed the standings of the services; the events that follow.
    pub(super) fn on_standings(
        &mut self,
        standings: &BTreeMap<ServiceKey, Standing>,
        desired: &Desired,
    ) -> Vec<EventBody> {
        let mut events = Vec::new();
        for (key, now) in standings {
            let Some(name) = name_of(desired, *key) else { continue };
            let before = self.standings.get(key).copied();
            let up = match now.enabled {
                0 => "no backend may take new flows".to_owned(),
                enabled => format!("{} of {} up", now.up, counted(enabled, "backend")),
            };
            let mut record = |kind, what: &str| {
                let message = format!("service {name} {what}");
                events.push(EventBody::new(kind, message, up.clone()).of_service(name));
            };
            // A service that begins ready raises no event.
            match (before.is_none_or(|before| before.ready), now.ready) {
                (true, false) => record(Kind::ServiceNotReady, "is not ready"),
                (false, true) => record(Kind::ServiceReady, "is ready"),
                _ => {}
            }
            match (before.is_some_and(|before| before.panic), now.panic) {
                (false, true) => {
                    record(Kind::ServicePanic, "is in panic: its checks are ignored for choosing");
                }
                (true, false) => record(Kind::ServicePanicOver, "is in panic no more"),
                _ => {}
            }
        }
        self.standings.clone_from(standings);
        events
    }

    /// Adds the state of the checks to the status.
    pub(super) fn add_to(&self, status: &mut Status) {
        status.checks = self.checks.load();
        let mut checks = self.checks.status();
        for service in status.services.values_mut() {
            for (address, backend) in &mut service.backends {
                let target = BackendKey { service: service.key, backend: *address };
                backend.check = checks.remove(&target);
            }
        }
    }
}

fn name_of(desired: &Desired, key: ServiceKey) -> Option<&str> {
    let mut services = desired.services.iter();
    services.find(|(_, service)| service.key == key).map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests {
    use lb_model::backend_address::BackendAddress;
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::{Arc, Mutex},
    };

    use lb_model::{
        check,
        desired::{Backend, Mode, Service},
    };

    use super::*;

    const A: BackendAddress = BackendAddress::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 11)));
    const B: BackendAddress = BackendAddress::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 12)));

    /// Keeps what it was assigned last.
    #[derive(Clone, Default)]
    struct Assigned(Arc<Mutex<BTreeMap<BackendKey, Assignment>>>);

    impl Checks for Assigned {
        fn assign(&self, assignments: BTreeMap<BackendKey, Assignment>) {
            *self.0.lock().expect("nobody panics") = assignments;
        }

        fn suspect(&self, _: BackendKey, _: String) {}

        fn status(&self) -> BTreeMap<BackendKey, CheckStatus> {
            BTreeMap::new()
        }

        fn load(&self) -> Load {
            Load::default()
        }
    }

    fn web(backends: &[BackendAddress]) -> Desired {
        let mut service = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr);
        service.policy.check.kind = check::Kind::Tcp;
        service.backends = backends.iter().map(|at| (*at, Backend::default())).collect();
        Desired { services: [("web".to_owned(), service)].into() }
    }

    fn target(backend: BackendAddress) -> BackendKey {
        BackendKey { service: web(&[]).services["web"].key, backend }
    }

    #[test]
    fn suspicions_of_one_backend_are_told_every_ten_seconds_and_counted() {
        let desired = web(&[A, B]);
        let mut health = Health::new(Box::<Assigned>::default(), Tunnel::default());
        health.assign_checks(&desired);
        let begun = Instant::now();
        let (mut causes, mut ended) = (BTreeMap::new(), 0);
        let mut suspect = |backend, now| {
            health.suspect(target(backend), "clients repeat their SYNs".into());
            for (suspect, doubted) in [(true, false), (true, true), (false, false)] {
                let seen = Seen { suspect, doubted, ..Seen::default() };
                let report = Report { target: target(backend), seen, change: None };
                for event in health.on_report(report, &desired, now) {
                    assert_eq!(event.backend, Some(backend));
                    match event.kind {
                        Kind::BackendSuspect => {
                            causes.entry(backend).or_insert_with(Vec::new).push(event.cause);
                        }
                        kind => {
                            assert_eq!(kind, Kind::BackendAnswers);
                            ended += 1;
                        }
                    }
                }
            }
        };
        // Two a second for 10 seconds, and one more.
        for n in 0..=20 {
            suspect(A, begun + n * Duration::from_millis(500));
        }
        suspect(B, begun + Duration::from_secs(5));
        let first = "clients repeat their SYNs";
        assert_eq!(
            causes[&A],
            [first, &format!("{first}; 19 suspicions before were not reported")]
        );
        assert_eq!(causes[&B], [first]);
        assert_eq!(ended, 3, "the end of each that was reported");
    }

    #[test]
    fn a_suspicion_that_the_next_answer_clears_is_not_told() {
        let desired = web(&[A]);
        let mut health = Health::new(Box::<Assigned>::default(), Tunnel::default());
        health.assign_checks(&desired);
        health.suspect(target(A), "clients repeat their SYNs".into());
        for suspect in [true, false, true, false] {
            let seen = Seen { suspect, ..Seen::default() };
            let report = Report { target: target(A), seen, change: None };
            assert!(health.on_report(report, &desired, Instant::now()).is_empty());
        }
    }

    #[test]
    fn only_what_an_earlier_run_has_left_is_adopted() {
        let assigned = Assigned::default();
        let is_adopted = |backend| {
            let assigned = assigned.0.lock().expect("nobody panics");
            assigned.get(&target(backend)).map(|assignment| assignment.is_adopted)
        };
        let mut health = Health::new(Box::new(assigned.clone()), Tunnel::default());
        health.adopt([(target(A), Seen::default())].into());
        health.assign_checks(&web(&[A, B]));
        assert_eq!((is_adopted(A), is_adopted(B)), (Some(true), Some(false)));
        // One that was removed comes back as any other.
        health.assign_checks(&web(&[B]));
        health.assign_checks(&web(&[A, B]));
        assert_eq!(is_adopted(A), Some(false));
    }
}

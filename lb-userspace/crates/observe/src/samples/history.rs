//! The figures of each of the last seconds: totals in, figures per second out. A pure function of
//! the statuses and their times.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use lb_api::status::{Backend, Count, Service, Status};
use lb_model::{backend_address::BackendAddress, desired::ServiceKey};
use serde::{Deserialize, Serialize};

use super::{BackendSeries, Series, ServiceSeries};

/// Seconds that are kept.
pub const KEPT: usize = 300;

/// Figures per second. Of 32 bits, since there are [`KEPT`] of them for each backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Packets.
    pub packets: f32,
    /// Bytes of IP.
    pub bytes: f32,
    /// Flows that began.
    pub new_flows: f32,
}

/// The figures per second.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// To all backends together.
    pub node: Rate,
    /// Left to the node's own stack, by reason.
    pub passed: BTreeMap<String, Rate>,
    /// Dropped, by reason.
    pub dropped: BTreeMap<String, Rate>,
    /// The services by name.
    pub services: BTreeMap<String, ServiceRates>,
}

/// The figures per second of a service.
#[derive(Clone, Debug, Default)]
pub struct ServiceRates {
    /// To all of its backends.
    pub total: Rate,
    /// To each of them.
    pub backends: BTreeMap<BackendAddress, Rate>,
}

/// The last seconds, bounded: [`KEPT`] times 13 bytes for each backend that there is.
#[derive(Debug, Default)]
pub(super) struct History {
    taken: Option<Instant>,
    node: Ring<Rate>,
    services: BTreeMap<String, OfService>,
    passed: BTreeMap<String, OfReason>,
    dropped: BTreeMap<String, OfReason>,
}

#[derive(Debug)]
struct OfService {
    key: ServiceKey,
    rates: Ring<Rate>,
    backends: BTreeMap<BackendAddress, OfBackend>,
}

#[derive(Debug)]
struct OfBackend {
    id: u16,
    totals: [u64; 3],
    failed: u64,
    rates: Ring<Rate>,
    states: Ring<u8>,
}

#[derive(Debug, Default)]
struct OfReason {
    count: Count,
    rates: Ring<Rate>,
}

/// The last [`KEPT`] of something.
#[derive(Debug)]
struct Ring<T>(VecDeque<T>);

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Copy> Ring<T> {
    /// Takes the same for each of the seconds.
    fn push(&mut self, seconds: usize, value: T) {
        if self.0.capacity() < KEPT {
            // Not by doubling, which would end at 512.
            self.0.reserve_exact(KEPT - self.0.len());
        }
        for _ in 0..seconds.min(KEPT) {
            if self.0.len() == KEPT {
                self.0.pop_front();
            }
            self.0.push_back(value);
        }
    }

    fn last(&self, seconds: usize) -> impl Iterator<Item = T> {
        self.0.iter().skip(self.0.len().saturating_sub(seconds)).copied()
    }
}

/// The time between two samples.
#[derive(Clone, Copy)]
struct Span {
    /// None: there was no sample before.
    secs: Option<f64>,
    /// Whole seconds that it fills.
    whole: usize,
}

impl Span {
    fn rate(self, now: [u64; 3], before: [u64; 3]) -> Rate {
        let Some(secs) = self.secs else { return Rate::default() };
        // One that is less was counted anew; its count since then is not known to be of this
        // second.
        let per_second = |n: usize| (now[n].saturating_sub(before[n]) as f64 / secs) as f32;
        Rate { packets: per_second(0), bytes: per_second(1), new_flows: per_second(2) }
    }
}

impl Rate {
    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.new_flows += other.new_flows;
    }
}

impl History {
    /// Takes a status of the daemon; returns the figures per second since the one before.
    pub(super) fn take(&mut self, status: &Status, at: Instant) -> Rates {
        let secs = self.taken.replace(at).map(|before| (at - before).as_secs_f64().max(0.001));
        // A sample that is late counts for the seconds in which there was none.
        let span = Span { secs, whole: secs.map_or(1.0, |secs| secs.round().max(1.0)) as usize };
        self.services.retain(|name, old| {
            status.services.get(name).is_some_and(|service| service.key == old.key)
        });
        let mut rates = Rates {
            passed: reasons(&mut self.passed, &status.passed, span),
            dropped: reasons(&mut self.dropped, &status.dropped, span),
            ..Rates::default()
        };
        for (name, service) in &status.services {
            if !self.services.contains_key(name) {
                let (rates, backends) = <_>::default();
                let new = OfService { key: service.key, rates, backends };
                self.services.insert(name.clone(), new);
            }
            let history = self.services.get_mut(name).expect("it was put there");
            let rate = history.take(service, span);
            rates.node.add(rate.total);
            rates.services.insert(name.clone(), rate);
        }
        self.node.push(span.whole, rates.node);
        rates
    }

    /// The names of the services.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// The figures of the services, or of one; with or without their backends.
    pub(super) fn services(
        &self,
        seconds: usize,
        name: Option<&str>,
        backends: bool,
    ) -> BTreeMap<String, ServiceSeries> {
        let these = self.services.iter().filter(|(its, _)| name.is_none_or(|name| name == *its));
        these.map(|(name, service)| (name.clone(), service.series(seconds, backends))).collect()
    }

    /// The figures of the node: to all backends, passed, dropped.
    pub(super) fn node(
        &self,
        seconds: usize,
    ) -> (Series, BTreeMap<String, Series>, BTreeMap<String, Series>) {
        let by_reason = |reasons: &BTreeMap<String, OfReason>| {
            let some = reasons.iter().filter(|(_, reason)| reason.count.packets > 0);
            some.map(|(name, reason)| (name.clone(), series(&reason.rates, seconds))).collect()
        };
        (series(&self.node, seconds), by_reason(&self.passed), by_reason(&self.dropped))
    }
}

fn reasons(
    kept: &mut BTreeMap<String, OfReason>,
    counts: &BTreeMap<String, Count>,
    span: Span,
) -> BTreeMap<String, Rate> {
    let mut rates = BTreeMap::new();
    // A reason without packets needs no history.
    for (reason, &count) in counts.iter().filter(|(_, count)| count.packets > 0) {
        let fresh = || OfReason { count, rates: Ring::default() };
        let history = kept.entry(reason.clone()).or_insert_with(fresh);
        let before = std::mem::replace(&mut history.count, count);
        let words = |count: Count| [count.packets, count.bytes, 0];
        let rate = span.rate(words(count), words(before));
        history.rates.push(span.whole, rate);
        rates.insert(reason.clone(), rate);
    }
    rates
}

impl OfService {
    fn take(&mut self, service: &Service, span: Span) -> ServiceRates {
        self.backends.retain(|address, _| service.backends.contains_key(address));
        let mut rates = ServiceRates::default();
        for (&address, backend) in &service.backends {
            let fresh = || OfBackend::new(backend);
            let rate = self.backends.entry(address).or_insert_with(fresh).take(backend, span);
            rates.total.add(rate);
            rates.backends.insert(address, rate);
        }
        self.rates.push(span.whole, rates.total);
        rates
    }

    fn series(&self, seconds: usize, backends: bool) -> ServiceSeries {
        let backends = self.backends.iter().filter(|_| backends);
        ServiceSeries {
            total: series(&self.rates, seconds),
            backends: backends.map(|(at, backend)| (*at, backend.series(seconds))).collect(),
        }
    }
}

impl OfBackend {
    fn new(backend: &Backend) -> Self {
        let (id, totals, failed) = (backend.id, totals(backend), failed(backend));
        Self { id, totals, failed, rates: Ring::default(), states: Ring::default() }
    }

    fn take(&mut self, backend: &Backend, span: Span) -> Rate {
        let totals = totals(backend);
        let before = std::mem::replace(&mut self.totals, totals);
        // With another id it has other counters.
        let same = std::mem::replace(&mut self.id, backend.id) == backend.id;
        let rate = span.rate(totals, if same { before } else { totals });
        let failures = failed(backend);
        let has_failed = failures > std::mem::replace(&mut self.failed, failures);
        let letter = backend.state().letter();
        let letter = if has_failed { letter.to_ascii_uppercase() } else { letter };
        self.rates.push(span.whole, rate);
        self.states.push(span.whole, letter);
        rate
    }

    fn series(&self, seconds: usize) -> BackendSeries {
        let states = self.states.last(seconds).map(char::from).collect();
        BackendSeries { total: series(&self.rates, seconds), states }
    }
}

fn totals(backend: &Backend) -> [u64; 3] {
    [backend.sent.packets, backend.sent.bytes, backend.new_flows]
}

fn failed(backend: &Backend) -> u64 {
    backend.check.as_ref().map_or(0, |check| check.counts.failed)
}

fn series(rates: &Ring<Rate>, seconds: usize) -> Series {
    let list = |of: fn(Rate) -> f32| rates.last(seconds).map(move |rate| of(rate).round() as u64);
    Series {
        packets: list(|rate| rate.packets).collect(),
        bytes: list(|rate| rate.bytes).collect(),
        new_flows: list(|rate| rate.new_flows).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use lb_model::desired::Admin;

    use super::{super::tests::status, *};

    const BACKEND: BackendAddress =
        BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11)));

    struct Story {
        history: History,
        now: Instant,
    }

    impl Story {
        fn new() -> Self {
            Self { history: History::default(), now: Instant::now() }
        }

        fn take(&mut self, millis: u64, status: &Status) -> Rate {
            self.now += Duration::from_millis(millis);
            self.history.take(status, self.now).node
        }

        fn packets(&self) -> Vec<u64> {
            self.history.node(KEPT).0.packets
        }
    }

    fn backend(status: &mut Status) -> &mut Backend {
        let service = status.services.get_mut("web").expect("web");
        service.backends.get_mut(&BACKEND).expect("its backend")
    }

    #[test]
    fn figures_are_per_second_of_the_time_that_really_passed() {
        let mut story = Story::new();
        story.take(0, &status(5_000));
        assert_eq!(story.take(1_000, &status(6_000)).packets, 1_000.0);
        assert_eq!(story.take(500, &status(7_000)).packets, 2_000.0);
        let rate = story.take(1_000, &status(7_100));
        assert_eq!((rate.bytes, rate.new_flows), (10_000.0, 10.0));
        assert_eq!(story.packets(), [0, 1_000, 2_000, 100], "the first is not known");
    }

    #[test]
    fn a_late_sample_speaks_for_the_seconds_without_one() {
        let mut story = Story::new();
        story.take(0, &status(0));
        story.take(3_020, &status(3_020));
        assert_eq!(story.packets(), [0, 1_000, 1_000, 1_000]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut story = Story::new();
        for second in 0..1_000 {
            story.take(1_000, &status(second));
        }
        story.take(3_600_000, &status(5_000));
        let service = &story.history.services["web"];
        let backend = &service.backends[&BACKEND];
        let capacities = [
            story.history.node.0.capacity(),
            service.rates.0.capacity(),
            backend.rates.0.capacity(),
            backend.states.0.capacity(),
        ];
        assert_eq!(capacities, [KEPT; 4]);
        assert_eq!(story.packets().len(), KEPT);
        assert_eq!(size_of::<Rate>(), 12);
    }

    #[test]
    fn counters_that_begin_anew_make_no_spike() {
        let mut story = Story::new();
        story.take(0, &status(1_000_000));
        assert_eq!(story.take(1_000, &status(10)).packets, 0.0, "counted anew");
        let mut other = status(1_000_000);
        backend(&mut other).id = 9;
        assert_eq!(story.take(1_000, &other).packets, 0.0, "another id has other counters");
        backend(&mut other).sent.packets += 7;
        assert_eq!(story.take(1_000, &other).packets, 7.0);
    }

    #[test]
    fn what_is_gone_leaves_nothing_and_what_is_of_the_same_name_is_another() {
        let mut story = Story::new();
        story.take(0, &status(10));
        story.take(1_000, &status(20));
        let mut moved = status(20);
        moved.services.get_mut("web").expect("web").key.port = 81;
        story.take(1_000, &moved);
        assert_eq!(story.history.services["web"].rates.0.len(), 1);
        moved.services.get_mut("web").expect("web").backends.clear();
        story.take(1_000, &moved);
        assert!(story.history.services["web"].backends.is_empty());
        story.take(1_000, &Status::default());
        assert!(story.history.services.is_empty());
    }

    #[test]
    fn states_are_letters_and_a_failed_check_is_a_capital() {
        let mut story = Story::new();
        let check = serde_json::json!({
            "kind": "tcp", "condition": "up", "assumed": false, "waiting": false,
            "held_secs": null, "suspect": false, "last": "ok", "last_secs": 0, "since": 0,
            "latency_us": 100, "counts": {"ok": 1, "failed": 0, "unknown": 0},
            "latency": {"buckets": vec![0; 14], "sum_us": 0},
            "went_up": 0, "went_down": 0, "against": 0, "rise": 2, "fall": 3,
        });
        let mut status = status(0);
        backend(&mut status).check = Some(serde_json::from_value(check).expect("a check"));
        story.take(0, &status);
        backend(&mut status).check.as_mut().expect("it has one").counts.failed = 1;
        story.take(1_000, &status);
        backend(&mut status).admin = Admin::Draining { deadline: None };
        story.take(1_000, &status);
        let found = story.history.services(KEPT, Some("web"), true);
        assert_eq!(found["web"].backends[&BACKEND].states, "uUd");
    }

    #[test]
    fn reasons_are_kept_when_they_have_happened() {
        let mut story = Story::new();
        let dropped = |packets| [("no_backend".to_owned(), Count { packets, bytes: 0 })].into();
        for packets in [0, 5, 25] {
            story.take(1_000, &Status { dropped: dropped(packets), ..Status::default() });
        }
        let (_, passed, dropped) = story.history.node(KEPT);
        assert_eq!(dropped["no_backend"].packets, [0, 20]);
        assert!(passed.is_empty());
    }
}

//! The rates per second: the difference of two samples of the counters.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use lb_api::status::{Backend, Count, Service, Status};
use lb_model::backend_address::BackendAddress;
use serde::Serialize;

/// Looks that are kept of each rate.
pub(super) const KEPT: usize = 120;
/// Two samples that are nearer to each other give no rate.
const NEAREST: Duration = Duration::from_millis(1);

/// The subject of a rate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Of {
    /// All services together.
    Node,
    /// A service.
    Service(String),
    /// A backend of a service.
    Backend(String, BackendAddress),
    /// Dropped packets, of all reasons.
    Drops,
    /// Dropped packets, of one reason.
    Reason(String),
}

/// The rates per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rate {
    pub(super) packets: f64,
    /// Bytes of IP.
    pub(super) bytes: f64,
    /// Packets that open a flow.
    pub(super) new_flows: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Total {
    sent: Count,
    new_flows: u64,
}

impl Total {
    fn add(&mut self, other: Self) {
        self.sent.packets += other.sent.packets;
        self.sent.bytes += other.sent.bytes;
        self.new_flows += other.new_flows;
    }

    /// The difference to an earlier sample. Counters that start anew give zero.
    const fn since(self, earlier: Self) -> Self {
        Self {
            sent: Count {
                packets: self.sent.packets.saturating_sub(earlier.sent.packets),
                bytes: self.sent.bytes.saturating_sub(earlier.sent.bytes),
            },
            new_flows: self.new_flows.saturating_sub(earlier.new_flows),
        }
    }

    fn per_second(self, seconds: f64) -> Rate {
        Rate {
            packets: self.sent.packets as f64 / seconds,
            bytes: self.sent.bytes as f64 / seconds,
            new_flows: self.new_flows as f64 / seconds,
        }
    }
}

impl From<&Backend> for Total {
    fn from(backend: &Backend) -> Self {
        Self { sent: backend.sent, new_flows: backend.new_flows }
    }
}

impl From<&Service> for Total {
    /// With what went to backends that it has no more: a sum of those that are left would fall when
    /// one goes, and hide what the others got.
    fn from(service: &Service) -> Self {
        Self { sent: service.totals.sent, new_flows: service.totals.new_flows }
    }
}

#[derive(Debug, Default)]
struct Series {
    total: Total,
    rate: Option<Rate>,
    packets: VecDeque<f64>,
}

/// The rates of everything in a status, and their recent values.
#[derive(Debug, Default)]
pub(super) struct Rates {
    at: Option<Instant>,
    series: BTreeMap<Of, Series>,
}

impl Rates {
    /// Takes a look.
    pub(super) fn look(&mut self, status: &Status, now: Instant) {
        let elapsed = self.at.map(|at| now.saturating_duration_since(at));
        if elapsed.is_some_and(|elapsed| elapsed < NEAREST) {
            return;
        }
        let mut old = std::mem::take(&mut self.series);
        let mut node = old.get(&Of::Node).map(|series| series.total).unwrap_or_default();
        for (of, total) in totals(status) {
            if let (Of::Service(_), Some(known)) = (&of, old.get(&of)) {
                node.add(total.since(known.total));
            }
            self.take(old.remove(&of), of, total, elapsed);
        }
        // A sum of increases, not of counters: a service that is removed takes its counters along.
        self.take(old.remove(&Of::Node), Of::Node, node, elapsed);
        self.at = Some(now);
    }

    /// Goes on with a series, or begins it.
    fn take(&mut self, known: Option<Series>, of: Of, total: Total, elapsed: Option<Duration>) {
        let is_known = known.is_some();
        let mut series = known.unwrap_or_default();
        if let Some(elapsed) = elapsed.filter(|_| is_known) {
            let rate = total.since(series.total).per_second(elapsed.as_secs_f64());
            if series.packets.len() == KEPT {
                series.packets.pop_front();
            }
            series.packets.push_back(rate.packets);
            series.rate = Some(rate);
        }
        series.total = total;
        self.series.insert(of, series);
    }

    /// Whether there were two looks.
    pub(super) fn is_known(&self) -> bool {
        self.series.get(&Of::Node).is_some_and(|series| series.rate.is_some())
    }

    /// A rate; none before the second look.
    pub(super) fn of(&self, of: &Of) -> Option<Rate> {
        self.series.get(of)?.rate
    }

    /// Packets per second at the last looks, the latest last.
    pub(super) fn packets(&self, of: &Of) -> impl DoubleEndedIterator<Item = f64> + '_ {
        self.series.get(of).into_iter().flat_map(|series| series.packets.iter().copied())
    }

    /// The reasons for which packets are dropped at this moment, the commonest first.
    pub(super) fn reasons(&self) -> Vec<(&str, f64)> {
        let reasons = self.series.iter().filter_map(|(of, series)| match of {
            Of::Reason(reason) => Some((reason.as_str(), series.rate?.packets)),
            _ => None,
        });
        let mut reasons: Vec<_> = reasons.filter(|(_, rate)| *rate > 0.0).collect();
        reasons.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
        reasons
    }
}

/// All counters of a status but the node's own.
fn totals(status: &Status) -> Vec<(Of, Total)> {
    let mut all = Vec::new();
    for (name, service) in &status.services {
        let backends = service.backends.iter();
        all.extend(backends.map(|(at, one)| (Of::Backend(name.clone(), *at), Total::from(one))));
        all.push((Of::Service(name.clone()), Total::from(service)));
    }
    let mut drops = Total::default();
    for (reason, &sent) in &status.dropped {
        let total = Total { sent, new_flows: 0 };
        drops.add(total);
        all.push((Of::Reason(reason.clone()), total));
    }
    all.push((Of::Drops, drops));
    all
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{node, send},
        *,
    };

    #[test]
    fn a_rate_is_the_difference_of_two_looks_by_the_time_between() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut status = node();
        rates.look(&status, start);
        assert!(!rates.is_known());
        assert_eq!(rates.of(&Of::Node), None);
        send(&mut status, "web", 11, 1_000);
        status.dropped.entry("no_backend".into()).or_default().packets += 4;
        rates.look(&status, start + Duration::from_secs(2));
        let expected = Rate { packets: 500.0, bytes: 50_000.0, new_flows: 50.0 };
        let web = || "web".to_owned();
        let at = BackendAddress::from([10, 0, 0, 11]);
        for of in [Of::Backend(web(), at), Of::Service(web()), Of::Node] {
            assert_eq!(rates.of(&of), Some(expected), "{of:?}");
        }
        assert_eq!(rates.of(&Of::Service("dns".into())), Some(Rate::default()));
        assert_eq!(rates.reasons(), [("no_backend", 2.0)]);
        assert!(rates.is_known());
    }

    #[test]
    fn what_is_removed_hides_nothing_of_what_the_others_get() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut status = node();
        rates.look(&status, start);
        send(&mut status, "web", 11, 100);
        let web = status.services.get_mut("web").expect("it is there");
        web.backends.remove(&BackendAddress::from([10, 0, 0, 12])).expect("it had the most");
        rates.look(&status, start + Duration::from_secs(1));
        let packets = |rates: &Rates, of: &Of| rates.of(of).map(|rate| rate.packets);
        for of in [Of::Service("web".into()), Of::Node] {
            assert_eq!(packets(&rates, &of), Some(100.0), "{of:?}");
        }
        status.services.remove("web");
        send(&mut status, "dns", 11, 7);
        rates.look(&status, start + Duration::from_secs(2));
        assert_eq!(packets(&rates, &Of::Node), Some(7.0));
    }

    #[test]
    fn counters_that_start_anew_give_no_rate_below_zero() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut status = node();
        rates.look(&status, start);
        for service in status.services.values_mut() {
            service.totals.sent = Count::default();
            service.backends.values_mut().for_each(|backend| backend.sent = Count::default());
        }
        rates.look(&status, start + Duration::from_secs(1));
        for of in [Of::Node, Of::Backend("web".into(), [10, 0, 0, 11].into())] {
            assert_eq!(rates.of(&of).map(|rate| rate.packets), Some(0.0), "{of:?}");
        }
    }

    #[test]
    fn the_past_is_bounded_and_what_is_gone_is_forgotten() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut status = node();
        for second in 0..500 {
            rates.look(&status, start + Duration::from_secs(second));
        }
        assert_eq!(rates.packets(&Of::Node).count(), KEPT);
        status.services.clear();
        rates.look(&status, start + Duration::from_secs(500));
        assert_eq!(rates.series.len(), 2 + status.dropped.len());
    }
}

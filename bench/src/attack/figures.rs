//! What is counted of the traffic beside a flood.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kit::{
    arrivals::Arrival,
    status::{Count, Status},
    udp::Tally,
};
use serde::Serialize;

/// Packets by what became of them.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Packets {
    /// Sent to a backend.
    pub forwarded: u64,
    /// Left to the node's own stack, by reason.
    pub passed: BTreeMap<String, u64>,
    /// Dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// Requests, each on a connection of its own.
#[derive(Debug, PartialEq, Serialize)]
pub struct Requests {
    /// How many.
    pub requests: usize,
    /// How many of them failed.
    pub failed: usize,
    /// The same by what happened.
    pub failures: BTreeMap<String, usize>,
    /// Median of those that did not fail.
    pub median_ms: f64,
    /// Their 99th percentile.
    pub p99_ms: f64,
    /// The longest.
    pub longest_ms: f64,
}

/// Datagrams of clients, from before the flood until after it.
#[derive(Debug, Serialize)]
pub struct Datagrams {
    /// How many were sent.
    pub sent: u64,
    /// How many were not answered.
    pub lost: usize,
    /// Flows of them.
    pub flows: usize,
    /// Flows that were answered by more than one host.
    pub flows_moved: usize,
}

/// Entries of the clients' in a table.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Before the flood.
    pub before: usize,
    /// How many of them were not there after it, or named another backend.
    pub lost: usize,
}

/// The table of pins.
#[derive(Debug, Serialize)]
pub struct Pins {
    /// Those of the clients' open connections.
    pub clients: Kept,
    /// Entries before the flood, whoever's.
    pub used_before: u64,
    /// Entries after it.
    pub used_after: u64,
    /// Room.
    pub capacity: u64,
}

impl Packets {
    /// What came about from one moment to another.
    pub fn between(before: &Status, after: &Status) -> Self {
        let sent = |status: &Status| -> u64 {
            let services = status.services.values();
            services.flat_map(|one| one.backends.values()).map(|one| one.sent.packets).sum()
        };
        let since = |before: &BTreeMap<String, Count>, after: &BTreeMap<_, _>| {
            let packets = |(reason, count): (&String, &Count)| {
                let had = before.get(reason).map_or(0, |count| count.packets);
                (reason.clone(), count.packets - had)
            };
            after.iter().map(packets).filter(|(_, packets)| *packets > 0).collect()
        };
        Self {
            forwarded: sent(after) - sent(before),
            passed: since(&before.passed, &after.passed),
            dropped: since(&before.dropped, &after.dropped),
        }
    }
}

impl Requests {
    /// These.
    pub fn of(arrivals: &[&Arrival]) -> Self {
        let mut failures = BTreeMap::new();
        for failure in arrivals.iter().filter_map(|arrival| arrival.end.as_ref().err()) {
            *failures.entry(failure.word().to_owned()).or_default() += 1;
        }
        let ended = arrivals.iter().filter(|arrival| arrival.end.is_ok());
        let mut took: Vec<_> = ended.map(|arrival| arrival.took).collect();
        took.sort_unstable();
        let at = |part: f64| {
            let place = ((took.len() as f64 * part).ceil() as usize).saturating_sub(1);
            took.get(place).copied().map_or(0.0, millis)
        };
        Self {
            requests: arrivals.len(),
            failed: arrivals.len() - took.len(),
            failures,
            median_ms: at(0.5),
            p99_ms: at(0.99),
            longest_ms: at(1.0),
        }
    }
}

impl Datagrams {
    /// Those of a probe with so many flows.
    pub fn of(tally: &Tally, flows: usize) -> Self {
        let (lost, flows_moved) = (tally.lost.len(), tally.moved.len());
        Self { sent: tally.sent, lost, flows, flows_moved }
    }
}

impl Kept {
    /// Of flows with their backends.
    pub fn of(before: &BTreeSet<(u16, String)>, after: &BTreeSet<(u16, String)>) -> Self {
        Self { before: before.len(), lost: before.difference(after).count() }
    }
}

/// In milliseconds, to the hundredth.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use kit::arrivals::Failure;

    use super::*;

    fn arrival(took_ms: u64, end: Result<String, Failure>) -> Arrival {
        let took = Duration::from_millis(took_ms);
        Arrival { at: Instant::now(), late: Duration::ZERO, took, end }
    }

    #[test]
    fn percentiles_are_those_of_what_did_not_fail() {
        let mut arrivals: Vec<_> = (1..=200).map(|ms| arrival(ms, Ok("web1".into()))).collect();
        arrivals.push(arrival(5_000, Err(Failure::TimedOut)));
        let requests = Requests::of(&arrivals.iter().collect::<Vec<_>>());
        assert_eq!((requests.requests, requests.failed), (201, 1));
        assert_eq!((requests.median_ms, requests.p99_ms), (100.0, 198.0));
        assert_eq!(requests.longest_ms, 200.0);
        assert_eq!(requests.failures["timed out"], 1);
    }

    #[test]
    fn nothing_has_no_percentiles() {
        let requests = Requests::of(&[]);
        assert_eq!((requests.requests, requests.median_ms), (0, 0.0));
    }

    #[test]
    fn a_pin_is_lost_that_is_gone_or_names_another() {
        let flows = |list: &[(u16, &str)]| -> BTreeSet<_> {
            list.iter().map(|&(port, backend)| (port, backend.to_owned())).collect()
        };
        let before = flows(&[(1, "a"), (2, "b"), (3, "c")]);
        let after = flows(&[(1, "a"), (2, "c"), (4, "d")]);
        assert_eq!(Kept::of(&before, &after), Kept { before: 3, lost: 2 });
    }
}

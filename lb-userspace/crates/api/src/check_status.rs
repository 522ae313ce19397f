//! The status of a backend's checks, for `lbctl` and the metrics.

use std::time::Duration;

use lb_model::seen::Condition;
use serde::{Deserialize, Serialize};

/// The status of one backend's checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// The check's name: `tcp`, `http`, ...
    pub kind: String,
    /// The checks' result.
    pub condition: Condition,
    /// Whether that is only assumed, since no answer has come yet.
    pub assumed: bool,
    /// Whether it can't be probed at the moment, since its next hop is not known.
    pub waiting: bool,
    /// When it is held for going down too often: seconds until it is let go.
    pub held_secs: Option<u64>,
    /// Whether it is silent by its clients' packets, and no check has decided yet.
    pub suspect: bool,
    /// The last outcome: `ok`, or why not.
    pub last: Option<String>,
    /// Seconds since that outcome.
    pub last_secs: Option<u64>,
    /// Since when the condition is as it is, in seconds since 1970.
    pub since: u64,
    /// How long the last answer took, in microseconds.
    pub latency_us: Option<u64>,
    /// The probes so far, by outcome.
    pub counts: Counts,
    /// How long good answers took.
    pub latency: Histogram,
    /// How often it came up.
    pub went_up: u64,
    /// How often it went down.
    pub went_down: u64,
    /// How often it was silent by its clients' packets. Most suspicions end with the next answer.
    #[serde(default)]
    pub suspicions: u64,
    /// Answers in a row against the condition.
    pub against: u8,
    /// Questions in a row without an answer of any kind while a backend that is down keeps its flows:
    /// `fall` of them move these.
    #[serde(default)]
    pub silent: u8,
    /// Good answers in a row that bring it up.
    pub rise: u8,
    /// Bad answers in a row that bring it down.
    pub fall: u8,
}

/// Questions by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// It answered as it should.
    pub ok: u64,
    /// It did not.
    pub failed: u64,
    /// The probe couldn't be sent.
    pub unknown: u64,
}

/// Upper bounds of a [`Histogram`]'s buckets but the last, in microseconds.
pub const BOUNDS_US: [u64; 13] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000,
];

/// Durations, counted by size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many were at most as long as each of [`BOUNDS_US`] and longer than the one before it;
    /// the last bucket has all that were longer.
    pub buckets: [u64; BOUNDS_US.len() + 1],
    /// Their sum in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|&bound| bound < micros);
        self.buckets[bucket] += 1;
        self.sum_us = self.sum_us.saturating_add(micros);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The bound that so many of 1,000 did not exceed, in microseconds; none: they exceeded all, or
    /// nothing was counted.
    #[must_use]
    pub fn quantile_us(&self, permille: u64) -> Option<u64> {
        let wanted = (self.count() * permille).div_ceil(1_000).max(1);
        let mut seen = 0;
        let reaches = |bucket: &u64| {
            seen += bucket;
            seen >= wanted
        };
        self.buckets.iter().position(reaches).and_then(|at| BOUNDS_US.get(at)).copied()
    }
}

/// The prober's own status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Backends that are probed.
    pub backends: usize,
    /// Questions so far, by outcome, those of backends that are gone included.
    pub counts: Counts,
    /// Questions that wait for their answer.
    pub in_flight: usize,
    /// How many may wait at once.
    pub limit: usize,
    /// How much later than they were due probes were sent.
    pub lateness: Histogram,
    /// How often the process was found not to have run for a while.
    pub pauses: u64,
    /// Why probes can't be sent at present.
    pub troubles: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_in_the_bucket_of_their_bound() {
        let mut histogram = Histogram::default();
        for micros in [0, 100, 101, 1_000_000, 1_000_001] {
            histogram.add(Duration::from_micros(micros));
        }
        assert_eq!(histogram.buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((histogram.count(), histogram.sum_us), (5, 2_000_202));
    }

    #[test]
    fn quantile_is_the_bound_that_so_many_did_not_exceed() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_us(990), None);
        (0..99).for_each(|_| histogram.add(Duration::from_micros(90)));
        histogram.add(Duration::from_secs(2));
        assert_eq!(histogram.quantile_us(500), Some(100));
        assert_eq!(histogram.quantile_us(990), Some(100));
        assert_eq!(histogram.quantile_us(991), None);
    }
}

//! The flow records that peers have not acknowledged.

use std::{collections::VecDeque, time::Duration};

/// Exports that peers have not acknowledged yet.
///
/// As long as one is older than the lease, no pin is made, and no slot settles before peers have acknowledged it.
/// So a node that dies loses no more than the work of that time, however late peers are. A peer that stays
/// behind for long is not waited for: otherwise drains would never end.
#[derive(Debug, Default)]
pub(super) struct Unacked {
    /// Their numbers, and when they were sent, on CLOCK_MONOTONIC.
    exports: VecDeque<(u64, Duration)>,
    last: u64,
    acknowledged: u64,
}

impl Unacked {
    /// How long peers are waited for.
    const PATIENCE: Duration = Duration::from_secs(2);

    /// An export with this number was sent.
    pub(super) fn sent(&mut self, number: u64, now: Duration) {
        self.last = number;
        self.exports.push_back((number, now));
    }

    /// Peers have acknowledged all exports up to a number; the last one of which no acknowledgement is awaited any more.
    pub(super) fn acknowledged(&mut self, acknowledged: u64, now: Duration) -> u64 {
        let over = |(number, sent_at): &mut (u64, Duration)| {
            *number <= acknowledged || now.saturating_sub(*sent_at) > Self::PATIENCE
        };
        while let Some((number, _)) = self.exports.pop_front_if(over) {
            self.acknowledged = number;
        }
        self.acknowledged
    }

    /// When the first of them was sent.
    pub(super) fn since(&self) -> Option<Duration> {
        self.exports.front().map(|(_, sent_at)| *sent_at)
    }

    /// The number of the last ones.
    pub(super) const fn last(&self) -> u64 {
        self.last
    }
}

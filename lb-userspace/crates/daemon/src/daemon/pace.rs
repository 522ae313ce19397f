//! How often the maps are written: a change by itself at once, many in a row together.

use std::time::{Duration, Instant};

/// The least time between two writes.
const LEAST: Duration = Duration::from_millis(10);
/// The least time between two writes, as a multiple of the last one's duration: at most a quarter
/// of the daemon's time is spent on writing, unless [`MOST`] is less.
const TIMES: u32 = 3;
/// The most time between two writes: no request waits longer than this for the changes of others.
const MOST: Duration = Duration::from_millis(500);

/// When the next write may be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    not_before: Option<Instant>,
}

impl Pace {
    /// Something was written from one moment to another.
    pub(super) fn wrote(&mut self, started: Instant, ended: Instant) {
        let cost = ended.saturating_duration_since(started);
        self.not_before = ended.checked_add(cost.saturating_mul(TIMES).clamp(LEAST, MOST));
    }

    /// Until when inputs wait for more of them; none: they do not.
    pub(super) fn rest(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_is_written_at_once_and_those_after_it_together() {
        let start = Instant::now();
        let ms = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::default();
        assert_eq!(pace.rest(start), None);
        pace.wrote(start, ms(1));
        assert_eq!(pace.rest(ms(1)), Some(ms(11)), "at least ten milliseconds");
        assert_eq!(pace.rest(ms(11)), None);
        pace.wrote(ms(20), ms(60));
        assert_eq!(pace.rest(ms(60)), Some(ms(180)), "three times what it took");
        pace.wrote(ms(0), ms(900));
        assert_eq!(pace.rest(ms(900)), Some(ms(1_400)), "not for ever");
    }
}

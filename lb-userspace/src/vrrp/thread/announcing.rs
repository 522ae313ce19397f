//! When the addresses of an Active router are announced, and when it was last said.

use std::time::{Duration, Instant};

use crate::vrrp::Announce;

/// When a router's addresses are announced next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    next: Option<Instant>,
    delayed: bool,
}

impl Schedule {
    /// They are announced now: once more after a while, and then again and again.
    pub fn begin(&mut self, announce: &Announce, now: Instant) {
        self.delayed = !announce.delay.is_zero();
        self.next = after(if self.delayed { announce.delay } else { announce.refresh }, now);
    }

    /// They are this node's no more.
    pub const fn end(&mut self) {
        self.next = None;
    }

    /// When the next is due.
    #[must_use]
    pub const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether they are to be announced now, and how often; the next time is set.
    pub fn due(&mut self, announce: &Announce, now: Instant) -> Option<u8> {
        if self.next? > now {
            return None;
        }
        let times = if self.delayed { announce.repeat } else { 1 };
        self.delayed = false;
        self.next = after(announce.refresh, now);
        Some(times.max(1))
    }
}

fn after(pause: Duration, now: Instant) -> Option<Instant> {
    (!pause.is_zero()).then(|| now + pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn after_the_delay_comes_the_refresh() {
        let announce = Announce { repeat: 5, delay: seconds(5), refresh: seconds(60) };
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.begin(&announce, start);
        assert_eq!(schedule.due(&announce, start + seconds(4)), None);
        assert_eq!(schedule.due(&announce, start + seconds(5)), Some(5));
        assert_eq!(schedule.due(&announce, start + seconds(64)), None);
        assert_eq!(schedule.due(&announce, start + seconds(65)), Some(1));
        assert_eq!(schedule.next(), Some(start + seconds(125)));
        schedule.end();
        assert_eq!(schedule.due(&announce, start + seconds(1000)), None);
    }

    #[test]
    fn zero_is_never() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        let announce = Announce { repeat: 1, delay: Duration::ZERO, refresh: Duration::ZERO };
        schedule.begin(&announce, start);
        assert_eq!(schedule.next(), None);
        let announce = Announce { refresh: seconds(60), ..announce };
        schedule.begin(&announce, start);
        assert_eq!(schedule.next(), Some(start + seconds(60)));
    }
}

//! How many bytes may be sent: a token bucket.

use std::time::{Duration, Instant};

/// Most that may be sent at once: what a receiver's socket has room for many times.
const BURST: f64 = 256.0 * 1024.0;
/// How long a bucket takes to fill, unless [`BURST`] is less.
const FILLS_IN: f64 = 0.01;

/// A bucket of bytes. What can't wait may take more than there is; the rest waits for it.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Pace {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        let burst = (per_second * FILLS_IN).clamp(super::wire::DATAGRAM as f64, BURST);
        Self { per_second, burst, tokens: burst, filled: now }
    }

    pub(super) fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.filled = now;
    }

    pub(super) fn take(&mut self, bytes: usize) {
        // A debt of more than a second would hold up what is to be sent for too long.
        self.tokens = (self.tokens - bytes as f64).max(-self.per_second);
    }

    pub(super) fn is_ready(&self) -> bool {
        self.tokens > 0.0
    }

    /// When something may be sent again: a little later than at the first byte, so that several
    /// packets go at once.
    pub(super) fn ready_at(&self) -> Instant {
        let short = (self.burst / 4.0).min(self.per_second / 1000.0).max(1.0) - self.tokens;
        self.filled + Duration::from_secs_f64((short / self.per_second).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_sent_than_the_rate_and_one_burst() {
        let start = Instant::now();
        let mut pace = Pace::new(1_000_000, start);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(2) {
            pace.fill(now);
            while pace.is_ready() {
                pace.take(1200);
                sent += 1200;
            }
            assert!(pace.ready_at() > now);
            now = pace.ready_at();
        }
        assert!((2_000_000..2_000_000 + 10_000 + 2 * 1200).contains(&sent), "{sent}");
    }
}

//! The penalty of a backend that goes up and down (RFC 2439): how long it is not trusted when it
//! is up again.

use std::time::{Duration, Instant};

/// What one going down costs.
const COST: f64 = 1.0;
/// Above this penalty a backend is held when it comes up (RFC 2439, 4.2: the cutoff threshold).
const HOLD_ABOVE: f64 = 3.0;
/// Below this penalty it is let go (the reuse threshold).
const RELEASE_BELOW: f64 = 1.5;
/// How many half-lives a backend is held at most; so much penalty is never exceeded (4.2: `T-hold`).
const LONGEST: i32 = 5;

/// The penalty of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Damping {
    /// Zero: nothing is damped.
    half_life: Duration,
    /// What the penalty was when it was last added to, and when that was.
    last: Option<(f64, Instant)>,
    /// Until when the backend is held, if it ever was to be.
    until: Option<Instant>,
    /// What they were before it went down the last time.
    before: Option<Before>,
}

/// `last` and `until` of an earlier moment.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Before {
    last: Option<(f64, Instant)>,
    until: Option<Instant>,
}

impl Damping {
    /// No penalty, of which half is forgiven in `half_life`; zero: nothing is ever damped.
    #[must_use]
    pub const fn new(half_life: Duration) -> Self {
        Self { half_life, last: None, until: None, before: None }
    }

    #[must_use]
    pub(crate) fn penalty(&self, now: Instant) -> f64 {
        let Some((penalty, at)) = self.last else { return 0.0 };
        if self.half_life.is_zero() {
            return 0.0;
        }
        let passed = now.saturating_duration_since(at);
        penalty * (-passed.as_secs_f64() / self.half_life.as_secs_f64()).exp2()
    }

    /// The backend went down.
    pub(crate) fn went_down(&mut self, now: Instant) {
        if self.half_life.is_zero() {
            return;
        }
        self.before = Some(Before { last: self.last, until: self.until });
        let most = RELEASE_BELOW * f64::from(LONGEST).exp2();
        let penalty = (self.penalty(now) + COST).min(most);
        self.last = Some((penalty, now));
        // Once held it stays so until the penalty is low again, not only until it is below the
        // threshold that began it: else it would come and go at that one.
        if penalty > HOLD_ABOVE || self.holds(now) {
            self.hold(penalty, now);
        }
    }

    /// The last time that the backend went down was not its own doing, and costs nothing.
    pub(crate) fn forgive(&mut self) {
        if let Some(Before { last, until }) = self.before.take() {
            self.last = last;
            self.until = until;
        }
    }

    /// Gives another half-life; the penalty of this moment stays.
    pub(crate) fn set_half_life(&mut self, half_life: Duration, now: Instant) {
        if half_life == self.half_life {
            return;
        }
        let (penalty, held) = (self.penalty(now), self.holds(now));
        *self = Self::new(half_life);
        if half_life.is_zero() || penalty == 0.0 {
            return;
        }
        self.last = Some((penalty, now));
        if held {
            self.hold(penalty, now);
        }
    }

    fn hold(&mut self, penalty: f64, now: Instant) {
        let half_lives = (penalty / RELEASE_BELOW).log2().max(0.0);
        self.until = Some(now + self.half_life.mul_f64(half_lives));
    }

    /// Whether the backend is not trusted at `now`, if it is up.
    #[must_use]
    pub(crate) fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Until when the backend is held, or was the last time.
    #[must_use]
    pub(crate) const fn until(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF_LIFE: Duration = Duration::from_secs(60);

    fn after(downs: u32, apart: Duration) -> (Damping, Instant) {
        let mut now = Instant::now();
        let mut damping = Damping::new(HALF_LIFE);
        for n in 0..downs {
            now += if n == 0 { Duration::ZERO } else { apart };
            damping.went_down(now);
        }
        (damping, now)
    }

    #[test]
    fn penalty_halves_in_each_half_life() {
        let (damping, now) = after(2, Duration::ZERO);
        for (half_lives, penalty) in [(0, 2.0), (1, 1.0), (2, 0.5), (3, 0.25)] {
            let is = damping.penalty(now + HALF_LIFE * half_lives);
            assert!((is - penalty).abs() < 1e-9, "after {half_lives}: {is}");
        }
    }

    #[test]
    fn three_downs_are_forgiven_and_the_fourth_holds() {
        let (damping, now) = after(3, Duration::from_secs(1));
        assert!(!damping.holds(now));
        let (damping, now) = after(4, Duration::from_secs(1));
        assert!(damping.holds(now));
    }

    #[test]
    fn what_is_forgiven_costs_nothing_and_only_once() {
        let (before, now) = after(3, Duration::from_secs(1));
        let mut damping = before;
        damping.went_down(now);
        assert!(damping.holds(now));
        damping.forgive();
        assert!(!damping.holds(now));
        assert_eq!(damping.penalty(now), before.penalty(now));
        damping.forgive();
        assert_eq!(damping.penalty(now), before.penalty(now));
    }

    #[test]
    fn slow_flapping_is_not_held() {
        // 1 + 1/2 + 1/4 + ... < 2.
        let (damping, now) = after(100, HALF_LIFE);
        assert!(!damping.holds(now));
        assert!(damping.penalty(now) <= 2.0);
    }

    #[test]
    fn held_backend_is_released_when_its_penalty_is_below_half_of_the_threshold() {
        let (damping, _) = after(4, Duration::from_secs(1));
        let release = damping.until().expect("it is held");
        assert!((damping.penalty(release) - RELEASE_BELOW).abs() < 1e-6);
        assert!(damping.holds(release - Duration::from_nanos(1)));
        assert!(!damping.holds(release));
    }

    #[test]
    fn nothing_is_held_for_more_than_five_half_lives() {
        let (damping, now) = after(10_000, Duration::from_millis(1));
        let release = damping.until().expect("it is held");
        let left = release - now;
        assert!(left <= HALF_LIFE * 5, "{left:?}");
        assert!(left > HALF_LIFE * 49 / 10, "{left:?}");
    }

    #[test]
    fn going_down_while_held_prolongs_it_below_the_threshold_too() {
        let (mut damping, now) = after(4, Duration::ZERO);
        let later = now + HALF_LIFE.mul_f64(1.3);
        let first = damping.until().expect("it is held");
        damping.went_down(later);
        assert!(damping.penalty(later) < HOLD_ABOVE, "it would not begin to be held");
        assert!(damping.until().expect("it is held") > first);
    }

    #[test]
    fn half_life_of_zero_switches_it_off() {
        let now = Instant::now();
        let mut damping = Damping::new(Duration::ZERO);
        (0..100).for_each(|_| damping.went_down(now));
        assert!(!damping.holds(now));
        let (mut damping, now) = after(10, Duration::ZERO);
        damping.set_half_life(Duration::ZERO, now);
        assert!(!damping.holds(now));
        damping.set_half_life(HALF_LIFE, now);
        assert!(!damping.holds(now), "what was forgiven stays forgiven");
    }

    #[test]
    fn another_half_life_keeps_the_penalty() {
        let (mut damping, now) = after(8, Duration::ZERO);
        damping.set_half_life(HALF_LIFE * 2, now);
        assert!((damping.penalty(now) - 8.0).abs() < 1e-9);
        let release = damping.until().expect("it is still held");
        assert!((damping.penalty(release) - RELEASE_BELOW).abs() < 1e-6);
    }
}

//! The timers' lengths (RFC 9568, 6.1; RFC 3768, 6.1).
//!
//! An interval that a router has learnt from the Active router is kept over a fault.

use std::time::Duration;

use lb_model::router::Version;

use super::VirtualRouter;
use crate::Yield;

/// The shortest interval: an advertisement with less does not make others hurry.
const SHORTEST: Duration = Duration::from_millis(10);
/// What a router that gives way waits at most for another one.
const LONGEST_YIELD: Duration = Duration::from_secs(5);

/// The interval of an Active router that has not advertised yet: that of RFC 9568 (6.1) and of keepalived
/// where their operators give none. Version 2 knows no other than the own one.
const INITIAL_INTERVAL: Duration = Duration::from_secs(1);

impl VirtualRouter {
    /// Skew_Time: the higher the priority, the sooner.
    pub(super) fn skew(&self, interval: Duration) -> Duration {
        let base = match self.settings.version {
            // RFC 3768: "Skew_Time: ( (256 - Priority) / 256 )", in seconds.
            Version::V2 => Duration::from_secs(1),
            Version::V3 => interval,
        };
        base * (256 - u32::from(self.priority())) / 256
    }

    /// Active_Down_Interval, with this interval of the Active router.
    pub(super) fn down(&self, interval: Duration) -> Duration {
        3 * interval + self.skew(interval)
    }

    /// Active_Down_Interval before an Active router has advertised. RFC 9568, 6.4.1, has the own interval for
    /// that: a router with a short one would miss an Active router with a longer one, and take over
    /// whatever the priorities and preemption are.
    pub(super) fn initial_down(&self) -> Duration {
        let initial = match self.settings.version {
            Version::V2 => Duration::ZERO,
            Version::V3 => INITIAL_INTERVAL,
        };
        self.down(self.settings.interval.max(initial))
    }

    /// How long it listens where the RFC would wait Active_Down_Interval, though it or the others
    /// need no time to notice anything: an Active router advertises within an interval.
    pub(super) fn short_listening(&self) -> Duration {
        self.active_interval * 5 / 4
    }

    /// The longest that it goes on being Active while it gives way: what the slowest router with the
    /// same interval needs to notice that none is, by its timer alone.
    #[must_use]
    pub(crate) fn yield_limit(&self) -> Duration {
        (4 * self.settings.interval).min(LONGEST_YIELD)
    }

    /// The same, by how it gives way. A router that was requested makes sure first that it has all flows; this one
    /// goes on as before meanwhile, so that waiting costs nothing.
    pub(super) fn limit_of(&self, how: Yield) -> Duration {
        match how {
            Yield::Requested | Yield::Outranked => LONGEST_YIELD,
            Yield::Advertised => self.yield_limit(),
        }
    }

    /// Learns Active_Adver_Interval (RFC 9568, 6.4.2).
    pub(super) fn learn(&mut self, interval: Duration) {
        self.learnt = true;
        self.active_interval = match self.settings.version {
            Version::V3 => interval.max(SHORTEST),
            // Version 2 knows no other than the own one. That of a peer which is taken in spite of it
            // counts if it is longer, lest there are two.
            Version::V2 => interval.max(self.settings.interval),
        };
    }
}

//! Jumps of the time of day, by which drains have their deadlines.
//!
//! A clock that is set must neither end a drain early nor keep it for a year: when the time of day
//! moves otherwise than the time since boot does, deadlines move with it.

use std::time::{Duration, SystemTime};

use lb_model::desired::{Admin, Desired};

/// By how much the clocks may come apart between two looks: slewing and small steps stay below.
const TOLERANCE: Duration = Duration::from_secs(2);

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// The time of day.
    pub wall: SystemTime,
    /// CLOCK_BOOTTIME, which goes on in suspend and is never set.
    pub boot: Duration,
}

impl Clocks {
    /// The system's clocks.
    #[must_use]
    pub fn read() -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for the write, and the call has no other effect.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
        assert_eq!(result, 0, "CLOCK_BOOTTIME always exists");
        let boot = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
        Self { wall: SystemTime::now(), boot }
    }
}

/// By how much the time of day was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Jump {
    /// It is later than it would be.
    Forward(Duration),
    /// It is earlier.
    Back(Duration),
}

impl Jump {
    /// How the clock came from one time to another in `passed`; none: as it should.
    #[must_use]
    pub(crate) fn between(before: SystemTime, after: SystemTime, passed: Duration) -> Option<Self> {
        // A time that can't be represented is beyond all deadlines.
        let expected = before.checked_add(passed)?;
        let jump = match after.duration_since(expected) {
            Ok(ahead) => Self::Forward(ahead),
            Err(behind) => Self::Back(behind.duration()),
        };
        let (Self::Forward(by) | Self::Back(by)) = jump;
        (by > TOLERANCE).then_some(jump)
    }

    /// The time that is as far away after the jump as this one was before it.
    #[must_use]
    pub(crate) fn moved(self, time: SystemTime) -> SystemTime {
        match self {
            Self::Forward(by) => time.checked_add(by).unwrap_or(time),
            Self::Back(by) => time.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }

    /// Moves all deadlines; how many there are.
    pub(crate) fn shift(self, desired: &mut Desired) -> usize {
        let backends = desired.services.values_mut().flat_map(|s| s.backends.values_mut());
        let mut shifted = 0;
        for backend in backends {
            if let Admin::Draining { deadline: Some(deadline) }
            | Admin::Removing { deadline: Some(deadline) } = &mut backend.admin
            {
                *deadline = self.moved(*deadline);
                shifted += 1;
            }
        }
        shifted
    }
}

/// Watches the clocks.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    last: Clocks,
}

impl Watch {
    /// Begins at a moment.
    #[must_use]
    pub const fn new(now: Clocks) -> Self {
        Self { last: now }
    }

    /// Whether the time of day was set since the last look.
    pub(crate) fn look(&mut self, now: Clocks) -> Option<Jump> {
        let passed = now.boot.saturating_sub(self.last.boot);
        let jump = Jump::between(self.last.wall, now.wall, passed);
        self.last = now;
        jump
    }
}

#[cfg(test)]
mod tests {
    use lb_model::backend_address::BackendAddress;
    use std::net::IpAddr;

    use lb_model::desired::{Backend, Mode, Service};

    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_clock_that_is_set_is_seen_and_one_that_is_slewed_is_not() {
        let mut watch = Watch::new(Clocks { wall: at(1_000), boot: secs(10) });
        for (wall, boot, jump) in [
            (1_001, 11, None),
            // A second of a leap, an hour of suspend.
            (1_003, 12, None),
            (4_603, 3_612, None),
            (8_204, 3_613, Some(Jump::Forward(secs(3_600)))),
            // Once only.
            (8_205, 3_614, None),
            (6, 3_615, Some(Jump::Back(secs(8_200)))),
            (7, 3_616, None),
        ] {
            let now = Clocks { wall: at(wall), boot: secs(boot) };
            assert_eq!(watch.look(now), jump, "{wall} {boot}");
        }
    }

    #[test]
    fn deadlines_stay_as_far_away_as_they_were() {
        let mut spec = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr);
        let states = [
            Admin::Draining { deadline: Some(at(1_600)) },
            Admin::Removing { deadline: Some(at(1_060)) },
            Admin::Draining { deadline: None },
            Admin::Enabled,
        ];
        for (last, admin) in (1..).zip(states) {
            let backend = Backend { admin, ..Backend::default() };
            spec.backends.insert(BackendAddress::from([10, 0, 0, last]), backend);
        }
        let before = Desired { services: [("web".into(), spec)].into() };
        let states = |desired: &Desired| -> Vec<Admin> {
            desired.services["web"].backends.values().map(|backend| backend.admin).collect()
        };
        let year = secs(365 * 86_400);
        let mut desired = before.clone();
        assert_eq!(Jump::Forward(year).shift(&mut desired), 2);
        assert_eq!(states(&desired)[0], Admin::Draining { deadline: Some(at(1_600) + year) });
        assert_eq!(states(&desired)[1], Admin::Removing { deadline: Some(at(1_060) + year) });
        assert_eq!(states(&desired)[2..], states(&before)[2..]);
        assert_eq!(Jump::Back(year).shift(&mut desired), 2);
        assert_eq!(desired, before);
    }
}

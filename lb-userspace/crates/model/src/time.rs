//! The clocks of the program and of its operator.

use std::time::{Duration, SystemTime};

/// The time, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_MONOTONIC, the program's clock.
    pub mono: Duration,
    /// The time of day, for the operator's deadlines.
    pub wall: SystemTime,
}

impl Now {
    /// The time by the system's clocks.
    #[must_use]
    pub fn read() -> Self {
        Self { mono: monotonic(), wall: SystemTime::now() }
    }

    /// Whole seconds of CLOCK_MONOTONIC, as the program counts them.
    #[must_use]
    pub const fn mono_secs(self) -> u32 {
        self.mono.as_secs() as u32
    }
}

/// CLOCK_MONOTONIC, the program's clock.
#[must_use]
pub fn monotonic() -> Duration {
    read_clock(libc::CLOCK_MONOTONIC)
}

/// The same in nanoseconds as the program reads it, which is some milliseconds behind.
#[must_use]
pub fn coarse_nanos() -> u64 {
    read_clock(libc::CLOCK_MONOTONIC_COARSE).as_nanos() as u64
}

fn read_clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the write, and the call has no other effect.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "both clocks always exist");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

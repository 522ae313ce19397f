//! A service's policy for its backends' health.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{check::Check, units::millis};

/// A service's policy for its backends' health.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// How its backends are checked, unless one has a check of its own.
    pub check: Check,
    /// How long a backend that is back takes until it has its whole share; zero: no time.
    #[serde(with = "millis")]
    pub slow_start: Duration,
    /// Percent of the backends: when fewer are up, checks are ignored for choosing. 0: never.
    pub panic_threshold: u8,
    /// When fewer backends are up, the service reports that it is not ready.
    pub min_healthy: u16,
    /// The time in which half of a backend's penalty for going down is forgiven (RFC 2439); zero:
    /// flapping is not damped.
    #[serde(with = "millis")]
    pub flap_half_life: Duration,
    /// The policy for the flows of a backend that is down and whose host answers.
    pub on_down: OnDown,
    /// Whether a SYN that is sent again to a silent backend goes to another one: `syn_failover` in the configuration.
    pub second_choice: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            check: Check::default(),
            slow_start: Duration::ZERO,
            panic_threshold: 0,
            min_healthy: 1,
            flap_half_life: Duration::from_secs(60),
            on_down: OnDown::Keep,
            second_choice: true,
        }
    }
}

/// The policy for the flows of a backend that is down and whose host answers: it refuses
/// connections, or its answers are wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDown {
    /// They stay: the server may be finishing them, and where it is gone, its host resets them.
    #[default]
    Keep,
    /// They move at once.
    Move,
}

impl OnDown {
    /// Its name in the configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Move => "move",
        }
    }
}

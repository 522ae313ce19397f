//! Whether backends can serve: what is checked and how ([`check`]), and what a service does with
//! the answers ([`Policy`]).
//!
//! Checks only say what they saw of a backend ([`Seen`]); the engine makes owners of it, as it does
//! of what the operator wants.
//!
//! The path of a result: [`prober`] probes a backend when its deadline comes, [`fsm`] makes a state of the results,
//! and the daemon passes the states to the engine as a [`View`], beside the desired state, which they never change.
//! Then `reconcile::choose` selects the owners of the ring: backends that are up, then those that are held back,
//! then backups; in panic all that can be reached. Soft down takes a backend out of the ring. Hard down makes its
//! entry unusable as well, and its flows move.
//!
//! After a start, the state that the maps have of a backend (out of its ring, or unusable) holds until a check has
//! a result.

pub mod assign;
pub mod check;
pub mod damping;
pub mod fsm;
pub mod probe;
pub mod prober;
pub mod vip;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::check::Check;
use crate::{desired::ServiceKey, units::millis};

/// What a service does with what is known of its backends' health.
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
    /// When fewer backends are up, the service says that it is not ready.
    pub min_healthy: u16,
    /// The time in which half of a backend's penalty for going down is forgiven (RFC 2439); zero:
    /// flapping is not damped.
    #[serde(with = "millis")]
    pub flap_half_life: Duration,
    /// What becomes of the flows of a backend that is down and whose host answers.
    pub on_down: OnDown,
    /// Whether a SYN that is sent again to a silent backend goes to another one.
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

/// What becomes of the flows of a backend that is down and whose host answers: it refuses
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
    /// The word that the configuration has for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Move => "move",
        }
    }
}

/// A backend of a service, for those who don't care for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The service.
    pub service: ServiceKey,
    /// The backend's address.
    pub backend: IpAddr,
}

/// What the checks have found out about a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It serves, as far as is known.
    #[default]
    Up,
    /// It refuses connections or does not answer as it should: no new flows, it keeps the ones it has.
    SoftDown,
    /// Its flows move at once: its host is silent, or it is down and the service's flows are to move
    /// then ([`OnDown::Move`]).
    HardDown,
}

/// What is seen of a backend at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// What the checks say.
    pub condition: Condition,
    /// Whether it is up and is not trusted yet, since it was down too often of late.
    pub held: bool,
    /// Whether its clients' packets say that it is silent, and no check has decided yet.
    pub suspect: bool,
    /// Whether it is suspect, and the next answer has not cleared it: there is none, or nobody asks.
    pub doubted: bool,
    /// Whether it is down, and the last question to it got no answer of any kind.
    pub silent: bool,
    /// Whether it is down, and the last question to it was refused: its host lives and nobody listens there.
    pub refuses: bool,
}

/// What is seen of all backends; one that is not in it is up.
pub type View = BTreeMap<Target, Seen>;

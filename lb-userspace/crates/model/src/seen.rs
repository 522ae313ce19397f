//! The observed health of backends: the types of the checks, which rings and the daemon share.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{backend_address::BackendAddress, desired::ServiceKey};

/// A backend of a service, by keys without names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// The service.
    pub service: ServiceKey,
    /// The backend's address.
    pub backend: BackendAddress,
}

/// The checks' result for a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It serves, as far as is known.
    #[default]
    Up,
    /// It refuses connections or does not answer as it should: no new flows, it keeps the ones it has.
    SoftDown,
    /// Its flows move at once: its host is silent, or it is down and the service's flows are to move
    /// then ([`OnDown::Move`](crate::policy::OnDown::Move)).
    HardDown,
}

/// The observed state of a backend at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The checks' result.
    pub condition: Condition,
    /// Whether it is up and is not trusted yet, since it was down too often of late.
    pub held: bool,
    /// Whether it is silent by its clients' packets, and no check has decided yet.
    pub suspect: bool,
    /// Whether it is suspect, and the next answer has not cleared it: there is none, or no check runs.
    pub doubted: bool,
    /// Whether it is down, and the last probe of it got no answer of any kind.
    pub silent: bool,
    /// Whether it is down, and the last probe to it was refused: its host lives and no process listens there.
    pub refuses: bool,
}

/// The observed state of all backends; one that is not in it is up.
pub type View = BTreeMap<BackendKey, Seen>;

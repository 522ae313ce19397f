//! The questions that a node and its peer keep; [`super::peer`] asks and answers them.

use std::time::{Duration, Instant};

use lb_model::router::RouterKey;

/// A question that waits for its answer.
pub(super) struct Asking {
    pub(super) id: u64,
    pub(super) head: u64,
    pub(super) routers: Vec<RouterKey>,
    pub(super) since: Instant,
    pub(super) again_at: Instant,
    pub(super) again: Duration,
}

/// A question of the peer.
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) head: u64,
    pub(super) routers: Vec<RouterKey>,
    pub(super) received: Instant,
    pub(super) state: AskedState,
}

/// What has become of it.
pub(super) enum AskedState {
    /// Something that was published before has not arrived yet.
    Held,
    /// The daemon has it, and has not answered.
    Reported,
    /// The asking node goes on; what of the question is still on its way does not count.
    Withdrawn,
    Answered(Result<(), String>),
}

//! The requests to take over that a node and its peer keep; [`super::peer`] sends and answers them.

use std::time::{Duration, Instant};

use lb_model::router::RouterKey;

/// A request to the peer, which waits for its answer.
pub(super) struct SentRequest {
    pub(super) id: u64,
    pub(super) head: u64,
    pub(super) routers: Vec<RouterKey>,
    pub(super) since: Instant,
    pub(super) again_at: Instant,
    pub(super) again: Duration,
}

/// A request of the peer.
pub(super) struct ReceivedRequest {
    pub(super) id: u64,
    pub(super) head: u64,
    pub(super) routers: Vec<RouterKey>,
    pub(super) received: Instant,
    pub(super) state: RequestState,
}

/// What has become of it.
pub(super) enum RequestState {
    /// Something that was published before has not arrived yet.
    Waiting,
    /// The daemon has it, and has not answered.
    Reported,
    /// The requesting node goes on; what of the request is still on its way does not count.
    Withdrawn,
    Answered(Result<(), String>),
}

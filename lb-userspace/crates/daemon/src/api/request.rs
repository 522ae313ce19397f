//! Requests to the daemon and their answers.

use axum::body::Bytes;
use lb_model::refusal::{Refusal, RefusalKind};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::{Reply, Request};

/// Hands a request to the daemon, and waits for its answer.
pub(super) async fn request<T>(
    daemon: &mpsc::Sender<Request>,
    make: impl FnOnce(Reply<T>) -> Request,
) -> Result<T, Refusal> {
    let stopping = |_| Refusal::new(RefusalKind::Stopping, "lbd is stopping");
    let (reply, answer) = oneshot::channel();
    daemon.send(make(reply)).await.map_err(|_| stopping(()))?;
    answer.await.map_err(|_| stopping(()))?
}

/// The parsed body of a request.
pub(super) fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::new(RefusalKind::Invalid, error))
}

//! From a request to the daemon and its answer.

use axum::body::Bytes;
use lb_model::refusal::{Refusal, RefusalKind};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::Request;

/// Hands a request to the daemon, and waits for its answer.
pub(super) async fn ask<T>(
    daemon: &mpsc::Sender<Request>,
    request: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Request,
) -> Result<T, Refusal> {
    let stopping = |_| Refusal::new(RefusalKind::Stopping, "lbd is stopping");
    let (tell, answer) = oneshot::channel();
    daemon.send(request(tell)).await.map_err(|_| stopping(()))?;
    answer.await.map_err(|_| stopping(()))?
}

/// What the body of a request says.
pub(super) fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::new(RefusalKind::Invalid, error))
}

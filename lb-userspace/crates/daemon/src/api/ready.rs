//! `/healthz` and `/readyz`: whether the daemon lives, and whether the node can be given traffic.
//!
//! Probes request them, which can't always send credentials: so they need none. The reasons why a node is not
//! ready are shown only to a client with credentials.

use std::time::Duration;

use axum::{
    Extension, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use lb_api::status::Status;
use lb_model::refusal::Refusal;
use tokio::sync::{mpsc, oneshot};

use crate::api::Request;

/// A daemon that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Paths that need no credentials.
pub(crate) const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// Whether a request has valid credentials, or needs none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IsKnown(pub(crate) bool);

/// The two paths.
pub(crate) fn router(daemon: mpsc::Sender<Request>) -> Router {
    let router = Router::new().route("/healthz", get(health)).route("/readyz", get(readiness));
    router.with_state(daemon)
}

/// The daemon's answer, or why there is none.
async fn request_status(daemon: &mpsc::Sender<Request>) -> Result<Result<Status, Refusal>, String> {
    let answer = async {
        let (reply, answer) = oneshot::channel();
        daemon.send(Request::Status(reply)).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err("lbd is stopping".into()),
        Err(_) => Err(format!("lbd does not answer within {} s", PATIENCE.as_secs())),
    }
}

async fn health(State(daemon): State<mpsc::Sender<Request>>) -> Response {
    match request_status(&daemon).await {
        // One that can't read its maps lives, and is not ready.
        Ok(_) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn readiness(
    State(daemon): State<mpsc::Sender<Request>>,
    known: Option<Extension<IsKnown>>,
) -> Response {
    let obstacles = match request_status(&daemon).await {
        Ok(Ok(status)) => obstacles(&status),
        Ok(Err(Refusal { error: why, .. })) | Err(why) => vec![why],
    };
    if obstacles.is_empty() {
        return "ready\n".into_response();
    }
    let mut text = String::from("not ready\n");
    if known.is_some_and(|Extension(IsKnown(known))| known) {
        obstacles.iter().for_each(|why| text.extend([why, "\n"]));
    }
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// The reasons why a node is not ready; empty: it is ready.
#[must_use]
pub(super) fn obstacles(status: &Status) -> Vec<String> {
    let mut found = Vec::new();
    if status.interfaces.is_empty() {
        found.push("the balancer's program is on no interface".into());
    }
    let stripped = status.interfaces.iter().filter(|interface| !interface.attached);
    found.extend(stripped.map(|one| format!("the balancer's program is not on {}", one.name)));
    if let Some(error) = &status.last_error {
        found.push(format!("the maps are not as they should be: {error}"));
    }
    if status.node.draining_since.is_some() {
        found.push("the node is draining; 'lbctl node enable' ends that".into());
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use lb_api::status::{Interface, Node};

    use super::*;

    fn ready() -> Status {
        let interface = Interface {
            name: "eth0".into(),
            ifindex: 2,
            mode: "native".into(),
            attached: true,
            others: Vec::new(),
        };
        Status { interfaces: vec![interface], ..Status::default() }
    }

    #[test]
    fn a_node_is_ready_while_its_program_is_attached_its_maps_are_right_and_it_stays() {
        assert_eq!(obstacles(&ready()), [""; 0]);
        let mut stripped = ready();
        stripped.interfaces[0].attached = false;
        let failing = Status { last_error: Some("no room".into()), ..ready() };
        let node = Node { draining_since: Some(SystemTime::UNIX_EPOCH) };
        for (status, why) in [
            (Status::default(), "the balancer's program is on no interface"),
            (stripped, "the balancer's program is not on eth0"),
            (failing, "the maps are not as they should be: no room"),
            (Status { node, ..ready() }, "the node is draining; 'lbctl node enable' ends that"),
        ] {
            assert_eq!(obstacles(&status), [why]);
        }
    }
}

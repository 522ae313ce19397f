//! The log over the API: its level, and a change of it.

use axum::{Json, Router, body::Bytes, routing::get};
use lb_api::{log::Current, paths};
use lb_model::refusal::{Refusal, RefusalKind};

use super::request::body;
use crate::logs;

/// The route of the log. It is the process's, so the daemon's task gets no request.
pub(super) fn router() -> Router {
    Router::new().route(paths::LOG, get(show).put(change))
}

async fn show() -> Result<Json<Current>, Refusal> {
    let none = || Refusal::new(RefusalKind::NotFound, "there is no log");
    logs::current().map(Json).ok_or_else(none)
}

async fn change(bytes: Bytes) -> Result<Json<Current>, Refusal> {
    let failed = |why| Refusal::new(RefusalKind::Failed, why);
    logs::set(body(&bytes)?).map(Json).map_err(failed)
}

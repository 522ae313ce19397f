//! The dashboard: a page that `lbd` serves, and the stream that keeps it up to date.
//!
//! It only reads. The page is in `dashboard/page/`, written by hand and embedded, and requests nothing
//! beside these:
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the page; its parts are below `/dashboard/` |
//! | `GET /dashboard/stream` | server-sent events, see [`stream`] |
//! | `GET /dashboard/samples` | as `GET /v1/samples` |
//! | `GET /dashboard/history?service=NAME&backend=ADDRESS` | the backend's last events, newest first |

mod page;
mod patch;
pub mod stream;
mod view;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State},
    response::{IntoResponse as _, Response},
    routing::get,
};
use lb_model::backend_address::BackendAddress;
use serde::Deserialize;

use crate::{
    events::Events,
    samples::{self, Samples},
};

/// Events of a backend that are sent.
const HISTORY: usize = 30;

/// The dashboard's routes.
pub fn router(samples: Samples, events: Events) -> Router {
    let streams = Arc::new(stream::Streams::new(samples.clone(), events.clone()));
    Router::new()
        .route("/dashboard/stream", get(stream::answer).with_state(streams))
        .route("/dashboard/samples", get(samples::answer).with_state(samples))
        .route("/dashboard/history", get(history).with_state(events))
        .merge(page::router())
        .layer(axum::middleware::map_response(page::guard))
}

#[derive(Deserialize)]
struct Of {
    service: String,
    backend: BackendAddress,
}

async fn history(State(events): State<Events>, Query(of): Query<Of>) -> Response {
    Json(events.of_backend(&of.service, of.backend, HISTORY)).into_response()
}

//! The events over the API: a page of them, or all as they come.

use std::convert::Infallible;

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use lb_api::{
    event::{KEPT, Page},
    paths,
    requests::Line,
};
use lb_observe::events::Events;
use serde::Deserialize;

/// The route of the events. They come from the history, not from the daemon's task, so that a client that
/// follows them costs the daemon nothing.
pub(super) fn router(events: Events) -> Router {
    Router::new().route(paths::EVENTS, get(answer)).with_state(events)
}

#[derive(Deserialize)]
struct Parameters {
    since: Option<u64>,
    limit: Option<usize>,
    #[serde(default)]
    follow: bool,
}

async fn answer(State(events): State<Events>, Query(parameters): Query<Parameters>) -> Response {
    if !parameters.follow {
        let limit = parameters.limit.unwrap_or(KEPT);
        return Json(events.since(parameters.since.unwrap_or(0), limit)).into_response();
    }
    let follower = events.follow(parameters.since.unwrap_or_else(|| events.last()));
    // The next lines are taken when the last ones have left for the client: nothing piles up
    // for one that does not read.
    let lines = stream::unfold(follower, |mut follower| async {
        let page = follower.next().await?;
        Some((Ok::<_, Infallible>(lines(page)), follower))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn lines(page: Page) -> Bytes {
    let missed = (page.missed > 0).then_some(Line::Missed { missed: page.missed });
    let all = missed.into_iter().chain(page.events.into_iter().map(Line::Event));
    let mut text = Vec::new();
    for line in all {
        serde_json::to_writer(&mut text, &line).expect("events are JSON, and memory takes them");
        text.push(b'\n');
    }
    text.into()
}

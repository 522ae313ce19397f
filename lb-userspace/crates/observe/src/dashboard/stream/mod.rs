//! Live updates: server-sent events.
//!
//! | event | data |
//! |---|---|
//! | `view` | the whole node, when a viewer connects or was too slow |
//! | `patch` | the changes since the second before, as a merge patch (RFC 7396) |
//! | `happened` | a list of events, oldest first, each with its level; the last ones when a viewer connects |
//! | `missed` | how many events a viewer that was too slow has not received |
//!
//! A message is made once for all viewers, and only while there is one. Nothing piles up for a viewer that
//! does not read: each gets the last second when the one before has left. There are at most
//! [`STREAMS`] of them.

use std::{
    convert::Infallible,
    fmt::Write as _,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use lb_api::event::{Event, Page};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{patch, view};
use crate::{
    events::{Events, Follower},
    samples::{Sample, Samples},
};

/// Streams at once.
pub(crate) const STREAMS: usize = 64;
/// Events that a new viewer gets.
const RECENT: u64 = 100;
/// After how many milliseconds a browser connects again, when a stream has ended.
const RETRY_MILLIS: u64 = 1_000;

/// The state that all streams share.
#[derive(Debug)]
pub struct Streams {
    samples: Samples,
    events: Events,
    room: Arc<Semaphore>,
    last: Mutex<Option<Arc<Frame>>>,
}

impl Streams {
    /// For the streams of these samples and events.
    #[must_use]
    pub fn new(samples: Samples, events: Events) -> Self {
        Self { samples, events, room: Arc::new(Semaphore::new(STREAMS)), last: Mutex::new(None) }
    }

    /// The frame of a sample. The first viewer makes it.
    fn frame(&self, sample: &Sample) -> Arc<Frame> {
        // Nothing in here panics half-way.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(frame) = last.as_ref().filter(|frame| frame.number >= sample.number) {
            return Arc::clone(frame);
        }
        let frame = Arc::new(Frame::new(sample, last.as_deref()));
        *last = Some(Arc::clone(&frame));
        frame
    }
}

/// One second of the node, as it is sent.
#[derive(Debug)]
struct Frame {
    number: u64,
    view: Value,
    /// The whole of it, if a viewer needed it.
    whole: OnceLock<Bytes>,
    /// The number of the frame that the patch is against, and the patch.
    patch: Option<(u64, Bytes)>,
}

impl Frame {
    fn new(sample: &Sample, before: Option<&Self>) -> Self {
        let view = view::view(sample);
        let patch = before.map(|before| {
            let patch = patch::between(&before.view, &view);
            (
                before.number,
                message("patch", &patch.unwrap_or_else(|| Value::Object(<_>::default()))),
            )
        });
        Self { number: sample.number, view, whole: OnceLock::new(), patch }
    }

    /// The message for a viewer whose last frame was `seen`.
    fn after(&self, seen: Option<u64>) -> Bytes {
        match &self.patch {
            Some((number, patch)) if seen == Some(*number) => patch.clone(),
            _ => self.whole.get_or_init(|| message("view", &self.view)).clone(),
        }
    }
}

/// One server-sent event. JSON has no line breaks, which would end it.
fn message(kind: &str, data: &impl Serialize) -> Bytes {
    let json = serde_json::to_string(data).expect("it is JSON, and memory takes it");
    Bytes::from(format!("event: {kind}\ndata: {json}\n\n"))
}

#[derive(Serialize)]
struct Happened<'a> {
    level: &'static str,
    #[serde(flatten)]
    event: &'a Event,
}

fn happened(page: &Page) -> Bytes {
    let mut text = String::new();
    if page.missed > 0 {
        let _ = write!(text, "event: missed\ndata: {}\n\n", page.missed);
    }
    let level = |event: &Event| match event.body.kind.level() {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warning",
        _ => "note",
    };
    let events: Vec<_> =
        page.events.iter().map(|event| Happened { level: level(event), event }).collect();
    [text.into_bytes(), message("happened", &events).to_vec()].concat().into()
}

/// Begins a stream.
pub async fn answer(State(streams): State<Arc<Streams>>) -> Response {
    let Ok(room) = Arc::clone(&streams.room).try_acquire_owned() else {
        let retry = [(header::RETRY_AFTER, "10")];
        let why = format!("{STREAMS} others look at the dashboard; close one, or come later\n");
        return (StatusCode::SERVICE_UNAVAILABLE, retry, why).into_response();
    };
    let since = streams.events.last().saturating_sub(RECENT);
    let recent = streams.events.since(since, RECENT as usize);
    let events = streams.events.follow(recent.last);
    let mut begin = format!("retry: {RETRY_MILLIS}\n\n").into_bytes();
    // Events of an earlier run, which that number stands for, are not missed.
    begin.extend(happened(&Page { missed: 0, ..recent }));
    let viewer = Viewer {
        begin: Some(begin.into()),
        samples: streams.samples.follow(),
        events,
        seen: None,
        streams,
        _room: room,
    };
    let messages = stream::unfold(viewer, |mut viewer| async {
        let message = viewer.next().await?;
        Some((Ok::<_, Infallible>(message), viewer))
    });
    let kind = [
        (header::CONTENT_TYPE, "text/event-stream"),
        // A proxy is not to buffer the stream.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (kind, Body::from_stream(messages)).into_response()
}

struct Viewer {
    begin: Option<Bytes>,
    samples: watch::Receiver<Option<Arc<Sample>>>,
    events: Follower,
    seen: Option<u64>,
    streams: Arc<Streams>,
    _room: OwnedSemaphorePermit,
}

impl Viewer {
    /// The next message; none: the daemon ends.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(begin) = self.begin.take() {
            return Some(begin);
        }
        loop {
            if self.seen.is_none() {
                self.samples.mark_changed();
            }
            tokio::select! {
                changed = self.samples.changed() => {
                    changed.ok()?;
                    let Some(sample) = self.samples.borrow_and_update().clone() else {
                        // The first one is to come.
                        self.samples.changed().await.ok()?;
                        continue;
                    };
                    let frame = self.streams.frame(&sample);
                    if self.seen == Some(frame.number) {
                        continue;
                    }
                    let message = frame.after(self.seen);
                    self.seen = Some(frame.number);
                    return Some(message);
                }
                page = self.events.next() => return Some(happened(&page?)),
            }
        }
    }
}

#[cfg(test)]
mod tests;

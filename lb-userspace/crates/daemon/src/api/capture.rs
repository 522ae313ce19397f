//! Captures over the API: one at a time, written as it runs.

use std::{
    convert::Infallible,
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::stream;
use lb_api::{paths, requests::Done};
use lb_inspect::capture::{Spec, session::Writer};
use lb_model::{
    refusal::{Refusal, RefusalKind},
    time,
};
use lb_plane::Tap;
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, sleep, sleep_until},
};

use super::{
    Request,
    request::{body, request},
};

/// How often the ring is looked at. In this time it fills only with the longest frames at the highest
/// rates, and frames without room are counted.
const LOOK: Duration = Duration::from_millis(20);
/// How long after a failure the normal program is put back again.
const RETRY: Duration = Duration::from_secs(1);
/// Frames that are taken at a look.
const BATCH: usize = 4_096;
/// Records that wait for a reader that is slow.
const PIECES: usize = 16;

#[derive(Clone)]
struct CaptureRoute {
    daemon: mpsc::Sender<Request>,
    /// Counts up when captures are to end.
    stops: watch::Sender<u64>,
}

/// The routes of captures.
pub(super) fn router(daemon: mpsc::Sender<Request>) -> Router {
    let state = CaptureRoute { daemon, stops: watch::Sender::new(0) };
    Router::new().route(paths::CAPTURE, post(begin).delete(stop)).with_state(state)
}

async fn stop(State(state): State<CaptureRoute>) -> Json<Done> {
    state.stops.send_modify(|stops| *stops += 1);
    Json(Done { message: "the capture ends".into(), ..Done::default() })
}

async fn begin(State(state): State<CaptureRoute>, bytes: Bytes) -> Result<Response, Refusal> {
    let spec: Spec = body(&bytes)?;
    let stopped = state.stops.subscribe();
    let requested = Box::new(spec.clone());
    let (loader, annotator) =
        request(&state.daemon, |reply| Request::PrepareCapture(requested, reply)).await?;
    // To load the program takes a second; the daemon goes on meanwhile.
    let failed = |error: anyhow::Error| Refusal::new(RefusalKind::Failed, format!("{error:#}"));
    let loaded = spawn_blocking(|| loader.load()).await.map_err(|error| failed(error.into()))?;
    let loaded = loaded.map_err(failed)?;
    // A task of its own: the client may go at any moment, and a capture that has begun must end.
    let begun = tokio::spawn(async move {
        let tap = request(&state.daemon, |reply| Request::BeginCapture(loaded, reply)).await?;
        Ok::<_, Refusal>((tap, Ending(Some(state.daemon))))
    });
    let (tap, ending) = begun.await.map_err(|error| failed(error.into()))??;
    let (writer, first) = Writer::begin(&spec, annotator, time::monotonic(), SystemTime::now());
    let (to, records) = mpsc::channel(PIECES);
    let until = Instant::now() + Duration::from_millis(spec.millis);
    tokio::spawn(Capture { tap, writer, until, ending, stopped, to }.run(first));
    let body = stream::unfold(records, |mut records| async move {
        let record = records.recv().await?;
        Some((Ok::<_, Infallible>(record), records))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-pcapng")];
    Ok((kind, Body::from_stream(body)).into_response())
}

/// Puts the normal program back, however a capture ends.
struct Ending(Option<mpsc::Sender<Request>>);

impl Ending {
    async fn end(mut self) {
        if let Some(daemon) = self.0.take() {
            put_back(daemon).await;
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(daemon) = self.0.take() {
            tokio::spawn(put_back(daemon));
        }
    }
}

/// Tries until it is done; a daemon that is gone has done it.
async fn put_back(daemon: mpsc::Sender<Request>) {
    loop {
        match request(&daemon, Request::EndCapture).await {
            Err(refusal) if refusal.kind == RefusalKind::Conflict => sleep(RETRY).await,
            _ => return,
        }
    }
}

/// A capture that runs.
struct Capture {
    tap: Box<dyn Tap>,
    writer: Writer,
    until: Instant,
    ending: Ending,
    stopped: watch::Receiver<u64>,
    to: mpsc::Sender<Bytes>,
}

impl Capture {
    async fn run(self, first: Vec<u8>) {
        let Self { mut tap, mut writer, until, ending, mut stopped, to } = self;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut out = first;
        loop {
            // A reader that is slow holds this up, but not the end; frames that do not fit into the ring
            // meanwhile are counted as lost.
            if !out.is_empty() {
                tokio::select! {
                    room = to.reserve() => match room {
                        Ok(room) => room.send(std::mem::take(&mut out).into()),
                        Err(_) => return,
                    },
                    () = sleep_until(until.into()) => break,
                    _ = stopped.changed() => break,
                }
            }
            tokio::select! {
                _ = look.tick() => {}
                () = to.closed() => return,
                _ = stopped.changed() => break,
            }
            tap.drain(BATCH, &mut |head, bytes| writer.write(&mut out, head, bytes));
            if writer.is_full() || Instant::now() >= until {
                break;
            }
        }
        ending.end().await;
        while tap.drain(BATCH, &mut |head, bytes| writer.write(&mut out, head, bytes)) == BATCH {}
        writer.end(&mut out, &tap.counts(), time::monotonic());
        // The reader may be gone.
        let _ = to.send(out.into()).await;
    }
}

//! The flows over the API: the requested ones, or a line for each.
//!
//! They are read from the maps by a thread beside the daemon's, over descriptors of its own: the
//! daemon gets a request for the services' names only. One walk is under way at a time,
//! few wait for it, and none takes long.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query as Parameters, State},
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use lb_api::paths;
use lb_datapath::stand_back;
use lb_inspect::flows::{Found, Line, Names, Query, Search, Source};
use lb_model::{
    desired::ServiceKey,
    refusal::{Refusal, RefusalKind},
    time::monotonic,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
};

use super::{Request, request::request as request_daemon};

/// Requests that may be there at a time, all but one of which wait.
const REQUESTS: usize = 8;
/// How long a walk may take that waits for its reader.
const WALK: Duration = Duration::from_secs(30);
/// Bytes of lines that go out together.
const CHUNK: usize = 64 * 1024;
/// Such chunks that wait for the reader.
const CHUNKS: usize = 2;

#[derive(Clone)]
struct Reader {
    daemon: mpsc::Sender<Request>,
    source: Arc<dyn Source>,
    requests: Arc<Semaphore>,
    walks: Arc<Semaphore>,
    patience: Duration,
}

/// The permits of a walk, dropped when it is over.
type Permits = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// The route of the flows.
pub(super) fn router(daemon: mpsc::Sender<Request>, source: Arc<dyn Source>) -> Router {
    let reader = Reader {
        daemon,
        source,
        requests: Arc::new(Semaphore::new(REQUESTS)),
        walks: Arc::new(Semaphore::new(1)),
        patience: WALK,
    };
    Router::new().route(paths::FLOWS, get(answer)).with_state(reader)
}

async fn answer(State(reader): State<Reader>, Parameters(query): Parameters<Query>) -> Response {
    match reader.answer(query).await {
        Ok(answer) => answer,
        Err(refusal) => refusal.into_response(),
    }
}

impl Reader {
    async fn answer(self, query: Query) -> Result<Response, Refusal> {
        let permits = self.permits().await?;
        let status = request_daemon(&self.daemon, Request::Status).await?;
        let names = status.services.into_iter().map(|(name, service)| (service.key, name));
        let names: BTreeMap<ServiceKey, String> = names.collect();
        let source = self.source;
        if query.stream {
            return stream_of(source, names, query, permits, self.patience).await;
        }
        let (reply, found) = oneshot::channel();
        beside(move || {
            let _permits = permits;
            // The client may be gone.
            let _ = reply.send(find(&*source, &names, &query));
        })?;
        Ok(Json(found.await.map_err(failed)??).into_response())
    }

    async fn permits(&self) -> Result<Permits, Refusal> {
        let request = Arc::clone(&self.requests).try_acquire_owned().map_err(|_| {
            Refusal::new(RefusalKind::Conflict, "too many requests for flows at this moment")
                .hint("try again in a moment")
        })?;
        let walk = Arc::clone(&self.walks).acquire_owned().await.map_err(failed)?;
        Ok((request, walk))
    }
}

/// Does it on a thread of its own, which has the daemon's and all others run first.
fn beside(work: impl FnOnce() + Send + 'static) -> Result<(), Refusal> {
    let thread = thread::Builder::new().name("flows".into());
    let spawned = thread.spawn(move || {
        stand_back();
        work();
    });
    spawned.map(drop).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(RefusalKind::Failed, format!("read the flows: {error:#}"))
}

/// The program's clock.
fn now() -> u32 {
    monotonic().as_secs() as u32
}

fn find(
    source: &dyn Source,
    names: &BTreeMap<ServiceKey, String>,
    query: &Query,
) -> Result<Found, Refusal> {
    let names = Names::read(source, names).map_err(failed)?;
    let mut search = Search::new(&names, query, now())?;
    search.run(source).map_err(failed)?;
    Ok(search.found())
}

/// Lines as they are met. The walk waits for its reader, so that nothing piles up for one that does
/// not read; and not for long, since others wait for the walk.
async fn stream_of(
    source: Arc<dyn Source>,
    names: BTreeMap<ServiceKey, String>,
    query: Query,
    permits: Permits,
    patience: Duration,
) -> Result<Response, Refusal> {
    let (to, chunks) = mpsc::channel::<Result<Bytes, Refusal>>(CHUNKS);
    let runtime = Handle::current();
    beside(move || {
        let _permits = permits;
        let until = Instant::now() + patience;
        let send = |chunk| {
            let sent = async { tokio::time::timeout_at(until.into(), to.send(chunk)).await };
            matches!(runtime.block_on(sent), Ok(Ok(())))
        };
        let mut lines = Vec::with_capacity(CHUNK);
        match walk(&*source, &names, &query, &mut lines, &mut |chunk| send(Ok(chunk))) {
            Ok(()) => drop(send(Ok(lines.into()))),
            Err(refusal) => drop(send(Err(refusal))),
        }
    })?;
    let mut chunks = chunks;
    // A refusal can only be sent before the first line.
    let first = match chunks.recv().await {
        Some(chunk) => chunk?,
        None => return Err(failed("the reader has ended")),
    };
    let rest = stream::unfold(chunks, |mut chunks| async {
        let chunk = chunks.recv().await?;
        let chunk =
            chunk.unwrap_or_else(|refusal| line(&Line::Broken { error: refusal.error }).into());
        Some((Ok::<_, std::convert::Infallible>(chunk), chunks))
    });
    let body = futures_util::StreamExt::chain(stream::iter([Ok(first)]), rest);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

fn line(line: &Line) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).expect("flows are JSON, and memory takes them");
    text.push(b'\n');
    text
}

/// Writes lines, and sends them on whenever they fill a chunk.
fn walk(
    source: &dyn Source,
    names: &BTreeMap<ServiceKey, String>,
    query: &Query,
    lines: &mut Vec<u8>,
    send: &mut dyn FnMut(Bytes) -> bool,
) -> Result<(), Refusal> {
    let names = Names::read(source, names).map_err(failed)?;
    let search = Search::new(&names, query, now())?;
    let most = query.limit.map_or(u64::MAX, |limit| limit as u64);
    let (mut sent, mut is_read) = (0, true);
    if most > 0 {
        search
            .visit(source, &mut |flow| {
                lines.extend(line(&Line::Flow(flow)));
                sent += 1;
                if lines.len() >= CHUNK {
                    is_read = send(std::mem::take(lines).into());
                }
                if is_read && sent < most {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
            .map_err(failed)?;
    }
    if !is_read {
        return Err(failed("their reader takes too long"));
    }
    lines.extend(line(&Line::End { sent }));
    Ok(())
}

#[cfg(test)]
mod tests;

//! What every request passes on its way in, and every answer on its way out.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::{
    Json, Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Config,
    auth::Doorkeeper,
    crowd::{Guest, Phase},
    ready::{IsKnown, OPEN},
};
use crate::api;

/// Requests at work at one moment.
const AT_WORK: usize = 16;
/// How long a request may wait for its turn, and for the head of its answer.
const HEAD: Duration = Duration::from_secs(20);
/// Who may not look is logged at most this often.
const LOGGED: Duration = Duration::from_secs(10);

/// The gate of a configuration.
#[derive(Debug)]
pub(super) struct Gate {
    rooms: Router,
    keeper: Doorkeeper,
    work: Semaphore,
    streams: Arc<Semaphore>,
    /// How many were turned away, and when that was logged.
    turned_away: Mutex<(u64, Option<Instant>)>,
}

impl Gate {
    pub(super) fn new(config: &Config, rooms: Router) -> Result<Self> {
        Ok(Self {
            rooms,
            keeper: Doorkeeper::new(config.users.clone(), config.tokens.clone())?,
            work: Semaphore::new(AT_WORK),
            streams: Arc::new(Semaphore::new(config.streams as usize)),
            turned_away: Mutex::default(),
        })
    }

    /// Answers one request of a guest.
    pub(super) async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        guest: &Arc<Guest>,
    ) -> Response {
        guest.becomes(Phase::Answering, Instant::now());
        let asked = (request.method().clone(), request.uri().path().to_owned());
        let answer = match tokio::time::timeout(HEAD, self.let_in(request, guest.peer)).await {
            Ok(answer) => answer,
            Err(_) => refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("no answer within {} s", HEAD.as_secs()),
                "lbd is busy; its log may tell more",
            ),
        };
        tracing::debug!(client = %guest.peer, method = %asked.0, path = asked.1, status = answer.status().as_u16(), "HTTP request");
        self.see_out(answer, guest)
    }

    async fn let_in(&self, request: hyper::Request<Incoming>, peer: IpAddr) -> Response {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and HEAD are answered here".into(),
                "what changes something goes by lbctl, over the Unix socket",
            );
            let allowed = HeaderValue::from_static("GET, HEAD");
            answer.headers_mut().insert(header::ALLOW, allowed);
            return ending(answer);
        }
        if !request.body().is_end_stream() {
            let hint = "ask without one";
            return ending(refusal(
                StatusCode::PAYLOAD_TOO_LARGE,
                "a body is not taken here".into(),
                hint,
            ));
        }
        let is_known = self.keeper.admits(request.headers()).await;
        if !is_known && !OPEN.contains(&request.uri().path()) {
            self.turn_away(peer, request.headers());
            let mut answer = refusal(
                StatusCode::UNAUTHORIZED,
                "who are you?".into(),
                "give a name and password, or a token, that lbd knows",
            );
            for challenge in self.keeper.challenges() {
                answer.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
            }
            return answer;
        }
        let _turn = self.work.acquire().await.expect("it is never closed");
        let mut request: Request = request.map(Body::new);
        // Nothing behind the gate has a use for it.
        request.headers_mut().remove(header::AUTHORIZATION);
        request.extensions_mut().insert(IsKnown(is_known));
        let rooms = TowerToHyperService::new(self.rooms.clone());
        match hyper::service::Service::call(&rooms, request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }

    /// Tells the log of who may not look. A first request without credentials is how browsers begin.
    fn turn_away(&self, peer: IpAddr, headers: &HeaderMap) {
        if !headers.contains_key(header::AUTHORIZATION) {
            return;
        }
        let mut turned_away = self.turned_away.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, logged) = &mut *turned_away;
        *count += 1;
        if logged.is_none_or(|logged| logged.elapsed() >= LOGGED) {
            tracing::warn!(client = %peer, requests = *count, "wrong password or token over HTTP");
            (*count, *logged) = (0, Some(Instant::now()));
        }
    }

    /// Keeps the books of an answer until it is over.
    fn see_out(&self, mut answer: Response, guest: &Arc<Guest>) -> Response {
        let mut permit = None;
        if goes_on(answer.headers()) {
            match Arc::clone(&self.streams).try_acquire_owned() {
                Ok(stream) => {
                    permit = Some(stream);
                    guest.becomes(Phase::Streaming, Instant::now());
                }
                Err(_) => {
                    answer = refusal(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "too many follow what happens".into(),
                        "close others, or raise `streams` under [http]",
                    );
                    let later = HeaderValue::from_static("10");
                    answer.headers_mut().insert(header::RETRY_AFTER, later);
                }
            }
        }
        for (name, value) in [
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::X_FRAME_OPTIONS, "DENY"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-store"),
        ] as [(HeaderName, &str); 4]
        {
            answer.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
        }
        let guest = Arc::clone(guest);
        answer.map(|body| Body::new(Outgoing { body, _told: Told { guest, _permit: permit } }))
    }
}

/// Whether an answer has no end of its own.
fn goes_on(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    matches!(kind, "text/event-stream" | "application/x-ndjson")
}

fn refusal(code: StatusCode, error: String, hint: &str) -> Response {
    (code, Json(api::Error { error, hint: Some(hint.into()), unconfirmed: None })).into_response()
}

/// Has the connection end with an answer: what comes after it may be no request.
fn ending(mut answer: Response) -> Response {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The body of an answer.
struct Outgoing {
    body: Body,
    _told: Told,
}

/// That an answer is over is told when this is dropped.
struct Told {
    guest: Arc<Guest>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Told {
    fn drop(&mut self) {
        self.guest.becomes(Phase::Waiting, Instant::now());
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

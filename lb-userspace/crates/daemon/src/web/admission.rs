//! Admission of requests, and bounds on their answers.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{AppendHeaders, IntoResponse as _, IntoResponseParts, Response},
};
use futures_util::{TryStreamExt as _, stream};
use hyper::{
    body::{Body as _, Incoming},
    service::Service as _,
};
use hyper_util::service::TowerToHyperService;
use lb_config::{host_name, http::Config};
use lb_model::refusal::Error;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    auth::Authenticator,
    hosts::Hosts,
    limiter::{Connection, Phase},
    per_address::Semaphores,
};
use crate::api::ready::{IsKnown, OPEN};

/// Requests at work at one moment.
const AT_WORK: usize = 16;
/// How long a request may wait for its turn, and for the head of its answer.
const HEAD: Duration = Duration::from_secs(20);
/// Bytes of answers that wait for their readers: at one address, and at all.
const UNREAD: [u32; 2] = [16 << 20, 64 << 20];
/// Answers up to this size always have room.
const SMALL: u64 = 64 << 10;
/// An answer is handed on in pieces of this size, so that it is over when nearly all of it has left.
const PIECE: usize = 64 << 10;
/// Wrong credentials are logged at most this often.
const LOGGED: Duration = Duration::from_secs(10);
/// Has the connection end with an answer: the bytes after it may be no request.
const CLOSE: (HeaderName, &str) = (header::CONNECTION, "close");
/// Has a client try again later.
const LATER: (HeaderName, &str) = (header::RETRY_AFTER, "10");

/// The admission of a configuration.
#[derive(Debug)]
pub(super) struct Admission {
    routes: TowerToHyperService<Router>,
    authenticator: Authenticator,
    hosts: Hosts,
    work: Semaphore,
    streams: Arc<Semaphore>,
    unread: Unread,
    /// How many were turned away, and when that was logged.
    turned_away: Mutex<(u64, Option<Instant>)>,
}

impl Admission {
    pub(super) fn new(config: &Config, routes: Router) -> Result<Self> {
        Ok(Self {
            routes: TowerToHyperService::new(routes),
            authenticator: Authenticator::new(config.users.clone(), config.tokens.clone())?,
            hosts: Hosts::new(config, &host_name()),
            work: Semaphore::new(AT_WORK),
            streams: Arc::new(Semaphore::new(config.streams as usize)),
            unread: Unread::new(),
            turned_away: Mutex::default(),
        })
    }

    /// Answers one request of a connection to the listener at `listener`.
    pub(super) async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        connection: &Arc<Connection>,
        listener: IpAddr,
    ) -> Response {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answer = timeout(HEAD, self.handle_request(request, connection, listener)).await;
        let answer = answer.unwrap_or_else(|_| {
            let error = format!("no answer within {} s", HEAD.as_secs());
            refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                (),
                error,
                "lbd is busy; its log may show more",
            )
        });
        tracing::debug!(client = %connection.peer, %method, path, status = answer.status().as_u16(), "HTTP request");
        self.finish_response(answer, connection)
    }

    /// A connection whose credentials are not checked yet counts as [`Phase::Waiting`]: so many clients that guess
    /// passwords keep no other client out.
    async fn handle_request(
        &self,
        request: hyper::Request<Incoming>,
        connection: &Connection,
        listener: IpAddr,
    ) -> Response {
        if let Some(refused) = self.hosts.refuse(&request, listener) {
            return refusal(refused.status, [CLOSE], refused.error, refused.hint);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                [CLOSE, (header::ALLOW, "GET, HEAD")],
                "only GET and HEAD are answered here",
                "make changes with lbctl, over the Unix socket",
            );
        }
        if !request.body().is_end_stream() {
            return refusal(
                StatusCode::PAYLOAD_TOO_LARGE,
                [CLOSE],
                "a body is not taken here",
                "send the request without one",
            );
        }
        let is_known = self.authenticator.admits(request.headers(), connection.peer).await;
        if !is_known && !OPEN.contains(&request.uri().path()) {
            self.turn_away(connection.peer, request.headers());
            let challenges = self.authenticator.challenges();
            return refusal(
                StatusCode::UNAUTHORIZED,
                AppendHeaders(challenges.map(|scheme| (header::WWW_AUTHENTICATE, scheme))),
                "no valid credentials",
                "give a name and password, or a token, that lbd knows",
            );
        }
        connection.becomes(Phase::Answering, Instant::now());
        let _turn = self.work.acquire().await.expect("it is never closed");
        let mut request: Request = request.map(Body::new);
        // No route has a use for it.
        request.headers_mut().remove(header::AUTHORIZATION);
        request.extensions_mut().insert(IsKnown(is_known));
        let Ok(answer) = self.routes.call(request).await;
        answer
    }

    /// Logs wrong credentials. A first request without credentials is how browsers begin.
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

    /// Accounts for an answer until it is over.
    fn finish_response(&self, mut answer: Response, connection: &Arc<Connection>) -> Response {
        let bytes = answer.body().size_hint().lower();
        let taken = if goes_on(answer.headers()) {
            let stream = Arc::clone(&self.streams).try_acquire_owned();
            stream.map(|stream| vec![stream]).map_err(|_| {
                ("too many streams are open", "close others, or raise `streams` under [http]")
            })
        } else if bytes > SMALL {
            let room = self.unread.take(connection.peer, bytes);
            room.map(Vec::from).ok_or((
                "too many answers wait to be read",
                "read them, or close their connections",
            ))
        } else {
            Ok(Vec::new())
        };
        let permits = taken.unwrap_or_else(|(error, hint)| {
            answer = refusal(StatusCode::SERVICE_UNAVAILABLE, [LATER], error, hint);
            Vec::new()
        });
        if goes_on(answer.headers()) {
            connection.becomes(Phase::Streaming, Instant::now());
        }
        for (name, value) in [
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::X_FRAME_OPTIONS, "DENY"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-store"),
        ] {
            answer.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
        }
        let guard = AnswerGuard { connection: Arc::clone(connection), _permits: permits };
        in_pieces(answer, guard)
    }
}

/// Whether an answer has no end of its own.
fn goes_on(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    kind.starts_with(b"text/event-stream") || kind.starts_with(b"application/x-ndjson")
}

/// Why a request is not answered, with header fields.
fn refusal(
    status: StatusCode,
    fields: impl IntoResponseParts,
    error: impl Into<String>,
    hint: &str,
) -> Response {
    let error = Error { error: error.into(), hint: Some(hint.into()), unconfirmed: None };
    (status, fields, Json(error)).into_response()
}

/// Bytes of answers that wait for their readers: by address, and all.
#[derive(Debug)]
struct Unread(Semaphores, Arc<Semaphore>);

impl Unread {
    fn new() -> Self {
        let [by_one, by_all] = UNREAD.map(|most| most as usize);
        Self(Semaphores::new(by_one), Arc::new(Semaphore::new(by_all)))
    }

    /// Room for an answer: for one of any size while there is no other.
    fn take(&self, peer: IpAddr, bytes: u64) -> Option<[OwnedSemaphorePermit; 2]> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let [by_one, by_all] = UNREAD.map(|most| bytes.min(most));
        let own = self.0.of(peer).try_acquire_many_owned(by_one).ok()?;
        Some([own, Arc::clone(&self.1).try_acquire_many_owned(by_all).ok()?])
    }
}

/// Ends the accounting of an answer when it is dropped.
struct AnswerGuard {
    connection: Arc<Connection>,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        self.connection.becomes(Phase::Waiting, Instant::now());
    }
}

/// An answer whose body leaves in pieces, and keeps `guard` until it is over.
fn in_pieces(mut answer: Response, guard: AnswerGuard) -> Response {
    // As the answer to HEAD.
    if answer.body().is_end_stream() {
        return answer;
    }
    // A stream of pieces has no length of its own.
    if let Some(length) = answer.body().size_hint().exact() {
        answer.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
    }
    answer.map(|body| {
        let start = (body.into_data_stream(), Bytes::new(), guard);
        Body::from_stream(stream::try_unfold(start, async |(mut body, mut rest, guard)| {
            while rest.is_empty() {
                match body.try_next().await? {
                    Some(data) => rest = data,
                    None => return Ok(None),
                }
            }
            let piece = rest.split_to(rest.len().min(PIECE));
            Ok::<_, axum::Error>(Some((piece, (body, rest, guard))))
        }))
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::web::limiter::ConnectionLimiter;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test]
    async fn an_answer_is_not_over_before_nearly_all_of_it_has_left() {
        let (limiter, now) = (Arc::new(ConnectionLimiter::default()), Instant::now());
        let permit = limiter.enter(address(1), 1, now).expect("there is room");
        permit.connection.becomes(Phase::Answering, now);
        let connection = Arc::clone(&permit.connection);
        let guard = AnswerGuard { connection, _permits: Vec::new() };
        let whole = vec![7; 10 * PIECE + 1];
        let mut answer = in_pieces(Response::new(Body::from(whole.clone())), guard);
        assert_eq!(answer.headers()[header::CONTENT_LENGTH], whole.len().to_string());
        let body = answer.body_mut();
        let mut received = Vec::new();
        while received.len() < whole.len() {
            let frame = body.frame().await.expect("there is more").expect("it is in memory");
            let record = frame.into_data().expect("bytes");
            assert!(record.len() <= PIECE);
            received.extend(record);
            assert!(limiter.enter(address(2), 1, now).is_none(), "it is being answered");
        }
        assert_eq!(received, whole);
        drop(answer);
        assert!(limiter.enter(address(2), 1, now).is_some(), "it waits now");
    }

    #[test]
    fn what_waits_to_be_read_is_bounded_for_each_and_for_all() {
        let (unread, [by_one, by_all]) = (Unread::new(), UNREAD.map(u64::from));
        let take = |last, bytes| unread.take(address(last), bytes);
        let half = by_one / 2;
        let (first, second) = (take(1, half).expect("room"), take(1, half).expect("room"));
        assert!(take(1, 1).is_none(), "it has enough");
        assert!(take(2, by_one).is_some(), "another one has room");
        drop(first);
        let third = take(1, half).expect("there is room again");
        let others: Vec<_> = (3..=5).map(|last| take(last, by_one).expect("room")).collect();
        assert_eq!(others.len() as u64, by_all / by_one - 1);
        assert!(take(6, SMALL + 1).is_none(), "together they have enough");
        drop((second, third, others));
        assert_eq!(unread.1.available_permits() as u64, by_all, "all of it is free again");
        assert!(take(1, 2 * by_all).is_some(), "of any size, if it is alone");
    }
}

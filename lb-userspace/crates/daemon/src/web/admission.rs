//! Admission of requests, and bounds on their answers.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
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
use lb_config::{host_name, http::Config};
use lb_model::refusal::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    auth::Authenticator,
    hosts::Hosts,
    limiter::{Connection, Phase},
};
use crate::api::ready::{IsKnown, OPEN};

/// Requests at work at one moment.
const AT_WORK: usize = 16;
/// How long a request may wait for its turn, and for the head of its answer.
const HEAD: Duration = Duration::from_secs(20);
/// Bytes of answers that wait for their readers: at one address, and at all.
const UNREAD: [u64; 2] = [16 << 20, 64 << 20];
/// Answers up to this size always have room.
const SMALL: u64 = 64 << 10;
/// An answer is handed on in pieces of this size, so that it is over when nearly all of it has left.
const PIECE: usize = 64 << 10;
/// Wrong credentials are logged at most this often.
const LOGGED: Duration = Duration::from_secs(10);

/// The admission of a configuration.
#[derive(Debug)]
pub(super) struct Admission {
    routes: Router,
    authenticator: Authenticator,
    hosts: Hosts,
    work: Semaphore,
    streams: Arc<Semaphore>,
    unread: Arc<Unread>,
    /// How many were turned away, and when that was logged.
    turned_away: Mutex<(u64, Option<Instant>)>,
}

impl Admission {
    pub(super) fn new(config: &Config, routes: Router) -> Result<Self> {
        Ok(Self {
            routes,
            authenticator: Authenticator::new(config.users.clone(), config.tokens.clone())?,
            hosts: Hosts::new(config, &host_name()),
            work: Semaphore::new(AT_WORK),
            streams: Arc::new(Semaphore::new(config.streams as usize)),
            unread: Arc::default(),
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
        let requested = (request.method().clone(), request.uri().path().to_owned());
        let answer =
            match tokio::time::timeout(HEAD, self.handle_request(request, connection, listener))
                .await
            {
                Ok(answer) => answer,
                Err(_) => refusal(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("no answer within {} s", HEAD.as_secs()),
                    "lbd is busy; its log may show more",
                ),
            };
        tracing::debug!(client = %connection.peer, method = %requested.0, path = requested.1, status = answer.status().as_u16(), "HTTP request");
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
            return ending(refusal(refused.status, refused.error, refused.hint));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and HEAD are answered here".into(),
                "make changes with lbctl, over the Unix socket",
            );
            let allowed = HeaderValue::from_static("GET, HEAD");
            answer.headers_mut().insert(header::ALLOW, allowed);
            return ending(answer);
        }
        if !request.body().is_end_stream() {
            let hint = "send the request without one";
            return ending(refusal(
                StatusCode::PAYLOAD_TOO_LARGE,
                "a body is not taken here".into(),
                hint,
            ));
        }
        let is_known = self.authenticator.admits(request.headers(), connection.peer).await;
        if !is_known && !OPEN.contains(&request.uri().path()) {
            self.turn_away(connection.peer, request.headers());
            let mut answer = refusal(
                StatusCode::UNAUTHORIZED,
                "no valid credentials".into(),
                "give a name and password, or a token, that lbd knows",
            );
            for challenge in self.authenticator.challenges() {
                answer.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
            }
            return answer;
        }
        connection.becomes(Phase::Answering, Instant::now());
        let _turn = self.work.acquire().await.expect("it is never closed");
        let mut request: Request = request.map(Body::new);
        // No route has a use for it.
        request.headers_mut().remove(header::AUTHORIZATION);
        request.extensions_mut().insert(IsKnown(is_known));
        let routes = TowerToHyperService::new(self.routes.clone());
        match hyper::service::Service::call(&routes, request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
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
        let (mut permit, mut unread) = (None, None);
        let bytes = answer.body().size_hint().lower();
        if goes_on(answer.headers()) {
            match Arc::clone(&self.streams).try_acquire_owned() {
                Ok(stream) => {
                    permit = Some(stream);
                    connection.becomes(Phase::Streaming, Instant::now());
                }
                Err(_) => {
                    answer = refusal(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "too many streams are open".into(),
                        "close others, or raise `streams` under [http]",
                    );
                    let later = HeaderValue::from_static("10");
                    answer.headers_mut().insert(header::RETRY_AFTER, later);
                }
            }
        } else if bytes > SMALL {
            unread = self.unread.take(connection.peer, bytes);
            if unread.is_none() {
                answer = refusal(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "too many answers wait to be read".into(),
                    "read them, or close their connections",
                );
                let later = HeaderValue::from_static("10");
                answer.headers_mut().insert(header::RETRY_AFTER, later);
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
        let connection = Arc::clone(connection);
        let guard = AnswerGuard { connection, _permit: permit, _unread: unread };
        answer.map(|body| Body::new(Outgoing { body, rest: Bytes::new(), _guard: guard }))
    }
}

/// Whether an answer has no end of its own.
fn goes_on(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    matches!(kind, "text/event-stream" | "application/x-ndjson")
}

fn refusal(code: StatusCode, error: String, hint: &str) -> Response {
    (code, Json(Error { error, hint: Some(hint.into()), unconfirmed: None })).into_response()
}

/// Has the connection end with an answer: the bytes after it may be no request.
fn ending(mut answer: Response) -> Response {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// Answers that wait for their readers: their bytes by address.
#[derive(Debug, Default)]
struct Unread(Mutex<HashMap<IpAddr, u64>>);

impl Unread {
    /// Room for an answer: for one of any size while there is no other.
    fn take(self: &Arc<Self>, peer: IpAddr, bytes: u64) -> Option<Reserved> {
        let [by_one, by_all] = UNREAD;
        let fits = |unread: u64, most| unread == 0 || unread.saturating_add(bytes) <= most;
        let mut unread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, all) = (unread.get(&peer).copied().unwrap_or_default(), unread.values().sum());
        if !fits(own, by_one) || !fits(all, by_all) {
            return None;
        }
        unread.insert(peer, own + bytes);
        Some(Reserved { unread: Arc::clone(self), peer, bytes })
    }
}

/// The room of an answer, which is free again when this is dropped.
#[derive(Debug)]
struct Reserved {
    unread: Arc<Unread>,
    peer: IpAddr,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut unread = self.unread.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = unread.get(&self.peer).map_or(0, |bytes| bytes.saturating_sub(self.bytes));
        match left {
            0 => unread.remove(&self.peer),
            left => unread.insert(self.peer, left),
        };
    }
}

/// The body of an answer.
struct Outgoing {
    body: Body,
    /// The part of it that is still to be handed on.
    rest: Bytes,
    _guard: AnswerGuard,
}

/// Ends the accounting of an answer when it is dropped.
struct AnswerGuard {
    connection: Arc<Connection>,
    _permit: Option<OwnedSemaphorePermit>,
    _unread: Option<Reserved>,
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        self.connection.becomes(Phase::Waiting, Instant::now());
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest + body.lower());
        if let Some(upper) = body.upper() {
            hint.set_upper(rest + upper);
        }
        hint
    }
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
        let guard = AnswerGuard { connection, _permit: None, _unread: None };
        let (whole, rest) = (vec![7; 10 * PIECE + 1], Bytes::new());
        let mut body = Outgoing { body: Body::from(whole.clone()), rest, _guard: guard };
        assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
        let mut received = Vec::new();
        while !body.is_end_stream() {
            let frame = body.frame().await.expect("there is more").expect("it is in memory");
            let record = frame.into_data().expect("bytes");
            assert!(record.len() <= PIECE);
            received.extend(record);
            assert_eq!(body.size_hint().exact(), Some((whole.len() - received.len()) as u64));
            assert!(limiter.enter(address(2), 1, now).is_none(), "it is being answered");
        }
        assert_eq!(received, whole);
        drop(body);
        assert!(limiter.enter(address(2), 1, now).is_some(), "it waits now");
    }

    #[test]
    fn what_waits_to_be_read_is_bounded_for_each_and_for_all() {
        let (unread, [by_one, by_all]) = (Arc::new(Unread::default()), UNREAD);
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
        assert!(unread.0.lock().expect("no thread panics").is_empty());
        assert!(take(1, 2 * by_all).is_some(), "of any size, if it is alone");
    }
}

//! The server: takes requests apart, hands them to the daemon, and writes its answers.
//!
//! It has two routers, one for requests that read and one for requests that change. The HTTP listener has only the
//! first.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    middleware,
    response::IntoResponse,
    routing::{get, patch, post},
};
use lb_api::{
    paths,
    requests::{ConfigDiff, Done, Reloaded, Saved, Shown, Terms},
    status::{Node, OneBackend, Pair, Peer, Service, Status},
};
use lb_inspect::{
    explain::{Explained, Questions},
    flows::Source,
};
use lb_model::{
    backend_address::{BackendAddress, BackendRef},
    edit::{Edit, find, no_service},
    refusal::{Refusal, RefusalKind},
};
use lb_observe::{
    dashboard,
    events::Events,
    metrics,
    samples::{self, Samples},
};
use lb_threads::lasting;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    Request, peer,
    request::{body, request},
    socket::Listener,
};
use crate::api::ready;

type Daemon = State<mpsc::Sender<Request>>;
type Answer<T> = Result<Json<T>, Refusal>;

/// Serves until `stop` is sent or dropped, and then finishes the requests under way.
///
/// # Errors
///
/// The socket fails.
pub async fn serve(
    listener: Listener,
    daemon: mpsc::Sender<Request>,
    events: Events,
    samples: Samples,
    flows: Arc<dyn Source>,
    stop: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let stopped = async {
        // An error is a sender that is gone, which is as good.
        let _ = stop.await;
    };
    let router = router(daemon, events, samples, flows)
        .layer(middleware::from_fn_with_state(listener.group, peer::check));
    let router = router.into_make_service_with_connect_info::<peer::ConnectedPeer>();
    let serving = axum::serve(listener.listener, router).with_graceful_shutdown(stopped);
    lasting("socket", serving.into_future()).await
}

/// The routes of the socket, for clients that may use it.
pub fn router(
    daemon: mpsc::Sender<Request>,
    events: Events,
    samples: Samples,
    flows: Arc<dyn Source>,
) -> Router {
    reading(daemon.clone(), events.clone(), samples.clone())
        .merge(changing(daemon.clone()))
        .merge(super::log::router())
        .merge(super::capture::router(daemon.clone()))
        .merge(metrics::router(daemon.clone()))
        .merge(metrics::haproxy_router(daemon.clone()))
        .merge(dashboard::router(samples, events))
        .merge(super::flows::router(daemon.clone(), flows))
        .merge(ready::router(daemon).layer(Extension(ready::IsKnown(true))))
        .fallback(no_such_path)
}

/// The reading routes, which the read-only listener serves as well.
pub(crate) fn reading(daemon: mpsc::Sender<Request>, events: Events, samples: Samples) -> Router {
    Router::new()
        .route(paths::STATUS, get(status))
        .route(paths::NODE, get(node))
        .route(paths::SERVICES, get(services))
        .route(paths::SERVICE, get(service))
        .route(paths::BACKENDS, get(backends))
        .route(paths::BACKEND, get(backend))
        .route(paths::VRRP, get(pair))
        .route(paths::PEERS, get(peers))
        .with_state(daemon)
        .merge(super::events::router(events))
        .merge(samples::router(samples))
}

/// The routes that make changes or read files, for clients that may use the socket.
fn changing(daemon: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route(paths::NODE, patch(change_node))
        .route(paths::SERVICE, post(add_service).delete(remove_service))
        .route(paths::BACKEND, post(add_backend).patch(change_backend).delete(remove_backend))
        .route(paths::RELOAD, post(reload))
        .route(paths::CONFIG, get(config_show))
        .route(paths::CONFIG_DIFF, get(config_diff))
        .route(paths::CONFIG_SAVE, post(config_save))
        .route(paths::FAILOVER, post(failover))
        .route(paths::DETACH, post(detach))
        .route(paths::EXPLAIN, post(explain))
        .with_state(daemon)
}

/// Where nothing is.
pub(crate) async fn no_such_path() -> Refusal {
    Refusal::new(RefusalKind::NotFound, "no such path")
}

#[derive(Deserialize)]
struct Force {
    #[serde(default)]
    force: bool,
}

async fn edit(daemon: &mpsc::Sender<Request>, edit: Edit, terms: Terms) -> Answer<Done> {
    request(daemon, |reply| Request::Edit(edit, terms, reply)).await.map(Json)
}

fn address(text: &str) -> Result<BackendAddress, Refusal> {
    text.parse().map_err(|message: String| Refusal::new(RefusalKind::Invalid, message))
}

async fn status(State(daemon): Daemon) -> Answer<Status> {
    request(&daemon, Request::Status).await.map(Json)
}

async fn services(State(daemon): Daemon) -> Result<impl IntoResponse, Refusal> {
    Ok(Json(request(&daemon, Request::Status).await?.services))
}

async fn one_service(daemon: &mpsc::Sender<Request>, name: &str) -> Result<Service, Refusal> {
    let mut services = request(daemon, Request::Status).await?.services;
    match services.remove(name) {
        Some(service) => Ok(service),
        None => Err(no_service(name, services.keys().map(String::as_str))),
    }
}

async fn service(State(daemon): Daemon, Path(name): Path<String>) -> Answer<Service> {
    one_service(&daemon, &name).await.map(Json)
}

async fn backends(State(daemon): Daemon, Path(name): Path<String>) -> Answer<impl Serialize> {
    Ok(Json(one_service(&daemon, &name).await?.backends))
}

async fn backend(
    State(daemon): Daemon,
    Path((name, at)): Path<(String, String)>,
) -> Answer<impl Serialize> {
    let mut service = one_service(&daemon, &name).await?;
    let wanted = BackendRef::from(at);
    let names = || service.backends.iter().map(|(at, backend)| (*at, backend.name.as_deref()));
    let address = find(&name, service.key.port, &wanted, names)?;
    let backend = service.backends.remove(&address).unwrap_or_default();
    Ok(Json(OneBackend { address, backend }))
}

async fn node(State(daemon): Daemon) -> Answer<Node> {
    Ok(Json(request(&daemon, Request::Status).await?.node))
}

async fn change_node(
    State(daemon): Daemon,
    Query(terms): Query<Terms>,
    bytes: Bytes,
) -> Answer<Done> {
    let change = body(&bytes)?;
    request(&daemon, |reply| Request::Node(change, terms, reply)).await.map(Json)
}

async fn add_service(
    State(daemon): Daemon,
    Path(name): Path<String>,
    Query(terms): Query<Terms>,
    bytes: Bytes,
) -> Answer<Done> {
    edit(&daemon, Edit::AddService { name, service: Box::new(body(&bytes)?) }, terms).await
}

async fn remove_service(
    State(daemon): Daemon,
    Path(name): Path<String>,
    Query(terms): Query<Terms>,
) -> Answer<Done> {
    edit(&daemon, Edit::RemoveService { name }, terms).await
}

async fn add_backend(
    State(daemon): Daemon,
    Path((service, at)): Path<(String, String)>,
    Query(terms): Query<Terms>,
    bytes: Bytes,
) -> Answer<Done> {
    let backend = body(&bytes)?;
    edit(&daemon, Edit::AddBackend { service, address: address(&at)?, backend }, terms).await
}

async fn change_backend(
    State(daemon): Daemon,
    Path((service, at)): Path<(String, String)>,
    Query(terms): Query<Terms>,
    bytes: Bytes,
) -> Answer<Done> {
    let change = body(&bytes)?;
    edit(&daemon, Edit::ChangeBackend { service, backend: at.into(), change }, terms).await
}

async fn remove_backend(
    State(daemon): Daemon,
    Path((service, at)): Path<(String, String)>,
    Query(Force { force }): Query<Force>,
    Query(terms): Query<Terms>,
) -> Answer<Done> {
    edit(&daemon, Edit::RemoveBackend { service, backend: at.into(), force }, terms).await
}

async fn reload(State(daemon): Daemon, Query(terms): Query<Terms>) -> Answer<Reloaded> {
    request(&daemon, |reply| Request::Reload(terms, reply)).await.map(Json)
}

#[derive(Deserialize)]
struct Save {
    #[serde(default)]
    dry_run: bool,
}

async fn config_show(State(daemon): Daemon) -> Answer<Shown> {
    request(&daemon, Request::ConfigShow).await.map(Json)
}

async fn config_diff(State(daemon): Daemon) -> Answer<ConfigDiff> {
    request(&daemon, Request::ConfigDiff).await.map(Json)
}

async fn config_save(State(daemon): Daemon, Query(Save { dry_run }): Query<Save>) -> Answer<Saved> {
    request(&daemon, |reply| Request::ConfigSave { dry_run, reply }).await.map(Json)
}

async fn pair(State(daemon): Daemon) -> Answer<Pair> {
    request(&daemon, Request::Pair).await.map(Json)
}

async fn peers(State(daemon): Daemon) -> Answer<Vec<Peer>> {
    Ok(Json(request(&daemon, Request::Pair).await?.peers))
}

async fn failover(State(daemon): Daemon, Query(terms): Query<Terms>, bytes: Bytes) -> Answer<Done> {
    let which = body(&bytes)?;
    request(&daemon, |reply| Request::Failover(which, terms, reply)).await.map(Json)
}

/// Copies of the maps that may be there at a time.
static COPIES: Semaphore = Semaphore::const_new(1);

async fn explain(State(daemon): Daemon, bytes: Bytes) -> Answer<Vec<Explained>> {
    let questions: Box<Questions> = Box::new(body(&bytes)?);
    let copy = match questions.verify {
        true => Some(COPIES.acquire().await.expect("it is never closed")),
        false => None,
    };
    let answers = request(&daemon, |reply| Request::Explain(questions, reply)).await?;
    // To load the program takes a while; the daemon goes on meanwhile. The client may go: the copy is
    // there for as long as that takes.
    let verify = move || {
        let _copy = copy;
        answers.verified()
    };
    let verified = tokio::task::spawn_blocking(verify).await;
    let failed = |error: anyhow::Error| Refusal::new(RefusalKind::Failed, format!("{error:#}"));
    verified.map_err(|error| failed(error.into()))?.map(Json).map_err(failed)
}

async fn detach(State(daemon): Daemon, Query(terms): Query<Terms>) -> Answer<Done> {
    request(&daemon, |reply| Request::Detach(terms, reply)).await.map(Json)
}

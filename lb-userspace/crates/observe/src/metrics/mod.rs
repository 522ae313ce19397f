//! The metrics for Prometheus.
//!
//! A scrape requests the daemon's [`Status`], as `lbctl status` does, and writes families of it, by
//! topic: [`services`], [`node`], [`vrrp`], [`sync`], [`health`], [`process`]. Labels are what the
//! configuration names and words of this program: their number is bounded, whatever clients do.

mod format;
mod haproxy;
mod health;
mod node;
mod page;
mod pieces;
mod process;
mod services;
mod sync;
mod text;
mod vrrp;

use std::{collections::BTreeMap, fmt, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
    routing::get,
};
use lb_api::status::{Interface, Status};
use lb_model::refusal::{Refusal, RefusalKind};
use lb_netlink::drops::{self, Drops};
use prometheus_client::{
    collector::Collector,
    encoding::{self, DescriptorEncoder},
    registry::Registry,
};
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::{format::Format, page::Page, process::Process};
use crate::StatusRequest;

/// How many scrapes are answered at once; others wait. Each takes megabytes where there are a thousand
/// backends.
const AT_ONCE: usize = 2;

/// Serves `GET /metrics`.
pub fn router<Q: StatusRequest>(daemon: mpsc::Sender<Q>) -> Router {
    serve("/metrics", daemon, Names::Own)
}

/// Serves `GET /metrics/haproxy`: the figures by the names of HAProxy's exporter.
pub fn haproxy_router<Q: StatusRequest>(daemon: mpsc::Sender<Q>) -> Router {
    serve("/metrics/haproxy", daemon, Names::HaProxy)
}

/// The naming of the exported metrics.
#[derive(Clone, Copy, Debug)]
enum Names {
    Own,
    HaProxy,
}

struct Exporter<Q> {
    daemon: mpsc::Sender<Q>,
    names: Names,
    turns: Arc<Semaphore>,
}

fn serve<Q: StatusRequest>(path: &str, daemon: mpsc::Sender<Q>, names: Names) -> Router {
    let exporter = Exporter { daemon, names, turns: Arc::new(Semaphore::new(AT_ONCE)) };
    Router::new().route(path, get(scrape::<Q>)).with_state(Arc::new(exporter))
}

async fn scrape<Q: StatusRequest>(
    State(exporter): State<Arc<Exporter<Q>>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::wanted(accept.unwrap_or_default());
    let stopping = || Refusal::new(RefusalKind::Stopping, "lbd is stopping");
    let turn = Arc::clone(&exporter.turns).acquire_owned().await.map_err(|_| stopping())?;
    let (reply, answer) = oneshot::channel();
    exporter.daemon.send(reply.into()).await.map_err(|_| stopping())?;
    let status = answer.await.map_err(|_| stopping())??;
    let names = exporter.names;
    let (writer, pieces) = pieces::open(format);
    // It takes milliseconds, which the daemon's own task need not wait for.
    tokio::task::spawn_blocking(move || {
        let drops = egress_drops(&status);
        write(Snapshot { names, status, process: Process::read(), drops }, writer);
        drop(turn);
    });
    Ok(([(header::CONTENT_TYPE, format.content_type())], pieces.body()).into_response())
}

/// Packets dropped behind tc: at the interfaces by which backends are reached, if an interface has the program at tc.
fn egress_drops(status: &Status) -> BTreeMap<String, Drops> {
    if !status.interfaces.iter().any(Interface::is_at_tc) {
        return BTreeMap::new();
    }
    let backends = status.services.values().flat_map(|service| service.backends.values());
    // Packets for this node itself leave by no interface: theirs is the loopback.
    let exits = backends.filter_map(|backend| backend.interface.clone());
    let exits = exits.filter(|interface| interface != lb_model::hop::LOOPBACK).collect();
    drops::of(&exits)
}

/// All families.
fn write(snapshot: Snapshot, mut page: pieces::Writer) {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    encoding::text::encode(&mut page, &registry).expect("it takes everything");
    page.end();
}

/// The node at the moment of a scrape.
#[derive(Debug)]
struct Snapshot {
    names: Names,
    status: Status,
    process: Option<Process>,
    drops: BTreeMap<String, Drops>,
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        if let Names::HaProxy = self.names {
            return haproxy::write(&mut page, &self.status, self.process.as_ref());
        }
        services::write(&mut page, &self.status)?;
        node::write(&mut page, &self.status)?;
        node::egress_drops(&mut page, &self.drops)?;
        vrrp::write(&mut page, &self.status)?;
        sync::write(&mut page, &self.status)?;
        health::write(&mut page, &self.status)?;
        self.process.iter().try_for_each(|process| process::write(&mut page, process))
    }
}

#[cfg(test)]
mod tests;

//! The read-only listener: HTTP over TCP, with metrics, the dashboard, `/healthz`, `/readyz` and
//! the reading part of the API. It has no route that changes anything.
//!
//! It has a thread of its own, so that a flood holds up no other part of the daemon. The resources that it
//! takes are bounded:
//!
//! | resource | bound |
//! |---|---|
//! | connections | [`Config::connections`]; past that the one that has kept the balancer waiting longest goes, of the address that has most of them; if none waits, the one that comes |
//! | a handshake of TLS, the head of a request, the time between two | 5 s, 10 s, 10 s |
//! | a head | 16 KiB, 64 fields |
//! | a body | none |
//! | requests of a connection | 1,000 |
//! | requests at work | 16; others wait for their turn |
//! | an answer, till its last byte | 30 s |
//! | answers that wait to be read | 16 MiB for an address, 64 MiB together, or a single one |
//! | streams that go on for ever | [`Config::streams`]; one that its client does not read ends after 30 s |
//! | status requests to the daemon | one in 100 ms; requests meanwhile share the answer |
//!
//! A request with wrong credentials is refused after bcrypt's own time, one at a time, and waits behind
//! others of its own address only; meanwhile its connection counts as one without a request.

mod admission;
mod auth;
mod connection;
mod hosts;
mod limiter;
mod listen;
mod per_address;
mod status_broker;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use axum::Router;
use lb_api::status::Listener;
use lb_config::http::Config;
use lb_observe::{dashboard, events::Events, metrics, samples::Samples};
use tokio::sync::{mpsc, watch};

use crate::api::{Request, ready, server};

/// Opens and closes the listeners.
#[derive(Debug)]
pub struct HttpServer {
    config: watch::Sender<Option<Config>>,
    listeners: Listeners,
}

/// The listeners as they are, for the status.
#[derive(Clone, Debug, Default)]
pub struct Listeners(Arc<Mutex<Vec<Listener>>>);

impl Listeners {
    /// All configured ones.
    #[must_use]
    pub(crate) fn list(&self) -> Vec<Listener> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, all: Vec<Listener>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

impl HttpServer {
    /// Starts the thread of the listeners. It ends with the process, or when this is dropped.
    ///
    /// # Errors
    ///
    /// There is no room for a thread.
    pub fn start(daemon: mpsc::Sender<Request>, events: Events, samples: Samples) -> Result<Self> {
        let (config, wanted) = watch::channel(None);
        let listeners = Listeners::default();
        let kept = listeners.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // One compares passwords, one at a time; the other writes metrics.
            .max_blocking_threads(2)
            .build()
            .context("make the runtime of the HTTP listeners")?;
        let keep = move || runtime.block_on(listen::keep(wanted, kept, daemon, events, samples));
        lb_threads::spawn("lbd-http", keep).context("start the thread of the HTTP listeners")?;
        Ok(Self { config, listeners })
    }

    /// The listeners as they are.
    #[must_use]
    pub fn listeners(&self) -> Listeners {
        self.listeners.clone()
    }

    /// Opens and closes the listeners by a configuration. An unchanged one stays open.
    pub fn set(&self, config: Option<&Config>) {
        self.config.send_if_modified(|current| {
            let differs = current.as_ref() != config;
            if differs {
                *current = config.cloned();
            }
            differs
        });
    }
}

/// The routes of the listeners.
fn routes(
    config: &Config,
    daemon: &mpsc::Sender<Request>,
    events: &Events,
    samples: &Samples,
) -> Router {
    let mut routes = server::reading(daemon.clone(), events.clone(), samples.clone())
        .merge(ready::router(daemon.clone()))
        .merge(metrics::router(daemon.clone()));
    if config.haproxy_metrics {
        routes = routes.merge(metrics::haproxy_router(daemon.clone()));
    }
    if config.dashboard {
        routes = routes.merge(dashboard::router(samples.clone(), events.clone()));
    }
    routes.fallback(server::no_such_path)
}

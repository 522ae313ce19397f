//! The listeners: opened and closed as configured, and tried again when one can't be had.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_api::status::Listener;
use lb_config::http::Config;
use lb_observe::{events::Events, samples::Samples};
use lb_threads::lasting;
use socket2::{Domain, Socket, Type};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Listeners, admission::Admission, connection, limiter::ConnectionLimiter, routes, status_broker,
};
use crate::api::Request;

/// How often connections are looked at, and listeners that can't be had are tried again.
const TICK: Duration = Duration::from_secs(1);
/// Connections that wait in the kernel to be taken in.
const BACKLOG: i32 = 1_024;
/// After an error, as that there is no descriptor left.
const REST: Duration = Duration::from_millis(100);

/// The running parts of a configuration.
struct Setup {
    admission: Arc<Admission>,
    tls: Option<TlsAcceptor>,
    connections: u32,
}

type Current = Arc<RwLock<Option<Arc<Setup>>>>;

/// Keeps the listeners as configured, until the sender of configurations is dropped.
pub(super) async fn keep(
    mut wanted: watch::Receiver<Option<Config>>,
    listeners: Listeners,
    daemon: mpsc::Sender<Request>,
    events: Events,
    samples: Samples,
) {
    let status_broker = status_broker::open(daemon);
    let limiter = Arc::new(ConnectionLimiter::default());
    let current = Current::default();
    let mut open_listeners = OpenListeners::default();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            _ = tick.tick() => {
                limiter.sweep(Instant::now());
                open_listeners.open(&limiter, &current);
                listeners.set(open_listeners.list());
                continue;
            }
        }
        let config = wanted.borrow_and_update().clone();
        let set_up = |config| set_up(config, &status_broker, &events, &samples);
        let setup = config.as_ref().map(set_up).transpose();
        let setup = setup.unwrap_or_else(|error| {
            tracing::error!("the HTTP listener can't be set up: {error:#}");
            None
        });
        *current.write().unwrap_or_else(PoisonError::into_inner) = setup.map(Arc::new);
        // Clients that were admitted by the configuration before authenticate again.
        limiter.clear();
        open_listeners.set(config);
        open_listeners.open(&limiter, &current);
        listeners.set(open_listeners.list());
    }
}

fn set_up(
    config: &Config,
    status_broker: &mpsc::Sender<Request>,
    events: &Events,
    samples: &Samples,
) -> Result<Setup> {
    let admission =
        Arc::new(Admission::new(config, routes(config, status_broker, events, samples))?);
    let tls = config.tls.as_ref().map(|identity| TlsAcceptor::from(identity.config()));
    Ok(Setup { admission, tls, connections: config.connections })
}

#[derive(Default)]
struct OpenListeners {
    protection: String,
    all: BTreeMap<SocketAddr, OpenListener>,
}

#[derive(Default)]
struct OpenListener {
    /// Its task, which ends when this is dropped; none: it is not open.
    task: JoinSet<()>,
    /// Why it could not be opened when that was tried last.
    obstacle: Option<String>,
}

impl OpenListeners {
    fn set(&mut self, config: Option<Config>) {
        self.protection = config.as_ref().map(protection).unwrap_or_default();
        let listen = config.map(|config| config.listen).unwrap_or_default();
        self.all.retain(|address, _| listen.contains(address));
        for address in listen {
            self.all.entry(address).or_default();
        }
    }

    fn list(&self) -> Vec<Listener> {
        let one = |(address, open): (&SocketAddr, &OpenListener)| Listener {
            address: *address,
            obstacle: open.obstacle.clone(),
        };
        self.all.iter().map(one).collect()
    }

    /// Opens those that are not open.
    fn open(&mut self, limiter: &Arc<ConnectionLimiter>, current: &Current) {
        for (address, open) in self.all.iter_mut().filter(|(_, open)| open.task.is_empty()) {
            match bind(*address) {
                Ok(listener) => {
                    let task =
                        accept(listener, address.ip(), Arc::clone(limiter), Arc::clone(current));
                    open.task.spawn(lasting("HTTP listener", task));
                    open.obstacle = None;
                    tracing::info!(%address, protection = self.protection, "HTTP listener is open, read-only");
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    if open.obstacle.as_ref() != Some(&why) {
                        tracing::warn!("{why}; trying again each second");
                        open.obstacle = Some(why);
                    }
                }
            }
        }
    }
}

/// The protection of a listener, as text.
fn protection(config: &Config) -> String {
    let parts = [
        (config.tls.is_some(), "TLS"),
        (config.users.is_some(), "passwords"),
        (config.tokens.is_some(), "tokens"),
    ];
    let parts: Vec<_> = parts.iter().filter_map(|(is, name)| is.then_some(*name)).collect();
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    let open = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        if address.is_ipv6() {
            // 0.0.0.0 is another listener.
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().with_context(|| format!("listen for HTTP on {address}"))
}

/// Takes connections in at `address`, as many as there may be.
async fn accept(
    listener: TcpListener,
    address: IpAddr,
    limiter: Arc<ConnectionLimiter>,
    current: Current,
) {
    let mut is_failing = false;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!("take in connections over HTTP: {error}");
                }
                sleep(REST).await;
                continue;
            }
        };
        is_failing = false;
        let setup = current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(setup) = setup else { continue };
        if let Some(permit) = limiter.enter(peer.ip(), setup.connections, Instant::now()) {
            let admission = Arc::clone(&setup.admission);
            tokio::spawn(connection::serve(stream, permit, address, admission, setup.tls.clone()));
        }
    }
}

//! The daemon: the one task that owns the engine, and its inputs.
//!
//! Requests, signals, changes of the neighbourhood and timers come in one after the other. A change
//! of the desired state is checked as a whole, kept in the state file, and given to the engine; the
//! answer goes out when the maps are written. Requests that wait while the maps are written are
//! taken together, so that a burst of changes ends in few writes.

mod balancers;
mod batch;
mod compatibility;
mod config_requests;
mod end;
mod files;
mod flow_sync;
mod guard;
mod handover;
mod health;
mod inputs;
mod listeners;
mod node;
mod pace;
mod peer_reports;
mod peers;
mod periodic;
mod reach;
mod reconcile;
mod reload;
mod requests;
mod roles;
mod serve;
pub mod trunks;
mod unacked;
mod vrrp;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_api::event::{EventBody, Kind};
use lb_config::Config;
use lb_control::engine::Engine;
use lb_health::prober::Report;
use lb_model::{
    desired::{Admin, Desired},
    hop::{Neighbourhood, Station, Want},
    refusal::{Refusal, RefusalKind},
    time::Now,
};
use lb_observe::events::{Events, changes};
use lb_plane::DataPlane;
use lb_sync::Peers;
use lb_threads::systemd::Notifier;
use lb_vrrp::Vrrp;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::health::Checks;
use self::{
    end::Leaving, files::Files, handover::Handovers, health::Health, peers::PeerGroup,
    reach::Reach, reconcile::Writing, roles::Roles, vrrp::Virtual,
};
use crate::{
    api::{Reply, Request},
    clock::{self, Clocks},
    egress,
    state_file::writer::Kept,
    store::Store,
    web,
};

/// How often changes are exported to the peers.
const FLUSH_INTERVAL: Duration = Duration::from_millis(10);
/// How long it counts as starting while the maps can't be written. It serves lbctl meanwhile, so
/// that the service manager need not wait for ever.
const START: Duration = Duration::from_secs(30);

/// A request of the operator by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: lbd reads the configuration again and puts it in force.
    Reload,
    /// SIGTERM or SIGINT: the end of the daemon, not of forwarding.
    Stop,
}

/// The daemon's inputs.
#[derive(Debug)]
pub struct DaemonInputs {
    /// Requests of the API.
    pub requests: mpsc::Receiver<Request>,
    /// Signals.
    pub signals: mpsc::Receiver<Signal>,
    /// The neighbourhood.
    pub neighbours: watch::Receiver<Neighbourhood>,
    /// Reports about backends.
    pub reports: mpsc::UnboundedReceiver<Report>,
    /// Reports of the virtual routers.
    pub vrrp: mpsc::UnboundedReceiver<lb_vrrp::Report>,
    /// Reports of the sessions with the peers.
    pub peers: mpsc::UnboundedReceiver<lb_sync::Report>,
}

/// The other nodes.
pub struct Connection {
    /// The sessions with them.
    pub peers: Box<dyn Peers>,
    /// This node's name, and the addresses and timers of the sessions.
    pub config: lb_sync::Config,
    /// The seed, which must be theirs.
    pub seed: [u8; 16],
}

/// Opens and closes the HTTP listeners of a configuration; none: all are closed.
pub(crate) type SetHttp = Box<dyn Fn(Option<&lb_config::http::Config>) + Send>;

/// The daemon's inputs and outputs beside the engine.
pub struct Effects {
    /// Sets the next hops that the resolver is to find.
    pub want: Box<dyn Fn(BTreeSet<Want>) + Send>,
    /// Sets the interfaces in the resolver that have the program at tc.
    pub at_tc: Box<dyn Fn(BTreeSet<String>) + Send>,
    /// Reports to the resolver that a backend is silent.
    pub doubt: Box<dyn Fn(Want) + Send>,
    /// Gives the resolver the hosts that the program sends answers to.
    pub answered: Box<dyn Fn(BTreeSet<Station>) + Send>,
    /// Removes the pins, when the engine is gone.
    pub detach: Box<dyn FnOnce() -> Result<Vec<String>> + Send>,
    /// Reads the clocks.
    pub clocks: Box<dyn Fn() -> Clocks + Send>,
    /// The virtual routers.
    pub vrrp: Box<dyn Vrrp>,
    /// The peers; none if there are none.
    pub peers: Option<Connection>,
    /// Sets the HTTP listeners for read-only clients.
    pub set_http: SetHttp,
    /// The state of the listeners.
    pub listeners: web::Listeners,
    /// Where events go.
    pub events: Events,
    /// The service manager.
    pub notifier: Notifier,
}

/// The rest of [`Effects`] that [`Daemon`] keeps as it is.
struct Outputs {
    want: Box<dyn Fn(BTreeSet<Want>) + Send>,
    at_tc: Box<dyn Fn(BTreeSet<String>) + Send>,
    doubt: Box<dyn Fn(Want) + Send>,
    answered: Box<dyn Fn(BTreeSet<Station>) + Send>,
    detach: Box<dyn FnOnce() -> Result<Vec<String>> + Send>,
    clocks: Box<dyn Fn() -> Clocks + Send>,
    set_http: SetHttp,
    listeners: web::Listeners,
    events: Events,
    notifier: Notifier,
}

/// Why the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A stop was requested; forwarding goes on.
    Stopped,
    /// Everything was removed.
    Detached,
}

/// The daemon's state.
pub struct Daemon<D> {
    engine: Engine<D>,
    store: Store,
    writing: Writing,
    effects: Outputs,
    health: Health,
    vrrp: Virtual,
    group: Option<PeerGroup>,
    roles: Roles,
    handovers: Handovers,
    leaving: Option<Leaving>,
    reach: Reach,
    /// The addresses of the other balancers, as the engine knows them.
    balancers: BTreeSet<IpAddr>,
    /// The next hops that were sent to the resolver; none: none were sent yet.
    wanted: Option<BTreeSet<Want>>,
    /// Checks whether frames arrive that the program sends.
    egress: Option<Box<dyn egress::Check>>,
    trunks: Option<trunks::Trunks>,
    /// When the hosts were looked for that get answers.
    answered: Instant,
    /// Why that failed the last time.
    answered_error: Option<String>,
    clocks: clock::Watch,
    started: Instant,
    /// Is notified when the start is over.
    ready: Option<oneshot::Sender<()>>,
    /// Reads and writes the configuration's file.
    files: Files<D>,
}

/// How many interfaces and services the line lists that is logged when `lbd` is ready.
const LISTED: usize = 8;

impl<D: DataPlane> Daemon<D> {
    /// Puts configuration and state file together. Writes no map.
    ///
    /// # Errors
    ///
    /// The state file can't be read.
    pub fn new(
        mut engine: Engine<D>,
        checks: Box<dyn Checks>,
        effects: Effects,
        file: PathBuf,
        config: Config,
    ) -> Result<Self> {
        let Effects {
            want,
            at_tc,
            doubt,
            answered,
            detach,
            clocks,
            vrrp,
            peers,
            set_http,
            listeners,
            events,
            notifier,
        } = effects;
        let effects = Outputs {
            want,
            at_tc,
            doubt,
            answered,
            detach,
            clocks,
            set_http,
            listeners,
            events,
            notifier,
        };
        let clocks = (effects.clocks)();
        let limits = engine.data_plane().limits();
        let mut store =
            Store::new(file, config, limits).context("start the thread of the state file")?;
        let (events, jump) = store.load(clocks.wall)?;
        events.into_iter().for_each(|event| effects.events.record(event));
        engine.set_retired(store.written_sums().clone());
        let mut daemon = Self {
            engine,
            health: Health::new(checks, store.config().tunnel),
            store,
            writing: Writing::default(),
            effects,
            vrrp: Virtual::new(vrrp),
            group: peers
                .map(|Connection { peers, config, seed }| PeerGroup::new(peers, config, seed)),
            roles: Roles::default(),
            handovers: Handovers::default(),
            leaving: None,
            reach: Reach::default(),
            balancers: BTreeSet::new(),
            wanted: None,
            egress: None,
            trunks: None,
            answered: Instant::now(),
            answered_error: None,
            clocks: clock::Watch::new(clocks),
            started: Instant::now(),
            ready: None,
            files: Files::start().context("start the thread of the configuration's file")?,
        };
        if let Some(jump) = jump {
            daemon.follow_clock(jump);
        }
        Ok(daemon)
    }

    /// Adds the checks of whether frames that the program sends arrive.
    #[must_use]
    pub fn with_egress(self, egress: Box<dyn egress::Check>) -> Self {
        Self { egress: Some(egress), ..self }
    }

    /// One line for when the daemon is ready: VIPs, interfaces and their modes.
    fn ready_line(&self) -> String {
        let interfaces = self.engine.data_plane().interfaces();
        let interfaces = interfaces.iter().map(|i| format!("{} ({})", i.name, i.hook()));
        let services = self.store.desired().services.iter();
        let services = services.map(|(name, s)| format!("{name} {} ({})", s.key, s.mode));
        let list = |items: Vec<String>| match items.len() {
            0 => "none".to_owned(),
            count if count > LISTED => {
                format!("{}, and {} more", items[..LISTED].join(", "), count - LISTED)
            }
            _ => items.join(", "),
        };
        let routers = self.routers_line().map(|line| format!("; virtual routers: {line}"));
        format!(
            "ready on {}; services: {}{}",
            list(interfaces.collect()),
            list(services.collect()),
            routers.unwrap_or_default(),
        )
    }

    /// Runs until a stop or a detach is requested. `ready` is sent when the maps are written for the first time, or
    /// could not be for 30 seconds.
    ///
    /// # Errors
    ///
    /// The neighbourhood can't be followed any more, or the pins can't be removed.
    pub async fn run(self, inputs: DaemonInputs, ready: oneshot::Sender<()>) -> Result<Ended> {
        let (events, notifier) = (self.effects.events.clone(), self.effects.notifier);
        let ended = self.serve(inputs, ready).await;
        let (message, cause) = match &ended {
            Ok(Ended::Stopped) => (
                "lbd ends; forwarding goes on, `lbctl detach` ends it",
                "a stop was requested".into(),
            ),
            Ok(Ended::Detached) => {
                ("detached; nothing is forwarded any more", "lbctl detach".into())
            }
            Err(error) => ("lbd ends; forwarding goes on", format!("{error:#}")),
        };
        notifier.stopping(message);
        events.record(EventBody::new(Kind::Stopping, message, cause));
        events.close();
        ended
    }

    fn now(&self) -> Now {
        Now { wall: (self.effects.clocks)().wall, ..Now::read() }
    }

    /// Whether this can be in force beside a configuration.
    fn check(&self, config: &Config, wanted: &Desired) -> Result<(), Refusal> {
        self.store.check(config, wanted)?;
        self.check_trunks(config, wanted)
    }

    /// Puts a desired state in force and has it kept.
    fn put_in_force(&mut self, desired: Desired, cause: &str) -> Result<Kept, Refusal> {
        let events = changes::between(self.store.desired(), &desired, cause);
        for name in newly_starved(self.store.desired(), &desired) {
            tracing::warn!("no backend of {name} takes new flows");
        }
        self.set_desired(desired);
        let kept = self.keep();
        self.record(events);
        self.engine.set_desired(self.store.desired().clone());
        self.want();
        self.check_health();
        self.resume_stray_pinning();
        // A service that is new is another node's, maybe: then nothing of it is written here first.
        self.assign_roles();
        self.reconcile();
        self.sync_roles();
        match self.writing.error() {
            None => Ok(kept),
            Some(error) => {
                let refusal = Refusal::new(
                    RefusalKind::Failed,
                    format!("the maps could not be written: {error}"),
                );
                Err(refusal
                    .hint("the change is kept, and tried again each second; see 'lbctl status'"))
            }
        }
    }

    /// Sets the desired state and its fingerprint for the peers. Writes no map.
    fn set_desired(&mut self, desired: Desired) {
        self.store.set_desired(desired);
        self.update_fingerprint();
    }
}

/// The services that a change leaves without a backend for new flows.
fn newly_starved(before: &Desired, after: &Desired) -> Vec<String> {
    let fed = |desired: &Desired, name: &str| {
        let backends = desired.services.get(name).map(|service| &service.backends);
        backends.is_some_and(|all| all.values().any(|backend| backend.admin == Admin::Enabled))
    };
    let names = after.services.keys();
    names.filter(|name| fed(before, name) && !fed(after, name)).cloned().collect()
}

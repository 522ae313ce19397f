//! The daemon: the one task that owns the engine, and what it hears.
//!
//! Requests, signals, news of the neighbourhood and each second come in one after the other. What
//! changes the desired state is checked as a whole, kept in the state file, and given to the
//! engine; the answer goes out when the maps are written. What waits while the maps are written is
//! taken together, so that a burst of changes ends in few writes.

mod balancers;
mod batch;
mod compatibility;
mod end;
mod failover;
mod files;
mod flows;
mod guard;
mod handover;
mod health;
mod inputs;
mod listeners;
mod node;
mod pace;
mod peers;
mod reach;
mod reload;
mod requests;
mod roles;
mod save;
mod settle;
mod timers;
pub mod trunks;
mod unacked;
mod vrrp;
mod writing;

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
use lb_datapath::DataPlane;
use lb_health::prober::Report;
use lb_model::{
    desired::{Admin, Desired},
    hop::{Neighbourhood, Want},
    refusal::{Refusal, RefusalKind},
    time::Now,
};
use lb_observe::events::{Events, changes};
use lb_sync::Peers;
use lb_threads::notify::Notifier;
use lb_vrrp::Vrrp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval, sleep_until},
};

pub use self::health::Checks;
use self::{
    end::Leaving, failover::Handovers, files::Files, health::Health, inputs::await_first_hops,
    peers::Group, reach::Reach, roles::Roles, vrrp::Virtual, writing::Writing,
};
use crate::{
    api::Request,
    clock::{self, Clocks},
    egress,
    state_file::writer::Kept,
    store::Store,
    web,
};

/// How often the engine looks for what has run out.
const TICK: Duration = Duration::from_secs(1);
/// How often the engine looks for backends that are silent: several times before a client sends its
/// SYN again.
const LOOK: Duration = Duration::from_millis(100);
/// How often peers are told what is new.
const FLUSH_INTERVAL: Duration = Duration::from_millis(10);
/// How long it counts as starting while the maps can't be written. It serves lbctl meanwhile, so
/// that whoever starts it need not wait for ever.
const START: Duration = Duration::from_secs(30);
/// Requests that are taken together.
const BATCH: usize = 4_096;

/// Where an answer goes.
type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What the operator asks for by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: the configuration's difference.
    Reload,
    /// SIGTERM or SIGINT: the end of the daemon, not of forwarding.
    Stop,
}

/// What the daemon hears.
#[derive(Debug)]
pub struct Inputs {
    /// Requests of the API.
    pub requests: mpsc::Receiver<Request>,
    /// Signals.
    pub signals: mpsc::Receiver<Signal>,
    /// The neighbourhood.
    pub neighbours: watch::Receiver<Neighbourhood>,
    /// What is found out about backends.
    pub reports: mpsc::UnboundedReceiver<Report>,
    /// What the virtual routers tell.
    pub vrrp: mpsc::UnboundedReceiver<lb_vrrp::Report>,
    /// What the peers tell.
    pub peers: mpsc::UnboundedReceiver<lb_sync::Report>,
}

/// The other nodes.
pub struct Connection {
    /// How they are talked to.
    pub peers: Box<dyn Peers>,
    /// What they are told of who this node is.
    pub config: lb_sync::Config,
    /// The seed, which must be theirs.
    pub seed: [u8; 16],
}

/// Opens and closes the doors as a configuration says; none: all are closed.
pub type SetDoors = Box<dyn Fn(Option<&lb_config::http::Config>) + Send>;

/// What the daemon does beside the engine.
pub struct Effects {
    /// Tells the resolver what next hops are wanted.
    pub want: Box<dyn Fn(BTreeSet<Want>) + Send>,
    /// Tells the resolver which interfaces have the program at tc.
    pub at_tc: Box<dyn Fn(BTreeSet<String>) + Send>,
    /// Tells the resolver that a backend is silent.
    pub doubt: Box<dyn Fn(Want) + Send>,
    /// Removes what is pinned, when the engine is gone.
    pub detach: Box<dyn FnOnce() -> Result<Vec<String>> + Send>,
    /// Reads the clocks.
    pub clocks: Box<dyn Fn() -> Clocks + Send>,
    /// The virtual routers.
    pub vrrp: Box<dyn Vrrp>,
    /// The peers; none if there are none.
    pub peers: Option<Connection>,
    /// Where read-only clients are answered over TCP.
    pub doors: SetDoors,
    /// How that fares.
    pub listeners: web::Listeners,
    /// Where events go.
    pub events: Events,
    /// The service manager.
    pub notifier: Notifier,
}

/// What is left of [`Effects`] when everything has its place.
struct Outputs {
    want: Box<dyn Fn(BTreeSet<Want>) + Send>,
    at_tc: Box<dyn Fn(BTreeSet<String>) + Send>,
    doubt: Box<dyn Fn(Want) + Send>,
    detach: Box<dyn FnOnce() -> Result<Vec<String>> + Send>,
    clocks: Box<dyn Fn() -> Clocks + Send>,
    doors: SetDoors,
    listeners: web::Listeners,
    events: Events,
    notifier: Notifier,
}

/// Why the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to; forwarding goes on.
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
    group: Option<Group>,
    roles: Roles,
    handovers: Handovers,
    leaving: Option<Leaving>,
    reach: Reach,
    /// The addresses of the other balancers, as the engine knows them.
    balancers: BTreeSet<IpAddr>,
    /// The next hops that the resolver was told to find; none: it was not told yet.
    wanted: Option<BTreeSet<Want>>,
    /// Who looks whether frames arrive that the program sends.
    egress: Option<Box<dyn egress::Check>>,
    trunks: Option<trunks::Trunks>,
    clocks: clock::Watch,
    started: Instant,
    /// Who waits for the start to be over.
    ready: Option<oneshot::Sender<()>>,
    /// What reads and writes the configuration's file.
    files: Files<D>,
}

/// How many interfaces and services the line names that says that `lbd` is ready.
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
            detach,
            clocks,
            vrrp,
            peers,
            doors,
            listeners,
            events,
            notifier,
        } = effects;
        let effects =
            Outputs { want, at_tc, doubt, detach, clocks, doors, listeners, events, notifier };
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
            group: peers.map(|Connection { peers, config, seed }| Group::new(peers, config, seed)),
            roles: Roles::default(),
            handovers: Handovers::default(),
            leaving: None,
            reach: Reach::default(),
            balancers: BTreeSet::new(),
            wanted: None,
            egress: None,
            trunks: None,
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

    /// Has it looked whether frames arrive that the program sends.
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

    /// Runs until it is told to end. `ready` is told when the maps are written for the first time.
    ///
    /// # Errors
    ///
    /// The neighbourhood can't be followed any more, or the pins can't be removed.
    pub async fn run(self, inputs: Inputs, ready: oneshot::Sender<()>) -> Result<Ended> {
        let (events, notifier) = (self.effects.events.clone(), self.effects.notifier);
        let ended = self.serve(inputs, ready).await;
        let (message, cause) = match &ended {
            Ok(Ended::Stopped) => {
                ("lbd ends; forwarding goes on, `lbctl detach` ends it", "it was told to".into())
            }
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

    async fn serve(mut self, mut inputs: Inputs, ready: oneshot::Sender<()>) -> Result<Ended> {
        self.ready = Some(ready);
        (self.effects.doors)(self.store.config().http.as_ref());
        self.engine.set_desired(self.store.desired().clone());
        self.configure_routers();
        self.resume_routers();
        self.take_fingerprint();
        self.health.adopt(self.engine.adopted_view());
        (self.effects.at_tc)(self.engine.at_tc());
        self.want();
        await_first_hops(self.engine.wants(), &mut inputs.neighbours).await?;
        self.on_neighbourhood(inputs.neighbours.borrow_and_update().clone());
        self.reconcile();
        let _ = self.keep().note().await;
        self.get_ready();
        self.look_at_interfaces();
        self.settle();

        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let beat = self.effects.notifier.beat();
        let mut watchdog = interval(beat.unwrap_or(TICK));
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beat_of_news = interval(FLUSH_INTERVAL);
        beat_of_news.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting = Vec::new();
        let mut reports = Vec::new();
        loop {
            if self.has_left() {
                // What was changed last is kept, unless the disk stalls.
                let _ = self.store.last_write().note().await;
                return self.end();
            }
            let is_connected = self.group.as_ref().is_some_and(Group::is_connected);
            let wake = self.wakes_at();
            let rest = self.writing.rest(Instant::now());
            let rests = rest.is_some();
            tokio::select! {
                // The rest is over: what has come meanwhile is taken together.
                () = sleep_until(rest.unwrap_or_else(Instant::now).into()), if rests => continue,
                changed = inputs.neighbours.changed(), if !rests => {
                    changed.context("follow the kernel's neighbours")?;
                    inputs.neighbours.mark_changed();
                }
                count = inputs.requests.recv_many(&mut waiting, BATCH), if !rests => {
                    if count == 0 {
                        return Ok(Ended::Stopped);
                    }
                }
                report = inputs.reports.recv(), if !rests => {
                    reports.push(report.context("the health checks have ended")?);
                }
                effect = self.files.done(), if !rests => {
                    let effect = effect.context("the thread of the configuration's file has ended")?;
                    self.look_at_backlog(&inputs);
                    self.take_up(effect);
                    continue;
                }
                // What can't wait: addresses are about to move.
                report = inputs.vrrp.recv() => {
                    let report = report.context("the virtual routers have ended")?;
                    // What the peer has said that is followed counts, though it waits: once this node
                    // is Active, it goes by its own history.
                    let waiting = if self.roles.follows() { inputs.peers.len() } else { 0 };
                    for _ in 0..waiting {
                        let Ok(report) = inputs.peers.try_recv() else { break };
                        self.look_at_backlog(&inputs);
                        self.on_peer_report(report);
                        self.settle();
                    }
                    self.look_at_backlog(&inputs);
                    self.on_router_report(report);
                    while let Ok(report) = inputs.vrrp.try_recv() {
                        self.on_router_report(report);
                    }
                    self.settle();
                    continue;
                }
                report = inputs.peers.recv(), if self.group.is_some() => {
                    self.look_at_backlog(&inputs);
                    self.on_peer_report(report.context("what talks to the peers has ended")?);
                    self.settle();
                    continue;
                }
                _ = beat_of_news.tick(), if is_connected => {
                    self.flush();
                    continue;
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => {
                    self.look_at_handover();
                    continue;
                }
                _ = tick.tick() => {
                    self.look_at_backlog(&inputs);
                    self.tick();
                    continue;
                }
                _ = look.tick() => {
                    self.look();
                    continue;
                }
                // By this task itself, so that one that hangs is noticed.
                _ = watchdog.tick(), if beat.is_some() => {
                    self.effects.notifier.alive();
                    continue;
                }
                signal = inputs.signals.recv() => match signal {
                    Some(Signal::Reload) => {
                        // Answered by an event.
                        self.with_config(|daemon, read| drop(daemon.reload_for(read, "SIGHUP")));
                        continue;
                    }
                    Some(Signal::Stop) if self.leaving.is_none() => {
                        self.leave(None);
                        continue;
                    }
                    // Who asks twice does not want to wait.
                    Some(Signal::Stop) | None => return Ok(Ended::Stopped),
                },
            }
            self.look_at_backlog(&inputs);
            while waiting.len() < BATCH
                && let Ok(request) = inputs.requests.try_recv()
            {
                waiting.push(request);
            }
            while let Ok(report) = inputs.reports.try_recv() {
                reports.push(report);
            }
            self.on_reports(reports.drain(..));
            if inputs.neighbours.has_changed().unwrap_or(false) {
                self.on_neighbourhood(inputs.neighbours.borrow_and_update().clone());
            }
            self.turn(&mut waiting);
        }
    }

    fn look_at_backlog(&mut self, inputs: &Inputs) {
        if let Some(group) = &mut self.group {
            group.has_backlog = !inputs.peers.is_empty();
        }
    }

    /// When something that is under way is to be looked at again.
    fn wakes_at(&self) -> Option<Instant> {
        self.handovers.deadline().into_iter().chain(self.leaves_until()).min()
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
    fn enact(&mut self, desired: Desired, cause: &str) -> Result<Kept, Refusal> {
        let events = changes::between(self.store.desired(), &desired, cause);
        for name in newly_starved(self.store.desired(), &desired) {
            tracing::warn!("no backend of {name} takes new flows");
        }
        self.take(desired);
        let kept = self.keep();
        self.record(events);
        self.engine.set_desired(self.store.desired().clone());
        self.want();
        self.check_health();
        self.release_stray_pins();
        // A service that is new is another node's, maybe: then nothing of it is written here first.
        self.assign_roles();
        self.reconcile();
        self.settle();
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

    /// Takes over what is desired, without a write.
    fn take(&mut self, desired: Desired) {
        self.store.set_desired(desired);
        self.take_fingerprint();
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

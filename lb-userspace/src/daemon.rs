//! The daemon: the one task that owns the engine, and what it hears.
//!
//! Requests, signals, news of the neighbourhood and each second come in one after the other. What
//! changes the desired state is checked as a whole, kept in the state file, and given to the
//! engine; the answer goes out when the maps are written.

mod balancer;
mod reload;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::balancer::Balancer;
use crate::{
    api::{Done, Reloaded, Request},
    config::Config,
    desired::{Admin, Desired},
    diff::Intent,
    edit::{Edit, Refusal, RefusalKind},
    engine::Now,
    netlink::{Neighbourhood, Resolution, Want},
    overrides::Overrides,
    rules,
    settings::Limits,
    state_file::{self, Loaded},
    status::Status,
};

/// How often the engine looks for what has run out.
const TICK: Duration = Duration::from_secs(1);
/// How long the start waits for the next hops of all backends, so that none is taken for
/// unreachable because it was not asked for yet.
const FIRST_HOPS: Duration = Duration::from_secs(1);

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
}

/// What the daemon does beside the engine.
pub struct Effects {
    /// Tells the resolver what next hops are wanted.
    pub want: Box<dyn Fn(BTreeSet<Want>) + Send>,
    /// Removes what is pinned, when the engine is gone.
    pub detach: Box<dyn FnOnce() -> Result<Vec<String>> + Send>,
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
pub struct Daemon<B> {
    balancer: B,
    effects: Effects,
    file: PathBuf,
    config: Config,
    /// Of the maps as they were made; a reload does not change them.
    limits: Limits,
    overrides: Overrides,
    desired: Desired,
    deadlines: BTreeMap<String, Duration>,
    started: Instant,
    /// What the last write of maps met with.
    last_error: Option<String>,
    /// Whether the state file is not what is in force.
    unkept: bool,
}

impl<B: Balancer> Daemon<B> {
    /// Puts configuration and state file together. Writes no map.
    ///
    /// # Errors
    ///
    /// The state file can't be read.
    pub fn new(balancer: B, effects: Effects, file: PathBuf, config: Config) -> Result<Self> {
        let mut daemon = Self {
            balancer,
            effects,
            file,
            limits: config.limits,
            desired: config.desired.clone(),
            deadlines: config.drain_deadlines.clone(),
            overrides: Overrides::default(),
            config,
            started: Instant::now(),
            last_error: None,
            unkept: false,
        };
        let path = daemon.config.state_file.clone();
        match state_file::load(&path)? {
            Loaded::Absent => {}
            Loaded::SetAside { to, reason } => tracing::error!(
                file = %path.display(), moved_to = %to.display(), reason,
                "the state file can't be used: changes by lbctl are lost, the configuration is in force"
            ),
            Loaded::State(state) => daemon.resume(&path, state)?,
        }
        Ok(daemon)
    }

    /// One line for when the daemon is ready: VIPs, interfaces and their modes.
    ///
    /// # Errors
    ///
    /// The maps can't be read.
    pub fn ready_line(&self) -> Result<String> {
        let interfaces = self.balancer.status()?.interfaces;
        let interfaces = interfaces.iter().map(|i| format!("{} (XDP {})", i.name, i.mode));
        let services = self.desired.services.iter();
        let services = services.map(|(name, s)| format!("{name} {} ({})", s.key, s.mode));
        let list = |items: Vec<String>| match items.is_empty() {
            true => "none".to_owned(),
            false => items.join(", "),
        };
        Ok(format!(
            "ready on {}; services: {}",
            list(interfaces.collect()),
            list(services.collect())
        ))
    }

    /// Runs until it is told to end. `ready` is told when the maps are written for the first time.
    ///
    /// # Errors
    ///
    /// The neighbourhood can't be followed any more, or the pins can't be removed.
    pub async fn run(mut self, mut inputs: Inputs, ready: oneshot::Sender<()>) -> Result<Ended> {
        self.balancer.set_desired(self.desired.clone());
        (self.effects.want)(self.balancer.wants());
        await_first_hops(self.balancer.wants(), &mut inputs.neighbours).await?;
        self.meet(inputs.neighbours.borrow_and_update().clone());
        // What can't be kept is logged, and tried again.
        let _ = self.keep();
        // Nobody may be waiting.
        let _ = ready.send(());

        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = inputs.neighbours.changed() => {
                    changed.context("follow the kernel's neighbours")?;
                    let neighbourhood = inputs.neighbours.borrow_and_update().clone();
                    self.meet(neighbourhood);
                }
                _ = tick.tick() => self.tick(),
                signal = inputs.signals.recv() => match signal {
                    Some(Signal::Reload) => match self.reload() {
                        Ok(Reloaded { done, .. }) => {
                            tracing::info!(notes = ?done.notes, "{}", done.message);
                        },
                        Err(refusal) => tracing::error!("configuration not reloaded: {refusal}"),
                    },
                    Some(Signal::Stop) | None => return Ok(Ended::Stopped),
                },
                request = inputs.requests.recv() => match request {
                    None => return Ok(Ended::Stopped),
                    Some(Request::Detach(tell)) => return self.detach(tell),
                    Some(request) => self.answer(request),
                },
            }
        }
    }

    fn answer(&mut self, request: Request) {
        // Who asked may be gone by the time of an answer.
        match request {
            Request::Status(tell) => drop(tell.send(self.status())),
            Request::Edit(edit, tell) => drop(tell.send(self.edit(&edit))),
            Request::Reload(tell) => drop(tell.send(self.reload())),
            Request::Detach(_) => {}
        }
    }

    fn status(&self) -> Result<Status, Refusal> {
        let failed = |error| Refusal::new(RefusalKind::Failed, format!("{error:#}"));
        let mut status = self.balancer.status().map_err(failed)?;
        status.version = env!("CARGO_PKG_VERSION").into();
        status.uptime_secs = self.started.elapsed().as_secs();
        status.last_error = self.last_error.clone().or(status.last_error);
        Ok(status)
    }

    fn edit(&mut self, edit: &Edit) -> Result<Done, Refusal> {
        let mut desired = self.desired.clone();
        let mut deadlines = self.deadlines.clone();
        let message = edit.apply(&mut desired, &mut deadlines, SystemTime::now())?;
        self.check(&desired)?;
        self.deadlines = deadlines;
        let starved = newly_starved(&self.desired, &desired);
        let mut notes = self.enact(desired)?;
        tracing::info!("{message}");
        for name in starved {
            let note = format!(
                "no backend of {name} takes new flows; new connections are dropped until one does"
            );
            tracing::warn!("{note}");
            notes.push(note);
        }
        Ok(Done { message, notes })
    }

    fn check(&self, desired: &Desired) -> Result<(), Refusal> {
        let violations = rules::violations(desired, &self.limits);
        if violations.is_empty() {
            return Ok(());
        }
        let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
        Err(Refusal::new(RefusalKind::Invalid, all.join("; ")))
    }

    /// Puts a desired state in force and keeps it; says what did not go as it should.
    fn enact(&mut self, desired: Desired) -> Result<Vec<String>, Refusal> {
        self.overrides = Overrides::between(
            self.config.intent(),
            Intent { desired: &desired, deadlines: &self.deadlines },
        );
        self.desired = desired;
        let mut notes = Vec::new();
        if let Err(error) = self.keep() {
            notes.push(format!(
                "this is not kept over a restart of lbd, until it can be written: {error:#}"
            ));
        }
        self.balancer.set_desired(self.desired.clone());
        (self.effects.want)(self.balancer.wants());
        self.reconcile();
        match &self.last_error {
            None => Ok(notes),
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

    fn detach(self, tell: oneshot::Sender<Result<Done, Refusal>>) -> Result<Ended> {
        // As long as the engine holds the links, the program stays.
        drop(self.balancer);
        let removed = (self.effects.detach)().context("detach");
        // Who asked may be gone.
        drop(tell.send(match &removed {
            Ok(removed) => Ok(Done {
                message: "detached; nothing is forwarded any more".into(),
                notes: removed.clone(),
            }),
            Err(error) => Err(Refusal::new(RefusalKind::Failed, format!("{error:#}"))),
        }));
        removed.map(|_| Ended::Detached)
    }

    /// Hears of the neighbourhood; what is new in it, the resolver has logged.
    fn meet(&mut self, neighbourhood: Neighbourhood) {
        self.balancer.set_neighbourhood(neighbourhood);
        self.reconcile();
    }

    fn tick(&mut self) {
        self.keep_again();
        match self.balancer.sweep(Now::read()) {
            Ok(swept) if !swept.removed.is_empty() => self.finish_removals(&swept.removed),
            Ok(_) if self.last_error.is_some() => self.reconcile(),
            Ok(_) => {}
            Err(error) => self.note(Some(format!("{error:#}"))),
        }
    }

    /// Takes backends out whose last flow has ended.
    fn finish_removals(&mut self, removed: &[(String, IpAddr)]) {
        let mut desired = self.desired.clone();
        for (service, address) in removed {
            let found = desired.services.get_mut(service).and_then(|s| s.backends.remove(address));
            if found.is_some() {
                tracing::info!(service, backend = %address, "backend removed, its last flow has ended");
            }
        }
        if let Err(refusal) = self.enact(desired) {
            tracing::error!("{refusal}");
        }
    }

    fn reconcile(&mut self) {
        match self.balancer.reconcile(Now::read()) {
            Ok(outcome) => {
                if outcome.changes > 0 {
                    tracing::debug!(
                        changes = outcome.changes,
                        slots = outcome.slots_moved,
                        "maps written"
                    );
                }
                self.note(None);
            }
            Err(error) => self.note(Some(format!("{error:#}"))),
        }
    }

    /// Remembers how the last write of maps went, and logs it when that is new.
    fn note(&mut self, error: Option<String>) {
        match &error {
            Some(text) if self.last_error.as_ref() != Some(text) => {
                tracing::error!("the maps can't be written: {text}; trying again each second");
            }
            None if self.last_error.is_some() => tracing::info!("the maps are written again"),
            _ => {}
        }
        self.last_error = error;
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

/// Waits until it is known of each next hop whether there is one, for a while.
async fn await_first_hops(
    wants: BTreeSet<Want>,
    neighbours: &mut watch::Receiver<Neighbourhood>,
) -> Result<()> {
    let known = |neighbourhood: &Neighbourhood| {
        wants.iter().all(|want| {
            matches!(
                neighbourhood.hops.get(want),
                Some(Resolution::Resolved(_) | Resolution::Unreachable { .. })
            )
        })
    };
    match tokio::time::timeout(FIRST_HOPS, neighbours.wait_for(known)).await {
        Ok(Err(_)) => anyhow::bail!("the kernel's neighbours can't be followed"),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

//! Probes the backends, in a thread of its own: what it does disturbs nothing else, and nothing else
//! makes it late.
//!
//! [`schedule`] decides which backend is checked when, and takes the results; [`super::fsm`] decides what
//! that means. Here are the thread, its runtime and its clock.
//!
//! Files are read and commands run on threads beside it, so that a slow disk delays no other check. When the
//! process has not run for a while, missing answers of that time mean nothing.

mod schedule;
mod trouble;

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use lb_api::check_status::{CheckStatus, Load};
use lb_model::{
    check::Check,
    policy::OnDown,
    seen::{BackendKey, Condition, Seen},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    runtime,
    sync::{Notify, mpsc},
    task::AbortHandle,
    time,
};
use tracing::warn;

use self::schedule::{Answer, Schedule, Work};
pub use super::fsm::Change;
use super::{
    probe::{self, Outcome, Probe, Route},
    vip,
};

/// Of the descriptors that the process may have, one in so many is for probes.
const SHARE: u64 = 2;

/// What a backend's checks are made with.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The service's name.
    pub service: String,
    /// The check, and how often it runs.
    pub check: Check,
    /// Where probes go; none: that is not known yet, nothing is sent and nothing reported.
    pub route: Option<Route>,
    /// The half-life of the penalty for going down; zero: none.
    pub half_life: Duration,
    /// What becomes of its flows while it is down.
    pub on_down: OnDown,
    /// What the backend counts as until it has answered; for one that is known already it means
    /// nothing.
    pub initial: Condition,
    /// Whether probes of an earlier run have established `initial`. Otherwise it is an assumption, and the first answer
    /// decides.
    pub is_adopted: bool,
}

/// What has changed of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The backend.
    pub target: BackendKey,
    /// What is seen of it.
    pub seen: Seen,
    /// The change of its condition; none: only whether it is held or suspect has changed.
    pub change: Option<Change>,
}

/// Runs probes; tests answer by script.
pub(crate) trait ProbeRunner: Send + Sync + 'static {
    /// Runs a probe, and takes hardly longer than the probe's timeout.
    fn run(&self, probe: Arc<Probe>) -> impl Future<Output = Outcome> + Send + 'static;

    /// From now on probes may go to these VIPs and to no others, and come from none of them.
    fn set_vips(&self, vips: std::collections::BTreeSet<IpAddr>);
}

/// Sends probes over the network.
#[derive(Clone, Debug, Default)]
struct NetworkRunner {
    network: vip::Network,
    tls: Arc<probe::tls::Cache>,
}

impl ProbeRunner for NetworkRunner {
    fn run(&self, probe: Arc<Probe>) -> impl Future<Output = Outcome> + Send + 'static {
        let Self { network, tls } = self.clone();
        async move { probe::run(&probe, &network, &tls).await }
    }

    fn set_vips(&self, vips: std::collections::BTreeSet<IpAddr>) {
        self.network.set_vips(vips);
    }
}

/// Probes backends; dropping it ends that.
#[derive(Debug)]
pub struct Prober {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// `None`: it is over.
    schedule: Mutex<Option<Schedule>>,
    wake: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Schedule>> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Prober {
    /// Starts the thread, in the network namespace of the calling one. As many file descriptors as
    /// the hard limit allows are taken for the process. Reports end with the prober.
    ///
    /// # Errors
    ///
    /// If the system has no thread to give, or no descriptors for its runtime.
    pub fn start() -> Result<(Self, mpsc::UnboundedReceiver<Report>)> {
        Self::start_with(NetworkRunner::default())
    }

    /// The same with another runner of probes.
    ///
    /// # Errors
    ///
    /// As for [`Self::start`].
    pub(crate) fn start_with<A: ProbeRunner>(
        runner: A,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Report>)> {
        let limit = raise_descriptors();
        let schedule = Schedule::new(limit, RandomState::new().hash_one(0));
        let shared = Arc::new(Shared { schedule: Mutex::new(Some(schedule)), wake: Notify::new() });
        let (sender, reports) = mpsc::unbounded_channel();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime of the health checks")?;
        let task = Task::new(Arc::clone(&shared), runner, sender);
        let thread = thread::Builder::new()
            .name("health".into())
            .spawn(move || {
                runtime.block_on(task.run());
                // What still looks a name up or waits for a command may not hold the end up.
                runtime.shutdown_background();
            })
            .context("start the thread of the health checks")?;
        Ok((Self { shared, thread: Some(thread) }, reports))
    }

    /// Replaces all assignments. Backends that were known keep their state and counts, except for
    /// what another check makes meaningless.
    pub fn assign(&self, assignments: BTreeMap<BackendKey, Assignment>) {
        if let Some(schedule) = &mut *self.shared.lock() {
            schedule.assign(assignments, Instant::now());
        }
        self.shared.wake.notify_one();
    }

    /// A backend does not answer its clients' packets: lbd probes it at once, and again at once if it
    /// is silent. `reason` ends the sentence "it was asked because".
    pub fn suspect(&self, target: BackendKey, reason: String) {
        if let Some(schedule) = &mut *self.shared.lock() {
            schedule.suspect(target, reason, Instant::now());
        }
        self.shared.wake.notify_one();
    }

    /// All that is known of the backends, for status.
    #[must_use]
    pub fn status(&self) -> BTreeMap<BackendKey, CheckStatus> {
        let schedule = self.shared.lock();
        let status = |schedule: &Schedule| schedule.status(Instant::now(), SystemTime::now());
        schedule.as_ref().map(status).unwrap_or_default()
    }

    /// What the prober has to do, and how it fares.
    #[must_use]
    pub fn load(&self) -> Load {
        self.shared.lock().as_ref().map(Schedule::load).unwrap_or_default()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        *self.shared.lock() = None;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the thread of the health checks had panicked");
        }
    }
}

/// Lets the process have as many descriptors as it may; returns how many probes may have.
fn raise_descriptors() -> usize {
    let allowed = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(error) => {
                warn!("the limit of {soft} file descriptors stays: {error}");
                soft
            }
        },
        Ok((soft, _)) => soft,
        Err(error) => {
            warn!("the limit of file descriptors can't be read: {error}");
            1024
        }
    };
    usize::try_from(allowed / SHARE).unwrap_or(usize::MAX)
}

/// What the thread does.
struct Task<A> {
    shared: Arc<Shared>,
    runner: Arc<A>,
    reports: mpsc::UnboundedSender<Report>,
    running: HashMap<u64, AbortHandle>,
    sender: mpsc::UnboundedSender<Answer>,
    answers: mpsc::UnboundedReceiver<Answer>,
}

impl<A: ProbeRunner> Task<A> {
    fn new(shared: Arc<Shared>, runner: A, reports: mpsc::UnboundedSender<Report>) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        let running = HashMap::new();
        Self { shared, runner: Arc::new(runner), reports, running, sender, answers }
    }

    async fn run(mut self) {
        let mut batch: Vec<Answer> = Vec::new();
        let sleep = time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        loop {
            for answer in &batch {
                self.running.remove(&answer.serial);
            }
            let now = Instant::now();
            let (work, next) = match &mut *self.shared.lock() {
                None => return,
                Some(schedule) => {
                    schedule.turn(batch.drain(..), now);
                    (std::mem::take(&mut schedule.work), schedule.next(now))
                }
            };
            work.into_iter().for_each(|work| self.perform(work));
            if let Some(next) = next {
                sleep.as_mut().reset(next.into());
            }
            tokio::select! {
                biased;
                () = self.shared.wake.notified() => {}
                _ = self.answers.recv_many(&mut batch, BATCH) => {}
                () = &mut sleep, if next.is_some() => {}
            }
            // Else a queue of probes that are due would be begun before any is answered.
            tokio::task::yield_now().await;
        }
    }

    fn perform(&mut self, work: Work) {
        match work {
            Work::SetVips(vips) => self.runner.set_vips(vips),
            Work::Probe { target, serial, probe } => {
                let run = self.runner.run(probe);
                let mut reply = Reply { sender: self.sender.clone(), target, serial, open: true };
                let task = tokio::spawn(async move {
                    let begun = Instant::now();
                    let outcome = run.await;
                    reply.send(outcome, begun.elapsed());
                });
                self.running.insert(serial, task.abort_handle());
            }
            Work::Abandon(serial) => {
                if let Some(task) = self.running.remove(&serial) {
                    task.abort();
                }
            }
            // The channel is closed when the daemon is about to end.
            Work::Report(report) => drop(self.reports.send(report)),
        }
    }
}

/// How many answers are taken in in one turn.
const BATCH: usize = 256;

/// Sends the answer, and an error if there is none: a probe must end in every case.
struct Reply {
    sender: mpsc::UnboundedSender<Answer>,
    target: BackendKey,
    serial: u64,
    open: bool,
}

impl Reply {
    fn send(&mut self, outcome: Outcome, took: Duration) {
        self.open = false;
        let Self { target, serial, .. } = *self;
        // The receiver is gone when the prober ends.
        drop(self.sender.send(Answer { target, serial, outcome, took }));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.open {
            self.send(Outcome::Unknown { reason: "the check broke off".into() }, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests;

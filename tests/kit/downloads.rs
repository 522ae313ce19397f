//! Long downloads on every web host, each compared with what it should be: what a change of the
//! backends must not break.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{http::Connection, lab::Lab, nginx};

/// The highest rate of a download, in bytes a second: dozens of them are not to keep this machine busy.
const RATE: usize = 192 << 10;

/// The plan of downloads.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where to connect.
    pub target: SocketAddr,
    /// Downloads from each web host.
    pub each: usize,
    /// About how long one takes.
    pub time: Duration,
    /// How long it may be silent before it counts as broken.
    pub patience: Duration,
}

/// Downloads that run.
#[derive(Debug)]
pub struct Downloads {
    running: Vec<(Last, JoinHandle<Download>)>,
    stop: Arc<AtomicBool>,
}

/// When the last piece of a download came.
type Last = Arc<Mutex<Instant>>;

/// The result of a download.
#[derive(Clone, Debug)]
pub struct Download {
    /// The host that it came from.
    pub host: String,
    /// When it ended.
    pub at: Instant,
    /// When the last piece came.
    pub last: Instant,
    /// Whether all of it came, and if not, the error.
    pub end: Result<(), String>,
}

impl Downloads {
    /// Opens connections from the lab's client until every web host has its number, and starts
    /// the downloads on them.
    ///
    /// # Errors
    ///
    /// If there is no connection, or the target leaves a host out.
    pub fn start(lab: &Lab, plan: Plan) -> Result<Self> {
        let hosts = lab.webs.iter().map(|web| (web.host.name.clone(), Vec::new()));
        let mut found: BTreeMap<String, Vec<Connection>> = hosts.collect();
        let wanted = plan.each * found.len();
        // By chance alone, each host is chosen far more often than it has to be.
        for _ in 0..wanted * 20 {
            if found.values().all(|connections| connections.len() == plan.each) {
                break;
            }
            let from = &lab.client.namespace;
            let mut connection = Connection::open(from, plan.target, plan.patience)?;
            let host = connection.get("/")?.ok()?.backend()?;
            let connections = found.get_mut(&host).with_context(|| format!("who is {host}"))?;
            if connections.len() < plan.each {
                connections.push(connection);
            }
        }
        let mut expected = nginx::big();
        let most = (plan.time.as_secs_f64() * RATE as f64) as usize;
        expected.truncate(most.max(1));
        let expected = Arc::new(expected);
        let rate = expected.len() as f64 / plan.time.as_secs_f64();
        let path = format!("/big?rate={}", rate as u64);
        let (mut running, stop) = (Vec::new(), Arc::new(AtomicBool::new(false)));
        for (host, connections) in found {
            ensure!(connections.len() == plan.each, "{host} is not chosen");
            for mut connection in connections {
                let (path, expected) = (path.clone(), Arc::clone(&expected));
                let (host, stop) = (host.clone(), Arc::clone(&stop));
                let last = Last::new(Mutex::new(Instant::now()));
                let shared = Arc::clone(&last);
                let thread = thread::Builder::new().spawn(move || {
                    let come = |at| *shared.lock().unwrap_or_else(PoisonError::into_inner) = at;
                    let go_on = || {
                        come(Instant::now());
                        !stop.load(Ordering::Relaxed)
                    };
                    let end = connection.get_expecting(&path, &expected, go_on);
                    let end = end.map(drop).map_err(|err| format!("{err:#}"));
                    let last = *shared.lock().unwrap_or_else(PoisonError::into_inner);
                    Download { host, at: Instant::now(), last, end }
                });
                running.push((last, thread.context("start a thread")?));
            }
        }
        Ok(Self { running, stop })
    }

    /// How many got nothing since a moment.
    #[must_use]
    pub fn silent_since(&self, moment: Instant) -> usize {
        let last = |last: &Last| *last.lock().unwrap_or_else(PoisonError::into_inner);
        self.running.iter().filter(|(at, _)| last(at) < moment).count()
    }

    /// Lets each end with the next piece that it gets: one that gets none has broken. What became of
    /// them.
    ///
    /// # Errors
    ///
    /// If a thread panicked.
    pub fn end(self) -> Result<Vec<Download>> {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// How many have ended by themselves, whole or broken.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.running.iter().filter(|(_, thread)| thread.is_finished()).count()
    }

    /// Waits for the end of all. Returns the results.
    ///
    /// # Errors
    ///
    /// If a thread panicked.
    pub fn finish(self) -> Result<Vec<Download>> {
        let ended = self.running.into_iter().map(|(_, thread)| thread.join());
        let ended = ended.collect::<Result<_, _>>();
        ended.map_err(|_| anyhow!("the thread of a download panicked"))
    }
}

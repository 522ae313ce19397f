//! Load: hundreds of real TCP connections that request pages all the time, and check that each is
//! answered by one backend from its beginning to its end.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    http::Connection,
    namespace::{self, Namespace},
    wait,
};

/// How long an answer may take before its connection counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// The plan of the load.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where to connect.
    pub target: SocketAddr,
    /// Connections that stay open until the end.
    pub steady: usize,
    /// Connections at any time that make a few requests, end, and are opened again.
    pub passing: usize,
    /// Time between two requests of a connection.
    pub pause: Duration,
}

/// Running load; stopped when dropped.
#[derive(Debug)]
pub struct Load {
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    plan: Plan,
}

/// The result of the load.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Connections that were opened.
    pub connections: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Connections by the backend that answered.
    pub by_backend: BTreeMap<String, u64>,
    /// Connections that could not be opened, broke, or changed their backend.
    pub broken: Vec<Broken>,
}

/// A connection that broke.
#[derive(Clone)]
pub struct Broken {
    /// When it was opened, or was to be.
    pub opened: Instant,
    /// When it broke.
    pub at: Instant,
    /// The error.
    pub what: String,
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (age, ago) = (self.at - self.opened, self.at.elapsed());
        write!(f, "{} (after {age:.3?}, {ago:.3?} ago)", self.what)
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    ready: AtomicU64,
    requests: AtomicU64,
    report: Mutex<Report>,
}

impl Load {
    /// Starts the load from a namespace, and waits until every steady connection has been answered
    /// once.
    ///
    /// # Errors
    ///
    /// If they are not, or one of them breaks at once.
    pub fn start(from: &Namespace, plan: Plan) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut load = Self { threads: Vec::new(), shared, plan };
        for n in 0..plan.steady + plan.passing {
            let (shared, path) = (Arc::clone(&load.shared), from.path());
            let builder = thread::Builder::new().stack_size(256 << 10);
            let thread = builder.spawn(move || {
                if let Err(err) = namespace::join(&path) {
                    return shared.broken(Instant::now(), &format!("{err:#}"));
                }
                if n < plan.steady { shared.steady(plan) } else { shared.passing(plan, n) }
            });
            load.threads.push(thread.context("start a thread")?);
        }
        wait::until(Duration::from_secs(30), "every connection is answered", || {
            let report = load.report();
            ensure!(report.broken.is_empty(), "broken: {:?}", report.broken);
            let ready = load.shared.ready.load(Ordering::Relaxed);
            ensure!(ready >= plan.steady as u64, "{ready} of {} are", plan.steady);
            Ok(())
        })?;
        Ok(load)
    }

    /// Its result so far.
    #[must_use]
    pub fn report(&self) -> Report {
        let report = self.shared.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Report { requests: self.shared.requests.load(Ordering::Relaxed), ..report }
    }

    /// Lets every connection make a few more requests.
    pub fn run_for(&self, time: Duration) {
        thread::sleep(time);
    }

    /// Ends the load: every connection finishes its request. Returns the result.
    #[must_use]
    pub fn finish(mut self) -> Report {
        self.stop();
        self.report()
    }

    /// The plan that it follows.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.plan
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed so.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Report {
    /// That nothing broke, and something happened.
    ///
    /// # Errors
    ///
    /// If not; the error has the first failure.
    pub fn check(&self) -> Result<()> {
        let (broken, total) = (self.broken.len(), self.connections);
        let first: Vec<_> = self.broken.iter().take(5).collect();
        ensure!(broken == 0, "{broken} of {total} connections broke: {first:#?}");
        ensure!(self.requests > 0, "no request was answered");
        Ok(())
    }
}

impl Shared {
    fn steady(&self, plan: Plan) {
        self.connection(plan, &mut |_| true);
    }

    fn passing(&self, plan: Plan, n: usize) {
        let mut turn = n;
        while !self.stop.load(Ordering::Relaxed) {
            // 1 to 16 requests, no two neighbours in step.
            turn = turn.wrapping_mul(31).wrapping_add(17);
            let last = 1 + turn % 16;
            self.connection(plan, &mut |requests| requests < last);
        }
    }

    /// One connection from its beginning to its end.
    fn connection(&self, plan: Plan, go_on: &mut dyn FnMut(usize) -> bool) {
        let (mut context, opened) = (String::new(), Instant::now());
        if let Err(err) = self.requests(plan, go_on, &mut context) {
            self.broken(opened, &format!("{context}{err:#}"));
            thread::sleep(plan.pause);
        }
    }

    fn requests(
        &self,
        plan: Plan,
        go_on: &mut dyn FnMut(usize) -> bool,
        context: &mut String,
    ) -> Result<()> {
        let mut connection = Connection::open_here(plan.target, PATIENCE)?;
        let first = connection.get("/").and_then(|response| response.ok()?.checked())?;
        *context = format!("{} on {first}, ", connection.local_addr()?);
        {
            let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            report.connections += 1;
            *report.by_backend.entry(first.clone()).or_default() += 1;
        }
        self.ready.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut requests = 1;
        while go_on(requests) && !self.stop.load(Ordering::Relaxed) {
            thread::sleep(plan.pause);
            let backend = connection.get("/").and_then(|response| response.ok()?.checked());
            let backend = backend.with_context(|| format!("request {}", requests + 1))?;
            ensure!(backend == first, "request {} was answered by {backend}", requests + 1);
            requests += 1;
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn broken(&self, opened: Instant, what: &str) {
        let broken = Broken { opened, at: Instant::now(), what: what.to_owned() };
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.broken.push(broken);
    }
}

impl crate::http::Response {
    /// The name of the host, which the page and the header agree on.
    fn checked(self) -> Result<String> {
        let (page, host) = (self.text(), self.backend()?);
        ensure!(page == host, "page {page:?} from {host}");
        Ok(host)
    }
}

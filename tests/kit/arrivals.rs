//! Requests that come on time, whatever became of those before: an open loop, as the clients of a
//! service are. Each has a connection of its own.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    http::Connection,
    namespace::{self, Namespace},
};

/// The plan of requests.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where to connect.
    pub target: SocketAddr,
    /// Time from a request to the next.
    pub every: Duration,
    /// How long a request may take, from the first packet of its connection to its answer.
    pub limit: Duration,
}

/// Requests that are being made; no more come when it is dropped.
#[derive(Debug)]
pub struct Arrivals {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
    ended: mpsc::Receiver<Arrival>,
}

/// The result of a request.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When it began.
    pub at: Instant,
    /// How much later than planned that was: the load of this machine.
    pub late: Duration,
    /// How long it took, however it ended.
    pub took: Duration,
    /// The host that answered, or the failure.
    pub end: Result<String, Failure>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// The connection was closed before the answer.
    Closed,
    /// There was no connection, or no answer, within the limit.
    TimedOut,
    /// Anything else.
    Other(String),
}

impl Arrivals {
    /// Starts requests for `/` from a namespace.
    ///
    /// # Errors
    ///
    /// If there is no thread for them.
    pub fn start(from: &Namespace, plan: Plan) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, ended) = mpsc::channel();
        let (path, stopped) = (from.path(), Arc::clone(&stop));
        let thread = thread::Builder::new().spawn(move || {
            // Threads inherit the namespace of the one that starts them.
            namespace::join(&path)?;
            arrive(plan, &stopped, &sender)
        });
        Ok(Self { stop, thread: Some(thread.context("start a thread")?), ended })
    }

    /// Lets no more come, and waits for the end of those that are on their way. What became of
    /// them, by their beginning.
    ///
    /// # Errors
    ///
    /// If they could not be made.
    pub fn finish(mut self) -> Result<Vec<Arrival>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the thread of the arrivals panicked"))??;
        }
        // It ends when the last request's thread has dropped its sender.
        let mut arrivals: Vec<_> = self.ended.iter().collect();
        arrivals.sort_by_key(|arrival| arrival.at);
        Ok(arrivals)
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn arrive(plan: Plan, stop: &AtomicBool, sender: &mpsc::Sender<Arrival>) -> Result<()> {
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let sender = sender.clone();
        // A thread each: none waits for another, and hundreds may hang at once.
        let builder = thread::Builder::new().stack_size(128 << 10);
        let request = builder.spawn(move || {
            let at = Instant::now();
            let end = request(plan).map_err(|err| Failure::of(&err));
            let (took, late) = (at.elapsed(), at.saturating_duration_since(due));
            // Without a receiver the result is not needed.
            let _ = sender.send(Arrival { at, late, took, end });
        });
        request.context("start a thread for a request")?;
        due += plan.every;
    }
    Ok(())
}

fn request(plan: Plan) -> Result<String> {
    let end = Instant::now() + plan.limit;
    let mut connection = Connection::open_here(plan.target, plan.limit)?;
    let left = end.saturating_duration_since(Instant::now());
    connection.set_timeout(left.max(Duration::from_millis(1)))?;
    connection.get("/")?.ok()?.backend()
}

impl Failure {
    fn of(err: &anyhow::Error) -> Self {
        match err.root_cause().downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(ErrorKind::ConnectionRefused) => Self::Refused,
            Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Self::Reset,
            Some(ErrorKind::UnexpectedEof) => Self::Closed,
            // The error of a read that times out depends on the system.
            Some(ErrorKind::TimedOut | ErrorKind::WouldBlock) => Self::TimedOut,
            _ => Self::Other(format!("{err:#}")),
        }
    }

    /// In a word or two.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::TimedOut => "timed out",
            Self::Other(what) => what,
        }
    }
}

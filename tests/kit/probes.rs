//! A request every two milliseconds, to see how long there is no answer.
//!
//! Unlike [`arrivals`](crate::arrivals) these cost next to nothing while nothing answers: one thread
//! makes them all. A connection is reset when it has served, so that none of its ports waits.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    resource::{Resource, getrlimit, setrlimit},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    arrivals::Failure,
    namespace::{self, Namespace},
};

/// Between two probes.
pub const EVERY: Duration = Duration::from_millis(2);

/// How long a probe may take. Its SYN is sent again after a second, which would be another probe.
pub const LIMIT: Duration = Duration::from_millis(950);

/// A probe that took longer had lost a packet, which was sent again: no kernel waits less with that.
pub const RESENT: Duration = Duration::from_millis(180);

/// Probes that go on; no more come when it is dropped.
#[derive(Debug)]
pub struct Probes {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    thread: Option<JoinHandle<Result<Answers>>>,
}

/// The results of the probes since the last look.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Probes that were answered.
    pub answered: u64,
    /// Probes that were not.
    pub failed: u64,
    /// The longest time without an answer, be it over or not.
    pub gap: Duration,
    /// When the last answer came.
    last: Instant,
}

/// The results of the probes.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// All of them, by their beginning.
    pub probes: Vec<Probe>,
    /// When each of the answers came.
    came: Vec<Instant>,
    /// When probing ended.
    end: Option<Instant>,
    /// The longest that this machine was too busy to make a probe.
    pub late: Duration,
}

/// A probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// When it began.
    pub at: Instant,
    /// How long it took to its answer, or why there was none.
    pub end: Result<Duration, Failure>,
}

/// A time without answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The answer before it.
    pub from: Instant,
    /// How long it lasted.
    pub lasted: Duration,
}

impl Probes {
    /// Starts probes from a namespace to a page, and waits for nothing.
    ///
    /// # Errors
    ///
    /// If there is no thread for them.
    pub fn start(from: &Namespace, target: SocketAddr) -> Result<Self> {
        // A probe that hangs holds a descriptor: five hundred of them, while others have theirs.
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("limit of descriptors")?;
        if soft < hard.min(65_536) {
            setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard).context("more of them")?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let now = Instant::now();
        let none = Tally { answered: 0, failed: 0, gap: Duration::ZERO, last: now };
        let tally = Arc::new(Mutex::new(none));
        let (path, stopped, shared) = (from.path(), Arc::clone(&stop), Arc::clone(&tally));
        let thread = thread::Builder::new().spawn(move || {
            namespace::join(&path)?;
            hurry();
            Prober::new(target, shared)?.run(&stopped)
        });
        Ok(Self { stop, tally, thread: Some(thread.context("start a thread")?) })
    }

    /// The results of the probes since the last call.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let last = tally.last;
        let seen = Tally { gap: tally.gap.max(last.elapsed()), ..*tally };
        *tally = Tally { answered: 0, failed: 0, gap: Duration::ZERO, last };
        seen
    }

    /// Makes no more, and waits for those that are on their way. Returns the results.
    ///
    /// # Errors
    ///
    /// If they could not be made.
    pub fn finish(mut self) -> Result<Answers> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a thread")?;
        thread.join().map_err(|_| anyhow!("the thread of the probes panicked"))?
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Lets this thread run before all that is not in such a hurry: the balancer is measured, and
/// not other processes of this machine.
fn hurry() {
    let least = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads the parameters of this thread, which live; where it refuses, probes are
    // late, which `Answers::late` shows.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const least)
    };
}

/// All probes that are under way.
struct Prober {
    target: SocketAddr,
    epoll: Epoll,
    /// By number.
    pending: HashMap<u64, Pending>,
    /// The numbers, oldest first.
    order: VecDeque<u64>,
    next: u64,
    answers: Answers,
    tally: Arc<Mutex<Tally>>,
}

struct Pending {
    at: Instant,
    stream: TcpStream,
    requested: bool,
    received: Vec<u8>,
}

impl Prober {
    fn new(target: SocketAddr, tally: Arc<Mutex<Tally>>) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
        let (pending, order) = (HashMap::new(), VecDeque::new());
        Ok(Self { target, epoll, pending, order, next: 0, answers: Answers::default(), tally })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Answers> {
        let mut due = Instant::now();
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let now = Instant::now();
            let stopped = stop.load(Ordering::Relaxed);
            if stopped && self.answers.end.is_none() {
                self.answers.end = Some(now);
            }
            if stopped && self.pending.is_empty() {
                break;
            }
            if !stopped && now >= due {
                let late = now - due;
                self.answers.late = self.answers.late.max(late);
                self.begin(now)?;
                // Missed probes are not made up for: a burst is no client.
                due = if late > EVERY { now + EVERY } else { due + EVERY };
            }
            self.expire(now);
            let wait = if stopped { EVERY } else { due.saturating_duration_since(Instant::now()) };
            // Whole milliseconds, up: half a probe late does not matter, and turning does.
            let wait = u16::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(2);
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(wait)) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => 0,
                Err(err) => return Err(err).context("wait for answers"),
            };
            for event in &events[..ready] {
                self.handle(event.data());
            }
        }
        self.answers.probes.sort_by_key(|probe| probe.at);
        self.answers.came.sort_unstable();
        Ok(self.answers)
    }

    fn begin(&mut self, now: Instant) -> Result<()> {
        let stream = match open(self.target) {
            Ok(stream) => stream,
            Err(err) => {
                // No route, no port: the client's own, at once.
                self.answers.probes.push(Probe { at: now, end: Err(failure(&err)) });
                return Ok(());
            }
        };
        let number = self.next;
        self.next += 1;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(&stream, EpollEvent::new(flags, number)).context("watch a socket")?;
        self.pending
            .insert(number, Pending { at: now, stream, requested: false, received: Vec::new() });
        self.order.push_back(number);
        Ok(())
    }

    fn handle(&mut self, number: u64) {
        let Some(pending) = self.pending.get_mut(&number) else { return };
        let end = match pending.go_on() {
            Ok(false) => return,
            Ok(true) => {
                let now = Instant::now();
                self.answers.came.push(now);
                Ok(now - pending.at)
            }
            Err(err) => Err(failure(&err)),
        };
        self.end(number, end);
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&number) = self.order.front() {
            match self.pending.get(&number) {
                Some(pending) if now - pending.at < LIMIT => return,
                Some(_) => self.end(number, Err(Failure::TimedOut)),
                None => {}
            }
            self.order.pop_front();
        }
    }

    fn end(&mut self, number: u64, end: Result<Duration, Failure>) {
        let Some(pending) = self.pending.remove(&number) else { return };
        {
            let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(took) = &end {
                let came = pending.at + *took;
                tally.gap = tally.gap.max(came.saturating_duration_since(tally.last));
                tally.last = tally.last.max(came);
                tally.answered += 1;
            } else {
                tally.failed += 1;
            }
        }
        // Closing takes it off the epoll, too.
        self.answers.probes.push(Probe { at: pending.at, end });
    }
}

/// A socket that is about to be connected.
fn open(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    // Its end is a reset: half a million connections a quarter of an hour have no ports to wait in.
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect(&target.into()) {
        Err(err) if err.raw_os_error() != Some(libc::EINPROGRESS) => Err(err),
        _ => Ok(socket.into()),
    }
}

impl Pending {
    /// Makes progress without waiting; whether the answer is there.
    fn go_on(&mut self) -> io::Result<bool> {
        if let Some(err) = self.stream.take_error()? {
            return Err(err);
        }
        if !self.requested {
            match self.stream.write_all(b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n") {
                Ok(()) => self.requested = true,
                // Not connected yet.
                Err(err) if waits(&err) => return Ok(false),
                Err(err) => return Err(err),
            }
        }
        let mut piece = [0; 1024];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.received.extend_from_slice(&piece[..read]),
                Err(err) if waits(&err) => return Ok(false),
                Err(err) => return Err(err),
            }
            if whole(&self.received)? {
                return Ok(true);
            }
        }
    }
}

fn waits(err: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, NotConnected, WouldBlock};
    matches!(err.kind(), WouldBlock | NotConnected | Interrupted)
}

/// Whether a page has come to its end. Pages of `/` are a line, and the only line after the head.
fn whole(received: &[u8]) -> io::Result<bool> {
    let text = String::from_utf8_lossy(received);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(false) };
    if !head.starts_with("HTTP/1.1 200 ") {
        let status = head.lines().next().unwrap_or_default();
        return Err(io::Error::other(status.to_owned()));
    }
    Ok(body.ends_with('\n'))
}

fn failure(err: &io::Error) -> Failure {
    match err.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
        io::ErrorKind::UnexpectedEof => Failure::Closed,
        io::ErrorKind::TimedOut => Failure::TimedOut,
        _ => Failure::Other(err.to_string()),
    }
}

impl Answers {
    /// The times between two answers that touch the time between two moments.
    pub fn gaps(&self, from: Instant, to: Instant) -> impl Iterator<Item = Gap> {
        let end =
            self.end.into_iter().filter(|end| self.came.last().is_some_and(|last| last < end));
        let next = self.came.iter().copied().skip(1).chain(end);
        let gaps = self.came.iter().zip(next);
        gaps.filter(move |&(&a, b)| b > from && a < to)
            .map(|(&from, to)| Gap { from, lasted: to - from })
    }

    /// The longest time between two answers that touches the time between two moments. Without any
    /// answer, all of it.
    #[must_use]
    pub fn outage(&self, from: Instant, to: Instant) -> Duration {
        self.gaps(from, to).map(|gap| gap.lasted).max().unwrap_or(to - from)
    }

    /// How long after the first moment there was trouble for the last time before the second one: the
    /// end of the last gap longer than `tolerated`, or the beginning of the last probe that failed.
    #[must_use]
    pub fn trouble(&self, from: Instant, to: Instant, tolerated: Duration) -> Duration {
        let gaps = self.gaps(from, to).filter(|gap| gap.lasted > tolerated);
        let gaps = gaps.map(|gap| (gap.from + gap.lasted).min(to));
        let failed =
            self.between(from, to).filter(|probe| probe.end.is_err()).map(|probe| probe.at);
        gaps.chain(failed).max().map_or(Duration::ZERO, |last| last.saturating_duration_since(from))
    }

    /// The probes that began between two moments and lost a packet: it was sent again, or they had no
    /// answer.
    pub fn lost(&self, from: Instant, to: Instant) -> impl Iterator<Item = &Probe> {
        self.between(from, to).filter(|probe| !matches!(probe.end, Ok(took) if took < RESENT))
    }

    /// The probes that began between two moments.
    pub fn between(&self, from: Instant, to: Instant) -> impl Iterator<Item = &Probe> {
        self.probes.iter().filter(move |probe| from <= probe.at && probe.at < to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// An answer every 2 ms for a second but for some.
    fn answers(begin: Instant, silent: std::ops::Range<u64>) -> Answers {
        let probes = (0..1_000).step_by(2).map(|at| {
            let end = if silent.contains(&at) { Err(Failure::TimedOut) } else { Ok(ms(1)) };
            Probe { at: begin + ms(at), end }
        });
        let probes: Vec<_> = probes.collect();
        let came = probes.iter().filter(|probe| probe.end.is_ok());
        let came = came.map(|probe| probe.at + ms(1)).collect();
        Answers { probes, came, end: Some(begin + ms(1_000)), late: Duration::ZERO }
    }

    #[test]
    fn the_outage_is_the_longest_time_between_two_answers() {
        let begin = Instant::now();
        let answers = answers(begin, 300..400);
        assert_eq!(answers.outage(begin, begin + ms(1_000)), ms(102));
        assert_eq!(answers.outage(begin + ms(500), begin + ms(1_000)), ms(2));
        assert_eq!(answers.outage(begin + ms(350), begin + ms(360)), ms(102), "it is amidst one");
        assert_eq!(answers.lost(begin, begin + ms(1_000)).count(), 50);
    }

    #[test]
    fn an_outage_that_does_not_end_lasts_to_the_end() {
        let begin = Instant::now();
        let answers = answers(begin, 300..1_000);
        assert_eq!(answers.outage(begin + ms(200), begin + ms(1_000)), ms(701));
    }

    #[test]
    fn trouble_is_counted_from_the_fault_to_its_last_sign() {
        let begin = Instant::now();
        let answers = answers(begin, 300..400);
        let trouble = |from| answers.trouble(begin + ms(from), begin + ms(1_000), ms(10));
        assert_eq!(trouble(250), ms(151));
        assert_eq!(trouble(600), ms(0));
    }

    #[test]
    fn a_page_is_whole_with_its_line_end() -> io::Result<()> {
        let page = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nweb1\n";
        assert!(whole(page.as_bytes())?);
        assert!(!whole(&page.as_bytes()[..page.len() - 1])?);
        assert!(!whole(b"HTTP/1.1 200 OK\r\n")?);
        assert!(whole(b"HTTP/1.1 503 No\r\n\r\n").is_err());
        Ok(())
    }
}

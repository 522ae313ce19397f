//! Clients: long downloads, connections with a request now and then, and new ones all the time. Every byte that
//! comes is compared with what should come, and the host that answers with the one before. Pages have the client's
//! address and port in them, as the host knows them, so that an answer to another connection shows.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use kit::{http::Connection, lab::Lab, namespace, nginx};

use crate::{
    clock::Clock,
    model::{Failure, Life, PATIENCE},
    plan::{HOSTS, WAYS},
    random::Random,
};

/// At work at any moment, of each service.
const DOWNLOADS: usize = 4;
const VISITORS: usize = 6;
const PASSERS: usize = 4;

/// Clients at work.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
    ended: mpsc::Receiver<Life>,
}

/// The counts so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that were begun.
    pub connections: AtomicU64,
    /// Requests that were answered in full.
    pub requests: AtomicU64,
    /// Downloads that came whole.
    pub downloads: AtomicU64,
    /// Bytes of bodies that were as they should be.
    pub bytes: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    stop: AtomicBool,
    counts: Counts,
    big: Vec<u8>,
}

/// The purpose of a connection.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Download,
    Visit,
    Pass,
}

/// A client: a thread that makes one connection after the other.
struct Client {
    shared: Arc<Shared>,
    service: usize,
    random: Random,
    sender: mpsc::Sender<Life>,
}

impl Clients {
    /// Starts them all from the lab's client.
    ///
    /// # Errors
    ///
    /// If there are no threads for them.
    pub fn start(lab: &Lab, clock: Clock, seed: u64) -> Result<Self> {
        let shared = Shared {
            clock,
            stop: AtomicBool::new(false),
            counts: Counts::default(),
            big: nginx::big(),
        };
        let shared = Arc::new(shared);
        let (sender, ended) = mpsc::channel();
        let mut threads = Vec::new();
        let mut random = Random::new(!seed);
        for service in 0..WAYS.len() {
            let kinds =
                [(DOWNLOADS, Kind::Download), (VISITORS, Kind::Visit), (PASSERS, Kind::Pass)];
            for (number, kind) in kinds {
                for _ in 0..number {
                    let (shared, sender) = (Arc::clone(&shared), sender.clone());
                    let random = Random::new(random.word());
                    let client = Client { shared, service, random, sender };
                    threads.push(client.start(kind, lab.client.namespace.path())?);
                }
            }
        }
        Ok(Self { shared, threads, ended })
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// The connections that have ended since the last call.
    pub fn ended(&self) -> impl Iterator<Item = Life> {
        self.ended.try_iter()
    }

    /// Lets every connection end after its next answer, or the next piece of a download; those that get
    /// none have broken. The connections that have ended since the last call.
    ///
    /// # Errors
    ///
    /// If a client panicked, or could not go on.
    pub fn finish(self) -> Result<(Counts, Vec<Life>)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("the thread of a client panicked"))??;
        }
        let lives = self.ended.try_iter().collect();
        let shared = Arc::try_unwrap(self.shared).map_err(|_| anyhow!("a client is left"))?;
        Ok((shared.counts, lives))
    }
}

impl Client {
    fn start(mut self, kind: Kind, from: PathBuf) -> Result<JoinHandle<Result<()>>> {
        let builder = thread::Builder::new().stack_size(256 << 10);
        let thread = builder.spawn(move || {
            namespace::join(&from)?;
            // Not all at once.
            thread::sleep(self.random.between(Duration::ZERO, Duration::from_secs(1)));
            while !self.stopped() {
                let life = self.live(kind);
                let broke = life.end.is_err();
                if self.sender.send(life).is_err() {
                    break;
                }
                let pause = match kind {
                    Kind::Pass if !broke => Duration::from_millis(50),
                    // A connection that is refused at once is not to be retried all the time.
                    _ => Duration::from_millis(200),
                };
                thread::sleep(self.random.between(pause, pause * 3));
            }
            Ok(())
        });
        thread.context("start a thread")
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn now(&self) -> Duration {
        self.shared.clock.now()
    }

    /// One connection, from its beginning to its end.
    fn live(&mut self, kind: Kind) -> Life {
        let now = self.now();
        let name = match kind {
            Kind::Download => "download",
            Kind::Visit => "visit",
            Kind::Pass => "pass",
        };
        let mut life = Life {
            service: self.service,
            port: 0,
            host: None,
            opened: now,
            connected: None,
            answered: None,
            last_received: now,
            ended: now,
            kind: name,
            end: Ok(()),
        };
        self.shared.counts.connections.fetch_add(1, Ordering::Relaxed);
        let end = self.connection(kind, &mut life);
        life.end = end.map_err(|err| Failure::of(&err));
        life.ended = self.now();
        life
    }

    fn connection(&mut self, kind: Kind, life: &mut Life) -> Result<()> {
        let target: SocketAddr = WAYS[self.service].target();
        let mut connection = Connection::open_here_by(target, PATIENCE, &mut life.port)?;
        life.connected = Some(self.now());
        self.get_page(&mut connection, life)?;
        let secs = Duration::from_secs;
        match kind {
            Kind::Download => self.download(&mut connection, life),
            Kind::Visit => {
                let until = self.now() + self.random.between(secs(2), secs(60));
                let pause = self.random.between(secs(0), Duration::from_millis(900));
                while self.now() < until && !self.stopped() {
                    thread::sleep(pause.max(Duration::from_millis(80)));
                    self.get_page(&mut connection, life)?;
                }
                Ok(())
            }
            Kind::Pass => {
                for _ in 0..self.random.below(4) {
                    thread::sleep(self.random.between(Duration::ZERO, Duration::from_millis(30)));
                    self.get_page(&mut connection, life)?;
                }
                Ok(())
            }
        }
    }

    /// Requests a page, which names its host and both ends of the connection.
    fn get_page(&self, connection: &mut Connection, life: &mut Life) -> Result<()> {
        let local = connection.local_addr()?;
        let page = connection.get("/connection")?;
        let (status, text, length) = (page.status, page.text(), page.body.len());
        let host = page.backend()?;
        let (address, port, at) = (local.ip(), local.port(), WAYS[self.service].port());
        if status != 200 || text != format!("{host} {address} {port} {at}") {
            bail!("status {status} and page {text:?} from {host} at {local}");
        }
        self.note_answer(&host, life)?;
        self.shared.counts.requests.fetch_add(1, Ordering::Relaxed);
        self.shared.counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Downloads as much of the file as takes a while.
    fn download(&mut self, connection: &mut Connection, life: &mut Life) -> Result<()> {
        let rate = (32 + self.random.below(96)) << 10;
        let time = 3 + self.random.below(45);
        let expected = &self.shared.big[..(rate * time).min(self.shared.big.len())];
        let path = format!("/big?rate={rate}");
        let mut received = life.last_received;
        let host = connection.get_expecting(&path, expected, || {
            received = self.now();
            !self.stopped()
        });
        life.last_received = received;
        self.note_answer(&host?, life)?;
        if !self.stopped() {
            self.shared.counts.requests.fetch_add(1, Ordering::Relaxed);
            self.shared.counts.downloads.fetch_add(1, Ordering::Relaxed);
            self.shared.counts.bytes.fetch_add(expected.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Notes the host that has answered, which must be the one before.
    fn note_answer(&self, name: &str, life: &mut Life) -> Result<()> {
        let host = (0..HOSTS).find(|host| name == format!("web{}", host + 1));
        let host = host.with_context(|| format!("{name:?} has answered, and is no web host"))?;
        if let Some(before) = life.host
            && before != host
        {
            bail!("web{} has answered, and web{} before it", host + 1, before + 1);
        }
        life.host = Some(host);
        life.last_received = self.now();
        life.answered.get_or_insert(life.last_received);
        Ok(())
    }
}

impl Failure {
    fn of(err: &anyhow::Error) -> Self {
        let Some(cause) = err.root_cause().downcast_ref::<io::Error>() else {
            return Self::Wrong(format!("{err:#}"));
        };
        match cause.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::UnexpectedEof => Self::Closed,
            // The error of a read that times out depends on the system.
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            _ => Self::Other(format!("{err:#}")),
        }
    }
}

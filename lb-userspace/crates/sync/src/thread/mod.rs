//! The sockets, in a thread of its own, so that messages are not late when the daemon is busy.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_api::peers::PeerStatus;
use lb_model::{router::RouterKey, units::counted};
use nix::{
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{setsockopt, sockopt},
        time::TimeSpec,
    },
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::sync::mpsc::UnboundedSender;

use super::{
    Config, Mark, NodeState, PeerId, Peers, Record, Report,
    id::SessionId,
    session::{Action, Event, Recipient, Session},
    wire,
};

/// Most peers of a node.
const PEERS: usize = 15;

/// Room for datagrams, in bytes each way; the kernel may grant less.
const BUFFER: usize = 4 << 20;

/// Datagrams that are taken before something else is done.
const BATCH: usize = 256;
/// Batches after which silence counts although more datagrams wait.
const BATCHES: u32 = 16;

/// An address that is not there is tried again so often.
const BIND_AGAIN: Duration = Duration::from_millis(200);

/// The handle of the thread that runs the sessions. When it is dropped, the peers receive that this node ends.
#[derive(Debug)]
pub struct SyncThread {
    /// None: it ends.
    orders: Option<Sender<Event<'static>>>,
    wake: Arc<EventFd>,
    status: Arc<Mutex<Vec<PeerStatus>>>,
    acknowledged: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl SyncThread {
    /// Starts sessions with the peers, in the network namespace of the calling thread. Their reports go to
    /// `reports`: of each peer [`Report::Joined`] first, then its [`Report::NodeState`], then
    /// [`Report::TransferRequested`]. Peers receive nothing of this node's history before [`Peers::set_state`].
    ///
    /// An address that is not there yet is waited for.
    ///
    /// # Errors
    ///
    /// The configuration makes no sense, or the system refuses a socket or a thread.
    pub fn start(config: Config, reports: UnboundedSender<Report>) -> Result<Self> {
        check(&config)?;
        let session = Session::new(&config, SessionId::generate()?, Instant::now());
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = Arc::new(wake.context("make an eventfd")?);
        let status = Arc::new(Mutex::new(Vec::new()));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (orders, receiver) = mpsc::channel();
        let mut runner = Runner {
            sockets: Sockets::Waiting { since: None, again_at: Instant::now() },
            config,
            session,
            orders: receiver,
            wake: Arc::clone(&wake),
            status: Arc::clone(&status),
            acknowledged: Arc::clone(&acknowledged),
            reports,
            out: Vec::new(),
            deaf: false,
            undrained: 0,
        };
        runner.listen()?;
        runner.show();
        let run = move || runner.run();
        let thread = thread::Builder::new().name("sync".into()).spawn(run);
        let thread = Some(thread.context("start the thread of the flow sync")?);
        Ok(Self { orders: Some(orders), wake, status, acknowledged, thread })
    }

    fn order(&self, order: Event<'static>) {
        // The thread ends only when this is dropped, unless it panicked; then no peer is notified.
        if let Some(orders) = &self.orders
            && orders.send(order).is_ok()
        {
            self.wake();
        }
    }

    fn wake(&self) {
        // It fails only when it was called 2^64 times without a read, and then the thread wakes anyway.
        let _ = self.wake.write(1);
    }
}

impl Peers for SyncThread {
    fn set_state(&self, node_state: NodeState) {
        self.order(Event::SetState(node_state));
    }

    fn publish(&self, number: u64, records: Vec<Record>) {
        if !records.is_empty() {
            self.order(Event::Publish(number, records));
        }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn acknowledge(&self, peer: PeerId, mark: Mark) {
        self.order(Event::Acknowledge(peer, mark));
    }

    fn send_transfer(&self, peer: PeerId, records: Vec<Record>) {
        self.order(Event::SendTransfer(peer, records));
    }

    fn request_transfer(&self, peer: PeerId) {
        self.order(Event::RequestTransfer(peer));
    }

    fn lack(&self, peer: PeerId, lacks: bool) {
        self.order(Event::Lack(peer, lacks));
    }

    fn request_takeover(&self, peer: PeerId, routers: Vec<RouterKey>) {
        self.order(Event::RequestTakeover(peer, routers));
    }

    fn withdraw(&self, peer: PeerId) {
        self.order(Event::Withdraw(peer));
    }

    fn answer(&self, peer: PeerId, answer: Result<(), String>) {
        self.order(Event::Answer(peer, answer));
    }

    fn status(&self) -> Vec<PeerStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        self.orders = None;
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the flow sync has panicked");
        }
    }
}

fn check(config: &Config) -> Result<()> {
    let Config { listen, peers, multicast, .. } = config;
    ensure!(peers.len() <= PEERS, "{}; a node has {PEERS} at most", counted(peers.len(), "peer"));
    for (at, peer) in peers.iter().enumerate() {
        ensure!(peer.is_ipv4() == listen.is_ipv4(), "peer {peer} is not of the family of {listen}");
        ensure!(peer != listen, "peer {peer} is this node itself");
        ensure!(!peers[..at].contains(peer), "peer {peer} is there twice");
    }
    if let Some((group, _)) = multicast {
        ensure!(group.ip().is_multicast(), "{} is no multicast group", group.ip());
        ensure!(
            group.is_ipv4() == listen.is_ipv4(),
            "group {group} is not of the family of {listen}"
        );
    }
    Ok(())
}

/// The sockets that receive from the peers.
#[derive(Debug)]
enum Sockets {
    /// The address or the interface is not there; since when it was logged.
    Waiting { since: Option<Instant>, again_at: Instant },
    /// It receives at these: the node's own socket, then that of the group.
    Open(Vec<UdpSocket>),
}

/// What the thread has.
struct Runner {
    config: Config,
    session: Session,
    sockets: Sockets,
    orders: Receiver<Event<'static>>,
    wake: Arc<EventFd>,
    status: Arc<Mutex<Vec<PeerStatus>>>,
    acknowledged: Arc<AtomicU64>,
    reports: UnboundedSender<Report>,
    out: Vec<Action>,
    /// Whether the last datagram could not be sent.
    deaf: bool,
    /// Batches since no datagram waited.
    undrained: u32,
}

impl Runner {
    fn run(mut self) {
        loop {
            if let Err(error) = self.wait() {
                tracing::warn!("wait for what peers send: {error}");
                thread::sleep(Duration::from_millis(10));
            }
            let _ = self.wake.read();
            let goes_on = self.take_orders();
            self.perform();
            if !goes_on {
                return;
            }
            if let Err(error) = self.listen() {
                tracing::error!("{error:#}");
            }
            let drained = self.receive();
            self.undrained = if drained { 0 } else { self.undrained + 1 };
            let now = Instant::now();
            let due = self.session.deadline().is_some_and(|at| at <= now);
            if due && (drained || self.undrained >= BATCHES) {
                self.undrained = 0;
                self.session.handle(Event::Tick, now, &mut self.out);
            }
            // The reader of a report finds it in the status.
            self.show();
            self.perform();
        }
    }

    /// Waits until something is to be done.
    fn wait(&self) -> io::Result<()> {
        let (sockets, again_at) = match &self.sockets {
            Sockets::Waiting { again_at, .. } => (&[][..], Some(*again_at)),
            Sockets::Open(sockets) => (sockets.as_slice(), None),
        };
        let mut polled = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        polled.extend(sockets.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)));
        let deadline = [self.session.deadline(), again_at].into_iter().flatten().min();
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match ppoll(&mut polled, left.map(TimeSpec::from), None) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Does what the daemon wants; false: it is over.
    fn take_orders(&mut self) -> bool {
        let now = Instant::now();
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.session.handle(order, now, &mut self.out),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    self.session.handle(Event::Bye, now, &mut self.out);
                    return false;
                }
            }
        }
    }

    /// Takes what has come; true: nothing more waits.
    fn receive(&mut self) -> bool {
        let Sockets::Open(sockets) = &self.sockets else { return true };
        let mut buffer = [0; wire::DATAGRAM + 1];
        let mut drained = true;
        for socket in sockets {
            let mut taken = 0;
            while taken < BATCH {
                match socket.recv_from(&mut buffer) {
                    Ok((length, from)) => {
                        taken += 1;
                        let event = Event::Received(from, &mut buffer[..length]);
                        self.session.handle(event, Instant::now(), &mut self.out);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // What else there is (an ICMP error) shows nothing of what waits behind it.
                    Err(error) if error.kind() != ErrorKind::WouldBlock => taken += 1,
                    Err(_) => break,
                }
            }
            drained &= taken < BATCH;
        }
        drained
    }

    fn perform(&mut self) {
        for action in self.out.drain(..) {
            match action {
                // The channel is closed when the daemon ends.
                Action::Report(report) => drop(self.reports.send(report)),
                Action::Send(recipient, datagram) => {
                    let Sockets::Open(sockets) = &self.sockets else { continue };
                    let to = match (recipient, &self.config.multicast) {
                        (Recipient::Peer(peer), _) => peer,
                        (Recipient::Group, Some((group, _))) => *group,
                        (Recipient::Group, None) => continue,
                    };
                    let sent = sockets[0].send_to(&datagram, to);
                    // What finds no room is lost as on any link, and requested again.
                    let sent = sent.or_else(|error| match error.kind() {
                        ErrorKind::WouldBlock => Ok(0),
                        _ if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
                        _ => Err(error),
                    });
                    if let Err(error) = &sent
                        && !self.deaf
                    {
                        tracing::warn!(peer = %to, "flow sync can't send: {error}");
                    }
                    self.deaf = sent.is_err();
                }
            }
        }
    }

    /// Opens the sockets, if they are not and it is time.
    fn listen(&mut self) -> Result<()> {
        let now = Instant::now();
        let Sockets::Waiting { since, again_at } = self.sockets else { return Ok(()) };
        if again_at > now {
            return Ok(());
        }
        let listen = self.config.listen;
        match open(&self.config) {
            Ok(sockets) => {
                if since.is_some() {
                    tracing::info!(%listen, "flow sync has its address");
                }
                self.sockets = Sockets::Open(sockets);
                Ok(())
            }
            Err(error) if error.is_absent() => {
                if since.is_none() {
                    tracing::warn!(%listen, "flow sync waits: {error}");
                }
                let since = Some(since.unwrap_or(now));
                self.sockets = Sockets::Waiting { since, again_at: now + BIND_AGAIN };
                Ok(())
            }
            Err(error) => {
                self.sockets = Sockets::Waiting { since, again_at: now + BIND_AGAIN };
                bail!("flow sync: {error}")
            }
        }
    }

    /// Publishes the peers' status for the daemon.
    fn show(&mut self) {
        self.acknowledged.store(self.session.acknowledged(), Ordering::Relaxed);
        let mut status = self.session.status(Instant::now(), SystemTime::now());
        if matches!(self.sockets, Sockets::Waiting { .. }) {
            for peer in &mut status {
                let why = format!("{} is not an address of this node yet", self.config.listen.ip());
                peer.refused = Some(why);
            }
        }
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// A socket is not to be had.
#[derive(Debug, thiserror::Error)]
enum NoSocket {
    #[error("there is no interface {0}")]
    Interface(String),
    #[error("listen at {0}: {1}")]
    Bind(SocketAddr, io::Error),
    #[error("open a socket: {0}")]
    Open(#[from] io::Error),
}

impl NoSocket {
    /// Whether it may be had later.
    fn is_absent(&self) -> bool {
        match self {
            Self::Interface(_) => true,
            Self::Bind(_, error) | Self::Open(error) => {
                error.kind() == ErrorKind::AddrNotAvailable
                    || error.raw_os_error() == Some(libc::ENODEV)
            }
        }
    }
}

fn open(config: &Config) -> Result<Vec<UdpSocket>, NoSocket> {
    let listen = config.listen;
    let own = socket(listen)?;
    own.bind(&listen.into()).map_err(|error| NoSocket::Bind(listen, error))?;
    let Some((group, interface)) = &config.multicast else { return Ok(vec![own.into()]) };
    let index =
        if_nametoindex(interface.as_str()).map_err(|_| NoSocket::Interface(interface.clone()))?;
    let group_socket = socket(*group)?;
    // Another program may listen to the group as well.
    group_socket.set_reuse_address(true)?;
    group_socket.bind(&(*group).into()).map_err(|error| NoSocket::Bind(*group, error))?;
    match (group.ip(), listen.ip()) {
        (IpAddr::V4(group), IpAddr::V4(listen)) => {
            group_socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))?;
            own.set_multicast_if_v4(&listen)?;
            own.set_multicast_loop_v4(false)?;
        }
        (IpAddr::V6(group), _) => join_v6(&group_socket, &own, &group, index)?,
        _ => return Err(io::Error::from(ErrorKind::InvalidInput).into()),
    }
    Ok(vec![own.into(), group_socket.into()])
}

fn join_v6(group_socket: &Socket, own: &Socket, group: &Ipv6Addr, index: u32) -> io::Result<()> {
    group_socket.join_multicast_v6(group, index)?;
    own.set_multicast_if_v6(index)?;
    own.set_multicast_loop_v6(false)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Smaller ones do too, but for bursts.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
        .map_err(io::Error::from)
        .or_else(|_| socket.set_recv_buffer_size(BUFFER));
    let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER);
    Ok(socket)
}

#[cfg(test)]
mod tests;

//! Probes of a VIP at one backend, along the path of the clients' packets.
//!
//! The node itself may hold the VIP, so that its kernel would bring a connection to the loopback
//! device, or may not; and nothing of its routes or rules shall be touched. So the packets are made
//! here: frames leave by a packet socket with the headers that the data plane gives to the backend
//! ([`frame`]), answers are seen by packet sockets that take nothing but what comes from a VIP
//! ([`filter`], [`sockets`]), and are brought to their flows ([`demux`]). The kernel, which
//! knows of none of these flows, would refuse the answers with an RST: the ports of probes
//! are bound to sockets that swallow everything ([`ports`]).
//!
//! A handshake is three packets ([`probe_flow`]); a stream is smoltcp's ([`stream`]). Where no answer comes,
//! lbd looks for a sign of life of the host ([`alive`]).
//!
//! A handshake is SYN, SYN-ACK, RST, so the server's program does not notice it. It costs two calls of `sendto`
//! and, with many probes under way, one of `recvfrom`.
//!
//! A firewall on the node sees only the answers, as packets of no connection. It may drop them. A firewall that
//! rejects them with a reset breaks these checks.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use lb_model::{
    desired::{Mode, Protocol},
    hop::NextHop,
    settings::Tunnel,
};
use thiserror::Error;
use tokio::task::JoinSet;
use tracing::warn;

mod alive;
mod demux;
mod filter;
mod frame;
mod ports;
mod probe_flow;
mod sockets;
mod source;
mod stray;
mod stream;

use self::{
    demux::{Table, lock},
    frame::{Flow, Framing},
    ports::{Lease, Ports},
    probe_flow::ProbeFlow,
    sockets::{Receiver, Sender, SilentPort},
    source::Sources,
};
pub use alive::Sign;
pub use stream::Stream;

/// The path to a VIP at one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbePath {
    /// The VIP, the destination of the probe.
    pub vip: IpAddr,
    /// The backend that is to answer.
    pub backend: IpAddr,
    /// How packets travel to it.
    pub mode: Mode,
    /// Where frames for it go.
    pub hop: NextHop,
    /// The outer sources of tunnels.
    pub tunnel: Tunnel,
}

/// Why a probe failed. That nothing comes back is none of these: the caller waits as long
/// as it likes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The backend refuses: RST, or ICMP port unreachable.
    #[error("connection refused")]
    Refused,
    /// This node could not send the probe, which shows nothing about the backend.
    #[error("{0}")]
    Local(String),
}

/// Sends probes to backends. Clones share everything; sockets open when they are first needed, inside a tokio
/// runtime and in the network namespace of the calling thread.
#[derive(Clone, Debug, Default)]
pub struct Network(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    vips: Mutex<Arc<BTreeSet<IpAddr>>>,
    open: Mutex<Option<Open>>,
    table: Arc<Table>,
    sources: Sources,
    ports: Mutex<HashMap<(IpAddr, Protocol), Ports<SilentPort>>>,
    keys: RandomState,
    drawn: AtomicU64,
}

/// The sockets that all share, and the tasks that read them.
#[derive(Debug)]
struct Open {
    sender: Arc<Sender>,
    /// IPv4, IPv6.
    receivers: [Arc<Receiver>; 2],
    tasks: JoinSet<()>,
}

impl Network {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only packets from these addresses are taken in, and only these can be probed.
    pub fn set_vips(&self, vips: BTreeSet<IpAddr>) {
        let inner = &*self.0;
        {
            let mut known = lock(&inner.vips);
            if **known == vips {
                return;
            }
            *known = Arc::new(vips);
        }
        let vips = inner.vips();
        for ports in lock(&inner.ports).values_mut() {
            ports.retain(|service| vips.contains(&service.ip()));
        }
        let mut open = lock(&inner.open);
        if let Some(sockets) = &*open
            && let Err(error) = sockets.take_from(&inner.vips())
        {
            // They open again, with the filter, when they are next needed.
            let error = format!("filter of the packets from VIPs: {error}");
            warn!("{error}");
            inner.table.fail(&Error::Local(error));
            *open = None;
        }
    }

    /// A TCP handshake and no more: SYN, SYN-ACK, RST. The server's application sees nothing of it.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`].
    pub async fn handshake(&self, path: &ProbePath, port: u16) -> Result<(), Error> {
        self.open_flow(path, Protocol::Tcp, port).await?.handshake().await
    }

    /// Opens a TCP connection.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`].
    pub async fn connect(&self, path: &ProbePath, port: u16) -> Result<Stream, Error> {
        Stream::open(self.open_flow(path, Protocol::Tcp, port).await?).await
    }

    /// Sends a datagram and waits for the first answer.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`].
    pub async fn exchange(
        &self,
        path: &ProbePath,
        port: u16,
        payload: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.open_flow(path, Protocol::Udp, port).await?.exchange(payload).await
    }

    /// The address that a socket must be bound to that probes a backend at its own address; none: the
    /// kernel may choose.
    ///
    /// For IPv6 the kernel takes the address that has most bits in common with the backend's (RFC
    /// 6724), which may be a VIP: the backend, which has the VIP too, would answer to itself.
    pub(crate) async fn source_to(&self, backend: IpAddr) -> Option<IpAddr> {
        if backend.is_ipv4() {
            return None;
        }
        let vips = self.0.vips();
        self.0.sources.instead(backend, &vips, self.0.forget_ports()).await
    }

    async fn open_flow(
        &self,
        path: &ProbePath,
        protocol: Protocol,
        port: u16,
    ) -> Result<ProbeFlow, Error> {
        let inner = &self.0;
        let vips = inner.vips();
        if !vips.contains(&path.vip) {
            return Err(Error::Local(format!("{} is none of the VIPs that are known", path.vip)));
        }
        let framing = Framing::of(path)?;
        let sender = inner.open()?;
        let source = inner.source(path, &vips).await?;
        let peer = SocketAddr::new(path.vip, port);
        let lease = inner.lease(source, protocol, peer)?;
        let flow = Flow { protocol, own: SocketAddr::new(source, lease.port), peer };
        Ok(ProbeFlow {
            inner: Arc::clone(inner),
            sender,
            framing,
            flow,
            lease,
            inbox: inner.table.open(flow),
            entropy: inner.random() as u32,
            interface: path.hop.interface.clone(),
        })
    }
}

impl Inner {
    fn vips(&self) -> Arc<BTreeSet<IpAddr>> {
        Arc::clone(&lock(&self.vips))
    }

    /// A number that only a host which sees it can know.
    fn random(&self) -> u64 {
        self.keys.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed))
    }

    /// Opens the sockets, unless they are open and someone reads them.
    fn open(&self) -> Result<Arc<Sender>, Error> {
        let mut open = lock(&self.open);
        if let Some(sockets) = &mut *open
            && sockets.tasks.try_join_next().is_none()
        {
            return Ok(Arc::clone(&sockets.sender));
        }
        let sockets = Open::new(&self.table)?;
        let local = |error| Error::Local(format!("filter of the packets from VIPs: {error}"));
        sockets.take_from(&self.vips()).map_err(local)?;
        let sender = Arc::clone(&sockets.sender);
        *open = Some(sockets);
        Ok(sender)
    }

    /// The source address of probes.
    async fn source(
        &self,
        path: &ProbePath,
        vips: &Arc<BTreeSet<IpAddr>>,
    ) -> Result<IpAddr, Error> {
        self.sources.of(path, vips, self.forget_ports()).await
    }

    /// Gives up the ports of addresses that this node has lost.
    fn forget_ports(&self) -> impl FnOnce(&dyn Fn(IpAddr) -> bool) + '_ {
        |is_own| lock(&self.ports).retain(|(own, _), ports| ports.is_open() || is_own(*own))
    }

    fn lease(&self, source: IpAddr, protocol: Protocol, peer: SocketAddr) -> Result<Lease, Error> {
        let mut ports = lock(&self.ports);
        let ports = ports.entry((source, protocol)).or_default();
        let leased = ports.lease(peer, Instant::now(), || SilentPort::open(source, protocol));
        leased.map_err(|error| Error::Local(format!("hold a port of {source}: {error}")))
    }

    fn release(&self, flow: &Flow, lease: Lease, now: Instant) {
        if let Some(ports) = lock(&self.ports).get_mut(&(flow.own.ip(), flow.protocol)) {
            ports.release(flow.peer, lease, now);
        }
    }
}

impl Open {
    fn new(table: &Arc<Table>) -> Result<Self, Error> {
        let sender = Arc::new(Sender::open()?);
        let receivers = [Arc::new(Receiver::open(false)?), Arc::new(Receiver::open(true)?)];
        let mut tasks = JoinSet::new();
        for receiver in &receivers {
            tasks.spawn(Arc::clone(table).serve(receiver.watch()?));
        }
        Ok(Self { sender, receivers, tasks })
    }

    /// Takes in packets from these addresses only.
    fn take_from(&self, vips: &BTreeSet<IpAddr>) -> std::io::Result<()> {
        let v4 = vips.iter().filter_map(|vip| match vip {
            IpAddr::V4(vip) => Some(vip.octets()),
            IpAddr::V6(_) => None,
        });
        let v6 = vips.iter().filter_map(|vip| match vip {
            IpAddr::V6(vip) => Some(vip.octets()),
            IpAddr::V4(_) => None,
        });
        let [receiver_v4, receiver_v6] = &self.receivers;
        receiver_v4.set_filter(&filter::from_v4(v4))?;
        receiver_v6.set_filter(&filter::from_v6(v6))
    }
}

//! Whether the host of a backend that does not answer its probe is alive, found by packets that need no listener.
//!
//! A full accept queue, a firewall that drops the packets of a port, a UDP server that hangs: none of them
//! answers, and each leaves what is established at work.

use std::{
    fmt,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use lb_common::{packet::tcp, rewrite};
use lb_model::{desired::Protocol, router::Family};
use lb_vrrp::sockets::Watch;
use socket2::{Domain, Protocol as Number, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, interval, timeout_at},
};
use tracing::debug;

use super::{
    Network, ProbePath,
    frame::{Flow, Segment},
};

/// Above the ports that the kernel gives to connections (`net.ipv4.ip_local_port_range`).
const PORTS: std::ops::Range<u16> = 61_000..65_535;
/// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443, 4): echo and its reply.
const ECHO: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];
/// How often lbd sends a request for an address on a link at most (RFC 1122, 2.3.2.1).
const AGAIN: Duration = Duration::from_secs(1);

/// The answer of the host of a backend that does not answer its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// A segment: a port with or without a listener answers a bare ACK with an RST (RFC 9293, 3.10.7.1
    /// and 3.10.7.2), however long its accept queue is.
    Segment,
    /// It has announced its MAC address (ARP, neighbour discovery), in the same network. A switch or a hypervisor
    /// may do that for a host that is gone.
    Neighbour,
    /// The reply to an ICMP echo request.
    Echo,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Segment => "RST to a bare ACK",
            Self::Neighbour => "its address resolves",
            Self::Echo => "ping",
        })
    }
}

impl Network {
    /// Waits `until` then at most for a sign of life of a backend's host, and for a better one than its MAC
    /// address; none, at once, if this node can send nothing. The segment to `port` takes the `path` of the
    /// clients' packets, without one it goes to the backend's own address.
    pub(crate) async fn sign_of_life(
        &self,
        path: Option<&ProbePath>,
        backend: IpAddr,
        port: u16,
        until: Instant,
    ) -> Option<Sign> {
        let source = self.source_to(backend).await;
        let random = self.0.random();
        let segment = async {
            let answered = match path {
                Some(path) => self.provoke(path, port).await.map_err(io::Error::other),
                None => segment(SocketAddr::new(backend, port), source, random).await,
            };
            answered.map(|()| Some(Sign::Segment))
        };
        let echo = async { echo(backend, source, random as u16).await.map(|()| Some(Sign::Echo)) };
        let neighbour = async {
            let resolves = resolves(backend, source).await.map_err(io::Error::other);
            resolves.map(|resolves| resolves.then_some(Sign::Neighbour))
        };
        let all = [segment.boxed(), echo.boxed(), neighbour.boxed()];
        let mut pending: FuturesUnordered<_> = all.into_iter().collect();
        let mut resolves = None;
        while let Ok(Some(answer)) = timeout_at(until, pending.next()).await {
            match answer {
                Ok(Some(Sign::Neighbour)) => resolves = Some(Sign::Neighbour),
                Ok(Some(sign)) => return Some(sign),
                Ok(None) => {}
                Err(error) => debug!(%backend, "whether its host is there can't be asked: {error}"),
            }
        }
        resolves
    }

    /// Sends a segment of no connection to the VIP, and waits for an answer of any kind.
    async fn provoke(&self, path: &ProbePath, port: u16) -> Result<(), super::Error> {
        let probe_flow = self.open_flow(path, Protocol::Tcp, port).await?;
        probe_flow.send(&bare_ack(self.0.random()).packet(&probe_flow.flow))?;
        probe_flow.inbox.next().await.map(drop)
    }
}

/// An ACK of a connection that does not exist.
fn bare_ack(random: u64) -> Segment {
    Segment {
        sequence: random as u32,
        acknowledgment: (random >> 32) as u32,
        flags: tcp::ACK,
        mss: None,
    }
}

/// Sends a segment of no connection to an address of a backend, and waits for an answer.
async fn segment(peer: SocketAddr, source: Option<IpAddr>, random: u64) -> io::Result<()> {
    let socket = Raw::open(peer.ip(), source, Number::TCP)?;
    let port = PORTS.start + (random % PORTS.len() as u64) as u16;
    let flow = Flow { protocol: Protocol::Tcp, own: SocketAddr::new(socket.own, port), peer };
    // The kernel makes the IP header.
    socket.send(bare_ack(random).transport(&flow).as_slice())?;
    let ports = [peer.port().to_be_bytes(), port.to_be_bytes()].concat();
    socket.receive(|answer| answer.starts_with(&ports)).await
}

/// Sends an ICMP echo request, and waits for its reply.
async fn echo(peer: IpAddr, source: Option<IpAddr>, id: u16) -> io::Result<()> {
    let (number, request, reply) = match peer {
        IpAddr::V4(_) => (Number::ICMPV4, ECHO[0], ECHO_REPLY[0]),
        IpAddr::V6(_) => (Number::ICMPV6, ECHO[1], ECHO_REPLY[1]),
    };
    let socket = Raw::open(peer, source, number)?;
    let [high, low] = id.to_be_bytes();
    let mut request = [request, 0, 0, 0, high, low, 0, 1];
    // The kernel makes that of ICMPv6.
    let check = (!rewrite::fold(rewrite::sum(&request))).to_be_bytes();
    request[2..4].copy_from_slice(&check);
    socket.send(&request)?;
    socket.receive(|answer| answer[0] == reply && answer[4..6] == [high, low]).await
}

/// Requests the MAC address of a backend on its link (ARP, neighbour discovery), and waits for an answer; false at
/// once if a router is on the path.
///
/// lbd does not make the kernel do this: it would probe the MAC address that it has, which may have changed, and give
/// the neighbour up; or, if it is to forget that one, keep packets waiting for up to a second when an outage is
/// over. It learns from the answer.
async fn resolves(backend: IpAddr, source: Option<IpAddr>) -> anyhow::Result<bool> {
    let Some(link) = lb_netlink::link_of(backend)? else { return Ok(false) };
    let own = match source {
        Some(source) => source,
        None => own_address_to(backend)?,
    };
    let watch = Watch::open(link, Family::of(backend))?;
    watch.set_addresses([backend])?;
    // SAFETY: the `AsyncFd` owns the watch, which never replaces its socket.
    let watch = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE)? };
    let mut again = interval(AGAIN);
    loop {
        tokio::select! {
            _ = again.tick() => watch.get_ref().request_address(backend, own)?,
            ready = watch.readable() => match watch.get_ref().claim()? {
                Some(claim) if claim.address == backend => return Ok(true),
                Some(_) => {}
                None => ready?.clear_ready(),
            },
        }
    }
}

/// The address that the kernel sends from to a peer.
fn own_address_to(peer: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match peer {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // Nothing is sent to this port.
    socket.connect((peer, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// A socket of an IP protocol whose packets go to one address and come from there.
struct Raw {
    socket: AsyncFd<Socket>,
    own: IpAddr,
    peer: IpAddr,
}

impl Raw {
    fn open(peer: IpAddr, source: Option<IpAddr>, number: Number) -> io::Result<Self> {
        let to = SocketAddr::new(peer, 0);
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(number))?;
        socket.set_nonblocking(true)?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect(&to.into())?;
        let own = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?.ip();
        // SAFETY: the socket is owned by the result, which never replaces it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Self { socket, own, peer })
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.socket.get_ref().send(packet).map(drop)
    }

    /// Waits for a packet that `is_answer`, which gets it from its transport header on, and at least 8 bytes.
    async fn receive(&self, is_answer: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        let mut buffer = [0; 128];
        loop {
            let mut ready = self.socket.readable().await?;
            let length = match ready.try_io(|socket| (&mut socket.get_ref()).read(&mut buffer)) {
                // What is longer is cut off.
                Ok(length) => length?,
                Err(_) => continue,
            };
            // Of IPv4 the kernel shows the header.
            let header = if self.peer.is_ipv4() { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
            let transport = buffer[..length].get(header..).unwrap_or_default();
            if transport.len() >= 8 && is_answer(transport) {
                return Ok(());
            }
        }
    }
}

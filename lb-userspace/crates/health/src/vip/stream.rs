//! A TCP connection to a VIP at one backend: smoltcp's, over packets in memory.
//!
//! It has no task of its own: its reader or writer drives it, and is woken by what comes and by
//! its timers. While neither runs, nothing is acknowledged, and so nothing comes: never is more
//! buffered than the window.

use std::{
    collections::VecDeque,
    fmt,
    future::{Future as _, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{RecvError, Socket, SocketBuffer, State},
    time::Instant,
    wire::{HardwareAddress, IpAddress, IpCidr},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::{Error, demux::Side, frame::Content, probe_flow::ProbeFlow};

/// Bytes that the backend may send before some are read: the window.
const RECEIVE_BUFFER: usize = 8 << 10;
/// Bytes that are written and not acknowledged yet.
const SEND_BUFFER: usize = 4 << 10;
/// How often the connection is looked at before others get their turn.
const ROUNDS: usize = 8;

/// A TCP connection to a VIP at one backend. Dropped, it is reset.
pub struct Stream {
    probe_flow: ProbeFlow,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    packets: Packets,
    timer: Option<Pin<Box<Sleep>>>,
    /// What ends it before its time.
    failure: Option<Error>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.sockets.get::<Socket<'_>>(self.handle).state();
        f.debug_tuple("Stream").field(&self.probe_flow.flow).field(&state).finish()
    }
}

impl Stream {
    /// Opens the connection.
    pub(super) async fn open(probe_flow: ProbeFlow) -> Result<Self, Error> {
        let mut stream = Self::new(probe_flow)?;
        poll_fn(|cx| {
            stream.drive(cx, Side::Reader);
            if let Some(failure) = &stream.failure {
                return Poll::Ready(Err(failure.clone()));
            }
            match stream.socket().state() {
                State::SynSent => Poll::Pending,
                State::Closed => Poll::Ready(Err(Error::Refused)),
                _ => Poll::Ready(Ok(())),
            }
        })
        .await?;
        Ok(stream)
    }

    fn new(probe_flow: ProbeFlow) -> Result<Self, Error> {
        let flow = probe_flow.flow;
        let mut packets = Packets { mtu: probe_flow.framing.mtu(), ..Packets::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = probe_flow.inner.random();
        let mut interface = Interface::new(config, &mut packets, Instant::now());
        let own = IpAddress::from(flow.own.ip());
        let prefix = if flow.own.is_ipv4() { 32 } else { 128 };
        // There is room for more than one of each.
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(own, prefix));
        });
        let _ = match own {
            IpAddress::Ipv4(own) => interface.routes_mut().add_default_ipv4_route(own),
            IpAddress::Ipv6(own) => interface.routes_mut().add_default_ipv6_route(own),
        };
        let buffer = |size| SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let connected = socket.connect(interface.context(), flow.peer, flow.own);
        connected.map_err(|error| Error::Local(format!("connect to {}: {error}", flow.peer)))?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok(Self { probe_flow, interface, sockets, handle, packets, timer: None, failure: None })
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Takes in what has come, sends what is due, and sees to it that `cx` is woken when there is
    /// more of either.
    fn drive(&mut self, cx: &mut Context<'_>, side: Side) {
        for _ in 0..ROUNDS {
            self.take(cx, side);
            self.step();
            let Some(delay) = self.interface.poll_delay(Instant::now(), &self.sockets) else {
                self.timer = None;
                return;
            };
            let delay = std::time::Duration::from(delay);
            if !delay.is_zero() && self.wait(delay) {
                return;
            }
        }
        cx.waker().wake_by_ref();
    }

    /// Takes in the packets that have come.
    fn take(&mut self, cx: &mut Context<'_>, side: Side) {
        let mut taken = false;
        while let Poll::Ready(message) = self.probe_flow.inbox.poll(cx, side) {
            taken = true;
            match message {
                Ok(message) => match message.content {
                    Content::Segment { .. } => self.packets.received.push_back(message.packet),
                    // Once it is open, such a message could be anyone's (RFC 5927, 5).
                    Content::Unreachable if self.socket().state() == State::SynSent => {
                        self.failure = Some(Error::Refused);
                    }
                    Content::Unreachable | Content::Datagram(_) => {}
                },
                Err(failure) => {
                    self.failure = Some(failure);
                    break;
                }
            }
        }
        if taken {
            let other = if side == Side::Reader { Side::Writer } else { Side::Reader };
            self.probe_flow.inbox.wake_side(other);
        }
    }

    /// Lets smoltcp work on what is there.
    fn step(&mut self) {
        self.interface.poll(Instant::now(), &mut self.packets, &mut self.sockets);
        while let Some(packet) = self.packets.to_send.pop_front() {
            if let Err(error) = self.probe_flow.send(&packet) {
                self.failure = Some(error);
            }
        }
    }

    /// Sets the timer; false if its time has come already. Both halves are woken by it, as either
    /// may be gone by then.
    fn wait(&mut self, delay: std::time::Duration) -> bool {
        let timer = match &mut self.timer {
            Some(timer) => {
                timer.as_mut().reset(tokio::time::Instant::now() + delay);
                timer
            }
            none => none.insert(Box::pin(sleep(delay))),
        };
        let waker = Waker::from(Arc::clone(&self.probe_flow.inbox));
        timer.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
    }

    fn failed(&self) -> io::Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(failure) => Err(io::Error::other(failure.clone())),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Where all is sent and acknowledged, this sends nothing.
        if self.socket().state() != State::TimeWait {
            self.socket().abort();
            self.step();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        stream.drive(cx, Side::Reader);
        let before = buffer.filled().len();
        // The ring of bytes may be in two pieces.
        for _ in 0..2 {
            let received = stream.socket().recv(|bytes| {
                let length = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..length]);
                (length, ())
            });
            match received {
                Ok(()) => {}
                Err(_) if buffer.filled().len() > before => break,
                Err(RecvError::Finished) => return Poll::Ready(Ok(())),
                Err(RecvError::InvalidState) => {
                    stream.failed()?;
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
            }
        }
        if buffer.filled().len() > before {
            // The window is larger again.
            stream.step();
            return Poll::Ready(Ok(()));
        }
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        stream.failed()?;
        Poll::Pending
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.drive(cx, Side::Writer);
        stream.failed()?;
        match stream.socket().send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => Poll::Pending,
            Ok(length) => {
                stream.drive(cx, Side::Writer);
                Poll::Ready(Ok(length))
            }
            Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// What is written is sent as soon as the backend takes it.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        stream.drive(cx, Side::Writer);
        Poll::Ready(stream.failed())
    }

    /// Sends a FIN behind what is written.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        stream.socket().close();
        stream.drive(cx, Side::Writer);
        Poll::Ready(stream.failed())
    }
}

/// A network device that is two queues of IP packets.
#[derive(Debug, Default)]
struct Packets {
    mtu: usize,
    received: VecDeque<Vec<u8>>,
    to_send: VecDeque<Vec<u8>>,
}

struct Received(Vec<u8>);

struct ToSend<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Packets {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, ToSend<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), ToSend(&mut self.to_send)))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        Some(ToSend(&mut self.to_send))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // Between hosts on one machine checksums may be unset.
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

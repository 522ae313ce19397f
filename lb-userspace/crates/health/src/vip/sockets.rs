//! The sockets: one that sends frames, one for each family that sees packets come, and those that
//! hold ports.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use lb_common::packet::ethernet;
use lb_model::desired::Protocol;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol as Number, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Error,
    filter::{self, Program},
};

/// Room for packets that have come and are not read yet, in bytes; the kernel may grant less.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Why there is no packet socket.
fn refused(error: &io::Error) -> Error {
    Error::Local(match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "checks through the VIP need the capability CAP_NET_RAW: run as root or give it to \
             lbd, or use via = \"backend\""
                .into()
        }
        _ => format!("open a packet socket: {error}"),
    })
}

/// Sends frames, and receives nothing.
#[derive(Debug)]
pub(super) struct Sender(Socket);

impl Sender {
    /// Opens it in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, Error> {
        let open = || {
            // Without a protocol the kernel gives it no packet.
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Number::from(0)))?;
            socket.set_nonblocking(true)?;
            Ok(Self(socket))
        };
        open().map_err(|error| refused(&error))
    }

    /// Sends a frame by an interface. One for which there is no room in its queue is lost, as on
    /// any link.
    pub(super) fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        match self.0.send_to(frame, &interface(ifindex)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            sent => sent.map(drop),
        }
    }
}

/// The address of an interface, for a socket whose frames bring their own link-layer header.
fn interface(ifindex: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the type is an address, which fits and may have any bytes.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_ifindex = ifindex.cast_signed();
    // SAFETY: the storage holds an address of the family that it names, of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// Sees the packets of one family come, on any interface and before the kernel looks at them; from
/// the IP header on.
#[derive(Debug)]
pub(super) struct Receiver(Socket);

impl Receiver {
    /// Opens it in the network namespace of the calling thread. It takes nothing yet.
    pub(super) fn open(v6: bool) -> Result<Self, Error> {
        let ethertype = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        let protocol = Number::from(i32::from(ethertype.to_be()));
        let open = || {
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
            attach(&socket, &filter::nothing())?;
            socket.set_nonblocking(true)?;
            // A smaller one does too, but for bursts.
            let _ = enlarge(&socket);
            Ok(Self(socket))
        };
        open().map_err(|error| refused(&error))
    }

    /// Takes what `program` lets through from now on.
    pub(super) fn set_filter(&self, program: &Program) -> io::Result<()> {
        attach(&self.0, program).or_else(|_| attach(&self.0, &filter::widened(program)))
    }

    /// For waiting until something has come, in a task of the current runtime.
    pub(super) fn watch(self: &Arc<Self>) -> Result<AsyncFd<Arc<Self>>, Error> {
        // SAFETY: the socket is owned by the `Arc`, which the result keeps, and is never replaced.
        let watched =
            unsafe { AsyncFd::register_with_interest(Arc::clone(self), Interest::READABLE) };
        watched.map_err(|error| Error::Local(format!("watch a packet socket: {error}")))
    }

    /// The next packet; what `buffer` has no room for is cut off.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }
}

impl AsRawFd for Receiver {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A port of this node that the kernel answers nothing on: neither an RST to a segment that it
/// knows nothing of, nor an ICMP error to a datagram. It is free again when this is dropped.
#[derive(Debug)]
pub(super) struct SilentPort {
    _socket: Socket,
}

impl SilentPort {
    /// Binds a free port of an address; which.
    pub(super) fn open(address: IpAddr, protocol: Protocol) -> io::Result<(u16, Self)> {
        let any = SocketAddr::new(address, 0);
        let (kind, number) = match protocol {
            Protocol::Tcp => (Type::STREAM, Number::TCP),
            Protocol::Udp => (Type::DGRAM, Number::UDP),
        };
        let socket = Socket::new(Domain::for_address(any), kind, Some(number))?;
        // The kernel runs the filter of the socket that a packet is for, and answers nothing to
        // what that refuses. Of TCP sockets only those that listen are found.
        attach(&socket, &filter::nothing())?;
        socket.bind(&any.into())?;
        if protocol == Protocol::Tcp {
            socket.listen(1)?;
        }
        let bound = socket.local_addr()?.as_socket();
        let port = bound.ok_or(io::ErrorKind::Unsupported)?.port();
        Ok((port, Self { _socket: socket }))
    }
}

fn attach(socket: &Socket, program: &Program) -> io::Result<()> {
    let filter: Vec<_> =
        program.iter().map(|i| SockFilter::new(i.code, i.yes, i.no, i.value)).collect();
    socket.attach_filter(&filter)
}

/// Gives a socket its receive buffer, beyond the system's limit where this process may.
fn enlarge(socket: &Socket) -> io::Result<()> {
    setsockopt(socket, RcvBufForce, &RECEIVE_BUFFER)
        .map_err(io::Error::from)
        .or_else(|_| socket.set_recv_buffer_size(RECEIVE_BUFFER))
}

//! Receives advertisements.
//!
//! The filter takes only the node's VRIDs, and only packets with the TTL of a neighbour, so that no packet from
//! afar wakes the thread. A second, small socket keeps a few of the others, which are counted and reported once a
//! second.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use lb_model::router::Family;
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt,
        sockopt::{Ipv4PacketInfo, Ipv6RecvHopLimit, Ipv6RecvPacketInfo, RcvBufForce},
    },
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::{
    SocketInterface,
    filter::{self, Distance},
};
use crate::packet::{MAX_LEN, PROTOCOL, Packet};

/// Room for any advertisement with its IPv4 header.
pub const BUFFER: usize = MAX_LEN + 60;

/// Room in the kernel for what is not read yet: a thread that was stopped for seconds is to find the
/// advertisement of the router that has taken over meanwhile behind those of hundreds of other routers.
const BACKLOG: usize = 4 * 1024 * 1024;

/// Room for a few messages, of which one would do.
const FAR_BACKLOG: usize = 8 * 1024;

/// A message that has come.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The index of the interface that it has come by.
    pub interface: u32,
    /// The message.
    pub packet: Packet<'a>,
}

/// Receives the advertisements of one family on one interface, those to the group and those to this
/// node. What this node sends on that interface does not come.
///
/// What has crossed a router does not come either: the kernel's filter keeps a flood from afar from the
/// thread, which runs before everything else (RFC 9568, 9: the TTL of 255 is what protects the protocol).
/// A little of it is kept by a socket of its own, for the occasional search for wrong set-ups.
#[derive(Debug)]
pub struct Receiver {
    socket: Socket,
    far: Socket,
    family: Family,
}

impl Receiver {
    /// Opens it in the network namespace of the calling thread. It receives nothing until
    /// [`Self::set_vrids`].
    ///
    /// # Errors
    ///
    /// From the kernel.
    pub fn open(interface: &SocketInterface, family: Family) -> io::Result<Self> {
        let (socket, far) = (open(interface, family)?, open(interface, family)?);
        if setsockopt(&socket, RcvBufForce, &BACKLOG).is_err() {
            // As much as is allowed.
            socket.set_recv_buffer_size(BACKLOG)?;
        }
        far.set_recv_buffer_size(FAR_BACKLOG)?;
        Ok(Self { socket, far, family })
    }

    /// Receives advertisements of these virtual routers from now on, and no others; each with the least TTL or hop limit that
    /// an advertisement of a peer arrives with.
    ///
    /// # Errors
    ///
    /// From the kernel.
    pub fn set_vrids(
        &self,
        vrids: impl IntoIterator<Item = (NonZeroU8, u8)> + Clone,
    ) -> io::Result<()> {
        let v6 = self.family == Family::V6;
        filter::attach(&self.socket, &filter::vrids(v6, Distance::Near, vrids.clone()))?;
        filter::attach(&self.far, &filter::vrids(v6, Distance::Far, vrids))
    }

    /// The next message, if one has come; `buffer` is at least [`BUFFER`] long.
    ///
    /// # Errors
    ///
    /// From the kernel.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<Received<'b>>> {
        self.receive_by(&self.socket, buffer)
    }

    /// The same of what came from too far away, of which the most is lost. It wakes no thread.
    ///
    /// # Errors
    ///
    /// From the kernel.
    pub fn receive_far<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<Received<'b>>> {
        self.receive_by(&self.far, buffer)
    }

    fn receive_by<'b>(
        &self,
        socket: &Socket,
        buffer: &'b mut [u8],
    ) -> io::Result<Option<Received<'b>>> {
        loop {
            let Some(Arrival { len, from, to, interface, hops }) = next(socket, buffer)? else {
                return Ok(None);
            };
            let found = match self.family {
                Family::V4 => behind_header(&buffer[..len]).map(|(ttl, start)| (ttl, start..len)),
                Family::V6 => hops.map(|hops| (hops, 0..len)),
            };
            // The kernel always delivers all this; a packet without it is dropped.
            let (Some((ttl, range)), Some(source), Some((destination, interface))) =
                (found, from, to.zip(interface))
            else {
                continue;
            };
            let message = &buffer[range];
            let packet = Packet { source, destination, ttl, message };
            return Ok(Some(Received { interface, packet }));
        }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket that takes nothing yet.
fn open(interface: &SocketInterface, family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
    filter::attach(&socket, &filter::nothing())?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.name.as_bytes()))?;
    match family.group() {
        IpAddr::V4(group) => {
            setsockopt(&socket, Ipv4PacketInfo, &true)?;
            // What other programs have joined is none of this one's.
            socket.set_multicast_all_v4(false)?;
            let interface = InterfaceIndexOrAddress::Index(interface.index);
            socket.join_multicast_v4_n(&group, &interface)?;
        }
        IpAddr::V6(group) => {
            setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
            setsockopt(&socket, Ipv6RecvHopLimit, &true)?;
            socket.set_multicast_all_v6(false)?;
            socket.join_multicast_v6(&group, interface.index)?;
        }
    }
    Ok(socket)
}

fn next(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<Arrival>> {
    let mut control = cmsg_space!(libc::in6_pktinfo, libc::c_int);
    let mut slices = [IoSliceMut::new(buffer)];
    let fd = socket.as_raw_fd();
    let received = loop {
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(None),
            other => break other?,
        }
    };
    let from = received.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    let mut arrival = Arrival { len: received.bytes, from, to: None, interface: None, hops: None };
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let address = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                arrival.to = Some(address.into());
                arrival.interface = u32::try_from(info.ipi_ifindex).ok();
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                arrival.to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                arrival.interface = Some(info.ipi6_ifindex);
            }
            ControlMessageOwned::Ipv6HopLimit(hops) => arrival.hops = u8::try_from(hops).ok(),
            _ => {}
        }
    }
    Ok(Some(arrival))
}

/// The kernel's metadata of a packet.
struct Arrival {
    len: usize,
    from: Option<IpAddr>,
    to: Option<IpAddr>,
    interface: Option<u32>,
    hops: Option<u8>,
}

/// The TTL of a packet with its IPv4 header, and where that ends.
fn behind_header(packet: &[u8]) -> Option<(u8, usize)> {
    let start = usize::from(packet.first()? & 0xf) * 4;
    (start >= 20 && start <= packet.len()).then(|| (packet[8], start))
}

//! Sends advertisements.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{SockaddrIn6, SockaddrStorage},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{SocketInterface, filter};
use crate::packet::{PROTOCOL, TTL};

/// DSCP CS6, network control (RFC 2474, 4.2.2.2), as the byte of the IP header.
const NETWORK_CONTROL: u32 = 48 << 2;
/// The kernel's band for what keeps the network going (`TC_PRIO_CONTROL`).
const PRIORITY: u32 = 7;

/// Sends advertisements by one interface from one address, to the group and to peers. It receives
/// nothing, and nothing of what it sends comes back to this node.
#[derive(Debug)]
pub struct Sender {
    socket: Socket,
    source: IpAddr,
    scope: u32,
}

impl Sender {
    /// Opens it in the network namespace of the calling thread. `source` is an address of this node,
    /// not always one of the interface's: one that has the virtual MAC address has none of its own.
    ///
    /// # Errors
    ///
    /// From the kernel; `AddrNotAvailable` while the node has not that address.
    pub fn open(interface: &SocketInterface, source: IpAddr) -> io::Result<Self> {
        let domain = if source.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
        socket.set_nonblocking(true)?;
        filter::attach(&socket, &filter::nothing())?;
        // Both choose the interface for what goes to the group, too.
        socket.bind_device(Some(interface.name.as_bytes()))?;
        match source {
            IpAddr::V4(_) => {
                socket.set_ttl_v4(TTL.into())?;
                socket.set_multicast_ttl_v4(TTL.into())?;
                socket.set_multicast_loop_v4(false)?;
                socket.set_tos_v4(NETWORK_CONTROL)?;
            }
            IpAddr::V6(_) => {
                socket.set_unicast_hops_v6(TTL.into())?;
                socket.set_multicast_hops_v6(TTL.into())?;
                socket.set_multicast_loop_v6(false)?;
                socket.set_multicast_if_v6(interface.index)?;
                socket.set_tclass_v6(NETWORK_CONTROL)?;
            }
        }
        // After the traffic class, which sets it too.
        socket.set_priority(PRIORITY)?;
        let sender = Self { socket, source, scope: interface.index };
        sender.bind()?;
        Ok(sender)
    }

    /// The address that it sends from.
    #[must_use]
    pub(crate) const fn source(&self) -> IpAddr {
        self.source
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// From the kernel; `ENODEV` once the interface is gone, and `ENETUNREACH` for IPv6, which is also
    /// the error of one that is down.
    pub fn send(&self, message: &[u8], destination: IpAddr) -> io::Result<()> {
        self.socket.send_to(message, &self.endpoint(destination).into()).map(drop)
    }

    fn bind(&self) -> io::Result<()> {
        let to = self.endpoint(self.source).into();
        match self.socket.bind(&to) {
            // A link-local address is one of an interface, and that below may be it.
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable && is_elsewhere(self.source) =>
            {
                self.socket.set_freebind_v6(true)?;
                self.socket.bind(&to)
            }
            bound => bound,
        }
    }

    fn endpoint(&self, address: IpAddr) -> SocketAddr {
        match address {
            IpAddr::V4(address) => SocketAddrV4::new(address, 0).into(),
            IpAddr::V6(address) => {
                let local = address.is_unicast_link_local() || address.is_multicast();
                SocketAddrV6::new(address, 0, 0, if local { self.scope } else { 0 }).into()
            }
        }
    }
}

/// Whether this is a link-local address of any interface.
fn is_elsewhere(source: IpAddr) -> bool {
    let IpAddr::V6(source) = source else { return false };
    source.is_unicast_link_local()
        && getifaddrs().is_ok_and(|mut interfaces| {
            let of = |address: SockaddrStorage| address.as_sockaddr_in6().map(SockaddrIn6::ip);
            interfaces.any(|one| one.address.and_then(of) == Some(source))
        })
}

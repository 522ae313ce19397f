//! Sends frames that announce addresses, and sees frames by which others claim them.

use std::{
    io::{self, Read as _},
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use lb_common::packet::ethernet;
use lb_model::router::Family;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::filter;
use crate::announce::{self, Claim, Mac};

/// So many frames that claim nothing are read at once: a flood of them must not keep the thread.
const FRAMES: usize = 64;

/// Announces addresses, on any interface.
#[derive(Debug)]
pub struct Announcer(Socket);

impl Announcer {
    /// Opens it in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// From the kernel.
    pub fn open() -> io::Result<Self> {
        Ok(Self(packet_socket()?))
    }

    /// Announces on a link that `mac` has `address`; see [`announce::frame`]. `mac` is that of the
    /// interface, which is the one with the virtual MAC address if there is one.
    ///
    /// # Errors
    ///
    /// From the kernel.
    pub fn announce(
        &self,
        interface: u32,
        mac: Mac,
        address: IpAddr,
        router: bool,
    ) -> io::Result<()> {
        let frame = announce::frame(address, mac, router);
        self.0.send_to(&frame, &link_address(interface, 0)).map(drop)
    }

    /// Requests the owner of `address` on a link; a [`Watch`] receives the answer. `from` is a link-local address
    /// of the interface: without one, no IPv6 request is sent.
    ///
    /// # Errors
    ///
    /// From the kernel.
    pub fn request_address(
        &self,
        interface: u32,
        mac: Mac,
        address: IpAddr,
        from: Option<Ipv6Addr>,
    ) -> io::Result<()> {
        let frame = match (address, from) {
            // The request has no sender address: no host learns from it where the address is.
            (IpAddr::V4(address), _) => announce::arp_request(address, mac, None),
            (IpAddr::V6(address), Some(from)) => announce::solicitation(address, mac, from),
            (IpAddr::V6(_), None) => return Ok(()),
        };
        self.0.send_to(&frame, &link_address(interface, 0)).map(drop)
    }
}

/// Receives claims of addresses of one family on one interface; not what this node sends there.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    family: Family,
}

impl Watch {
    /// Opens it for an interface, by its index, in the network namespace of the calling thread. It sees nothing
    /// until [`Self::set_addresses`].
    ///
    /// # Errors
    ///
    /// From the kernel.
    pub fn open(interface: u32, family: Family) -> io::Result<Self> {
        let socket = packet_socket()?;
        let kind = match family {
            Family::V4 => announce::ETHERTYPE_ARP,
            Family::V6 => ethernet::IPV6,
        };
        socket.bind(&link_address(interface, kind))?;
        Ok(Self { socket, family })
    }

    /// Looks for these addresses from now on, and no others.
    ///
    /// # Errors
    ///
    /// From the kernel.
    pub fn set_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) -> io::Result<()> {
        let addresses = addresses.into_iter().filter(|a| Family::of(*a) == self.family);
        filter::attach(&self.socket, &filter::claims(self.family, addresses))
    }

    /// Requests an address of its family on the link, in the name of `from`, an address of this node: its owner
    /// claims it.
    ///
    /// # Errors
    ///
    /// From the kernel; `EINVAL` if an address is of the other family, or the interface no Ethernet.
    pub fn request_address(&self, address: IpAddr, from: IpAddr) -> io::Result<()> {
        let mac = mac_of(&self.socket.local_addr()?).ok_or(io::ErrorKind::InvalidInput)?;
        let frame = match (address, from) {
            (IpAddr::V4(address), IpAddr::V4(from)) => {
                announce::arp_request(address, mac, Some(from))
            }
            (IpAddr::V6(address), IpAddr::V6(from)) => announce::solicitation(address, mac, from),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        self.socket.send(&frame).map(drop)
    }

    /// The next claim, if one was seen among some frames. It may be one of another address: of IPv6 the
    /// filter compares a part, and of very many addresses none.
    ///
    /// # Errors
    ///
    /// From the kernel; `ENETDOWN` once when the interface has gone down.
    pub fn claim(&self) -> io::Result<Option<Claim>> {
        let mut buffer = [0; 2048];
        for _ in 0..FRAMES {
            match (&self.socket).read(&mut buffer) {
                Ok(len) => {
                    if let Some(claim) = announce::claim(&buffer[..len]) {
                        return Ok(Some(claim));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// One that gets no frame: without a protocol it is given none.
fn packet_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    filter::attach(&socket, &filter::nothing())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// An interface, and the frames of a type on it, for a socket whose frames have their header.
fn link_address(interface: u32, kind: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the type is an address, which fits and may have any bytes.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = kind.to_be();
    address.sll_ifindex = interface.cast_signed();
    // SAFETY: the storage holds an address of the family that it names, of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// The MAC address of the interface that a packet socket is bound to.
fn mac_of(address: &SockAddr) -> Option<Mac> {
    if address.family() != libc::AF_PACKET as libc::sa_family_t {
        return None;
    }
    // SAFETY: of that family; the storage has room for any kind of address, and any bytes make one.
    let address = unsafe { &*address.as_ptr().cast::<libc::sockaddr_ll>() };
    let mac = address.sll_addr.first_chunk()?;
    (usize::from(address.sll_halen) == mac.len()).then_some(*mac)
}

//! Finds the hosts that answer for an address on a link, by ARP requests (RFC 826) and neighbour solicitations
//! (RFC 4861, 7.2.2). The kernel itself sends none for an address that it has.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read as _},
    net::IpAddr,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use lb_vrrp::announce;

use crate::doctor::snapshot::{InterfaceSnapshot, Mac};

/// For as long answers are awaited: a host on the link needs a millisecond.
const PATIENCE: Duration = Duration::from_millis(700);
/// How many times each request is sent, since a host that wakes up may miss a frame.
const ROUNDS: u32 = 2;
const ETH_P_ALL: u16 = 3;

/// The other hosts that answer for these addresses on the links of these interfaces; none if this process may
/// not send requests, or none of the links is there and up.
pub(super) async fn collect(
    interfaces: &BTreeMap<String, InterfaceSnapshot>,
    names: &[String],
    addresses: BTreeSet<IpAddr>,
) -> Option<BTreeMap<IpAddr, BTreeSet<Mac>>> {
    let own: BTreeSet<Mac> = interfaces.values().filter_map(|interface| interface.mac).collect();
    let mut links = Vec::new();
    for interface in names.iter().filter_map(|name| interfaces.get(name)) {
        let Some(mac) = interface.mac.filter(|_| interface.up) else { continue };
        let frames: Vec<_> =
            addresses.iter().filter_map(|address| request(*address, mac, interface)).collect();
        links.push((open(interface.ifindex).ok()?, interface.ifindex, frames));
    }
    if links.is_empty() {
        return None;
    }
    let mut claims = BTreeMap::<_, BTreeSet<Mac>>::new();
    let end = Instant::now() + PATIENCE;
    for round in 0..ROUNDS {
        for (socket, ifindex, frames) in &links {
            for frame in frames {
                // On a link that takes no frame, no host answers.
                let _ = socket.send_to(frame, &on(*ifindex, 0));
            }
        }
        let until = end - PATIENCE / ROUNDS * (ROUNDS - 1 - round);
        while Instant::now() < until {
            for (socket, ..) in &links {
                receive(socket, |claim| {
                    if addresses.contains(&claim.address) && !own.contains(&claim.mac) {
                        claims.entry(claim.address).or_default().insert(claim.mac);
                    }
                });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Some(claims)
}

/// Reads the frames that have arrived.
fn receive(mut socket: &Socket, mut each: impl FnMut(announce::Claim)) {
    let mut buffer = [0; 2_048];
    // No more than some at once: a busy link must not keep this from its end.
    for _ in 0..1_024 {
        match socket.read(&mut buffer) {
            Ok(length) => announce::claim(&buffer[..length]).into_iter().for_each(&mut each),
            Err(_) => return,
        }
    }
}

fn open(ifindex: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    socket.bind(&on(ifindex, ETH_P_ALL))?;
    Ok(socket)
}

/// An interface, and the frames of a type on it.
fn on(ifindex: u32, kind: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the type is an address, which fits and may have any bytes.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = kind.to_be();
    address.sll_ifindex = ifindex.cast_signed();
    // SAFETY: the storage holds an address of the family that it names, of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// The request for an address, sent from another address of the interface. Over IPv6
/// it takes one: without a source it would look as if the address were about to be taken.
fn request(address: IpAddr, mac: Mac, interface: &InterfaceSnapshot) -> Option<Vec<u8>> {
    let own = interface.addresses.iter().map(|(own, _)| *own).filter(|own| *own != address);
    match address {
        IpAddr::V4(address) => {
            let own = own.into_iter().find_map(|own| match own {
                IpAddr::V4(own) => Some(own),
                IpAddr::V6(_) => None,
            });
            Some(announce::arp_request(address, mac, own))
        }
        IpAddr::V6(address) => {
            let own = own.into_iter().find_map(|own| match own {
                IpAddr::V6(own) if own.is_unicast_link_local() => Some(own),
                _ => None,
            });
            own.map(|own| announce::solicitation(address, mac, own))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn it_is_asked_in_the_name_of_another_address() {
        let mut interface = InterfaceSnapshot::default();
        let vip: Ipv4Addr = [10, 0, 0, 100].into();
        interface.addresses.push((vip.into(), 32));
        let frame = request(vip.into(), MAC, &interface).expect("a frame");
        assert_eq!(frame[28..32], [0; 4], "nothing is claimed");
        interface.addresses.push(([10, 0, 0, 2].into(), 24));
        let frame = request(vip.into(), MAC, &interface).expect("a frame");
        assert_eq!((&frame[28..32], &frame[38..42]), (&[10, 0, 0, 2][..], &[10, 0, 0, 100][..]));
        assert_eq!(announce::claim(&frame).map(|claim| claim.address), Some([10, 0, 0, 2].into()));

        let vip: Ipv6Addr = "fd00::12:3456".parse().expect("an address");
        assert_eq!(request(vip.into(), MAC, &interface), None);
        let own: Ipv6Addr = "fe80::1".parse().expect("an address");
        interface.addresses.push((own.into(), 64));
        let frame = request(vip.into(), MAC, &interface).expect("a frame");
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!(frame.len(), 14 + 40 + 32);
    }
}

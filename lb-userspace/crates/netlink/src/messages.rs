//! Between netlink's messages and [`super::tables`].

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
        NeighbourState as Nud,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::tables::{FdbKey, Neighbour, NeighbourKey, NeighbourState, Route};

/// A neighbour; none for entries of bridges and proxies, which are no neighbours.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    let header = &message.header;
    if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6)
        || header.flags.contains(NeighbourFlags::Proxy)
    {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match header.state {
        Nud::Reachable | Nud::Stale | Nud::Delay => NeighbourState::Valid,
        Nud::Probe => NeighbourState::Probed,
        Nud::Failed => NeighbourState::Failed,
        Nud::Noarp => NeighbourState::NoArp,
        Nud::Permanent => NeighbourState::Permanent,
        _ => NeighbourState::Incomplete,
    };
    Some(((header.ifindex, address?), Neighbour { state, mac }))
}

/// The request for what all bridges have learnt.
pub(super) fn all_fdb() -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message
}

/// The port behind which a bridge has learnt a MAC address; none for neighbours, for the node's own
/// addresses, and for entries of one VLAN.
pub(super) fn fdb(message: &NeighbourMessage) -> Option<(FdbKey, u32)> {
    let header = &message.header;
    if header.family != AddressFamily::Bridge || header.state == Nud::Permanent {
        return None;
    }
    let (mut bridge, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Controller(ifindex) => bridge = Some(*ifindex),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::Vlan(vlan) if *vlan != 0 => return None,
            _ => {}
        }
    }
    Some(((bridge?, mac?), header.ifindex))
}

/// The request that makes the kernel resolve or probe a neighbour, as a packet to it would.
pub(super) fn use_neighbour(key: NeighbourKey) -> NeighbourMessage {
    let mut message = one_neighbour(key);
    message.header.flags = NeighbourFlags::Use;
    message
}

/// The request that reads one neighbour, or makes the kernel forget it.
pub(super) fn one_neighbour((ifindex, address): NeighbourKey) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.attributes = vec![NeighbourAttribute::Destination(match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    })];
    message
}

/// The request for the route to one address.
pub(super) fn route_to(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![RouteAttribute::Destination(address.into())];
    message
}

/// The answer to [`route_to`].
pub(super) fn route(message: &RouteMessage) -> Route {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Route::Own,
        RouteType::Broadcast => return Route::None("is a broadcast address"),
        RouteType::Multicast => return Route::None("is a multicast address"),
        RouteType::Anycast => return Route::None("is an anycast address"),
        RouteType::BlackHole => return route_error(libc::EINVAL),
        RouteType::Unreachable => return route_error(libc::EHOSTUNREACH),
        RouteType::Prohibit => return route_error(libc::EACCES),
        _ => return Route::None("has a route of a kind that leads nowhere"),
    }
    let (mut oif, mut gateway, mut mtu) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => oif = Some(*ifindex),
            RouteAttribute::Gateway(RouteAddress::Inet(v4))
            | RouteAttribute::Via(RouteVia::Inet(v4)) => gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6))
            | RouteAttribute::Via(RouteVia::Inet6(v6)) => gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    match oif {
        Some(oif) => Route::Via { oif, gateway, mtu },
        None => Route::None("has a route without an interface"),
    }
}

/// What a refused lookup means; `errno` is positive.
pub(super) const fn route_error(errno: i32) -> Route {
    Route::None(match errno {
        libc::EINVAL => "has a blackhole route",
        libc::EHOSTUNREACH => "has a route of type unreachable",
        libc::EACCES => "has a route of type prohibit",
        _ => "has no route; see `ip route get`",
    })
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_says_behind_which_port_a_mac_address_is() {
        let mut message = all_fdb();
        message.header.ifindex = 4;
        message.header.state = Nud::Reachable;
        message.attributes = vec![
            NeighbourAttribute::Controller(7),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]),
        ];
        assert_eq!(fdb(&message), Some(((7, [2, 0, 0, 0, 0, 1]), 4)));
        let mut own = message.clone();
        own.header.state = Nud::Permanent;
        assert_eq!(fdb(&own), None);
        message.attributes.push(NeighbourAttribute::Vlan(10));
        assert_eq!(fdb(&message), None);
    }

    #[test]
    fn entry_of_a_bridge_or_a_proxy_is_no_neighbour() {
        let mut message = use_neighbour((3, "10.0.0.2".parse().expect("an address")));
        message.header.state = Nud::Reachable;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]));
        let valid = Neighbour { state: NeighbourState::Valid, mac: Some([2, 0, 0, 0, 0, 1]) };
        assert_eq!(neighbour(&message).map(|(_, neighbour)| neighbour), Some(valid));
        message.header.flags = NeighbourFlags::Proxy;
        assert_eq!(neighbour(&message), None);
        message.header.flags = NeighbourFlags::empty();
        message.header.family = AddressFamily::Bridge;
        assert_eq!(neighbour(&message), None);
    }
}

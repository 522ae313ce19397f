//! Between netlink's messages and [`super::tables`].

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily,
    link::{
        BondMode, InfoBond, InfoBridge, InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags,
        LinkInfo, LinkMessage, LinkXdp, VlanProtocol, XdpAttached,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
        NeighbourState as Nud,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::tables::{
    Device, DeviceKind, FdbKey, LinkLayer, Neighbour, NeighbourKey, NeighbourState, Route,
};

/// An interface and its index.
pub(super) fn device(message: &LinkMessage) -> (u32, Device) {
    let flags = message.header.flags;
    let mut device = Device {
        name: String::new(),
        kind: DeviceKind::Own,
        mac: [0; 6],
        layer: LinkLayer::of(message.header.link_layer_type),
        no_arp: flags.contains(LinkFlags::Noarp),
        admin_up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        port_of: None,
        xdp_prog_id: None,
        xdp_generic: false,
        xdp_features: None,
    };
    let mut parent = None;
    let mut foreign_parent = false;
    let mut info: &[LinkInfo] = &[];
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Address(mac) => {
                device.mac = mac.as_slice().try_into().unwrap_or_default();
            }
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Link(ifindex) => parent = Some(*ifindex),
            LinkAttribute::LinkNetNsId(_) => foreign_parent = true,
            LinkAttribute::Controller(ifindex) => device.port_of = Some(*ifindex),
            LinkAttribute::LinkInfo(all) => info = all,
            LinkAttribute::Xdp(all) => {
                device.xdp_prog_id = xdp_program(all);
                device.xdp_generic = all.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
            }
            _ => {}
        }
    }
    let parent = parent.filter(|_| !foreign_parent);
    for item in info {
        match item {
            LinkInfo::Kind(InfoKind::MacVlan | InfoKind::MacVtap) => {
                device.kind = DeviceKind::Macvlan { parent };
            }
            LinkInfo::Kind(InfoKind::Veth) => device.kind = DeviceKind::Veth,
            LinkInfo::Kind(InfoKind::Bridge) => {
                device.kind = DeviceKind::Bridge { filters_vlans: false };
            }
            LinkInfo::Kind(kind) => {
                device.kind = virtual_kind(kind).map_or(DeviceKind::Own, DeviceKind::Virtual);
            }
            LinkInfo::Data(InfoData::Vlan(vlan)) => device.kind = vlan_kind(parent, vlan),
            LinkInfo::Data(InfoData::Bridge(bridge)) => {
                let filters_vlans = bridge.contains(&InfoBridge::VlanFiltering(true));
                device.kind = DeviceKind::Bridge { filters_vlans };
            }
            LinkInfo::Data(InfoData::Bond(bond)) => device.kind = bond_kind(bond),
            _ => {}
        }
    }
    (message.header.index, device)
}

fn xdp_program(attributes: &[LinkXdp]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) => Some(*id),
        _ => None,
    })
}

/// The name of a kind of devices that have no `ndo_xdp_xmit`, for kernels that don't say so themselves.
const fn virtual_kind(kind: &InfoKind) -> Option<&'static str> {
    Some(match kind {
        InfoKind::Dummy => "dummy",
        InfoKind::Ifb => "ifb",
        InfoKind::IpVlan => "ipvlan",
        InfoKind::IpVtap => "ipvtap",
        InfoKind::Vxlan => "vxlan",
        InfoKind::Geneve => "geneve",
        InfoKind::GreTap | InfoKind::GreTap6 => "gretap",
        InfoKind::ErSpan | InfoKind::Ip6ErSpan => "erspan",
        InfoKind::Team => "team",
        InfoKind::MacSec => "macsec",
        InfoKind::Hsr => "hsr",
        InfoKind::Netkit => "netkit",
        InfoKind::BatAdv => "batadv",
        _ => return None,
    })
}

fn bond_kind(attributes: &[InfoBond]) -> DeviceKind {
    let mut mode = BondMode::default();
    let mut active = None;
    for attribute in attributes {
        match attribute {
            InfoBond::Mode(value) => mode = *value,
            InfoBond::ActivePort(ifindex) => active = Some(*ifindex).filter(|index| *index != 0),
            _ => {}
        }
    }
    DeviceKind::Bond { mode, active }
}

fn vlan_kind(parent: Option<u32>, attributes: &[InfoVlan]) -> DeviceKind {
    let mut id = 0;
    let mut tpid = VlanProtocol::Ieee8021Q;
    for attribute in attributes {
        match attribute {
            InfoVlan::Id(value) => id = *value,
            InfoVlan::Protocol(value) => tpid = *value,
            _ => {}
        }
    }
    DeviceKind::Vlan { parent, tpid: tpid.into(), id }
}

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
    fn vlan_device_has_its_parent_and_its_tag() {
        let kind = |attributes: Vec<LinkAttribute>| {
            let mut message = LinkMessage::default();
            message.header.index = 7;
            message.attributes = attributes;
            let (index, device) = device(&message);
            assert_eq!(index, 7);
            device.kind
        };
        let info = |protocol| {
            let data = vec![InfoVlan::Id(100), InfoVlan::Protocol(protocol)];
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(data)),
            ])
        };
        assert_eq!(
            kind(vec![LinkAttribute::Link(3), info(VlanProtocol::Ieee8021Ad)]),
            DeviceKind::Vlan { parent: Some(3), tpid: 0x88a8, id: 100 }
        );
        // The parent's index says nothing here if it is in another namespace.
        assert_eq!(
            kind(vec![
                LinkAttribute::Link(3),
                info(VlanProtocol::Ieee8021Q),
                LinkAttribute::LinkNetNsId(0)
            ]),
            DeviceKind::Vlan { parent: None, tpid: 0x8100, id: 100 }
        );
        // The other end of a veth pair is not below it.
        let veth = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]);
        assert_eq!(kind(vec![LinkAttribute::Link(3), veth]), DeviceKind::Veth);
    }

    #[test]
    fn bridge_and_bond_are_known_with_what_decides_their_port() {
        let kind = |kind, data| {
            let mut message = LinkMessage::default();
            let info = vec![LinkInfo::Kind(kind), LinkInfo::Data(data)];
            message.attributes = vec![LinkAttribute::LinkInfo(info)];
            device(&message).1.kind
        };
        for filters_vlans in [false, true] {
            let data = InfoData::Bridge(vec![InfoBridge::VlanFiltering(filters_vlans)]);
            assert_eq!(kind(InfoKind::Bridge, data), DeviceKind::Bridge { filters_vlans });
        }
        let mode = BondMode::ActiveBackup;
        for (port, active) in [(5, Some(5)), (0, None)] {
            let data = InfoData::Bond(vec![InfoBond::Mode(mode), InfoBond::ActivePort(port)]);
            assert_eq!(kind(InfoKind::Bond, data), DeviceKind::Bond { mode, active });
        }
    }

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

//! An interface, as netlink has it.

use netlink_packet_route::link::{
    BondMode, InfoBond, InfoBridge, InfoData, InfoKind, InfoPortKind, InfoVlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, VlanProtocol, XdpAttached,
};

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its alias, as the operator has set it.
    pub alias: Option<String>,
    /// What it is made of.
    pub kind: LinkKind,
    /// The same as in `ip -d link`: `veth`, `ipip`; none for hardware.
    pub kind_name: Option<String>,
    /// Its MAC address; all zero if it has none.
    pub mac: [u8; 6],
    /// What its frames begin with.
    pub layer: LinkLayer,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Whether it is set to resolve no neighbours (`ip link set arp off`, or by its nature).
    pub no_arp: bool,
    /// Whether it was set up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Its MTU.
    pub mtu: u32,
    /// The bridge, bond or the like that it is a port of.
    pub port_of: Option<u32>,
    /// Whether that is a bridge.
    pub bridged: bool,
    /// Id of the XDP program on it.
    pub xdp_prog_id: Option<u32>,
    /// Whether that program runs in the network stack and not in the driver.
    pub xdp_generic: bool,
    /// What it can do for XDP (see [`crate::generic::xdp_act`]); none if the kernel does not report it, or was not asked:
    /// it is no part of netlink's record of a link.
    pub xdp_features: Option<u64>,
}

impl Link {
    /// The interface below.
    #[must_use]
    pub const fn parent(&self) -> Option<u32> {
        match self.kind {
            LinkKind::Vlan { parent, .. } | LinkKind::Macvlan { parent } => parent,
            _ => None,
        }
    }

    /// Whether it is a macvlan device.
    #[must_use]
    pub const fn is_macvlan(&self) -> bool {
        matches!(self.kind, LinkKind::Macvlan { .. })
    }

    /// The interface and its index that a message is of.
    #[must_use]
    pub fn of(message: &LinkMessage) -> (u32, Self) {
        let flags = message.header.flags;
        let mut link = Self {
            layer: LinkLayer::of(message.header.link_layer_type),
            loopback: flags.contains(LinkFlags::Loopback),
            no_arp: flags.contains(LinkFlags::Noarp),
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            ..Self::default()
        };
        let mut parent = None;
        let mut foreign_parent = false;
        let mut info: &[LinkInfo] = &[];
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Address(mac) => {
                    link.mac = mac.as_slice().try_into().unwrap_or_default();
                }
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Link(ifindex) => parent = Some(*ifindex),
                LinkAttribute::LinkNetNsId(_) => foreign_parent = true,
                LinkAttribute::Controller(ifindex) => link.port_of = Some(*ifindex),
                LinkAttribute::LinkInfo(all) => info = all,
                LinkAttribute::Xdp(all) => {
                    link.xdp_prog_id = xdp_program(all);
                    link.xdp_generic = all.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
                }
                _ => {}
            }
        }
        let parent = parent.filter(|_| !foreign_parent);
        for item in info {
            if let LinkInfo::Kind(kind) = item {
                link.kind_name = Some(kind.to_string());
            }
            match item {
                LinkInfo::PortKind(kind) => link.bridged = *kind == InfoPortKind::Bridge,
                LinkInfo::Kind(InfoKind::MacVlan | InfoKind::MacVtap) => {
                    link.kind = LinkKind::Macvlan { parent };
                }
                LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth,
                LinkInfo::Kind(InfoKind::Bridge) => {
                    link.kind = LinkKind::Bridge { filters_vlans: false };
                }
                LinkInfo::Kind(kind) => {
                    link.kind = virtual_kind(kind).map_or(LinkKind::Own, LinkKind::Virtual);
                }
                LinkInfo::Data(InfoData::Vlan(vlan)) => link.kind = vlan_kind(parent, vlan),
                LinkInfo::Data(InfoData::Bridge(bridge)) => {
                    let filters_vlans = bridge.contains(&InfoBridge::VlanFiltering(true));
                    link.kind = LinkKind::Bridge { filters_vlans };
                }
                LinkInfo::Data(InfoData::Bond(bond)) => link.kind = bond_kind(bond),
                _ => {}
            }
        }
        (message.header.index, link)
    }
}

/// What the frames of an interface begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// Their IP header: WireGuard, tun.
    RawIp,
    /// Something else.
    Other,
}

impl LinkLayer {
    /// By the kernel's type of the interface (`ARPHRD_*` of linux/if_arp.h).
    #[must_use]
    pub const fn of(kind: LinkLayerType) -> Self {
        match kind {
            LinkLayerType::Ether | LinkLayerType::Loopback => Self::Ethernet,
            LinkLayerType::None => Self::RawIp,
            _ => Self::Other,
        }
    }
}

/// What an interface is made of, as far as it matters for frames that an XDP program sends by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkKind {
    /// Frames leave by the interface itself.
    #[default]
    Own,
    /// The same, to the other end of the pair.
    Veth,
    /// A virtual device of this kind, which takes no frames from XDP programs.
    Virtual(&'static str),
    /// Frames leave by one of its ports.
    Bridge {
        /// Whether it distinguishes VLANs.
        filters_vlans: bool,
    },
    /// Frames leave by one of its ports.
    Bond {
        /// How it chooses the port.
        mode: BondMode,
        /// The port in use, if the mode has one.
        active: Option<u32>,
    },
    /// Frames leave by `parent` with one tag more.
    Vlan {
        /// The interface below, if it is in this network namespace.
        parent: Option<u32>,
        /// EtherType of the tag: 0x8100 or 0x88a8.
        tpid: u16,
        /// The VLAN.
        id: u16,
    },
    /// Frames leave by `parent`, from this interface's MAC address.
    Macvlan {
        /// The interface below, if it is in this network namespace.
        parent: Option<u32>,
    },
}

fn xdp_program(attributes: &[LinkXdp]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) => Some(*id),
        _ => None,
    })
}

/// The name of a kind of devices that have no `ndo_xdp_xmit`, for kernels that don't report that themselves.
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

fn bond_kind(attributes: &[InfoBond]) -> LinkKind {
    let mut mode = BondMode::default();
    let mut active = None;
    for attribute in attributes {
        match attribute {
            InfoBond::Mode(value) => mode = *value,
            InfoBond::ActivePort(ifindex) => active = Some(*ifindex).filter(|index| *index != 0),
            _ => {}
        }
    }
    LinkKind::Bond { mode, active }
}

fn vlan_kind(parent: Option<u32>, attributes: &[InfoVlan]) -> LinkKind {
    let mut id = 0;
    let mut tpid = VlanProtocol::Ieee8021Q;
    for attribute in attributes {
        match attribute {
            InfoVlan::Id(value) => id = *value,
            InfoVlan::Protocol(value) => tpid = *value,
            _ => {}
        }
    }
    LinkKind::Vlan { parent, tpid: tpid.into(), id }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(attributes: Vec<LinkAttribute>) -> Link {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.attributes = attributes;
        let (index, link) = Link::of(&message);
        assert_eq!(index, 7);
        link
    }

    #[test]
    fn only_vlan_and_macvlan_devices_have_a_link_below() {
        let above = LinkAttribute::Link(2);
        let kind = |kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
        let vlan = LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(7)])),
        ]);
        let below = |attributes| {
            let link = link(attributes);
            (link.parent(), link.is_macvlan())
        };
        assert_eq!(below(vec![above.clone(), kind(InfoKind::MacVlan)]), (Some(2), true));
        assert_eq!(below(vec![above.clone(), vlan]), (Some(2), false));
        assert_eq!(below(vec![above.clone(), kind(InfoKind::Veth)]), (None, false));
        let foreign = LinkAttribute::LinkNetNsId(0);
        assert_eq!(below(vec![above, kind(InfoKind::MacVlan), foreign]), (None, true));
    }

    #[test]
    fn ports_of_a_bridge_and_of_a_bond_are_told_apart() {
        let port_of = |kind| {
            let info = LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(kind)]);
            let link = link(vec![LinkAttribute::Controller(7), info]);
            (link.port_of, link.bridged)
        };
        assert_eq!(port_of(InfoPortKind::Bridge), (Some(7), true));
        assert_eq!(port_of(InfoPortKind::Bond), (Some(7), false));
    }

    #[test]
    fn vlan_device_has_its_parent_and_its_tag() {
        let kind = |attributes| link(attributes).kind;
        let info = |protocol| {
            let data = vec![InfoVlan::Id(100), InfoVlan::Protocol(protocol)];
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(data)),
            ])
        };
        assert_eq!(
            kind(vec![LinkAttribute::Link(3), info(VlanProtocol::Ieee8021Ad)]),
            LinkKind::Vlan { parent: Some(3), tpid: 0x88a8, id: 100 }
        );
        // The parent's index means nothing here if it is in another namespace.
        assert_eq!(
            kind(vec![
                LinkAttribute::Link(3),
                info(VlanProtocol::Ieee8021Q),
                LinkAttribute::LinkNetNsId(0)
            ]),
            LinkKind::Vlan { parent: None, tpid: 0x8100, id: 100 }
        );
        // The other end of a veth pair is not below it.
        let veth = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]);
        assert_eq!(kind(vec![LinkAttribute::Link(3), veth]), LinkKind::Veth);
    }

    #[test]
    fn bridge_and_bond_are_known_with_what_decides_their_port() {
        let kind = |kind, data| {
            link(vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)])])
                .kind
        };
        for filters_vlans in [false, true] {
            let data = InfoData::Bridge(vec![InfoBridge::VlanFiltering(filters_vlans)]);
            assert_eq!(kind(InfoKind::Bridge, data), LinkKind::Bridge { filters_vlans });
        }
        let mode = BondMode::ActiveBackup;
        for (port, active) in [(5, Some(5)), (0, None)] {
            let data = InfoData::Bond(vec![InfoBond::Mode(mode), InfoBond::ActivePort(port)]);
            assert_eq!(kind(InfoKind::Bond, data), LinkKind::Bond { mode, active });
        }
    }
}

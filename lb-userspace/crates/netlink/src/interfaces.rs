//! The interfaces of a network namespace and their addresses, as netlink has them.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{
        BondMode, InfoBond, InfoBridge, InfoData, InfoKind, InfoPortKind, InfoVlan, LinkAttribute,
        LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, VlanProtocol, XdpAttached,
    },
};
use rtnetlink::MulticastGroup;

use super::client::Client;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What it was said to be for.
    pub alias: Option<String>,
    /// What it is made of.
    pub kind: LinkKind,
    /// The same as `ip -d link` says: `veth`, `ipip`; none for hardware.
    pub kind_name: Option<String>,
    /// Its MAC address; all zero if it has none.
    pub mac: [u8; 6],
    /// What its frames begin with.
    pub layer: LinkLayer,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Whether it was told to resolve no neighbours (`ip link set arp off`, or by its nature).
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
    /// What it can do for XDP (see [`crate::generic::xdp_act`]); none if the kernel does not say, or was not asked:
    /// it is no part of what netlink says of a link.
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
        /// Whether it tells VLANs apart.
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

/// The groups of events that [`Interfaces::take`] follows.
pub const GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

/// What tells an address from another: the interface's index, the address and the prefix' length.
pub type Key = (u32, IpAddr, u8);

/// What is known of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Who has put it there (`IFA_PROTO`); 0: unknown.
    pub protocol: u8,
    /// Whether another host was found to have it (IPv6).
    pub duplicate: bool,
    /// Whether that is still being found out (IPv6): it is no source until then.
    pub tentative: bool,
    /// Whether it is a source nevertheless (IPv6).
    pub optimistic: bool,
    /// Whether it is no source where there is another one (IPv6).
    pub deprecated: bool,
    /// Whether it goes with another address of the same link (IPv4).
    pub secondary: bool,
    /// Where it can be reached from.
    pub scope: AddressScope,
    /// Which of the addresses it was to become known.
    pub order: u64,
}

/// What a message has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link, by its index.
    Link(u32),
    /// A link is gone.
    LinkGone(u32),
    /// An address is there.
    Address(Key, Seen),
    /// An address is gone; what was known of it.
    AddressGone(Key, Seen),
}

/// Links by index, and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// The links by index.
    pub links: BTreeMap<u32, Link>,
    /// The addresses.
    pub addresses: BTreeMap<Key, Seen>,
    /// How many have become known.
    count: u64,
    /// The indices of the links by name.
    names: BTreeMap<String, u32>,
}

impl Interfaces {
    /// Reads both anew, in the client's network namespace.
    ///
    /// # Errors
    ///
    /// If netlink can't be spoken to.
    pub fn read(client: &mut Client) -> Result<Self> {
        let links = client.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let links = links.context("read the links")?;
        let mut all = Self::read_addresses(client)?;
        for message in links {
            all.take(&message);
        }
        Ok(all)
    }

    /// Reads the addresses alone.
    ///
    /// # Errors
    ///
    /// If netlink can't be spoken to.
    pub fn read_addresses(client: &mut Client) -> Result<Self> {
        let addresses = client.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let mut all = Self::default();
        for message in addresses.context("read the addresses")? {
            all.take(&message);
        }
        Ok(all)
    }

    /// Takes one message; what it has changed.
    pub fn take(&mut self, message: &RouteNetlinkMessage) -> Option<Change> {
        match message {
            // News of bridges' ports, and of settings of IPv6, have the same form: one says that a link
            // is gone when it has only left its bridge.
            RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family != AddressFamily::Unspec =>
            {
                None
            }
            RouteNetlinkMessage::NewLink(message) => {
                let (index, link) = Link::of(message);
                if link.name.is_empty() {
                    return None;
                }
                let changed = self.links.get(&index) != Some(&link);
                self.forget_name(index);
                self.add_link(index, link);
                changed.then_some(Change::Link(index))
            }
            RouteNetlinkMessage::DelLink(message) => {
                let index = message.header.index;
                self.forget_name(index);
                self.links.remove(&index)?;
                self.addresses.retain(|key, _| key.0 != index);
                Some(Change::LinkGone(index))
            }
            RouteNetlinkMessage::NewAddress(message) => {
                let (key, seen) = address(message)?;
                self.add_address(key, seen).then_some(Change::Address(key, seen))
            }
            RouteNetlinkMessage::DelAddress(message) => {
                let (key, _) = address(message)?;
                let seen = self.addresses.remove(&key)?;
                Some(Change::AddressGone(key, seen))
            }
            _ => None,
        }
    }

    /// Has a link from now on.
    pub fn add_link(&mut self, index: u32, link: Link) {
        self.names.insert(link.name.clone(), index);
        self.links.insert(index, link);
    }

    /// Has an address from now on; whether that is new.
    pub fn add_address(&mut self, key: Key, mut seen: Seen) -> bool {
        let before = self.addresses.get(&key);
        self.count += 1;
        seen.order = before.map_or(self.count, |before| before.order);
        let changed = before != Some(&seen);
        self.addresses.insert(key, seen);
        changed
    }

    /// The index of an interface.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    /// An interface and its index.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<(u32, &Link)> {
        let index = self.index(name)?;
        Some((index, self.links.get(&index)?))
    }

    /// The addresses of an interface, in the order in which they became known.
    #[must_use]
    pub fn addresses_of(&self, index: u32) -> Vec<(&Key, &Seen)> {
        let mut all: Vec<_> = self.addresses.iter().filter(|(key, _)| key.0 == index).collect();
        all.sort_by_key(|(_, seen)| seen.order);
        all
    }

    /// A link may have got another name, and the old one may be another's by now.
    fn forget_name(&mut self, index: u32) {
        if let Some(before) = self.links.get(&index)
            && self.index(&before.name) == Some(index)
        {
            self.names.remove(&before.name);
        }
    }
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

fn address(message: &AddressMessage) -> Option<(Key, Seen)> {
    let (mut address, mut local) = (None, None);
    let mut seen = Seen { scope: message.header.scope, ..Seen::default() };
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(one) => address = Some(*one),
            AddressAttribute::Local(one) => local = Some(*one),
            AddressAttribute::Protocol(protocol) => seen.protocol = (*protocol).into(),
            AddressAttribute::Flags(flags) => {
                seen.duplicate = flags.contains(AddressFlags::Dadfailed);
                seen.tentative = flags.contains(AddressFlags::Tentative);
                seen.optimistic = flags.contains(AddressFlags::Optimistic);
                seen.deprecated = flags.contains(AddressFlags::Deprecated);
                // The same bit is `IFA_F_TEMPORARY` for IPv6, which is no secondary address.
                seen.secondary = flags.contains(AddressFlags::Secondary);
            }
            _ => {}
        }
    }
    // On a point-to-point link `Address` is the peer's.
    let address = local.or(address)?;
    Some(((message.header.index, address, message.header.prefix_len), seen))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::AddressProtocol;

    use super::*;

    fn new_link(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.attributes = attributes;
        RouteNetlinkMessage::NewLink(message)
    }

    fn new_address(index: u32, attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = 32;
        message.attributes = attributes;
        message
    }

    #[test]
    fn message_that_changes_nothing_is_no_change() {
        let mut tables = Interfaces::default();
        let eth0 = new_link(2, vec![LinkAttribute::IfName("eth0".into())]);
        assert_eq!(tables.take(&eth0), Some(Change::Link(2)));
        assert_eq!(tables.take(&eth0), None);
        assert_eq!(tables.link("eth0").map(|(index, link)| (index, link.up)), Some((2, true)));
    }

    #[test]
    fn name_belongs_to_the_link_that_has_it_now() {
        let mut tables = Interfaces::default();
        tables.take(&new_link(2, vec![LinkAttribute::IfName("eth0".into())]));
        tables.take(&new_link(2, vec![LinkAttribute::IfName("old".into())]));
        assert_eq!((tables.index("eth0"), tables.index("old")), (None, Some(2)));
        tables.take(&new_link(3, vec![LinkAttribute::IfName("eth0".into())]));
        assert_eq!((tables.index("eth0"), tables.index("old")), (Some(3), Some(2)));
    }

    #[test]
    fn addresses_go_with_their_link() {
        let mut tables = Interfaces::default();
        tables.take(&new_link(2, vec![LinkAttribute::IfName("eth0".into())]));
        let vip: IpAddr = "10.0.0.100".parse().expect("an address");
        let attributes = vec![
            AddressAttribute::Local(vip),
            AddressAttribute::Protocol(AddressProtocol::Other(112)),
        ];
        let added = RouteNetlinkMessage::NewAddress(new_address(2, attributes));
        let seen = Seen { protocol: 112, ..Seen::default() };
        assert_eq!(tables.take(&added), Some(Change::Address((2, vip, 32), seen)));
        let mut gone = LinkMessage::default();
        gone.header.index = 2;
        assert_eq!(tables.take(&RouteNetlinkMessage::DelLink(gone)), Some(Change::LinkGone(2)));
        assert!(tables.links.is_empty() && tables.addresses.is_empty());
    }

    #[test]
    fn link_that_leaves_its_bridge_stays_a_link() {
        let mut tables = Interfaces::default();
        tables.take(&new_link(2, vec![LinkAttribute::IfName("eth0".into())]));
        let before = tables.clone();
        let mut port = LinkMessage::default();
        port.header.index = 2;
        port.header.interface_family = AddressFamily::Bridge;
        port.attributes = vec![LinkAttribute::IfName("eth0".into())];
        assert_eq!(tables.take(&RouteNetlinkMessage::NewLink(port.clone())), None);
        assert_eq!(tables.take(&RouteNetlinkMessage::DelLink(port)), None);
        assert_eq!(tables, before);
    }

    #[test]
    fn own_address_of_a_point_to_point_link_is_the_local_one() {
        let (own, peer) = ("10.0.0.1".parse(), "10.0.0.2".parse());
        let (own, peer): (IpAddr, IpAddr) = (own.expect("one"), peer.expect("one"));
        let message =
            new_address(3, vec![AddressAttribute::Address(peer), AddressAttribute::Local(own)]);
        assert_eq!(address(&message).map(|(key, _)| key), Some((3, own, 32)));
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
            let RouteNetlinkMessage::NewLink(message) = new_link(3, attributes) else {
                return (None, false);
            };
            let (_, link) = Link::of(&message);
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
            match new_link(3, vec![LinkAttribute::Controller(7), info]) {
                RouteNetlinkMessage::NewLink(message) => {
                    let (_, link) = Link::of(&message);
                    (link.port_of, link.bridged)
                }
                _ => panic!("it is a new link"),
            }
        };
        assert_eq!(port_of(InfoPortKind::Bridge), (Some(7), true));
        assert_eq!(port_of(InfoPortKind::Bond), (Some(7), false));
    }

    #[test]
    fn vlan_device_has_its_parent_and_its_tag() {
        let kind = |attributes: Vec<LinkAttribute>| {
            let mut message = LinkMessage::default();
            message.header.index = 7;
            message.attributes = attributes;
            let (index, link) = Link::of(&message);
            assert_eq!(index, 7);
            link.kind
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
            LinkKind::Vlan { parent: Some(3), tpid: 0x88a8, id: 100 }
        );
        // The parent's index says nothing here if it is in another namespace.
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
            let mut message = LinkMessage::default();
            let info = vec![LinkInfo::Kind(kind), LinkInfo::Data(data)];
            message.attributes = vec![LinkAttribute::LinkInfo(info)];
            Link::of(&message).1.kind
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

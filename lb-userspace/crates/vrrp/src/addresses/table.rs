//! The links and addresses of the node, as netlink told of them.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::netlink::Requests;

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Whether it was set up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Its MAC address; zeros if it has none.
    pub mac: [u8; 6],
    /// What it was said to be for.
    pub alias: Option<String>,
    /// The link below it, if it is a VLAN or macvlan device.
    pub below: Option<u32>,
    /// Whether it is a macvlan device.
    pub macvlan: bool,
    /// The bridge that it is a port of.
    pub port_of: Option<u32>,
}

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
    /// Whether it goes with another address of the same link (IPv4).
    pub secondary: bool,
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
pub struct Tables {
    /// The links by index.
    pub links: BTreeMap<u32, Link>,
    /// The addresses.
    pub addresses: BTreeMap<Key, Seen>,
    /// How many have become known.
    count: u64,
    /// The indices of the links by name.
    names: BTreeMap<String, u32>,
}

impl Tables {
    /// Reads both anew.
    ///
    /// # Errors
    ///
    /// If netlink can't be spoken to.
    pub fn read(requests: &mut Requests) -> Result<Self> {
        let mut tables = Self::default();
        let links = requests.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let addresses = requests.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        for message in links.context("read the links")? {
            tables.take(&message);
        }
        for message in addresses.context("read the addresses")? {
            tables.take(&message);
        }
        Ok(tables)
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
                let (index, link) = link(message);
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

    /// A link may have got another name, and the old one may be another's by now.
    fn forget_name(&mut self, index: u32) {
        if let Some(before) = self.links.get(&index)
            && self.index(&before.name) == Some(index)
        {
            self.names.remove(&before.name);
        }
    }
}

fn link(message: &LinkMessage) -> (u32, Link) {
    let flags = message.header.flags;
    let mut link = Link {
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    let (mut below, mut vlan, mut foreign) = (None, false, false);
    let (mut controller, mut bridged) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Address(mac) => {
                link.mac = mac.as_slice().try_into().unwrap_or_default();
            }
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => foreign = true,
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::LinkInfo(info) => {
                link.macvlan = info.contains(&LinkInfo::Kind(InfoKind::MacVlan));
                vlan = info.contains(&LinkInfo::Kind(InfoKind::Vlan));
                bridged = info.contains(&LinkInfo::PortKind(InfoPortKind::Bridge));
            }
            _ => {}
        }
    }
    // The other end of a veth pair is not below it, and an index of another namespace says nothing.
    link.below = below.filter(|_| (link.macvlan || vlan) && !foreign);
    // Of the ports of a bond one is in use, and which one it is changes.
    link.port_of = controller.filter(|_| bridged);
    (message.header.index, link)
}

fn address(message: &AddressMessage) -> Option<(Key, Seen)> {
    let (mut address, mut local) = (None, None);
    let mut seen = Seen::default();
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(one) => address = Some(*one),
            AddressAttribute::Local(one) => local = Some(*one),
            AddressAttribute::Protocol(protocol) => seen.protocol = (*protocol).into(),
            AddressAttribute::Flags(flags) => {
                seen.duplicate = flags.contains(AddressFlags::Dadfailed);
                seen.tentative = flags.contains(AddressFlags::Tentative);
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
        let mut tables = Tables::default();
        let eth0 = new_link(2, vec![LinkAttribute::IfName("eth0".into())]);
        assert_eq!(tables.take(&eth0), Some(Change::Link(2)));
        assert_eq!(tables.take(&eth0), None);
        assert_eq!(tables.link("eth0").map(|(index, link)| (index, link.up)), Some((2, true)));
    }

    #[test]
    fn name_belongs_to_the_link_that_has_it_now() {
        let mut tables = Tables::default();
        tables.take(&new_link(2, vec![LinkAttribute::IfName("eth0".into())]));
        tables.take(&new_link(2, vec![LinkAttribute::IfName("old".into())]));
        assert_eq!((tables.index("eth0"), tables.index("old")), (None, Some(2)));
        tables.take(&new_link(3, vec![LinkAttribute::IfName("eth0".into())]));
        assert_eq!((tables.index("eth0"), tables.index("old")), (Some(3), Some(2)));
    }

    #[test]
    fn addresses_go_with_their_link() {
        let mut tables = Tables::default();
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
        let mut tables = Tables::default();
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
        let below = |attributes| {
            let RouteNetlinkMessage::NewLink(message) = new_link(3, attributes) else {
                return (None, false);
            };
            let (_, link) = link(&message);
            (link.below, link.macvlan)
        };
        assert_eq!(below(vec![above.clone(), kind(InfoKind::MacVlan)]), (Some(2), true));
        assert_eq!(below(vec![above.clone(), kind(InfoKind::Vlan)]), (Some(2), false));
        assert_eq!(below(vec![above.clone(), kind(InfoKind::Veth)]), (None, false));
        let foreign = LinkAttribute::LinkNetNsId(0);
        assert_eq!(below(vec![above, kind(InfoKind::MacVlan), foreign]), (None, true));
    }

    #[test]
    fn a_port_of_a_bridge_has_the_bridge_above_and_one_of_a_bond_nothing() {
        let port_of = |kind| {
            let info = LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(kind)]);
            match new_link(3, vec![LinkAttribute::Controller(7), info]) {
                RouteNetlinkMessage::NewLink(message) => link(&message).1.port_of,
                _ => panic!("it is a new link"),
            }
        };
        assert_eq!(port_of(InfoPortKind::Bridge), Some(7));
        assert_eq!(port_of(InfoPortKind::Bond), None);
    }
}

//! The interfaces of a network namespace and their addresses, as netlink has them.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::LinkMessage,
};
use rtnetlink::MulticastGroup;

use super::{client::Client, link::Link};

/// The groups of events that [`Interfaces::take`] follows.
pub const GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

/// The key of an address: the interface's index, the address and the prefix' length.
pub type Key = (u32, IpAddr, u8);

/// The state of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressState {
    /// Its origin (`IFA_PROTO`); 0: unknown.
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
    Address(Key, AddressState),
    /// An address is gone; its last state.
    AddressGone(Key, AddressState),
}

/// Links by index, and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// The links by index.
    pub links: BTreeMap<u32, Link>,
    /// The addresses.
    pub addresses: BTreeMap<Key, AddressState>,
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
    /// If netlink can't be used.
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
    /// If netlink can't be used.
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
            // Events of bridges' ports, and of settings of IPv6, have the same form: one reports that a link
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
                let (key, state) = address(message)?;
                self.add_address(key, state).then_some(Change::Address(key, state))
            }
            RouteNetlinkMessage::DelAddress(message) => {
                let (key, _) = address(message)?;
                let state = self.addresses.remove(&key)?;
                Some(Change::AddressGone(key, state))
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
    pub fn add_address(&mut self, key: Key, mut state: AddressState) -> bool {
        let before = self.addresses.get(&key);
        self.count += 1;
        state.order = before.map_or(self.count, |before| before.order);
        let changed = before != Some(&state);
        self.addresses.insert(key, state);
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
    pub fn addresses_of(&self, index: u32) -> Vec<(&Key, &AddressState)> {
        let mut all: Vec<_> = self.addresses.iter().filter(|(key, _)| key.0 == index).collect();
        all.sort_by_key(|(_, state)| state.order);
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

fn address(message: &AddressMessage) -> Option<(Key, AddressState)> {
    let (mut address, mut local) = (None, None);
    let mut state = AddressState { scope: message.header.scope, ..AddressState::default() };
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(one) => address = Some(*one),
            AddressAttribute::Local(one) => local = Some(*one),
            AddressAttribute::Protocol(protocol) => state.protocol = (*protocol).into(),
            AddressAttribute::Flags(flags) => {
                state.duplicate = flags.contains(AddressFlags::Dadfailed);
                state.tentative = flags.contains(AddressFlags::Tentative);
                state.optimistic = flags.contains(AddressFlags::Optimistic);
                state.deprecated = flags.contains(AddressFlags::Deprecated);
                // The same bit is `IFA_F_TEMPORARY` for IPv6, which is no secondary address.
                state.secondary = flags.contains(AddressFlags::Secondary);
            }
            _ => {}
        }
    }
    // On a point-to-point link `Address` is the peer's.
    let address = local.or(address)?;
    Some(((message.header.index, address, message.header.prefix_len), state))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        address::AddressProtocol,
        link::{LinkAttribute, LinkFlags},
    };

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
        let state = AddressState { protocol: 112, ..AddressState::default() };
        assert_eq!(tables.take(&added), Some(Change::Address((2, vip, 32), state)));
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
}

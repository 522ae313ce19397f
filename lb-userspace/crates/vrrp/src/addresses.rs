//! The virtual addresses on their interfaces, by netlink.
//!
//! Every address that is put there carries the protocol number of VRRP (`IFA_PROTO`, Linux 5.18), by
//! which what a predecessor has left is known from what an operator has set: the latter is never
//! removed. Older kernels keep no such number; there, an address that is configured counts as ours
//! when it was found at the start or was added by this process, unless the node is its owner.
//!
//! An IPv4 address with a prefix of 32 bits is no secondary address of the link's own, so it neither
//! goes when that is removed (`promote_secondaries`) nor is chosen as a source. An IPv6 address gets
//! a preferred lifetime of zero, so that the node does not choose it either.

use std::{collections::BTreeSet, fs, io, net::IpAddr};

use anyhow::Result;
use lb_model::router::{OWNER, Router, VirtualAddress};
use lb_netlink::{
    client::Client,
    interfaces::{AddressState, Interfaces, Key},
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
        AddressScope, CacheInfo,
    },
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

/// The number of VRRP among IP's protocols marks addresses as ours.
pub(crate) const PROTOCOL: u8 = 112;
/// A lifetime without end.
const FOREVER: u32 = u32::MAX;

/// Puts addresses on interfaces and takes them off.
pub struct Addresses {
    client: Client,
    /// The links and addresses of the node, kept up to date by the reader of the events.
    pub interfaces: Interfaces,
    /// Whether the kernel keeps the mark.
    marks: bool,
    /// What was added here, for kernels that don't.
    added: BTreeSet<Key>,
}

/// A virtual address and the interface that it belongs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed<'a> {
    /// The interface.
    pub interface: &'a str,
    /// The address.
    pub address: &'a VirtualAddress,
}

/// The addresses of a router and where they belong.
pub(crate) fn placed(router: &Router) -> impl Iterator<Item = Placed<'_>> {
    let own = router.virtual_mac.as_ref().map_or(&router.interface, |mac| &mac.interface);
    router.addresses.iter().map(move |address| Placed {
        interface: address.interface.as_ref().unwrap_or(own),
        address,
    })
}

impl Addresses {
    /// Reads what there is in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// If netlink can't be used.
    pub fn open() -> Result<Self> {
        let mut client = Client::open()?;
        let interfaces = Interfaces::read(&mut client)?;
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Self { client, interfaces, marks: marks(&release), added: BTreeSet::new() })
    }

    /// Reads everything anew, as events were lost.
    ///
    /// # Errors
    ///
    /// If netlink can't be used.
    pub(crate) fn read_anew(&mut self) -> Result<()> {
        self.interfaces = Interfaces::read(&mut self.client)?;
        Ok(())
    }

    /// Puts all of them on their interfaces; what is there already stays as it is. Which were not
    /// there, and what did not work, for people.
    pub fn hold<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = Placed<'a>>,
    ) -> (Vec<IpAddr>, Vec<String>) {
        let (mut added, mut problems) = (Vec::new(), Vec::new());
        let mut keys = Vec::new();
        let mut requests = Vec::new();
        for placed in wanted {
            let Some(key) = self.key(placed) else {
                problems.push(format!(
                    "{}: there is no interface {}",
                    placed.address.address, placed.interface
                ));
                continue;
            };
            // What the table has may be gone, or be one of ours whose removal is not known yet: the
            // kernel is queried in any case.
            keys.push((key, placed));
            let request = RouteNetlinkMessage::NewAddress(message(key, Some(placed.address)));
            requests.push((request, NLM_F_CREATE | NLM_F_EXCL));
        }
        let outcomes = match self.client.all(requests) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                problems.push(format!("add addresses: {error:#}"));
                return (added, problems);
            }
        };
        for ((key, placed), outcome) in keys.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    self.added.insert(key);
                    // The event of it may come late: a kernel thread sends that of IPv6.
                    let state = AddressState { protocol: PROTOCOL, ..AddressState::default() };
                    self.interfaces.add_address(key, state);
                    added.push(key.1);
                }
                Err(libc::EEXIST) => {}
                Err(errno) => problems.push(format!(
                    "add {}/{} to {}: {}",
                    key.1,
                    key.2,
                    placed.interface,
                    io::Error::from_raw_os_error(errno)
                )),
            }
        }
        (added, problems)
    }

    /// Takes those that are ours off their interfaces. What did not work, for people.
    pub fn release<'a>(&mut self, unwanted: impl IntoIterator<Item = Placed<'a>>) -> Vec<String> {
        let keys = unwanted.into_iter().filter_map(|placed| self.key(placed)).collect();
        self.remove(keys)
    }

    /// Takes addresses off that are ours.
    pub(crate) fn remove(&mut self, keys: Vec<Key>) -> Vec<String> {
        let keys: Vec<Key> = keys.into_iter().filter(|key| self.is_ours(key)).collect();
        let requests = keys
            .iter()
            .map(|key| (RouteNetlinkMessage::DelAddress(message(*key, None)), 0))
            .collect();
        let outcomes = match self.client.all(requests) {
            Ok(outcomes) => outcomes,
            Err(error) => return vec![format!("remove addresses: {error:#}")],
        };
        let mut problems = Vec::new();
        for (key, outcome) in keys.into_iter().zip(outcomes) {
            match outcome {
                // The second and third: another process was faster.
                Ok(()) | Err(libc::EADDRNOTAVAIL | libc::ENODEV) => {
                    self.added.remove(&key);
                    self.interfaces.addresses.remove(&key);
                }
                Err(errno) => problems.push(format!(
                    "remove {}/{}: {}",
                    key.1,
                    key.2,
                    io::Error::from_raw_os_error(errno)
                )),
            }
        }
        problems
    }

    /// An address was removed, by whomever. Whether it was not ours, as far as the kernel keeps that.
    pub(crate) fn is_gone(&mut self, key: &Key, state: &AddressState) -> bool {
        let by_hand = self.marks && state.protocol != PROTOCOL && !self.added.contains(key);
        // If an operator adds it again, it is the operator's; without the mark nothing else shows whose
        // it is.
        if self.marks {
            self.added.remove(key);
        }
        by_hand
    }

    /// Takes all off that carry the mark, on whatever interface they are, whichever process has put it there. Which
    /// these were, and what did not work.
    pub(crate) fn release_marked(&mut self) -> (Vec<String>, Vec<String>) {
        let marked =
            self.interfaces.addresses.iter().filter(|(_, state)| state.protocol == PROTOCOL);
        let keys: Vec<Key> = marked.map(|(key, _)| *key).collect();
        let name = |key: &Key| format!("{}/{} on {}", key.1, key.2, self.interface(key.0));
        let names: Vec<(Key, String)> = keys.iter().map(|key| (*key, name(key))).collect();
        let problems = self.remove(keys);
        let gone =
            names.into_iter().filter(|(key, _)| !self.interfaces.addresses.contains_key(key));
        (gone.map(|(_, name)| name).collect(), problems)
    }

    /// Those that are not where they belong, though their interface is there.
    #[must_use]
    pub(crate) fn missing<'a>(&self, router: &'a Router) -> Vec<Placed<'a>> {
        placed(router)
            .filter(|placed| {
                let key = self.key(*placed);
                key.is_some_and(|key| !self.interfaces.addresses.contains_key(&key))
            })
            .collect()
    }

    /// Whether addresses of a router were left by a predecessor that was Active.
    ///
    /// One is enough where the kernel keeps the mark, as that names the owner; otherwise
    /// all must be there.
    #[must_use]
    pub(crate) fn are_inherited(&self, router: &Router) -> bool {
        let state = |placed| {
            let key = self.key(placed)?;
            self.interfaces.addresses.get(&key)
        };
        if self.marks {
            placed(router).any(|placed| state(placed).is_some_and(|one| one.protocol == PROTOCOL))
        } else {
            !router.addresses.is_empty() && placed(router).all(|placed| state(placed).is_some())
        }
    }

    /// Takes over what is there of a router, on kernels that keep no mark: some of its addresses may be
    /// all that is left of a predecessor.
    pub fn adopt(&mut self, router: &Router) {
        // Those of the owner are the interface's own.
        if self.marks || router.priority.get() == OWNER {
            return;
        }
        let found: Vec<Key> = placed(router)
            .filter_map(|placed| self.key(placed))
            .filter(|key| self.interfaces.addresses.contains_key(key))
            .collect();
        self.added.extend(found);
    }

    /// Addresses of a router that are on their interfaces, with whatever prefix, and not ours: an operator
    /// has set them by hand, and they stay when another node holds them.
    #[must_use]
    pub(crate) fn set_by_others(&self, router: &Router) -> Vec<Key> {
        let keys = placed(router).filter_map(|placed| self.key(placed));
        let there = keys.flat_map(|(index, address, _)| {
            let all = (index, address, 0)..=(index, address, u8::MAX);
            self.interfaces.addresses.range(all).map(|(key, _)| *key)
        });
        there.filter(|key| !self.is_ours(key)).collect()
    }

    /// Addresses with our mark that none of these routers has where it is.
    #[must_use]
    pub(crate) fn leftovers(&self, routers: &[Router]) -> Vec<Key> {
        let wanted: BTreeSet<Key> =
            routers.iter().flat_map(placed).filter_map(|placed| self.key(placed)).collect();
        let marked =
            self.interfaces.addresses.iter().filter(|(_, state)| state.protocol == PROTOCOL);
        marked.map(|(key, _)| *key).filter(|key| !wanted.contains(key)).collect()
    }

    /// Addresses of ours that are not among these, on whatever interface they are.
    #[must_use]
    pub(crate) fn surplus<'a>(&self, kept: impl IntoIterator<Item = Placed<'a>>) -> Vec<Key> {
        let kept: BTreeSet<Key> = kept.into_iter().filter_map(|placed| self.key(placed)).collect();
        let ours = self.interfaces.addresses.keys().filter(|key| self.is_ours(key));
        ours.filter(|key| !kept.contains(key)).copied().collect()
    }

    /// The name of an interface.
    #[must_use]
    pub(crate) fn interface(&self, index: u32) -> &str {
        self.interfaces.links.get(&index).map_or("?", |link| &link.name)
    }

    fn key(&self, placed: Placed<'_>) -> Option<Key> {
        let index = self.interfaces.index(placed.interface)?;
        Some((index, placed.address.address, placed.address.prefix))
    }

    fn is_ours(&self, key: &Key) -> bool {
        let marked =
            || self.interfaces.addresses.get(key).is_some_and(|one| one.protocol == PROTOCOL);
        self.added.contains(key) || (self.marks && marked())
    }
}

/// Whether a kernel of this release keeps an address's protocol, which is its owner's mark.
fn marks(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return false;
    };
    (major, minor) >= (5, 18)
}

/// The request for an address; without the address' settings, to remove it.
fn message((index, address, prefix): Key, settings: Option<&VirtualAddress>) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.header.family =
        if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    let Some(settings) = settings else { return message };
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
    match address {
        IpAddr::V4(_) => {
            message.attributes.extend(settings.label.clone().map(AddressAttribute::Label));
        }
        IpAddr::V6(v6) => {
            if v6.is_unicast_link_local() {
                message.header.scope = AddressScope::Link;
            }
            let mut lifetime = CacheInfo::default();
            (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, FOREVER);
            message.attributes.push(AddressAttribute::CacheInfo(lifetime));
            let mut flags = AddressFlags::empty();
            if settings.nodad {
                flags |= AddressFlags::Nodad;
                message.header.flags |= AddressHeaderFlags::Nodad;
            }
            // A route to the address alone would be the link's, which the node itself is not behind.
            if prefix == 128 {
                flags |= AddressFlags::Noprefixroute;
            }
            message.attributes.push(AddressAttribute::Flags(flags));
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use lb_netlink::link::Link;

    use super::*;
    use crate::thread::test_router;
    use lb_model::router::{Family, RouterKey};

    fn address(address: &str) -> VirtualAddress {
        let address: IpAddr = address.parse().expect("an address");
        VirtualAddress {
            address,
            prefix: if address.is_ipv4() { 32 } else { 128 },
            interface: None,
            label: None,
            nodad: true,
            advertised: true,
        }
    }

    fn attributes(settings: &VirtualAddress) -> Vec<AddressAttribute> {
        message((2, settings.address, settings.prefix), Some(settings)).attributes
    }

    fn addresses(marks: bool, there: &[(&str, u8)]) -> Addresses {
        let mut all = Addresses::open().expect("netlink answers everybody");
        all.marks = marks;
        all.interfaces = Interfaces::default();
        all.interfaces.add_link(2, Link { name: "eth0".into(), up: true, ..Link::default() });
        for (address, protocol) in there {
            let state = AddressState { protocol: *protocol, ..AddressState::default() };
            all.interfaces.add_address((2, address.parse().expect("an address"), 32), state);
        }
        all
    }

    fn two(priority: u8) -> Router {
        let key = RouterKey { family: Family::V4, vrid: NonZeroU8::MIN };
        let mut router = test_router("main", key);
        router.addresses.push(address("10.0.0.101"));
        router.priority = NonZeroU8::new(priority).expect("not 0");
        router
    }

    #[test]
    fn what_is_left_of_a_router_is_ours_on_kernels_without_the_mark_be_it_a_part() {
        let mut all = addresses(false, &[("10.0.0.101", 0), ("10.0.0.50", 0)]);
        assert!(
            !all.are_inherited(&two(100)),
            "one is missing: they were not all assigned to the end"
        );
        all.adopt(&two(100));
        assert_eq!(all.surplus([]), [(2, "10.0.0.101".parse().expect("an address"), 32)]);
        let mut all = addresses(false, &[("10.0.0.100", 0), ("10.0.0.101", 0)]);
        all.adopt(&two(OWNER));
        assert_eq!(all.surplus([]), [], "they are the owner's own");
    }

    #[test]
    fn address_that_was_set_by_hand_is_known_by_its_mark() {
        let all = addresses(true, &[("10.0.0.100", 0), ("10.0.0.101", PROTOCOL)]);
        let by_hand = [(2, "10.0.0.100".parse().expect("an address"), 32)];
        assert_eq!(all.set_by_others(&two(100)), by_hand);
    }

    #[test]
    fn kernels_before_5_18_keep_no_mark() {
        for (release, keeps) in [
            ("5.18.0", true),
            ("6.1.0-21-amd64", true),
            ("10.0", true),
            ("5.17.9", false),
            ("4.19.0", false),
            ("", false),
        ] {
            assert_eq!(marks(release), keeps, "{release}");
        }
    }

    #[test]
    fn ipv6_address_is_never_a_source_and_is_there_at_once() {
        let attributes = attributes(&address("fd00::100"));
        let mut lifetime = CacheInfo::default();
        (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, FOREVER);
        assert!(attributes.contains(&AddressAttribute::CacheInfo(lifetime)));
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        assert!(attributes.contains(&AddressAttribute::Flags(flags)));
    }

    #[test]
    fn address_with_the_prefix_of_a_link_brings_its_route() {
        let mut address = address("fd00::100");
        (address.prefix, address.nodad) = (64, false);
        assert!(attributes(&address).contains(&AddressAttribute::Flags(AddressFlags::empty())));
    }

    #[test]
    fn every_address_carries_the_mark_and_ipv4_its_label() {
        let mut address = address("10.0.0.100");
        address.label = Some("eth0:vip".into());
        let attributes = attributes(&address);
        let mark = AddressAttribute::Protocol(AddressProtocol::Other(112));
        assert!(attributes.contains(&mark));
        assert!(attributes.contains(&AddressAttribute::Label("eth0:vip".into())));
    }
}

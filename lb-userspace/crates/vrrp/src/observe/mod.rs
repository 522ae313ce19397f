//! Reads the state that the virtual routers depend on: links, sources, files.

pub mod files;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
};

use lb_model::router::{Family, OWNER, Router, Tracked};
use lb_netlink::interfaces::{AddressState, Interfaces};

use super::{addresses::PROTOCOL, observed::ObservedLink};

/// The links as the machine has them.
#[must_use]
pub(crate) fn links(interfaces: &Interfaces) -> BTreeMap<String, ObservedLink> {
    let mut below: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (&index, link) in &interfaces.links {
        // Of the ports of a bond one is in use, and which one it is changes.
        if let Some(bridge) = link.port_of.filter(|_| link.bridged) {
            below.entry(bridge).or_default().push(index);
        }
        if let Some(base) = link.parent() {
            below.entry(index).or_default().push(base);
        }
    }
    let links = interfaces.links.iter().map(|(index, link)| {
        let observed = ObservedLink {
            up: link.up && link.carrier,
            below: names_below(*index, &below, interfaces),
        };
        (link.name.clone(), observed)
    });
    links.collect()
}

/// The names of all links below one, from those right below each.
fn names_below(
    top: u32,
    below: &BTreeMap<u32, Vec<u32>>,
    interfaces: &Interfaces,
) -> BTreeSet<String> {
    let (mut found, mut unread) = (BTreeSet::new(), vec![top]);
    while let Some(index) = unread.pop() {
        let next = below.get(&index).into_iter().flatten();
        unread.extend(next.filter(|&&next| next != top && found.insert(next)));
    }
    found.iter().filter_map(|index| Some(interfaces.links.get(index)?.name.clone())).collect()
}

/// The address that a router's advertisements are sent from on its interface.
#[must_use]
pub(crate) fn source(router: &Router, interfaces: &Interfaces) -> Option<IpAddr> {
    first_address(router, &router.interface, router.source, interfaces)
}

/// The same for its second path.
#[must_use]
pub(crate) fn second_source(router: &Router, interfaces: &Interfaces) -> Option<IpAddr> {
    let path = router.second_path.as_ref()?;
    first_address(router, &path.interface, path.source, interfaces)
}

/// The configured address if the node has it, or the interface's first that is no virtual one.
fn first_address(
    router: &Router,
    interface: &str,
    configured: Option<IpAddr>,
    interfaces: &Interfaces,
) -> Option<IpAddr> {
    let usable = |state: &AddressState| !state.tentative && !state.duplicate;
    if let Some(source) = configured {
        let mut all = interfaces.addresses.iter();
        return all.any(|(key, state)| key.1 == source && usable(state)).then_some(source);
    }
    let index = interfaces.index(interface)?;
    let virtual_one = |address| router.addresses.iter().any(|one| one.address == address);
    let of_family = |address: IpAddr| match address {
        IpAddr::V4(_) => router.key.family == Family::V4,
        // RFC 9568, 5.1.2.1.
        IpAddr::V6(v6) => router.key.family == Family::V6 && v6.is_unicast_link_local(),
    };
    let own = interfaces.addresses.iter().filter(|(key, state)| {
        key.0 == index
            && of_family(key.1)
            && state.protocol != PROTOCOL
            && usable(state)
            && !(virtual_one(key.1) && router.priority.get() != OWNER)
    });
    own.min_by_key(|(_, state)| (state.secondary, state.order)).map(|(key, _)| key.1)
}

/// The first link-local IPv6 address of an interface that is its own.
#[must_use]
pub(crate) fn link_local(index: u32, interfaces: &Interfaces) -> Option<Ipv6Addr> {
    let from = (index, IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 0);
    let own = interfaces.addresses.range(from..).take_while(|((at, ..), _)| *at == index);
    own.filter(|(_, state)| state.protocol != PROTOCOL && !state.tentative && !state.duplicate)
        .find_map(|(key, _)| match key.1 {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(v6),
            _ => None,
        })
}

/// The files that are tracked.
#[must_use]
pub(crate) fn files(routers: &[Router]) -> BTreeSet<PathBuf> {
    let tracks = routers.iter().flat_map(|router| &router.tracks);
    tracks
        .filter_map(|track| match &track.what {
            Tracked::File(path) => Some(path.clone()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU8;

    use lb_netlink::link::{self, LinkKind};

    use super::*;
    use crate::thread::test_router;
    use lb_model::router::RouterKey;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn router(family: Family) -> Router {
        test_router("main", RouterKey { family, vrid: NonZeroU8::MIN })
    }

    fn interfaces(addresses: &[(&str, AddressState)]) -> Interfaces {
        let mut interfaces = Interfaces::default();
        interfaces.add_link(2, link::Link { name: "eth0".into(), ..link::Link::default() });
        for (order, (address, state)) in (0..).zip(addresses) {
            interfaces.addresses.insert((2, ip(address), 24), AddressState { order, ..*state });
        }
        interfaces
    }

    #[test]
    fn below_a_vlan_on_a_bridge_are_the_bridge_and_its_ports_and_below_a_bond_nothing() {
        let mut interfaces = Interfaces::default();
        let link = |name: &str| link::Link { name: name.into(), ..link::Link::default() };
        interfaces.add_link(2, link::Link { port_of: Some(4), bridged: true, ..link("eth0") });
        interfaces.add_link(3, link::Link { port_of: Some(6), ..link("eth1") });
        interfaces.add_link(6, link("bond0"));
        interfaces.add_link(4, link("br0"));
        interfaces.add_link(
            5,
            link::Link {
                kind: LinkKind::Vlan { parent: Some(4), tpid: 0x8100, id: 7 },
                ..link("br0.7")
            },
        );
        let links = links(&interfaces);
        let below = |name: &str| links[name].below.iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(below("br0.7"), ["br0", "eth0"]);
        assert_eq!(below("br0"), ["eth0"]);
        assert!(["eth0", "eth1", "bond0"].iter().all(|name| below(name).is_empty()));
    }

    #[test]
    fn source_is_the_first_address_and_not_the_lowest() {
        let secondary = AddressState { secondary: true, ..AddressState::default() };
        let interfaces = interfaces(&[
            ("10.0.0.5", secondary),
            ("10.0.0.9", AddressState::default()),
            ("10.0.0.2", AddressState::default()),
        ]);
        assert_eq!(source(&router(Family::V4), &interfaces), Some(ip("10.0.0.9")));
        assert_eq!(source(&router(Family::V6), &interfaces), None);
    }

    #[test]
    fn virtual_address_is_no_source_whoever_put_it_there() {
        let ours = AddressState { protocol: PROTOCOL, ..AddressState::default() };
        let vip = router(Family::V4).addresses[0].address;
        let vip = vip.to_string();
        let with = |own: &[(&str, AddressState)]| {
            let mut all = vec![("10.0.0.77", ours), (vip.as_str(), AddressState::default())];
            all.extend(own);
            interfaces(&all)
        };
        assert_eq!(source(&router(Family::V4), &with(&[])), None);
        let own = [("10.0.0.2", AddressState::default())];
        assert_eq!(source(&router(Family::V4), &with(&own)), Some(ip("10.0.0.2")));
        // But of the owner it is: that is its own.
        let mut owner = router(Family::V4);
        owner.priority = NonZeroU8::MAX;
        assert_eq!(source(&owner, &with(&[])), Some(ip(&vip)));
    }

    #[test]
    fn ipv6_source_is_link_local_and_settled() {
        let tentative = AddressState { tentative: true, ..AddressState::default() };
        let tables_with =
            |state| interfaces(&[("fd00::1", AddressState::default()), ("fe80::1", state)]);
        let router = router(Family::V6);
        assert_eq!(source(&router, &tables_with(AddressState::default())), Some(ip("fe80::1")));
        assert_eq!(source(&router, &tables_with(tentative)), None);
    }

    #[test]
    fn a_request_is_sent_from_the_interfaces_own_link_local_address() {
        let ours = AddressState { protocol: PROTOCOL, ..AddressState::default() };
        let own = AddressState::default();
        let interfaces = interfaces(&[("fd00::1", own), ("fe80::1", ours), ("fe80::2", own)]);
        assert_eq!(link_local(2, &interfaces), "fe80::2".parse().ok());
        assert_eq!(link_local(1, &interfaces), None);
    }

    #[test]
    fn configured_source_counts_only_if_the_node_has_it() {
        let mut router = router(Family::V4);
        router.source = Some(ip("10.0.0.3"));
        assert_eq!(source(&router, &interfaces(&[("10.0.0.2", AddressState::default())])), None);
        let there = interfaces(&[
            ("10.0.0.2", AddressState::default()),
            ("10.0.0.3", AddressState::default()),
        ]);
        assert_eq!(source(&router, &there), router.source);
    }
}

//! What the virtual routers depend on, as it is seen from here: links, sources, files.

pub mod files;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
};

use super::{
    Family, Router, Tracked,
    addresses::{
        PROTOCOL,
        table::{Seen, Tables},
    },
    observed::Link,
};

/// The links as the machine has them.
#[must_use]
pub fn links(tables: &Tables) -> BTreeMap<String, Link> {
    let mut below: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (&index, link) in &tables.links {
        if let Some(bridge) = link.port_of {
            below.entry(bridge).or_default().push(index);
        }
        if let Some(base) = link.below {
            below.entry(index).or_default().push(base);
        }
    }
    let links = tables.links.iter().map(|(index, link)| {
        let seen = Link { up: link.up && link.carrier, below: names_below(*index, &below, tables) };
        (link.name.clone(), seen)
    });
    links.collect()
}

/// The names of all links below one, from those right below each.
fn names_below(top: u32, below: &BTreeMap<u32, Vec<u32>>, tables: &Tables) -> BTreeSet<String> {
    let (mut found, mut unread) = (BTreeSet::new(), vec![top]);
    while let Some(index) = unread.pop() {
        let next = below.get(&index).into_iter().flatten();
        unread.extend(next.filter(|&&next| next != top && found.insert(next)));
    }
    found.iter().filter_map(|index| Some(tables.links.get(index)?.name.clone())).collect()
}

/// The address that a router's advertisements are sent from on its interface.
#[must_use]
pub fn source(router: &Router, tables: &Tables) -> Option<IpAddr> {
    first_address(router, &router.interface, router.source, tables)
}

/// The same for its second path.
#[must_use]
pub fn second_source(router: &Router, tables: &Tables) -> Option<IpAddr> {
    let path = router.second_path.as_ref()?;
    first_address(router, &path.interface, path.source, tables)
}

/// The configured address if the node has it, or the interface's first that is no virtual one.
fn first_address(
    router: &Router,
    interface: &str,
    configured: Option<IpAddr>,
    tables: &Tables,
) -> Option<IpAddr> {
    let usable = |seen: &Seen| !seen.tentative && !seen.duplicate;
    if let Some(source) = configured {
        let mut all = tables.addresses.iter();
        return all.any(|(key, seen)| key.1 == source && usable(seen)).then_some(source);
    }
    let index = tables.index(interface)?;
    let virtual_one = |address| router.addresses.iter().any(|one| one.address == address);
    let of_family = |address: IpAddr| match address {
        IpAddr::V4(_) => router.key.family == Family::V4,
        // RFC 9568, 5.1.2.1.
        IpAddr::V6(v6) => router.key.family == Family::V6 && v6.is_unicast_link_local(),
    };
    let own = tables.addresses.iter().filter(|(key, seen)| {
        key.0 == index
            && of_family(key.1)
            && seen.protocol != PROTOCOL
            && usable(seen)
            && !(virtual_one(key.1) && router.priority.get() != super::OWNER)
    });
    own.min_by_key(|(_, seen)| (seen.secondary, seen.order)).map(|(key, _)| key.1)
}

/// The first link-local IPv6 address of an interface that is its own.
#[must_use]
pub fn link_local(index: u32, tables: &Tables) -> Option<Ipv6Addr> {
    let from = (index, IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 0);
    let own = tables.addresses.range(from..).take_while(|((at, ..), _)| *at == index);
    own.filter(|(_, seen)| seen.protocol != PROTOCOL && !seen.tentative && !seen.duplicate)
        .find_map(|(key, _)| match key.1 {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(v6),
            _ => None,
        })
}

/// The files that are tracked.
#[must_use]
pub fn files(routers: &[Router]) -> BTreeSet<PathBuf> {
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

    use super::*;
    use crate::{RouterKey, addresses::table, thread::test_router};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn router(family: Family) -> Router {
        test_router("main", RouterKey { family, vrid: NonZeroU8::MIN })
    }

    fn tables(addresses: &[(&str, Seen)]) -> Tables {
        let mut tables = Tables::default();
        tables.add_link(2, table::Link { name: "eth0".into(), ..table::Link::default() });
        for (order, (address, seen)) in (0..).zip(addresses) {
            tables.addresses.insert((2, ip(address), 24), Seen { order, ..*seen });
        }
        tables
    }

    #[test]
    fn below_a_vlan_on_a_bridge_are_the_bridge_and_its_ports() {
        let mut tables = Tables::default();
        let link = |name: &str| table::Link { name: name.into(), ..table::Link::default() };
        tables.add_link(2, table::Link { port_of: Some(4), ..link("eth0") });
        tables.add_link(3, link("eth1"));
        tables.add_link(4, link("br0"));
        tables.add_link(5, table::Link { below: Some(4), ..link("br0.7") });
        let links = links(&tables);
        let below = |name: &str| links[name].below.iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(below("br0.7"), ["br0", "eth0"]);
        assert_eq!(below("br0"), ["eth0"]);
        assert!(below("eth0").is_empty() && below("eth1").is_empty());
    }

    #[test]
    fn source_is_the_first_address_and_not_the_lowest() {
        let secondary = Seen { secondary: true, ..Seen::default() };
        let tables = tables(&[
            ("10.0.0.5", secondary),
            ("10.0.0.9", Seen::default()),
            ("10.0.0.2", Seen::default()),
        ]);
        assert_eq!(source(&router(Family::V4), &tables), Some(ip("10.0.0.9")));
        assert_eq!(source(&router(Family::V6), &tables), None);
    }

    #[test]
    fn virtual_address_is_no_source_whoever_put_it_there() {
        let ours = Seen { protocol: PROTOCOL, ..Seen::default() };
        let vip = router(Family::V4).addresses[0].address;
        let vip = vip.to_string();
        let with = |own: &[(&str, Seen)]| {
            let mut all = vec![("10.0.0.77", ours), (vip.as_str(), Seen::default())];
            all.extend(own);
            tables(&all)
        };
        assert_eq!(source(&router(Family::V4), &with(&[])), None);
        let own = [("10.0.0.2", Seen::default())];
        assert_eq!(source(&router(Family::V4), &with(&own)), Some(ip("10.0.0.2")));
        // But of the owner it is: that is its own.
        let mut owner = router(Family::V4);
        owner.priority = NonZeroU8::MAX;
        assert_eq!(source(&owner, &with(&[])), Some(ip(&vip)));
    }

    #[test]
    fn ipv6_source_is_link_local_and_settled() {
        let tentative = Seen { tentative: true, ..Seen::default() };
        let tables_with = |seen| tables(&[("fd00::1", Seen::default()), ("fe80::1", seen)]);
        let router = router(Family::V6);
        assert_eq!(source(&router, &tables_with(Seen::default())), Some(ip("fe80::1")));
        assert_eq!(source(&router, &tables_with(tentative)), None);
    }

    #[test]
    fn a_question_is_asked_from_the_interfaces_own_link_local_address() {
        let ours = Seen { protocol: PROTOCOL, ..Seen::default() };
        let own = Seen::default();
        let tables = tables(&[("fd00::1", own), ("fe80::1", ours), ("fe80::2", own)]);
        assert_eq!(link_local(2, &tables), "fe80::2".parse().ok());
        assert_eq!(link_local(1, &tables), None);
    }

    #[test]
    fn configured_source_counts_only_if_the_node_has_it() {
        let mut router = router(Family::V4);
        router.source = Some(ip("10.0.0.3"));
        assert_eq!(source(&router, &tables(&[("10.0.0.2", Seen::default())])), None);
        let there = tables(&[("10.0.0.2", Seen::default()), ("10.0.0.3", Seen::default())]);
        assert_eq!(source(&router, &there), router.source);
    }
}

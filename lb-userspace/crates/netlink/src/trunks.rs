//! Interfaces with VLANs on them whose hardware takes the tags off before an XDP program sees the frame.
//!
//! The program then takes a frame of a VLAN for one without, and what it sends back, an ICMP error, leaves untagged.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    generic::{NESTED, attribute, attributes, find, query},
    query::{self, InterfaceSnapshot},
};

// From linux/ethtool_netlink.h.
const FEATURES_GET: u8 = 11;
const ETHTOOL_HEADER: u16 = 1;
const HEADER_DEV_NAME: u16 = 2;
const FEATURES_ACTIVE: u16 = 4;
const BITSET_NOMASK: u16 = 1;
const BITSET_BITS: u16 = 3;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// The offload, as `ethtool -k` names it in netlink; `rxvlan` for `ethtool -K`.
pub const STRIPPING: &str = "rx-vlan-hw-parse";

/// Those of `interfaces` that have VLANs on them, or on their bridge or bond, and take tags off. What can't be found out
/// is left out.
#[must_use]
pub fn stripped(interfaces: &[String]) -> Vec<String> {
    let found = query::interfaces().unwrap_or_default();
    let strips = |name: &&String| offloads(name).is_some_and(|on| on.contains(STRIPPING));
    trunks(interfaces, &found).into_iter().filter(strips).cloned().collect()
}

fn trunks<'a>(names: &'a [String], found: &BTreeMap<String, InterfaceSnapshot>) -> Vec<&'a String> {
    let parents: BTreeSet<u32> = found.values().filter_map(|one| one.vlan_on).collect();
    let is_trunk = |one: &InterfaceSnapshot| {
        parents.contains(&one.ifindex) || one.port_of.is_some_and(|of| parents.contains(&of))
    };
    names.iter().filter(|name| found.get(*name).is_some_and(is_trunk)).collect()
}

/// The offloads of an interface that are on; none if the kernel does not report them.
#[must_use]
pub fn offloads(interface: &str) -> Option<BTreeSet<String>> {
    let answer = query("ethtool", FEATURES_GET, of_name(interface)).ok()?;
    Some(bits(&answer, FEATURES_ACTIVE))
}

/// The header of a query about an interface.
pub fn of_name(name: &str) -> Vec<u8> {
    let name = [name.as_bytes(), &[0]].concat();
    attribute(ETHTOOL_HEADER | NESTED, &attribute(HEADER_DEV_NAME, &name))
}

/// The names of the bits that are on in a bit set of an answer.
pub(super) fn bits(answer: &[u8], kind: u16) -> BTreeSet<String> {
    let Some(active) = find(answer, kind) else { return BTreeSet::new() };
    let bits = find(active, BITSET_BITS).unwrap_or_default();
    // Without a mask a bit that is listed is on, and has no flag for that (`ethnl_put_bitset32`).
    let is_list = find(active, BITSET_NOMASK).is_some();
    attributes(bits)
        .filter(|(_, bit)| is_list || find(bit, BIT_VALUE).is_some())
        .filter_map(|(_, bit)| {
            let name = find(bit, BIT_NAME)?;
            Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A bit of a bit set that has a mask.
    pub(crate) fn bit(name: &str, on: bool) -> Vec<u8> {
        let name = attribute(BIT_NAME, format!("{name}\0").as_bytes());
        let value = if on { attribute(BIT_VALUE, &[]) } else { Vec::new() };
        attribute(1 | NESTED, &[name, value].concat())
    }

    #[test]
    fn offloads_are_read_as_they_are_written() {
        let answer = |kind: &[u8], bits: [Vec<u8>; 2]| {
            let bits = [kind, &attribute(BITSET_BITS | NESTED, &bits.concat())].concat();
            [of_name("eth0"), attribute(FEATURES_ACTIVE | NESTED, &bits)].concat()
        };
        let masked = answer(&[], [bit("rx-lro", true), bit("rx-gro-hw", false)]);
        assert_eq!(bits(&masked, FEATURES_ACTIVE), BTreeSet::from(["rx-lro".to_owned()]));
        let list = attribute(BITSET_NOMASK, &[]);
        let listed = answer(&list, [bit("rx-lro", false), bit("rx-gro", false)]);
        assert_eq!(
            bits(&listed, FEATURES_ACTIVE),
            BTreeSet::from(["rx-lro", "rx-gro"].map(str::to_owned))
        );
    }

    #[test]
    fn the_kernel_tells_offloads() {
        // The network stack's own features are on unless an operator turns them off.
        let on = offloads("lo").expect("the kernel reports them");
        assert!(on.contains("rx-gro") && !on.contains("rx-lro"), "{on:?}");
    }

    #[test]
    fn an_interface_is_a_trunk_by_its_vlans_or_those_on_its_bridge() {
        let own = |ifindex| InterfaceSnapshot { ifindex, ..InterfaceSnapshot::default() };
        let mut found = BTreeMap::from([
            ("eth0".to_owned(), own(2)),
            ("eth1".to_owned(), InterfaceSnapshot { port_of: Some(9), ..own(3) }),
            ("br0".to_owned(), own(9)),
        ]);
        let names = ["eth0", "eth1", "eth7"].map(str::to_owned);
        assert!(trunks(&names, &found).is_empty());
        found.insert("eth0.5".into(), InterfaceSnapshot { vlan_on: Some(2), ..own(10) });
        assert_eq!(trunks(&names, &found), ["eth0"]);
        found.insert("br0.5".into(), InterfaceSnapshot { vlan_on: Some(9), ..own(11) });
        assert_eq!(trunks(&names, &found), ["eth0", "eth1"]);
    }
}

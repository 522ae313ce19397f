//! What drivers can do and what is switched on: the families `ethtool` and `netdev` of generic netlink.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    doctor::facts::{Channels, Interface},
    netlink::generic::{NESTED, ask, attribute, attributes, find, word},
};

// From linux/ethtool_netlink.h.
const FEATURES_GET: u8 = 11;
const CHANNELS_GET: u8 = 17;
const ETHTOOL_HEADER: u16 = 1;
const HEADER_DEV_NAME: u16 = 2;
const FEATURES_ACTIVE: u16 = 4;
const BITSET_BITS: u16 = 3;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;
const RX_MAX: u16 = 2;
const COMBINED_MAX: u16 = 5;
const RX_COUNT: u16 = 6;
const COMBINED_COUNT: u16 = 9;

/// Fills in what generic netlink tells of an interface; `features` are those of all
/// ([`xdp_features`](crate::netlink::generic::xdp_features)).
pub(super) fn describe(name: &str, interface: &mut Interface, features: &BTreeMap<u32, u64>) {
    let of = of_name(name);
    interface.offloads = ask("ethtool", FEATURES_GET, &of).ok().map(|answer| offloads(&answer));
    interface.channels = ask("ethtool", CHANNELS_GET, &of).ok().map(|answer| channels(&answer));
    interface.xdp_features = features.get(&interface.ifindex).copied();
}

fn of_name(name: &str) -> Vec<u8> {
    let name = [name.as_bytes(), &[0]].concat();
    attribute(ETHTOOL_HEADER | NESTED, &attribute(HEADER_DEV_NAME, &name))
}

/// The names of the features that are on.
fn offloads(answer: &[u8]) -> BTreeSet<String> {
    let Some(active) = find(answer, FEATURES_ACTIVE) else { return BTreeSet::new() };
    let bits = find(active, BITSET_BITS).unwrap_or_default();
    attributes(bits)
        .filter(|(_, bit)| find(bit, BIT_VALUE).is_some())
        .filter_map(|(_, bit)| {
            let name = find(bit, BIT_NAME)?;
            Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
        })
        .collect()
}

fn channels(answer: &[u8]) -> Channels {
    let number = |kind| find(answer, kind).and_then(word).unwrap_or(0);
    Channels {
        combined: number(COMBINED_COUNT),
        combined_max: number(COMBINED_MAX),
        rx: number(RX_COUNT),
        rx_max: number(RX_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let bit = |name: &str, on: bool| {
            let name = attribute(BIT_NAME, format!("{name}\0").as_bytes());
            let value = if on { attribute(BIT_VALUE, &[]) } else { Vec::new() };
            attribute(1 | NESTED, &[name, value].concat())
        };
        let bits = [bit("rx-lro", true), bit("rx-gro-hw", false)].concat();
        let bits = attribute(BITSET_BITS | NESTED, &bits);
        let answer = [of_name("eth0"), attribute(FEATURES_ACTIVE | NESTED, &bits)].concat();
        assert_eq!(offloads(&answer), BTreeSet::from(["rx-lro".to_owned()]));
        let answer = [
            attribute(COMBINED_MAX, &8_u32.to_ne_bytes()),
            attribute(COMBINED_COUNT, &2_u32.to_ne_bytes()),
        ];
        let expected = Channels { combined: 2, combined_max: 8, ..Channels::default() };
        assert_eq!(channels(&answer.concat()), expected);
    }
}

//! Capabilities and active offloads of drivers: the families `ethtool` and `netdev` of generic netlink.

use std::collections::BTreeMap;

use lb_netlink::{
    generic::{find, query, word},
    trunks::{of_name, offloads},
};

use crate::doctor::snapshot::{Channels, InterfaceSnapshot};

// From linux/ethtool_netlink.h.
const CHANNELS_GET: u8 = 17;
const RX_MAX: u16 = 2;
const COMBINED_MAX: u16 = 5;
const RX_COUNT: u16 = 6;
const COMBINED_COUNT: u16 = 9;

/// Fills in an interface's snapshot from generic netlink; `features` are those of all
/// ([`xdp_features`](lb_netlink::generic::xdp_features)).
pub(super) fn describe(
    name: &str,
    interface: &mut InterfaceSnapshot,
    features: &BTreeMap<u32, u64>,
) {
    interface.offloads = offloads(name);
    interface.channels =
        query("ethtool", CHANNELS_GET, of_name(name)).ok().map(|answer| channels(&answer));
    interface.xdp_features = features.get(&interface.ifindex).copied();
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
    use lb_netlink::generic::attribute;

    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let answer = [
            attribute(COMBINED_MAX, &8_u32.to_ne_bytes()),
            attribute(COMBINED_COUNT, &2_u32.to_ne_bytes()),
        ];
        let expected = Channels { combined: 2, combined_max: 8, ..Channels::default() };
        assert_eq!(channels(&answer.concat()), expected);
    }
}

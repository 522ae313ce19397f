//! Services with several ports or VIPs: in a random state of the tables, as the target of random packets, and in the
//! maps of the loaded object.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{
        MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use lb_common::{
    abi::{Destination, FlowKey, ReversePrefix, Service, mapped, service_flags, udp_policy},
    packet::number,
    service_index::Entry,
    wide::{PortPrefix, VipPrefix, WideKey},
};

use super::{
    generate::{Random, VIP_V4, VIP_V6},
    kernel::Kernel,
};

/// Last byte of the VIP, bits of the prefix, first and last port, protocol, and for UDP the policy, of services of each
/// family. The VIP that has all other services ends in 100.
const WIDE: [(u8, u8, u16, u16, u8, u8); 7] = [
    (96, 124, 1, 65_535, number::TCP, 0),
    (96, 124, 8_000, 8_063, number::TCP, 0),
    (96, 124, 50, 60, number::UDP, udp_policy::TRACKED),
    (98, 127, 8_050, 8_060, number::TCP, 0),
    (100, 128, 8_000, 8_100, number::TCP, 0),
    (100, 128, 440, 450, number::UDP, udp_policy::QUIC),
    (100, 128, 440, 440, number::UDP, udp_policy::ONESHOT),
];

/// Last bytes of the addresses, and ports, of packets for them, or for none.
const HOSTS: [u8; 6] = [95, 96, 98, 99, 100, 111];
const PORTS: [u16; 11] = [0, 50, 54, 80, 440, 443, 445, 8_000, 8_055, 8_064, 8_100];

/// The VIP with another last byte.
pub fn vip_v4(last: u8) -> [u8; 4] {
    let [a, b, c, _] = VIP_V4;
    [a, b, c, last]
}

/// The same of IPv6.
pub fn vip_v6(last: u8) -> [u8; 16] {
    let mut vip = VIP_V6;
    vip[15] = last;
    vip
}

/// The VIP's last byte, the port and the protocol of a packet.
pub fn target(random: &mut Random) -> (u8, u16, u8) {
    (random.of(&HOSTS), random.of(&PORTS), random.of(&[number::TCP, number::TCP, number::UDP]))
}

/// The first and last port of a range that a port is in, or next to.
pub fn range_about(random: &mut Random, port: u16) -> (u16, u16) {
    random.of(&[
        (1, u16::MAX),
        (port.saturating_sub(3).max(1), port.saturating_add(40)),
        (port.saturating_sub(100).max(1), port.saturating_sub(1).max(1)),
    ])
}

/// Keys of services of a family, most of those that there can be, with the policy of each.
pub fn keys(random: &mut Random, v6: bool) -> Vec<(WideKey, u8)> {
    let all = WIDE.into_iter().filter(|_| !random.one_in(4));
    all.map(|(last, bits, first, end, proto, policy)| {
        let address = if v6 { vip_v6(last) } else { mapped(vip_v4(last)) };
        let (first, last) = (first.into(), end.into());
        (WideKey { address, first, last, bits, proto, reserved: [0; 2] }, policy)
    })
    .collect()
}

/// What follows the number of bits in a key of `WIDE_PORTS`.
fn word(key: &PortPrefix) -> u64 {
    PortPrefix::word(key.group, key.proto, u16::from_ne_bytes(key.port.to_bytes()))
}

/// The key of a flow of a service, which goes to one of the targets.
pub fn flow(random: &mut Random, service: &Service, key: FlowKey) -> FlowKey {
    if service.flags & service_flags::WIDE == 0 {
        return key;
    }
    let (last, port, _) = target(random);
    let [.., c, _] = if key.source.starts_with(&[0; 10]) { mapped(VIP_V4) } else { VIP_V6 };
    FlowKey { destination: Destination { port: port.into(), host: [c, last] }, ..key }
}

impl Kernel {
    /// Makes these services known, and no others that have several ports or VIPs.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_wide(&mut self, services: &[(WideKey, Service)]) -> Result<()> {
        let ids: BTreeMap<_, _> = services.iter().map(|(key, value)| (*key, value.id)).collect();
        let (vips, ports) = lb_datapath::service_tries(&ids);
        for (key, service) in services {
            let (port, proto, address) = (key.first, key.proto, key.address);
            let entry = Entry { service: *service, address, port, proto, reserved: [0; 5] };
            self.array("SERVICE_ENTRIES")?.set(service.id.into(), entry, 0)?;
        }
        self.fill("WIDE_PORTS", ports.iter().map(|(key, id)| (key.bits, word(key), *id)))?;
        let group = |(group, key): (u16, &VipPrefix)| (key.bits, key.address, group);
        self.fill("WIDE_VIPS", (0..).zip(&vips).map(group))?;
        Ok(self.array("WIDE_GROUPS")?.set(0, u32::try_from(vips.len())?, 0)?)
    }

    /// Makes these backends in mode `nat` known by the ranges of the sources of their answers, and no others.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn put_reverse_ranges(&mut self, prefixes: &[(ReversePrefix, u16)]) -> Result<()> {
        let entries = prefixes.iter().map(|(key, id)| (key.bits, key.data(), *id));
        self.fill("REVERSE_RANGES", entries)?;
        if !prefixes.is_empty() {
            self.array("NAT_BACKENDS")?.set(0, 1_u32, 0)?;
        }
        Ok(())
    }

    /// Gives a trie these entries alone: bits of a key, the key, the value.
    fn fill<K: Pod>(
        &mut self,
        name: &str,
        entries: impl Iterator<Item = (u32, K, u16)>,
    ) -> Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut trie: LpmTrie<&mut MapData, K, u32> = map.try_into()?;
        let there: Vec<_> = trie.keys().collect::<Result<_, _>>()?;
        for key in &there {
            trie.remove(key)?;
        }
        for (bits, key, value) in entries {
            trie.insert(&Key::new(bits, key), u32::from(value), 0)?;
        }
        Ok(())
    }
}

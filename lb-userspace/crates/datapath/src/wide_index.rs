//! The writer of the tries by which a packet finds a service with several ports, or a prefix of VIPs; their purpose and
//! their safety are described in [`lb_common::wide`].

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use lb_common::wide::{PortPrefix, VipPrefix, WideKey};

use super::{
    maps::OpenMaps,
    port_blocks,
    sys::{self, Table},
};

/// A prefix of VIPs: bits and address.
type Prefix = (u8, [u8; 16]);

/// What the tries hold.
#[derive(Debug, Default)]
pub(crate) struct WideIndex {
    /// Ids of the services.
    services: BTreeMap<WideKey, u16>,
    /// Numbers of the groups.
    groups: BTreeMap<Prefix, u16>,
    ports: BTreeMap<PortPrefix, u16>,
    /// The number of the last group that was made.
    last_group: u16,
}

/// The tries.
struct Tries<'a> {
    vips: &'a Table<VipPrefix, u32>,
    ports: &'a Table<PortPrefix, u32>,
    groups: &'a Table<u32, u32>,
}

impl<'a> Tries<'a> {
    fn of(maps: &'a OpenMaps) -> Result<Self> {
        Ok(Self {
            vips: maps.wide_vips.as_ref().context("no map WIDE_VIPS")?,
            ports: maps.wide_ports.as_ref().context("no map WIDE_PORTS")?,
            groups: maps.wide_groups.as_ref().context("no map WIDE_GROUPS")?,
        })
    }
}

impl WideIndex {
    /// Makes the tries hold exactly the services of `WIDE_SERVICES`, whatever a predecessor left.
    ///
    /// # Errors
    ///
    /// If a map can't be read or written.
    pub fn open(maps: &OpenMaps) -> Result<Self> {
        let tries = Tries::of(maps)?;
        let mut index = Self::default();
        tries.vips.walk(|key, group| {
            index.groups.insert((key.bits as u8, key.address), group as u16);
            index.last_group = index.last_group.max(group as u16);
        })?;
        tries.ports.walk(|key, id| {
            index.ports.insert(key, id as u16);
        })?;
        let services = maps.wide_services.as_ref().context("no map WIDE_SERVICES")?;
        services.walk(|key, service| {
            index.services.insert(key, service.id);
        })?;
        index.write(&tries)?;
        Ok(index)
    }

    /// Makes a service whose entry is written be found.
    pub fn publish(&mut self, maps: &OpenMaps, key: WideKey, id: u16) -> Result<()> {
        self.services.insert(key, id);
        self.write(&Tries::of(maps)?)
    }

    /// Makes a service be found no longer.
    pub fn withdraw(&mut self, maps: &OpenMaps, key: &WideKey) -> Result<()> {
        self.services.remove(key);
        self.write(&Tries::of(maps)?)
    }

    /// Makes the tries what the services ask for. What is new comes before what it takes the place of goes: a packet
    /// of a service that stays finds it all the while.
    fn write(&mut self, tries: &Tries<'_>) -> Result<()> {
        let wanted: BTreeSet<Prefix> = self.services.keys().map(prefix).collect();
        for prefix in &wanted {
            if !self.groups.contains_key(prefix) {
                self.last_group = self.last_group.wrapping_add(1);
                self.groups.insert(*prefix, self.last_group);
            }
        }
        let ports = ports(&self.services, |prefix| self.groups[prefix]);
        for (key, id) in &ports {
            if self.ports.get(key) != Some(id) {
                tries.ports.put(key, &u32::from(*id)).map_err(sys::explain)?;
                self.ports.insert(*key, *id);
            }
        }
        if !wanted.is_empty() {
            tries.groups.put(&0, &(wanted.len() as u32))?;
        }
        for (bits, address) in &wanted {
            let group = u32::from(self.groups[&(*bits, *address)]);
            let key = VipPrefix { bits: (*bits).into(), address: *address };
            tries.vips.put(&key, &group).map_err(sys::explain)?;
        }
        let groups = self.groups.len();
        for (bits, address) in self.groups.keys().filter(|prefix| !wanted.contains(prefix)) {
            tries.vips.delete(&VipPrefix { bits: (*bits).into(), address: *address })?;
        }
        self.groups.retain(|prefix, _| wanted.contains(prefix));
        if self.groups.len() < groups {
            // A packet may have been led to a group that is gone.
            sys::wait_for_programs().context("wait for packets that know a group")?;
        }
        if wanted.is_empty() {
            tries.groups.put(&0, &0)?;
        }
        for key in self.ports.keys().filter(|key| !ports.contains_key(key)) {
            tries.ports.delete(key)?;
        }
        self.ports = ports;
        Ok(())
    }
}

fn prefix(key: &WideKey) -> Prefix {
    (key.bits, key.address)
}

/// The elements of `WIDE_VIPS` and of `WIDE_PORTS` for services with these ids, with groups numbered from 0.
#[must_use]
pub fn tries(services: &BTreeMap<WideKey, u16>) -> (Vec<VipPrefix>, BTreeMap<PortPrefix, u16>) {
    let prefixes: BTreeSet<Prefix> = services.keys().map(prefix).collect();
    let prefixes: Vec<Prefix> = prefixes.into_iter().collect();
    let number = |prefix: &Prefix| prefixes.binary_search(prefix).unwrap_or(0) as u16;
    let ports = ports(services, number);
    let vips = prefixes
        .iter()
        .map(|(bits, address)| VipPrefix { bits: u32::from(*bits), address: *address });
    (vips.collect(), ports)
}

/// The elements of `WIDE_PORTS`; `group` numbers a prefix.
fn ports(
    services: &BTreeMap<WideKey, u16>,
    group: impl Fn(&Prefix) -> u16,
) -> BTreeMap<PortPrefix, u16> {
    let mut ports = BTreeMap::new();
    let prefixes: BTreeSet<Prefix> = services.keys().map(prefix).collect();
    let protocols: BTreeSet<u8> = services.keys().map(|key| key.proto).collect();
    for prefix in &prefixes {
        for proto in &protocols {
            let (bits, address) = *prefix;
            let around =
                |key: &WideKey| key.proto == *proto && key.bits <= bits && key.has_address(address);
            let mut around: Vec<_> = services.iter().filter(|(key, _)| around(key)).collect();
            around.sort_by_key(|(key, _)| key.order());
            let around = around.iter().map(|(key, id)| (key.first.get()..=key.last.get(), **id));
            for (bits, port, id) in port_blocks::of(&around.collect::<Vec<_>>()) {
                let key = PortPrefix::of(group(prefix), *proto, port.into());
                ports.insert(PortPrefix { bits: PortPrefix::BEFORE_PORT + bits, ..key }, id);
            }
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u8 = 6;

    fn key(address: &str, bits: u8, first: u16, last: u16) -> WideKey {
        let address = lb_model::entry::address(address.parse().unwrap());
        let (first, last) = (first.into(), last.into());
        WideKey { address, first, last, bits, proto: TCP, reserved: [0; 2] }
    }

    /// What the program does: the id that the two tries lead to.
    fn found(services: &BTreeMap<WideKey, u16>, address: &str, port: u16) -> Option<u16> {
        let (vips, ports) = tries(services);
        let address = lb_model::entry::address(address.parse().unwrap());
        let shared = |a: [u8; 16], b: [u8; 16]| {
            (u128::from_be_bytes(a) ^ u128::from_be_bytes(b)).leading_zeros()
        };
        let fits = (0..).zip(&vips).filter(|(_, vip)| shared(vip.address, address) >= vip.bits);
        let (group, _) = fits.max_by_key(|(_, vip)| vip.bits)?;
        let fits = ports.iter().filter(|(key, _)| {
            let bits = key.bits - PortPrefix::BEFORE_PORT;
            key.group == group
                && key.proto == TCP
                && (key.port.get() ^ port).leading_zeros() >= bits
        });
        fits.max_by_key(|(key, _)| key.bits).map(|(_, id)| *id)
    }

    #[test]
    fn the_most_specific_service_is_found() {
        let services = BTreeMap::from([
            (key("198.51.100.0", 124, 0, 65_535), 1),
            (key("198.51.100.0", 124, 8_000, 8_100), 2),
            (key("198.51.100.3", 128, 8_050, 8_060), 3),
            (key("198.51.100.0", 120, 443, 443), 4),
            (key("2001:db8::", 112, 1, 1_000), 5),
        ]);
        let cases = [
            ("198.51.100.1", 79, Some(1)),
            ("198.51.100.1", 8_055, Some(2)),
            ("198.51.100.3", 8_055, Some(3)),
            // What the host's own service lacks, the prefixes around it have.
            ("198.51.100.3", 8_061, Some(2)),
            ("198.51.100.3", 1, Some(1)),
            // A longer prefix is before fewer ports.
            ("198.51.100.3", 443, Some(1)),
            ("198.51.100.16", 443, Some(4)),
            ("198.51.100.16", 444, None),
            ("198.51.101.1", 443, None),
            ("2001:db8::7", 1_000, Some(5)),
            ("2001:db8::7", 1_001, None),
            ("2001:db8:1::7", 1_000, None),
        ];
        for (address, port, id) in cases {
            assert_eq!(found(&services, address, port), id, "{address} {port}");
        }
    }

    proptest::proptest! {
        #[test]
        fn two_lookups_find_what_a_search_of_all_services_finds(
            services in proptest::collection::btree_map(
                (0..4_u8, 0..3_usize, 0..40_u16, 0..40_u16), 0..100_u16, 0..12,
            ),
            host in 0..4_u8,
            port in 0..50_u16,
        ) {
            let key = |(host, bits, a, b): (u8, usize, u16, u16)| {
                let bits = [128, 127, 126][bits];
                let host = host & (0xff_u16 << (128 - u16::from(bits))) as u8;
                key(&format!("10.0.0.{host}"), bits, a.min(b), a.max(b))
            };
            let services: BTreeMap<_, _> = services.into_iter().map(|(at, id)| (key(at), id)).collect();
            let address = format!("10.0.0.{host}");
            let mapped = lb_model::entry::address(address.parse().unwrap());
            let fits = services.iter().filter(|(key, _)| key.fits(mapped, port, TCP));
            // Of equal ones, those that overlap without the one in the other, either may be meant.
            let best = fits.clone().map(|(key, _)| key.order()).min();
            let ids: Vec<u16> = fits.filter(|(key, _)| Some(key.order()) == best).map(|(_, id)| *id).collect();
            let found = found(&services, &address, port);
            proptest::prop_assert_eq!(found.is_some(), !ids.is_empty());
            proptest::prop_assert!(found.is_none_or(|id| ids.contains(&id)), "{:?} {:?}", found, ids);
        }
    }
}

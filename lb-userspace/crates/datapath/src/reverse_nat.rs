//! `REVERSE_NAT` and `REVERSE_RANGES`: the backends in mode `nat` by the source of their answers. They follow from
//! `BACKENDS`, beside which they are kept as the services' index is beside the services.
//!
//! A backend's entry is written before its source leads to it, and cleared after its source does not. A start makes
//! what a crash in between has left undone.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use anyhow::{Context as _, Result};
use lb_common::abi::{self, Backend, ReverseKey, ReversePrefix};
use lb_model::entry::{self, ReverseRange};

use super::{
    maps::{self, OpenMaps},
    port_blocks, sys,
};

/// Address and protocol of sources.
type Host = ([u8; 16], u8);

/// The sources that the maps have, by the ids of their backends.
#[derive(Debug, Default)]
pub(super) struct ReverseNat {
    keys: BTreeMap<u16, ReverseKey>,
    /// How many ranges were there before, and the range.
    ranges: BTreeMap<u16, (u64, ReverseRange)>,
    /// How many ranges there have been.
    entered: u64,
    prefixes: BTreeMap<Host, BTreeMap<ReversePrefix, u16>>,
}

impl ReverseNat {
    /// Makes the maps what `BACKENDS` says.
    ///
    /// # Errors
    ///
    /// If a map can't be read or written.
    pub(super) fn open(maps: &OpenMaps) -> Result<Self> {
        let Some(reverse) = &maps.reverse_nat else { return Ok(Self::default()) };
        let backends = maps::backends(maps)?;
        let keys = backends.iter().filter_map(|(id, one)| Some((*id, entry::reverse_key(one)?)));
        let ranges =
            backends.iter().filter_map(|(id, one)| Some((*id, entry::reverse_range(one)?)));
        let ranges: BTreeMap<_, _> =
            (0..).zip(ranges).map(|(before, (id, range))| (id, (before, range))).collect();
        let entered = ranges.len() as u64;
        let mut wanted = Self { keys: keys.collect(), ranges, entered, ..Self::default() };
        let mut stale = Vec::new();
        reverse.walk(|key, id| {
            if wanted.keys.get(&(id as u16)) != Some(&key) {
                stale.push(key);
            }
        })?;
        for key in &stale {
            reverse.delete(key)?;
        }
        wanted.write_count(maps)?;
        for (id, key) in &wanted.keys {
            reverse.put(key, &u32::from(*id))?;
        }
        if let Some(there) = &maps.reverse_ranges {
            there.walk(|key, id| {
                let of_host = wanted.prefixes.entry((key.address, key.proto)).or_default();
                of_host.insert(key, id as u16);
            })?;
        }
        let hosts = wanted.ranges.values().map(|(_, range)| host(range));
        let hosts: BTreeSet<_> = hosts.chain(wanted.prefixes.keys().copied()).collect();
        for host in hosts {
            wanted.write_ranges(maps, host)?;
        }
        Ok(wanted)
    }

    /// Before the entry of backend `id` becomes `value`: its source does not lead to it any more, unless it stays.
    ///
    /// # Errors
    ///
    /// If the map can't be written.
    pub(super) fn leave(&mut self, maps: &OpenMaps, id: u16, value: &Backend) -> Result<()> {
        if let Some(key) = self.keys.get(&id).copied()
            && entry::reverse_key(value) != Some(key)
        {
            let reverse = maps.reverse_nat.as_ref().context("no map REVERSE_NAT")?;
            // Another backend may have taken the source over.
            if reverse.get(&key)? == Some(id.into()) {
                reverse.delete(&key)?;
            }
            self.keys.remove(&id);
            self.write_count(maps)?;
        }
        if let Some((_, range)) = self.ranges.get(&id).copied()
            && entry::reverse_range(value) != Some(range)
        {
            self.ranges.remove(&id);
            self.write_ranges(maps, host(&range))?;
            self.write_count(maps)?;
        }
        Ok(())
    }

    /// After the entry of backend `id` has become `value`: its source leads to it.
    ///
    /// # Errors
    ///
    /// If the map can't be written.
    pub(super) fn enter(&mut self, maps: &OpenMaps, id: u16, value: &Backend) -> Result<()> {
        if let Some(key) = entry::reverse_key(value)
            && self.keys.get(&id) != Some(&key)
        {
            let reverse = maps.reverse_nat.as_ref().context("no map REVERSE_NAT")?;
            reverse.put(&key, &id.into())?;
            self.keys.insert(id, key);
            self.write_count(maps)?;
        }
        if let Some(range) = entry::reverse_range(value)
            && self.ranges.get(&id).is_none_or(|(_, there)| *there != range)
        {
            self.ranges.insert(id, (self.entered, range));
            self.entered += 1;
            self.write_ranges(maps, host(&range))?;
            self.write_count(maps)?;
        }
        Ok(())
    }

    /// Makes the trie what the ranges of a host ask for. What is new comes before what it takes the place of goes: an
    /// answer of a backend that stays finds it all the while.
    fn write_ranges(&mut self, maps: &OpenMaps, of: Host) -> Result<()> {
        let trie = maps.reverse_ranges.as_ref().context("no map REVERSE_RANGES")?;
        let ranges = self.ranges.iter().filter(|(_, (_, range))| host(range) == of);
        let mut ranges: Vec<_> = ranges.collect();
        // Of equal ones the latest: it has taken over from one that leaves.
        ranges.sort_by_key(|(_, (before, _))| Reverse(*before));
        let ranges: Vec<_> = ranges.into_iter().map(|(id, (_, range))| (*range, *id)).collect();
        let wanted = prefixes(&ranges);
        let there = self.prefixes.entry(of).or_default();
        for (key, id) in &wanted {
            if there.get(key) != Some(id) {
                trie.put(key, &u32::from(*id)).map_err(sys::explain)?;
                there.insert(*key, *id);
            }
        }
        for key in there.keys().filter(|key| !wanted.contains_key(key)) {
            trie.delete(key)?;
        }
        if wanted.is_empty() {
            self.prefixes.remove(&of);
        } else {
            *there = wanted;
        }
        Ok(())
    }

    /// Whether there is a backend in mode `nat`.
    pub(super) fn has_backends(&self) -> bool {
        !(self.keys.is_empty() && self.ranges.is_empty())
    }

    /// The program looks for answers only while there is a backend.
    fn write_count(&self, maps: &OpenMaps) -> Result<()> {
        let counter = maps.nat_backends.as_ref().context("no map NAT_BACKENDS")?;
        let count = self.keys.len() + self.ranges.len();
        Ok(counter.put(&0, &u32::try_from(count).unwrap_or(u32::MAX))?)
    }
}

const fn host(range: &ReverseRange) -> Host {
    (range.address, range.proto)
}

/// The elements of `REVERSE_RANGES` for these backends, by their ids. Of several ranges that have a port, the one with
/// the fewest ports is before the others, and of equal ones the first.
#[must_use]
pub fn prefixes(ranges: &[(ReverseRange, u16)]) -> BTreeMap<ReversePrefix, u16> {
    let mut hosts: BTreeMap<Host, Vec<_>> = BTreeMap::new();
    for (range, id) in ranges {
        hosts.entry(host(range)).or_default().push((range.first..=range.last, *id));
    }
    let mut all = BTreeMap::new();
    for ((address, proto), mut ranges) in hosts {
        ranges.sort_by_key(|(ports, _)| ports.end() - ports.start());
        for (bits, port, id) in port_blocks::of(&ranges) {
            let key = ReverseKey { address, port: port.into(), proto, reserved: 0 };
            let bits = ReversePrefix::BEFORE_PORT + bits;
            all.insert(ReversePrefix { bits, ..ReversePrefix::of(&key) }, id);
        }
    }
    all
}

/// Lets answers be redirected to these interfaces, as elements of the map; further ones get theirs by the node's own stack.
///
/// # Errors
///
/// If the map can't be written.
pub(super) fn set_egress(maps: &OpenMaps, interfaces: impl Iterator<Item = u32>) -> Result<()> {
    let egress = maps.return_egress.as_ref().context("no map RETURN_EGRESS")?;
    let all = interfaces.chain(std::iter::repeat(0));
    for (index, interface) in (0..abi::RETURN_EGRESS).zip(all) {
        egress.put(&index, &interface)?;
    }
    Ok(())
}

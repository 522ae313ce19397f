//! `REVERSE_NAT`: the backends in mode `nat` by the source of their answers. It follows from `BACKENDS`, beside which it is
//! kept as the services' index is beside the services.
//!
//! A backend's entry is written before its source leads to it, and cleared after its source does not. A start makes
//! what a crash in between has left undone.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use lb_common::abi::{self, Backend, ReverseKey};
use lb_model::entry;

use super::maps::{self, OpenMaps};

/// The sources that the map has, by the ids of their backends.
#[derive(Debug, Default)]
pub(super) struct ReverseNat(BTreeMap<u16, ReverseKey>);

impl ReverseNat {
    /// Makes the map what `BACKENDS` says.
    ///
    /// # Errors
    ///
    /// If a map can't be read or written.
    pub(super) fn open(maps: &OpenMaps) -> Result<Self> {
        let backends = maps::backends(maps)?;
        let sources = backends.iter().filter_map(|(id, one)| Some((*id, entry::reverse_key(one)?)));
        let wanted = Self(sources.collect());
        let Some(reverse) = &maps.reverse_nat else { return Ok(Self::default()) };
        let mut stale = Vec::new();
        reverse.walk(|key, id| {
            if wanted.0.get(&(id as u16)) != Some(&key) {
                stale.push(key);
            }
        })?;
        for key in &stale {
            reverse.delete(key)?;
        }
        wanted.write_count(maps, wanted.0.len())?;
        for (id, key) in &wanted.0 {
            reverse.put(key, &u32::from(*id))?;
        }
        Ok(wanted)
    }

    /// Before the entry of backend `id` becomes `value`: its source does not lead to it any more, unless it stays.
    ///
    /// # Errors
    ///
    /// If the map can't be written.
    pub(super) fn leave(&mut self, maps: &OpenMaps, id: u16, value: &Backend) -> Result<()> {
        let Some(key) = self.0.get(&id).copied() else { return Ok(()) };
        if entry::reverse_key(value) == Some(key) {
            return Ok(());
        }
        let reverse = maps.reverse_nat.as_ref().context("no map REVERSE_NAT")?;
        // Another backend may have taken the source over.
        if reverse.get(&key)? == Some(id.into()) {
            reverse.delete(&key)?;
        }
        self.0.remove(&id);
        self.write_count(maps, self.0.len())
    }

    /// After the entry of backend `id` has become `value`: its source leads to it.
    ///
    /// # Errors
    ///
    /// If the map can't be written.
    pub(super) fn enter(&mut self, maps: &OpenMaps, id: u16, value: &Backend) -> Result<()> {
        let Some(key) = entry::reverse_key(value) else { return Ok(()) };
        if self.0.get(&id) == Some(&key) {
            return Ok(());
        }
        self.write_count(maps, self.0.len() + 1)?;
        let reverse = maps.reverse_nat.as_ref().context("no map REVERSE_NAT")?;
        reverse.put(&key, &id.into())?;
        self.0.insert(id, key);
        Ok(())
    }

    /// The program looks for answers only while there is a backend.
    fn write_count(&self, maps: &OpenMaps, count: usize) -> Result<()> {
        let counter = maps.nat_backends.as_ref().context("no map NAT_BACKENDS")?;
        Ok(counter.put(&0, &u32::try_from(count).unwrap_or(u32::MAX))?)
    }
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

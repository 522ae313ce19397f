//! The ids of services and backends: they stay while the service or backend does.
//!
//! An id is reused only when no slot and no pin names it and it has rested for two seconds, for packets that are
//! still being processed. Id 0 is never a backend: a zeroed slot must be recognisable.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_model::{backend_address::BackendAddress, desired::ServiceKey, entry, settings::Limits};

use super::{Applied, PlanInputs};

/// Hands out ids: those that are in use stay, and the lowest free one is next.
pub(super) struct Ids<'a> {
    applied: &'a Applied,
    limits: Limits,
    /// Ids of services that are desired.
    pub(super) services: BTreeMap<ServiceKey, u16>,
    /// Ids of backends that are desired.
    pub(super) backends: BTreeSet<u16>,
    /// Ids in the maps, by the key of their owner.
    known: BTreeMap<(u16, BackendAddress), u16>,
    taken_services: BTreeSet<u16>,
    next_backend: u32,
    next_service: u32,
    /// Addresses that the plan adds.
    pub(super) vips: BTreeSet<IpAddr>,
}

impl<'a> Ids<'a> {
    pub(super) fn new(inputs: &PlanInputs<'_>, applied: &'a Applied) -> Self {
        let known = applied.backends.iter().rev();
        let known = known.map(|(&id, b)| ((b.service, entry::backend_of(b)), id));
        let in_use = applied.services.values().map(|service| service.id);
        Self {
            applied,
            limits: inputs.limits,
            services: BTreeMap::new(),
            backends: BTreeSet::new(),
            known: known.collect(),
            taken_services: in_use.collect(),
            next_backend: 1,
            next_service: 0,
            vips: BTreeSet::new(),
        }
    }

    pub(super) fn of_service(&mut self, key: &ServiceKey) -> Option<u16> {
        let known = self.applied.services.get(key).map(|service| service.id);
        let id = known.or_else(|| {
            let free = (self.next_service..self.limits.services)
                .filter_map(|id| u16::try_from(id).ok())
                .find(|id| {
                    !self.taken_services.contains(id) && !self.applied.resting_services.contains(id)
                })?;
            self.next_service = u32::from(free) + 1;
            Some(free)
        })?;
        self.services.insert(*key, id);
        Some(id)
    }

    /// Whether a backend is in the maps.
    pub(super) fn has_backend(&self, service: u16, address: BackendAddress) -> bool {
        self.known.contains_key(&(service, address))
    }

    pub(super) fn of_backend(&mut self, service: u16, address: BackendAddress) -> Option<u16> {
        let known = self.known.get(&(service, address)).copied();
        let id = known.or_else(|| {
            let free = (self.next_backend..=self.limits.backends)
                .filter_map(|id| u16::try_from(id).ok())
                .find(|id| {
                    !self.applied.backends.contains_key(id)
                        && !self.applied.resting_backends.contains(id)
                })?;
            self.next_backend = u32::from(free) + 1;
            Some(free)
        })?;
        self.backends.insert(id);
        Some(id)
    }
}

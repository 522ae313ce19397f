//! The data plane, with the record of its content.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, Result};
use lb_common::abi::{Owners, Slot, stamp, udp_policy};
use lb_model::{backend_address::BackendAddress, desired::ServiceKey, entry, time::Now};
use lb_plane::{DataPlane, OwnerChange};

use super::retired::Retired;
use crate::reconcile::{Applied, OwnedSlots, Ring, RingTarget};

/// The data plane, and the content that was written to its maps or read back from them. After a failed write
/// the record is still true.
#[derive(Debug)]
pub(super) struct AppliedMaps<D> {
    pub(super) plane: D,
    pub(super) applied: Applied,
    /// The counters of backends that are gone.
    pub(super) retired: Retired,
}

impl<D: DataPlane> AppliedMaps<D> {
    /// Reads the maps. Writes none.
    pub(super) fn adopt(plane: D) -> Result<Self> {
        let mut applied = Applied {
            services: plane.services().context("read the services")?,
            backends: plane.backends().context("read the backends")?,
            rings: BTreeMap::new(),
            vips: plane.vips().context("read the VIPs")?,
            own_macs: plane.own_macs().context("read the node's MAC addresses")?,
            peer_macs: plane.peer_macs().context("read the MACs of other balancers")?,
            ..Applied::default()
        };
        for id in plane.rings().context("read the rings")? {
            let ring = plane.ring(id).with_context(|| format!("read ring {id}"))?;
            applied.rings.insert(id, summary(&ring, None));
        }
        // An id with packets to its name and no entry was released, perhaps a moment ago.
        let totals = plane.backend_totals().context("read the backends' counters")?;
        let used = totals.iter().enumerate().filter(|(_, totals)| totals.sent.packets > 0);
        applied.resting_backends = used
            .filter_map(|(id, _)| u16::try_from(id).ok())
            .filter(|id| !applied.backends.contains_key(id))
            .collect();
        Ok(Self { plane, applied, retired: Retired::default() })
    }

    pub(super) fn key_of(&self, id: u16) -> Option<ServiceKey> {
        self.applied.services.iter().find(|(_, service)| service.id == id).map(|(key, _)| *key)
    }

    /// The key of a service, and its idle timeout.
    pub(super) fn service_by_id(&self, id: u16) -> Option<(ServiceKey, u32)> {
        let mut services = self.applied.services.iter();
        let found = services.find(|(_, service)| service.id == id);
        found.map(|(key, service)| (*key, service.idle_timeout))
    }

    /// The addresses of backends by id.
    pub(super) fn address_of(&self, id: u16) -> Option<BackendAddress> {
        self.applied.backends.get(&id).map(entry::backend_of)
    }

    /// The ids of the backends that are in the maps.
    pub(super) fn ids(&self) -> Ids {
        let backends = self.applied.backends.iter().rev();
        Ids(backends
            .map(|(&id, backend)| ((backend.service, entry::backend_of(backend)), id))
            .collect())
    }

    /// The ids of a service's backends.
    pub(super) fn backend_ids(&self, service: u16) -> HashMap<BackendAddress, u16> {
        let backends = self.applied.backends.iter().rev();
        let its = backends.filter(|(_, backend)| backend.service == service);
        its.map(|(&id, backend)| (entry::backend_of(backend), id)).collect()
    }

    /// The rings of the services that track their flows, for [`super::history::off_ring`].
    pub(super) fn tracked_rings(&self) -> Result<HashMap<u16, D::Ring>> {
        let tracked = self.applied.services.values().filter(|service| {
            service.udp_policy == udp_policy::TRACKED
                && self.applied.rings.contains_key(&service.id)
        });
        // The policy of a TCP service is unused, and the type of its flows is another.
        tracked.map(|service| Ok((service.id, self.ring(service.id)?))).collect()
    }

    /// Writes other base owners into a ring.
    pub(super) fn write_bases(
        &mut self,
        id: u16,
        slots: &D::Ring,
        changes: &[(u32, Owners, Owners)],
        now: Now,
    ) -> Result<()> {
        for (index, before, after) in changes {
            if before.base == 0 && after.base != 0 {
                slots[*index as usize].touch_unpinned(stamp(now.mono_secs()));
            }
        }
        let ring = self.applied.rings.entry(id).or_default();
        // A partial write leaves the ring unknown.
        let target = ring.target.take();
        let owners: Vec<_> = changes.iter().map(|(index, _, after)| (*index, *after)).collect();
        self.plane.set_owners(id, &owners).with_context(|| format!("write ring {id}"))?;
        changes.iter().for_each(|(_, before, after)| ring.move_slot(*before, *after));
        ring.target = target;
        Ok(())
    }

    /// Gives slots of a ring other owners where they have not changed meanwhile; returns which.
    pub(super) fn replace_owners(
        &mut self,
        id: u16,
        slots: &D::Ring,
        changes: &[OwnerChange],
    ) -> Result<Vec<bool>> {
        // A partial write leaves the ring unknown.
        let target = self.applied.rings.entry(id).or_default().target.take();
        let done = self.plane.replace_owners(slots, changes);
        let done = done.with_context(|| format!("write ring {id}"))?;
        let ring = self.applied.rings.entry(id).or_default();
        for ((_, seen, after), _) in changes.iter().zip(&done).filter(|(_, done)| **done) {
            ring.move_slot(seen.owners, *after);
        }
        ring.target = target;
        Ok(done)
    }

    /// Room for pins in the data plane's map.
    pub(super) fn room_for_pins(&self) -> u32 {
        self.plane.limits().pins
    }

    /// Ids of the services for which this is so.
    pub(super) fn ids_of(&self, is: impl Fn(&ServiceKey) -> bool) -> BTreeSet<u16> {
        let services = self.applied.services.iter();
        services.filter(|(key, _)| is(key)).map(|(_, service)| service.id).collect()
    }

    /// The slots of a ring.
    pub(super) fn ring(&self, id: u16) -> Result<D::Ring> {
        self.plane.ring(id).with_context(|| format!("read ring {id}"))
    }

    /// Adds the counters of the backends that were cleared to the sums of their services.
    pub(super) fn retire(&mut self) -> Result<()> {
        self.retired.count(&self.plane)
    }
}

/// The ids of backends by service and address.
pub(super) struct Ids(BTreeMap<(u16, BackendAddress), u16>);

impl Ids {
    /// The id of a backend of a service.
    pub(super) fn of(&self, service: u16, address: BackendAddress) -> Option<u16> {
        self.0.get(&(service, address)).copied()
    }
}

/// Sums a ring up.
pub(super) fn summary(slots: &[Slot], target: Option<RingTarget>) -> Ring {
    let mut owned: Vec<OwnedSlots> = Vec::new();
    let mut ring = Ring { slots: slots.len() as u32, target, ..Ring::default() };
    for slot in slots {
        let Owners { current, base } = slot.owners();
        let most = usize::from(current.max(base));
        if most >= owned.len() {
            owned.resize(most + 1, OwnedSlots::default());
        }
        owned[usize::from(current)].current += 1;
        owned[usize::from(base)].base += 1;
        ring.in_flux += u32::from(base != 0);
        ring.pinned += u32::from(slot.pinned() != 0);
    }
    ring.owned =
        (0..).zip(owned).skip(1).filter(|(_, owned)| *owned != OwnedSlots::default()).collect();
    ring
}

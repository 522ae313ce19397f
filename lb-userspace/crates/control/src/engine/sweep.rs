//! The work of each second: slots that have become quiet, flows that have ended, backends that may
//! leave, ids that may be given anew.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet},
};

use anyhow::{Context as _, Result};
use lb_common::abi::{Owners, stamp};
use lb_model::{desired::Admin, ring, time::Now};
use lb_plane::DataPlane;
use tracing::info;

use super::{
    Engine, Swept, drain_progress::Silences, history::Role, maps::summary, starved::GivingWay,
    walk::FULL_LOOK_SECS,
};
use crate::reconcile::Ring;

impl<D: DataPlane> Engine<D> {
    /// The work of each second: ends expired flows, slots and drains.
    ///
    /// # Errors
    ///
    /// If a map could not be read or written; the next call does the rest.
    pub fn sweep(&mut self, now: Now) -> Result<Swept> {
        let mut swept = Swept::default();
        self.history.pending.end_unless_requested(now.mono_secs());
        self.history.count_freeze(&self.maps.applied.services, now);
        self.interfaces.watch(&mut self.maps.plane, self.wanted.settings.reattach);
        let pins = (self.walk.pins, &self.pin_shares);
        let is_own = |key: &_| self.history.role(key) == Role::Own;
        self.starved.check(&self.maps, pins, is_own, now)?;
        if self.has_expired_deadline(now) || self.outages.has_expired(now) {
            self.reconcile(now)?;
        }
        for id in self.maps.applied.rings.keys().copied().collect::<Vec<_>>() {
            swept.settled += self.sweep_ring(id, now)?;
        }
        let leaving = self.leaving();
        swept.settled += std::mem::take(&mut self.history.settled);
        let waits = !leaving.is_empty()
            || !self.walk.vacated.is_empty()
            || !self.maps.applied.resting_backends.is_empty()
            || !self.maps.applied.resting_services.is_empty();
        if self.walk.is_due(&self.maps, now, waits) {
            swept.expired = self.walk_flows(now)?;
        }
        self.walk.refresh(&mut self.maps, &self.history, now)?;
        let left = self.free_backends(leaving, now, &mut swept);
        self.maps.retire()?;
        left?;
        let Self { walk, history, .. } = self;
        self.drains.look(&self.maps, &self.wanted, (walk, history), now);
        self.walk.end_rests(&mut self.maps, now)?;
        // Last, so that an error before it leaves them for the next call.
        swept.interfaces = self.interfaces.take_events();
        Ok(swept)
    }

    /// Walks the flow tables; returns how many flows were deleted.
    pub(super) fn walk_flows(&mut self, now: Now) -> Result<u64> {
        self.walk.run(&mut self.maps, &mut self.history, now)
    }

    /// Whether a deadline has passed since the rings were written.
    fn has_expired_deadline(&self, now: Now) -> bool {
        let ids = LazyCell::new(|| self.maps.ids());
        self.wanted.desired().services.values().any(|service| {
            let Some(value) = self.maps.applied.services.get(&service.key) else { return false };
            let ring = self.maps.applied.rings.get(&value.id);
            let Some(target) = ring.and_then(|ring| ring.target.as_ref()) else { return false };
            service.backends.iter().any(|(address, backend)| {
                backend.admin.drains()
                    && crate::reconcile::flows_are_moved(backend, now)
                    && ids.of(value.id, *address).is_some_and(|id| target.keeping.contains(&id))
            })
        })
    }

    /// Clears the bases that are quiet and the marks of pins that have gone. In a ring that follows a
    /// peer's, slots in flux are kept fresh instead.
    fn sweep_ring(&mut self, id: u16, now: Now) -> Result<u64> {
        let silences = self.drains.forget(id);
        let Some((key, idle)) = self.maps.service_by_id(id) else { return Ok(0) };
        let role = self.history.role(&key);
        // Nothing has been idle for longer than this node has seen its packets.
        let floor = self.history.floor(&key, idle, now);
        let rested_for = |secs| floor == 0 || now.mono_secs().saturating_sub(floor) > secs;
        let rested = rested_for(idle);
        // In a ring without a slot in flux no pin is made, so no mark appears; but for a second
        // choice, and a packet that had read its slot just before that settled.
        let busy = |ring: &Ring| ring.in_flux > 0 || ring.pinned > 0;
        let look =
            self.walk.pins_expected.remove(&id) || now.mono_secs().is_multiple_of(FULL_LOOK_SECS);
        if !look && !self.maps.applied.rings.get(&id).is_some_and(busy) {
            return Ok(0);
        }
        let slots = self.maps.ring(id)?;
        let at = stamp(now.mono_secs());
        let mut last_packets = BTreeMap::new();
        // Those that were seen while another node had the packets, or shared them, mean nothing.
        let mut silences = if role == Role::Own { silences } else { Silences::default() };
        let mut changes = match role {
            Role::Shared => {
                self.history.sweep_shared(&self.maps, &self.wanted, key, &slots, (id, idle), now)
            }
            Role::Own | Role::Follows => Vec::new(),
        };
        let exports = self.history.exports_slots(&key);
        let objection = self.walk.objection_secs(self.maps.room_for_pins(), &self.history);
        let giving_way =
            self.starved.giving_way(id, &self.maps, &self.wanted).filter(|_| role == Role::Own);
        let mut give_way = 0;
        for (index, slot) in (0..).zip(slots.iter()) {
            let seen = slot.snapshot();
            let Owners { current, base } = seen.owners;
            if base != 0 {
                let at = now.mono_secs().saturating_sub(ring::age(at, seen.unpinned)).max(floor);
                let last = last_packets.entry(base).or_insert(at);
                *last = at.max(*last);
            }
            if role == Role::Own && base != 0 && !ring::is_quiet(seen, at, idle) {
                silences.look(index, seen.unpinned);
            } else {
                silences.skip(index);
            }
            if role == Role::Follows {
                if base != 0 && ring::is_quiet(seen, at, idle / 2) {
                    slot.touch_unpinned(at);
                }
                // The marks of pins stay: those that live are refreshed when their turn comes, and
                // after a takeover the others go as they do everywhere.
            } else if role == Role::Shared {
                // Pins are kept for longer than they live, as another node may use them; as long, they are looked for.
                if rested_for(idle + objection) {
                    let _ = ring::settle_pinned(slot, at, idle + objection);
                }
            } else {
                let gives_way = giving_way.as_ref().is_some_and(|these| these.names(seen, at));
                // One that is its own base owner was about to settle.
                let is_quiet = base != 0 && (base == current || ring::is_quiet(seen, at, idle));
                let settles = gives_way || rested && is_quiet;
                give_way += usize::from(gives_way);
                if exports {
                    self.history.settling(key).look(index, settles);
                } else if settles {
                    changes.push((index, seen, Owners { current, base: 0 }));
                }
                if rested {
                    let _ = ring::settle_pinned(slot, at, idle);
                }
            }
        }
        if last_packets.is_empty() {
            silences.rest();
        }
        self.drains.record(id, last_packets, silences);
        if let Some(GivingWay { all, .. }) = giving_way {
            self.starved.log(id, &self.wanted.name_of(&key), give_way, all);
        }
        let context = || format!("write ring {id}");
        let done = self.maps.plane.replace_owners(&slots, &changes).with_context(context)?;
        let ring = self.maps.applied.rings.entry(id).or_default();
        *ring = summary(&slots, ring.target.take());
        let settled = changes.iter().zip(done).filter(|((.., to), done)| *done && to.base == 0);
        let settled = settled.count();
        if settled > 0 {
            info!(ring = id, slots = settled, in_flux = ring.in_flux, "slots settled");
        }
        Ok(settled as u64)
    }

    /// The backends in `removing` that own no slot, here or at the peer that is followed.
    fn leaving(&self) -> BTreeSet<u16> {
        let mut leaving = BTreeSet::new();
        let ids = LazyCell::new(|| self.maps.ids());
        for service in self.wanted.desired().services.values() {
            let Some(value) = self.maps.applied.services.get(&service.key) else { continue };
            let Some(ring) = self.maps.applied.rings.get(&value.id) else { continue };
            let removing =
                service.backends.iter().filter(|(_, b)| matches!(b.admin, Admin::Removing { .. }));
            let follows = self.history.role(&service.key) == Role::Follows;
            let removing = removing
                .filter(|(address, _)| !follows || !self.history.names(&service.key, **address));
            let removing = removing.filter_map(|(address, _)| ids.of(value.id, *address));
            leaving.extend(removing.filter(|id| !ring.owned.contains_key(id)));
        }
        leaving
    }

    /// Frees the backends that own no slot since the last sweep, and have no flow by a walk that
    /// started after it; reports those and the ones that have left before.
    fn free_backends(&mut self, leaving: BTreeSet<u16>, now: Now, swept: &mut Swept) -> Result<()> {
        let walked = self.walk.started == Some(now.mono_secs());
        let ready: Vec<_> = leaving.intersection(&self.walk.leaving).copied().collect();
        for id in ready {
            if walked && !self.walk.per_backend.contains_key(&id) {
                self.clear_backend(id, now)?;
            }
        }
        self.walk.leaving = leaving;
        let ids = LazyCell::new(|| self.maps.ids());
        for (name, service) in &self.wanted.desired().services {
            let Some(value) = self.maps.applied.services.get(&service.key) else { continue };
            for (address, backend) in &service.backends {
                let removing = matches!(backend.admin, Admin::Removing { .. });
                if removing && ids.of(value.id, *address).is_none() {
                    swept.removed.push((name.clone(), *address));
                }
            }
        }
        Ok(())
    }
}

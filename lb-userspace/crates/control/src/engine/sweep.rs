//! The work of each second: slots that have become quiet, flows that have ended, backends that may
//! leave, ids that may be given anew.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet},
};

use anyhow::{Context as _, Result};
use lb_common::abi::{Owners, Slot, SlotSnapshot, stamp};
use lb_model::{desired::Admin, ring, time::Now};
use lb_plane::{DataPlane, OwnerChange};
use tracing::info;

use super::{
    Engine, Swept,
    drain_progress::{Seen, Silences},
    history::Role,
    maps::summary,
    starved::GivingWay,
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
        self.nat_connections.count(&mut self.maps, &self.wanted, now)?;
        self.local_connections.count(&self.maps, &self.wanted, now);
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
        let Self { walk, history, nat_connections, local_connections, .. } = self;
        let seen = Seen { walk, history, connections: nat_connections, local: local_connections };
        self.drains.update(&self.maps, &self.wanted, seen, now);
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
        if !self.needs_sweep(id, now) {
            return Ok(0);
        }
        let role = self.history.role(&key);
        let slots = self.maps.ring(id)?;
        let sweep = RingSweep::new(idle, self.history.floor(&key, idle, now), now);
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
            sweep.record_last_packet(seen, &mut last_packets);
            match role {
                Role::Own => {
                    sweep.record_silence(index, seen, &mut silences);
                    let gives_way =
                        giving_way.as_ref().is_some_and(|these| these.names(seen, sweep.stamp));
                    give_way += usize::from(gives_way);
                    let settles = gives_way || sweep.is_settled(seen);
                    if exports {
                        self.history.settling(key).record(index, settles);
                    } else if settles {
                        let Owners { current, .. } = seen.owners;
                        changes.push((index, seen, Owners { current, base: 0 }));
                    }
                    sweep.clear_old_pins(slot, 0);
                }
                Role::Follows => sweep.keep_fresh(slot, seen),
                // As another node may use them, pins are kept for longer than they live, and so are their marks.
                Role::Shared => sweep.clear_old_pins(slot, objection),
            }
        }
        if last_packets.is_empty() {
            silences.rest();
        }
        self.drains.record(id, last_packets, silences);
        if let Some(GivingWay { all, .. }) = giving_way {
            self.starved.log(id, &self.wanted.name_of(&key), give_way, all);
        }
        self.write_settled(id, &slots, &changes)
    }

    /// Whether a ring is to be swept: it has slots in flux or marks of pins, as far as is known.
    fn needs_sweep(&mut self, id: u16, now: Now) -> bool {
        // In a ring without a slot in flux no pin is made, so no mark appears; but for a second
        // choice, and a packet that had read its slot just before that settled.
        let busy = |ring: &Ring| ring.in_flux > 0 || ring.pinned > 0;
        let look =
            self.walk.pins_expected.remove(&id) || now.mono_secs().is_multiple_of(FULL_LOOK_SECS);
        look || self.maps.applied.rings.get(&id).is_some_and(busy)
    }

    /// Writes what a sweep has found, and sums the ring up again; returns how many slots have settled.
    fn write_settled(&mut self, id: u16, slots: &D::Ring, changes: &[OwnerChange]) -> Result<u64> {
        let context = || format!("write ring {id}");
        let done = self.maps.plane.replace_owners(slots, changes).with_context(context)?;
        let ring = self.maps.applied.rings.entry(id).or_default();
        *ring = summary(slots, ring.target.take());
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
            let is_left = |id: &u16| self.local_connections.of(*id) == 0;
            leaving.extend(removing.filter(|id| !ring.owned.contains_key(id) && is_left(id)));
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

/// The times by which a sweep judges the slots of a ring.
struct RingSweep {
    idle: u32,
    /// The second before which this node has not seen the service's packets: nothing has been idle for longer.
    floor: u32,
    secs: u32,
    /// The time as slots have it.
    stamp: u16,
}

impl RingSweep {
    fn new(idle: u32, floor: u32, now: Now) -> Self {
        let secs = now.mono_secs();
        Self { idle, floor, secs, stamp: stamp(secs) }
    }

    /// Whether this node has seen the packets for longer than so many seconds.
    fn has_rested(&self, secs: u32) -> bool {
        self.floor == 0 || self.secs.saturating_sub(self.floor) > secs
    }

    /// Notes the second of the last packet without a pin that a base owner got.
    fn record_last_packet(&self, seen: SlotSnapshot, last_packets: &mut BTreeMap<u16, u32>) {
        let base = seen.owners.base;
        if base != 0 {
            let at = self.secs.saturating_sub(ring::age(self.stamp, seen.unpinned)).max(self.floor);
            let last = last_packets.entry(base).or_insert(at);
            *last = at.max(*last);
        }
    }

    /// Notes the stamp of a slot in flux that is in use, by which silences are measured.
    fn record_silence(&self, index: u32, seen: SlotSnapshot, silences: &mut Silences) {
        if seen.owners.base != 0 && !ring::is_quiet(seen, self.stamp, self.idle) {
            silences.record(index, seen.unpinned);
        } else {
            silences.skip(index);
        }
    }

    /// Whether a slot of a ring of this node alone settles.
    fn is_settled(&self, seen: SlotSnapshot) -> bool {
        let Owners { current, base } = seen.owners;
        // One that is its own base owner was about to settle.
        let is_quiet =
            base != 0 && (base == current || ring::is_quiet(seen, self.stamp, self.idle));
        self.has_rested(self.idle) && is_quiet
    }

    /// Clears the mark of a slot's pins if no pin was used for the idle timeout and so much longer.
    fn clear_old_pins(&self, slot: &Slot, longer: u32) {
        if self.has_rested(self.idle + longer) {
            let _ = ring::settle_pinned(slot, self.stamp, self.idle + longer);
        }
    }

    /// Keeps a slot of a ring that follows a peer's in flux. The marks of pins stay: those that live are refreshed when
    /// their turn comes, and after a takeover the others go as they do everywhere.
    fn keep_fresh(&self, slot: &Slot, seen: SlotSnapshot) {
        if seen.owners.base != 0 && ring::is_quiet(seen, self.stamp, self.idle / 2) {
            slot.touch_unpinned(self.stamp);
        }
    }
}

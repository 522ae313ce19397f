//! The writes of a plan, and of rings.

use anyhow::{Context as _, Result};
use lb_common::abi::{self, Owners, Slot, stamp};
use lb_model::{entry, maglev, ring, time::Now, units::counted};
use lb_plane::DataPlane;
use tracing::info;
use zerocopy::FromZeros as _;

use super::{
    Engine, Outcome,
    history::{Followed, Role},
    maps::{AppliedMaps, summary},
};
use crate::reconcile::{MapWrite, Ring, RingTarget};

impl<D: DataPlane> Engine<D> {
    pub(super) fn apply(&mut self, write: MapWrite, now: Now, outcome: &mut Outcome) -> Result<()> {
        let AppliedMaps { plane, applied, .. } = &mut self.maps;
        match write {
            MapWrite::SetOwnMacs(macs) => {
                plane.set_own_macs(&macs).context("write the node's MAC addresses")?;
                applied.own_macs = macs;
            }
            MapWrite::SetPeerMacs(peers) => {
                plane.set_peer_macs(&peers).context("write the MACs of other balancers")?;
                applied.peer_macs = peers;
            }
            MapWrite::PutBackend(id, value) => {
                let context = || format!("write backend {id}");
                if !applied.backends.contains_key(&id) {
                    plane.reset_backend_totals(id).with_context(context)?;
                }
                plane.put_backend(id, &value).with_context(context)?;
                let (service, address) = (value.service, entry::backend_of(&value));
                if applied.backends.insert(id, *value).is_none()
                    && let Some(key) = self.maps.key_of(service)
                {
                    self.history.backend_added(key, address);
                }
            }
            MapWrite::PublishRing(id, target) => {
                return self.publish_rings(vec![(id, target)], now, outcome);
            }
            MapWrite::RetargetRing(id, target) => {
                // It counts only if it writes.
                return self.retarget_ring(id, target, now, outcome);
            }
            MapWrite::PutVip(vip) => {
                plane.put_vip(vip).with_context(|| format!("write VIP {vip}"))?;
                applied.vips.insert(vip);
            }
            MapWrite::PutService(key, value) => {
                let context = || format!("write service {key}");
                let known = applied.services.get(&key);
                if known.is_none_or(|known| known.syn_budget != value.syn_budget) {
                    plane.reset_syn_budget(value.id).with_context(context)?;
                }
                plane.put_service(&key, &value).with_context(context)?;
                applied.services.insert(key, *value);
            }
            MapWrite::DeleteService(key) => {
                plane.delete_service(&key).with_context(|| format!("delete service {key}"))?;
                if let Some(value) = applied.services.remove(&key) {
                    applied.resting_services.insert(value.id);
                    self.walk.release_service(value.id, now);
                    self.maps.retired.forget(&key);
                    self.history.remove_service(&key, value.id);
                }
            }
            MapWrite::DeleteVip(vip) => {
                plane.delete_vip(vip).with_context(|| format!("delete VIP {vip}"))?;
                applied.vips.remove(&vip);
            }
            MapWrite::DeleteRing(id) => {
                plane.delete_ring(id).with_context(|| format!("delete ring {id}"))?;
                applied.rings.remove(&id);
            }
            MapWrite::ClearBackend(id) => self.clear_backend(id, now)?,
        }
        outcome.changes += 1;
        Ok(())
    }

    /// Frees a backend's entry; its id rests until nothing can name it.
    pub(super) fn clear_backend(&mut self, id: u16, now: Now) -> Result<()> {
        let context = || format!("clear backend {id}");
        self.maps.plane.put_backend(id, &abi::Backend::new_zeroed()).with_context(context)?;
        if let Some(entry) = self.maps.applied.backends.remove(&id)
            && let Some(key) = self.maps.key_of(entry.service)
        {
            self.maps.retired.clear(key, id);
        }
        self.maps.applied.resting_backends.insert(id);
        self.walk.release_backend(id, now);
        Ok(())
    }

    pub(super) fn publish_rings(
        &mut self,
        targets: Vec<(u16, RingTarget)>,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let owners = |target: &RingTarget| -> Vec<_> {
            let table = table(target, &self.wanted.settings.seed);
            let owner = |slot| Owners { current: owner(target, &table, slot), base: 0 };
            (0..target.slots as usize).map(owner).collect()
        };
        let rings: Vec<_> = targets.iter().map(|(id, target)| (*id, owners(target))).collect();
        self.maps.plane.publish_rings(&rings).with_context(|| match &rings[..] {
            [(_, owners)] => format!("publish a ring of {} slots", owners.len()),
            _ => format!("publish {}", counted(rings.len(), "ring")),
        })?;
        for ((id, target), (_, owners)) in targets.into_iter().zip(rings) {
            if let Some(old) = self.maps.applied.rings.get(&id) {
                let (from, to) = (old.slots, target.slots);
                info!(ring = id, from, to, "ring resized; its flows move");
            }
            outcome.changes += 1;
            outcome.slots_moved += owners.len() as u64;
            let slots: Vec<_> = owners.into_iter().map(Slot::new).collect();
            self.record_ring(id, summary(&slots, Some(target)), now);
            if let Some(key) = self.maps.key_of(id) {
                self.history.pending.add_ring(key);
                self.history.expect_off_ring(&self.maps, &key);
            }
        }
        Ok(())
    }

    /// Brings a ring to its target, by [`ring::step`] from its present owners: here, or at the peer that the
    /// service follows.
    pub(super) fn retarget_ring(
        &mut self,
        id: u16,
        target: RingTarget,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let context = || format!("write ring {id}");
        let slots = self.maps.plane.ring(id).with_context(context)?;
        let table = table(&target, &self.wanted.settings.seed);
        let followed = self.history.followed(&self.maps, &self.wanted, id, &target);
        let peer = followed.as_ref().map(Followed::owners);
        let key = self.maps.key_of(id);
        let is_shared =
            target.bases && key.is_some_and(|key| self.history.role(&key) == Role::Shared);
        let mut keeping = vec![false; usize::from(u16::MAX) + 1];
        let bases = target.keeping.iter().filter(|_| target.bases);
        bases.for_each(|&id| keeping[usize::from(id)] = true);
        let mut changes = Vec::new();
        let mut moved = 0;
        for (index, slot) in slots.iter().enumerate() {
            let before = slot.owners();
            let own = owner(&target, &table, index);
            let from = match (&peer, key) {
                (Some(peer), _) => peer.of(index, own),
                (None, Some(key)) if before.base == before.current && own != before.current => {
                    self.history.sharing.reopen(&key, (&slots, index), now)
                }
                (None, _) => before,
            };
            let keeps = |id: u16| keeping[usize::from(id)];
            let after = match is_shared {
                true => ring::step_shared(from, own, keeps),
                false => ring::step(from, own, keeps),
            };
            if before == after {
                continue;
            }
            if let Some(key) = key.filter(|_| is_shared && after.base == after.current) {
                self.history.sharing.delay_settling(&key, (&slots, index), now);
            }
            if before.base == 0 && after.base != 0 {
                // The wait for a quiet slot starts at its change.
                slot.touch_unpinned(stamp(now.mono_secs()));
            }
            moved += u64::from(before.current != after.current);
            changes.push((index as u32, after));
        }
        let members = |target: &RingTarget| target.members.clone();
        let was =
            self.maps.applied.rings.get(&id).and_then(|ring| ring.target.as_ref()).map(members);
        let other_owners = was.as_ref() != Some(&target.members);
        if !changes.is_empty() {
            let ring = self.maps.applied.rings.entry(id).or_default();
            // A partial write leaves the ring unknown.
            ring.target = None;
            self.maps.plane.set_owners(id, &changes).with_context(context)?;
            let service = self.maps.key_of(id).map(tracing::field::display);
            info!(service, slots_changed = changes.len(), slots_moved = moved, "ring updated");
            outcome.changes += 1;
            outcome.slots_moved += moved;
        }
        self.record_ring(id, summary(&slots, Some(target)), now);
        match self.maps.key_of(id) {
            Some(key) if other_owners => {
                self.history.pending.add_ring(key);
                self.history.expect_off_ring(&self.maps, &key);
            }
            Some(key) => {
                let slots = changes.iter().map(|(slot, _)| *slot);
                self.history.pending.add_slots(key, slots);
            }
            None => {}
        }
        Ok(())
    }

    /// Records the new content of a ring, and which backends get no new flows by it.
    fn record_ring(&mut self, id: u16, ring: Ring, now: Now) {
        let gets_flows =
            |ring: &Ring, id| ring.owned.get(id).is_some_and(|owned| owned.current > 0);
        if let Some(old) = self.maps.applied.rings.get(&id) {
            let got = old.owned.keys().filter(|id| gets_flows(old, id));
            got.filter(|id| !gets_flows(&ring, id))
                .for_each(|&id| self.walk.vacate_backend(id, now));
        }
        self.maps.applied.rings.insert(id, ring);
    }
}

pub(super) fn table(target: &RingTarget, seed: &[u8; 16]) -> Vec<u16> {
    let members: Vec<_> = target.members.iter().map(|(member, _)| *member).collect();
    maglev::table(&members, seed, target.slots)
}

pub(super) fn owner(target: &RingTarget, table: &[u16], slot: usize) -> u16 {
    table.get(slot).map_or(0, |&index| target.members[usize::from(index)].1)
}

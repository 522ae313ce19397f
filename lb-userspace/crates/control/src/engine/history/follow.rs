//! Following: this node's rings are made of those of the peer that their services follow.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, Result};
use lb_common::abi::Owners;
use lb_model::{
    backend_address::BackendAddress, desired::ServiceKey, flow::FlowTable, ring, time::Now,
};
use lb_plane::DataPlane;

use super::{History, PeerOwners, PeerRing, Role};
use crate::{
    engine::{maps::AppliedMaps, wanted::Wanted},
    reconcile::RingTarget,
};

impl History {
    /// The owners that the slots of a ring have at the peer which its service follows, for
    /// `Engine::retarget_ring`; none if it is not known, or this node's own ring counts.
    pub(in crate::engine) fn followed<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        wanted: &Wanted,
        id: u16,
        target: &RingTarget,
    ) -> Option<Followed> {
        let key = maps.key_of(id)?;
        if self.role(&key) != Role::Follows {
            return None;
        }
        let seed = wanted.settings.seed;
        let ids = maps.backend_ids(id);
        let mirror = self.mirrors.get_mut(&key)?;
        let ring = mirror.ring.as_ref().filter(|ring| ring.slots == target.slots)?;
        let table = if is_same(ring, target) {
            mirror.table = None;
            None
        } else {
            Some(mirror.table.get_or_insert_with(|| ring.table(&seed)).clone())
        };
        Some(Followed { ring: ring.clone(), table, ids })
    }

    /// Writes the base owners that the peer has, into some slots.
    pub(super) fn apply_peer_bases<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        wanted: &Wanted,
        key: ServiceKey,
        slots: &BTreeSet<u32>,
        now: Now,
    ) -> Result<()> {
        let Some(id) = maps.applied.services.get(&key).map(|service| service.id) else {
            return Ok(());
        };
        if self.role(&key) != Role::Follows {
            return Ok(());
        }
        let Some(there) = maps.applied.rings.get(&id) else { return Ok(()) };
        let Some(target) = there.target.clone() else { return Ok(()) };
        let Some(followed) = self.followed(maps, wanted, id, &target) else { return Ok(()) };
        let peer = followed.owners();
        let keeps = |id| target.bases && target.keeping.contains(&id);
        let here = maps.ring(id)?;
        let mut changes = Vec::new();
        for &index in slots {
            let Some(slot) = here.get(index as usize) else { continue };
            let before = slot.owners();
            let own = before.current;
            let after = ring::step(peer.of(index as usize, own), own, keeps);
            if before != after {
                changes.push((index, before, after));
            }
        }
        maps.write_bases(id, &here, &changes, now)
    }

    /// Sends flows without a pin where a peer sends them: for a node that joins, or was away for so long that
    /// the others have ended changes without it.
    pub(super) fn join_peer_ring<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        wanted: &Wanted,
        key: ServiceKey,
        id: u16,
        now: Now,
    ) -> Result<()> {
        let seed = wanted.settings.seed;
        let ids = maps.backend_ids(id);
        let Some(there) = maps.applied.rings.get(&id) else { return Ok(()) };
        let Some(target) = there.target.clone() else { return Ok(()) };
        let Some(mirror) = self.mirrors.get(&key) else { return Ok(()) };
        let Some(ring) = &mirror.ring else { return Ok(()) };
        let table = if is_same(ring, &target) { None } else { Some(ring.table(&seed)) };
        let peer = ring.in_ids(table.as_deref(), &ids);
        let keeps = |id| target.bases && target.keeping.contains(&id);
        let here = maps.ring(id)?;
        let mut changes = Vec::new();
        for (index, slot) in here.iter().enumerate() {
            let before = slot.owners();
            if self.sharing.has_unpinned(&key, (index as u32, slot), now.mono_secs()) {
                continue;
            }
            let peer = peer.of(index, before.current);
            let unpinned = if peer.base == 0 { peer.current } else { peer.base };
            let after = match before.base {
                0 => ring::step(peer, before.current, keeps),
                _ => Owners { base: unpinned, ..before },
            };
            let is_known = after.base == after.current || keeps(after.base);
            if after.base != 0 && after.base != before.base && is_known {
                changes.push((index as u32, before, after));
            }
        }
        maps.write_bases(id, &here, &changes, now)
    }

    /// Deletes the flows of a service that the full history which has ended has not named.
    pub(super) fn end_unnamed<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        key: ServiceKey,
    ) -> Result<()> {
        let Some(id) = maps.applied.services.get(&key).map(|service| service.id) else {
            return Ok(());
        };
        let Some(named) = self.mirrors.get_mut(&key).and_then(|m| m.named.take()) else {
            return Ok(());
        };
        if self.role(&key) != Role::Follows {
            return Ok(());
        }
        let mut unnamed = Vec::new();
        for table in FlowTable::ALL {
            maps.plane
                .flows(table, &mut |flow, value| {
                    if flow.service() == id && !named.contains(&flow) {
                        unnamed.push((flow, value));
                    }
                })
                .context("walk the flows")?;
        }
        for (flow, value) in unnamed {
            maps.plane.delete_flow(&flow, value).context("delete a flow")?;
        }
        Ok(())
    }
}

/// The ring of the peer that a service follows.
#[derive(Debug)]
pub(in crate::engine) struct Followed {
    ring: PeerRing,
    /// Its owners for new flows, if they differ from this node's.
    table: Option<Vec<u16>>,
    ids: HashMap<BackendAddress, u16>,
}

impl Followed {
    /// The owners of its slots.
    pub(in crate::engine) fn owners(&self) -> PeerOwners<'_> {
        self.ring.in_ids(self.table.as_deref(), &self.ids)
    }
}

/// Whether a peer's ring has the same owners for new flows as this node's.
fn is_same(ring: &PeerRing, target: &RingTarget) -> bool {
    let members = target.members.iter().map(|(member, _)| (member.address, member.weight));
    ring.slots == target.slots && members.eq(ring.members.iter().copied())
}

//! Import: the records that this node takes from a peer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use lb_common::abi::{FlowValue, Owners, Service, Slot, stamp};
use lb_datapath::{Added, DataPlane};
use lb_model::{
    desired::ServiceKey,
    entry,
    flow::{FlowRef, FlowTable, is_embryonic, kept_secs, slot_of_flow},
    ring,
    time::Now,
};
use lb_sync::{
    Record,
    record::{Base, Flow, Pin},
};
use tracing::trace;

use super::{Mirror, PeerOwners, PeerRing, Role, from_flow};
use crate::{
    engine::{Engine, Outcome},
    reconcile::Target,
};

/// Flows that a full history may name, beyond what all tables hold: more can't be of use.
const MOST_NAMED: usize = 1 << 20;

/// Backends of a service that are remembered as unknown: as many as there can be.
const MOST_UNKNOWN: usize = 1 << 16;

/// The results of one call of [`Engine::import`].
#[derive(Debug, Default)]
struct ImportReport {
    /// Records that can't be taken, as messages.
    errors: BTreeSet<String>,
    /// Services whose rings have arrived whole.
    rings: BTreeSet<ServiceKey>,
    /// Slots of others that have another base owner.
    slots: BTreeMap<ServiceKey, BTreeSet<u32>>,
    /// Services whose full history has arrived.
    complete: BTreeSet<ServiceKey>,
    /// Services with records that were not taken.
    missed: BTreeSet<ServiceKey>,
    failed: Option<anyhow::Error>,
}

impl ImportReport {
    fn note(&mut self, done: Result<()>) {
        if let Err(error) = done {
            self.failed.get_or_insert(error);
        }
    }

    /// As [`Self::note`], for a record that is lost if it was not taken.
    fn miss(&mut self, service: ServiceKey, done: Result<()>) {
        if done.is_err() {
            self.missed.insert(service);
        }
        self.note(done);
    }
}

impl<D: DataPlane> Engine<D> {
    /// Imports a peer's history of services that follow it or share it. The errors are returned once each,
    /// as `web: backend 10.0.0.13 is not known here`.
    ///
    /// Of a service whose history is this node's own, only pins of unknown flows are taken: a predecessor
    /// has sent them late, or another node that is Active at the same time. The caller decides whether to
    /// import from such a node.
    ///
    /// # Errors
    ///
    /// A map can't be written. All that could be taken was; the next reconciliation writes the rings,
    /// and [`Self::take_rejected`] has the services that lack other records.
    pub fn import(&mut self, records: Vec<Record>, now: Now) -> Result<Vec<String>> {
        trace!("import {records:?}");
        let mut report = ImportReport::default();
        let mut ids = BTreeMap::new();
        for record in records {
            let key = record.service();
            let is_own = self.history.role(&key) == Role::Own;
            if is_own && !matches!(record, Record::Pins { .. }) {
                continue;
            }
            let service = self.applied.services.get(&key).copied();
            let Some(service) = service else {
                if is_own {
                    continue;
                }
                report.errors.insert(format!("{key}: there is no such service here"));
                continue;
            };
            let ids = Arc::clone(
                ids.entry(service.id).or_insert_with(|| Arc::new(self.backend_ids(service.id))),
            );
            match record {
                // A service that is shared has the members by `Sharers`.
                Record::Ring { slots: 0, .. } => {}
                Record::Ring { slots, members, digest, .. } => {
                    self.import_ring(key, PeerRing::new(slots, members, digest), &ids, &mut report);
                }
                Record::Bases { bases, .. } => {
                    self.history.sharing.receive(&key, &bases, service.slots, now.mono_secs());
                    self.import_bases(key, &bases, &ids, &mut report);
                }
                Record::Pins { pins, .. } => {
                    let done = self.import_pins(key, &service, &pins, &ids, now, &mut report);
                    report.miss(key, done);
                }
                Record::Ended { flows, .. } => {
                    self.import_ends(key, &service, &flows, now, &mut report);
                }
            }
        }
        for key in std::mem::take(&mut report.rings) {
            report.slots.remove(&key);
            let done = self.take_peer_ring(key, now, &mut report);
            report.note(done);
        }
        for (key, slots) in std::mem::take(&mut report.slots) {
            let done = self.take_peer_bases(key, &slots, now);
            report.note(done);
        }
        for key in std::mem::take(&mut report.complete) {
            let done = self.end_unnamed(key);
            report.note(done);
        }
        self.history.rejected.append(&mut report.missed);
        if let Some(error) = report.failed {
            // The next call that finds the other errors returns them.
            return Err(error);
        }
        let known = &mut self.history.errors;
        let errors = report.errors.into_iter();
        Ok(errors.filter(|error| known.insert(error.clone())).collect())
    }

    /// The services with records that [`Self::import`] has rejected since the last call: a write has failed,
    /// there was no room, or a ring was wrong. Peers must send their full histories again
    /// before this node has all of them.
    ///
    /// An unknown backend does not count: its flows have no place here however often they are sent, until
    /// it is [known](Self::take_newly_known).
    pub fn take_rejected(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.history.rejected)
    }

    /// The services with a backend that was written since the last call, and to which a peer had sent pins
    /// before: an operator adds it to one node first. Peers must send their full histories again.
    pub fn take_newly_known(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.history.newly_known)
    }

    /// The ids of a service's backends.
    pub(in crate::engine) fn backend_ids(&self, service: u16) -> HashMap<IpAddr, u16> {
        let backends = self.applied.backends.iter().rev();
        let its = backends.filter(|(_, backend)| backend.service == service);
        its.map(|(&id, backend)| (entry::ip_of(backend.address), id)).collect()
    }

    fn report_unknown(
        &self,
        key: &ServiceKey,
        backends: impl IntoIterator<Item = IpAddr>,
        ids: &HashMap<IpAddr, u16>,
        report: &mut ImportReport,
    ) {
        let unknown: BTreeSet<_> =
            backends.into_iter().filter(|backend| !ids.contains_key(backend)).collect();
        for backend in unknown {
            let name = self.name_of(key);
            report.errors.insert(format!("{name}: backend {backend} is not known here"));
        }
    }

    fn import_ring(
        &mut self,
        key: ServiceKey,
        received: Option<PeerRing>,
        ids: &HashMap<IpAddr, u16>,
        report: &mut ImportReport,
    ) {
        if let Some(received) = &received {
            self.report_unknown(&key, received.named(), ids, report);
        } else {
            let name = self.name_of(&key);
            report.errors.insert(format!("{name}: the peer has sent an impossible ring"));
        }
        self.history.mirrors.entry(key).or_default().next = received;
    }

    fn import_bases(
        &mut self,
        key: ServiceKey,
        bases: &[Base],
        ids: &HashMap<IpAddr, u16>,
        report: &mut ImportReport,
    ) {
        self.report_unknown(&key, bases.iter().filter_map(|base| base.backend), ids, report);
        let Some(mirror) = self.history.mirrors.get_mut(&key) else { return };
        let Mirror { ring, next, .. } = mirror;
        match (next, ring) {
            (Some(next), _) => {
                for base in bases {
                    next.set_base(base);
                }
            }
            (None, Some(ring)) => {
                let slots = report.slots.entry(key).or_default();
                slots.extend(bases.iter().filter(|base| ring.set_base(base)).map(|base| base.slot));
            }
            // Without a ring the base owners mean nothing.
            (None, None) => {}
        }
    }

    fn import_pins(
        &mut self,
        key: ServiceKey,
        service: &Service,
        pins: &[Pin],
        ids: &HashMap<IpAddr, u16>,
        now: Now,
        report: &mut ImportReport,
    ) -> Result<()> {
        self.report_unknown(&key, pins.iter().map(|pin| pin.backend), ids, report);
        let slots = match self.applied.rings.contains_key(&service.id) {
            true => Some(self.data_plane.ring(service.id).context("read a ring")?),
            false => None,
        };
        let mut full = 0;
        for pin in pins {
            match self.import_pin(key, service, slots.as_deref(), pin, ids, now) {
                Ok(taken) => full += usize::from(!taken),
                // The others may well be taken.
                Err(error) => report.miss(key, Err(error)),
            }
        }
        if full > 0 {
            report.missed.insert(key);
            report.errors.insert(format!(
                "{}: no room for all pins of the peer; raise `pins` under [limits] and restart lbd",
                self.name_of(&key)
            ));
        }
        Ok(())
    }

    /// Takes one pin; false if there is no room for it.
    fn import_pin(
        &mut self,
        key: ServiceKey,
        service: &Service,
        slots: Option<&[Slot]>,
        pin: &Pin,
        ids: &HashMap<IpAddr, u16>,
        now: Now,
    ) -> Result<bool> {
        let Some(&backend) = ids.get(&pin.backend) else {
            let unknown_backends = self.history.unknown_backends.entry(key).or_default();
            if unknown_backends.len() < MOST_UNKNOWN {
                unknown_backends.insert(pin.backend);
            }
            return Ok(true);
        };
        let role = self.history.role(&key);
        let flow = from_flow(&pin.flow, service.id);
        let idle = u32::try_from(pin.idle.as_secs()).unwrap_or(u32::MAX);
        let seen = match role {
            Role::Follows => now.mono_secs(),
            Role::Own | Role::Shared => now.mono_secs().saturating_sub(idle),
        };
        let mut value = FlowValue { backend, flags: pin.flags, seen };
        if role == Role::Shared
            && let Some(own) = self.data_plane.flow_value(&flow).context("read a flow")?
        {
            value = self.merged(own, value);
            if value == own {
                return Ok(true);
            }
        }
        if let FlowRef::Pin(pinned) = &flow {
            // The stamp first: the program looks for a pin only in a slot that has one.
            let slot = slot_of_flow(service, pinned) as usize;
            let slot = slots.and_then(|slots| slots.get(slot));
            slot.into_iter().for_each(|slot| slot.touch_pinned(stamp(now.mono_secs())));
            self.walk.expect_pins(service.id);
        }
        if role == Role::Own {
            let added = self.data_plane.put_new_flow(&flow, value).context("write a flow")?;
            if added == Added::Yes {
                // The program has not noted it, and the peers that follow this node must have it.
                self.history.pending.flow(flow);
            }
            return Ok(added != Added::NoRoom);
        }
        let taken = self.data_plane.put_flow(&flow, value).context("write a flow")?;
        let mirror = self.history.mirrors.entry(key).or_default();
        if let Some(named) = &mut mirror.named {
            named.insert(flow);
            if named.len() > MOST_NAMED {
                mirror.named = None;
            }
        }
        Ok(taken)
    }

    /// Merges a flow that two nodes have: the one that has seen a packet later decides its backend, and on a
    /// tie the lower address, so that both nodes choose the same.
    fn merged(&self, own: FlowValue, received: FlowValue) -> FlowValue {
        let seen = own.seen.max(received.seen);
        if own.backend == received.backend {
            return FlowValue { flags: own.flags | received.flags, seen, ..own };
        }
        let rank =
            |value: FlowValue| (value.seen, std::cmp::Reverse(self.address_of(value.backend)));
        if rank(received) > rank(own) { received } else { own }
    }

    fn import_ends(
        &mut self,
        key: ServiceKey,
        service: &Service,
        flows: &[Flow],
        now: Now,
        report: &mut ImportReport,
    ) {
        for flow in flows {
            if flow.ends_a_ring() {
                let mirror = self.history.mirrors.entry(key).or_default();
                if mirror.next.is_some() {
                    self.check_peer_ring(key, report);
                }
            } else if flow.ends_a_history() {
                report.complete.insert(key);
            } else {
                let done = self.import_end(key, service, from_flow(flow, service.id), now);
                report.miss(key, done);
            }
        }
    }

    fn import_end(
        &mut self,
        key: ServiceKey,
        service: &Service,
        flow: FlowRef,
        now: Now,
    ) -> Result<()> {
        if let Some(named) = self.history.mirrors.get_mut(&key).and_then(|m| m.named.as_mut()) {
            named.remove(&flow);
        }
        let Some(value) = self.data_plane.flow_value(&flow).context("read a flow")? else {
            return Ok(());
        };
        if self.history.role(&key) == Role::Shared {
            let floor = match is_embryonic(value) {
                true => 0,
                false => self.history.floor(&key, service.idle_timeout, now),
            };
            let idle = now.mono_secs().saturating_sub(value.seen.max(floor));
            if idle <= kept_secs(&flow, value, service, self.embryonic_secs()) {
                // Its packets come to this node now, which the peer must receive.
                self.history.pending.flow(flow);
            }
            // A third node may object: this node's own walk deletes the flow when none has.
            return Ok(());
        }
        self.data_plane.delete_flow(&flow, value).context("delete a flow")?;
        Ok(())
    }

    /// Puts the ring that is whole by now in the place of the one before, if its slots and its digest are right.
    fn check_peer_ring(&mut self, key: ServiceKey, report: &mut ImportReport) {
        let name = self.name_of(&key);
        let own = self.applied.services.get(&key).map_or(0, |service| service.slots);
        let Some(mirror) = self.history.mirrors.get_mut(&key) else { return };
        let Some(next) = mirror.next.take() else { return };
        if next.slots != own {
            let received = next.slots;
            let error = format!("{name}: the peer's ring has {received} slots, and {own} here");
            report.errors.insert(error);
            report.missed.insert(key);
            return;
        }
        let table = next.table(&self.settings.seed);
        if !next.is_like(&table) {
            let error = format!(
                "{name}: the peer's ring is not what its backends and this node's seed make of it"
            );
            report.errors.insert(error);
            report.missed.insert(key);
            return;
        }
        mirror.table = Some(table);
        mirror.ring = Some(next);
        report.rings.insert(key);
    }

    /// Makes this node's ring of the peer's.
    fn take_peer_ring(
        &mut self,
        key: ServiceKey,
        now: Now,
        report: &mut ImportReport,
    ) -> Result<()> {
        let Some(id) = self.applied.services.get(&key).map(|service| service.id) else {
            return Ok(());
        };
        if self.history.role(&key) == Role::Shared {
            let joins = self.history.sharing.is_joining(&key, now.mono_secs());
            let done = if joins { self.join_peer_ring(key, id, now) } else { Ok(()) };
            if done.is_ok() {
                self.history.mirrors.entry(key).or_default().ring = None;
            }
            return done;
        }
        let target = self.applied.rings.get(&id).and_then(|ring| ring.target.clone());
        // Without a target the next reconciliation writes all of it.
        let Some(target) = target else { return Ok(()) };
        let mut outcome = Outcome::default();
        let done = self.retarget_ring(id, target, now, &mut outcome);
        report.slots.remove(&key);
        done
    }

    /// The owners that the slots of a ring have at the peer which its service follows, for
    /// [`Engine::retarget_ring`]; none if it is not known, or this node's own ring counts.
    pub(in crate::engine) fn followed(&mut self, id: u16, target: &Target) -> Option<Followed> {
        let key = self.key_of(id)?;
        if self.history.role(&key) != Role::Follows {
            return None;
        }
        let seed = self.settings.seed;
        let ids = self.backend_ids(id);
        let mirror = self.history.mirrors.get_mut(&key)?;
        let ring = mirror.ring.as_ref().filter(|ring| ring.slots == target.slots)?;
        let table = if is_same(ring, target) {
            mirror.table = None;
            None
        } else {
            Some(mirror.table.get_or_insert_with(|| ring.table(&seed)).clone())
        };
        Some(Followed { ring: ring.clone(), table, ids })
    }

    /// Follows changes of some slots.
    fn take_peer_bases(&mut self, key: ServiceKey, slots: &BTreeSet<u32>, now: Now) -> Result<()> {
        let Some(id) = self.applied.services.get(&key).map(|service| service.id) else {
            return Ok(());
        };
        if self.history.role(&key) != Role::Follows {
            return Ok(());
        }
        let Some(there) = self.applied.rings.get(&id) else { return Ok(()) };
        let Some(target) = there.target.clone() else { return Ok(()) };
        let Some(followed) = self.followed(id, &target) else { return Ok(()) };
        let peer = followed.owners();
        let keeps = |id| target.bases && target.keeping.contains(&id);
        let here = self.data_plane.ring(id).with_context(|| format!("read ring {id}"))?;
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
        self.write_bases(id, &here, &changes, now)
    }

    /// Sends flows without a pin where a peer sends them: for a node that joins, or was away for so long that
    /// the others have ended changes without it.
    fn join_peer_ring(&mut self, key: ServiceKey, id: u16, now: Now) -> Result<()> {
        let seed = self.settings.seed;
        let ids = self.backend_ids(id);
        let Some(there) = self.applied.rings.get(&id) else { return Ok(()) };
        let Some(target) = there.target.clone() else { return Ok(()) };
        let Some(mirror) = self.history.mirrors.get(&key) else { return Ok(()) };
        let Some(ring) = &mirror.ring else { return Ok(()) };
        let table = if is_same(ring, &target) { None } else { Some(ring.table(&seed)) };
        let peer = ring.in_ids(table.as_deref(), &ids);
        let keeps = |id| target.bases && target.keeping.contains(&id);
        let here = self.data_plane.ring(id).with_context(|| format!("read ring {id}"))?;
        let mut changes = Vec::new();
        for (index, slot) in here.iter().enumerate() {
            let before = slot.owners();
            if self.history.sharing.has_unpinned(&key, (index as u32, slot), now.mono_secs()) {
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
        self.write_bases(id, &here, &changes, now)
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
        self.data_plane.set_owners(id, &owners).with_context(|| format!("write ring {id}"))?;
        changes.iter().for_each(|(_, before, after)| ring.move_slot(*before, *after));
        ring.target = target;
        Ok(())
    }

    /// Deletes the flows of a service that the full history which has ended has not named.
    fn end_unnamed(&mut self, key: ServiceKey) -> Result<()> {
        let Some(id) = self.applied.services.get(&key).map(|service| service.id) else {
            return Ok(());
        };
        let Some(named) = self.history.mirrors.get_mut(&key).and_then(|m| m.named.take()) else {
            return Ok(());
        };
        if self.history.role(&key) != Role::Follows {
            return Ok(());
        }
        let mut unnamed = Vec::new();
        for table in FlowTable::ALL {
            self.data_plane
                .flows(table, &mut |flow, value| {
                    if flow.service() == id && !named.contains(&flow) {
                        unnamed.push((flow, value));
                    }
                })
                .context("walk the flows")?;
        }
        for (flow, value) in unnamed {
            self.data_plane.delete_flow(&flow, value).context("delete a flow")?;
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
    ids: HashMap<IpAddr, u16>,
}

impl Followed {
    /// The owners of its slots.
    pub(in crate::engine) fn owners(&self) -> PeerOwners<'_> {
        self.ring.in_ids(self.table.as_deref(), &self.ids)
    }
}

/// Whether a peer's ring has the same owners for new flows as this node's.
fn is_same(ring: &PeerRing, target: &Target) -> bool {
    let members = target.members.iter().map(|(member, _)| (member.address, member.weight));
    ring.slots == target.slots && members.eq(ring.members.iter().copied())
}

//! Import: the records that this node takes from a peer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, Result};
use lb_common::abi::{FlowValue, Service, Slot, stamp};
use lb_model::{
    backend_address::BackendAddress,
    desired::ServiceKey,
    flow::{FlowRef, idle_secs, is_embryonic, kept_secs, slot_of_flow},
    time::Now,
};
use lb_plane::{Added, DataPlane};
use lb_sync::{
    Record,
    record::{Base, Flow, Pin},
};
use tracing::trace;

use super::{History, Mirror, PeerRing, Role, from_flow};
use crate::{
    engine::{maps::AppliedMaps, wanted::Wanted},
    reconcile::RingTarget,
};

/// Flows that a full history may name, beyond what all tables hold: more can't be of use.
const MOST_NAMED: usize = 1 << 20;

/// Backends of a service that are remembered as unknown: as many as there can be.
const MOST_UNKNOWN: usize = 1 << 16;

/// The results of one call of [`History::import`].
#[derive(Debug, Default)]
pub(in crate::engine) struct ImportReport {
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
    /// Rings that are to be written, since those of the peers that they follow have arrived.
    targets: Vec<(u16, RingTarget)>,
    /// Ids of the services with flows that were pinned, perhaps while their rings are not in flux.
    pinned: BTreeSet<u16>,
    failed: Option<anyhow::Error>,
}

impl ImportReport {
    /// Keeps the error of a part of the import, if it is the first one.
    pub(in crate::engine) fn record_failure(&mut self, done: Result<()>) {
        if let Err(error) = done {
            self.failed.get_or_insert(error);
        }
    }

    /// The ids of the services with flows that were pinned.
    pub(in crate::engine) fn take_pinned(&mut self) -> BTreeSet<u16> {
        std::mem::take(&mut self.pinned)
    }

    /// The rings that are to be written: their ids and targets.
    pub(in crate::engine) fn take_targets(&mut self) -> Vec<(u16, RingTarget)> {
        std::mem::take(&mut self.targets)
    }

    /// As [`Self::record_failure`], for a record that is lost if it was not taken.
    fn record_miss(&mut self, service: ServiceKey, done: Result<()>) {
        if done.is_err() {
            self.missed.insert(service);
        }
        self.record_failure(done);
    }
}

impl History {
    /// As [`Engine::import`](crate::engine::Engine::import).
    pub(in crate::engine) fn import<D: DataPlane>(
        &mut self,
        records: Vec<Record>,
        (maps, wanted): (&mut AppliedMaps<D>, &Wanted),
        embryonic_secs: u32,
        now: Now,
    ) -> ImportReport {
        trace!("import {records:?}");
        let report = ImportReport::default();
        let mut import = Importer { history: self, maps, wanted, embryonic_secs, now, report };
        import.run(records);
        import.report
    }

    /// Ends an import: the rings that follow peers are written.
    ///
    /// # Errors
    ///
    /// As those of [`Engine::import`](crate::engine::Engine::import).
    pub(in crate::engine) fn end_import<D: DataPlane>(
        &mut self,
        mut report: ImportReport,
        (maps, wanted): (&mut AppliedMaps<D>, &Wanted),
        now: Now,
    ) -> Result<Vec<String>> {
        for (key, slots) in std::mem::take(&mut report.slots) {
            let done = self.apply_peer_bases(maps, wanted, key, &slots, now);
            report.record_failure(done);
        }
        for key in std::mem::take(&mut report.complete) {
            let done = self.end_unnamed(maps, key);
            report.record_failure(done);
        }
        self.rejected.append(&mut report.missed);
        if let Some(error) = report.failed {
            // The next call that finds the other errors returns them.
            return Err(error);
        }
        let known = &mut self.errors;
        let errors = report.errors.into_iter();
        Ok(errors.filter(|error| known.insert(error.clone())).collect())
    }

    /// As [`Engine::take_rejected`](crate::engine::Engine::take_rejected).
    pub(in crate::engine) fn take_rejected(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.rejected)
    }

    /// As [`Engine::take_newly_known`](crate::engine::Engine::take_newly_known).
    pub(in crate::engine) fn take_newly_known(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.newly_known)
    }
}

/// One import in progress.
struct Importer<'a, D> {
    history: &'a mut History,
    maps: &'a mut AppliedMaps<D>,
    wanted: &'a Wanted,
    /// After so many seconds without a packet a flow that has only sent SYNs is gone.
    embryonic_secs: u32,
    now: Now,
    report: ImportReport,
}

impl<D: DataPlane> Importer<'_, D> {
    fn run(&mut self, records: Vec<Record>) {
        let mut ids = BTreeMap::new();
        for record in records {
            let key = record.service();
            let is_own = self.history.role(&key) == Role::Own;
            if is_own && !matches!(record, Record::Pins { .. }) {
                continue;
            }
            let service = self.maps.applied.services.get(&key).copied();
            let Some(service) = service else {
                if !is_own {
                    self.report.errors.insert(format!("{key}: there is no such service here"));
                }
                continue;
            };
            let ids = ids.entry(service.id).or_insert_with(|| self.maps.backend_ids(service.id));
            match record {
                // A service that is shared has the members by `Sharers`.
                Record::Ring { slots: 0, .. } => {}
                Record::Ring { slots, members, digest, .. } => {
                    self.import_ring(key, PeerRing::new(slots, members, digest), ids);
                }
                Record::Bases { bases, .. } => {
                    let now = self.now.mono_secs();
                    self.history.sharing.record_use_at_peer(&key, &bases, service.slots, now);
                    self.import_bases(key, &bases, ids);
                }
                Record::Pins { pins, .. } => {
                    let done = self.import_pins(key, &service, &pins, ids);
                    self.report.record_miss(key, done);
                }
                Record::Ended { flows, .. } => self.import_ends(key, &service, &flows),
            }
        }
        for key in std::mem::take(&mut self.report.rings) {
            self.report.slots.remove(&key);
            let done = self.apply_peer_ring(key);
            self.report.record_failure(done);
        }
    }

    fn report_unknown(
        &mut self,
        key: &ServiceKey,
        backends: impl IntoIterator<Item = BackendAddress>,
        ids: &HashMap<BackendAddress, u16>,
    ) {
        let unknown: BTreeSet<_> =
            backends.into_iter().filter(|backend| !ids.contains_key(backend)).collect();
        for backend in unknown {
            let name = self.wanted.name_of(key);
            self.report.errors.insert(format!("{name}: backend {backend} is not known here"));
        }
    }

    fn import_ring(
        &mut self,
        key: ServiceKey,
        received: Option<PeerRing>,
        ids: &HashMap<BackendAddress, u16>,
    ) {
        if let Some(received) = &received {
            self.report_unknown(&key, received.named(), ids);
        } else {
            let name = self.wanted.name_of(&key);
            self.report.errors.insert(format!("{name}: the peer has sent an impossible ring"));
        }
        self.history.mirrors.entry(key).or_default().next = received;
    }

    fn import_bases(
        &mut self,
        key: ServiceKey,
        bases: &[Base],
        ids: &HashMap<BackendAddress, u16>,
    ) {
        self.report_unknown(&key, bases.iter().filter_map(|base| base.backend), ids);
        let Some(mirror) = self.history.mirrors.get_mut(&key) else { return };
        let Mirror { ring, next, .. } = mirror;
        match (next, ring) {
            (Some(next), _) => {
                for base in bases {
                    next.set_base(base);
                }
            }
            (None, Some(ring)) => {
                let slots = self.report.slots.entry(key).or_default();
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
        ids: &HashMap<BackendAddress, u16>,
    ) -> Result<()> {
        self.report_unknown(&key, pins.iter().map(|pin| pin.backend), ids);
        let slots = match self.maps.applied.rings.contains_key(&service.id) {
            true => Some(self.maps.plane.ring(service.id).context("read a ring")?),
            false => None,
        };
        let mut full = 0;
        for pin in pins {
            match self.import_pin(key, service, slots.as_deref(), pin, ids) {
                Ok(taken) => full += usize::from(!taken),
                // The others may well be taken.
                Err(error) => self.report.record_miss(key, Err(error)),
            }
        }
        if full > 0 {
            self.report.missed.insert(key);
            self.report.errors.insert(format!(
                "{}: no room for all pins of the peer; raise `pins` under [limits] and restart lbd",
                self.wanted.name_of(&key)
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
        ids: &HashMap<BackendAddress, u16>,
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
            Role::Follows => self.now.mono_secs(),
            Role::Own | Role::Shared => self.now.mono_secs().saturating_sub(idle),
        };
        let mut value = FlowValue { backend, flags: pin.flags, seen };
        if role == Role::Shared
            && let Some(own) = self.maps.plane.flow_value(&flow).context("read a flow")?
        {
            value = merged(self.maps, own, value);
            if value == own {
                return Ok(true);
            }
        }
        if let FlowRef::Pin(pinned) = &flow {
            // The stamp first: the program looks for a pin only in a slot that has one.
            let slot = slot_of_flow(service, pinned) as usize;
            let slot = slots.and_then(|slots| slots.get(slot));
            slot.into_iter().for_each(|slot| slot.touch_pinned(stamp(self.now.mono_secs())));
            self.report.pinned.insert(service.id);
        }
        if role == Role::Own {
            let added = self.maps.plane.put_new_flow(&flow, value).context("write a flow")?;
            if added == Added::Yes {
                // The program has not noted it, and the peers that follow this node must have it.
                self.history.pending.add_flow(flow);
            }
            return Ok(added != Added::NoRoom);
        }
        let taken = self.maps.plane.put_flow(&flow, value).context("write a flow")?;
        let mirror = self.history.mirrors.entry(key).or_default();
        if let Some(named) = &mut mirror.named {
            named.insert(flow);
            if named.len() > MOST_NAMED {
                mirror.named = None;
            }
        }
        Ok(taken)
    }

    fn import_ends(&mut self, key: ServiceKey, service: &Service, flows: &[Flow]) {
        for flow in flows {
            if flow.ends_a_ring() {
                let mirror = self.history.mirrors.entry(key).or_default();
                if mirror.next.is_some() {
                    self.check_peer_ring(key);
                }
            } else if flow.ends_a_history() {
                self.report.complete.insert(key);
            } else {
                let done = self.import_end(key, service, from_flow(flow, service.id));
                self.report.record_miss(key, done);
            }
        }
    }

    fn import_end(&mut self, key: ServiceKey, service: &Service, flow: FlowRef) -> Result<()> {
        if let Some(named) = self.history.mirrors.get_mut(&key).and_then(|m| m.named.as_mut()) {
            named.remove(&flow);
        }
        let Some(value) = self.maps.plane.flow_value(&flow).context("read a flow")? else {
            return Ok(());
        };
        if self.history.role(&key) == Role::Shared {
            let floor = match is_embryonic(value) {
                true => 0,
                false => self.history.floor(&key, service.idle_timeout, self.now),
            };
            let idle = idle_secs(value, floor, self.now);
            if idle <= kept_secs(&flow, value, service, self.embryonic_secs) {
                // Its packets come to this node now, which the peer must receive.
                self.history.pending.add_flow(flow);
            }
            // A third node may object: this node's own walk deletes the flow when none has.
            return Ok(());
        }
        self.maps.plane.delete_flow(&flow, value).context("delete a flow")?;
        Ok(())
    }

    /// Puts the ring that is whole by now in the place of the one before, if its slots and its digest are right.
    fn check_peer_ring(&mut self, key: ServiceKey) {
        let name = self.wanted.name_of(&key);
        let own = self.maps.applied.services.get(&key).map_or(0, |service| service.slots);
        let Some(mirror) = self.history.mirrors.get_mut(&key) else { return };
        let Some(next) = mirror.next.take() else { return };
        if next.slots != own {
            let received = next.slots;
            let error = format!("{name}: the peer's ring has {received} slots, and {own} here");
            self.report.errors.insert(error);
            self.report.missed.insert(key);
            return;
        }
        let table = next.table(&self.wanted.settings.seed);
        if !next.is_like(&table) {
            let error = format!(
                "{name}: the peer's ring is not what its backends and this node's seed make of it"
            );
            self.report.errors.insert(error);
            self.report.missed.insert(key);
            return;
        }
        mirror.table = Some(table);
        mirror.ring = Some(next);
        self.report.rings.insert(key);
    }

    /// Makes this node's ring of the peer's.
    fn apply_peer_ring(&mut self, key: ServiceKey) -> Result<()> {
        let Some(id) = self.maps.applied.services.get(&key).map(|service| service.id) else {
            return Ok(());
        };
        if self.history.role(&key) == Role::Shared {
            let joins = self.history.sharing.is_joining(&key, self.now.mono_secs());
            let done = if joins {
                self.history.join_peer_ring(self.maps, self.wanted, key, id, self.now)
            } else {
                Ok(())
            };
            if done.is_ok() {
                self.history.mirrors.entry(key).or_default().ring = None;
            }
            return done;
        }
        let target = self.maps.applied.rings.get(&id).and_then(|ring| ring.target.clone());
        // Without a target the next reconciliation writes all of it.
        let Some(target) = target else { return Ok(()) };
        self.report.slots.remove(&key);
        self.report.targets.push((id, target));
        Ok(())
    }
}

/// Merges a flow that two nodes have: the one that has seen a packet later decides its backend, and on a
/// tie the lower address, so that both nodes choose the same.
fn merged<D: DataPlane>(maps: &AppliedMaps<D>, own: FlowValue, received: FlowValue) -> FlowValue {
    let seen = own.seen.max(received.seen);
    if own.backend == received.backend {
        return FlowValue { flags: own.flags | received.flags, seen, ..own };
    }
    let rank = |value: FlowValue| (value.seen, std::cmp::Reverse(maps.address_of(value.backend)));
    if rank(received) > rank(own) { received } else { own }
}

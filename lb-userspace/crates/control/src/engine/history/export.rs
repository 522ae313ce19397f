//! Export: the changes since the last export, or all records.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use lb_common::abi::{FlowValue, Owners, Slot, SlotSnapshot, stamp};
use lb_model::{
    backend_address::BackendAddress,
    desired::ServiceKey,
    flow::{FlowRef, FlowTable, idle_secs, slot_of_flow},
    ring,
    time::Now,
};
use lb_plane::DataPlane;
use lb_sync::{
    Record,
    record::{Base, Pin, digest},
};

use super::{History, RingDelta, Role, Settling, to_flow};
use crate::engine::{
    maps::AppliedMaps,
    starved::{GivingWay, Starved},
    wanted::Wanted,
};

/// Other owners of a slot: where it is, before and after.
type Move = (u32, Owners, Owners);

type Pins = BTreeMap<ServiceKey, Vec<Pin>>;

impl History {
    /// As [`Engine::export_changes`](crate::engine::Engine::export_changes).
    pub(in crate::engine) fn export_changes<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        (starved, wanted): (&Starved, &Wanted),
        now: Now,
    ) -> Result<Vec<Record>> {
        self.record_changes(maps, now);
        let noted = &mut self.pending.noted;
        let all = maps
            .plane
            .noted_pins(&mut |key| {
                noted.insert(key);
            })
            .context("read the log of pins")?;
        if !all {
            let since = now.mono_secs().saturating_sub(MISSED_SECS);
            self.pending.missed_since.get_or_insert(since);
        }
        self.settle_acknowledged(maps, now)?;
        self.withdraw_late(maps, (starved, wanted), now)?;
        self.export_settling(maps, (starved, wanted), now)?;
        if self.pending.is_empty() && self.sharing.is_empty() {
            return Ok(Vec::new());
        }
        let keys = self.exported_services(maps);
        let mut records = Vec::new();
        let mut exported_rings = Vec::new();
        for (key, delta) in &self.pending.rings {
            let is_exported = match self.role(key) {
                Role::Own => false,
                Role::Follows => true,
                Role::Shared => self.export_members(maps, key, &mut records),
            };
            if is_exported || self.export_ring(maps, key, delta, now, &mut records)? {
                exported_rings.push(*key);
            }
        }
        for (key, slots) in self.sharing.take_in_use() {
            self.export_ring(maps, &key, &RingDelta::of(slots), now, &mut records)?;
        }
        let mut pins = Pins::new();
        if let Some(since) = self.pending.missed_since {
            export_pins_since(maps, since, &keys, now, &mut pins)?;
        }
        let pending = &self.pending;
        let noted = pending.noted.iter().map(|key| FlowRef::Pin(*key));
        for flow in noted.chain(pending.flows.iter().copied()) {
            let Some(key) = keys.get(&flow.service()) else { continue };
            if let Some(value) = maps.plane.flow_value(&flow).context("read a flow")? {
                pins.entry(*key).or_default().extend(to_pin(maps, &flow, value, now));
            }
        }
        records.extend(pins.into_iter().map(|(service, pins)| Record::Pins { service, pins }));

        let pending = &mut self.pending;
        let mut ended = BTreeMap::<_, Vec<_>>::new();
        for (service, flow) in pending.ended.drain(..) {
            ended.entry(service).or_default().push(flow);
        }
        // A flow that has ended may have begun again, so its end comes first.
        let ended = ended.into_iter().map(|(service, flows)| Record::Ended { service, flows });
        records.splice(0..0, ended);
        pending.noted.clear();
        pending.flows.clear();
        pending.missed_since = None;
        pending.number += 1;
        for key in exported_rings {
            pending.rings.remove(&key);
        }
        Ok(records)
    }

    /// As [`Engine::set_acknowledged`](crate::engine::Engine::set_acknowledged).
    pub(in crate::engine) const fn set_acknowledged(&mut self, number: u64) {
        self.taken = Some(number);
    }

    /// Keeps changes for export from now on. If they were not kept meanwhile, all rings and the pins since
    /// then are exported.
    pub(super) fn record_changes<D: DataPlane>(&mut self, maps: &AppliedMaps<D>, now: Now) {
        let pending = &mut self.pending;
        if let Some(since) = pending.request(now.mono_secs()) {
            pending.missed_since = Some(since.saturating_sub(MISSED_SECS));
            maps.applied.services.keys().for_each(|key| pending.add_ring(*key));
        }
    }

    /// The services of which slots are on their way to settle, with their rings.
    fn settling_rings<D: DataPlane>(&self, maps: &AppliedMaps<D>) -> Vec<(ServiceKey, u16, u32)> {
        let services = self.settling.keys().filter_map(|key| {
            let service = maps.applied.services.get(key)?;
            // A ring that is not known is not exported.
            maps.applied.rings.get(&service.id)?.target.as_ref()?;
            Some((*key, service.id, service.idle_timeout))
        });
        services.collect()
    }

    /// Adds quiet slots to the next export, as many as there is room for, and makes them their own base
    /// owners.
    ///
    /// Not while pinning is paused: the peer that takes over does not wait for later exports.
    fn export_settling<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        (starved, wanted): (&Starved, &Wanted),
        now: Now,
    ) -> Result<()> {
        let mut room = self.window.room(self.taken, now.mono);
        let number = self.pending.number + 1;
        for (key, id, idle) in self.settling_rings(maps) {
            if self.pinning_paused.contains(&key) {
                continue;
            }
            let quiet = self.settling(key).take_quiet(room);
            if quiet.is_empty() {
                continue;
            }
            let slots = maps.ring(id)?;
            let (mut bases, mut moves) = (BTreeMap::new(), Vec::new());
            for index in quiet {
                let Some(slot) = slots.get(index as usize) else { continue };
                let before = slot.owners();
                if before.base == before.current {
                    bases.insert(index, before.base);
                } else if before.base != 0 {
                    moves.push((index, before, Owners { base: before.current, ..before }));
                }
            }
            let giving_way = starved.giving_way(id, maps, wanted);
            let moved = move_quiet(maps, (id, &slots), &moves, (idle, giving_way.as_ref()), now)?;
            bases.extend(moved.iter().map(|(index, before, _)| (*index, before.base)));
            if !bases.is_empty() {
                room = room.saturating_sub(bases.len());
                self.window.export(number, now.mono);
                self.pending.add_slots(key, bases.keys().copied());
                self.settling(key).export(bases, number, now.mono);
            }
        }
        Ok(())
    }

    /// Gives slots their base owners again with which a peer is late, where nothing has gone to their
    /// current owners unpinned, and adds them to the next export.
    ///
    /// Not while pinning is paused, as above.
    fn withdraw_late<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        (starved, wanted): (&Starved, &Wanted),
        now: Now,
    ) -> Result<()> {
        let number = self.pending.number + 1;
        let mut are_back = false;
        for (key, id, idle) in self.settling_rings(maps) {
            if self.pinning_paused.contains(&key) {
                continue;
            }
            let window = &self.window;
            let settling = self.settling.entry(key).or_default();
            let late = settling.late(|sent| window.is_over(sent, now.mono));
            let target = maps.applied.rings.get(&id).and_then(|ring| ring.target.as_ref());
            let keeps = |base| target.is_some_and(|at| at.bases && at.keeping.contains(&base));
            let late: Vec<_> = late.into_iter().filter(|(_, base)| keeps(*base)).collect();
            if late.is_empty() {
                continue;
            }
            let slots = maps.ring(id)?;
            let moves = late.into_iter().filter_map(|(index, base)| {
                let before = slots.get(index as usize)?.owners();
                let settles = before.base == before.current && before.current != base;
                settles.then_some((index, before, Owners { base, ..before }))
            });
            let moves: Vec<_> = moves.collect();
            let giving_way = starved.giving_way(id, maps, wanted);
            let moved = move_quiet(maps, (id, &slots), &moves, (idle, giving_way.as_ref()), now)?;
            let moved: Vec<_> = moved.into_iter().map(|(index, ..)| index).collect();
            are_back |= !moved.is_empty();
            self.settling(key).withdraw(&moved);
            self.pending.add_slots(key, moved.into_iter());
        }
        if are_back {
            self.window.withdraw(number, now.mono);
        }
        Ok(())
    }

    /// Clears the base owners of slots whose settling is acknowledged.
    fn settle_acknowledged<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        now: Now,
    ) -> Result<()> {
        let taken = self.taken.unwrap_or(u64::MAX);
        for (key, id, _) in self.settling_rings(maps) {
            let settled = self.settling(key).take_acknowledged(taken);
            if settled.is_empty() {
                continue;
            }
            let slots = maps.ring(id)?;
            let moves = settled.into_iter().filter_map(|index| {
                let before = slots.get(index as usize)?.owners();
                // If its current owner has changed meanwhile it is in flux again.
                let settles = before.base != 0 && before.base == before.current;
                settles.then_some((index, before, Owners { base: 0, ..before }))
            });
            let moves: Vec<_> = moves.collect();
            maps.write_bases(id, &slots, &moves, now)?;
            self.settled += moves.len() as u64;
        }
        self.settling.retain(|_, settling| *settling != Settling::default());
        Ok(())
    }

    /// As [`Engine::export_all`](crate::engine::Engine::export_all).
    pub(in crate::engine) fn export_all<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        now: Now,
    ) -> Result<Vec<Record>> {
        self.record_changes(maps, now);
        let keys = self.exported_services(maps);
        let mut flows = Pins::new();
        let services: HashMap<_, _> =
            maps.applied.services.values().map(|service| (service.id, *service)).collect();
        let rings = maps.tracked_rings()?;
        for table in FlowTable::ALL {
            let mut found = Vec::new();
            maps.plane
                .flows(table, &mut |flow, value| found.push((flow, value)))
                .context("walk the flows")?;
            for (flow, value) in found {
                let id = flow.service();
                let (Some(key), Some(service)) = (keys.get(&id), services.get(&id)) else {
                    continue;
                };
                let floor = self.floor(key, service.idle_timeout, now);
                let idle = idle_secs(value, floor, now);
                let matters = table == FlowTable::Pins || off_ring(&flow, value, service, &rings);
                if matters && idle <= service.idle_timeout {
                    flows.entry(*key).or_default().extend(to_pin(maps, &flow, value, now));
                }
            }
        }
        let mut records = Vec::new();
        for service in keys.into_values() {
            self.export_ring(maps, &service, &RingDelta::Whole, now, &mut records)?;
            if let Some(pins) = flows.remove(&service) {
                records.push(Record::Pins { service, pins });
            }
            records.push(Record::history_is_whole(service));
        }
        Ok(records)
    }

    /// Exports a service's ring; false if the ring is not known: a write has failed. Slots that are their
    /// own base owners are exported without one, or with the one that they may have again.
    pub(super) fn export_ring<D: DataPlane>(
        &self,
        maps: &AppliedMaps<D>,
        key: &ServiceKey,
        delta: &RingDelta,
        now: Now,
        records: &mut Vec<Record>,
    ) -> Result<bool> {
        let Some(service) = maps.applied.services.get(key) else { return Ok(true) };
        let Some(ring) = maps.applied.rings.get(&service.id) else { return Ok(true) };
        let Some(target) = &ring.target else { return Ok(false) };
        let slots = maps.plane.ring(service.id);
        let slots = slots.with_context(|| format!("read ring {}", service.id))?;
        let mut addresses = HashMap::new();
        let mut address = |id: u16| *addresses.entry(id).or_insert_with(|| maps.address_of(id));
        let mut base = |(slot, at): (u32, &Slot)| {
            let Owners { current, base } = at.owners();
            let exported = match base == current {
                true => self.sharing.exported_base(key, slot, now.mono_secs()),
                false => Some(base),
            };
            Base { slot, backend: exported.filter(|base| *base != current).and_then(&mut address) }
        };
        let service = *key;
        if let Some(changed) = delta.slots() {
            let there =
                changed.into_iter().filter_map(|slot| Some((slot, slots.get(slot as usize)?)));
            let bases: Vec<_> = there.map(base).collect();
            records.push(Record::Bases { service, bases });
            return Ok(true);
        }
        let in_flux = (0..).zip(slots.iter()).filter(|(_, slot)| slot.owners().base != 0);
        let bases = in_flux.map(&mut base).filter(|base| base.backend.is_some());
        let bases: Vec<_> = bases.collect();
        let no_owner = BackendAddress::from([0; 4]);
        let currents = slots.iter().map(|slot| address(slot.owners().current).unwrap_or(no_owner));
        records.push(Record::Ring {
            service,
            slots: target.slots,
            members: target.members.iter().map(|(m, _)| (m.address, m.weight)).collect(),
            digest: digest(currents),
        });
        if !bases.is_empty() {
            records.push(Record::Bases { service, bases });
        }
        records.push(Record::ring_is_whole(service));
        Ok(true)
    }

    /// Exports the members of a service's ring; false if they are not known: a write has failed.
    fn export_members<D: DataPlane>(
        &self,
        maps: &AppliedMaps<D>,
        key: &ServiceKey,
        records: &mut Vec<Record>,
    ) -> bool {
        let Some(service) = maps.applied.services.get(key) else { return true };
        let Some(ring) = maps.applied.rings.get(&service.id) else { return true };
        let Some(target) = &ring.target else { return false };
        let members = target.members.iter().map(|(m, _)| (m.address, m.weight)).collect();
        records.push(Record::members(*key, members));
        true
    }
}

/// Gives those of these slots other base owners that are quiet, or give way to new flows; which were.
///
/// Whatever held this process up since the last look held up its lease as well: flows may have begun
/// without a pin where these slots had them go, and may at any moment of this.
fn move_quiet<D: DataPlane>(
    maps: &mut AppliedMaps<D>,
    (id, slots): (u16, &D::Ring),
    moves: &[Move],
    (idle, giving_way): (u32, Option<&GivingWay>),
    now: Now,
) -> Result<Vec<Move>> {
    let at = stamp(now.mono_secs());
    let gives_way =
        |slot: SlotSnapshot| giving_way.is_some_and(|giving_way| giving_way.names(slot, at));
    let changes = moves.iter().filter_map(|&(index, before, after)| {
        let seen = slots.get(index as usize)?.snapshot();
        let moves = ring::is_quiet(seen, at, idle) || gives_way(seen);
        (seen.owners == before && moves).then_some((index, seen, after))
    });
    let changes: Vec<_> = changes.collect();
    let done = maps.replace_owners(id, slots, &changes)?;
    let made = changes.into_iter().zip(done).filter(|(_, done)| *done);
    Ok(made.map(|((at, seen, to), _)| (at, seen.owners, to)).collect())
}

/// Exports the pins that were used since a second.
fn export_pins_since<D: DataPlane>(
    maps: &AppliedMaps<D>,
    since: u32,
    keys: &BTreeMap<u16, ServiceKey>,
    now: Now,
    pins: &mut Pins,
) -> Result<()> {
    maps.plane
        .flows(FlowTable::Pins, &mut |flow, value| {
            if let Some(key) = keys.get(&flow.service())
                && value.seen >= since
            {
                pins.entry(*key).or_default().extend(to_pin(maps, &flow, value, now));
            }
        })
        .context("walk the pins")
}

fn to_pin<D: DataPlane>(
    maps: &AppliedMaps<D>,
    flow: &FlowRef,
    value: FlowValue,
    now: Now,
) -> Option<Pin> {
    let idle = now.mono_secs().saturating_sub(value.seen);
    Some(Pin {
        flow: to_flow(flow),
        backend: maps.address_of(value.backend)?,
        flags: value.flags,
        idle: std::time::Duration::from_secs(idle.into()),
    })
}

/// Seconds that pins have been used for when their notes were written over: the clocks of both sides
/// are read at different moments, and between two calls there is less.
const MISSED_SECS: u32 = 2;

/// Whether a flow of a UDP service goes where the ring would not send it. A QUIC connection always counts
/// as one: its client may have another address by now.
pub(in crate::engine) fn off_ring<R>(
    flow: &FlowRef,
    value: FlowValue,
    service: &lb_common::abi::Service,
    rings: &HashMap<u16, R>,
) -> bool
where
    R: std::ops::Deref<Target = [Slot]>,
{
    match flow {
        FlowRef::Pin(_) => false,
        FlowRef::Connection(_) => true,
        FlowRef::Tracked(key) => {
            let slot = rings
                .get(&key.service)
                .and_then(|ring| ring.get(slot_of_flow(service, key) as usize).map(Slot::owners));
            slot.is_none_or(|owners| owners.current != value.backend)
        }
    }
}

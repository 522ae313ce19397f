//! The work of each second: slots that have become quiet, flows that have ended, backends that may
//! leave, ids that may be given anew.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use lb_common::abi::{FlowValue, Owners, Service, stamp, udp_policy};
use lb_datapath::DataPlane;
use lb_model::{
    desired::{Admin, ServiceKey},
    entry,
    flow::{FlowRef, FlowTable, is_embryonic, kept_secs, slot_of_flow},
    ring,
    time::Now,
};
use tracing::info;

use super::{
    Engine, Swept,
    drain_progress::{Silences, Tally},
    history::{Role, off_ring, to_flow},
    starved::GivingWay,
    summary,
};
use crate::reconcile::{Applied, Ring};

/// Seconds in which a packet that has met an id is certainly gone.
const REST_SECS: u32 = 2;
/// Seconds between checks that mostly find nothing.
const FULL_LOOK_SECS: u32 = 64;
/// Flows that are kept fresh in a second at most: some tens of milliseconds.
const REFRESHED: usize = 16_384;

/// The results of the last walk through the flow tables.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// When it started; none: there was none.
    started: Option<u32>,
    /// Whether it left no flow of a removed backend or service.
    clean: bool,
    /// Entries of `PINS` that it left.
    pub(super) pins: u64,
    /// Entries of all tables that it left.
    pub(super) flows: u64,
    /// Live flows of each backend, in all tables.
    pub(super) per_backend: BTreeMap<u16, Tally>,
    /// When ids were released.
    released_backends: BTreeMap<u16, u32>,
    released_services: BTreeMap<u16, u32>,
    /// Backends that were about to leave, without a slot, at the last sweep.
    leaving: BTreeSet<u16>,
    /// Services whose flows were pinned outside of any flux.
    pins_expected: BTreeSet<u16>,
    /// Flows of services that follow a peer, to be kept fresh.
    stale: Vec<FlowRef>,
    /// When backends ceased to get new flows, until a later walk has counted those they have.
    vacated: BTreeMap<u16, u32>,
}

impl Walk {
    /// Whether there was none yet.
    pub(super) const fn is_first(&self) -> bool {
        self.started.is_none()
    }

    /// In which second it started; 0 if there was none.
    pub(super) fn started(&self) -> u32 {
        self.started.unwrap_or(0)
    }

    pub(super) fn release_backend(&mut self, id: u16, now: Now) {
        self.released_backends.insert(id, now.mono_secs());
    }

    pub(super) fn release_service(&mut self, id: u16, now: Now) {
        self.released_services.insert(id, now.mono_secs());
    }

    /// Flows of this service were pinned though its ring is not in flux.
    pub(super) fn expect_pins(&mut self, service: u16) {
        self.pins_expected.insert(service);
    }

    pub(super) fn vacate_backend(&mut self, id: u16, now: Now) {
        self.vacated.insert(id, now.mono_secs());
    }

    /// Whether the backend may have got flows since the last walk came by.
    pub(super) fn is_stale(&self, id: u16) -> bool {
        self.vacated.contains_key(&id)
    }

    /// Whether it saw flows on backends that have none to keep by now.
    pub(super) fn has_orphaned(&self, applied: &Applied, following: &BTreeSet<u16>) -> bool {
        let keeping = keeping(applied, following);
        self.per_backend.keys().any(|id| !keeping.contains(id))
    }

    /// Whether an id that was released then can't be named by anything any more.
    fn has_rested(&self, released: u32, now: Now) -> bool {
        self.clean
            && self.started.is_some_and(|started| started > released)
            && now.mono_secs().saturating_sub(released) >= REST_SECS
    }
}

/// The backends that may keep flows, by the target of their service's ring; while the target is not
/// known, and of services that follow a peer, all of them.
fn keeping(applied: &Applied, following: &BTreeSet<u16>) -> BTreeSet<u16> {
    let target = |service| applied.rings.get(&service).and_then(|ring| ring.target.as_ref());
    let backends = applied.backends.iter().filter(|&(id, backend)| {
        following.contains(&backend.service)
            || target(backend.service).is_none_or(|target| {
                target.keeping.contains(id) || target.members.iter().any(|(_, member)| member == id)
            })
    });
    backends.map(|(&id, _)| id).collect()
}

/// The ids of backends by service and address.
pub(super) struct Ids(BTreeMap<(u16, [u8; 16]), u16>);

impl Ids {
    /// The id of a backend of a service.
    pub(super) fn of(&self, service: u16, address: IpAddr) -> Option<u16> {
        self.0.get(&(service, entry::address(address))).copied()
    }
}

impl<D: DataPlane> Engine<D> {
    /// The work of each second: ends expired flows, slots and drains.
    ///
    /// # Errors
    ///
    /// If a map could not be read or written; the next call does the rest.
    pub fn sweep(&mut self, now: Now) -> Result<Swept> {
        let mut swept = Swept::default();
        self.history.pending.end_unless_requested(now.mono_secs());
        self.history.count_freeze(&self.applied.services, now);
        self.watch_interfaces();
        self.check_starvation(now)?;
        if self.has_expired_deadline(now) || self.outages.has_expired(now) {
            self.reconcile(now)?;
        }
        for id in self.applied.rings.keys().copied().collect::<Vec<_>>() {
            swept.settled += self.sweep_ring(id, now)?;
        }
        let leaving = self.leaving();
        swept.settled += std::mem::take(&mut self.history.settled);
        let waits = !leaving.is_empty()
            || !self.walk.vacated.is_empty()
            || !self.applied.resting_backends.is_empty()
            || !self.applied.resting_services.is_empty();
        if self.walk_is_due(now, waits) {
            swept.expired = self.walk_flows(now)?;
        }
        self.refresh(now)?;
        let left = self.free_backends(leaving, now, &mut swept);
        self.retire()?;
        left?;
        self.look_at_drains(now);
        self.end_rests(now)?;
        // Last, so that an error before it leaves them for the next call.
        swept.interfaces = self.interfaces.take_events();
        Ok(swept)
    }

    /// Whether a deadline has passed since the rings were written.
    fn has_expired_deadline(&self, now: Now) -> bool {
        let ids = LazyCell::new(|| self.ids());
        self.desired().services.values().any(|service| {
            let Some(value) = self.applied.services.get(&service.key) else { return false };
            let ring = self.applied.rings.get(&value.id);
            let Some(target) = ring.and_then(|ring| ring.target.as_ref()) else { return false };
            service.backends.iter().any(|(address, backend)| {
                backend.admin.drains()
                    && crate::reconcile::flows_are_moved(backend, now)
                    && ids.of(value.id, *address).is_some_and(|id| target.keeping.contains(&id))
            })
        })
    }

    /// The ids of the backends that are in the maps.
    pub(super) fn ids(&self) -> Ids {
        let backends = self.applied.backends.iter().rev();
        Ids(backends.map(|(&id, backend)| ((backend.service, backend.address), id)).collect())
    }

    /// Clears the bases that are quiet and the marks of pins that have gone. In a ring that follows a
    /// peer's, slots in flux are kept fresh instead.
    fn sweep_ring(&mut self, id: u16, now: Now) -> Result<u64> {
        let silences = self.drains.forget(id);
        let Some((key, idle)) = self.service_by_id(id) else { return Ok(0) };
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
        if !look && !self.applied.rings.get(&id).is_some_and(busy) {
            return Ok(0);
        }
        let slots = self.data_plane.ring(id).with_context(|| format!("read ring {id}"))?;
        let at = stamp(now.mono_secs());
        let mut last_packets = BTreeMap::new();
        // Those that were seen while another node had the packets, or shared them, mean nothing.
        let mut silences = if role == Role::Own { silences } else { Silences::default() };
        let mut changes = match role {
            Role::Shared => self.sweep_shared(key, &slots, (id, idle), now),
            Role::Own | Role::Follows => Vec::new(),
        };
        let exports = self.history.exports_slots(&key);
        let objection = self.objection_secs();
        let giving_way = self.giving_way(id).filter(|_| role == Role::Own);
        let mut give_way = 0;
        for (index, slot) in (0..).zip(slots.iter()) {
            let seen = slot.seen();
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
            self.log_giving_way(id, give_way, all);
        }
        let context = || format!("write ring {id}");
        let done = self.data_plane.replace_owners(&slots, &changes).with_context(context)?;
        let ring = self.applied.rings.entry(id).or_default();
        *ring = summary(&slots, ring.target.take());
        let settled = changes.iter().zip(done).filter(|((.., to), done)| *done && to.base == 0);
        let settled = settled.count();
        if settled > 0 {
            info!(ring = id, slots = settled, in_flux = ring.in_flux, "slots settled");
        }
        Ok(settled as u64)
    }

    /// The key of a service, and its idle timeout.
    fn service_by_id(&self, id: u16) -> Option<(ServiceKey, u32)> {
        let mut services = self.applied.services.iter();
        let found = services.find(|(_, service)| service.id == id);
        found.map(|(key, service)| (*key, service.idle_timeout))
    }

    fn walk_is_due(&self, now: Now, waits: bool) -> bool {
        let Some(started) = self.walk.started else { return true };
        let may_have_flows = self.walk.flows > 0
            || self.applied.rings.values().any(|ring| ring.in_flux > 0 || ring.pinned > 0)
            || self
                .applied
                .services
                .values()
                .any(|service| service.udp_policy != udp_policy::ONESHOT);
        let since = now.mono_secs().saturating_sub(started);
        if !waits && !may_have_flows {
            return since >= FULL_LOOK_SECS;
        }
        since > self.secs_between_walks()
    }

    /// For how many seconds a flow of a shared service is kept past its end, since a peer may object.
    pub(super) fn objection_secs(&self) -> u32 {
        self.history.sharing.objection_secs(self.secs_between_walks().saturating_add(1))
    }

    /// Walks the flow tables: deletes what has ended and what names a backend or a service that is
    /// gone, and counts the rest. How many were deleted.
    pub(super) fn walk_flows(&mut self, now: Now) -> Result<u64> {
        let mut walk = Walk { started: Some(now.mono_secs()), clean: true, ..Walk::default() };
        let following = self.following();
        let keeping = keeping(&self.applied, &following);
        let services: BTreeMap<_, _> = self
            .applied
            .services
            .iter()
            .map(|(key, service)| {
                let floor = self.history.floor(key, service.idle_timeout, now);
                let is_shared = self.history.role(key) == Role::Shared;
                (service.id, (*service, floor, is_shared))
            })
            .collect();
        let exports = self.history.pending.is_requested();
        let objection = self.objection_secs();
        let embryonic = self.embryonic_secs();
        let rings = if exports { self.tracked_rings()? } else { HashMap::new() };
        let mut surveyed = HashMap::new();
        // Those that wait come first: a walk meets all flows in the same order each time.
        let mut stale = std::mem::take(&mut self.walk.stale);
        let collects = stale.is_empty();
        let mut gone = Vec::new();
        let mut ending = Vec::new();
        for table in FlowTable::ALL {
            self.data_plane
                .flows(table, &mut |flow, value| {
                    walk.flows += 1;
                    walk.pins += u64::from(table == FlowTable::Pins);
                    let service = services.get(&flow.service());
                    let service = service.filter(|_| keeping.contains(&value.backend));
                    let Some((service, floor, is_shared)) = service else {
                        gone.push((flow, value, true));
                        return;
                    };
                    let kept = kept_secs(&flow, value, service, embryonic);
                    // A flow that has only sent SYNs ends without waiting for a peer.
                    let floor = if *is_shared && is_embryonic(value) { 0 } else { *floor };
                    let age = age(flow, idle(value, floor, now) > kept);
                    let mut count_live = || {
                        let tally = walk.per_backend.entry(value.backend).or_default();
                        tally.count(value, value.seen.max(floor), kept, now);
                    };
                    if following.contains(&flow.service()) {
                        count_live();
                        if collects && idle(value, floor, now) > kept / 4 {
                            stale.push(flow);
                        }
                        return;
                    }
                    match age {
                        Age::Live => {
                            count_live();
                            if exports && off_ring(&flow, value, service, &rings) {
                                surveyed.insert(flow, value.backend);
                            }
                        }
                        Age::Idle => {}
                        // The node that gets its packets now objects, before it is deleted here.
                        Age::Ended
                            if exports
                                && *is_shared
                                && idle(value, floor, now) <= kept + objection =>
                        {
                            ending.push(flow);
                        }
                        Age::Ended => gone.push((flow, value, false)),
                    }
                })
                .context("walk the flows")?;
        }
        drop(rings);
        if exports {
            self.take_survey(surveyed);
        }
        ending.iter().for_each(|flow| self.export_end(flow));
        let mut deleted = 0;
        for (flow, seen, orphaned) in gone {
            let done = self.data_plane.delete_flow(&flow, seen).context("delete a flow")?;
            if done {
                self.export_end(&flow);
            }
            deleted += u64::from(done);
            walk.clean &= done || !orphaned;
            walk.flows -= u64::from(done);
            walk.pins -= u64::from(done && matches!(flow, FlowRef::Pin(_)));
        }
        let mut old = std::mem::take(&mut self.walk);
        // A packet that had met the slot before its change may have opened a flow since.
        old.vacated.retain(|_, at| now.mono_secs() <= *at);
        self.walk = Walk {
            stale,
            released_backends: old.released_backends,
            released_services: old.released_services,
            leaving: old.leaving,
            pins_expected: old.pins_expected,
            vacated: old.vacated,
            ..walk
        };
        Ok(deleted)
    }

    /// Keeps flows of services that follow a peer fresh, and the marks of their slots: only the node that
    /// sees their packets knows when they end. As many as a second has time for; the next goes on.
    fn refresh(&mut self, now: Now) -> Result<()> {
        let rest = self.walk.stale.len().saturating_sub(REFRESHED);
        let mut stale = self.walk.stale.split_off(rest);
        stale.sort_unstable_by_key(FlowRef::service);
        let mut services = BTreeMap::new();
        for (key, service) in &self.applied.services {
            if self.history.role(key) == Role::Follows {
                services.insert(service.id, *service);
            }
        }
        let mut ring = None;
        for flow in stale {
            let Some(service) = services.get(&flow.service()) else { continue };
            // Since the walk it may have ended, or moved.
            let Some(value) = self.data_plane.flow_value(&flow).context("read a flow")? else {
                continue;
            };
            let id = service.id;
            if ring.as_ref().is_none_or(|(of, _)| *of != id) && self.applied.rings.contains_key(&id)
            {
                ring = Some((id, self.data_plane.ring(id).context("read a ring")?));
            }
            if let (FlowRef::Pin(key), Some((of, ring))) = (&flow, &ring)
                && *of == id
            {
                let slot = ring.get(slot_of_flow(service, key) as usize);
                slot.into_iter().for_each(|slot| slot.touch_pinned(stamp(now.mono_secs())));
            }
            let fresh = FlowValue { seen: now.mono_secs(), ..value };
            self.data_plane.put_flow(&flow, fresh).context("write a flow")?;
        }
        Ok(())
    }

    /// Exports that a flow has ended.
    pub(super) fn export_end(&mut self, flow: &FlowRef) {
        if let Some(key) = self.key_of(flow.service())
            && self.history.role(&key) != Role::Follows
        {
            self.history.pending.end(key, to_flow(flow));
        }
    }

    /// The backends in `removing` that own no slot, here or at the peer that is followed.
    fn leaving(&self) -> BTreeSet<u16> {
        let mut leaving = BTreeSet::new();
        let ids = LazyCell::new(|| self.ids());
        for service in self.desired().services.values() {
            let Some(value) = self.applied.services.get(&service.key) else { continue };
            let Some(ring) = self.applied.rings.get(&value.id) else { continue };
            let removing =
                service.backends.iter().filter(|(_, b)| matches!(b.admin, Admin::Removing { .. }));
            let follows = self.history.role(&service.key) == Role::Follows;
            let removing = removing
                .filter(|(address, _)| !follows || !self.history.names(&service.key, **address));
            let removing = removing.filter_map(|(address, _)| ids.of(value.id, *address));
            leaving.extend(removing.filter(|id| !ring.held.contains_key(id)));
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
        let ids = LazyCell::new(|| self.ids());
        for (name, service) in &self.desired().services {
            let Some(value) = self.applied.services.get(&service.key) else { continue };
            for (address, backend) in &service.backends {
                let removing = matches!(backend.admin, Admin::Removing { .. });
                if removing && ids.of(value.id, *address).is_none() {
                    swept.removed.push((name.clone(), *address));
                }
            }
        }
        Ok(())
    }

    /// Gives ids free that nothing can name any more.
    fn end_rests(&mut self, now: Now) -> Result<()> {
        // Ids that rested when the maps were adopted rest from the first sweep on.
        for &id in &self.applied.resting_backends {
            self.walk.released_backends.entry(id).or_insert(now.mono_secs());
        }
        let walk = &self.walk;
        let rested = |released: &BTreeMap<u16, u32>| -> BTreeSet<u16> {
            released
                .iter()
                .filter(|(_, at)| walk.has_rested(**at, now))
                .map(|(id, _)| *id)
                .collect()
        };
        let (backends, services) =
            (rested(&walk.released_backends), rested(&walk.released_services));
        let named = |id: &u16| self.applied.rings.values().any(|ring| ring.held.contains_key(id));
        let backends: BTreeSet<_> = backends.into_iter().filter(|id| !named(id)).collect();
        if !backends.is_empty() {
            self.data_plane.forget_fragments(&backends).context("delete marks of fragments")?;
        }
        self.walk.released_backends.retain(|id, _| !backends.contains(id));
        self.walk.released_services.retain(|id, _| !services.contains(id));
        self.applied.resting_backends.retain(|id| !backends.contains(id));
        self.applied.resting_services.retain(|id| !services.contains(id));
        Ok(())
    }
}

/// The age class of a flow.
enum Age {
    /// It sends.
    Live,
    /// It has been silent for longer than its service lets it, and its table drops it by itself.
    Idle,
    /// It is to be deleted.
    Ended,
}

/// For how many seconds a flow has been idle; not for longer than since `floor`.
fn idle(value: FlowValue, floor: u32, now: Now) -> u32 {
    now.mono_secs().saturating_sub(value.seen.max(floor))
}

/// Whether a flow of a UDP service has sent a packet within the idle timeout.
pub(super) fn is_kept(value: FlowValue, service: &Service, floor: u32, now: Now) -> bool {
    idle(value, floor, now) <= service.idle_timeout
}

/// The age class of a flow that may have been idle for too long.
const fn age(flow: FlowRef, is_idle: bool) -> Age {
    match (is_idle, flow) {
        (false, _) => Age::Live,
        (true, FlowRef::Pin(_)) => Age::Ended,
        (true, _) => Age::Idle,
    }
}

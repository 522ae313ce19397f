//! The walk through the flow tables: it deletes flows that have ended, counts the rest, and finds which ids nothing
//! names any more.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Deref,
};

use anyhow::{Context as _, Result};
use lb_common::abi::{FlowValue, Service, Slot, stamp, udp_policy};
use lb_model::{
    flow::{FlowRef, FlowTable, idle_secs, is_closed, is_embryonic, kept_secs, slot_of_flow},
    time::Now,
};
use lb_plane::DataPlane;

use super::{
    history::{History, Role, off_ring},
    maps::AppliedMaps,
};
use crate::reconcile::Applied;

/// Seconds in which a packet that has met an id is certainly gone.
const REST_SECS: u32 = 2;
/// Seconds between checks that mostly find nothing.
pub(super) const FULL_LOOK_SECS: u32 = 64;
/// Flows that are kept fresh in a second at most: some tens of milliseconds.
const REFRESHED: usize = 16_384;

/// The live flows of one backend in all tables, as a walk has met them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// All of them.
    pub(super) flows: u64,
    /// Those that are closed.
    pub(super) closing: u64,
    /// Second of the last packet of any.
    pub(super) last_packet: Option<u32>,
    /// Second in which the last of all ends if none sends any more.
    pub(super) ends: u32,
}

impl Tally {
    /// Counts a flow whose last packet came at `seen` and that may be idle for `kept` seconds.
    fn count(&mut self, value: FlowValue, seen: u32, kept: u32, now: Now) {
        self.flows += 1;
        self.last_packet = self.last_packet.max(Some(seen));
        self.ends = self.ends.max(seen.saturating_add(kept).saturating_add(1));
        if is_closed(value, now.mono_secs().saturating_sub(seen)) {
            self.closing += 1;
        }
    }
}

/// The results of the last walk through the flow tables.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// When it started; none: there was none.
    pub(super) started: Option<u32>,
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
    pub(super) leaving: BTreeSet<u16>,
    /// Services whose flows were pinned outside of any flux.
    pub(super) pins_expected: BTreeSet<u16>,
    /// Flows of services that follow a peer, to be kept fresh.
    stale: Vec<FlowRef>,
    /// When backends ceased to get new flows, until a later walk has counted those they have.
    pub(super) vacated: BTreeMap<u16, u32>,
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

    /// For how many seconds a flow of a shared service is kept past its end, since a peer may object.
    pub(super) fn objection_secs(&self, room: u32, history: &History) -> u32 {
        history.sharing.objection_secs(self.secs_between(room).saturating_add(1))
    }

    pub(super) fn is_due<D: DataPlane>(
        &self,
        maps: &AppliedMaps<D>,
        now: Now,
        waits: bool,
    ) -> bool {
        let Some(started) = self.started else { return true };
        let may_have_flows = self.flows > 0
            || maps.applied.rings.values().any(|ring| ring.in_flux > 0 || ring.pinned > 0)
            || maps
                .applied
                .services
                .values()
                .any(|service| service.udp_policy != udp_policy::ONESHOT);
        let since = now.mono_secs().saturating_sub(started);
        if !waits && !may_have_flows {
            return since >= FULL_LOOK_SECS;
        }
        since > self.secs_between(maps.room_for_pins())
    }

    /// Walks the flow tables: deletes what has ended and what names a backend or a service that is
    /// gone, and counts the rest. How many were deleted.
    pub(super) fn run<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        history: &mut History,
        now: Now,
    ) -> Result<u64> {
        let mut walk = Walk { started: Some(now.mono_secs()), clean: true, ..Walk::default() };
        let classifier = Classifier::new(self, maps, history, now)?;
        let exports = classifier.exports;
        let mut off_ring = HashMap::new();
        // Those that wait come first: a walk meets all flows in the same order each time.
        let mut stale = std::mem::take(&mut self.stale);
        let collects = stale.is_empty();
        let mut gone = Vec::new();
        let mut ending = Vec::new();
        for table in FlowTable::ALL {
            maps.plane
                .flows(table, &mut |flow, value| {
                    walk.flows += 1;
                    walk.pins += u64::from(table == FlowTable::Pins);
                    match classifier.class(&flow, value) {
                        Class::Orphaned => gone.push((flow, value, true)),
                        Class::Followed { lifetime, is_stale } => {
                            walk.count(value, lifetime, now);
                            if collects && is_stale {
                                stale.push(flow);
                            }
                        }
                        Class::Live { lifetime, is_off_ring } => {
                            walk.count(value, lifetime, now);
                            if is_off_ring {
                                off_ring.insert(flow, value.backend);
                            }
                        }
                        Class::Idle => {}
                        Class::Ending => ending.push(flow),
                        Class::Ended => gone.push((flow, value, false)),
                    }
                })
                .context("walk the flows")?;
        }
        drop(classifier);
        if exports {
            history.record_survey(maps, off_ring);
        }
        ending.iter().for_each(|flow| history.export_end(maps, flow));
        let deleted = walk.delete(maps, history, gone)?;
        let mut old = std::mem::take(self);
        // A packet that had met the slot before its change may have opened a flow since.
        old.vacated.retain(|_, at| now.mono_secs() <= *at);
        *self = Walk {
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

    /// Counts a flow that lives.
    fn count(&mut self, value: FlowValue, Lifetime { floor, kept }: Lifetime, now: Now) {
        let tally = self.per_backend.entry(value.backend).or_default();
        tally.count(value, value.seen.max(floor), kept, now);
    }

    /// Deletes flows unless they have changed since the walk met them, and exports their ends; how many it
    /// deleted. Beside each flow is whether its backend or service is gone.
    fn delete<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        history: &mut History,
        gone: Vec<(FlowRef, FlowValue, bool)>,
    ) -> Result<u64> {
        let mut deleted = 0;
        for (flow, seen, orphaned) in gone {
            let done = maps.plane.delete_flow(&flow, seen).context("delete a flow")?;
            if done {
                history.export_end(maps, &flow);
            }
            deleted += u64::from(done);
            self.clean &= done || !orphaned;
            self.flows -= u64::from(done);
            self.pins -= u64::from(done && matches!(flow, FlowRef::Pin(_)));
        }
        Ok(deleted)
    }

    /// Keeps flows of services that follow a peer fresh, and the marks of their slots: only the node that
    /// sees their packets knows when they end. As many as a second has time for; the next goes on.
    pub(super) fn refresh<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        history: &History,
        now: Now,
    ) -> Result<()> {
        let rest = self.stale.len().saturating_sub(REFRESHED);
        let mut stale = self.stale.split_off(rest);
        stale.sort_unstable_by_key(FlowRef::service);
        let mut services = BTreeMap::new();
        for (key, service) in &maps.applied.services {
            if history.role(key) == Role::Follows {
                services.insert(service.id, *service);
            }
        }
        let mut ring = None;
        for flow in stale {
            let Some(service) = services.get(&flow.service()) else { continue };
            // Since the walk it may have ended, or moved.
            let Some(value) = maps.plane.flow_value(&flow).context("read a flow")? else {
                continue;
            };
            let id = service.id;
            if ring.as_ref().is_none_or(|(of, _)| *of != id) && maps.applied.rings.contains_key(&id)
            {
                ring = Some((id, maps.plane.ring(id).context("read a ring")?));
            }
            if let (FlowRef::Pin(key), Some((of, ring))) = (&flow, &ring)
                && *of == id
            {
                let slot = ring.get(slot_of_flow(service, key) as usize);
                slot.into_iter().for_each(|slot| slot.touch_pinned(stamp(now.mono_secs())));
            }
            let fresh = FlowValue { seen: now.mono_secs(), ..value };
            maps.plane.put_flow(&flow, fresh).context("write a flow")?;
        }
        Ok(())
    }

    /// Gives ids free that nothing can name any more.
    pub(super) fn end_rests<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        now: Now,
    ) -> Result<()> {
        // Ids that rested when the maps were adopted rest from the first sweep on.
        for &id in &maps.applied.resting_backends {
            self.released_backends.entry(id).or_insert(now.mono_secs());
        }
        let walk = &*self;
        let rested = |released: &BTreeMap<u16, u32>| -> BTreeSet<u16> {
            released
                .iter()
                .filter(|(_, at)| walk.has_rested(**at, now))
                .map(|(id, _)| *id)
                .collect()
        };
        let (backends, services) =
            (rested(&walk.released_backends), rested(&walk.released_services));
        let named = |id: &u16| maps.applied.rings.values().any(|ring| ring.owned.contains_key(id));
        let backends: BTreeSet<_> = backends.into_iter().filter(|id| !named(id)).collect();
        if !backends.is_empty() {
            maps.plane.forget_fragments(&backends).context("delete marks of fragments")?;
        }
        self.released_backends.retain(|id, _| !backends.contains(id));
        self.released_services.retain(|id, _| !services.contains(id));
        maps.applied.resting_backends.retain(|id| !backends.contains(id));
        maps.applied.resting_services.retain(|id| !services.contains(id));
        Ok(())
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

/// What becomes of a flow by a walk.
enum Class {
    /// Its backend or service is gone: it is deleted.
    Orphaned,
    /// Its service follows a peer, which knows when it ends; if it is stale it is to be kept fresh here.
    Followed { lifetime: Lifetime, is_stale: bool },
    /// It has not been idle for longer than it may be. One that the ring would send elsewhere is exported.
    Live { lifetime: Lifetime, is_off_ring: bool },
    /// It has been silent for longer than its service lets it, and its table drops it by itself.
    Idle,
    /// Its end is exported before it is deleted here: the node that gets its packets may object.
    Ending,
    /// It is deleted.
    Ended,
}

/// How long a flow is kept.
#[derive(Clone, Copy)]
struct Lifetime {
    /// The second before which it can't have been idle.
    floor: u32,
    /// Seconds for which it may be idle.
    kept: u32,
}

/// The facts by which a walk classifies flows.
struct Classifier<R> {
    /// The services in the maps by their ids.
    services: BTreeMap<u16, WalkedService>,
    /// Ids of services that follow a peer.
    following: BTreeSet<u16>,
    /// Ids of backends that may keep flows.
    keeping: BTreeSet<u16>,
    /// Whether changes are exported to peers.
    exports: bool,
    /// Seconds for which a flow of a shared service is kept past its end.
    objection: u32,
    /// Seconds for which a flow that has only sent SYNs is kept.
    embryonic: u32,
    /// The rings of services that track their flows, for exports.
    rings: HashMap<u16, R>,
    now: Now,
}

struct WalkedService {
    value: Service,
    /// The second before which no flow of it can have been idle.
    floor: u32,
    is_shared: bool,
}

impl<R: Deref<Target = [Slot]>> Classifier<R> {
    fn new<D: DataPlane<Ring = R>>(
        last: &Walk,
        maps: &AppliedMaps<D>,
        history: &History,
        now: Now,
    ) -> Result<Self> {
        let following = history.following(maps);
        let services = maps.applied.services.iter().map(|(key, service)| {
            let floor = history.floor(key, service.idle_timeout, now);
            let is_shared = history.role(key) == Role::Shared;
            (service.id, WalkedService { value: *service, floor, is_shared })
        });
        let exports = history.pending.is_requested();
        let room = maps.room_for_pins();
        Ok(Self {
            services: services.collect(),
            keeping: keeping(&maps.applied, &following),
            following,
            exports,
            objection: last.objection_secs(room, history),
            embryonic: last.embryonic_secs(room),
            rings: if exports { maps.tracked_rings()? } else { HashMap::new() },
            now,
        })
    }

    fn class(&self, flow: &FlowRef, value: FlowValue) -> Class {
        let service = self.services.get(&flow.service());
        let service = service.filter(|_| self.keeping.contains(&value.backend));
        let Some(service) = service else { return Class::Orphaned };
        let kept = kept_secs(flow, value, &service.value, self.embryonic);
        // A flow that has only sent SYNs ends without waiting for a peer.
        let is_alone = service.is_shared && is_embryonic(value);
        let floor = if is_alone { 0 } else { service.floor };
        let lifetime = Lifetime { floor, kept };
        let idle = idle_secs(value, floor, self.now);
        if self.following.contains(&flow.service()) {
            return Class::Followed { lifetime, is_stale: idle > kept / 4 };
        }
        if idle <= kept {
            let is_off_ring = self.exports && off_ring(flow, value, &service.value, &self.rings);
            return Class::Live { lifetime, is_off_ring };
        }
        match flow {
            FlowRef::Pin(_) if !self.exports || !service.is_shared => Class::Ended,
            FlowRef::Pin(_) if idle <= kept + self.objection => Class::Ending,
            FlowRef::Pin(_) => Class::Ended,
            FlowRef::Tracked(_) | FlowRef::Connection(_) => Class::Idle,
        }
    }
}

//! History: the records of rings and flows that this node exports to its peers and imports from them.
//!
//! Nodes compute equal rings, so they differ only in the older owners of slots in flux, and in the pinned
//! flows. For each service one node's history counts ([`Role`]). That node *exports* it
//! ([`export`]); the others keep it as a *mirror* ([`mirror`]) and make their rings of it ([`import`]):
//! each slot is [`lb_model::ring::step`] from the peer's slot to the owner that this node's own view chooses.
//! So a difference of views is a change like any other, and when this node takes over, its maps are
//! right already.
//!
//! While a service follows, none of its flows ends here by itself: the node that sees its packets exports
//! the end. Its flows and slots are kept fresh instead, so that neither this process nor the next one takes
//! them for ended when it takes over.
//!
//! # Export
//!
//! A ring is exported by its members and base owners, then slots that have changed, then pins. The program notes
//! the pins that it makes, changes, or sees become established, in a mapped array with a stretch for each CPU. The
//! daemon reads the notes a hundred times a second; if notes were overwritten, it walks the pins. Flows of UDP
//! services that the ring would not find are exported by the walk of each second, at once after a change of the
//! ring, and before a handover ([`survey`]).
//!
//! # Import
//!
//! The peer's ring is kept by addresses. Each slot here is `ring::step` from the peer's owners to the owner that
//! this node chooses, so that a failover writes nothing. A ring is taken when all of it has arrived; flows that a
//! full history does not name are deleted at its end. A pin to an unknown backend is refused and the backend
//! remembered: when an operator adds it here too, the service counts as missing until all of it was exported again,
//! and the node does not take over before.
//!
//! Flows and slots of a service that follows are kept fresh. After a failover nothing has been idle for longer than
//! since then. A Backup without a peer keeps the state that it has. Pins of a predecessor that arrive late are
//! taken where the Active has none.
//!
//! # Acknowledgement
//!
//! Exports have numbers, and peers report the number up to which they have imported them (`sync::Mark`; heartbeats
//! carry it). Two steps wait for that, for two seconds at most:
//!
//! - Settling: a quiet slot is exported as settled and becomes its own base owner, so that a flow without a pin
//!   goes where a peer that has the export sends it. The slot settles when each peer has imported that, and no pin
//!   is left in it. If one is late, the slot gets its base owner again, which is exported, before the lease ends.
//!   Few slots are exported at a time, and more while peers and the daemon are quick ([`pending_export`]).
//! - The lease: with peers, the program may make and change pins for 30 milliseconds after each export, or after
//!   the oldest export that a peer has not imported. Past that, and while pinning is paused for a handover, SYNs go
//!   to the base owner, unless it is soft down, and pins keep their backends. So a peer has each flow that began while `lbd` was dead or the
//!   peer was late.
//!
//! `tests/control/pair/mod.rs` runs two engines, and three that share, over the core through thousands of random
//! changes, losses, restarts and failovers.

mod export;
mod flux;
mod follow;
mod import;
mod mirror;
mod pending_export;
mod share;
mod survey;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_common::abi::{self, FlowKey, Owners, Service, Slot, SlotSnapshot, stamp};
use lb_model::{
    backend_address::BackendAddress, desired::ServiceKey, entry, flow::FlowRef, time::Now,
};
use lb_plane::DataPlane;
use lb_sync::{Record, record::Flow};
use tracing::debug;

pub(super) use self::{export::off_ring, follow::Followed};
use self::{
    mirror::{PeerOwners, PeerRing},
    pending_export::{PendingExport, RingDelta, Settling, Window},
    share::Sharing,
};
pub use self::{
    pending_export::LATE,
    share::{Members, Sharers},
};
use super::{maps::AppliedMaps, wanted::Wanted};
use crate::reconcile;

/// The node whose history of a service counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// This node's: it is Active for the VIP, or has no peer. The default.
    #[default]
    Own,
    /// The Active peer's: rings follow its exports, and no flow ends here before it ends there.
    Follows,
    /// Every node's, as with ECMP: pins are exported in both directions, base owners to joining nodes, and slots
    /// settle when they are quiet on all nodes ([`share`]).
    Shared,
}

/// The engine's state of histories.
#[derive(Debug, Default)]
pub(super) struct History {
    roles: BTreeMap<ServiceKey, Role>,
    /// When services became this node's own that had followed, in seconds of CLOCK_MONOTONIC.
    taken_over: BTreeMap<ServiceKey, u32>,
    pub(super) pending: PendingExport,
    /// Slots that are about to settle.
    settling: BTreeMap<ServiceKey, Settling>,
    /// The last export that every peer has acknowledged; none: they acknowledge none.
    taken: Option<u64>,
    window: Window,
    mirrors: BTreeMap<ServiceKey, Mirror>,
    pub(super) sharing: Sharing,
    /// Services with records that were rejected.
    rejected: BTreeSet<ServiceKey>,
    /// Backends that peers have pinned flows to, and that are not known here.
    unknown_backends: BTreeMap<ServiceKey, BTreeSet<BackendAddress>>,
    /// Services with an unknown backend that has become known.
    newly_known: BTreeSet<ServiceKey>,
    /// Errors that were returned already and are not returned again.
    errors: BTreeSet<String>,
    /// Services whose pinning is paused.
    pub(super) pinning_paused: BTreeSet<ServiceKey>,
    /// Whether the lease was set, or found to be none.
    is_leased: bool,
    /// Slots that have settled since the last sweep.
    pub(super) settled: u64,
    /// Flows of UDP services may go where the ring does not send them since it has changed.
    survey_due: bool,
}

/// A peer's history of a service.
#[derive(Debug, Default)]
struct Mirror {
    /// The last ring that has arrived whole.
    ring: Option<PeerRing>,
    /// One of which a part is missing.
    next: Option<PeerRing>,
    /// The owners of `ring` for new flows, while it is in flux and they differ from this node's.
    table: Option<Vec<u16>>,
    /// While a full history arrives: the flows that it has named.
    named: Option<HashSet<FlowRef>>,
}

impl History {
    /// The node whose history of a service counts.
    pub(super) fn role(&self, service: &ServiceKey) -> Role {
        self.roles.get(service).copied().unwrap_or_default()
    }

    /// Before which second nothing of a service can have been idle.
    pub(super) fn floor(&self, service: &ServiceKey, idle: u32, now: Now) -> u32 {
        let taken_over = self.taken_over.get(service).copied().unwrap_or(0);
        match self.role(service) {
            Role::Shared => taken_over.max(self.sharing.floor(service, idle, now.mono_secs())),
            Role::Own | Role::Follows => taken_over,
        }
    }

    /// Notes since when peers have held up the ends of flows; once a second.
    pub(super) fn count_freeze(&mut self, services: &BTreeMap<ServiceKey, Service>, now: Now) {
        for (key, service) in services {
            self.sharing.count_freeze(key, service.idle_timeout, now.mono_secs());
        }
    }

    /// The ring of the peer that a service follows, if it has arrived.
    fn peer_ring(&self, service: &ServiceKey) -> Option<&PeerRing> {
        self.mirrors.get(service)?.ring.as_ref()
    }

    /// Whether the peer that a service follows may have flows on a backend.
    pub(super) fn names(&self, service: &ServiceKey, backend: BackendAddress) -> bool {
        self.peer_ring(service).is_some_and(|ring| ring.named().any(|name| name == backend))
    }

    /// Whether a service's ring is exported, so that a slot may settle only after that.
    pub(super) fn exports_slots(&self, service: &ServiceKey) -> bool {
        self.pending.is_requested() && self.role(service) == Role::Own
    }

    /// The slots of a service that are about to settle.
    pub(super) fn settling(&mut self, service: ServiceKey) -> &mut Settling {
        self.settling.entry(service).or_default()
    }

    /// A backend has become known.
    pub(super) fn backend_added(&mut self, service: ServiceKey, backend: BackendAddress) {
        let unknown_backends = self.unknown_backends.get_mut(&service);
        if unknown_backends.is_some_and(|unknown_backends| unknown_backends.remove(&backend)) {
            self.newly_known.insert(service);
        }
    }

    /// Removes the state of a service that is gone.
    pub(super) fn remove_service(&mut self, service: &ServiceKey, id: u16) {
        self.mirrors.remove(service);
        self.rejected.remove(service);
        self.unknown_backends.remove(service);
        self.newly_known.remove(service);
        self.settling.remove(service);
        self.taken_over.remove(service);
        self.sharing.set_shared(*service, false, 0);
        self.pending.drop_service(service, Some(id));
    }
}

impl History {
    /// As [`Engine::set_roles`](crate::engine::Engine::set_roles).
    pub(in crate::engine) fn set_roles<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        roles: BTreeMap<ServiceKey, Role>,
        now: Now,
    ) -> Result<()> {
        let before = std::mem::replace(&mut self.roles, roles);
        let keys: BTreeSet<_> = before.keys().chain(self.roles.keys()).copied().collect();
        let mut done = Ok(());
        for key in keys {
            let was = before.get(&key).copied().unwrap_or_default();
            if was == Role::Follows {
                self.record_changes(maps, now);
            }
            let is = self.role(&key);
            if before.get(&key) != self.roles.get(&key) {
                debug!("{key}: role {is:?}");
            }
            if was != is && is == Role::Follows {
                done = done.and(self.follow_own_ring(maps, key, now));
            }
            self.sharing.set_shared(key, is == Role::Shared, now.mono_secs());
            match (was, is) {
                (was, is) if was == is => {}
                (_, Role::Follows) => {
                    self.taken_over.remove(&key);
                    self.settling.remove(&key);
                    let id = maps.applied.services.get(&key).map(|service| service.id);
                    self.pending.drop_service(&key, id);
                }
                (Role::Follows, is) => {
                    self.mirrors.remove(&key);
                    self.taken_over.insert(key, now.mono_secs());
                    if is == Role::Own {
                        self.pending.add_ring(key);
                    }
                }
                (_, Role::Own) => self.pending.add_ring(key),
                (_, Role::Shared) => {}
            }
        }
        done
    }

    /// Keeps this node's ring as if a peer had exported it: changes in the health of backends from then on,
    /// seen perhaps without a link, end none of its flows.
    fn follow_own_ring<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        key: ServiceKey,
        now: Now,
    ) -> Result<()> {
        let mut records = Vec::new();
        self.export_ring(maps, &key, &RingDelta::Whole, now, &mut records)?;
        let mut ring = None;
        for record in records {
            match record {
                Record::Ring { slots, members, digest, .. } => {
                    ring = PeerRing::new(slots, members, digest);
                }
                Record::Bases { bases, .. } => {
                    if let Some(ring) = &mut ring {
                        bases.iter().for_each(|base| {
                            ring.set_base(base);
                        });
                    }
                }
                Record::Pins { .. } | Record::Ended { .. } => {}
            }
        }
        let mirror = Mirror { ring, ..Mirror::default() };
        self.mirrors.insert(key, mirror);
        Ok(())
    }

    /// As [`Engine::begin_import`](crate::engine::Engine::begin_import).
    pub(in crate::engine) fn begin_import(
        &mut self,
        wanted: &Wanted,
        services: &BTreeSet<ServiceKey>,
    ) {
        for key in services {
            if self.role(key) == Role::Own {
                continue;
            }
            debug!("{key}: begin import");
            let mirror = self.mirrors.entry(*key).or_default();
            mirror.next = None;
            mirror.named = Some(HashSet::new());
            self.unknown_backends.remove(key);
            let of = format!("{}: ", wanted.name_of(key));
            self.errors.retain(|error| !error.starts_with(&of));
        }
    }

    /// As [`Engine::pause_pinning`](crate::engine::Engine::pause_pinning).
    pub(in crate::engine) fn pause_pinning<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        services: &BTreeSet<ServiceKey>,
    ) -> Result<()> {
        if self.pinning_paused != *services {
            debug!("pause pinning of {services:?}");
            self.pinning_paused.clone_from(services);
        }
        for (key, value) in &mut maps.applied.services {
            let entry = reconcile::with_pinning_paused(*value, services.contains(key));
            if entry != *value {
                let context = || format!("write service {key}");
                maps.plane.put_service(key, &entry).with_context(context)?;
                *value = entry;
            }
        }
        Ok(())
    }

    /// As [`Engine::lease_pins`](crate::engine::Engine::lease_pins).
    pub(in crate::engine) fn lease_pins<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        until: Option<Duration>,
    ) {
        self.is_leased = true;
        let nanos = until.map_or(0, |until| u64::try_from(until.as_nanos()).unwrap_or(u64::MAX));
        maps.plane.lease_pins(nanos);
    }

    /// Ends the lease that another process has left, unless there is one by this.
    pub(super) fn end_stale_lease<D: DataPlane>(&mut self, maps: &mut AppliedMaps<D>) {
        if !self.is_leased {
            self.lease_pins(maps, None);
        }
    }

    pub(super) fn export_end<D: DataPlane>(&mut self, maps: &AppliedMaps<D>, flow: &FlowRef) {
        if let Some(key) = maps.key_of(flow.service())
            && self.role(&key) != Role::Follows
        {
            self.pending.add_end(key, to_flow(flow));
        }
    }

    /// Ids of the services that follow a peer.
    pub(super) fn following<D: DataPlane>(&self, maps: &AppliedMaps<D>) -> BTreeSet<u16> {
        maps.ids_of(|key| self.role(key) == Role::Follows)
    }

    /// The keys of the services that are exported, by id.
    fn exported_services<D: DataPlane>(&self, maps: &AppliedMaps<D>) -> BTreeMap<u16, ServiceKey> {
        let services = maps.applied.services.iter();
        let exported = services.filter(|(key, _)| self.role(key) != Role::Follows);
        exported.map(|(key, service)| (service.id, *key)).collect()
    }
}

/// A flow in its exported form.
pub(super) fn to_flow(flow: &FlowRef) -> Flow {
    match flow {
        FlowRef::Pin(key) => {
            Flow::Pinned(entry::ip_of(key.source), key.port.get(), key.destination)
        }
        FlowRef::Tracked(key) => {
            Flow::Tracked(entry::ip_of(key.source), key.port.get(), key.destination)
        }
        FlowRef::Connection(key) => Flow::Connection(key.id),
    }
}

/// The inverse of [`to_flow`], for a service of this node.
fn from_flow(flow: &Flow, service: u16) -> FlowRef {
    let key = |source, port: u16, destination| {
        let source = entry::address(source);
        FlowKey { source, port: port.into(), service, destination }
    };
    match *flow {
        Flow::Pinned(source, port, destination) => FlowRef::Pin(key(source, port, destination)),
        Flow::Tracked(source, port, destination) => {
            FlowRef::Tracked(key(source, port, destination))
        }
        Flow::Connection(id) => {
            FlowRef::Connection(abi::ConnectionKey { id, service, reserved: 0 })
        }
    }
}

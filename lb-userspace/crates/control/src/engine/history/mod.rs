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
//!   the oldest export that a peer has not imported. Past that, and while pins are held for a handover, SYNs go to
//!   the base owner and pins keep their backends. So a peer has each flow that began while `lbd` was dead or the
//!   peer was late.
//!
//! `tests/control/pair/mod.rs` runs two engines, and three that share, over the core through thousands of random
//! changes, losses, restarts and failovers.

mod export;
mod flux;
mod import;
mod mirror;
mod pending_export;
mod share;
mod survey;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{self, FlowKey, Owners, Seen, Service, Slot, stamp};
use lb_datapath::DataPlane;
use lb_model::{desired::ServiceKey, entry, flow::FlowRef, time::Now};
use lb_sync::{Record, record::Flow};
use tracing::debug;

pub(super) use self::{export::off_ring, import::Followed};
use self::{
    mirror::{PeerOwners, PeerRing},
    pending_export::{PendingExport, RingDelta, Settling, Window},
    share::Sharing,
};
pub use self::{
    pending_export::LATE,
    share::{Members, Sharers},
};
use super::Engine;
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
    unknown_backends: BTreeMap<ServiceKey, BTreeSet<IpAddr>>,
    /// Services with an unknown backend that has become known.
    newly_known: BTreeSet<ServiceKey>,
    /// Errors that were returned already and are not returned again.
    errors: BTreeSet<String>,
    /// Services whose pins are held.
    pub(super) held: BTreeSet<ServiceKey>,
    /// The virtual MAC addresses.
    pub(super) macs: BTreeSet<[u8; 6]>,
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
    pub(super) fn names(&self, service: &ServiceKey, backend: IpAddr) -> bool {
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
    pub(super) fn backend_added(&mut self, service: ServiceKey, backend: IpAddr) {
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
        self.sharing.set(*service, false, 0);
        self.pending.drop_service(service, Some(id));
    }
}

impl<D: DataPlane> Engine<D> {
    /// Sets whose history of each service counts; one that is not named is this node's own.
    ///
    /// A service that has followed has the right ring already: no map is written. One that begins to follow
    /// keeps its own ring until a peer exports one, for however long. If no peer does, it goes on from there
    /// when it is this node's own again.
    ///
    /// A service that follows is not exported any more. So the caller that takes [`Role::Own`] from a service
    /// calls [`Self::export_changes`] right before, and sends that to peers: it has the last pins.
    ///
    /// # Errors
    ///
    /// A ring can't be read; the roles are taken all the same.
    pub fn set_roles(&mut self, roles: BTreeMap<ServiceKey, Role>, now: Now) -> Result<()> {
        let before = std::mem::replace(&mut self.history.roles, roles);
        let keys: BTreeSet<_> = before.keys().chain(self.history.roles.keys()).copied().collect();
        let mut done = Ok(());
        for key in keys {
            let was = before.get(&key).copied().unwrap_or_default();
            if was == Role::Follows {
                self.record_changes(now);
            }
            let is = self.history.role(&key);
            if before.get(&key) != self.history.roles.get(&key) {
                debug!("{key}: role {is:?}");
            }
            if was != is && is == Role::Follows {
                done = done.and(self.follow_own_ring(key, now));
            }
            let history = &mut self.history;
            history.sharing.set(key, is == Role::Shared, now.mono_secs());
            match (was, is) {
                (was, is) if was == is => {}
                (_, Role::Follows) => {
                    history.taken_over.remove(&key);
                    history.settling.remove(&key);
                    let id = self.applied.services.get(&key).map(|service| service.id);
                    history.pending.drop_service(&key, id);
                }
                (Role::Follows, is) => {
                    history.mirrors.remove(&key);
                    history.taken_over.insert(key, now.mono_secs());
                    if is == Role::Own {
                        history.pending.ring(key);
                    }
                }
                (_, Role::Own) => history.pending.ring(key),
                (_, Role::Shared) => {}
            }
        }
        done
    }

    /// Keeps this node's ring as if a peer had exported it: changes in the health of backends from then on,
    /// seen perhaps without a link, end none of its flows.
    fn follow_own_ring(&mut self, key: ServiceKey, now: Now) -> Result<()> {
        let mut records = Vec::new();
        self.export_ring(&key, &RingDelta::Whole, now, &mut records)?;
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
        self.history.mirrors.insert(key, mirror);
        Ok(())
    }

    /// A peer is about to send the full histories of these services. The imported records are void when the
    /// full history has arrived; until then they hold.
    pub fn begin_import(&mut self, services: &BTreeSet<ServiceKey>) {
        for key in services {
            if self.history.role(key) == Role::Own {
                continue;
            }
            debug!("{key}: begin import");
            let mirror = self.history.mirrors.entry(*key).or_default();
            mirror.next = None;
            mirror.named = Some(HashSet::new());
            self.history.unknown_backends.remove(key);
            let of = format!("{}: ", self.name_of(key));
            self.history.errors.retain(|error| !error.starts_with(&of));
        }
    }

    /// From now on no flow of these services is pinned: SYNs go to the base owner where a pin would
    /// be needed. So the node that takes over has all pins. Flows of other services are pinned again.
    ///
    /// # Errors
    ///
    /// A map can't be written; the next reconciliation does it.
    pub fn hold_pins(&mut self, services: &BTreeSet<ServiceKey>) -> Result<()> {
        if self.history.held != *services {
            debug!("hold pins of {services:?}");
            self.history.held.clone_from(services);
        }
        for (key, value) in &mut self.applied.services {
            let held = reconcile::with_pins(*value, services.contains(key));
            if held != *value {
                let context = || format!("write service {key}");
                self.data_plane.put_service(key, &held).with_context(context)?;
                *value = held;
            }
        }
        Ok(())
    }

    /// Flows may be pinned until this time on CLOCK_MONOTONIC; none: always. So the program ceases to
    /// make pins that are not exported when the daemon has ceased to run.
    pub fn lease_pins(&mut self, until: Option<Duration>) {
        self.history.is_leased = true;
        let nanos = until.map_or(0, |until| u64::try_from(until.as_nanos()).unwrap_or(u64::MAX));
        self.data_plane.lease_pins(nanos);
    }

    /// Ends the lease that another process has left, unless there is one by this.
    pub(super) fn end_stale_lease(&mut self) {
        if !self.history.is_leased {
            self.lease_pins(None);
        }
    }

    /// Frames to this virtual MAC address are this node's, or no more.
    ///
    /// # Errors
    ///
    /// A map can't be written, or it has no room.
    pub fn take_mac(&mut self, mac: [u8; 6], take: bool) -> Result<()> {
        let mut virtual_macs = self.history.macs.clone();
        let changed = if take { virtual_macs.insert(mac) } else { virtual_macs.remove(&mac) };
        if !changed {
            return Ok(());
        }
        // While the list is empty every frame is taken, and the first entry would shut the others out.
        let mut macs = self.applied.own_macs.clone();
        if !macs.is_empty() {
            let own = self.neighbourhood.as_ref().map(|known| &known.own_macs);
            let is_own = own.is_some_and(|own| own.contains(&mac));
            match macs.iter().position(|known| *known == mac) {
                Some(place) if !take && !is_own => drop(macs.remove(place)),
                None if take => macs.push(mac),
                _ => {}
            }
        }
        let room = abi::OWN_MACS as usize;
        ensure!(
            macs.len().max(virtual_macs.len()) <= room,
            "there is room for {room} MAC addresses of this node and of its virtual routers; use \
             fewer interfaces, or `virtual_mac` on fewer of them",
        );
        if macs != self.applied.own_macs {
            self.data_plane.set_own_macs(&macs).context("write the node's MAC addresses")?;
            self.applied.own_macs = macs;
        }
        self.history.macs = virtual_macs;
        debug!("{} frames to {mac:02x?}", if take { "take" } else { "leave" });
        Ok(())
    }

    /// A service's name in the configuration, or its key.
    pub(super) fn name_of(&self, key: &ServiceKey) -> String {
        let services = self.desired().services.iter();
        let mut named = services.filter(|(_, service)| service.key == *key);
        named.next().map(|(name, _)| name.clone()).unwrap_or_else(|| key.to_string())
    }

    /// The key of a service by its id.
    pub(super) fn key_of(&self, id: u16) -> Option<ServiceKey> {
        self.applied.services.iter().find(|(_, service)| service.id == id).map(|(key, _)| *key)
    }

    /// Ids of the services that follow a peer.
    pub(super) fn following(&self) -> BTreeSet<u16> {
        let services = self.applied.services.iter();
        let following = services.filter(|(key, _)| self.history.role(key) == Role::Follows);
        following.map(|(_, service)| service.id).collect()
    }

    /// The keys of the services that are exported, by id.
    fn exported_services(&self) -> BTreeMap<u16, ServiceKey> {
        let services = self.applied.services.iter();
        let exported = services.filter(|(key, _)| self.history.role(key) != Role::Follows);
        exported.map(|(key, service)| (service.id, *key)).collect()
    }

    /// The addresses of backends by id.
    fn address_of(&self, id: u16) -> Option<IpAddr> {
        self.applied.backends.get(&id).map(|backend| entry::ip_of(backend.address))
    }
}

/// A flow in its exported form.
pub(super) fn to_flow(flow: &FlowRef) -> Flow {
    let client = |key: &FlowKey| (entry::ip_of(key.source), key.port.get());
    match flow {
        FlowRef::Pin(key) => {
            let (source, port) = client(key);
            Flow::Pinned(source, port)
        }
        FlowRef::Tracked(key) => {
            let (source, port) = client(key);
            Flow::Tracked(source, port)
        }
        FlowRef::Connection(key) => Flow::Connection(key.id),
    }
}

/// The inverse of [`to_flow`], for a service of this node.
fn from_flow(flow: &Flow, service: u16) -> FlowRef {
    let key = |source: IpAddr, port: u16| FlowKey {
        source: entry::address(source),
        port: port.into(),
        service,
    };
    match *flow {
        Flow::Pinned(source, port) => FlowRef::Pin(key(source, port)),
        Flow::Tracked(source, port) => FlowRef::Tracked(key(source, port)),
        Flow::Connection(id) => {
            FlowRef::Connection(abi::ConnectionKey { id, service, reserved: 0 })
        }
    }
}

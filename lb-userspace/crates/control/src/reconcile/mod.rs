//! The writes that bring the maps to the desired state: a pure function, whose order is the safety
//! argument.

mod choose;
mod ids;
mod peers;
mod place;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_api::status::Standing;
use lb_common::{
    abi::{self, Owners, PeerKey, service_flags, udp_policy},
    hash::FlowKeys,
};
use lb_model::{
    desired::{Admin, Desired, Protocol, Service, ServiceKey, UdpPolicy},
    entry,
    hop::Neighbourhood,
    maglev::Member,
    seen::{self, View},
    settings::{Limits, Tunnel},
    time::Now,
};

pub(crate) use self::place::flows_are_moved;
use self::{
    ids::Ids,
    place::{Placed, is_usable, place},
};

/// The content of the maps, as far as it was written or read back.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// `SERVICES_V4` and `SERVICES_V6`.
    pub services: BTreeMap<ServiceKey, abi::Service>,
    /// `BACKENDS`, without the entries that are all zero.
    pub backends: BTreeMap<u16, abi::Backend>,
    /// `RINGS`, summed up.
    pub rings: BTreeMap<u16, Ring>,
    /// `VIPS`.
    pub vips: BTreeSet<IpAddr>,
    /// `OWN_MACS`.
    pub own_macs: Vec<[u8; 6]>,
    /// `PEER_MACS`.
    pub peer_macs: BTreeMap<PeerKey, u16>,
    /// Ids of backends that were released and may still be named somewhere: by a packet in flight
    /// or a flow.
    pub resting_backends: BTreeSet<u16>,
    /// The same of services.
    pub resting_services: BTreeSet<u16>,
}

/// A ring, summed up: the slots themselves stay in the kernel's memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ring {
    /// Number of slots.
    pub slots: u32,
    /// The target that it was written for; none if that is not known, after a start or a failure.
    pub target: Option<RingTarget>,
    /// Slots of each backend that has any.
    pub owned: BTreeMap<u16, OwnedSlots>,
    /// Slots with a base owner.
    pub in_flux: u32,
    /// Slots with a stamp of live pins.
    pub pinned: u32,
}

impl Ring {
    /// Sums up that a slot has other owners.
    pub(crate) fn move_slot(&mut self, before: Owners, after: Owners) {
        for (owners, by) in [(before, -1), (after, 1)] {
            let Owners { current, base } = owners;
            if current != 0 {
                let owned = self.owned.entry(current).or_default();
                owned.current = owned.current.saturating_add_signed(by);
            }
            if base != 0 {
                let owned = self.owned.entry(base).or_default();
                owned.base = owned.base.saturating_add_signed(by);
                self.in_flux = self.in_flux.saturating_add_signed(by);
            }
        }
        self.owned.retain(|_, owned| *owned != OwnedSlots::default());
    }
}

/// Slots of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnedSlots {
    /// As current owner.
    pub current: u32,
    /// As base owner.
    pub base: u32,
}

/// The owners that a ring is to have, and those that it may keep.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RingTarget {
    /// Number of slots.
    pub slots: u32,
    /// The backends that share new flows, in the order of their addresses, with their ids.
    pub members: Vec<(Member, u16)>,
    /// Ids of the backends that keep the flows that they have.
    pub keeping: BTreeSet<u16>,
    /// Whether those flows are known by their slots, which then have base owners.
    pub bases: bool,
}

/// One write of a plan: a step from the applied state to the desired state.
#[derive(Clone, Debug, PartialEq)]
pub enum MapWrite {
    /// Replace the MAC addresses that the node answers to.
    SetOwnMacs(Vec<[u8; 6]>),
    /// Replace the MAC addresses of other balancers.
    SetPeerMacs(BTreeMap<PeerKey, u16>),
    /// Write a backend's entry.
    PutBackend(u16, Box<abi::Backend>),
    /// Make a ring of its own for this service and publish it whole.
    PublishRing(u16, RingTarget),
    /// Write the owners that differ, in place.
    RetargetRing(u16, RingTarget),
    /// Add the address of a service.
    PutVip(IpAddr),
    /// Add or replace a service.
    PutService(ServiceKey, Box<abi::Service>),
    /// Remove a service.
    DeleteService(ServiceKey),
    /// Remove the address of a service.
    DeleteVip(IpAddr),
    /// Remove the ring of a service.
    DeleteRing(u16),
    /// Free a backend's entry.
    ClearBackend(u16),
}

/// The inputs of a plan, without the applied state.
#[derive(Clone, Copy, Debug)]
pub struct PlanInputs<'a> {
    /// The desired state.
    pub desired: &'a Desired,
    /// The known next hops; none: not read yet.
    pub neighbourhood: Option<&'a Neighbourhood>,
    /// Services without a reachable backend.
    pub unreached: &'a BTreeSet<ServiceKey>,
    /// Services without a reachable backend until a moment ago: the other backends have time to answer.
    pub recovering: &'a BTreeSet<ServiceKey>,
    /// The health of the backends.
    pub view: &'a View,
    /// How far backends are that take their share by and by.
    pub ramps: &'a Ramps,
    /// The capacity of the maps.
    pub limits: Limits,
    /// CPUs that share a SYN budget.
    pub cpus: u32,
    /// Services of which no flow is to be pinned.
    pub pinning_paused: &'a BTreeSet<ServiceKey>,
    /// Addresses of the other balancers that may forward packets to this node.
    pub peers: &'a BTreeSet<IpAddr>,
    /// The virtual MAC addresses that the node answers to.
    pub virtual_macs: &'a BTreeSet<[u8; 6]>,
    /// The outer sources of tunnels.
    pub tunnel: &'a Tunnel,
    /// The secret behind rings and flow hashes.
    pub seed: &'a [u8; 16],
    /// The time.
    pub now: Now,
}

/// The shares, in thousandths of their weights, of backends that don't have all of it yet.
pub(crate) type Ramps = BTreeMap<seen::BackendKey, u16>;

/// A plan, and the parts that it had to leave out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WritePlan {
    /// The writes, in the order in which they are safe.
    pub writes: Vec<MapWrite>,
    /// Messages about entries that the maps have no room for.
    pub left_out: Vec<String>,
    /// How each service stands.
    pub standings: BTreeMap<ServiceKey, Standing>,
}

/// Backends before the rings that name them, rings before the services that use them; deletes in
/// reverse. A backend that stops being usable is written after the rings have left it.
#[must_use]
pub fn plan(inputs: &PlanInputs<'_>, applied: &Applied) -> WritePlan {
    let mut stages = Stages::default();
    let mut left_out = Vec::new();
    let mut peer_macs = BTreeMap::new();
    let mut standings = BTreeMap::new();
    let mut ids = Ids::new(inputs, applied);
    if let Some(neighbourhood) = inputs.neighbourhood {
        stages.own_macs = own_macs(inputs, neighbourhood, applied, &mut left_out);
    }
    for (name, service) in &inputs.desired.services {
        let Some(id) = ids.of_service(&service.key) else {
            left_out.push(full(name, "services", inputs.limits.services));
            continue;
        };
        let (placed, standing) = place(inputs, applied, id, service, &mut |address, backend| {
            // One that has left the maps stays out of them until it is out of the desired state too.
            if matches!(backend.admin, Admin::Removing { .. }) && !ids.has_backend(id, address) {
                return None;
            }
            let found = ids.of_backend(id, address);
            if found.is_none() {
                let what = format!("{name} {address}");
                left_out.push(full(&what, "backends", inputs.limits.backends));
            }
            found
        });
        standings.insert(service.key, standing);
        let deliveries = peers::deliveries(inputs, applied, id, service, &placed);
        stages.add_backends(&placed, applied);
        stages.add_ring(id, ring_target(service, &placed), applied);
        if let Some(vip) = only_vip(&service.key)
            && !applied.vips.contains(&vip)
            && ids.vips.insert(vip)
        {
            stages.services.push(MapWrite::PutVip(vip));
        }
        let value = service_value(inputs, id, service, !deliveries.is_empty());
        peer_macs.extend(deliveries);
        if applied.services.get(&service.key) != Some(&value) {
            stages.services.push(MapWrite::PutService(service.key, Box::new(value)));
        }
    }
    if let Some(lacking) = peers::without_room(&mut peer_macs) {
        left_out.push(lacking);
    }
    if peer_macs != applied.peer_macs {
        // Before the services that use them; one that is gone from them has no backend here any more.
        stages.rings.push(MapWrite::SetPeerMacs(peer_macs));
    }
    stages.deletions = deletions(&ids, applied);
    WritePlan { writes: stages.in_order(), left_out, standings }
}

/// The writes of a plan by the stages in which they are safe, in this order.
#[derive(Default)]
struct Stages {
    own_macs: Option<MapWrite>,
    /// Backends that are added, or usable as before.
    gained_backends: Vec<MapWrite>,
    rings: Vec<MapWrite>,
    services: Vec<MapWrite>,
    /// Rings that are smaller than before: after the services that hash to fewer slots.
    smaller_rings: Vec<MapWrite>,
    /// Backends that are usable no more: after the rings have left them.
    lost_backends: Vec<MapWrite>,
    deletions: Vec<MapWrite>,
}

impl Stages {
    /// Adds the entries of a service's backends that differ from those in the map.
    fn add_backends(&mut self, placed: &[Placed], applied: &Applied) {
        for backend in placed {
            let old = applied.backends.get(&backend.id);
            if old == Some(&backend.value) {
                continue;
            }
            let is_lost = old.is_some_and(is_usable) && !is_usable(&backend.value);
            let stage = if is_lost { &mut self.lost_backends } else { &mut self.gained_backends };
            stage.push(MapWrite::PutBackend(backend.id, Box::new(backend.value)));
        }
    }

    /// Adds the write of a service's ring, if its target is another than that of the ring in the map.
    fn add_ring(&mut self, id: u16, target: RingTarget, applied: &Applied) {
        match applied.rings.get(&id) {
            Some(ring) if ring.slots == target.slots => {
                if ring.target.as_ref() != Some(&target) {
                    self.rings.push(MapWrite::RetargetRing(id, target));
                }
            }
            Some(ring) if ring.slots > target.slots => {
                self.smaller_rings.push(MapWrite::PublishRing(id, target));
            }
            _ => self.rings.push(MapWrite::PublishRing(id, target)),
        }
    }

    fn in_order(self) -> Vec<MapWrite> {
        let Self { own_macs, gained_backends, rings, services, .. } = self;
        let Self { smaller_rings, lost_backends, deletions, .. } = self;
        let stages = [gained_backends, rings, services, smaller_rings, lost_backends, deletions];
        own_macs.into_iter().chain(stages.into_iter().flatten()).collect()
    }
}

/// The write of the MAC addresses that the node answers to, if they are others than in the map.
fn own_macs(
    inputs: &PlanInputs<'_>,
    neighbourhood: &Neighbourhood,
    applied: &Applied,
    left_out: &mut Vec<String>,
) -> Option<MapWrite> {
    let mut macs = neighbourhood.own_macs.clone();
    // An empty list takes every frame, and one with virtual addresses alone would not.
    if !macs.is_empty() {
        let others = inputs.virtual_macs.iter().filter(|mac| !neighbourhood.own_macs.contains(mac));
        macs.extend(others);
    }
    let room = abi::OWN_MACS as usize;
    if macs.len() > room {
        left_out.push(format!("{} MAC addresses of this node; {room} are used", macs.len()));
        macs.truncate(room);
    }
    let are_known = macs.iter().all(|mac| applied.own_macs.contains(mac));
    let is_same = are_known && macs.len() == applied.own_macs.len();
    (!is_same).then_some(MapWrite::SetOwnMacs(macs))
}

/// The VIP of a service that has one. What is in a prefix is found by that.
fn only_vip(service: &ServiceKey) -> Option<IpAddr> {
    (service.extent.host_bits == 0).then_some(service.vip)
}

/// The deletions of what is in the maps and has no id in the desired state: services first, backends last.
fn deletions(ids: &Ids<'_>, applied: &Applied) -> Vec<MapWrite> {
    let vips: BTreeSet<_> = ids.services.keys().filter_map(only_vip).collect();
    let used: BTreeSet<_> = ids.services.values().copied().collect();
    let services = applied.services.keys().filter(|key| !ids.services.contains_key(key));
    let vips = applied.vips.difference(&vips);
    let rings = applied.rings.keys().filter(|id| !used.contains(id));
    let backends = applied.backends.keys().filter(|id| !ids.backends.contains(id));
    services
        .map(|key| MapWrite::DeleteService(*key))
        .chain(vips.map(|vip| MapWrite::DeleteVip(*vip)))
        .chain(rings.map(|id| MapWrite::DeleteRing(*id)))
        .chain(backends.map(|id| MapWrite::ClearBackend(*id)))
        .collect()
}

fn full(what: &str, key: &str, limit: u32) -> String {
    format!(
        "{what}: no room, {limit} {key} are in use or were until a moment ago; raise \
         `{key}` under [limits] and restart lbd"
    )
}

fn ring_target(service: &Service, placed: &[Placed]) -> RingTarget {
    // A oneshot service has no flows, and a tracked one has an entry for each.
    let bases = service.key.protocol == Protocol::Tcp || service.udp_policy == UdpPolicy::Quic;
    let members = placed.iter().filter(|backend| backend.member);
    RingTarget {
        slots: service.ring_slots,
        members: members.map(|b| (Member { address: b.address, weight: b.weight }, b.id)).collect(),
        keeping: placed.iter().filter(|b| b.keeps).map(|b| b.id).collect(),
        bases,
    }
}

/// A service's entry, with pinning paused or not.
#[must_use]
pub(crate) const fn with_pinning_paused(mut value: abi::Service, paused: bool) -> abi::Service {
    value.flags &= !service_flags::PINNING_PAUSED;
    if paused {
        value.flags |= service_flags::PINNING_PAUSED;
    }
    value
}

/// A service's entry; `is_local` if other balancers may forward to a backend of it on this node.
fn service_value(
    inputs: &PlanInputs<'_>,
    id: u16,
    service: &Service,
    is_local: bool,
) -> abi::Service {
    let ServiceKey { vip, port, protocol, extent } = service.key;
    let mut name = entry::address(vip).to_vec();
    name.extend(port.to_be_bytes());
    name.push(protocol.number());
    let mut wide = 0;
    if !extent.is_one() {
        name.push(extent.host_bits);
        name.extend(extent.more_ports.to_be_bytes());
        wide = service_flags::WIDE;
    }
    let second_choice = if service.policy.second_choice { service_flags::SECOND_CHOICE } else { 0 };
    let local = if is_local { service_flags::LOCAL } else { 0 };
    let value = abi::Service {
        keys: FlowKeys::derive(inputs.seed, &name).0,
        slots: service.ring_slots,
        id,
        udp_policy: match service.udp_policy {
            UdpPolicy::Oneshot => udp_policy::ONESHOT,
            UdpPolicy::Tracked => udp_policy::TRACKED,
            UdpPolicy::Quic => udp_policy::QUIC,
        },
        flags: second_choice | local | wide,
        idle_timeout: u32::try_from(service.idle_timeout.as_secs()).unwrap_or(u32::MAX),
        syn_budget: service.syn_budget.div_ceil(inputs.cpus.max(1)),
    };
    with_pinning_paused(value, inputs.pinning_paused.contains(&service.key))
}

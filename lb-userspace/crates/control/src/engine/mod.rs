//! The one writer: has the desired state and the content of the maps, and makes them equal.
//!
//! [`Engine::reconcile`] plans and applies; [`Engine::sweep`], once a second, ends what has run
//! out; [`Engine::status`] reads the counters. No other code writes maps.
//!
//! [`Engine::adopt`] reads a predecessor's state back from the maps, so a restart moves no flow. After a
//! failed write the record of the applied state is still true, and the next tick, a second later, plans the rest.

mod drain_progress;
mod history;
mod interfaces;
mod outage;
mod pin_shares;
mod pressure;
pub mod preview;
mod ramp;
mod report;
mod retired;
mod silence;
mod starved;
mod sweep;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result, bail};
use lb_api::status::Standing;
use lb_common::abi::{self, Owners, Slot, backend_flags, stamp};
use lb_datapath::DataPlane;
use lb_model::{
    desired::{Admin, Desired, Mode, ServiceKey},
    entry,
    hop::{Neighbourhood, Resolution, Want},
    maglev, ring,
    seen::{self, Condition, Seen, View},
    settings::Settings,
    time::Now,
    units::counted,
};
use tracing::info;
use zerocopy::FromZeros as _;

use self::{
    drain_progress::Drains,
    history::{Followed, History},
    interfaces::Interfaces,
    outage::Outages,
    pin_shares::Shares,
    ramp::Ramping,
    retired::Retired,
    silence::Silence,
    starved::Starved,
    sweep::Walk,
};
pub use self::{
    history::{LATE, Members, Role, Sharers},
    interfaces::{InterfaceEvent, InterfaceEventKind},
    silence::Suspicion,
};
use crate::reconcile::{self, Applied, Change, Held, Inputs, Plan, Ramps, Ring, Target};

/// How many new rings are published at a time. The kernel waits for all runs of programs after each time,
/// tens of milliseconds; and the owners of as many rings are in memory, a quarter of a megabyte each.
const TOGETHER: usize = 8;

/// The one writer of the maps.
#[derive(Debug)]
pub struct Engine<D> {
    data_plane: D,
    settings: Settings,
    desired: Option<Desired>,
    neighbourhood: Option<Neighbourhood>,
    /// Addresses of the other balancers.
    peers: BTreeSet<IpAddr>,
    applied: Applied,
    walk: Walk,
    outages: Outages,
    interfaces: Interfaces,
    view: View,
    ramping: Ramping,
    /// The shares that the last plan was made with.
    ramps: Ramps,
    silence: Silence,
    drains: Drains,
    /// By the service's id.
    pin_shares: BTreeMap<u16, Shares>,
    starved: Starved,
    history: History,
    standings: BTreeMap<ServiceKey, Standing>,
    retired: Retired,
    last_error: Option<String>,
}

/// The result of a reconciliation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Entries of maps that were written; the slots of one ring count as one.
    pub changes: usize,
    /// Slots whose new flows have a new owner.
    pub slots_moved: u64,
}

/// The result of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Backends in `removing` whose last flow has ended: service name and address. The caller
    /// takes them out of the desired state; until then they are reported again.
    pub removed: Vec<(String, IpAddr)>,
    /// Slots whose base owner was cleared.
    pub settled: u64,
    /// Pins that were deleted.
    pub expired: u64,
    /// Interfaces that have lost the program, or have it again.
    pub interfaces: Vec<InterfaceEvent>,
}

impl<D: DataPlane> Engine<D> {
    /// Reads the maps, and goes on from there. Writes no map.
    ///
    /// # Errors
    ///
    /// If a map can't be read.
    pub fn adopt(data_plane: D, settings: &Settings) -> Result<Self> {
        let mut applied = Applied {
            services: data_plane.services().context("read the services")?,
            backends: data_plane.backends().context("read the backends")?,
            rings: BTreeMap::new(),
            vips: data_plane.vips().context("read the VIPs")?,
            own_macs: data_plane.own_macs().context("read the node's MAC addresses")?,
            peer_macs: data_plane.peer_macs().context("read the MACs of other balancers")?,
            ..Applied::default()
        };
        for id in data_plane.rings().context("read the rings")? {
            let ring = data_plane.ring(id).with_context(|| format!("read ring {id}"))?;
            applied.rings.insert(id, summary(&ring, None));
        }
        // An id with packets to its name and no entry was released, perhaps a moment ago.
        let totals = data_plane.backend_totals().context("read the backends' counters")?;
        let used = totals.iter().enumerate().filter(|(_, totals)| totals.sent.packets > 0);
        applied.resting_backends = used
            .filter_map(|(id, _)| u16::try_from(id).ok())
            .filter(|id| !applied.backends.contains_key(id))
            .collect();
        Ok(Self {
            data_plane,
            settings: settings.clone(),
            desired: None,
            neighbourhood: None,
            peers: BTreeSet::new(),
            applied,
            walk: Walk::default(),
            outages: Outages::default(),
            interfaces: Interfaces::default(),
            view: View::default(),
            ramping: Ramping::default(),
            ramps: Ramps::new(),
            silence: Silence::default(),
            drains: Drains::default(),
            pin_shares: BTreeMap::new(),
            starved: Starved::default(),
            history: History::default(),
            standings: BTreeMap::new(),
            retired: Retired::default(),
            last_error: None,
        })
    }

    /// The data plane that it writes.
    pub const fn data_plane(&self) -> &D {
        &self.data_plane
    }

    /// The data plane, for writes beside the engine's: the hooks, and the program's part in tests.
    pub const fn data_plane_mut(&mut self) -> &mut D {
        &mut self.data_plane
    }

    /// Gives the data plane back; the maps stay as they are.
    pub fn into_data_plane(self) -> D {
        self.data_plane
    }

    /// Replaces the desired state; [`Self::reconcile`] acts on it. Until the first call no map is
    /// written.
    pub fn set_desired(&mut self, desired: Desired) {
        self.desired = Some(desired);
    }

    /// The desired state.
    pub fn desired(&self) -> &Desired {
        static NOTHING: Desired = Desired { services: BTreeMap::new() };
        self.desired.as_ref().unwrap_or(&NOTHING)
    }

    /// Replaces the known next hops; [`Self::reconcile`] acts on it.
    pub fn set_neighbourhood(&mut self, neighbourhood: Neighbourhood) {
        self.neighbourhood = Some(neighbourhood);
    }

    /// Replaces the addresses of the other balancers; [`Self::reconcile`] acts on it.
    pub fn set_peers(&mut self, peers: BTreeSet<IpAddr>) {
        self.peers = peers;
    }

    /// Replaces the health of the backends; [`Self::reconcile`] acts on it.
    pub fn set_view(&mut self, view: View) {
        self.view = view;
    }

    /// How the services stand since the last reconciliation.
    pub const fn standings(&self) -> &BTreeMap<ServiceKey, Standing> {
        &self.standings
    }

    /// The health of the checked backends by the maps: those that a predecessor had taken out of their rings
    /// stay out until a check has probed them, and the others stay in.
    pub fn adopted_view(&self) -> View {
        let mut view = View::new();
        let ids = self.ids();
        for service in self.desired().services.values() {
            let Some(value) = self.applied.services.get(&service.key) else { continue };
            let Some(ring) = self.applied.rings.get(&value.id) else { continue };
            let owns = |id| ring.held.get(&id).is_some_and(|held| held.current > 0);
            // While others serve, a backup owns no slot though it is up.
            let backups_serve = service
                .backends
                .iter()
                .any(|(at, wanted)| wanted.backup && ids.of(value.id, *at).is_some_and(owns));
            for (&backend, wanted) in &service.backends {
                let Some(id) = ids.of(value.id, backend) else { continue };
                if !service.check_of(wanted).is_active() {
                    continue;
                }
                let entry = self.applied.backends.get(&id);
                let has = |flag| entry.is_some_and(|entry| entry.flags & flag != 0);
                // One that the operator keeps out of the ring may be well.
                if wanted.admin != Admin::Enabled && !has(backend_flags::SOFT_DOWN) {
                    continue;
                }
                let usable = has(backend_flags::USABLE);
                let spare = wanted.backup && !backups_serve && usable;
                let condition = match (owns(id) || spare, usable) {
                    (true, _) => Condition::Up,
                    (false, true) => Condition::SoftDown,
                    (false, false) => Condition::HardDown,
                };
                let seen = Seen { condition, ..Seen::default() };
                view.insert(seen::Target { service: service.key, backend }, seen);
            }
        }
        view
    }

    /// The backends whose next hops must be known; with one of them on this node, also the other balancers.
    pub fn wants(&self) -> BTreeSet<Want> {
        let services = self.desired().services.values();
        let wants = services.flat_map(|service| {
            service.backends.keys().map(|&address| Want { address, mode: service.mode })
        });
        let mut wants: BTreeSet<Want> = wants.collect();
        let mut hops = self.neighbourhood.iter().flat_map(|known| known.hops.values());
        if hops.any(|hop| matches!(hop, Resolution::Resolved(hop) if hop.is_local())) {
            let peer = |&address| Want { address, mode: Mode::Dsr };
            wants.extend(self.peers.iter().map(peer));
        }
        wants
    }

    /// Makes the maps equal to the desired state. After a failure the next call does the rest.
    ///
    /// # Errors
    ///
    /// If a map could not be written: the rest of the plan waits for the next call. If
    /// a map has no room: everything else is applied.
    pub fn reconcile(&mut self, now: Now) -> Result<Outcome> {
        let done = self.try_reconcile(now);
        let done = done.and_then(|outcome| self.retire().map(|()| outcome));
        self.last_error = done.as_ref().err().map(|error| format!("{error:#}"));
        done
    }

    fn try_reconcile(&mut self, now: Now) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        if self.desired.is_some() && self.walk.is_first() {
            // No id is given to anything while a flow of an earlier owner may name it.
            self.walk_flows(now)?;
        }
        if self.desired.is_some() {
            self.end_stale_lease();
        }
        let Some(desired) = &self.desired else { return Ok(outcome) };
        if let Some(neighbourhood) = &self.neighbourhood {
            self.outages.follow(desired, neighbourhood, now);
        }
        let mut ramping = std::mem::take(&mut self.ramping);
        let plan = self.plan(desired, self.neighbourhood.as_ref(), &mut ramping, now);
        self.ramps = ramping.shares(now);
        self.ramping = ramping;
        self.standings = plan.standings;
        let mut changes = plan.changes.into_iter().peekable();
        let mut new_rings = Vec::new();
        while let Some(change) = changes.next() {
            let Change::PublishRing(id, target) = change else {
                self.apply(change, now, &mut outcome)?;
                continue;
            };
            new_rings.push((id, target));
            let another = matches!(changes.peek(), Some(Change::PublishRing(..)));
            if !another || new_rings.len() == TOGETHER {
                self.publish_rings(std::mem::take(&mut new_rings), now, &mut outcome)?;
            }
        }
        if self.walk.has_orphaned(&self.applied, &self.following()) {
            self.walk_flows(now)?;
        }
        self.survey_if_due(now)?;
        if plan.left_out.is_empty() { Ok(outcome) } else { bail!(plan.left_out.join("; ")) }
    }

    /// The writes that put this in force; notes the backends that join rings by it.
    fn plan(
        &self,
        desired: &Desired,
        neighbourhood: Option<&Neighbourhood>,
        ramping: &mut Ramping,
        now: Now,
    ) -> Plan {
        let (unreached, recovering) = (self.outages.lasting(), self.outages.ending());
        let before = ramping.shares(now);
        let inputs = Inputs {
            desired,
            neighbourhood,
            unreached: &unreached,
            recovering: &recovering,
            view: &self.view,
            ramps: &before,
            limits: self.data_plane.limits(),
            cpus: self.data_plane.online_cpus(),
            held_pins: &self.history.held,
            peers: &self.peers,
            virtual_macs: &self.history.macs,
            tunnel: &self.settings.tunnel,
            seed: &self.settings.seed,
            now,
        };
        let plan = reconcile::plan(&inputs, &self.applied);
        if !ramping.follow(&inputs, &plan, &self.applied) {
            return plan;
        }
        let ramps = ramping.shares(now);
        reconcile::plan(&Inputs { ramps: &ramps, ..inputs }, &self.applied)
    }

    fn apply(&mut self, change: Change, now: Now, outcome: &mut Outcome) -> Result<()> {
        let Self { data_plane, applied, .. } = self;
        match change {
            Change::SetOwnMacs(macs) => {
                data_plane.set_own_macs(&macs).context("write the node's MAC addresses")?;
                applied.own_macs = macs;
            }
            Change::SetPeerMacs(peers) => {
                data_plane.set_peer_macs(&peers).context("write the MACs of other balancers")?;
                applied.peer_macs = peers;
            }
            Change::PutBackend(id, value) => {
                let context = || format!("write backend {id}");
                if !applied.backends.contains_key(&id) {
                    data_plane.reset_backend_totals(id).with_context(context)?;
                }
                data_plane.put_backend(id, &value).with_context(context)?;
                let (service, address) = (value.service, entry::ip_of(value.address));
                if applied.backends.insert(id, *value).is_none()
                    && let Some(key) = self.key_of(service)
                {
                    self.history.backend_added(key, address);
                }
            }
            Change::PublishRing(id, target) => {
                return self.publish_rings(vec![(id, target)], now, outcome);
            }
            Change::RetargetRing(id, target) => {
                // It counts only if it writes.
                return self.retarget_ring(id, target, now, outcome);
            }
            Change::PutVip(vip) => {
                data_plane.put_vip(vip).with_context(|| format!("write VIP {vip}"))?;
                applied.vips.insert(vip);
            }
            Change::PutService(key, value) => {
                let context = || format!("write service {key}");
                let known = applied.services.get(&key);
                if known.is_none_or(|known| known.syn_budget != value.syn_budget) {
                    data_plane.reset_syn_budget(value.id).with_context(context)?;
                }
                data_plane.put_service(&key, &value).with_context(context)?;
                applied.services.insert(key, *value);
            }
            Change::DeleteService(key) => {
                data_plane.delete_service(&key).with_context(|| format!("delete service {key}"))?;
                if let Some(value) = applied.services.remove(&key) {
                    applied.resting_services.insert(value.id);
                    self.walk.release_service(value.id, now);
                    self.retired.forget(&key);
                    self.history.remove_service(&key, value.id);
                }
            }
            Change::DeleteVip(vip) => {
                data_plane.delete_vip(vip).with_context(|| format!("delete VIP {vip}"))?;
                applied.vips.remove(&vip);
            }
            Change::DeleteRing(id) => {
                data_plane.delete_ring(id).with_context(|| format!("delete ring {id}"))?;
                applied.rings.remove(&id);
            }
            Change::ClearBackend(id) => self.clear_backend(id, now)?,
        }
        outcome.changes += 1;
        Ok(())
    }

    /// Frees a backend's entry; its id rests until nothing can name it.
    fn clear_backend(&mut self, id: u16, now: Now) -> Result<()> {
        let context = || format!("clear backend {id}");
        self.data_plane.put_backend(id, &abi::Backend::new_zeroed()).with_context(context)?;
        if let Some(entry) = self.applied.backends.remove(&id)
            && let Some(key) = self.key_of(entry.service)
        {
            self.retired.clear(key, id);
        }
        self.applied.resting_backends.insert(id);
        self.walk.release_backend(id, now);
        Ok(())
    }

    fn publish_rings(
        &mut self,
        targets: Vec<(u16, Target)>,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let owners = |target: &Target| -> Vec<_> {
            let table = table(target, &self.settings.seed);
            let owner = |slot| Owners { current: owner(target, &table, slot), base: 0 };
            (0..target.slots as usize).map(owner).collect()
        };
        let rings: Vec<_> = targets.iter().map(|(id, target)| (*id, owners(target))).collect();
        self.data_plane.publish_rings(&rings).with_context(|| match &rings[..] {
            [(_, owners)] => format!("publish a ring of {} slots", owners.len()),
            _ => format!("publish {}", counted(rings.len(), "ring")),
        })?;
        for ((id, target), (_, owners)) in targets.into_iter().zip(rings) {
            if let Some(old) = self.applied.rings.get(&id) {
                let (from, to) = (old.slots, target.slots);
                info!(ring = id, from, to, "ring resized; its flows move");
            }
            outcome.changes += 1;
            outcome.slots_moved += owners.len() as u64;
            let slots: Vec<_> = owners.into_iter().map(Slot::new).collect();
            self.take_ring(id, summary(&slots, Some(target)), now);
            if let Some(key) = self.key_of(id) {
                self.history.pending.ring(key);
                self.expect_off_ring(&key);
            }
        }
        Ok(())
    }

    /// Brings a ring to its target, by [`ring::step`] from its present owners: here, or at the peer that the
    /// service follows.
    fn retarget_ring(
        &mut self,
        id: u16,
        target: Target,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let context = || format!("write ring {id}");
        let slots = self.data_plane.ring(id).with_context(context)?;
        let table = table(&target, &self.settings.seed);
        let followed = self.followed(id, &target);
        let peer = followed.as_ref().map(Followed::owners);
        let key = self.key_of(id);
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
                self.history.sharing.hold(&key, (&slots, index), now);
            }
            if before.base == 0 && after.base != 0 {
                // The wait for a quiet slot starts at its change.
                slot.touch_unpinned(stamp(now.mono_secs()));
            }
            moved += u64::from(before.current != after.current);
            changes.push((index as u32, after));
        }
        let members = |target: &Target| target.members.clone();
        let was = self.applied.rings.get(&id).and_then(|ring| ring.target.as_ref()).map(members);
        let other_owners = was.as_ref() != Some(&target.members);
        if !changes.is_empty() {
            let ring = self.applied.rings.entry(id).or_default();
            // A partial write leaves the ring unknown.
            ring.target = None;
            self.data_plane.set_owners(id, &changes).with_context(context)?;
            let service = self.key_of(id).map(tracing::field::display);
            info!(service, slots_changed = changes.len(), slots_moved = moved, "ring updated");
            outcome.changes += 1;
            outcome.slots_moved += moved;
        }
        self.take_ring(id, summary(&slots, Some(target)), now);
        match self.key_of(id) {
            Some(key) if other_owners => {
                self.history.pending.ring(key);
                self.expect_off_ring(&key);
            }
            Some(key) => {
                let slots = changes.iter().map(|(slot, _)| *slot);
                self.history.pending.slots(key, slots);
            }
            None => {}
        }
        Ok(())
    }

    /// Takes over the new content of a ring.
    fn take_ring(&mut self, id: u16, ring: Ring, now: Now) {
        let gets_flows = |ring: &Ring, id| ring.held.get(id).is_some_and(|held| held.current > 0);
        if let Some(old) = self.applied.rings.get(&id) {
            let got = old.held.keys().filter(|id| gets_flows(old, id));
            got.filter(|id| !gets_flows(&ring, id))
                .for_each(|&id| self.walk.vacate_backend(id, now));
        }
        self.applied.rings.insert(id, ring);
    }
}

fn table(target: &Target, seed: &[u8; 16]) -> Vec<u16> {
    let members: Vec<_> = target.members.iter().map(|(member, _)| *member).collect();
    maglev::table(&members, seed, target.slots)
}

fn owner(target: &Target, table: &[u16], slot: usize) -> u16 {
    table.get(slot).map_or(0, |&index| target.members[usize::from(index)].1)
}

/// Sums a ring up.
fn summary(slots: &[Slot], target: Option<Target>) -> Ring {
    let mut held: Vec<Held> = Vec::new();
    let mut ring = Ring { slots: slots.len() as u32, target, ..Ring::default() };
    for slot in slots {
        let Owners { current, base } = slot.owners();
        let most = usize::from(current.max(base));
        if most >= held.len() {
            held.resize(most + 1, Held::default());
        }
        held[usize::from(current)].current += 1;
        held[usize::from(base)].base += 1;
        ring.in_flux += u32::from(base != 0);
        ring.pinned += u32::from(slot.pinned() != 0);
    }
    ring.held = (0..).zip(held).skip(1).filter(|(_, held)| *held != Held::default()).collect();
    ring
}

//! The one writer: has the desired state and the content of the maps, and makes them equal.
//!
//! [`Engine::reconcile`] plans and applies; [`Engine::sweep`], once a second, ends what has run
//! out; [`Engine::status`] reads the counters. No other code writes maps.
//!
//! Each part owns its state, and gets the parts that it reads as arguments: `wanted` the inputs, `maps` the data plane
//! with the record of its content, `walk` the flows, `history` the exchange with peers. The files with `impl Engine`
//! call the parts in order: this one plans, `apply` writes a plan, `sweep` is the work of a second, `exchange`
//! passes records on, `report` and `preview` only read.
//!
//! [`Engine::adopt`] reads a predecessor's state back from the maps, so a restart moves no flow. After a
//! failed write the record of the applied state is still true, and the next tick, a second later, plans the rest.

mod apply;
mod drain_progress;
mod exchange;
mod history;
mod interfaces;
mod local_connections;
mod maps;
mod nat_connections;
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
mod virtual_macs;
mod walk;
mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Result, bail};
use lb_api::status::{Interface, Standing, Totals};
use lb_common::abi::backend_flags;
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Desired, ServiceKey},
    hop::{Neighbourhood, Station, Want},
    seen::{self, Condition, Seen, View},
    settings::Settings,
    time::Now,
};
use lb_plane::DataPlane;

use self::{
    drain_progress::Drains, history::History, interfaces::Interfaces,
    local_connections::LocalConnections, maps::AppliedMaps, nat_connections::NatConnections,
    outage::Outages, pin_shares::PinShares, ramp::Ramping, silence::Silence, starved::Starved,
    virtual_macs::VirtualMacs, walk::Walk, wanted::Wanted,
};
pub use self::{
    history::{LATE, Members, Role, Sharers},
    interfaces::{InterfaceEvent, InterfaceEventKind},
    silence::Suspicion,
};
use crate::reconcile::{self, MapWrite, PlanInputs, WritePlan};

/// How many new rings are published at a time. The kernel waits for all runs of programs after each time,
/// tens of milliseconds; and the owners of as many rings are in memory, a quarter of a megabyte each.
const TOGETHER: usize = 8;

/// The one writer of the maps.
#[derive(Debug)]
pub struct Engine<D> {
    wanted: Wanted,
    maps: AppliedMaps<D>,
    walk: Walk,
    outages: Outages,
    interfaces: Interfaces,
    ramping: Ramping,
    silence: Silence,
    nat_connections: NatConnections,
    local_connections: LocalConnections,
    drains: Drains,
    pin_shares: PinShares,
    starved: Starved,
    history: History,
    virtual_macs: VirtualMacs,
    standings: BTreeMap<ServiceKey, Standing>,
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
    pub removed: Vec<(String, BackendAddress)>,
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
        Ok(Self {
            wanted: Wanted::new(settings),
            maps: AppliedMaps::adopt(data_plane)?,
            walk: Walk::default(),
            outages: Outages::default(),
            interfaces: Interfaces::default(),
            ramping: Ramping::default(),
            silence: Silence::default(),
            nat_connections: NatConnections::default(),
            local_connections: LocalConnections::default(),
            drains: Drains::default(),
            pin_shares: PinShares::default(),
            starved: Starved::default(),
            history: History::default(),
            virtual_macs: VirtualMacs::default(),
            standings: BTreeMap::new(),
            last_error: None,
        })
    }

    /// The data plane that it writes.
    pub const fn data_plane(&self) -> &D {
        &self.maps.plane
    }

    /// The data plane, for writes beside the engine's: the hooks, and the program's part in tests.
    pub const fn data_plane_mut(&mut self) -> &mut D {
        &mut self.maps.plane
    }

    /// Gives the data plane back; the maps stay as they are.
    pub fn into_data_plane(self) -> D {
        self.maps.plane
    }

    /// Replaces the desired state; [`Self::reconcile`] acts on it. Until the first call no map is
    /// written.
    pub fn set_desired(&mut self, desired: Desired) {
        self.wanted.desired = Some(desired);
    }

    /// The desired state.
    pub fn desired(&self) -> &Desired {
        self.wanted.desired()
    }

    /// Replaces the known next hops; [`Self::reconcile`] acts on it.
    pub fn set_neighbourhood(&mut self, neighbourhood: Neighbourhood) {
        self.wanted.neighbourhood = Some(neighbourhood);
    }

    /// Replaces the addresses of the other balancers; [`Self::reconcile`] acts on it.
    pub fn set_peers(&mut self, peers: BTreeSet<IpAddr>) {
        self.wanted.peers = peers;
    }

    /// Replaces the health of the backends; [`Self::reconcile`] acts on it.
    pub fn set_view(&mut self, view: View) {
        self.wanted.view = view;
    }

    /// How the services stand since the last reconciliation.
    pub const fn standings(&self) -> &BTreeMap<ServiceKey, Standing> {
        &self.standings
    }

    /// The health of the checked backends by the maps: those that a predecessor had taken out of their rings
    /// stay out until a check has probed them, and the others stay in.
    pub fn adopted_view(&self) -> View {
        let mut view = View::new();
        let ids = self.maps.ids();
        for service in self.wanted.desired().services.values() {
            let Some(value) = self.maps.applied.services.get(&service.key) else { continue };
            let Some(ring) = self.maps.applied.rings.get(&value.id) else { continue };
            let owns = |id| ring.owned.get(&id).is_some_and(|owned| owned.current > 0);
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
                let entry = self.maps.applied.backends.get(&id);
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
                view.insert(seen::BackendKey { service: service.key, backend }, seen);
            }
        }
        view
    }

    /// The backends whose next hops must be known; with one of them on this node, also the other balancers.
    pub fn wants(&self) -> BTreeSet<Want> {
        self.wanted.wants()
    }

    /// Makes the maps equal to the desired state. After a failure the next call does the rest.
    ///
    /// # Errors
    ///
    /// If a map could not be written: the rest of the plan waits for the next call. If
    /// a map has no room: everything else is applied.
    pub fn reconcile(&mut self, now: Now) -> Result<Outcome> {
        let done = self.try_reconcile(now);
        let done = done.and_then(|outcome| self.maps.retire().map(|()| outcome));
        self.last_error = done.as_ref().err().map(|error| format!("{error:#}"));
        done
    }

    fn try_reconcile(&mut self, now: Now) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        if self.wanted.desired.is_some() && self.walk.is_first() {
            // No id is given to anything while a flow of an earlier owner may name it.
            self.walk_flows(now)?;
        }
        if self.wanted.desired.is_some() {
            self.history.end_stale_lease(&mut self.maps);
        }
        let Some(desired) = &self.wanted.desired else { return Ok(outcome) };
        if let Some(neighbourhood) = &self.wanted.neighbourhood {
            self.outages.update(desired, neighbourhood, now);
        }
        let mut ramping = std::mem::take(&mut self.ramping);
        let plan = self.plan(desired, self.wanted.neighbourhood.as_ref(), &mut ramping, now);
        ramping.set_in_force(now);
        self.ramping = ramping;
        self.standings = plan.standings;
        let mut writes = plan.writes.into_iter().peekable();
        let mut new_rings = Vec::new();
        while let Some(write) = writes.next() {
            let MapWrite::PublishRing(id, target) = write else {
                self.apply(write, now, &mut outcome)?;
                continue;
            };
            new_rings.push((id, target));
            let another = matches!(writes.peek(), Some(MapWrite::PublishRing(..)));
            if !another || new_rings.len() == TOGETHER {
                self.publish_rings(std::mem::take(&mut new_rings), now, &mut outcome)?;
            }
        }
        if self.walk.has_orphaned(&self.maps.applied, &self.history.following(&self.maps)) {
            self.walk_flows(now)?;
        }
        self.history.survey_if_due(&self.maps, now)?;
        if plan.left_out.is_empty() { Ok(outcome) } else { bail!(plan.left_out.join("; ")) }
    }

    /// The writes that put this in force; notes the backends that join rings by it.
    fn plan(
        &self,
        desired: &Desired,
        neighbourhood: Option<&Neighbourhood>,
        ramping: &mut Ramping,
        now: Now,
    ) -> WritePlan {
        let (unreached, recovering) = (self.outages.lasting(), self.outages.ending());
        let before = ramping.shares(now);
        let inputs = PlanInputs {
            desired,
            neighbourhood,
            unreached: &unreached,
            recovering: &recovering,
            view: &self.wanted.view,
            ramps: &before,
            limits: self.maps.plane.limits(),
            cpus: self.maps.plane.online_cpus(),
            pinning_paused: &self.history.pinning_paused,
            peers: &self.wanted.peers,
            virtual_macs: self.virtual_macs.all(),
            tunnel: &self.wanted.settings.tunnel,
            seed: &self.wanted.settings.seed,
            now,
        };
        let plan = reconcile::plan(&inputs, &self.maps.applied);
        if !ramping.record_joins(&inputs, &plan, &self.maps.applied) {
            return plan;
        }
        let ramps = ramping.shares(now);
        reconcile::plan(&PlanInputs { ramps: &ramps, ..inputs }, &self.maps.applied)
    }

    /// The interfaces whose program is at tc.
    pub fn at_tc(&self) -> BTreeSet<String> {
        let interfaces = self.maps.plane.interfaces().into_iter();
        interfaces.filter(Interface::is_at_tc).map(|one| one.name).collect()
    }

    /// As [`Interfaces::answered_stations`](lb_plane::Interfaces::answered_stations).
    ///
    /// # Errors
    ///
    /// The routes of answers can't be read.
    pub fn answered_stations(&self, within: Duration) -> Result<BTreeSet<Station>> {
        self.maps.plane.answered_stations(within)
    }

    /// The sums of the counters of removed backends, by service.
    pub const fn retired(&self) -> &BTreeMap<ServiceKey, Totals> {
        &self.maps.retired.sums
    }

    /// Goes on from the sums of an earlier run.
    pub fn set_retired(&mut self, sums: BTreeMap<ServiceKey, Totals>) {
        self.maps.retired.sums = sums;
    }

    /// The work of a moment, several times a second: finds the backends that seem silent, and shares
    /// SYN budgets out among the CPUs.
    ///
    /// # Errors
    ///
    /// If the counters can't be read.
    pub fn watch(&mut self, now: Now) -> Result<Vec<Suspicion>> {
        let Self { silence, walk, pin_shares, maps, wanted, .. } = self;
        let (suspicions, pinned) = silence.watch(maps, wanted, now)?;
        // Second choices are pinned.
        pinned.into_iter().for_each(|service| walk.expect_pins(service));
        pin_shares.share_out(maps, wanted, now)?;
        Ok(suspicions)
    }

    /// Whether the share of a backend that takes it by and by has grown since [`Self::watch`], so
    /// that the rings must be written.
    pub fn has_stepped(&self, now: Now) -> bool {
        self.ramping.has_stepped(self.silence.looked(), now.mono)
    }

    /// Sets the services whose packets go to another node, and of whose flows this node imports none.
    pub fn set_unsynced(&mut self, unsynced: BTreeSet<ServiceKey>, now: Now) {
        self.drains.set_unsynced(unsynced, now);
    }

    /// Sets whether frames to this virtual MAC address are this node's.
    ///
    /// # Errors
    ///
    /// A map can't be written, or it has no room.
    pub fn set_virtual_mac(&mut self, mac: [u8; 6], is_own: bool) -> Result<()> {
        self.virtual_macs.set_own((&mut self.maps, &self.wanted), mac, is_own)
    }
}

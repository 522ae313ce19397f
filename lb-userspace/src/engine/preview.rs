//! What a desired state would change, without a write.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{Engine, Now, owner, table};
use crate::{
    datapath::DataPlane,
    desired::{Desired, ServiceKey},
    netlink::{Neighbourhood, NextHop, Resolution, Want},
    reconcile::{self, Change, Inputs, Target},
    ring,
};

/// What would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// What would change of each service that is affected.
    pub services: BTreeMap<String, ServicePreview>,
    /// What would have no room in the maps.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// What would change of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePreview {
    /// Slots of its ring.
    pub slots: u32,
    /// Slots that get another owner for new flows.
    pub slots_moved: u32,
    /// Slots of which the flows that are there already move at once, but those that are pinned.
    pub flow_slots_moved: u32,
    /// Flows that are known each by itself (pinned, or tracked) and move at once.
    pub flows_moved: u64,
    /// Whether no backend has new flows afterwards.
    pub starved: bool,
    /// Whether it is gone afterwards, and its flows break instead of moving.
    pub removed: bool,
}

impl<D: DataPlane> Engine<D> {
    /// What [`Engine::reconcile`] would do if this were desired. A backend of which nothing is known
    /// yet is taken for one that can be reached.
    ///
    /// # Errors
    ///
    /// If a map can't be read.
    pub fn preview(&self, desired: &Desired, now: Now) -> Result<Preview> {
        let neighbourhood = self.neighbourhood.as_ref().map(|known| presumed(known, desired));
        let (unreached, recovering) = (self.outages.lasting(), self.outages.ending());
        let plan = reconcile::plan(
            &Inputs {
                desired,
                neighbourhood: neighbourhood.as_ref(),
                unreached: &unreached,
                recovering: &recovering,
                view: &self.view,
                ramps: &self.ramps,
                limits: self.data_plane.limits(),
                cpus: self.data_plane.online_cpus(),
                tunnel: &self.settings.tunnel,
                seed: &self.settings.seed,
                now,
            },
            &self.applied,
        );
        let names = Names::new(self, desired, &plan.changes);
        let mut services: BTreeMap<String, ServicePreview> = BTreeMap::new();
        for change in &plan.changes {
            let (id, seen) = match change {
                Change::PublishRing(id, target) => (*id, self.published(*id, target)),
                Change::RetargetRing(id, target) => (*id, self.retargeted(*id, target)?),
                Change::DeleteRing(id) => (*id, self.deleted(*id)),
                Change::PutBackend(_, value) => (value.service, ServicePreview::default()),
                Change::ClearBackend(id) => {
                    let Some(value) = self.applied.backends.get(id) else { continue };
                    (value.service, ServicePreview::default())
                }
                _ => continue,
            };
            let Some(name) = names.0.get(&id) else { continue };
            let held = services.entry(name.clone()).or_default();
            if seen != ServicePreview::default() {
                *held = seen;
            } else if held.slots == 0 {
                held.slots = self.applied.rings.get(&id).map_or(0, |ring| ring.slots);
            }
        }
        Ok(Preview { services, left_out: plan.left_out })
    }

    /// A ring that is made whole: whoever had a flow in the one before has it no more.
    fn published(&self, id: u16, target: &Target) -> ServicePreview {
        let (slots, starved) = (target.slots, target.members.is_empty());
        let Some(old) = self.applied.rings.get(&id) else {
            return ServicePreview { slots, starved, ..ServicePreview::default() };
        };
        let owned: u32 = old.held.values().map(|held| held.current).sum();
        ServicePreview {
            slots,
            slots_moved: slots,
            flow_slots_moved: if target.bases && owned > 0 { slots } else { 0 },
            flows_moved: self.flows_that_move(id, target),
            starved,
            removed: false,
        }
    }

    fn retargeted(&self, id: u16, target: &Target) -> Result<ServicePreview> {
        let slots = self.data_plane.ring(id).with_context(|| format!("read ring {id}"))?;
        let table = table(target, &self.settings.seed);
        let keeps = |id| target.bases && target.keeping.contains(&id);
        let mut seen = ServicePreview {
            slots: target.slots,
            flows_moved: self.flows_that_move(id, target),
            starved: target.members.is_empty(),
            ..ServicePreview::default()
        };
        for (index, slot) in slots.iter().enumerate() {
            let before = slot.owners();
            let after = ring::step(before, owner(target, &table, index), keeps);
            let older = |owners: lb_common::abi::Owners| match owners.base {
                0 => owners.current,
                base => base,
            };
            seen.slots_moved += u32::from(before.current != after.current);
            let moves = target.bases && older(before) != 0 && older(before) != older(after);
            seen.flow_slots_moved += u32::from(moves);
        }
        Ok(seen)
    }

    fn deleted(&self, id: u16) -> ServicePreview {
        let slots = self.applied.rings.get(&id).map_or(0, |ring| ring.slots);
        ServicePreview {
            slots,
            slots_moved: slots,
            flow_slots_moved: slots,
            flows_moved: self.flows_that_move(id, &Target::default()),
            starved: true,
            removed: true,
        }
    }

    /// Flows, as the last walk found them, on backends that would keep none.
    fn flows_that_move(&self, service: u16, target: &Target) -> u64 {
        let stay: BTreeSet<u16> = target
            .members
            .iter()
            .map(|(_, id)| *id)
            .chain(target.keeping.iter().copied())
            .collect();
        let backends = self.applied.backends.iter();
        let gone = backends.filter(|(id, value)| value.service == service && !stay.contains(id));
        gone.filter_map(|(id, _)| self.walk.per_backend.get(id)).sum()
    }
}

/// The names of services by the ids of their rings.
struct Names(BTreeMap<u16, String>);

impl Names {
    fn new<D: DataPlane>(engine: &Engine<D>, desired: &Desired, changes: &[Change]) -> Self {
        // What goes has its name from what is in force.
        let named: BTreeMap<ServiceKey, &String> = [engine.desired(), desired]
            .into_iter()
            .flat_map(|desired| &desired.services)
            .map(|(name, service)| (service.key, name))
            .collect();
        let there = engine.applied.services.iter().map(|(key, value)| (*key, value.id));
        let added = changes.iter().filter_map(|change| match change {
            Change::PutService(key, value) => Some((*key, value.id)),
            _ => None,
        });
        let name =
            |key: ServiceKey| named.get(&key).map_or_else(|| key.to_string(), |n| (*n).clone());
        Self(there.chain(added).map(|(key, id)| (id, name(key))).collect())
    }
}

/// What is known of next hops, and the best of those of which nothing is known.
fn presumed(known: &Neighbourhood, desired: &Desired) -> Neighbourhood {
    let mut all = known.clone();
    for service in desired.services.values() {
        for &address in service.backends.keys() {
            let want = Want { address, mode: service.mode };
            all.hops.entry(want).or_insert_with(|| Resolution::Resolved(somewhere(address)));
        }
    }
    all
}

fn somewhere(address: IpAddr) -> NextHop {
    let kind: [u8; 2] = if address.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    let mut l2 = vec![0; 12];
    l2.extend(kind);
    NextHop { ifindex: 1, interface: String::new(), mac: [0; 6], l2, mtu: 1500 }
}

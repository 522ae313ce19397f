//! Preview of a desired state: the changes, without a write.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::Result;
use lb_model::{
    desired::{Desired, ServiceKey},
    hop::{Neighbourhood, NextHop, Resolution, Want},
    plan::{Preview, ServicePreview},
    ring,
    time::Now,
};
use lb_plane::DataPlane;

use super::{
    Engine,
    apply::{owner, table},
};
use crate::reconcile::{MapWrite, RingTarget};

impl<D: DataPlane> Engine<D> {
    /// The changes of [`Engine::reconcile`] if this were desired. A backend that is not resolved yet counts as
    /// reachable.
    ///
    /// # Errors
    ///
    /// If a map can't be read.
    pub fn preview(&self, desired: &Desired, now: Now) -> Result<Preview> {
        let neighbourhood =
            self.wanted.neighbourhood.as_ref().map(|known| presumed(known, desired));
        let mut ramping = self.ramping.clone();
        let plan = self.plan(desired, neighbourhood.as_ref(), &mut ramping, now);
        let names = Names::new(self, desired, &plan.writes);
        let mut services: BTreeMap<String, ServicePreview> = BTreeMap::new();
        for write in &plan.writes {
            let (id, seen) = match write {
                MapWrite::PublishRing(id, target) => (*id, self.published(*id, target)),
                MapWrite::RetargetRing(id, target) => (*id, self.retargeted(*id, target)?),
                MapWrite::DeleteRing(id) => (*id, self.deleted(*id)),
                MapWrite::PutBackend(_, value) => (value.service, ServicePreview::default()),
                MapWrite::ClearBackend(id) => {
                    let Some(value) = self.maps.applied.backends.get(id) else { continue };
                    (value.service, ServicePreview::default())
                }
                _ => continue,
            };
            let Some(name) = names.0.get(&id) else { continue };
            let preview = services.entry(name.clone()).or_default();
            if seen != ServicePreview::default() {
                *preview = seen;
            } else if preview.slots == 0 {
                preview.slots = self.maps.applied.rings.get(&id).map_or(0, |ring| ring.slots);
            }
        }
        Ok(Preview { services, left_out: plan.left_out })
    }

    /// A ring that is made whole: no backend of the one before keeps its flows.
    fn published(&self, id: u16, target: &RingTarget) -> ServicePreview {
        let (slots, starved) = (target.slots, target.members.is_empty());
        let Some(old) = self.maps.applied.rings.get(&id) else {
            return ServicePreview { slots, starved, ..ServicePreview::default() };
        };
        let owned: u32 = old.owned.values().map(|owned| owned.current).sum();
        ServicePreview {
            slots,
            slots_moved: slots,
            flow_slots_moved: if target.bases && owned > 0 { slots } else { 0 },
            flow_slots_in_flux: 0,
            flows_moved: self.flows_that_move(id, target),
            starved,
            removed: false,
        }
    }

    fn retargeted(&self, id: u16, target: &RingTarget) -> Result<ServicePreview> {
        let slots = self.maps.ring(id)?;
        let table = table(target, &self.wanted.settings.seed);
        let keeps = |id| target.bases && target.keeping.contains(&id);
        let mut seen = ServicePreview {
            slots: target.slots,
            flows_moved: self.flows_that_move(id, target),
            starved: target.members.is_empty(),
            ..ServicePreview::default()
        };
        for (index, slot) in slots.iter().enumerate() {
            let before = slot.owners();
            // Where nodes share a service, `step_shared` gives older flows the same owner.
            let after = ring::step(before, owner(target, &table, index), keeps);
            let older = |owners: lb_common::abi::Owners| match owners.base {
                0 => owners.current,
                base => base,
            };
            seen.slots_moved += u32::from(before.current != after.current);
            let moves = target.bases && older(before) != 0 && older(before) != older(after);
            seen.flow_slots_moved += u32::from(moves);
            seen.flow_slots_in_flux += u32::from(moves && before.base != 0);
        }
        Ok(seen)
    }

    fn deleted(&self, id: u16) -> ServicePreview {
        let slots = self.maps.applied.rings.get(&id).map_or(0, |ring| ring.slots);
        ServicePreview {
            slots,
            slots_moved: slots,
            flow_slots_moved: slots,
            flow_slots_in_flux: 0,
            flows_moved: self.flows_that_move(id, &RingTarget::default()),
            starved: true,
            removed: true,
        }
    }

    /// Flows, as the last walk found them, on backends that would keep none.
    fn flows_that_move(&self, service: u16, target: &RingTarget) -> u64 {
        let stay: BTreeSet<u16> = target
            .members
            .iter()
            .map(|(_, id)| *id)
            .chain(target.keeping.iter().copied())
            .collect();
        let backends = self.maps.applied.backends.iter();
        let gone = backends.filter(|(id, value)| value.service == service && !stay.contains(id));
        gone.filter_map(|(id, _)| self.walk.per_backend.get(id)).map(|tally| tally.flows).sum()
    }
}

/// The names of services by the ids of their rings.
struct Names(BTreeMap<u16, String>);

impl Names {
    fn new<D: DataPlane>(engine: &Engine<D>, desired: &Desired, writes: &[MapWrite]) -> Self {
        // Removed services have their names from the state in force.
        let named: BTreeMap<ServiceKey, &String> = [engine.desired(), desired]
            .into_iter()
            .flat_map(|desired| &desired.services)
            .map(|(name, service)| (service.key, name))
            .collect();
        let there = engine.maps.applied.services.iter().map(|(key, value)| (*key, value.id));
        let added = writes.iter().filter_map(|write| match write {
            MapWrite::PutService(key, value) => Some((*key, value.id)),
            _ => None,
        });
        let name =
            |key: ServiceKey| named.get(&key).map_or_else(|| key.to_string(), |n| (*n).clone());
        Self(there.chain(added).map(|(key, id)| (id, name(key))).collect())
    }
}

/// The known next hops, and the best case for unknown ones.
pub(in crate::engine) fn presumed(known: &Neighbourhood, desired: &Desired) -> Neighbourhood {
    let mut all = known.clone();
    for service in desired.services.values() {
        for &address in service.backends.keys() {
            let want = Want { address: address.ip, mode: service.mode };
            all.hops.entry(want).or_insert_with(|| Resolution::Resolved(somewhere(address.ip)));
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

#[cfg(test)]
mod tests {
    use lb_common::abi::{FlowKey, FlowValue, flow_flags};
    use lb_model::backend_address::BackendAddress;
    use lb_model::{
        desired::{Admin, Backend, Mode, Service},
        flow::FlowRef,
        settings::{Limits, Settings},
    };
    use lb_plane::fake::Fake;

    use super::*;

    const A: BackendAddress =
        BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11)));

    fn web() -> Desired {
        let mut spec = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr);
        spec.ring_slots = 1_009;
        for last in 11..14 {
            spec.backends.insert(BackendAddress::from([10, 0, 0, last]), Backend::default());
        }
        Desired { services: [("web".into(), spec)].into() }
    }

    fn with(admin: Admin) -> Desired {
        let mut desired = web();
        let service = desired.services.get_mut("web").expect("it is there");
        service.backends.get_mut(&A).expect("it is there").admin = admin;
        desired
    }

    /// An engine in which everything is reached, and the first backend has two pinned flows.
    fn running() -> Engine<Fake> {
        let limits = Limits::default();
        let settings = Settings { limits, seed: [7; 16], ..Settings::default() };
        let mut engine = Engine::adopt(Fake::new(limits), &settings).expect("empty maps");
        engine.set_neighbourhood(presumed(&Neighbourhood::default(), &web()));
        engine.set_desired(web());
        engine.reconcile(Now::read()).expect("it is written");
        let id = engine.status().expect("it is read").services["web"].backends[&A].id;
        for port in 1..=2_u16 {
            let key = FlowKey::new([9; 16], port.into(), 0);
            let seen = Now::read().mono_secs();
            let flags = flow_flags::ESTABLISHED;
            let value = FlowValue { seen, backend: id, flags };
            engine.data_plane_mut().add_flow(FlowRef::Pin(key), value);
        }
        engine.walk_flows(Now::read()).expect("it is read");
        engine
    }

    #[test]
    fn a_preview_tells_what_a_reconcile_then_moves_and_writes_nothing() {
        let deadline = None;
        for (admin, moved_by_slot, moved) in [
            (Admin::Enabled, false, 0),
            (Admin::Draining { deadline }, false, 0),
            (Admin::Removing { deadline }, false, 0),
            (Admin::Disabled, false, 0),
            (Admin::Down, true, 2),
        ] {
            let mut engine = running();
            let (dump, writes) = (engine.data_plane().dump(), engine.data_plane().writes());
            let desired = with(admin);
            let preview = engine.preview(&desired, Now::read()).expect("it is read");
            assert_eq!(engine.data_plane().writes(), writes);
            assert_eq!(engine.data_plane().dump(), dump);
            let seen = preview.services.get("web").copied().unwrap_or_default();
            engine.set_desired(desired);
            let outcome = engine.reconcile(Now::read()).expect("it is written");
            assert_eq!(u64::from(seen.slots_moved), outcome.slots_moved, "{admin:?}");
            assert_eq!(seen.flow_slots_moved > 0, moved_by_slot, "{admin:?}");
            assert_eq!(seen.flows_moved, moved, "{admin:?}");
            assert!(!seen.starved && !seen.removed, "{admin:?}");
        }
    }

    #[test]
    fn a_service_that_goes_takes_its_flows_with_it() {
        let engine = running();
        let preview = engine.preview(&Desired::default(), Now::read()).expect("it is read");
        let expected = ServicePreview {
            slots: 1_009,
            slots_moved: 1_009,
            flow_slots_moved: 1_009,
            flow_slots_in_flux: 0,
            flows_moved: 2,
            starved: true,
            removed: true,
        };
        assert_eq!(preview.services, [("web".to_owned(), expected)].into());
    }

    #[test]
    fn older_flows_in_slots_that_a_backend_has_lost_are_told_from_those_of_its_own_slots() {
        let mut engine = running();
        let mut alone = web();
        alone.services.get_mut("web").expect("it is there").backends.retain(|at, _| *at == A);
        for desired in [alone, web()] {
            engine.set_desired(desired);
            engine.reconcile(Now::read()).expect("it is written");
        }
        // It had the whole ring, and has a third of it.
        let mut without = web();
        without.services.get_mut("web").expect("it is there").backends.remove(&A);
        let seen = engine.preview(&without, Now::read()).expect("it is read").services["web"];
        assert_eq!(seen.flow_slots_moved, 1_009);
        let own = seen.flow_slots_moved - seen.flow_slots_in_flux;
        assert!((300..400).contains(&own), "{seen:?}");
    }

    #[test]
    fn a_drain_back_in_its_ring_moves_what_it_lost() {
        let mut engine = running();
        engine.set_desired(with(Admin::Draining { deadline: None }));
        engine.reconcile(Now::read()).expect("it is written");
        // Its older flows are on the base owners, so by force they move, and by a return they stay.
        let down = engine.preview(&with(Admin::Down), Now::read()).expect("it is read");
        let down = down.services["web"];
        assert_eq!(down.slots_moved, 0);
        assert!(down.flow_slots_moved > 300 && down.flows_moved == 2, "{down:?}");
        let back = engine.preview(&web(), Now::read()).expect("it is read").services["web"];
        assert!(back.slots_moved >= down.flow_slots_moved, "{back:?}");
        assert_eq!((back.flow_slots_moved, back.flows_moved), (0, 0));
    }
}

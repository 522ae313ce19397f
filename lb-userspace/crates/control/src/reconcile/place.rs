//! The placement of each backend of a service: its entry, whether it takes new flows, whether it
//! keeps the ones that it has.

use lb_api::status::Standing;
use lb_common::abi::{self, backend_flags};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Backend, Mode, Service},
    entry,
    hop::{Resolution, Want},
    seen::{BackendKey, Condition, Seen},
    time::Now,
};

use super::{
    Applied, PlanInputs, Ring, RingTarget,
    choose::{self, Candidate},
};

/// Thousandths: a share that is whole.
pub(super) const WHOLE: u16 = 1_000;

/// A backend with its id, its entry, and its permissions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Placed {
    /// The backend's address.
    pub(super) address: BackendAddress,
    /// Its weight, in thousandths: a share that grows by and by is a part of it.
    pub(super) weight: u32,
    pub(super) id: u16,
    /// Its entry in the map.
    pub(super) value: abi::Backend,
    /// Whether it takes new flows.
    pub(super) member: bool,
    /// Whether it keeps the flows that it has.
    pub(super) keeps: bool,
}

/// Whether a backend can be sent to.
enum Reach {
    /// It can, by this entry.
    Up(abi::Backend),
    /// It could, by this entry, before no backend could be reached, and has not answered since.
    /// Its flows must not meet another backend meanwhile, which would reset them.
    Presumed(abi::Backend),
    /// That is not known yet.
    Waiting,
    /// It can't.
    Lost,
}

/// Decides for every backend of a service whether it takes new flows and keeps old ones.
///
/// A neighbour that has not answered yet never changes the members of the ring. One that can't be
/// reached leaves it, unless no backend can be reached: then the fault is probably nearer than all
/// of them, and the ring stays, so that the flows find their backends when it is over. Of those
/// that could take new flows, [`choose`] takes the ones whose health lets them.
pub(super) fn place(
    inputs: &PlanInputs<'_>,
    applied: &Applied,
    service_id: u16,
    service: &Service,
    id_of: &mut dyn FnMut(BackendAddress, &Backend) -> Option<u16>,
) -> (Vec<Placed>, Standing) {
    let ring = applied.rings.get(&service_id);
    let mut found = Vec::new();
    for (&address, backend) in &service.backends {
        let Some(id) = id_of(address, backend) else { continue };
        let old = applied.backends.get(&id);
        let reach = match reach(inputs, old, service, address) {
            Reach::Lost if inputs.recovering.contains(&service.key) => Reach::Waiting,
            reach => reach,
        };
        let reach = match (reach, old) {
            (Reach::Waiting, Some(old))
                if ring.is_some_and(|ring| keeps_flows(ring, id)) && has_way(old, service.mode) =>
            {
                let blank = entry::of_service(service, address, inputs.tunnel);
                Reach::Presumed(entry::on_way_of(blank, old))
            }
            (reach, _) => reach,
        };
        found.push(BackendReach { address, backend, id, reach });
    }
    let is_reached =
        |found: &BackendReach<'_>| found.is_enabled() && matches!(found.reach, Reach::Up(_));
    let reached = !inputs.unreached.contains(&service.key) && found.iter().any(is_reached);
    let candidates: Vec<_> = found
        .iter()
        .map(|found| {
            let key = BackendKey { service: service.key, backend: found.address };
            let seen = inputs.view.get(&key).copied().unwrap_or_default();
            found.candidate(ring, reached, seen)
        })
        .collect();
    let (chosen, standing) = choose::choose(&service.policy, &candidates);
    let placement = ServicePlacement { inputs, applied, id: service_id, service, reached };
    let placed = found.into_iter().zip(candidates).zip(chosen);
    let placed = placed
        .map(|((found, candidate), member)| placement.place_one(found, candidate.seen, member));
    (placed.collect(), standing)
}

/// A backend of a service that has an id.
struct BackendReach<'a> {
    address: BackendAddress,
    backend: &'a Backend,
    id: u16,
    reach: Reach,
}

impl BackendReach<'_> {
    fn is_enabled(&self) -> bool {
        self.backend.admin == Admin::Enabled
    }

    /// As a candidate for new flows. One that is not reached for certain counts as reached while it owns slots, and
    /// one that is lost does so only if no backend of the service is `reached`.
    fn candidate(&self, ring: Option<&Ring>, reached: bool, seen: Seen) -> Candidate {
        let owned = ring.and_then(|ring| ring.owned.get(&self.id));
        let owns = owned.is_some_and(|owned| owned.current > 0);
        Candidate {
            enabled: self.is_enabled(),
            backup: self.backend.backup,
            reached: match self.reach {
                Reach::Up(_) => true,
                Reach::Presumed(_) | Reach::Waiting => owns,
                Reach::Lost => owns && !reached,
            },
            seen,
        }
    }
}

/// What the placement of a service's backends has in common.
struct ServicePlacement<'a> {
    inputs: &'a PlanInputs<'a>,
    applied: &'a Applied,
    id: u16,
    service: &'a Service,
    /// Whether any enabled backend can be reached.
    reached: bool,
}

impl ServicePlacement<'_> {
    /// The placement of a backend, a member of the ring or not.
    fn place_one(&self, found: BackendReach<'_>, seen: Seen, member: bool) -> Placed {
        let Self { inputs, applied, service, reached, .. } = *self;
        let BackendReach { address, backend, id, reach } = found;
        let lost = matches!(reach, Reach::Lost) && reached;
        let dead = seen.condition == Condition::HardDown && !member;
        let keeps = !lost && !dead && !flows_are_moved(backend, inputs.now);
        let (mut value, usable) = match reach {
            Reach::Up(value) | Reach::Presumed(value) => {
                (value, backend.admin != Admin::Down && !dead)
            }
            Reach::Waiting | Reach::Lost => {
                let blank = entry::of_service(service, address, inputs.tunnel);
                let old = applied.backends.get(&id);
                (old.map_or(blank, |old| entry::on_way_of(blank, old)), false)
            }
        };
        value.service = self.id;
        set_flags(&mut value, usable, seen, member);
        let key = BackendKey { service: service.key, backend: address };
        let share = inputs.ramps.get(&key).copied().unwrap_or(WHOLE);
        let weight = u32::from(backend.weight.0.get()) * u32::from(share.clamp(1, WHOLE));
        Placed { address, weight, id, value, member, keeps }
    }
}

/// Sets the flags of an entry that depend on the backend's state.
fn set_flags(value: &mut abi::Backend, usable: bool, seen: Seen, member: bool) {
    value.flags &= !(backend_flags::USABLE | backend_flags::SUSPECT | backend_flags::SOFT_DOWN);
    if usable {
        value.flags |= backend_flags::USABLE;
    }
    if seen.suspect {
        value.flags |= backend_flags::SUSPECT;
    }
    // In panic it takes new flows all the same.
    if seen.condition == Condition::SoftDown && !member {
        value.flags |= backend_flags::SOFT_DOWN;
    }
}

/// Whether flows of a backend may live by a ring: it owns slots, or the ring's target keeps it.
fn keeps_flows(ring: &Ring, id: u16) -> bool {
    let keeps = |target: &RingTarget| target.keeping.contains(&id);
    ring.owned.contains_key(&id) || ring.target.as_ref().is_some_and(keeps)
}

/// Whether the operator wants the backend's flows elsewhere, at once or since its deadline.
#[must_use]
pub(crate) fn flows_are_moved(backend: &Backend, now: Now) -> bool {
    match backend.admin {
        Admin::Enabled | Admin::Disabled => false,
        Admin::Down => true,
        Admin::Draining { deadline } | Admin::Removing { deadline } => {
            deadline.is_some_and(|deadline| deadline <= now.wall)
        }
    }
}

fn reach(
    inputs: &PlanInputs<'_>,
    old: Option<&abi::Backend>,
    service: &Service,
    address: BackendAddress,
) -> Reach {
    let blank = entry::of_service(service, address, inputs.tunnel);
    let want = Want { address: address.ip, mode: service.mode };
    match inputs.neighbourhood.and_then(|known| known.hops.get(&want)) {
        Some(Resolution::Resolved(hop)) => Reach::Up(entry::by_hop(blank, hop)),
        Some(Resolution::Unreachable { .. }) => Reach::Lost,
        Some(Resolution::Pending { .. }) | None => match old {
            // The map has it as usable, and no report contradicts that.
            Some(old) if is_usable(old) && has_way(old, service.mode) => {
                Reach::Up(entry::on_way_of(blank, old))
            }
            _ => Reach::Waiting,
        },
    }
}

/// Whether an entry has the destination of packets of this mode.
fn has_way(entry: &abi::Backend, mode: Mode) -> bool {
    let of_mode = match mode {
        Mode::Dsr => 0,
        Mode::Ipip => backend_flags::TUNNEL,
        Mode::Nat => backend_flags::NAT,
    };
    entry.ifindex != 0 && entry.flags & (backend_flags::TUNNEL | backend_flags::NAT) == of_mode
}

pub(super) const fn is_usable(backend: &abi::Backend) -> bool {
    backend.flags & backend_flags::USABLE != 0
}

//! Services that several nodes serve at once: a slot settles only when it is quiet on all of them.
//!
//! A router that hashes flows over the nodes may send any flow to another node when the set of nodes
//! changes, and a packet that is not pinned then goes to that node's owner of the slot. So the nodes must
//! agree about each slot's base owner for as long as a flow of it lives on any of them:
//!
//! - Each node exports its slots in flux that have received packets without a pin ([`Record::Bases`]), a
//!   slot once in [`period`]. A slot is quiet when none has come here for the idle timeout, and no node
//!   has reported any for that and [`grace`].
//! - Each node exports the members that get new flows there ([`Record::members`]). While a slot's new flows go
//!   elsewhere on another node it stays in flux: there it may be in none, and its flows are pinned nowhere.
//! - Nodes see a slot quiet at different moments, [`grace`] apart at most. So it first becomes its own base
//!   owner, for twice as long: new flows are pinned still, and exported, and a flow without a pin goes where it
//!   goes on a node on which the slot has settled already. If its new flows are to go elsewhere meanwhile,
//!   no flow has been left unpinned since: it has the base owner again that it has on a node that is not
//!   so far, and in the second half of the time the one that it has on a node that is further. It keeps
//!   itself if unpinned packets have come after all, as when the daemon ran late and the lease ended.
//! - No change of a ring ends that by itself ([`ring::step_shared`]). A slot whose new flows go to its base
//!   owner again, or whose base owner is dead, is its own base owner too: on another node it may be in
//!   flux. It settles as if it had become so by being quiet, and all that time later.
//! - Each node exports the end of a pin by its own packets, and keeps the pin for
//!   [`Sharing::objection_secs`] all the same. A node that sees the flow objects, and that counts as a packet.
//!   No node deletes a pin because a peer has reported its end: with three nodes two that don't see the flow
//!   would delete each other's copies, and the third may die before it objects.
//! - While a peer can't be reached no slot settles and no pin ends, until it is gone for good: after
//!   [`GONE_SECS`], or the idle timeout if that is longer. When it is back nothing counts as idle for
//!   longer than since then. Peers that come and go again and again hold nothing up for longer, all in all,
//!   than one that is away: [`Sharing::count_freeze`].
//! - A flow of which a client has only sent SYNs is not kept for peers: it ends by this node's own clock.
//!
//! A node that starts sends flows without a pin where its peers do, since they may have ended changes without it. A
//! limit: a daemon that stops while slots are about to settle leaves them as they are, and peers can't know which
//! of them had become their own base owners.

use std::collections::BTreeMap;

use lb_model::{backend_address::BackendAddress, ring};
use lb_plane::OwnerChange;
use lb_sync::record::Base;

use super::{
    flux::{Flux, Wait},
    *,
};

/// Seconds without a peer after which its flows are not waited for any more.
const GONE_SECS: u32 = 300;
/// Seconds for which a flow is kept after its end was exported, besides those in which the loss of a peer is
/// noticed: a node that it goes by objects meanwhile, unless it is just lost.
const OBJECTION_SECS: u32 = 5;
/// Seconds after a service has become shared in which base owners are taken over from the nodes that serve it.
const JOINING_SECS: u32 = 60;

/// Seconds between two exports of one slot.
const fn period(idle: u32) -> u32 {
    let period = idle / 8;
    if period == 0 { 1 } else { period }
}

/// Seconds by which the state that a node has of another one may be old: an export, and looks once a second.
const fn grace(idle: u32) -> u32 {
    period(idle) + 5
}

/// Seconds after which a peer that is missed is gone for good.
fn gone(idle: u32) -> u32 {
    GONE_SECS.max(idle + grace(idle))
}

/// Whether an unpinned packet has come for a slot since a second, to the second.
fn is_used_since(slot: SlotSnapshot, since: u32, secs: u32) -> bool {
    ring::age(stamp(secs), slot.unpinned) <= secs.saturating_sub(since)
}

/// How the nodes that share services with this one stand, in seconds of CLOCK_MONOTONIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharers {
    /// Since when each peer that is not there, or has not sent all, is missed.
    pub away: Vec<u32>,
    /// When the last one has come.
    pub joined: u32,
    /// How long a peer is silent before it is missed.
    pub timeout: u32,
    /// The members that get new flows of services, at the peers that are there.
    pub members: BTreeMap<ServiceKey, Vec<Members>>,
}

/// Backends that get the new flows of a service, by address, with their weights.
pub type Members = Vec<(BackendAddress, u32)>;

/// The engine's state of services that it shares.
#[derive(Debug, Default)]
pub(in crate::engine) struct Sharing {
    pub(in crate::engine) sharers: Sharers,
    services: BTreeMap<ServiceKey, Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// When it became shared.
    since: u32,
    /// When slots in use were exported last.
    last_export: u32,
    /// When slots were in use last, at peers or here, and which of them are closing.
    flux: Flux,
    /// The service's idle timeout, at the last sweep.
    idle: u32,
    /// Since when peers that were missed, or came, have kept flows from being idle for their whole timeout.
    frozen: Option<u32>,
    /// Slots in use here, or that have a base owner again, to be exported.
    in_use: Vec<u32>,
    /// Rings of peers that differ from this node's, with the places of their slots' owners among the
    /// members.
    rings: Vec<(Members, Vec<u16>)>,
}

impl Sharing {
    /// Before which second nothing of a shared service can have been idle.
    pub(super) fn floor(&self, key: &ServiceKey, idle: u32, now: u32) -> u32 {
        let floor = self.seen_floor(idle, now);
        match self.services.get(key).and_then(|shared| shared.frozen) {
            Some(since) => floor.min(since + gone(idle)),
            None => floor,
        }
    }

    /// The same by the peers that are missed, or have come, alone.
    fn seen_floor(&self, idle: u32, now: u32) -> u32 {
        let is_missed = |since: &u32| now.saturating_sub(*since) <= gone(idle);
        match self.sharers.away.iter().any(is_missed) {
            true => now,
            false => self.sharers.joined,
        }
    }

    /// Notes since when peers have held up the ends of a service's flows: once a second.
    pub(super) fn count_freeze(&mut self, key: &ServiceKey, idle: u32, now: u32) {
        let rests = now.saturating_sub(self.seen_floor(idle, now)) <= idle + grace(idle);
        let Some(shared) = self.services.get_mut(key) else { return };
        shared.frozen = if rests { shared.frozen.or(Some(now)) } else { None };
    }

    /// For how many seconds a flow is kept past its end where the flows are looked at this often: until
    /// each peer could object, or is missed.
    pub(in crate::engine) const fn objection_secs(&self, walk_secs: u32) -> u32 {
        OBJECTION_SECS.saturating_add(self.sharers.timeout).saturating_add(walk_secs)
    }

    /// Sets whether a service is shared.
    pub(super) fn set_shared(&mut self, key: ServiceKey, is_shared: bool, now: u32) {
        match is_shared {
            true => {
                self.services.entry(key).or_insert(Shared { since: now, ..Shared::default() });
            }
            false => drop(self.services.remove(&key)),
        }
    }

    /// Whether base owners are taken over from the nodes that serve a service already.
    pub(super) fn is_joining(&self, key: &ServiceKey, now: u32) -> bool {
        let shared = self.services.get(key);
        shared.is_some_and(|shared| now.saturating_sub(shared.since) <= JOINING_SECS)
    }

    /// Notes that slots are in use at a peer.
    pub(super) fn record_use_at_peer(
        &mut self,
        key: &ServiceKey,
        bases: &[Base],
        slots: u32,
        now: u32,
    ) {
        let Some(shared) = self.services.get_mut(key) else { return };
        for base in bases.iter().filter(|base| base.backend.is_some()) {
            shared.flux.touch(slots, base.slot, now);
        }
    }

    /// The owners from which a slot of a shared service goes on that is its own base owner. It waits anew
    /// before it settles.
    pub(in crate::engine) fn reopen(
        &mut self,
        key: &ServiceKey,
        (slots, index): (&[Slot], usize),
        now: Now,
    ) -> Owners {
        let slot = &slots[index];
        let owners = slot.owners();
        let Some(shared) = self.services.get_mut(key) else { return owners };
        let (index, secs) = (index as u32, now.mono_secs());
        let before = shared.flux.get(index);
        shared.flux.set(slots.len() as u32, index, Wait::Used(secs));
        // Peers receive it even if its new flows are back before those are exported.
        shared.in_use.push(index);
        match before {
            Wait::Closing { since, before, .. }
                if secs.saturating_sub(since) <= grace(shared.idle)
                    && !is_used_since(slot.snapshot(), since, secs) =>
            {
                Owners { base: before, ..owners }
            }
            _ => owners,
        }
    }

    /// A slot has become its own base owner by a change of the ring: it settles no sooner than one that
    /// was in use until then.
    pub(in crate::engine) fn delay_settling(
        &mut self,
        key: &ServiceKey,
        (slots, index): (&[Slot], usize),
        now: Now,
    ) {
        if let Some(shared) = self.services.get_mut(key) {
            shared.flux.touch(slots.len() as u32, index as u32, now.mono_secs());
        }
    }

    /// Whether flows may have begun without a pin in a slot that is its own base owner and quiet: this
    /// process ran late, and the program had no lease.
    pub(super) fn has_unpinned(
        &self,
        key: &ServiceKey,
        (index, slot): (u32, &Slot),
        secs: u32,
    ) -> bool {
        match self.services.get(key).map(|shared| shared.flux.get(index)) {
            Some(Wait::Closing { since, .. }) => is_used_since(slot.snapshot(), since, secs),
            _ => false,
        }
    }

    /// The base owner that is exported for a slot that is its own: none, or the one before while the slot may
    /// have that one again.
    pub(super) fn exported_base(&self, key: &ServiceKey, slot: u32, secs: u32) -> Option<u16> {
        let shared = self.services.get(key)?;
        let Wait::Closing { since, before, .. } = shared.flux.get(slot) else { return None };
        (secs.saturating_sub(since) <= grace(shared.idle)).then_some(before)
    }

    /// The owners of slots for new flows at peers where they differ from `own`: the members, and places among
    /// them.
    fn others(
        &mut self,
        key: &ServiceKey,
        own: &Members,
        slots: u32,
        seed: &[u8; 16],
    ) -> &[(Members, Vec<u16>)] {
        let Some(shared) = self.services.get_mut(key) else { return &[] };
        let peers = self.sharers.members.get(key).into_iter().flatten();
        let mut known = std::mem::take(&mut shared.rings);
        for members in peers.filter(|members| *members != own) {
            let place =
                known.iter().position(|(of, table)| of == members && table.len() == slots as usize);
            let ring = match place {
                Some(place) => known.swap_remove(place),
                None => match PeerRing::new(slots, members.clone(), 0) {
                    Some(ring) => (members.clone(), ring.table(seed)),
                    None => continue,
                },
            };
            if !shared.rings.contains(&ring) {
                shared.rings.push(ring);
            }
        }
        &shared.rings
    }

    /// The slots in use that are to be exported, by service.
    pub(super) fn take_in_use(&mut self) -> Vec<(ServiceKey, Vec<u32>)> {
        let services = self.services.iter_mut().filter(|(_, shared)| !shared.in_use.is_empty());
        services.map(|(key, shared)| (*key, std::mem::take(&mut shared.in_use))).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.services.values().all(|shared| shared.in_use.is_empty())
    }
}

impl History {
    /// Looks which slots of a shared service are in use, and chooses other base owners for the rest.
    pub(in crate::engine) fn sweep_shared<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        wanted: &Wanted,
        key: ServiceKey,
        slots: &[Slot],
        (id, idle): (u16, u32),
        now: Now,
    ) -> Vec<OwnerChange> {
        let secs = now.mono_secs();
        let peers = self.peer_owners(maps, wanted, &key, (id, slots.len() as u32));
        let floor = self.floor(&key, idle, now);
        let Some(shared) = self.sharing.services.get_mut(&key) else { return Vec::new() };
        shared.idle = idle;
        let since = secs.saturating_sub(shared.last_export);
        let exports_since = (since >= period(idle)).then_some(since);
        let count = slots.len() as u32;
        let changes = Vec::new();
        let mut sweep = SharedSweep { shared, idle, floor, secs, count, exports_since, changes };
        let mut is_in_flux = false;
        for (index, slot) in (0..).zip(slots) {
            let seen = slot.snapshot();
            let Owners { current, base } = seen.owners;
            if base == 0 {
                sweep.shared.flux.forget(index);
                continue;
            }
            if !agree(&peers, index, current) {
                sweep.shared.flux.touch(count, index, secs);
            }
            if base == current {
                is_in_flux |= sweep.sweep_own_base(index, seen);
            } else {
                sweep.sweep_other_base(index, seen);
                is_in_flux = true;
            }
        }
        let SharedSweep { shared, changes, .. } = sweep;
        if !is_in_flux {
            shared.flux = Flux::default();
        }
        if exports_since.is_some() {
            shared.last_export = secs;
        }
        changes
    }

    /// The owners for new flows at the peers that share a ring of so many slots, where they differ from this
    /// node's.
    fn peer_owners<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        wanted: &Wanted,
        key: &ServiceKey,
        (id, slots): (u16, u32),
    ) -> Vec<PeerTable> {
        let target = maps.applied.rings.get(&id).and_then(|ring| ring.target.as_ref());
        let own = target.map(|target| {
            target.members.iter().map(|(member, _)| (member.address, member.weight)).collect()
        });
        let ids = maps.backend_ids(id);
        let seed = wanted.settings.seed;
        let others = self.sharing.others(key, &own.unwrap_or_default(), slots, &seed);
        let tables = others.iter().map(|(members, places)| {
            let ids = members.iter().map(|(at, _)| ids.get(at).copied().unwrap_or(0));
            PeerTable { ids: ids.collect(), places: places.clone() }
        });
        tables.collect()
    }
}

/// The owners of a ring's slots for new flows at a peer: the ids of the members, and each slot's place among them.
struct PeerTable {
    ids: Vec<u16>,
    places: Vec<u16>,
}

/// Whether a slot's new flows go to this backend at all these peers.
fn agree(peers: &[PeerTable], index: u32, current: u16) -> bool {
    peers.iter().all(|PeerTable { ids, places }| {
        let owner = places.get(index as usize).map_or(0, |place| ids[usize::from(*place)]);
        owner == current
    })
}

/// The sweep of a shared ring.
struct SharedSweep<'a> {
    shared: &'a mut Shared,
    idle: u32,
    /// The second before which nothing of the service can have been idle.
    floor: u32,
    secs: u32,
    /// Slots of the ring.
    count: u32,
    /// Seconds since slots in use were exported last, if they are to be exported.
    exports_since: Option<u32>,
    changes: Vec<OwnerChange>,
}

impl SharedSweep<'_> {
    fn is_old(&self, since: u32) -> bool {
        self.secs.saturating_sub(since) > self.idle + grace(self.idle)
    }

    /// Whether nothing has kept the service's flows from being idle for long enough.
    fn has_rested(&self) -> bool {
        self.floor == 0 || self.is_old(self.floor)
    }

    /// A slot that is its own base owner settles after a while, or has the base owner before again; whether it has
    /// a base owner still.
    fn sweep_own_base(&mut self, index: u32, seen: SlotSnapshot) -> bool {
        let Self { idle, floor, secs, count, .. } = *self;
        let Owners { current, base } = seen.owners;
        match self.shared.flux.get(index) {
            // A peer is missed, or has come, or uses the slot, or its new flows go elsewhere.
            Wait::Closing { since, before, used } if used || floor >= since => {
                self.shared.flux.set(count, index, Wait::Used(secs));
                if before != base
                    && secs.saturating_sub(since) <= grace(idle)
                    && !is_used_since(seen, since, secs)
                {
                    self.changes.push((index, seen, Owners { current, base: before }));
                    self.shared.in_use.push(index);
                }
            }
            Wait::Closing { since, .. } if secs.saturating_sub(since) > 2 * grace(idle) => {
                self.changes.push((index, seen, Owners { current, base: 0 }));
                return false;
            }
            Wait::Unknown if self.has_rested() => {
                self.shared.flux.close(count, index, (secs, base));
            }
            Wait::Used(last) if self.has_rested() && self.is_old(last) => {
                self.shared.flux.close(count, index, (secs, base));
            }
            _ => {}
        }
        true
    }

    /// A slot with another base owner is exported while it is in use, and becomes its own base owner when it is quiet
    /// on all nodes.
    fn sweep_other_base(&mut self, index: u32, seen: SlotSnapshot) {
        let Self { idle, secs, count, .. } = *self;
        let Owners { current, base } = seen.owners;
        let last = match self.shared.flux.get(index) {
            Wait::Unknown | Wait::Closing { used: false, .. } => None,
            Wait::Used(last) => Some(last),
            Wait::Closing { .. } => Some(secs),
        };
        let at = stamp(secs);
        if self.exports_since.is_some_and(|since| !ring::is_quiet(seen, at, since + 1)) {
            self.shared.in_use.push(index);
        }
        let is_quiet = ring::is_quiet(seen, at, idle) && last.is_none_or(|last| self.is_old(last));
        if self.has_rested() && is_quiet {
            self.shared.flux.close(count, index, (secs, base));
            self.changes.push((index, seen, Owners { current, base: current }));
        } else {
            self.shared.flux.set(count, index, last.map_or(Wait::Unknown, Wait::Used));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use lb_model::{
        desired::{Admin, Backend, Desired, Mode, Service},
        hop::Neighbourhood,
        settings::{Limits, Settings},
    };
    use lb_plane::fake::Fake;

    use super::*;
    use crate::engine::{Engine, preview::presumed};

    const IDLE: u32 = 40;

    #[test]
    fn waits_take_room_only_while_a_slot_is_in_flux() {
        let mut spec = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr);
        spec.ring_slots = 1_009;
        for last in 11..14 {
            spec.backends.insert(BackendAddress::from([10, 0, 0, last]), Backend::default());
        }
        let mut service = spec;
        service.idle_timeout = Duration::from_secs(IDLE.into());
        let key = service.key;
        let mut desired = Desired { services: [("web".into(), service)].into() };
        let limits = Limits::default();
        let settings = Settings { limits, seed: [7; 16], ..Settings::default() };
        let mut engine = Engine::adopt(Fake::new(limits), &settings).expect("empty maps");
        let at = |secs: u32| Now { mono: Duration::from_secs(secs.into()), ..Now::read() };
        let bytes = |engine: &Engine<Fake>| engine.history.sharing.services[&key].flux.bytes();
        engine.set_neighbourhood(presumed(&Neighbourhood::default(), &desired));
        engine.set_desired(desired.clone());
        engine.reconcile(at(1_000)).expect("it is written");
        engine.set_roles([(key, Role::Shared)].into(), at(1_000)).expect("rings are read");
        assert_eq!(bytes(&engine), 0);

        let service = desired.services.get_mut("web").expect("it is there");
        let drained = service.backends.values_mut().next().expect("a backend");
        drained.admin = Admin::Draining { deadline: None };
        engine.set_desired(desired);
        engine.reconcile(at(1_001)).expect("it is written");
        let mut most = 0;
        for secs in 1_001..1_200 {
            engine.sweep(at(secs)).expect("it is written");
            most = most.max(bytes(&engine));
        }
        assert_eq!(most, 6 * 1_009, "some slots wait");
        assert_eq!(engine.status().expect("it is read").services["web"].slots_in_flux, 0);
        assert_eq!(bytes(&engine), 0, "none waits");
    }
}

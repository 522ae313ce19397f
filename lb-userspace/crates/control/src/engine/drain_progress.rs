//! How far drains are: the last packet, whether a drain is over by estimate, and when it is over
//! for certain.
//!
//! A drain is over *for certain* when no slot and no pin can have a flow any more: FIN and RST end
//! nothing, since any host that knows a flow's tuple can forge them, and a client may be silent for the
//! whole idle timeout. It is over *by estimate* when all pins of the backend are closed, and no packet
//! has come for a while by them, or in the slots of which it is the base owner. A pin that is open is a
//! known flow, however silent: there is no estimate beside it. Of the flows without a pin nothing is
//! known but when the last packet came, so the while is the service's `drain_silence`, and twice the
//! longest silence that a slot of its ring has broken, if that is more ([`Silences`]). The estimate is shown to the
//! operator and moves no flow, so a forged FIN shortens an estimate and nothing else.
//!
//! In mode `nat` the backend's own answers pass the node, too, and its connections are counted
//! ([`super::nat_connections`]). When it has none any more, the drain is over by estimate without a while of silence.
//!
//! Connections of the node's own processes pass no program. They are counted by their sockets
//! ([`super::local_connections`]), and while there is one a drain is over in no sense.
//!
//! A node estimates only what it sees: not where it shares the packets with others, nor where another
//! node is Active.
//!
//! - Clients of WebSockets, MQTT, SSH and pools of database connections send every 30 to 60 seconds, or less often.
//!   So an open pin counts, however silent it is.
//! - A pin is closed when the client has sent FIN or RST and nothing for five seconds since: a client that has
//!   closed one direction still acknowledges packets of the other. A closing packet counts as a packet like any
//!   other, so the end of the last connection delays the estimate by `drain_silence`.
//! - Flows of `tracked` and QUIC services show no end, so there is no estimate beside them.
//! - `drain_silence` is 90 seconds by default. The sweep sees a silence as the gap between two stamps of a slot in
//!   flux, and keeps the longest until the ring is steady and has no pins. Many flows share a slot, so this is a
//!   lower bound of the silence of any flow.
//!
//! A Backup with the flow sync waits for the certain end, which the Active exports. A Backup without it sees no
//! packet and receives nothing (`Drain::unseen` is `unsynced`), so it ends no wait; as the Active it counts silence
//! from then on.

use std::collections::{BTreeMap, BTreeSet};

use lb_api::status::{Drain, Unseen};
use lb_model::{
    desired::{Admin, Service, ServiceKey},
    ring,
    time::Now,
};
use lb_plane::DataPlane;

use super::{
    history::{History, Role},
    local_connections::LocalConnections,
    maps::AppliedMaps,
    nat_connections::NatConnections,
    walk::Walk,
    wanted::Wanted,
};

/// The silences that flows without a pin have broken, as far as the sweeps of a ring have met them.
///
/// A slot's stamp is that of its last packet, of whichever flow. So a silence of a slot is no longer
/// than that of any flow in it, and the one seen here is a lower bound.
#[derive(Debug, Default)]
pub(super) struct Silences {
    /// The stamps of the slots in flux at the last sweep; 0: none.
    stamps: Vec<u16>,
    /// Seconds of the longest.
    longest: u32,
}

impl Silences {
    /// Notes the stamp of a slot in flux.
    pub(super) fn record(&mut self, index: u32, stamp: u16) {
        let index = index as usize;
        if self.stamps.len() <= index {
            self.stamps.resize(index + 1, 0);
        }
        let before = std::mem::replace(&mut self.stamps[index], stamp);
        if before != 0 && stamp != 0 {
            self.longest = self.longest.max(ring::age(stamp, before));
        }
    }

    /// A slot is not in flux, or about to settle: its next stamp begins anew.
    pub(super) fn skip(&mut self, index: u32) {
        if let Some(stamp) = self.stamps.get_mut(index as usize) {
            *stamp = 0;
        }
    }

    /// No slot is in flux.
    pub(super) fn rest(&mut self) {
        self.stamps = Vec::new();
    }

    /// Seconds without a packet after which a service's drains are over by estimate: the
    /// configured time, or twice the longest silence, but no more of that than the idle timeout, after which
    /// they are over for certain.
    fn wait_secs(&self, configured: u32, idle_timeout: u32) -> u32 {
        configured.max(self.longest.saturating_mul(2).min(idle_timeout))
    }
}

/// The results of the last sweep of a service's ring.
#[derive(Debug, Default)]
struct RingPackets {
    /// The second of the last packet without a pin that each base owner got.
    bases: BTreeMap<u16, u32>,
    silences: Silences,
}

/// What the last sweep has seen of flows.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub walk: &'a Walk,
    pub history: &'a History,
    pub connections: &'a NatConnections,
    pub local: &'a LocalConnections,
}

/// The state of the drains.
#[derive(Debug, Default)]
pub(super) struct Drains {
    /// By the service's id; none: its ring is steady and has no pins.
    rings: BTreeMap<u16, RingPackets>,
    /// By the backend's id: how far its drain was at the last sweep.
    states: BTreeMap<u16, Drain>,
    /// The services whose packets go to another node, and of whose flows this node imports none.
    unsynced: BTreeSet<ServiceKey>,
    /// Since when this node sees the packets of those that were among them.
    seen_since: BTreeMap<ServiceKey, u32>,
}

impl Drains {
    /// Base owners of a service's ring, when each was last sent a packet without a pin, and the
    /// silences before.
    pub(super) fn record(&mut self, service: u16, bases: BTreeMap<u16, u32>, silences: Silences) {
        self.rings.insert(service, RingPackets { bases, silences });
    }

    /// A service's ring has no base owner, or none whose packets this node sees; returns the silences that
    /// were seen, for a ring that goes on.
    pub(super) fn forget(&mut self, service: u16) -> Silences {
        self.rings.remove(&service).map(|ring| ring.silences).unwrap_or_default()
    }

    /// How far the drain of a backend is, if it was looked at.
    pub(super) fn of(&self, service: &ServiceKey, backend: u16) -> Option<Drain> {
        // This holds before the first look, too.
        if self.unsynced.contains(service) {
            return Some(Drain { unseen: Some(Unseen::Unsynced), ..Drain::default() });
        }
        self.states.get(&backend).copied()
    }
}

impl Drains {
    /// Sets the services whose packets another node gets, without exporting their flows to this one.
    pub(super) fn set_unsynced(&mut self, unsynced: BTreeSet<ServiceKey>, now: Now) {
        for key in self.unsynced.difference(&unsynced) {
            self.seen_since.insert(*key, now.mono_secs());
        }
        self.unsynced = unsynced;
    }

    /// Updates how far drains are: after the rings and the flows were swept.
    pub(super) fn update<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        wanted: &Wanted,
        seen: Seen<'_>,
        now: Now,
    ) {
        let ids = maps.ids();
        let mut states = BTreeMap::new();
        for service in wanted.desired().services.values() {
            let Some(value) = maps.applied.services.get(&service.key) else { continue };
            for (address, backend) in &service.backends {
                let (Admin::Draining { deadline } | Admin::Removing { deadline }) = backend.admin
                else {
                    continue;
                };
                let Some(id) = ids.of(value.id, *address) else { continue };
                let mut state = self.drain(service, (value.id, id), seen, now);
                if let (Some(deadline), Some(ends)) = (deadline, &mut state.ends_in_secs) {
                    let left = deadline.duration_since(now.wall).unwrap_or_default();
                    *ends = (*ends).min(left.as_secs());
                }
                state.local_connections = seen.local.of(id);
                if state.local_connections > 0 {
                    (state.estimated, state.closed) = (false, false);
                }
                states.insert(id, state);
            }
        }
        self.states = states;
    }

    fn drain(
        &self,
        service: &Service,
        (service_id, id): (u16, u16),
        Seen { walk, history, connections, .. }: Seen<'_>,
        now: Now,
    ) -> Drain {
        let unseen = match history.role(&service.key) {
            Role::Own => None,
            Role::Follows => Some(Unseen::Synced),
            Role::Shared => Some(Unseen::Shared),
        };
        if unseen.is_some() {
            return Drain { unseen, ..Drain::default() };
        }
        let secs = |time: std::time::Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let idle_timeout = secs(service.idle_timeout);
        let tally = walk.per_backend.get(&id).copied().unwrap_or_default();
        let ring = self.rings.get(&service_id);
        let base = ring.and_then(|ring| ring.bases.get(&id)).copied();
        let silence = secs(service.drain_silence);
        let silence = ring.map_or(silence, |ring| ring.silences.wait_secs(silence, idle_timeout));
        let ends = base.map(|last| last.saturating_add(idle_timeout).saturating_add(1));
        let ends = ends.max((tally.flows > 0).then_some(tally.ends));
        let last_packet = base.max(tally.last_packet);
        let since = |then: u32| now.mono_secs().saturating_sub(then);
        // Before that second others got the packets.
        let seen_since = self.seen_since.get(&service.key).copied();
        let is_quiet = |secs: u32, then: Option<u32>| {
            then.is_none_or(|then| secs.saturating_sub(then) >= silence)
        };
        // The pins are as old as the walk that has read them.
        let is_quiet = is_quiet(walk.started(), tally.last_packet)
            && is_quiet(now.mono_secs(), base.max(seen_since));
        let floor = history.floor(&service.key, idle_timeout, now);
        let closed = connections.has_none(id, (floor, idle_timeout), last_packet, now);
        Drain {
            estimated: closed || (tally.flows == tally.closing && is_quiet),
            closed,
            local_connections: 0,
            silence_secs: silence.into(),
            unseen,
            heard_secs: last_packet.map(|then| since(then).into()),
            ends_in_secs: ends.map(|ends| ends.saturating_sub(now.mono_secs()).into()),
        }
    }
}

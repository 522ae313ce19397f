//! How far drains are: who was heard last, whether a drain is over by estimate, and when it is over
//! for certain.
//!
//! A drain is over *for certain* when no slot and no pin can have a flow any more: FIN and RST end
//! nothing, since whoever knows a flow's tuple can forge them, and a client may be silent for the
//! whole idle timeout. It is over *by estimate* when for [`QUIET_SECS`] no packet has come of a flow
//! that may be on the backend: none in the slots of which it is the base owner, and none by a pin
//! but of those that are closed. The estimate is told to the operator and moves no flow, so a forged
//! FIN shortens an estimate and nothing else.

use std::collections::BTreeMap;

use lb_common::abi::{FlowValue, flow_flags};

use super::{Engine, Now, history::Role};
use crate::{
    datapath::DataPlane,
    desired::Admin,
    status::{Drain, QUIET_SECS},
};

/// Seconds without a packet after a FIN or RST of the client: an end of the other direction, or what
/// is sent again, would have come by then.
const CLOSED_SECS: u32 = 5;

/// Whether a flow that has been idle for so long is closed: the client has sent FIN or RST, and
/// nothing since. One that it has closed in one direction only goes on to acknowledge.
pub(crate) const fn is_closed(value: FlowValue, idle: u32) -> bool {
    value.flags & flow_flags::CLOSING != 0 && idle >= CLOSED_SECS
}

/// The live flows of one backend in all tables, as a walk has met them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// All of them.
    pub(super) flows: u64,
    /// Those that are closed.
    pub(super) closing: u64,
    /// Second of the last packet of the others.
    heard: Option<u32>,
    /// Second in which the last of all ends if none sends any more.
    ends: u32,
}

impl Tally {
    /// Counts a flow that was last heard at `seen` and may be idle for `kept` seconds.
    pub(super) fn count(&mut self, value: FlowValue, seen: u32, kept: u32, now: Now) {
        self.flows += 1;
        self.ends = self.ends.max(seen.saturating_add(kept).saturating_add(1));
        if is_closed(value, now.mono_secs().saturating_sub(seen)) {
            self.closing += 1;
        } else {
            self.heard = self.heard.max(Some(seen));
        }
    }
}

/// What is known of the drains.
#[derive(Debug, Default)]
pub(super) struct Drains {
    /// By the service's id: the second of the last packet without a pin that each base owner got.
    bases: BTreeMap<u16, BTreeMap<u16, u32>>,
    /// By the backend's id: how far its drain was at the last sweep.
    states: BTreeMap<u16, Drain>,
}

impl Drains {
    /// Base owners of a service's ring, and when each was last sent a packet without a pin.
    pub(super) fn hear(&mut self, service: u16, heard: BTreeMap<u16, u32>) {
        self.bases.insert(service, heard);
    }

    /// A service's ring has no base owner, or not one of which this node could know.
    pub(super) fn forget(&mut self, service: u16) {
        self.bases.remove(&service);
    }

    pub(super) fn of(&self, backend: u16) -> Option<Drain> {
        self.states.get(&backend).copied()
    }
}

impl<D: DataPlane> Engine<D> {
    /// Looks how far drains are: after the rings and the flows were looked at.
    pub(super) fn look_at_drains(&mut self, now: Now) {
        let ids = self.ids();
        let mut states = BTreeMap::new();
        for service in self.desired().services.values() {
            let Some(value) = self.applied.services.get(&service.key) else { continue };
            for (address, backend) in &service.backends {
                let (Admin::Draining { deadline } | Admin::Removing { deadline }) = backend.admin
                else {
                    continue;
                };
                let Some(id) = ids.of(value.id, *address) else { continue };
                // Of a service that other nodes forward as well, this one does not hear all.
                let hears = self.history.role(&service.key) == Role::Own;
                let mut state = self.drain(value.id, id, value.idle_timeout, hears, now);
                if let (Some(deadline), Some(ends)) = (deadline, &mut state.ends_in_secs) {
                    let left = deadline.duration_since(now.wall).unwrap_or_default();
                    *ends = (*ends).min(left.as_secs());
                }
                states.insert(id, state);
            }
        }
        self.drains.states = states;
    }

    fn drain(&self, service: u16, id: u16, idle_timeout: u32, hears: bool, now: Now) -> Drain {
        let tally = self.walk.per_backend.get(&id).copied().unwrap_or_default();
        let base = self.drains.bases.get(&service).and_then(|bases| bases.get(&id)).copied();
        let secs = now.mono_secs();
        let ends = base.map(|heard| heard.saturating_add(idle_timeout).saturating_add(1));
        let ends = ends.max((tally.flows > 0).then_some(tally.ends));
        if !hears {
            return Drain::default();
        }
        let ends_in_secs = ends.map(|ends| u64::from(ends.saturating_sub(secs)));
        let heard = base.max(tally.heard);
        let since = |at: u32, then: Option<u32>| then.map(|then| at.saturating_sub(then));
        // What the walk has seen of the pins is as old as the walk.
        let walked = self.walk.started();
        let is_quiet = |since: Option<u32>| since.is_none_or(|secs| secs >= QUIET_SECS);
        Drain {
            estimated: is_quiet(since(secs, base)) && is_quiet(since(walked, tally.heard)),
            heard_secs: since(secs, heard).map(u64::from),
            ends_in_secs,
        }
    }
}

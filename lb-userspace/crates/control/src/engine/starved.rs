//! New flows that find no room for a pin: when the older flows of a backend that refuses give way to them.
//!
//! In a slot whose base owner is soft down a new flow needs a pin. A flood takes the room: with a SYN and an ACK
//! it makes a pin that lives for the idle timeout, and with an ACK alone it keeps a slot in flux. Where there is
//! no room the program drops the SYNs of new flows ([`Drop::Unpinnable`]), and the clients of these slots, one
//! in as many as there are backends, would wait for as long as the flood lasts.
//!
//! A backend that refuses has a kernel without a listener: its server only finishes old flows.
//! So when such drops have gone on for [`LASTING_SECS`], the slots of such backends settle in which no
//! unpinned packet has come for as long, and after [`LONGEST_SECS`] all of them. Flows that are pinned stay.
//! Where the base owner is soft down for another reason it serves its flows, perhaps all, and keeps them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use lb_common::{
    abi::{Owners, SlotSnapshot, backend_flags},
    verdict::Drop,
};
use lb_model::{desired::ServiceKey, entry, ring, seen, time::Now};
use lb_plane::DataPlane;
use tracing::warn;

use super::{maps::AppliedMaps, pin_shares::PinShares, wanted::Wanted};

/// Seconds for which new flows are dropped before older ones give way, and without a packet after which a slot has
/// none that is seen to live. Within that a client has sent its SYN three times (after 1, 3 and 7 s; RFC 6298, 2).
const LASTING_SECS: u32 = 10;
/// The same after which every slot of the backend gives way: forged packets may come to any of them.
const LONGEST_SECS: u32 = 60;
/// Seconds without a drop after which the flood is over.
const PAUSE_SECS: u32 = 5;
/// The table is full when less than one of so many parts of it is free: entries are counted every few seconds.
const FREE_PART: u64 = 16;

/// Services that have no room for pins of new flows.
#[derive(Debug, Default)]
pub(super) struct Starved {
    /// SYNs that the program had dropped for it at the last look; none: there was none.
    dropped: Option<u64>,
    /// By service id.
    services: BTreeMap<u16, Span>,
}

/// When new flows were dropped, in seconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: u32,
    last: u32,
    /// Whether the log has it that older flows give way, and that all do.
    logged: (bool, bool),
}

/// The base owners whose older flows give way in one ring.
#[derive(Debug)]
pub(super) struct GivingWay {
    backends: BTreeSet<u16>,
    /// In slots that flows are seen in as well.
    pub(super) all: bool,
}

impl GivingWay {
    /// Whether the older flows of a slot give way. `at` is a stamp.
    pub(super) fn names(&self, slot: SlotSnapshot, at: u16) -> bool {
        let Owners { current, base } = slot.owners;
        base != current
            && self.backends.contains(&base)
            && (self.all || ring::is_quiet(slot, at, LASTING_SECS))
    }
}

impl Starved {
    /// Looks which services have no room for pins of new flows; once a second. Those count whose history is this
    /// node's own.
    pub(super) fn check<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        (pins, shares): (u64, &PinShares),
        is_own: impl Fn(&ServiceKey) -> bool,
        now: Now,
    ) -> Result<()> {
        let verdicts = maps.plane.verdicts().context("read the verdicts")?;
        let dropped =
            verdicts.get(Drop::Unpinnable.index() as usize).map_or(0, |count| count.packets);
        let before = self.dropped.replace(dropped);
        let secs = now.mono_secs();
        self.services.retain(|_, span| secs.saturating_sub(span.last) <= PAUSE_SECS);
        if before.is_none_or(|before| dropped <= before) {
            return Ok(());
        }
        let room = u64::from(maps.room_for_pins());
        let is_full = pins >= room - room / FREE_PART;
        for (key, service) in &maps.applied.services {
            let is_spent = || shares.is_spent(service.id, now);
            if is_own(key) && (is_full || is_spent()) {
                let span = Span { first: secs, last: secs, logged: (false, false) };
                self.services.entry(service.id).or_insert(span).last = secs;
            }
        }
        Ok(())
    }

    /// The base owners whose older flows give way in the ring of a service, if any do.
    pub(super) fn giving_way<D: DataPlane>(
        &self,
        id: u16,
        maps: &AppliedMaps<D>,
        wanted: &Wanted,
    ) -> Option<GivingWay> {
        let span = self.services.get(&id)?;
        let lasts = span.last.saturating_sub(span.first);
        if lasts < LASTING_SECS {
            return None;
        }
        let key = maps.key_of(id)?;
        let service = wanted.desired().services.values().find(|service| service.key == key)?;
        let refuses = |id: &u16| {
            let entry = maps.applied.backends.get(id)?;
            let backend = entry::backend_of(entry);
            let seen = wanted.view.get(&seen::BackendKey { service: key, backend })?;
            let port = service.check_of(service.backends.get(&backend)?).port;
            // Of several ports, others may take flows.
            let is_of_service =
                key.ports().is_one() && port.is_none_or(|port| port == backend.port_or(key.port));
            let takes_none = entry.flags & backend_flags::SOFT_DOWN != 0;
            Some(takes_none && seen.refuses && is_of_service)
        };
        let owned = maps.applied.rings.get(&id)?.owned.iter().filter(|(_, owned)| owned.base > 0);
        let backends: BTreeSet<_> =
            owned.map(|(id, _)| *id).filter(|id| refuses(id) == Some(true)).collect();
        (!backends.is_empty()).then_some(GivingWay { backends, all: lasts >= LONGEST_SECS })
    }

    /// Logs that slots of a service settle that may have flows: once, and once when all do.
    pub(super) fn log(&mut self, id: u16, service: &str, slots: usize, all: bool) {
        if slots == 0 {
            return;
        }
        let Some(span) = self.services.get_mut(&id) else { return };
        let logged = if all { &mut span.logged.1 } else { &mut span.logged.0 };
        if std::mem::replace(logged, true) {
            return;
        }
        warn!(
            service,
            slots,
            "new flows find no room for a pin (dropped: {}), so in these slots they go where the ring sends them, and \
             unpinned flows of the backend that refuses connections end",
            Drop::Unpinnable.name()
        );
    }
}

//! What this node tells: news, and all of it.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use lb_common::abi::{FlowValue, Owners, Slot, stamp, udp_policy};

use super::{RingNews, Role, Settling, slot_of_flow, to_told};
use crate::{
    datapath::{DataPlane, FlowRef, FlowTable},
    desired::ServiceKey,
    engine::{Engine, Now},
    ring,
    sync::{
        Piece,
        piece::{Base, Pin, digest},
    },
};

/// Slots that are cleared right after a second look at them.
const AT_ONCE: usize = 64;

/// Pins of each service.
type Pins = BTreeMap<ServiceKey, Vec<Pin>>;

impl<D: DataPlane> Engine<D> {
    /// What has changed since the last call, of services whose history is this node's or shared.
    ///
    /// What is told is as it is at this moment, whatever it was when it changed. What is told by one call
    /// has the number [`Self::news_number`]; [`Self::news_are_taken`] says how far peers are.
    ///
    /// # Errors
    ///
    /// A map can't be read; the next call tells it.
    pub fn news(&mut self, now: Now) -> Result<Vec<Piece>> {
        self.keep_news(now);
        let Self { data_plane, history, .. } = self;
        let telling = &mut history.telling;
        let noted = &mut telling.noted;
        let all = data_plane
            .noted_pins(&mut |key| {
                noted.insert(key);
            })
            .context("read the log of pins")?;
        if !all {
            telling.missed_since.get_or_insert(now.mono_secs().saturating_sub(MISSED_SECS));
        }
        self.settle_told(now)?;
        self.tell_settling(now);
        if self.history.telling.is_empty() {
            return Ok(Vec::new());
        }
        let keys = self.told();
        let mut pieces = Vec::new();
        let mut told_rings = Vec::new();
        for (key, news) in &self.history.telling.rings {
            let settling = self.history.settling.get(key);
            let settles = |slot| settling.is_some_and(|settling| settling.was_told(slot));
            let is_told = self.history.role(key) != Role::Own;
            if is_told || self.tell_ring(key, news, settles, &mut pieces)? {
                told_rings.push(*key);
            }
        }
        let mut pins = Pins::new();
        if let Some(since) = self.history.telling.missed_since {
            self.tell_pins_since(since, &keys, now, &mut pins)?;
        }
        let telling = &self.history.telling;
        let noted = telling.noted.iter().map(|key| FlowRef::Pin(*key));
        for flow in noted.chain(telling.flows.iter().copied()) {
            let Some(key) = keys.get(&flow.service()) else { continue };
            if let Some(value) = self.data_plane.flow_value(&flow).context("read a flow")? {
                pins.entry(*key).or_default().extend(self.to_pin(&flow, value, now));
            }
        }
        pieces.extend(pins.into_iter().map(|(service, pins)| Piece::Pins { service, pins }));

        let telling = &mut self.history.telling;
        let mut ended = BTreeMap::<_, Vec<_>>::new();
        for (service, flow) in telling.ended.drain(..) {
            ended.entry(service).or_default().push(flow);
        }
        // A flow that has ended may have begun again, so its end comes first.
        let ended = ended.into_iter().map(|(service, flows)| Piece::Ended { service, flows });
        pieces.splice(0..0, ended);
        telling.noted.clear();
        telling.flows.clear();
        telling.missed_since = None;
        telling.number += 1;
        for key in told_rings {
            telling.rings.remove(&key);
        }
        Ok(pieces)
    }

    /// The number of the last news.
    pub const fn news_number(&self) -> u64 {
        self.history.telling.number
    }

    /// Every peer that is to has taken in all news up to this number. Until this is called for the first
    /// time, news count as taken when the next ones are told.
    pub const fn news_are_taken(&mut self, number: u64) {
        self.history.taken = Some(number);
    }

    /// What changes from now on is kept as news. What was not kept meanwhile is.
    pub(super) fn keep_news(&mut self, now: Now) {
        let telling = &mut self.history.telling;
        if let Some(since) = telling.ask(now.mono_secs()) {
            telling.missed_since = Some(since.saturating_sub(MISSED_SECS));
            self.applied.services.keys().for_each(|key| telling.ring(*key));
        }
    }

    /// Has the next news tell of slots that are quiet, as many as there is room for.
    fn tell_settling(&mut self, now: Now) {
        let Self { history, applied, .. } = self;
        let mut room = history.window.room(history.taken, now.mono);
        let number = history.telling.number + 1;
        for (key, settling) in &mut history.settling {
            let ring = applied.services.get(key).and_then(|service| applied.rings.get(&service.id));
            // Of a ring that is not known nothing is told.
            if ring.is_none_or(|ring| ring.target.is_none()) {
                continue;
            }
            let slots = settling.tell(room, number);
            if !slots.is_empty() {
                room -= slots.len();
                history.window.tell(number, now.mono);
                history.telling.slots(*key, slots.into_iter());
            }
        }
    }

    /// Clears the base owners of slots that peers know to have settled, if they are quiet still.
    fn settle_told(&mut self, now: Now) -> Result<()> {
        let at = stamp(now.mono_secs());
        let taken = self.history.taken.unwrap_or(u64::MAX);
        let keys: Vec<_> = self.history.settling.keys().copied().collect();
        for key in keys {
            let told = self.history.settling(key).take_told(taken);
            if *self.history.settling(key) == Settling::default() {
                self.history.settling.remove(&key);
            }
            let Some(service) = self.applied.services.get(&key).copied() else { continue };
            if told.is_empty() || !self.applied.rings.contains_key(&service.id) {
                continue;
            }
            let context = || format!("write ring {}", service.id);
            let slots = self.data_plane.ring(service.id).with_context(context)?;
            let (mut settled, mut noisy) = (Vec::new(), Vec::new());
            for index in told {
                let Some(slot) = slots.get(index as usize) else { continue };
                let before = slot.owners();
                if before.base == 0 {
                    continue;
                }
                if ring::is_quiet(slot, at, service.idle_timeout) {
                    settled.push((index, before, Owners { base: 0, ..before }));
                } else {
                    noisy.push(index);
                }
            }
            let mut done = Ok(());
            for few in settled.chunks(AT_ONCE) {
                // Whatever held this process up since the look at these slots held up its lease as
                // well: flows may have begun at their base owners without a pin.
                let mut quiet = Vec::with_capacity(few.len());
                for change in few {
                    let slot = slots.get(change.0 as usize);
                    if slot.is_some_and(|slot| ring::is_quiet(slot, at, service.idle_timeout)) {
                        quiet.push(*change);
                    } else {
                        noisy.push(change.0);
                    }
                }
                done = self.write_bases(service.id, &slots, &quiet, now);
                if done.is_err() {
                    break;
                }
                self.history.settled += quiet.len() as u64;
            }
            // If this fails they are told again: what they were told to be is not what they are.
            if done.is_err() {
                noisy.extend(settled.iter().map(|(index, ..)| *index));
            }
            self.history.telling.slots(key, noisy.into_iter());
            done?;
        }
        Ok(())
    }

    /// All of the history of services whose history is this node's or shared.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    pub fn history(&mut self, now: Now) -> Result<Vec<Piece>> {
        self.keep_news(now);
        let keys = self.told();
        let mut flows = Pins::new();
        let services: HashMap<_, _> =
            self.applied.services.values().map(|service| (service.id, *service)).collect();
        let rings = self.tracked_rings()?;
        for table in FlowTable::ALL {
            let mut found = Vec::new();
            self.data_plane
                .flows(table, &mut |flow, value| found.push((flow, value)))
                .context("walk the flows")?;
            for (flow, value) in found {
                let id = flow.service();
                let (Some(key), Some(service)) = (keys.get(&id), services.get(&id)) else {
                    continue;
                };
                let idle = now.mono_secs().saturating_sub(value.seen);
                let matters = table == FlowTable::Pins || strays(&flow, value, service, &rings);
                if matters && idle <= service.idle_timeout {
                    flows.entry(*key).or_default().extend(self.to_pin(&flow, value, now));
                }
            }
        }
        let mut pieces = Vec::new();
        for service in keys.into_values() {
            // What is about to settle is news to come: who stops here has a base owner there still.
            let settling = self.history.settling.get(&service);
            let settles = |slot| settling.is_some_and(|settling| settling.was_told(slot));
            self.tell_ring(&service, &RingNews::Whole, settles, &mut pieces)?;
            if let Some(pins) = flows.remove(&service) {
                pieces.push(Piece::Pins { service, pins });
            }
            pieces.push(Piece::all_is_told(service));
        }
        Ok(pieces)
    }

    /// Tells of a service's ring; false if it is not known what it is: a write has failed. Slots that
    /// settle have no base owner any more.
    pub(super) fn tell_ring(
        &self,
        key: &ServiceKey,
        news: &RingNews,
        settles: impl Fn(u32) -> bool,
        pieces: &mut Vec<Piece>,
    ) -> Result<bool> {
        let Some(service) = self.applied.services.get(key) else { return Ok(true) };
        let Some(ring) = self.applied.rings.get(&service.id) else { return Ok(true) };
        let Some(target) = &ring.target else { return Ok(false) };
        let slots = self.data_plane.ring(service.id);
        let slots = slots.with_context(|| format!("read ring {}", service.id))?;
        let mut addresses = HashMap::new();
        let mut address = |id: u16| *addresses.entry(id).or_insert_with(|| self.address_of(id));
        let mut base = |(slot, at): (u32, &Slot)| Base {
            slot,
            backend: address(at.owners().base).filter(|_| !settles(slot)),
        };
        let service = *key;
        if let Some(changed) = news.slots() {
            let there =
                changed.into_iter().filter_map(|slot| Some((slot, slots.get(slot as usize)?)));
            let bases: Vec<_> = there.map(base).collect();
            pieces.push(Piece::Bases { service, bases });
            return Ok(true);
        }
        let in_flux = (0..).zip(slots.iter()).filter(|(_, slot)| slot.owners().base != 0);
        let bases = in_flux.map(&mut base).filter(|base| base.backend.is_some());
        let bases: Vec<_> = bases.collect();
        let nobody = std::net::IpAddr::from([0; 4]);
        let currents = slots.iter().map(|slot| address(slot.owners().current).unwrap_or(nobody));
        pieces.push(Piece::Ring {
            service,
            slots: target.slots,
            members: target.members.iter().map(|(m, _)| (m.address, m.weight)).collect(),
            digest: digest(currents),
        });
        if !bases.is_empty() {
            pieces.push(Piece::Bases { service, bases });
        }
        pieces.push(Piece::ring_is_whole(service));
        Ok(true)
    }

    /// Tells of the pins that were used since a second.
    fn tell_pins_since(
        &self,
        since: u32,
        keys: &BTreeMap<u16, ServiceKey>,
        now: Now,
        pins: &mut Pins,
    ) -> Result<()> {
        self.data_plane
            .flows(FlowTable::Pins, &mut |flow, value| {
                if let Some(key) = keys.get(&flow.service())
                    && value.seen >= since
                {
                    pins.entry(*key).or_default().extend(self.to_pin(&flow, value, now));
                }
            })
            .context("walk the pins")
    }

    fn to_pin(&self, flow: &FlowRef, value: FlowValue, now: Now) -> Option<Pin> {
        let idle = now.mono_secs().saturating_sub(value.seen);
        Some(Pin {
            flow: to_told(flow),
            backend: self.address_of(value.backend)?,
            flags: value.flags,
            idle: std::time::Duration::from_secs(idle.into()),
        })
    }

    /// The rings of the services that track their flows, for [`strays`].
    pub(in crate::engine) fn tracked_rings(&self) -> Result<HashMap<u16, D::Ring>> {
        let tracked = self.applied.services.values().filter(|service| {
            service.udp_policy == udp_policy::TRACKED
                && self.applied.rings.contains_key(&service.id)
        });
        let ring = |id| self.data_plane.ring(id).with_context(|| format!("read ring {id}"));
        // The policy of a TCP service is unused, and the type of its flows is another.
        tracked.map(|service| Ok((service.id, ring(service.id)?))).collect()
    }
}

/// Seconds that pins have been used for when their notes were written over: the clocks of both sides
/// are read at different moments, and between two calls there is less.
const MISSED_SECS: u32 = 2;

/// Whether a flow of a UDP service goes where the ring would not send it. Of a QUIC connection that
/// can't be told, for its client may have another address by now: it always counts as one.
pub(in crate::engine) fn strays<R>(
    flow: &FlowRef,
    value: FlowValue,
    service: &lb_common::abi::Service,
    rings: &HashMap<u16, R>,
) -> bool
where
    R: std::ops::Deref<Target = [Slot]>,
{
    match flow {
        FlowRef::Pin(_) => false,
        FlowRef::Connection(_) => true,
        FlowRef::Tracked(key) => {
            let slot = rings
                .get(&key.service)
                .and_then(|ring| ring.get(slot_of_flow(service, key) as usize).map(Slot::owners));
            slot.is_none_or(|owners| owners.current != value.backend)
        }
    }
}

//! What is still to be told: a list that the engine adds to while it writes, and that
//! [`super::tell`] empties.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use lb_common::abi::FlowKey;

use crate::{datapath::FlowRef, desired::ServiceKey, sync::piece::Flow};

/// Flows whose end is kept for telling; beyond that peers learn of it by their next full history.
const MOST_ENDED: usize = 262_144;

/// Seconds without a question after which nothing is kept: who asks does so a hundred times a second.
const PATIENCE_SECS: u32 = 10;

/// What has changed since it was told.
#[derive(Debug, Default)]
pub struct Telling {
    /// The second in which somebody has asked last. Until then nothing is kept.
    asked: Option<u32>,
    /// The same, when it was so long ago that nothing is kept any more.
    asked_once: Option<u32>,
    /// Rings, by service.
    pub rings: BTreeMap<ServiceKey, RingNews>,
    /// Flows that have ended.
    pub ended: Vec<(ServiceKey, Flow)>,
    /// Flows that may have another pin than was told.
    pub noted: HashSet<FlowKey>,
    /// Other flows that are to be told.
    pub flows: Vec<FlowRef>,
    /// The second since when pins may be new of which there is no note.
    pub missed_since: Option<u32>,
    /// Flows of UDP services that were told, with their backends.
    surveyed: HashMap<FlowRef, u16>,
}

/// What has changed of a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingNews {
    /// Who gets new flows, and so all of it.
    Whole,
    /// The base owners of these slots, a bit each.
    Slots(Vec<u64>),
}

impl Telling {
    /// Whether somebody asks, so that what changes is kept.
    pub const fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Somebody asks. If nobody has for long, the second until which all was kept.
    pub fn ask(&mut self, now: u32) -> Option<u32> {
        self.asked = Some(now);
        self.asked_once.take()
    }

    /// Keeps nothing any more if nobody has asked for long.
    pub fn end_unless_asked(&mut self, now: u32) {
        if let Some(asked) = self.asked.filter(|asked| now.saturating_sub(*asked) > PATIENCE_SECS) {
            *self = Self { asked_once: Some(asked), ..Self::default() };
        }
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.rings.is_empty()
            && self.ended.is_empty()
            && self.noted.is_empty()
            && self.flows.is_empty()
            && self.missed_since.is_none()
    }

    /// A ring has other owners for new flows.
    pub fn ring(&mut self, service: ServiceKey) {
        if self.is_asked() {
            self.rings.insert(service, RingNews::Whole);
        }
    }

    /// The base owners of slots have changed.
    pub fn slots(&mut self, service: ServiceKey, slots: impl Iterator<Item = u32>) {
        if !self.is_asked() {
            return;
        }
        for slot in slots {
            let news = self.rings.entry(service).or_insert_with(|| RingNews::Slots(Vec::new()));
            let RingNews::Slots(bits) = news else { return };
            let word = slot as usize / 64;
            if bits.len() <= word {
                bits.resize(word + 1, 0);
            }
            bits[word] |= 1 << (slot % 64);
        }
    }

    /// A flow has ended.
    pub fn end(&mut self, service: ServiceKey, flow: Flow) {
        if self.is_asked() && self.ended.len() < MOST_ENDED {
            self.ended.push((service, flow));
        }
    }

    /// A flow has a place of which no note tells.
    pub fn flow(&mut self, flow: FlowRef) {
        if self.is_asked() {
            self.flows.push(flow);
        }
    }

    /// Takes over which flows of UDP services go where the ring would not send them, or could not
    /// tell. Those that were not told yet are told; those that were and are no more have ended, which
    /// is returned.
    pub fn survey(&mut self, found: HashMap<FlowRef, u16>) -> Vec<FlowRef> {
        let known = std::mem::take(&mut self.surveyed);
        let is_new = |(flow, backend): &(&FlowRef, &u16)| known.get(*flow) != Some(*backend);
        self.flows.extend(found.iter().filter(is_new).map(|(flow, _)| *flow));
        let ended = known.into_keys().filter(|flow| !found.contains_key(flow)).collect();
        self.surveyed = found;
        ended
    }

    /// Forgets what was to be told of a service whose history is another node's from now on.
    pub fn drop_service(&mut self, service: &ServiceKey, id: Option<u16>) {
        self.rings.remove(service);
        self.ended.retain(|(of, _)| of != service);
        self.noted.retain(|key| Some(key.service) != id);
        self.flows.retain(|flow| Some(flow.service()) != id);
        self.surveyed.retain(|flow, _| Some(flow.service()) != id);
    }
}

/// Slots that are quiet. They are told to have settled right before they do: else a flow that is born
/// in one right after, and is not pinned, would be looked for at the old base owner by a peer that
/// takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settling {
    /// Slots of which that is to be told.
    quiet: BTreeSet<u32>,
    /// Slots of which it was.
    told: BTreeSet<u32>,
}

impl Settling {
    /// Whether a slot is told to have settled by the next news.
    pub fn has(&self, slot: u32) -> bool {
        self.quiet.contains(&slot) || self.was_told(slot)
    }

    /// Whether a slot was told to have settled.
    pub fn was_told(&self, slot: u32) -> bool {
        self.told.contains(&slot)
    }

    /// Takes in whether a slot is quiet; whether that is news.
    pub fn look(&mut self, slot: u32, is_quiet: bool) -> bool {
        if self.told.contains(&slot) {
            return false;
        }
        if is_quiet { self.quiet.insert(slot) } else { self.quiet.remove(&slot) }
    }

    /// All was told.
    pub fn tell(&mut self) {
        self.told.append(&mut self.quiet);
    }

    /// The slots that may settle, since that was told.
    pub fn take_told(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.told)
    }

    /// All slots, told or not.
    pub fn into_slots(self) -> impl Iterator<Item = u32> {
        self.quiet.into_iter().chain(self.told)
    }
}

impl RingNews {
    /// The slots, if only those have changed.
    pub fn slots(&self) -> Option<Vec<u32>> {
        let Self::Slots(bits) = self else { return None };
        let words = bits.iter().enumerate();
        let slots = words.flat_map(|(word, &bits)| {
            let set = (0..64).filter(move |bit| bits >> bit & 1 == 1);
            set.map(move |bit| word as u32 * 64 + bit)
        });
        Some(slots.collect())
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::ConnectionKey;

    use super::*;
    use crate::desired::Protocol;

    const WEB: ServiceKey = ServiceKey {
        vip: std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 100)),
        port: 80,
        protocol: Protocol::Tcp,
    };

    fn asked() -> Telling {
        let mut telling = Telling::default();
        assert_eq!(telling.ask(100), None);
        telling
    }

    #[test]
    fn nothing_is_kept_until_somebody_asks() {
        let mut telling = Telling::default();
        telling.ring(WEB);
        telling.slots(WEB, 0..3);
        telling.end(WEB, Flow::Connection([1; 8]));
        assert!(telling.is_empty());
    }

    #[test]
    fn who_has_not_asked_for_long_is_told_since_when_nothing_was_kept() {
        let mut telling = asked();
        telling.ring(WEB);
        telling.end_unless_asked(110);
        assert!(!telling.is_empty());
        telling.end_unless_asked(111);
        assert!(telling.is_empty() && !telling.is_asked());
        assert_eq!(telling.ask(200), Some(100));
        assert_eq!(telling.ask(201), None);
    }

    #[test]
    fn a_slot_that_is_quiet_settles_when_that_was_told() {
        let mut settling = Settling::default();
        assert!(settling.look(5, true) && settling.look(6, true));
        assert!(!settling.look(5, true), "no news");
        assert!(settling.has(5) && settling.take_told().is_empty());
        assert!(settling.look(6, false), "a packet has come");
        assert!(!settling.has(6));
        settling.tell();
        assert!(settling.has(5) && !settling.look(5, false));
        assert_eq!(settling.take_told(), [5].into());
        assert!(!settling.has(5));
    }

    #[test]
    fn slots_are_told_once_and_a_whole_ring_covers_them() {
        let mut telling = asked();
        telling.slots(WEB, [70, 3, 3].into_iter());
        assert_eq!(telling.rings[&WEB].slots(), Some(vec![3, 70]));
        telling.ring(WEB);
        telling.slots(WEB, [5].into_iter());
        assert_eq!(telling.rings[&WEB], RingNews::Whole);
    }

    #[test]
    fn a_surveyed_flow_is_told_once_again_when_it_moves_and_its_end_is() {
        let flow = |id| FlowRef::Connection(ConnectionKey { id: [id; 8], service: 0, reserved: 0 });
        let mut telling = asked();
        assert!(telling.survey([(flow(1), 4)].into()).is_empty());
        assert_eq!(std::mem::take(&mut telling.flows), [flow(1)]);
        assert!(telling.survey([(flow(1), 4)].into()).is_empty());
        assert!(telling.flows.is_empty());
        assert!(telling.survey([(flow(1), 5)].into()).is_empty());
        assert_eq!(std::mem::take(&mut telling.flows), [flow(1)]);
        assert_eq!(telling.survey([(flow(2), 4)].into()), [flow(1)]);
        assert_eq!(telling.flows, [flow(2)]);
    }
}

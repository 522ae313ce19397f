//! What is still to be told: a list that the engine adds to while it writes, and that
//! [`super::tell`] empties.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

use lb_common::abi::FlowKey;

use crate::{datapath::FlowRef, desired::ServiceKey, sync::piece::Flow};

/// Flows whose end is kept for telling; beyond that peers learn of it by their next full history.
const MOST_ENDED: usize = 262_144;

/// Seconds without a question after which nothing is kept: who asks does so a hundred times a second.
const PATIENCE_SECS: u32 = 10;

/// What has changed since it was told.
#[derive(Debug, Default)]
pub struct Telling {
    /// How often something was told.
    pub number: u64,
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
            let number = self.number;
            *self = Self { number, asked_once: Some(asked), ..Self::default() };
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

/// How many slots peers are told at once to have settled.
///
/// While a peer has not taken that in, it is not known which owner it goes by if it takes over. A flow
/// that is born there unpinned in that time, since the peer is late, may be lost to it. So few slots are
/// told at first, and more as long as peers are quick.
#[derive(Debug)]
pub struct Window {
    size: usize,
    /// The number of the last news with such slots, and when they were told.
    told: Option<(u64, Duration)>,
}

impl Default for Window {
    fn default() -> Self {
        Self { size: Self::LEAST, told: None }
    }
}

impl Window {
    const LEAST: usize = 64;
    const MOST: usize = 4096;
    /// A peer that has not taken something in after this time is late.
    const LATE: Duration = Duration::from_millis(25);

    /// How many slots may be told now, when peers have taken all news up to a number; none: they don't
    /// say.
    pub fn room(&mut self, taken: Option<u64>, now: Duration) -> usize {
        let Some(taken) = taken else { return usize::MAX };
        match self.told {
            Some((number, at)) if number > taken => {
                if now.saturating_sub(at) > Self::LATE {
                    self.size = Self::LEAST;
                }
                return 0;
            }
            Some(_) => self.size = (self.size * 2).min(Self::MOST),
            None => {}
        }
        self.told = None;
        self.size
    }

    /// Slots are told by the news with this number.
    pub const fn tell(&mut self, number: u64, now: Duration) {
        self.told = Some((number, now));
    }
}

/// Slots that are quiet. They are told to have settled before they do, and settle when every peer has
/// taken that in: else a flow that is born in one right after, and is not pinned, would be looked for at
/// the old base owner by a peer that takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settling {
    /// Slots of which that is to be told.
    quiet: BTreeSet<u32>,
    /// Slots of which it was, with the number of the news.
    told: VecDeque<(u64, BTreeSet<u32>)>,
}

impl Settling {
    /// Whether a slot was told to have settled, or is by the news that are made.
    pub fn was_told(&self, slot: u32) -> bool {
        self.told.iter().any(|(_, slots)| slots.contains(&slot))
    }

    /// Takes in whether a slot is quiet.
    pub fn look(&mut self, slot: u32, is_quiet: bool) {
        if is_quiet && !self.was_told(slot) {
            self.quiet.insert(slot);
        } else {
            self.quiet.remove(&slot);
        }
    }

    /// Tells of some of the slots by the news with this number; which.
    pub fn tell(&mut self, most: usize, number: u64) -> Vec<u32> {
        let mut slots = Vec::new();
        while slots.len() < most
            && let Some(slot) = self.quiet.pop_first()
        {
            slots.push(slot);
        }
        if !slots.is_empty() {
            self.told.push_back((number, slots.iter().copied().collect()));
        }
        slots
    }

    /// The slots that may settle, since all news up to this one were taken in.
    pub fn take_told(&mut self, taken: u64) -> BTreeSet<u32> {
        let mut slots = BTreeSet::new();
        while let Some((_, told)) = self.told.pop_front_if(|(number, _)| *number <= taken) {
            slots.extend(told);
        }
        slots
    }

    /// All slots that were told.
    pub fn into_told(self) -> impl Iterator<Item = u32> {
        self.told.into_iter().flat_map(|(_, slots)| slots)
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
    fn a_slot_that_is_quiet_settles_when_it_was_told_and_taken_in() {
        let mut settling = Settling::default();
        for slot in 5..9 {
            settling.look(slot, true);
        }
        assert!(settling.take_told(u64::MAX).is_empty());
        settling.look(6, false);
        assert_eq!(settling.tell(2, 7), [5, 7], "a packet has come for 6");
        assert!(settling.was_told(5) && !settling.was_told(8));
        settling.look(5, true);
        assert_eq!(settling.tell(9, 8), [8], "what was told is not told again");
        assert_eq!(settling.take_told(6), [].into(), "a peer has not heard of it");
        assert_eq!(settling.take_told(7), [5, 7].into());
        assert!(!settling.was_told(5) && settling.was_told(8));
        assert_eq!(settling.take_told(9), [8].into());
    }

    #[test]
    fn more_slots_are_told_at_once_as_long_as_peers_are_quick() {
        let millis = Duration::from_millis;
        let mut window = Window::default();
        assert_eq!(window.room(None, millis(0)), usize::MAX, "nobody says how far they are");
        for (step, expected) in (0..8).zip([64, 128, 256, 512, 1024, 2048, 4096, 4096]) {
            let at = millis(step * 20);
            assert_eq!(window.room(Some(step), at), expected);
            window.tell(step + 1, at);
            assert_eq!(window.room(Some(step), at + millis(10)), 0, "one at a time");
        }
        assert_eq!(window.room(Some(7), millis(170)), 0);
        assert_eq!(window.room(Some(8), millis(180)), 128, "it was late");
        assert_eq!(window.room(Some(8), millis(190)), 128, "nothing was told");
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

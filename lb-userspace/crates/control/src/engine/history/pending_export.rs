//! The changes since the last export: a list that the engine adds to while it writes, and that
//! [`super::export`] empties.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

use lb_common::abi::FlowKey;
use lb_model::{desired::ServiceKey, flow::FlowRef};
use lb_sync::record::Flow;

/// Ended flows that are kept for the next export; peers get any beyond that by their next full history.
const MOST_ENDED: usize = 262_144;

/// Seconds without an export after which no change is kept: the daemon exports a hundred times a second.
const PATIENCE_SECS: u32 = 10;

/// A peer that has not acknowledged an export after this time is late.
pub const LATE: Duration = Duration::from_millis(20);

/// Changes since the last export.
#[derive(Debug, Default)]
pub(crate) struct PendingExport {
    /// Number of exports that had changes.
    pub number: u64,
    /// The second of the last export. No change is kept before the first one.
    requested: Option<u32>,
    /// The same, when it was so long ago that no change is kept any more.
    lapsed: Option<u32>,
    /// Rings, by service.
    pub rings: BTreeMap<ServiceKey, RingDelta>,
    /// Flows that have ended.
    pub ended: Vec<(ServiceKey, Flow)>,
    /// Flows whose pin may differ from the exported one.
    pub noted: HashSet<FlowKey>,
    /// Other flows to export.
    pub flows: Vec<FlowRef>,
    /// The second since when pins may be new of which there is no note.
    pub missed_since: Option<u32>,
    /// Exported flows of UDP services, with their backends.
    surveyed: HashMap<FlowRef, u16>,
}

/// Changes of a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RingDelta {
    /// The current owners, and so all of it.
    Whole,
    /// The base owners of these slots, a bit each.
    Slots(Vec<u64>),
}

impl PendingExport {
    /// Whether the daemon exports changes, so that they are kept.
    pub(crate) const fn is_requested(&self) -> bool {
        self.requested.is_some()
    }

    /// Notes an export. Returns the second until which all changes were kept, if they were dropped since.
    pub(crate) fn request(&mut self, now: u32) -> Option<u32> {
        self.requested = Some(now);
        self.lapsed.take()
    }

    /// Drops the changes after [`PATIENCE_SECS`] without an export.
    pub(crate) fn end_unless_requested(&mut self, now: u32) {
        if let Some(requested) =
            self.requested.filter(|requested| now.saturating_sub(*requested) > PATIENCE_SECS)
        {
            let number = self.number;
            *self = Self { number, lapsed: Some(requested), ..Self::default() };
        }
    }

    /// Whether there is no change to export.
    pub fn is_empty(&self) -> bool {
        self.rings.is_empty()
            && self.ended.is_empty()
            && self.noted.is_empty()
            && self.flows.is_empty()
            && self.missed_since.is_none()
    }

    /// A ring has other owners for new flows.
    pub(crate) fn add_ring(&mut self, service: ServiceKey) {
        if self.is_requested() {
            self.rings.insert(service, RingDelta::Whole);
        }
    }

    /// The base owners of slots have changed.
    pub(crate) fn add_slots(&mut self, service: ServiceKey, slots: impl Iterator<Item = u32>) {
        if !self.is_requested() {
            return;
        }
        for slot in slots {
            let delta = self.rings.entry(service).or_insert_with(|| RingDelta::Slots(Vec::new()));
            let RingDelta::Slots(bits) = delta else { return };
            set(bits, slot);
        }
    }

    pub(crate) fn add_end(&mut self, service: ServiceKey, flow: Flow) {
        // No client has these addresses, but any can forge them.
        let is_mark = flow.ends_a_ring() || flow.ends_a_history();
        if self.is_requested() && !is_mark && self.ended.len() < MOST_ENDED {
            self.ended.push((service, flow));
        }
    }

    /// A flow has changed without a note of the program.
    pub(crate) fn add_flow(&mut self, flow: FlowRef) {
        if self.is_requested() {
            self.flows.push(flow);
        }
    }

    /// Takes over the flows of UDP services that may go where the ring would not send them. The new ones are
    /// exported; those that are gone have ended, and are returned.
    pub fn survey(&mut self, found: HashMap<FlowRef, u16>) -> Vec<FlowRef> {
        let known = std::mem::take(&mut self.surveyed);
        let is_new = |(flow, backend): &(&FlowRef, &u16)| known.get(*flow) != Some(*backend);
        self.flows.extend(found.iter().filter(is_new).map(|(flow, _)| *flow));
        let ended = known.into_keys().filter(|flow| !found.contains_key(flow)).collect();
        self.surveyed = found;
        ended
    }

    /// Drops the changes of a service whose history is another node's from now on.
    pub(crate) fn drop_service(&mut self, service: &ServiceKey, id: Option<u16>) {
        self.rings.remove(service);
        self.ended.retain(|(of, _)| of != service);
        self.noted.retain(|key| Some(key.service) != id);
        self.flows.retain(|flow| Some(flow.service()) != id);
        self.surveyed.retain(|flow, _| Some(flow.service()) != id);
    }
}

/// How many slots are exported at once as settled, and how long peers have to acknowledge them.
///
/// Until a peer has imported that it sends flows without a pin to another owner than this node, and
/// if it took over then, such a flow would break. So few slots are exported at first, and more as long as
/// peers are quick, and the daemon as well: while it does not run, the lease ends, and flows begin in
/// these slots without a pin before they can be taken back.
#[derive(Debug)]
pub(crate) struct Window {
    size: usize,
    patience: Duration,
    /// When [`Self::room`] was called last.
    called: Option<Duration>,
    /// The export that peers must acknowledge before more slots are exported.
    sent: Option<Sent>,
}

/// An export of slots that settle.
#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u64,
    at: Duration,
    /// Whether it withdraws the slots of an earlier one.
    is_withdrawal: bool,
}

impl Default for Window {
    fn default() -> Self {
        Self { size: Self::LEAST, patience: LATE, called: None, sent: None }
    }
}

impl Window {
    const LEAST: usize = 64;
    const MOST: usize = 4096;
    /// Peers that are late have twice as long the next time, up to this: slots are to settle in the
    /// end, however slow peers are.
    const MOST_PATIENCE: Duration = Duration::from_secs(1);

    /// How many slots may be exported now, when peers have acknowledged all exports up to a number; none:
    /// they acknowledge none.
    pub(crate) fn room(&mut self, taken: Option<u64>, now: Duration) -> usize {
        let Some(taken) = taken else { return usize::MAX };
        let called = self.called.replace(now);
        if called.is_some_and(|called| now.saturating_sub(called) > LATE) {
            self.size = Self::LEAST;
        }
        let Some(sent) = self.sent else { return self.size };
        if sent.number > taken {
            return 0;
        }
        self.sent = None;
        let took = now.saturating_sub(sent.at);
        if took > self.patience {
            self.size = Self::LEAST;
        } else if !sent.is_withdrawal {
            self.size = (self.size * 2).min(Self::MOST);
            if took <= self.patience / 2 {
                self.patience = (self.patience / 2).max(LATE);
            }
        }
        self.size
    }

    /// The export with this number has slots that settle.
    pub(crate) const fn export(&mut self, number: u64, now: Duration) {
        self.sent = Some(Sent { number, at: now, is_withdrawal: false });
    }

    /// Whether peers are late with the export of that time.
    pub(crate) fn is_over(&self, sent: Duration, now: Duration) -> bool {
        now.saturating_sub(sent) >= self.patience
    }

    /// The export with this number withdraws slots, since peers are late.
    pub(crate) fn withdraw(&mut self, number: u64, now: Duration) {
        self.size = Self::LEAST;
        self.patience = (self.patience * 2).min(Self::MOST_PATIENCE);
        self.sent = Some(Sent { number, at: now, is_withdrawal: true });
    }
}

/// Slots that are quiet, on their way to have no base owner.
///
/// At any moment a peer that imports all exports so far, and takes over, must send flows without a pin to
/// the same owner as this node: no record is exported for them. So a slot that is exported as settled
/// becomes its own base owner with that: a flow that can't be pinned goes to its current owner as well.
/// The other flows are pinned still, for a peer without that export. When every peer has acknowledged it,
/// the slot settles, and no flow is pinned any more. If one is late, the slot gets its base owner again,
/// which is exported, before flows begin there unpinned since the peer is late.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settling {
    /// Quiet slots that are not exported yet.
    quiet: BTreeSet<u32>,
    /// Exported ones, oldest first.
    sent: VecDeque<SettledBatch>,
}

/// Slots that were exported as settled.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SettledBatch {
    /// The number of the export, and its time.
    number: u64,
    at: Duration,
    /// Their base owners until then.
    bases: BTreeMap<u32, u16>,
    /// Whether peers were late with it: then all slots that could be withdrawn were.
    was_late: bool,
}

impl Settling {
    /// Notes whether a slot is quiet.
    pub(crate) fn record(&mut self, slot: u32, is_quiet: bool) {
        if is_quiet && !self.sent.iter().any(|sent| sent.bases.contains_key(&slot)) {
            self.quiet.insert(slot);
        } else {
            self.quiet.remove(&slot);
        }
    }

    /// Some of the slots that were quiet when it was looked last.
    pub(crate) fn take_quiet(&mut self, most: usize) -> Vec<u32> {
        let mut slots = Vec::new();
        while slots.len() < most
            && let Some(slot) = self.quiet.pop_first()
        {
            slots.push(slot);
        }
        slots
    }

    /// The export with this number has these slots as settled; with their base owners.
    pub(crate) fn export(&mut self, bases: BTreeMap<u32, u16>, number: u64, now: Duration) {
        self.sent.push_back(SettledBatch { number, at: now, bases, was_late: false });
    }

    /// The slots that may settle, since all exports up to this one are acknowledged.
    pub(crate) fn take_acknowledged(&mut self, taken: u64) -> Vec<u32> {
        let mut slots = Vec::new();
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.number <= taken) {
            slots.extend(sent.bases.into_keys());
        }
        slots
    }

    /// The slots with which peers are late for the first time, and their base owners until they were
    /// exported.
    pub(crate) fn late(&mut self, is_over: impl Fn(Duration) -> bool) -> Vec<(u32, u16)> {
        let mut late = Vec::new();
        for sent in self.sent.iter_mut().filter(|sent| !sent.was_late && is_over(sent.at)) {
            sent.was_late = true;
            late.extend(sent.bases.iter().map(|(slot, base)| (*slot, *base)));
        }
        late
    }

    /// These slots have their base owners again.
    pub(crate) fn withdraw(&mut self, slots: &[u32]) {
        for sent in &mut self.sent {
            for slot in slots {
                sent.bases.remove(slot);
            }
        }
    }
}

impl RingDelta {
    /// These slots.
    pub(crate) fn of(slots: impl IntoIterator<Item = u32>) -> Self {
        let mut bits = Vec::new();
        slots.into_iter().for_each(|slot| set(&mut bits, slot));
        Self::Slots(bits)
    }

    /// The slots, if only those have changed.
    pub(crate) fn slots(&self) -> Option<Vec<u32>> {
        let Self::Slots(bits) = self else { return None };
        let words = bits.iter().enumerate();
        let slots = words.flat_map(|(word, &bits)| {
            let set = (0..64).filter(move |bit| bits >> bit & 1 == 1);
            set.map(move |bit| word as u32 * 64 + bit)
        });
        Some(slots.collect())
    }
}

/// Sets a slot's bit.
fn set(bits: &mut Vec<u64>, slot: u32) {
    let word = slot as usize / 64;
    if bits.len() <= word {
        bits.resize(word + 1, 0);
    }
    bits[word] |= 1 << (slot % 64);
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{ConnectionKey, Destination};
    use lb_model::desired::Protocol;

    use super::*;

    const WEB: ServiceKey = ServiceKey::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 100)),
        80,
        Protocol::Tcp,
    );

    fn requested() -> PendingExport {
        let mut pending = PendingExport::default();
        assert_eq!(pending.request(100), None);
        pending
    }

    #[test]
    fn nothing_is_kept_until_somebody_asks() {
        let mut pending = PendingExport::default();
        pending.add_ring(WEB);
        pending.add_slots(WEB, 0..3);
        pending.add_end(WEB, Flow::Connection([1; 8]));
        assert!(pending.is_empty());
    }

    #[test]
    fn who_has_not_asked_for_long_is_told_since_when_nothing_was_kept() {
        let mut pending = requested();
        pending.add_ring(WEB);
        pending.end_unless_requested(110);
        assert!(!pending.is_empty());
        pending.end_unless_requested(111);
        assert!(pending.is_empty() && !pending.is_requested());
        assert_eq!(pending.request(200), Some(100));
        assert_eq!(pending.request(201), None);
    }

    #[test]
    fn a_slot_that_is_quiet_settles_when_it_was_told_and_taken_in() {
        let millis = Duration::from_millis;
        let mut settling = Settling::default();
        for slot in 5..9 {
            settling.record(slot, true);
        }
        assert_eq!(settling.take_acknowledged(u64::MAX), [0; 0]);
        settling.record(6, false);
        assert_eq!(settling.take_quiet(2), [5, 7], "a packet has come for 6");
        settling.export([(5, 1), (7, 2)].into(), 7, millis(10));
        settling.record(5, true);
        assert_eq!(settling.take_quiet(9), [8], "an exported slot is not exported again");
        settling.export([(8, 1)].into(), 8, millis(20));
        assert_eq!(settling.take_acknowledged(6), [0; 0], "a peer has not acknowledged it");
        assert_eq!(settling.take_acknowledged(7), [5, 7]);
        assert_eq!(settling.take_acknowledged(9), [8]);
    }

    #[test]
    fn what_a_peer_is_late_with_is_withdrawal_once() {
        let millis = Duration::from_millis;
        let mut settling = Settling::default();
        settling.export([(5, 1), (7, 2)].into(), 7, millis(10));
        settling.export([(8, 1)].into(), 8, millis(20));
        let late = |settling: &mut Settling, by: u64| settling.late(|sent| sent < millis(by));
        assert_eq!(late(&mut settling, 10), []);
        assert_eq!(late(&mut settling, 20), [(5, 1), (7, 2)]);
        settling.withdraw(&[7]);
        settling.record(7, true);
        assert_eq!(settling.take_quiet(9), [7], "it is quiet still, and exported again");
        assert_eq!(late(&mut settling, 30), [(8, 1)]);
        assert_eq!(settling.take_acknowledged(9), [5, 8], "of 5 it could not be taken back");
    }

    #[test]
    fn more_slots_are_told_at_once_as_long_as_peers_are_quick() {
        let millis = Duration::from_millis;
        let mut window = Window::default();
        assert_eq!(window.room(None, millis(0)), usize::MAX, "no peer acknowledges");
        for (step, expected) in (0..8).zip([64, 128, 256, 512, 1024, 2048, 4096, 4096]) {
            let at = millis(step * 20);
            assert_eq!(window.room(Some(step), at), expected);
            window.export(step + 1, at);
            assert_eq!(window.room(Some(step), at + millis(10)), 0, "one at a time");
            assert!(!window.is_over(at, at + millis(19)) && window.is_over(at, at + LATE));
        }
        assert_eq!(window.room(Some(7), millis(170)), 0);
        assert_eq!(window.room(Some(8), millis(180)), 64, "it was late");
        assert_eq!(window.room(Some(8), millis(190)), 64, "no slot was exported");
    }

    #[test]
    fn few_slots_settle_at_a_time_after_the_daemon_was_held_up() {
        let millis = Duration::from_millis;
        let mut window = Window::default();
        // The peer has 40 milliseconds.
        window.export(1, millis(0));
        window.withdraw(2, millis(20));
        assert_eq!(window.room(Some(2), millis(30)), 64);
        for (number, sent, expected) in [(3, 30, 128), (4, 60, 256)] {
            window.export(number, millis(sent));
            assert_eq!(window.room(Some(number - 1), millis(sent + 15)), 0);
            assert_eq!(window.room(Some(number), millis(sent + 30)), expected);
        }
        window.export(5, millis(90));
        assert_eq!(
            window.room(Some(5), millis(120)),
            128,
            "the peer was in time, the daemon was not"
        );
    }

    #[test]
    fn a_peer_that_is_late_has_longer_each_time_until_it_is_quick_again() {
        let millis = Duration::from_millis;
        let mut window = Window::default();
        let (mut at, mut patience) = (millis(0), LATE);
        for number in 1..10 {
            assert!(!window.is_over(at, at + patience - millis(1)));
            assert!(window.is_over(at, at + patience));
            window.export(number * 2, at);
            at += patience;
            window.withdraw(number * 2 + 1, at);
            assert_eq!(
                window.room(Some(number * 2), at + LATE),
                0,
                "it may have the old export only"
            );
            assert_eq!(window.room(Some(number * 2 + 1), at + LATE), 64);
            patience = (patience * 2).min(Duration::from_secs(1));
        }
        for number in 100..110 {
            window.export(number, at);
            window.room(Some(number), at + LATE / 2);
        }
        assert!(window.is_over(at, at + LATE));
    }

    #[test]
    fn no_client_ends_a_history_by_a_forged_address() {
        let mut pending = requested();
        for port in 0..4 {
            pending.add_end(WEB, Flow::Pinned([0; 4].into(), port, Destination::ONLY));
        }
        let sent: Vec<_> = pending.ended.into_iter().map(|(_, flow)| flow).collect();
        assert_eq!(sent, [0, 3].map(|port| Flow::Pinned([0; 4].into(), port, Destination::ONLY)));
    }

    #[test]
    fn slots_are_told_once_and_a_whole_ring_covers_them() {
        let mut pending = requested();
        pending.add_slots(WEB, [70, 3, 3].into_iter());
        assert_eq!(pending.rings[&WEB].slots(), Some(vec![3, 70]));
        pending.add_ring(WEB);
        pending.add_slots(WEB, [5].into_iter());
        assert_eq!(pending.rings[&WEB], RingDelta::Whole);
    }

    #[test]
    fn a_surveyed_flow_is_told_once_again_when_it_moves_and_its_end_is() {
        let flow = |id| FlowRef::Connection(ConnectionKey { id: [id; 8], service: 0, reserved: 0 });
        let mut pending = requested();
        assert!(pending.survey([(flow(1), 4)].into()).is_empty());
        assert_eq!(std::mem::take(&mut pending.flows), [flow(1)]);
        assert!(pending.survey([(flow(1), 4)].into()).is_empty());
        assert!(pending.flows.is_empty());
        assert!(pending.survey([(flow(1), 5)].into()).is_empty());
        assert_eq!(std::mem::take(&mut pending.flows), [flow(1)]);
        assert_eq!(pending.survey([(flow(2), 4)].into()), [flow(1)]);
        assert_eq!(pending.flows, [flow(2)]);
    }
}

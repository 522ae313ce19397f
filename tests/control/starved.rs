//! New flows in place of a backend that refuses, beside a flood that leaves no room for their pins.

use lb_common::{
    returns::decide,
    verdict::{Drop, Verdict},
};
use lb_control::engine::Role;
use lb_model::{
    backend_address::BackendAddress,
    entry,
    seen::{BackendKey, Condition, Seen},
};

use super::{
    pair::world::{ACK, SYN, frame},
    *,
};

const START: u32 = 100;
const DEAD: &str = "10.0.0.12";
/// Fewer than the flood has tuples.
const PINS: u32 = 64;
/// The client ports of a flood: so few that a part of the slots gets none of it.
const FLOOD: Range<u16> = 40_000..40_150;
const REFUSES: Seen = Seen {
    condition: Condition::SoftDown,
    held: false,
    suspect: false,
    doubted: false,
    silent: false,
    refuses: true,
};

/// A node whose backend [`DEAD`] has gone down, and its packets.
struct Node {
    engine: Engine<Fake>,
    now: u32,
    /// Whether flows are exported to peers.
    exports: bool,
    /// Connections to the backend from before.
    talking: Vec<u16>,
    /// Connections that began after it went down, and are pinned.
    pinned: Vec<(u16, BackendAddress)>,
}

impl Node {
    fn new(limits: Limits, seen: Seen, edit: impl FnOnce(&mut Service)) -> Self {
        let backends = [("10.0.0.11", 1), (DEAD, 1), ("10.0.0.13", 1)];
        let mut desired = one_service(&backends);
        edit(desired.services.get_mut("web").unwrap());
        let mut engine = engine_of(desired, limits);
        engine.reconcile(at(START)).unwrap();
        let mut node =
            Self { engine, now: START, exports: false, talking: Vec::new(), pinned: Vec::new() };
        for client in 1_000..1_040 {
            if node.send(client, SYN) == Some(address(DEAD)) {
                node.talking.push(client);
            }
        }
        let key = node.engine.desired().services["web"].key;
        node.engine.set_view([(BackendKey { service: key, backend: address(DEAD) }, seen)].into());
        node.engine.reconcile(at(START)).unwrap();
        let dead = address(DEAD);
        let born = (2_000..2_060).filter_map(|client| Some((client, node.send(client, SYN)?)));
        let born: Vec<_> = born.collect();
        assert!(born.iter().all(|(_, backend)| *backend != dead));
        let is_pinned = |client: u16| {
            let source = entry::address(address("192.0.2.1").ip);
            let key = FlowKey::new(source, client.into(), 0);
            node.engine.data_plane().flow(&FlowRef::Pin(key)).is_some()
        };
        node.pinned = born.into_iter().filter(|(client, _)| is_pinned(*client)).collect();
        let counts = (node.talking.len(), node.pinned.len());
        assert!(counts.0 > 5 && counts.1 > 3, "{counts:?}");
        node
    }

    /// Where a client's segment goes.
    fn send(&mut self, client: u16, flags: u8) -> Option<BackendAddress> {
        let fake = self.engine.data_plane_mut();
        fake.set_time(at(self.now).mono);
        let frame = frame(client, flags, client.into());
        let reason = match decide(frame.as_slice(), &*fake) {
            Verdict::Forward(to) => return Some(entry::backend_of(to.backend)),
            Verdict::Drop(reason) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason, Drop::Unpinnable);
        fake.count_dropped(reason, frame.len() as u64);
        None
    }

    /// A second of a flood of SYNs and ACKs, of those clients that are there, and of the daemon's work. How many of
    /// 30 new clients are left without a backend.
    fn second(&mut self) -> usize {
        self.now += 1;
        for client in FLOOD {
            self.send(client, SYN);
            self.send(client, ACK);
        }
        for client in self.talking.clone() {
            self.send(client, ACK);
        }
        for (client, backend) in self.pinned.clone() {
            assert_eq!(self.send(client, ACK), Some(backend), "at {}", self.now);
        }
        let first = 50_000 + (self.now as u16 - START as u16) * 30;
        let failed = (first..first + 30).filter(|client| self.send(*client, SYN).is_none()).count();
        let now = at(self.now);
        self.engine.watch(now).unwrap();
        self.engine.sweep(now).unwrap();
        if self.exports {
            self.engine.export_changes(now).unwrap();
        }
        failed
    }

    /// The same for so many seconds.
    fn seconds(&mut self, count: u32) -> usize {
        (0..count).map(|_| self.second()).sum()
    }

    /// Slots whose older flows stay with the backend.
    fn bases(&self) -> usize {
        let dead = id(&self.engine, DEAD);
        owners(&self.engine)
            .iter()
            .filter(|owners| owners.base == dead && owners.current != dead)
            .count()
    }

    /// How many of the older connections are still with the backend.
    fn still_there(&mut self) -> usize {
        let talking = self.talking.clone();
        talking.into_iter().filter(|client| self.send(*client, ACK) == Some(address(DEAD))).count()
    }
}

fn few_pins() -> Limits {
    Limits { pins: PINS, ..Limits::default() }
}

/// The older flows that end beside a flood, and when.
fn gives_way(mut node: Node) {
    let (all, bases) = (node.talking.len(), node.bases());
    let failed = node.seconds(10);
    assert!(failed > 10, "the flood leaves no room: {failed} of 300");
    assert_eq!(node.bases(), bases, "a burst ends nothing");
    // Slots without a flow that is seen.
    node.seconds(5);
    let (left, there) = (node.bases(), node.still_there());
    assert!(left > 0 && left < bases, "{left} of {bases} slots");
    assert_eq!(there, all, "connections that send keep their backend");
    node.seconds(44);
    assert_eq!(node.still_there(), all);
    // Slots in which a flow is seen, or a forged one.
    node.seconds(5);
    assert_eq!((node.bases(), node.still_there()), (0, 0));
    assert_eq!(node.second(), 0, "new clients are served again");
}

#[test]
fn older_flows_of_a_backend_that_refuses_give_way_when_the_table_of_pins_is_full() {
    gives_way(Node::new(few_pins(), REFUSES, |_| {}));
}

#[test]
fn as_many_give_way_as_a_spent_syn_budget_needs() {
    let mut node = Node::new(Limits::default(), REFUSES, |web| web.syn_budget = 8);
    let (all, bases) = (node.talking.len(), node.bases());
    let failed = node.seconds(10);
    assert!(failed > 10, "the flood leaves no tokens: {failed} of 300");
    assert_eq!(node.bases(), bases, "a burst ends nothing");
    node.seconds(20);
    // The remaining slots take fewer tokens than there are.
    let failed = node.seconds(60);
    assert_eq!(failed, 0, "new clients are served again");
    assert!(node.bases() < bases / 2, "{} of {bases} slots", node.bases());
    assert_eq!(node.still_there(), all, "connections that send keep their backend");
}

#[test]
fn older_flows_give_way_though_peers_are_told_first() {
    let mut node = Node::new(few_pins(), REFUSES, |_| {});
    node.exports = true;
    node.engine.export_changes(at(START)).unwrap();
    gives_way(node);
}

#[test]
fn older_flows_stay_where_nothing_shows_that_nobody_listens() {
    let fails = Seen { refuses: false, ..REFUSES };
    let other_port = |web: &mut Service| web.policy.check.port = Some(8_081);
    let nodes = [Node::new(few_pins(), fails, |_| {}), Node::new(few_pins(), REFUSES, other_port)];
    for mut node in nodes {
        let (all, bases) = (node.talking.len(), node.bases());
        let failed = node.seconds(120);
        assert!(failed > 100, "{failed}");
        assert_eq!((node.bases(), node.still_there()), (bases, all));
    }
}

#[test]
fn older_flows_stay_at_a_node_that_follows_another() {
    let mut node = Node::new(few_pins(), REFUSES, |_| {});
    let key = node.engine.desired().services["web"].key;
    node.engine.set_roles([(key, Role::Follows)].into(), at(START)).unwrap();
    let bases = node.bases();
    node.seconds(120);
    assert_eq!(node.bases(), bases);
}

#[test]
fn older_flows_stay_while_a_flood_comes_in_bursts_that_are_short() {
    let mut node = Node::new(few_pins(), REFUSES, |_| {});
    let bases = node.bases();
    for _ in 0..6 {
        let failed = node.seconds(8);
        assert!(failed > 0, "a burst leaves no room");
        // A pause, in which only the clients of before send.
        for _ in 0..8 {
            node.now += 1;
            node.still_there();
            node.engine.sweep(at(node.now)).unwrap();
        }
    }
    assert_eq!(node.bases(), bases);
}

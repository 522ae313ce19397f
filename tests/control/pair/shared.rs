//! Three nodes that serve a VIP at once, behind a router that hashes flows over those that it knows of:
//! whatever is drained, and whichever node leaves and comes back, a flow finds its backend on every node.

use std::collections::{BTreeMap, BTreeSet};

use lb_control::engine::{Role, Sharers};
use lb_model::{
    backend_address::BackendAddress,
    desired::Admin,
    seen::{BackendKey, Condition, Seen},
};
use lb_plane::Maps as _;
use lb_sync::Record;
use proptest::prelude::*;

use super::world::{ACK, BACKENDS, IDLE, Node, START, SYN, desired, frame, web};
use crate::{address, at, edit, set};

struct Sharing {
    nodes: Vec<Node>,
    /// Nodes that the router sends nothing to.
    out: BTreeSet<usize>,
    /// Nodes whose daemon stands still, since then; packets go on. The others notice after the timeout.
    stopped: BTreeMap<usize, u32>,
    timeout: u32,
    /// Those of them that did not know whether a change of backends had ended.
    in_flux: BTreeSet<usize>,
    joined: u32,
    members: BTreeMap<usize, Vec<(BackendAddress, u32)>>,
    now: u32,
    clients: BTreeMap<u16, Client>,
    born: u16,
}

#[derive(Clone, Debug)]
struct Client {
    backend: BackendAddress,
    seen: u32,
    /// Nodes that could not receive it when it began.
    unknown: BTreeSet<usize>,
    /// The only node that knows it: its daemon stood still when it began, while backends changed.
    alone: Option<usize>,
}

#[derive(Clone, Debug)]
enum Event {
    Open(u8),
    Send(u16),
    Wait(u8),
    Drain(usize),
    Enable(usize),
    /// One node's checks find a backend down, or up again.
    Down(usize, usize),
    Up(usize, usize),
    /// The router takes a node out, or in.
    Out(usize),
    In(usize),
    /// A node's daemon stops, or goes on.
    Stop(usize),
    GoOn(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let (node, backend) = (|| 0..3_usize, || 0..BACKENDS.len());
    prop_oneof![
        6 => (1_u8..12).prop_map(Event::Open),
        8 => (0_u16..4).prop_map(Event::Send),
        6 => (1_u8..30).prop_map(Event::Wait),
        3 => backend().prop_map(Event::Drain),
        3 => backend().prop_map(Event::Enable),
        2 => (node(), backend()).prop_map(|(node, backend)| Event::Down(node, backend)),
        2 => (node(), backend()).prop_map(|(node, backend)| Event::Up(node, backend)),
        3 => node().prop_map(Event::Out),
        3 => node().prop_map(Event::In),
        1 => node().prop_map(Event::Stop),
        2 => node().prop_map(Event::GoOn),
    ]
}

impl Sharing {
    fn new() -> Self {
        let mut nodes: Vec<_> = (0..3).map(|_| Node::new()).collect();
        for node in &mut nodes {
            set(&mut node.engine, desired());
            node.engine.set_roles([(web(), Role::Shared)].into(), at(START)).unwrap();
            node.engine.export_all(at(START)).unwrap();
        }
        let mut sharing = Self {
            nodes,
            out: BTreeSet::new(),
            stopped: BTreeMap::new(),
            timeout: 1,
            in_flux: BTreeSet::new(),
            joined: START,
            members: BTreeMap::new(),
            now: START,
            clients: BTreeMap::new(),
            born: 1_024,
        };
        sharing.meet();
        sharing
    }

    fn running(&self) -> Vec<usize> {
        (0..3).filter(|node| !self.stopped.contains_key(node)).collect()
    }

    /// All that run send each other everything.
    fn meet(&mut self) {
        for node in self.running() {
            let history = self.nodes[node].engine.export_all(at(self.now)).unwrap();
            self.learn(node, &history);
        }
        self.joined = self.now;
    }

    fn learn(&mut self, from: usize, records: &[Record]) {
        for record in records {
            if let Record::Ring { members, .. } = record {
                self.members.insert(from, members.clone());
            }
        }
        for to in self.running().into_iter().filter(|to| *to != from) {
            self.nodes[to].engine.import(records.to_vec(), at(self.now)).unwrap();
        }
    }

    fn sync(&mut self) {
        // Records that are exported after an import take another turn.
        for _ in 0..2 {
            for node in self.running() {
                let records = self.nodes[node].engine.export_changes(at(self.now)).unwrap();
                self.learn(node, &records);
            }
        }
    }

    /// Nodes that are missed, since then.
    fn away(&self) -> BTreeMap<usize, u32> {
        // The clocks' seconds begin at other moments, and each node looks once in one.
        let noticed = self.stopped.iter().map(|(node, since)| (*node, since + self.timeout + 2));
        noticed.filter(|(_, since)| *since <= self.now).collect()
    }

    fn second(&mut self) {
        self.now += 1;
        let now = self.now;
        let away = self.away();
        for node in self.running() {
            let others = self.members.iter();
            let others = others.filter(|(at, _)| **at != node && !away.contains_key(at));
            let members = others.map(|(_, members)| members.clone()).collect();
            let sharers = Sharers {
                away: away.values().copied().collect(),
                joined: self.joined,
                timeout: self.timeout,
                members: [(web(), members)].into(),
            };
            let engine = &mut self.nodes[node].engine;
            engine.set_sharers(sharers);
            engine.sweep(at(now)).unwrap();
            engine.lease_pins(None);
        }
        self.clients.retain(|_, client| now - client.seen <= IDLE);
        self.sync();
    }

    /// Where the router sends a client's packets.
    fn node_of(&self, client: u16) -> usize {
        let there: Vec<_> = (0..3).filter(|node| !self.out.contains(node)).collect();
        there[usize::from(client) * 7919 % 65_521 % there.len()]
    }

    fn open(&mut self) {
        self.born += 1;
        let client = self.born;
        let node = &self.nodes[self.node_of(client)];
        let Some(backend) = node.send(&frame(client, SYN, client.into()), at(self.now)) else {
            return;
        };
        let by = self.node_of(client);
        let unknown = self.stopped.keys().copied().filter(|node| *node != by).collect();
        let alone = self.in_flux.contains(&by).then_some(by);
        self.clients.insert(client, Client { backend, seen: self.now, unknown, alone });
        self.send_as(client).unwrap();
    }

    fn send_as(&mut self, client: u16) -> Result<(), TestCaseError> {
        let node = self.node_of(client);
        let it = self.clients[&client].clone();
        let Client { backend, seen, .. } = it;
        let is_unsent = it.unknown.contains(&node) && self.stopped.contains_key(&node);
        if is_unsent || it.alone.is_some_and(|by| by != node) {
            self.clients.remove(&client);
            return Ok(());
        }
        let found = self.nodes[node].send(&frame(client, ACK, 7), at(self.now));
        prop_assert_eq!(
            found,
            Some(backend),
            "client {} by node {}, at {}, last at {}",
            client,
            node,
            self.now,
            seen
        );
        self.clients.insert(client, Client { seen: self.now, ..it });
        Ok(())
    }

    fn send(&mut self, every: u16) -> Result<(), TestCaseError> {
        let clients: Vec<_> = self.clients.keys().copied().collect();
        for client in clients {
            if every == 0 || client % 4 == every {
                self.send_as(client)?;
            }
        }
        Ok(())
    }

    fn admin(&mut self, backend: usize, admin: Admin) {
        // A stopped node gets it when it goes on.
        for node in &mut self.nodes {
            edit(&mut node.engine, BACKENDS[backend], admin);
        }
        for node in self.running() {
            self.nodes[node].engine.reconcile(at(self.now)).unwrap();
        }
        self.sync();
    }

    fn see(&mut self, node: usize, backend: usize, condition: Condition) {
        let target = BackendKey { service: web(), backend: address(BACKENDS[backend]) };
        let it = &mut self.nodes[node];
        it.view.insert(target, Seen { condition, ..Seen::default() });
        it.engine.set_view(it.view.clone());
        it.engine.reconcile(at(self.now)).unwrap();
        self.sync();
    }

    fn handle(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Open(count) => {
                (0..count).for_each(|_| self.open());
                self.sync();
            }
            Event::Send(every) => self.send(every)?,
            Event::Wait(seconds) => (0..seconds).for_each(|_| self.second()),
            Event::Drain(backend) => self.admin(backend, Admin::Draining { deadline: None }),
            Event::Enable(backend) => self.admin(backend, Admin::Enabled),
            Event::Down(node, backend) if !self.stopped.contains_key(&node) => {
                self.see(node, backend, Condition::SoftDown);
            }
            Event::Up(node, backend) if !self.stopped.contains_key(&node) => {
                self.see(node, backend, Condition::Up);
            }
            Event::Down(..) | Event::Up(..) => {}
            Event::Out(node) => {
                if self.out.len() < 2 {
                    self.out.insert(node);
                }
            }
            Event::In(node) => drop(self.out.remove(&node)),
            Event::Stop(node) => {
                // Its pins are exported before it stops, as by its lease.
                self.sync();
                if self.stopped.len() < 2 {
                    if self.in_flux(node) > 0 {
                        self.in_flux.insert(node);
                    }
                    self.stopped.entry(node).or_insert(self.now);
                    self.nodes[node].engine.lease_pins(Some(std::time::Duration::from_nanos(1)));
                }
            }
            Event::GoOn(node) => {
                if self.stopped.remove(&node).is_some() {
                    self.in_flux.remove(&node);
                    self.nodes[node].engine.lease_pins(None);
                    self.nodes[node].engine.reconcile(at(self.now)).unwrap();
                    self.meet();
                    self.sync();
                }
            }
        }
        Ok(())
    }

    fn in_flux(&self, node: usize) -> u32 {
        self.nodes[node].engine.status().unwrap().services["web"].slots_in_flux
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_flow_moves_whichever_node_its_packets_come_to(
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut sharing = Sharing::new();
        for event in events {
            sharing.handle(event)?;
        }
        sharing.send(0)?;
    }
}

/// One node's checks alone find a backend down, so its slots are in flux there and nowhere else. What another
/// node knows of their pins is old, and counts from when that one came back.
#[test]
fn a_pin_is_looked_for_as_long_as_it_is_kept_after_a_node_was_away() {
    let mut sharing = Sharing::new();
    let events = [
        Event::Down(0, 0),
        Event::Open(11),
        Event::Stop(1),
        Event::Wait(8),
        Event::GoOn(1),
        Event::Send(0),
        Event::Wait(IDLE as u8),
        Event::Send(0),
        Event::Stop(0),
        Event::Wait(2),
        Event::Out(0),
    ];
    for event in events {
        sharing.handle(event).unwrap();
    }
    sharing.send(0).unwrap();
}

#[test]
fn a_flow_by_one_node_keeps_slots_of_all_from_settling() {
    let mut sharing = Sharing::new();
    sharing.out = [1, 2].into();
    (0..200).for_each(|_| sharing.open());
    sharing.handle(Event::Drain(0)).unwrap();
    for _ in 0..4 * IDLE / 5 {
        sharing.handle(Event::Wait(5)).unwrap();
        sharing.send(0).unwrap();
    }
    assert!(sharing.in_flux(1) > 0 && sharing.in_flux(2) > 0);
    for left in [[0, 2], [0, 1], [1, 2]] {
        sharing.out = left.into();
        sharing.send(0).unwrap();
    }
}

/// The flows come by a node that stops after so many seconds, which the others notice by their timeout.
fn flows_of_a_node_that_stops_after(seconds: u32, timeout: u32) -> Sharing {
    let mut sharing = Sharing::new();
    sharing.timeout = timeout;
    sharing.out = [0, 1].into();
    sharing.handle(Event::Drain(0)).unwrap();
    sharing.handle(Event::Open(200)).unwrap();
    sharing.send(0).unwrap();
    for second in 0..seconds + 2 * IDLE {
        if second == seconds {
            sharing.handle(Event::Stop(2)).unwrap();
        }
        sharing.second();
        sharing.send(0).unwrap();
    }
    sharing
}

#[test]
fn flows_live_whose_node_dies_before_it_denies_that_they_have_ended() {
    for timeout in [1, 10] {
        for seconds in IDLE - 3..IDLE + 12 {
            let mut sharing = flows_of_a_node_that_stops_after(seconds, timeout);
            for left in [[0, 2], [1, 2]] {
                sharing.out = left.into();
                sharing.send(0).unwrap();
            }
        }
    }
}

#[test]
fn flows_that_began_without_a_lease_in_a_slot_about_to_settle_live_where_they_began() {
    for (stops, until_back) in (IDLE..IDLE + 40).flat_map(|stops| [(stops, 0), (stops, 8)]) {
        let mut sharing = Sharing::new();
        sharing.out = [0, 1].into();
        sharing.handle(Event::Drain(0)).unwrap();
        (0..stops).for_each(|_| sharing.second());
        sharing.handle(Event::Stop(2)).unwrap();
        sharing.handle(Event::Open(50)).unwrap();
        (0..until_back).for_each(|_| sharing.second());
        sharing.handle(Event::GoOn(2)).unwrap();
        sharing.second();
        sharing.send(0).unwrap();
    }
}

#[test]
fn slots_settle_on_all_nodes_when_the_last_flow_has_ended() {
    let mut sharing = Sharing::new();
    sharing.out = [1, 2].into();
    (0..200).for_each(|_| sharing.open());
    sharing.handle(Event::Drain(0)).unwrap();
    (0..3 * IDLE).for_each(|_| sharing.second());
    assert_eq!([0, 1, 2].map(|node| sharing.in_flux(node)), [0; 3]);
}

#[test]
fn a_backend_that_others_still_use_is_a_base_owner_for_as_long() {
    let mut sharing = Sharing::new();
    sharing.out = [0, 2].into();
    (0..200).for_each(|_| sharing.open());
    sharing.handle(Event::Down(0, 0)).unwrap();
    for _ in 0..4 * IDLE / 5 {
        sharing.handle(Event::Wait(5)).unwrap();
        sharing.send(0).unwrap();
    }
    sharing.out = [1, 2].into();
    sharing.send(0).unwrap();
    sharing.handle(Event::Up(0, 0)).unwrap();
    (0..200).for_each(|_| sharing.open());
    sharing.out = [0, 1].into();
    sharing.send(0).unwrap();
}

#[test]
fn a_node_that_is_gone_is_waited_for_and_then_no_more() {
    let mut sharing = Sharing::new();
    sharing.out = [0, 1].into();
    (0..200).for_each(|_| sharing.open());
    sharing.handle(Event::Drain(0)).unwrap();
    sharing.handle(Event::Stop(2)).unwrap();
    // It forwards by itself meanwhile, and no node receives its records.
    for _ in 0..4 * IDLE / 5 {
        sharing.handle(Event::Wait(5)).unwrap();
        sharing.send(0).unwrap();
    }
    sharing.handle(Event::GoOn(2)).unwrap();
    sharing.out = [1, 2].into();
    sharing.send(0).unwrap();
    // It never comes again.
    sharing.handle(Event::Stop(2)).unwrap();
    (0..600).for_each(|_| sharing.second());
    assert_eq!([0, 1].map(|node| sharing.in_flux(node)), [0; 2]);
    // It comes after all, and its records are old.
    (0..200).for_each(|_| sharing.open());
    let now = at(sharing.now);
    sharing.nodes[2].restart(now);
    sharing.nodes[2].engine.set_roles([(web(), Role::Shared)].into(), now).unwrap();
    sharing.handle(Event::GoOn(2)).unwrap();
    sharing.out = [0, 1].into();
    sharing.send(0).unwrap();
}

#[test]
fn peers_that_come_and_go_hold_up_ends_no_longer_than_one_that_stays_away() {
    const AWAY: u32 = 300;
    const TIMEOUT: u32 = 3;
    // The time for which a flow is kept after its end, and a slot after that of the last one.
    const SLACK: u32 = IDLE + 30;
    let mut node = Node::new();
    node.engine.set_roles([(web(), Role::Shared)].into(), at(START)).unwrap();
    edit(&mut node.engine, BACKENDS[0], Admin::Draining { deadline: None });
    node.engine.reconcile(at(START)).unwrap();
    node.engine.lease_pins(None);
    let open = |node: &Node, clients: std::ops::Range<u16>| {
        let before = node.pins();
        for client in clients {
            node.send(&frame(client, SYN, client.into()), at(START));
        }
        node.pins() - before
    };
    let embryonic = open(&node, 1..200);
    let established = open(&node, 200..400);
    for client in 200..400 {
        node.send(&frame(client, ACK, 7), at(START));
    }
    assert!(embryonic > 10 && established > 10);
    let mut joined = START;
    let mut left = Vec::new();
    for now in START + 1..START + AWAY + IDLE + SLACK {
        // Away for five seconds of twenty.
        let since = now - now % 20;
        let away = if now - since < 5 { vec![since] } else { Vec::new() };
        joined = if now - since == 5 { now } else { joined };
        node.engine.set_sharers(Sharers { away, joined, timeout: TIMEOUT, ..Sharers::default() });
        node.engine.sweep(at(now)).unwrap();
        left.push(node.pins());
    }
    let after = |secs: u32| left[secs as usize - 1];
    assert_eq!(after(IDLE - 1), embryonic + established);
    assert_eq!(after(SLACK), established, "those that have only sent SYNs wait for nobody");
    assert_eq!(after(AWAY), established, "a peer may see their packets");
    assert_eq!(left.last(), Some(&0), "{left:?}");
    let slots = node.engine.data_plane().ring(0).unwrap();
    assert!(slots.iter().all(|slot| slot.owners().base == 0), "and then slots settle");
}

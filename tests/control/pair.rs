//! Two nodes, as the engine and the core see them: whatever happens to rings, and whoever takes over,
//! no flow that was told of changes its backend.

mod takeover;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_common::{abi, forward::decide, verdict::Verdict};
use lb_userspace::{
    datapath::{DataPlane as _, FlowTable, entry, fake::Fake},
    desired::{Admin, Desired, ServiceKey},
    engine::{Engine, Now, Role},
    health::{Condition, Seen, Target, View},
    settings::Limits,
    sync::{
        Piece,
        piece::{Flow, Pin},
    },
};
use proptest::prelude::*;

use crate::{at, edit, ip, one_service, pin, service, set, settings};

const IDLE: u32 = 40;
const START: u32 = 1_000;
const BACKENDS: [&str; 5] = ["10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14", "10.0.0.15"];
/// Until when pins may be made, in seconds from now.
const LEASE: u32 = 1;

fn desired() -> Desired {
    let mut desired = one_service(&BACKENDS.map(|backend| (backend, 1)));
    let web = desired.services.get_mut("web").unwrap();
    web.idle_timeout = Duration::from_secs(IDLE.into());
    web.syn_budget = 1_000_000;
    desired
}

fn web() -> ServiceKey {
    service("10.0.0.100", &[]).key
}

/// A TCP segment with these flags from a client to the service.
fn frame(client: u16, flags: u8, sequence: u32) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 10, 0, 0, 100]);
    frame.extend(client.to_be_bytes());
    frame.extend(80_u16.to_be_bytes());
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame
}

const SYN: u8 = 2;
const ACK: u8 = 16;

struct Node {
    engine: Engine<Fake>,
    view: View,
}

impl Node {
    fn new() -> Self {
        let mut engine = Engine::adopt(Fake::new(Limits::default()), &settings()).unwrap();
        set(&mut engine, desired());
        engine.reconcile(at(START)).unwrap();
        Self { engine, view: View::new() }
    }

    /// Where the node sends a frame.
    fn send(&self, frame: &[u8], now: Now) -> Option<IpAddr> {
        let fake = self.engine.data_plane();
        fake.set_time(now.mono);
        match decide(frame, fake) {
            Verdict::Forward(to) => Some(entry::ip_of(to.backend.address)),
            _ => None,
        }
    }

    fn pins(&self) -> usize {
        self.engine.data_plane().flow_count(FlowTable::Pins)
    }

    /// The same maps, and a daemon that knows nothing else.
    fn restart(&mut self, now: Now) {
        let wanted = self.engine.desired().clone();
        let fake = Fake::new(Limits::default());
        let old = Engine::adopt(fake, &settings()).unwrap();
        let old = std::mem::replace(&mut self.engine, old);
        self.engine = Engine::adopt(old.into_data_plane(), &settings()).unwrap();
        set(&mut self.engine, wanted);
        self.engine.set_view(self.view.clone());
        self.engine.reconcile(now).unwrap();
    }
}

/// A client's connection.
#[derive(Clone, Copy, Debug)]
struct Client {
    backend: IpAddr,
    seen: u32,
    /// The other node has been told everything since it began, or can tell where it is anyway.
    known: bool,
}

/// The pair. Node `active` holds the VIP.
struct Pair {
    nodes: [Node; 2],
    active: usize,
    now: u32,
    clients: BTreeMap<u16, Client>,
    dead: BTreeSet<usize>,
    born: u16,
    /// The follower has all that was told, but for what is told again.
    synced: bool,
    /// Of a history that is told again: what has not arrived yet.
    rest: Vec<Piece>,
    /// The Active's daemon stands still.
    stopped: bool,
    /// The follower's daemon stands still: what it is told waits for it.
    late: bool,
    /// What it has not taken yet: the number of the news, and when they were told.
    queue: Vec<(u64, u32, Vec<Piece>)>,
    /// Until when pins may be made.
    leased: u32,
}

#[derive(Clone, Debug)]
enum Event {
    /// New clients come.
    Open(u8),
    /// Some clients send: those whose number leaves this rest.
    Send(u16),
    /// Seconds pass, with the work of each.
    Wait(u8),
    /// The operator takes a backend out, or in, on both nodes.
    Drain(usize),
    Enable(usize),
    /// A node's checks say that a backend is down, or up.
    Down(usize, usize),
    Up(usize, usize),
    /// A backend is dead, for both; later it comes again.
    Die(usize),
    /// What is new is told, and arrives.
    Tell,
    /// What is new is told, and gets lost; so all of it is told again.
    LoseAndResync,
    /// All of it is told anew, and a part of it has not arrived yet.
    HalfResync(usize),
    /// The Active hands over.
    HandOver,
    /// The Active dies, and comes back as a follower.
    Crash,
    /// The Active's daemon stops, packets go on.
    Stop,
    /// The follower's daemon stops, or goes on.
    Late(bool),
    /// The follower's daemon is restarted.
    RestartFollower,
}

fn event() -> impl Strategy<Value = Event> {
    let backend = || 0..BACKENDS.len();
    prop_oneof![
        6 => (1_u8..12).prop_map(Event::Open),
        5 => (0_u16..4).prop_map(Event::Send),
        4 => (1_u8..15).prop_map(Event::Wait),
        2 => backend().prop_map(Event::Drain),
        2 => backend().prop_map(Event::Enable),
        2 => (0_usize..2, backend()).prop_map(|(node, backend)| Event::Down(node, backend)),
        2 => (0_usize..2, backend()).prop_map(|(node, backend)| Event::Up(node, backend)),
        1 => backend().prop_map(Event::Die),
        6 => Just(Event::Tell),
        1 => Just(Event::LoseAndResync),
        1 => (0_usize..6).prop_map(Event::HalfResync),
        2 => Just(Event::HandOver),
        2 => Just(Event::Crash),
        2 => Just(Event::Stop),
        2 => any::<bool>().prop_map(Event::Late),
        1 => Just(Event::RestartFollower),
    ]
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            nodes: [Node::new(), Node::new()],
            active: 0,
            now: START,
            clients: BTreeMap::new(),
            dead: BTreeSet::new(),
            born: 1_024,
            synced: false,
            rest: Vec::new(),
            stopped: false,
            late: false,
            queue: Vec::new(),
            leased: 0,
        };
        pair.set_roles();
        pair.resync(usize::MAX);
        pair
    }

    fn at(&self) -> Now {
        at(self.now)
    }

    fn set_roles(&mut self) {
        let now = self.at();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let role = if number == self.active { Role::Own } else { Role::Follows };
            node.engine.set_roles([(web(), role)].into(), now).unwrap();
        }
    }

    fn active(&mut self) -> &mut Node {
        &mut self.nodes[self.active]
    }

    fn follower(&mut self) -> &mut Node {
        &mut self.nodes[1 - self.active]
    }

    fn lease(&mut self) {
        let oldest = self.queue.first().map_or(self.now, |(_, told, _)| *told);
        self.leased = oldest + LEASE;
        let until = Duration::from_secs(self.leased.into());
        self.active().engine.lease_pins(Some(until));
    }

    fn news(&mut self) -> Vec<Piece> {
        let now = self.at();
        let news = self.active().engine.news(now).unwrap();
        self.lease();
        news
    }

    fn learn(&mut self, pieces: Vec<Piece>) {
        let now = self.at();
        assert_eq!(self.follower().engine.learn(pieces, now).unwrap(), Vec::<String>::new());
    }

    fn tell(&mut self) {
        // Twice, as in twenty milliseconds: a slot that was told to have settled does so.
        for _ in 0..2 {
            let news = self.news();
            if self.synced {
                // As it comes over the wire: in order, piece by piece, cut into small ones.
                let rest = std::mem::take(&mut self.rest);
                let pieces = rest.into_iter().chain(news.into_iter().flat_map(cut)).collect();
                let number = self.active().engine.news_number();
                self.queue.push((number, self.now, pieces));
                self.clients.values_mut().for_each(|client| client.known = true);
            }
            if !self.late {
                self.take();
            }
        }
    }

    /// The follower takes what it was told.
    fn take(&mut self) {
        for (_, _, pieces) in std::mem::take(&mut self.queue) {
            pieces.into_iter().for_each(|piece| self.learn(vec![piece]));
        }
        let number = self.active().engine.news_number();
        self.active().engine.news_are_taken(number);
    }

    /// Tells all, of which so many pieces arrive.
    fn resync(&mut self, arrive: usize) {
        self.take();
        let now = self.at();
        self.follower().engine.forget(&[web()].into());
        let mut history: Vec<_> =
            self.active().engine.history(now).unwrap().into_iter().flat_map(cut).collect();
        let rest = history.split_off(arrive.min(history.len()));
        self.learn(history);
        self.rest = rest;
        if self.rest.is_empty() {
            self.synced = true;
            self.tell();
        }
    }

    /// The follower becomes Active, when it has taken what it was told; clients that it can't know are
    /// gone.
    fn take_over(&mut self) {
        self.take();
        self.clients.retain(|_, client| client.known);
        self.active = 1 - self.active;
        (self.stopped, self.late) = (false, false);
        self.rest.clear();
        self.set_roles();
        self.lease();
    }

    fn reconcile(&mut self) {
        let now = self.at();
        for number in 0..2 {
            if !self.stopped || number != self.active {
                let node = &mut self.nodes[number];
                node.engine.set_view(node.view.clone());
                node.engine.reconcile(now).unwrap();
            }
        }
    }

    fn edit(&mut self, backend: usize, admin: Admin) {
        for node in &mut self.nodes {
            edit(&mut node.engine, BACKENDS[backend], admin);
        }
        self.reconcile();
    }

    fn see(&mut self, node: usize, backend: usize, condition: Condition) {
        let target = Target { service: web(), backend: ip(BACKENDS[backend]) };
        self.nodes[node].view.insert(target, Seen { condition, ..Seen::default() });
        self.reconcile();
    }

    fn is_up(&self, node: usize, backend: usize) -> bool {
        let target = Target { service: web(), backend: ip(BACKENDS[backend]) };
        self.nodes[node].view.get(&target).is_none_or(|seen| seen.condition == Condition::Up)
    }

    fn open(&mut self) {
        self.born += 1;
        let (client, now) = (self.born, self.at());
        let leased = self.now <= self.leased;
        let before = self.active().pins();
        let Some(backend) = self.active().send(&frame(client, SYN, client.into()), now) else {
            return;
        };
        let pinned = self.active().pins() > before;
        assert!(leased || !pinned, "a pin was made past the lease");
        // One without a pin is where the other node looks for it, if it has what it was told.
        self.clients.insert(client, Client { backend, seen: self.now, known: !pinned });
    }

    fn send(&mut self, rest: u16) -> Result<(), TestCaseError> {
        let now = self.at();
        let clients: Vec<_> = self.clients.keys().copied().filter(|c| c % 4 != rest).collect();
        for client in clients {
            let to = self.active().send(&frame(client, ACK, 7), now);
            let known = self.clients.get_mut(&client).expect("just listed");
            prop_assert_eq!(to, Some(known.backend), "client {} of {:?}", client, known);
            known.seen = self.now;
        }
        Ok(())
    }

    fn wait(&mut self, seconds: u8) {
        for _ in 0..seconds {
            self.now += 1;
            let now = self.at();
            for number in 0..2 {
                if !self.stopped || number != self.active {
                    self.nodes[number].engine.sweep(now).unwrap();
                }
            }
            if !self.stopped {
                self.lease();
                // Rarely, so that much happens in between; but who never asks is told nothing.
                if self.now.is_multiple_of(4) {
                    self.tell();
                }
            }
            let dead = self.now - IDLE;
            self.clients.retain(|_, client| client.seen >= dead);
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), TestCaseError> {
        let alone = |pair: &Self, but: usize| {
            let up = (0..BACKENDS.len()).filter(|b| *b != but);
            up.filter(|b| (0..2).all(|node| pair.is_up(node, *b))).count() < 2
        };
        match event {
            Event::Open(clients) => (0..clients).for_each(|_| self.open()),
            Event::Send(rest) => self.send(rest)?,
            Event::Wait(seconds) => self.wait(seconds),
            // The daemon that stands still hears of nothing.
            _ if self.stopped && !matches!(event, Event::Crash) => {}
            Event::Drain(backend) => self.edit(backend, Admin::Draining { deadline: None }),
            Event::Enable(backend) => self.edit(backend, Admin::Enabled),
            Event::Down(_, backend) if alone(self, backend) || self.dead.contains(&backend) => {}
            Event::Up(_, backend) if self.dead.remove(&backend) => {
                (0..2).for_each(|node| self.see(node, backend, Condition::Up));
            }
            Event::Down(node, backend) => self.see(node, backend, Condition::SoftDown),
            Event::Up(node, backend) => self.see(node, backend, Condition::Up),
            Event::Die(backend) if alone(self, backend) => {}
            Event::Die(backend) => {
                self.dead.insert(backend);
                (0..2).for_each(|node| self.see(node, backend, Condition::HardDown));
                self.clients.retain(|_, client| client.backend != ip(BACKENDS[backend]));
                self.tell();
            }
            Event::Tell => self.tell(),
            Event::LoseAndResync => {
                self.news();
                self.resync(usize::MAX);
            }
            Event::HalfResync(pieces) => self.resync(pieces),
            Event::HandOver if self.synced => {
                self.active().engine.hold_pins(&[web()].into()).unwrap();
                self.tell();
                // They come until the other one has taken over, and need no telling.
                let before = self.active().pins();
                (0..3).for_each(|_| self.open());
                assert_eq!(self.active().pins(), before, "a pin was made while they were held");
                self.clients.values_mut().for_each(|client| client.known = true);
                self.take_over();
                self.follower().engine.hold_pins(&BTreeSet::new()).unwrap();
                self.tell();
            }
            Event::Crash if self.synced => {
                self.take_over();
                let now = self.at();
                self.follower().restart(now);
                self.set_roles();
                self.synced = false;
                self.resync(usize::MAX);
            }
            Event::Stop => self.stopped = true,
            Event::Late(late) => {
                self.late = late;
                if !late {
                    self.take();
                }
            }
            Event::RestartFollower => {
                let now = self.at();
                self.follower().restart(now);
                self.set_roles();
                self.resync(usize::MAX);
            }
            Event::HandOver | Event::Crash => {}
        }
        Ok(())
    }
}

/// A piece in parts, as packets have room for.
fn cut(piece: Piece) -> Vec<Piece> {
    match piece {
        Piece::Bases { service, bases } => {
            let parts = bases.chunks(20).map(<[_]>::to_vec);
            parts.map(|bases| Piece::Bases { service, bases }).collect()
        }
        Piece::Pins { service, pins } => {
            let parts = pins.chunks(5).map(<[_]>::to_vec);
            parts.map(|pins| Piece::Pins { service, pins }).collect()
        }
        other => vec![other],
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_flow_that_was_told_of_moves_whoever_takes_over(
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut pair = Pair::new();
        for event in events {
            pair.handle(event)?;
        }
        pair.send(5)?;
    }
}

/// A pair of which the follower has all, with clients that are pinned.
fn pinned_pair() -> Pair {
    let mut pair = Pair::new();
    pair.edit(0, Admin::Draining { deadline: None });
    (0..200).for_each(|_| pair.open());
    pair.tell();
    assert!(pair.nodes[0].pins() > 10);
    assert_eq!(pair.nodes[0].pins(), pair.nodes[1].pins());
    pair
}

#[test]
fn news_are_told_once() {
    let mut pair = pinned_pair();
    assert_eq!(pair.news(), []);
    pair.send(5).unwrap();
    let established: usize = pair
        .news()
        .iter()
        .map(|piece| match piece {
            Piece::Pins { pins, .. } => pins.len(),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(established, pair.nodes[0].pins());
    pair.send(5).unwrap();
    assert_eq!(pair.news(), []);
}

#[test]
fn notes_that_were_written_over_are_made_up_for_by_a_walk() {
    let mut pair = Pair::new();
    pair.edit(0, Admin::Draining { deadline: None });
    (0..25_000).for_each(|_| pair.open());
    assert!(pair.nodes[0].pins() > abi::PIN_NOTES as usize);
    pair.tell();
    assert_eq!(pair.nodes[0].pins(), pair.nodes[1].pins());
}

#[test]
fn nothing_ends_at_who_follows_and_all_of_it_where_it_is_active() {
    let mut pair = pinned_pair();
    let pins = pair.nodes[1].pins();
    // The follower hears nothing, but nor does anything expire there.
    for _ in 0..3 * IDLE {
        pair.now += 1;
        let now = pair.at();
        pair.nodes[1].engine.sweep(now).unwrap();
        pair.tell();
    }
    let in_flux = |node: &Node| node.engine.status().unwrap().services["web"].slots_in_flux;
    assert_eq!((pair.nodes[1].pins(), in_flux(&pair.nodes[1])), (pins, in_flux(&pair.nodes[0])));
    pair.wait(8);
    assert_eq!((pair.nodes[0].pins(), in_flux(&pair.nodes[0])), (0, 0));
    pair.tell();
    assert_eq!((pair.nodes[1].pins(), in_flux(&pair.nodes[1])), (0, 0));
}

#[test]
fn what_a_full_history_does_not_name_goes_when_it_has_ended() {
    let mut pair = pinned_pair();
    let pins = pair.nodes[0].pins();
    let (stray, value) = pin(9, 2, START);
    pair.nodes[1].engine.data_plane_mut().add_flow(stray, value);
    pair.resync(3);
    assert_eq!(pair.nodes[1].pins(), pins + 1, "what was known holds until all has come");
    pair.resync(usize::MAX);
    assert_eq!(pair.nodes[1].pins(), pins);
    assert_eq!(pair.nodes[1].engine.data_plane().flow(&stray), None);
}

#[test]
fn a_takeover_writes_nothing() {
    let mut pair = pinned_pair();
    let writes = pair.nodes[1].engine.data_plane().writes();
    pair.take_over();
    let now = pair.at();
    assert_eq!(pair.nodes[1].engine.reconcile(now).unwrap().changes, 0);
    assert_eq!(pair.nodes[1].engine.data_plane().writes(), writes);
    pair.send(5).unwrap();
}

#[test]
fn what_can_not_be_learnt_is_told_once_and_breaks_nothing() {
    let mut pair = pinned_pair();
    let (service, now) = (web(), pair.at());
    let before = pair.nodes[1].engine.data_plane().dump();
    let nobody = ip("10.0.9.9");
    let flow = Flow::Pinned(ip("192.0.2.9"), 9);
    let pins = vec![Pin { flow, backend: nobody, flags: 0, idle: Duration::ZERO }];
    let ring = Piece::Ring { service, slots: 251, members: vec![(ip(BACKENDS[1]), 1)], digest: 1 };
    let small = Piece::Ring { service, slots: 127, members: vec![], digest: 1 };
    let whole = || Piece::ring_is_whole(service);
    let other = ServiceKey { port: 81, ..service };
    let pieces = vec![
        Piece::Pins { service, pins },
        ring,
        whole(),
        small,
        whole(),
        Piece::Ended { service: other, flows: vec![flow] },
    ];
    let follower = &mut pair.nodes[1].engine;
    let roles = [(service, Role::Follows), (other, Role::Follows)];
    follower.set_roles(roles.into(), now).unwrap();
    let told = follower.learn(pieces.clone(), now).unwrap();
    assert_eq!(
        told,
        [
            "tcp 10.0.0.100:81: there is no such service here",
            "web: backend 10.0.9.9 is not known here",
            "web: the peer's ring has 127 slots, and 251 here",
            "web: the peer's ring is not what its backends and this node's seed make of it",
        ]
    );
    assert_eq!(follower.learn(pieces, now).unwrap(), Vec::<String>::new());
    assert_eq!(follower.data_plane().dump(), before);
    pair.take_over();
    pair.send(5).unwrap();
}

#[test]
fn pins_that_find_no_room_are_told_and_the_others_hold() {
    let mut pair = Pair::new();
    pair.edit(0, Admin::Draining { deadline: None });
    (0..200).for_each(|_| pair.open());
    let limits = Limits { pins: 5, ..Limits::default() };
    let mut small = Engine::adopt(Fake::new(limits), &settings()).unwrap();
    set(&mut small, pair.nodes[0].engine.desired().clone());
    let now = pair.at();
    small.reconcile(now).unwrap();
    small.set_roles([(web(), Role::Follows)].into(), now).unwrap();
    let history = pair.nodes[0].engine.history(now).unwrap();
    let told = small.learn(history, now).unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("web: no room for all pins of the peer"), "{told:?}");
    assert_eq!(small.data_plane().flow_count(FlowTable::Pins), 5);
    assert_eq!(small.take_unlearnt(), [web()].into(), "it does not have all");
}

#[test]
fn nodes_that_share_a_service_tell_each_other_of_pins_and_who_joins_of_base_owners() {
    let mut pair = pinned_pair();
    let shared = || BTreeMap::from([(web(), Role::Shared)]);
    let now = pair.at();
    pair.nodes.iter_mut().for_each(|node| node.engine.set_roles(shared(), now).unwrap());
    // One starts with nothing.
    pair.nodes[1] = Node::new();
    let wanted = pair.nodes[0].engine.desired().clone();
    set(&mut pair.nodes[1].engine, wanted);
    pair.nodes[1].engine.reconcile(now).unwrap();
    pair.nodes[1].engine.set_roles(shared(), now).unwrap();
    let history = pair.nodes[0].engine.history(now).unwrap();
    assert_eq!(pair.nodes[1].engine.learn(history, now).unwrap(), Vec::<String>::new());
    // Every flow is known at both, and one that is born at the one is known at the other.
    let clients: Vec<_> = pair.clients.iter().map(|(client, known)| (*client, *known)).collect();
    for (client, known) in clients {
        assert_eq!(pair.nodes[1].send(&frame(client, ACK, 7), now), Some(known.backend));
    }
    pair.nodes[1].engine.news(now).unwrap();
    pair.nodes[1].engine.lease_pins(None);
    let before = pair.nodes[1].pins();
    let born: Vec<_> = (20_000..20_200_u16)
        .map(|client| (client, pair.nodes[1].send(&frame(client, SYN, client.into()), now)))
        .collect();
    assert!(pair.nodes[1].pins() > before);
    let news = pair.nodes[1].engine.news(now).unwrap();
    assert_eq!(pair.nodes[0].engine.learn(news, now).unwrap(), Vec::<String>::new());
    for (client, backend) in born {
        assert_eq!(pair.nodes[0].send(&frame(client, ACK, 7), now), backend, "{client}");
    }
}

#[test]
fn a_virtual_mac_stays_beside_the_node_s_own() {
    const VIRTUAL: [u8; 6] = [0, 0, 0x5e, 0, 1, 51];
    let own = [2, 0, 0, 0, 0, 1];
    let mut engine = Node::new().engine;
    engine.take_mac(VIRTUAL, true).unwrap();
    assert_eq!(engine.data_plane().own_macs().unwrap(), [own, VIRTUAL]);
    engine.reconcile(at(START)).unwrap();
    assert_eq!(engine.data_plane().own_macs().unwrap(), [own, VIRTUAL]);
    for last in 1..15 {
        engine.take_mac([0, 0, 0x5e, 0, 2, last], true).unwrap();
    }
    let full = engine.take_mac([0, 0, 0x5e, 0, 2, 99], true).unwrap_err().to_string();
    assert!(full.starts_with("there is room for 16 MAC addresses"), "{full}");
    engine.take_mac(VIRTUAL, false).unwrap();
    engine.reconcile(at(START)).unwrap();
    let macs = engine.data_plane().own_macs().unwrap();
    assert!(macs.len() == 15 && !macs.contains(&VIRTUAL));
}

#[test]
fn the_lease_of_another_process_ends_with_the_first_reconciliation() {
    let node = Node::new();
    let mut engine = node.engine;
    engine.lease_pins(Some(Duration::from_secs(5)));
    assert_eq!(engine.data_plane().leased_until(), 5_000_000_000);
    engine.reconcile(at(START)).unwrap();
    assert_eq!(engine.data_plane().leased_until(), 5_000_000_000);
    let mut engine = Engine::adopt(engine.into_data_plane(), &settings()).unwrap();
    set(&mut engine, desired());
    engine.reconcile(at(START)).unwrap();
    assert_eq!(engine.data_plane().leased_until(), 0);
}

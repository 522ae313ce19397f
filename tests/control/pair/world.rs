//! The pair that the tests are about: nodes, clients, and events.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::{abi::backend_flags, returns::decide, tables::Tables, verdict::Verdict};
use lb_control::engine::{Engine, Role};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Desired, Extent, ServiceKey},
    entry,
    flow::FlowTable,
    seen::{BackendKey, Condition, Seen, View},
    settings::Limits,
    time::Now,
};
use lb_plane::fake::Fake;
use lb_sync::Record;
use proptest::prelude::*;

use crate::{address, at, edit, one_service, service, set, settings};

pub const IDLE: u32 = 40;
pub const START: u32 = 1_000;
pub const BACKENDS: [&str; 5] = ["10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14", "10.0.0.15"];
/// Until when pins may be made, in seconds from now.
pub const LEASE: u32 = 1;

pub fn desired() -> Desired {
    let mut desired = one_service(&BACKENDS.map(|backend| (backend, 1)));
    let web = desired.services.get_mut("web").unwrap();
    web.idle_timeout = Duration::from_secs(IDLE.into());
    web.syn_budget = 1_000_000;
    desired
}

pub fn web() -> ServiceKey {
    service("10.0.0.100", &[]).key
}

/// A service with 16 VIPs and four ports.
pub fn wide() -> ServiceKey {
    let extent = Extent { host_bits: 4, more_ports: 3 };
    let first = ServiceKey { vip: [10, 0, 0, 96].into(), ..web() };
    first.with_extent(extent).expect("a prefix")
}

/// A TCP segment with these flags from a client to a service. Where that has several VIPs and ports, 64 clients are one
/// source that uses the same port for each.
pub fn frame_to(service: &ServiceKey, client: u16, flags: u8, sequence: u32) -> Vec<u8> {
    if service.extent.is_one() {
        return frame(client, flags, sequence);
    }
    let mut frame = frame(client / 64, flags, sequence);
    frame[33] = 96 + (client % 16) as u8;
    frame[37] = 80 + (client / 16 % 4) as u8;
    frame
}

/// A TCP segment with these flags from a client to [`web`].
pub fn frame(client: u16, flags: u8, sequence: u32) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 10, 0, 0, 100]);
    frame.extend(client.to_be_bytes());
    frame.extend(80_u16.to_be_bytes());
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame
}

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;

pub struct Node {
    pub engine: Engine<Fake>,
    pub view: View,
}

impl Node {
    pub fn new() -> Self {
        Self::of(web())
    }

    pub fn of(service: ServiceKey) -> Self {
        let mut desired = desired();
        desired.services.get_mut("web").unwrap().key = service;
        let mut engine = Engine::adopt(Fake::new(Limits::default()), &settings()).unwrap();
        set(&mut engine, desired);
        engine.reconcile(at(START)).unwrap();
        Self { engine, view: View::new() }
    }

    /// Where the node sends a frame.
    pub fn send(&self, frame: &[u8], now: Now) -> Option<BackendAddress> {
        let fake = self.engine.data_plane();
        fake.set_time(now.mono);
        match decide(frame, fake) {
            Verdict::Forward(to) => Some(entry::backend_of(to.backend)),
            _ => None,
        }
    }

    pub fn pins(&self) -> usize {
        self.engine.data_plane().flow_count(FlowTable::Pins)
    }

    /// Whether the program takes a backend for one that refuses new flows.
    fn knows_who_refuses(&self) -> bool {
        let fake = self.engine.data_plane();
        let mut entries = (1..=u8::MAX).filter_map(|id| Tables::backend(fake, id.into()));
        entries.any(|entry| entry.flags & backend_flags::SOFT_DOWN != 0)
    }

    /// The same maps, and a daemon that knows nothing else.
    pub fn restart(&mut self, now: Now) {
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
pub struct Client {
    pub backend: BackendAddress,
    pub seen: u32,
    /// Everything since it began was exported to the other node, or that node finds its place anyway.
    pub known: bool,
}

/// The pair. Node `active` holds the VIP.
pub struct Pair {
    pub nodes: [Node; 2],
    pub service: ServiceKey,
    pub active: usize,
    pub now: u32,
    pub clients: BTreeMap<u16, Client>,
    pub dead: BTreeSet<usize>,
    pub born: u16,
    /// The follower has all exported records, but for those that are sent again.
    pub synced: bool,
    /// Of a history that is sent again: the records that have not arrived yet.
    pub rest: Vec<Record>,
    /// The Active's daemon stands still.
    pub stopped: bool,
    /// The follower's daemon stands still: exported records wait for it.
    pub late: bool,
    /// Records that it has not imported yet: their number, and when they were exported.
    pub queue: Vec<(u64, u32, Vec<Record>)>,
    /// Until when pins may be made.
    pub leased: u32,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// New clients come.
    Open(u8),
    /// Some clients send: those whose number leaves this rest.
    Send(u16),
    /// Seconds pass, with the work of each.
    Wait(u8),
    /// The operator takes a backend out, or in, on both nodes.
    Drain(usize),
    Enable(usize),
    /// A node's checks find a backend down, or up.
    Down(usize, usize),
    Up(usize, usize),
    /// A backend is dead, for both; later it comes again.
    Die(usize),
    /// New records are exported, and arrive.
    Sync,
    /// New records are exported, and get lost; so all of them are sent again.
    LoseAndResync,
    /// All records are sent anew, and a part of them has not arrived yet.
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

pub fn event() -> impl Strategy<Value = Event> {
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
        6 => Just(Event::Sync),
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
    pub fn new() -> Self {
        Self::of(web())
    }

    /// With this service.
    pub fn of(service: ServiceKey) -> Self {
        let mut pair = Self {
            nodes: [Node::of(service), Node::of(service)],
            service,
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

    pub fn at(&self) -> Now {
        at(self.now)
    }

    pub fn set_roles(&mut self) {
        let now = self.at();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let role = if number == self.active { Role::Own } else { Role::Follows };
            node.engine.set_roles([(self.service, role)].into(), now).unwrap();
        }
    }

    pub fn active(&mut self) -> &mut Node {
        &mut self.nodes[self.active]
    }

    pub fn follower(&mut self) -> &mut Node {
        &mut self.nodes[1 - self.active]
    }

    pub fn lease(&mut self) {
        let oldest = self.queue.first().map_or(self.now, |(_, exported, _)| *exported);
        self.leased = oldest + LEASE;
        let until = Duration::from_secs(self.leased.into());
        self.active().engine.lease_pins(Some(until));
    }

    pub fn export(&mut self) -> Vec<Record> {
        let now = self.at();
        let records = self.active().engine.export_changes(now).unwrap();
        self.lease();
        records
    }

    pub fn learn(&mut self, records: Vec<Record>) {
        let now = self.at();
        assert_eq!(self.follower().engine.import(records, now).unwrap(), Vec::<String>::new());
    }

    pub fn sync(&mut self) {
        // Twice, as in twenty milliseconds: a slot that was exported as settled does so.
        for _ in 0..2 {
            let records = self.export();
            if self.synced {
                // As it comes over the wire: in order, record by record, cut into small ones.
                let rest = std::mem::take(&mut self.rest);
                let records = rest.into_iter().chain(records.into_iter().flat_map(cut)).collect();
                let number = self.active().engine.export_number();
                self.queue.push((number, self.now, records));
                self.clients.values_mut().for_each(|client| client.known = true);
            }
            if !self.late {
                self.take();
            }
        }
    }

    /// The follower imports the exported records.
    pub fn take(&mut self) {
        for (_, _, records) in std::mem::take(&mut self.queue) {
            records.into_iter().for_each(|record| self.learn(vec![record]));
        }
        let number = self.active().engine.export_number();
        self.active().engine.set_acknowledged(number);
    }

    /// Exports all, of which so many records arrive.
    pub fn resync(&mut self, arrive: usize) {
        self.take();
        let now = self.at();
        let services = [self.service].into();
        self.follower().engine.begin_import(&services);
        let mut history: Vec<_> =
            self.active().engine.export_all(now).unwrap().into_iter().flat_map(cut).collect();
        let rest = history.split_off(arrive.min(history.len()));
        self.learn(history);
        self.rest = rest;
        if self.rest.is_empty() {
            self.synced = true;
            self.sync();
        }
    }

    /// The follower becomes Active, when it has imported all exported records; clients that it can't know are
    /// gone.
    pub fn take_over(&mut self) {
        self.take();
        self.clients.retain(|_, client| client.known);
        self.active = 1 - self.active;
        (self.stopped, self.late) = (false, false);
        self.rest.clear();
        self.set_roles();
        self.lease();
    }

    pub fn reconcile(&mut self) {
        let now = self.at();
        for number in 0..2 {
            if !self.stopped || number != self.active {
                let node = &mut self.nodes[number];
                node.engine.set_view(node.view.clone());
                node.engine.reconcile(now).unwrap();
            }
        }
    }

    pub fn edit(&mut self, backend: usize, admin: Admin) {
        for node in &mut self.nodes {
            edit(&mut node.engine, BACKENDS[backend], admin);
        }
        self.reconcile();
    }

    pub fn see(&mut self, node: usize, backend: usize, condition: Condition) {
        let target = BackendKey { service: self.service, backend: address(BACKENDS[backend]) };
        self.nodes[node].view.insert(target, Seen { condition, ..Seen::default() });
        self.reconcile();
    }

    pub fn is_up(&self, node: usize, backend: usize) -> bool {
        let target = BackendKey { service: self.service, backend: address(BACKENDS[backend]) };
        self.nodes[node].view.get(&target).is_none_or(|seen| seen.condition == Condition::Up)
    }

    pub fn open(&mut self) {
        self.born += 1;
        let (client, now) = (self.born, self.at());
        let leased = self.now <= self.leased;
        let before = self.active().pins();
        let syn = frame_to(&self.service, client, SYN, client.into());
        let Some(backend) = self.active().send(&syn, now) else { return };
        let pinned = self.active().pins() > before;
        // In place of a base owner that would refuse it, a flow is pinned without the lease.
        let may = leased || self.active().knows_who_refuses();
        assert!(may || !pinned, "a pin was made past the lease");
        // One without a pin is where the other node looks for it, if it has all exported records.
        self.clients.insert(client, Client { backend, seen: self.now, known: !pinned });
    }

    pub fn send(&mut self, rest: u16) -> Result<(), TestCaseError> {
        let now = self.at();
        let clients: Vec<_> = self.clients.keys().copied().filter(|c| c % 4 != rest).collect();
        for client in clients {
            let ack = frame_to(&self.service, client, ACK, 7);
            let to = self.active().send(&ack, now);
            let known = self.clients.get_mut(&client).expect("just listed");
            prop_assert_eq!(to, Some(known.backend), "client {} of {:?}", client, known);
            known.seen = self.now;
        }
        Ok(())
    }

    pub fn wait(&mut self, seconds: u8) {
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
                // Rarely, so that much happens in between; but without it nothing is ever exported.
                if self.now.is_multiple_of(4) {
                    self.sync();
                }
            }
            let dead = self.now - IDLE;
            self.clients.retain(|_, client| client.seen >= dead);
        }
    }

    pub fn handle(&mut self, event: Event) -> Result<(), TestCaseError> {
        let alone = |pair: &Self, but: usize| {
            let up = (0..BACKENDS.len()).filter(|b| *b != but);
            up.filter(|b| (0..2).all(|node| pair.is_up(node, *b))).count() < 2
        };
        match event {
            Event::Open(clients) => (0..clients).for_each(|_| self.open()),
            Event::Send(rest) => self.send(rest)?,
            Event::Wait(seconds) => self.wait(seconds),
            // The daemon that stands still gets no event.
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
                self.clients.retain(|_, client| client.backend != address(BACKENDS[backend]));
                self.sync();
            }
            Event::Sync => self.sync(),
            Event::LoseAndResync => {
                self.export();
                self.resync(usize::MAX);
            }
            Event::HalfResync(records) => self.resync(records),
            Event::HandOver if self.synced => {
                let services = [self.service].into();
                self.active().engine.pause_pinning(&services).unwrap();
                self.sync();
                // They come until the other one has taken over, and need no export.
                let before = self.active().pins();
                (0..3).for_each(|_| self.open());
                assert_eq!(self.active().pins(), before, "a pin was made while pinning was paused");
                self.clients.values_mut().for_each(|client| client.known = true);
                self.take_over();
                self.follower().engine.pause_pinning(&BTreeSet::new()).unwrap();
                self.sync();
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

/// A record in parts, as packets have room for.
pub fn cut(record: Record) -> Vec<Record> {
    match record {
        Record::Bases { service, bases } => {
            let parts = bases.chunks(20).map(<[_]>::to_vec);
            parts.map(|bases| Record::Bases { service, bases }).collect()
        }
        Record::Pins { service, pins } => {
            let parts = pins.chunks(5).map(<[_]>::to_vec);
            parts.map(|pins| Record::Pins { service, pins }).collect()
        }
        other => vec![other],
    }
}

/// A pair of which the follower has all, with clients that are pinned.
pub fn pinned_pair() -> Pair {
    let mut pair = Pair::new();
    pair.edit(0, Admin::Draining { deadline: None });
    (0..200).for_each(|_| pair.open());
    pair.sync();
    assert!(pair.nodes[0].pins() > 10);
    assert_eq!(pair.nodes[0].pins(), pair.nodes[1].pins());
    pair
}

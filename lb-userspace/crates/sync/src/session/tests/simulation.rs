//! Nodes, the links between them, and a daemon at each node that keeps its reports.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    time::{Duration, Instant, SystemTime},
};

use lb_api::peers::PeerStatus;

use super::router;
use crate::{
    Config, Key, NodeState, PeerId, Record, Report,
    id::SessionId,
    record::{Base, Flow, Pin},
    session::{Action, Event, Recipient, Session, outgoing::LOG},
    wire::DATAGRAM,
};

/// What links do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Links {
    pub loss_percent: u64,
    pub repeat_percent: u64,
    pub jitter_micros: u64,
}

impl Links {
    pub(crate) const SOUND: Self = Self { loss_percent: 0, repeat_percent: 0, jitter_micros: 0 };
}

/// What history amounts to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Model {
    ring: Option<Record>,
    bases: BTreeMap<u32, Option<lb_model::backend_address::BackendAddress>>,
    pins: BTreeMap<Flow, Pin>,
}

impl Model {
    pub fn take(&mut self, record: &Record) {
        match record {
            Record::Ring { .. } => {
                self.ring = Some(record.clone());
                self.bases.clear();
            }
            Record::Bases { bases, .. } => {
                self.bases.extend(bases.iter().map(|base| (base.slot, base.backend)));
            }
            Record::Pins { pins, .. } => self.pins.extend(pins.iter().map(|pin| (pin.flow, *pin))),
            Record::Ended { flows, .. } => self.pins.retain(|flow, _| !flows.contains(flow)),
        }
    }

    fn records(&self) -> Vec<Record> {
        let service = super::service();
        let bases =
            self.bases.iter().map(|(slot, backend)| Base { slot: *slot, backend: *backend });
        let bases = Record::Bases { service, bases: bases.collect() };
        let pins = Record::Pins { service, pins: self.pins.values().copied().collect() };
        let all = self.ring.clone().into_iter().chain([bases, pins]);
        all.filter(|record| !is_empty(record)).collect()
    }

    /// The last publication that has arrived whole.
    fn version(&self) -> usize {
        self.pins.get(&MARKER).map_or(0, |pin| pin.idle.as_secs() as usize)
    }

    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        if let Some(Record::Ring { digest, members, .. }) = &self.ring {
            (digest, members).hash(&mut hasher);
        }
        self.bases.hash(&mut hasher);
        let pins = self.pins.values();
        pins.for_each(|pin| (pin.flow, pin.backend, pin.flags, pin.idle).hash(&mut hasher));
        hasher.finish()
    }
}

/// A flow that carries the number of the last publication.
const MARKER: Flow = Flow::Connection([0xff; 8]);

/// What ends a publication.
fn marker(version: usize) -> Record {
    let idle = Duration::from_secs(version as u64);
    let pin = Pin { flow: MARKER, backend: super::backend(0), flags: 0, idle };
    Record::Pins { service: super::service(), pins: vec![pin] }
}

fn is_empty(record: &Record) -> bool {
    match record {
        Record::Ring { .. } => false,
        Record::Bases { bases, .. } => bases.is_empty(),
        Record::Pins { pins, .. } => pins.is_empty(),
        Record::Ended { flows, .. } => flows.is_empty(),
    }
}

/// What a daemon knows of a peer.
#[derive(Debug, Default)]
struct Known {
    joined: bool,
    complete: bool,
    model: Model,
}

struct Node {
    session: Session,
    frozen_until: Instant,
    /// Datagrams that wait until it runs again.
    waiting: Vec<(SocketAddr, Vec<u8>)>,
    model: Model,
    /// Every state of `model` since the session began, and which one it was last.
    versions: HashMap<u64, usize>,
    version: usize,
    known: BTreeMap<PeerId, Known>,
    /// Requests to take over that have no answer yet, and the version that they were made at.
    requests: HashMap<u8, usize>,
    /// The answers that there must be.
    unanswered: u32,
    reports: Vec<Report>,
}

struct Flight {
    at: Instant,
    from: usize,
    to: usize,
    datagram: Vec<u8>,
}

pub(crate) struct World {
    pub now: Instant,
    group: bool,
    links: Links,
    nodes: Vec<Node>,
    flights: Vec<Flight>,
    cuts: HashMap<(usize, usize), Instant>,
    recorded: Vec<Flight>,
    random: u64,
    requested: u8,
    /// Datagrams sent.
    pub sent: u64,
    pub rate: u32,
    /// Whether daemons don't report that they have taken their reports.
    pub slow: bool,
}

fn address(node: usize) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, node as u8 + 1), 3780).into()
}

impl World {
    pub fn new(count: usize, group: bool, seed: u64, links: Links) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            group,
            links,
            nodes: Vec::new(),
            flights: Vec::new(),
            cuts: HashMap::new(),
            recorded: Vec::new(),
            random: seed,
            requested: 0,
            sent: 0,
            rate: 12_500_000,
            slow: false,
        };
        for at in 0..count {
            let node = world.node(at, count, Model::default());
            world.nodes.push(node);
        }
        for at in 0..count {
            world.handle(at, Event::SetState(NodeState::default()));
        }
        world
    }

    fn node(&mut self, at: usize, count: usize, model: Model) -> Node {
        let mut id = [0; 16];
        id.fill_with(|| self.random() as u8 | 1);
        self.node_with(at, count, model, SessionId(id))
    }

    fn node_with(&self, at: usize, count: usize, model: Model, id: SessionId) -> Node {
        let config = Config {
            node: format!("node-{at}"),
            listen: address(at),
            peers: (0..count).filter(|other| *other != at).map(address).collect(),
            multicast: self.group.then(|| ("239.0.0.7:3780".parse().unwrap(), "eth0".to_owned())),
            key: Key([1; 32]),
            rate: NonZeroU32::new(self.rate).unwrap(),
            timeout: Duration::from_secs(1),
        };
        Node {
            session: Session::new(&config, id, self.now),
            frozen_until: self.now,
            waiting: Vec::new(),
            versions: HashMap::from([(model.digest(), 0)]),
            version: 0,
            model,
            known: BTreeMap::new(),
            requests: HashMap::new(),
            unanswered: 0,
            reports: Vec::new(),
        }
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A node's name for another.
    fn peer(node: usize, other: usize) -> PeerId {
        PeerId(if other > node { other - 1 } else { other } as u8)
    }

    fn node_of(node: usize, peer: PeerId) -> usize {
        let peer = usize::from(peer.0);
        if peer >= node { peer + 1 } else { peer }
    }

    pub fn handle(&mut self, at: usize, event: Event<'_>) {
        let mut out = Vec::new();
        self.nodes[at].session.handle(event, self.now, &mut out);
        let (log, peers) = self.nodes[at].session.kept();
        assert!(log <= LOG && peers.iter().all(|kept| *kept < 8000), "{log} {peers:?}");
        for action in out {
            match action {
                Action::Send(recipient, datagram) => self.send(at, recipient, datagram),
                Action::Report(report) => self.report(at, report),
            }
        }
    }

    fn send(&mut self, from: usize, recipient: Recipient, datagram: Vec<u8>) {
        assert!(datagram.len() <= DATAGRAM);
        self.sent += 1;
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            if recipient == Recipient::Group || recipient == Recipient::Peer(address(to)) {
                self.fly(from, to, datagram.clone());
            }
        }
    }

    fn fly(&mut self, from: usize, to: usize, datagram: Vec<u8>) {
        if self.cuts.get(&(from, to)).is_some_and(|until| *until > self.now) {
            return;
        }
        if self.random() % 100 < self.links.loss_percent {
            return;
        }
        let copies = 1 + u64::from(self.random() % 100 < self.links.repeat_percent);
        for _ in 0..copies {
            let delay = 100 + self.random() % (self.links.jitter_micros + 1);
            let at = self.now + Duration::from_micros(delay);
            if self.recorded.len() < 5000 && self.random().is_multiple_of(4) {
                self.recorded.push(Flight { at, from, to, datagram: datagram.clone() });
            }
            self.flights.push(Flight { at, from, to, datagram: datagram.clone() });
        }
    }

    /// What the daemon of a node does with a report.
    fn report(&mut self, at: usize, report: Report) {
        let node = &mut self.nodes[at];
        node.reports.push(report.clone());
        match report {
            Report::Joined(peer) => {
                let known = node.known.entry(peer).or_default();
                assert!(!known.joined, "it has joined twice");
                *known = Known { joined: true, ..Known::default() };
            }
            Report::Lost(peer, _) => {
                let known = node.known.entry(peer).or_default();
                assert!(known.joined, "it was lost twice");
                *known = Known::default();
            }
            Report::TransferRequested(peer) => {
                let records = node.model.records();
                self.handle(at, Event::SendTransfer(peer, records));
            }
            Report::TransferBegins(peer) => {
                let known = node.known.get_mut(&peer).expect("it has joined");
                assert!(known.joined && !known.complete);
                known.model = Model::default();
            }
            Report::Records(peer, records, mark) => {
                let known = node.known.get_mut(&peer).expect("it has joined");
                assert!(known.joined);
                records.iter().for_each(|record| known.model.take(record));
                if !self.slow {
                    self.handle(at, Event::Acknowledge(peer, mark));
                }
            }
            Report::Complete(peer, complete) => {
                let known = node.known.get_mut(&peer).expect("it has joined");
                assert!(known.joined && known.complete != complete);
                known.complete = complete;
                if complete {
                    let digest = known.model.digest();
                    let other = &self.nodes[Self::node_of(at, peer)];
                    // It may have started anew, and what is received is older.
                    let exists = other.versions.contains_key(&digest);
                    assert!(exists, "complete, though something is missing");
                }
            }
            Report::TakeOver(peer, routers) => {
                let version = node.known[&peer].model.version();
                let other = &self.nodes[Self::node_of(at, peer)];
                let request = routers[0].vrid.get();
                if let Some(published) = other.requests.get(&request) {
                    assert!(version >= *published, "reported before what was published before it");
                }
                let answer = if request % 3 == 0 { Err("no".to_owned()) } else { Ok(()) };
                self.handle(at, Event::Answer(peer, answer));
            }
            Report::Answer(..) => {
                node.unanswered = node.unanswered.checked_sub(1).expect("it was requested");
            }
            Report::NodeState(..) => {}
            Report::Unreadable(_, why) => panic!("{why}"),
        }
    }

    pub(crate) fn reports(&mut self, node: usize) -> Vec<Report> {
        std::mem::take(&mut self.nodes[node].reports)
    }

    pub fn status(&self, node: usize) -> Vec<PeerStatus> {
        self.nodes[node].session.status(self.now, SystemTime::now())
    }

    pub(crate) fn kept(&self, node: usize) -> (usize, Vec<usize>) {
        self.nodes[node].session.kept()
    }

    pub(crate) fn set_state(&mut self, node: usize, node_state: NodeState) {
        self.handle(node, Event::SetState(node_state));
    }

    pub(crate) fn publish(&mut self, at: usize, mut records: Vec<Record>) {
        let node = &mut self.nodes[at];
        records.push(marker(node.version + 1));
        records.iter().for_each(|record| node.model.take(record));
        node.version += 1;
        node.versions.insert(node.model.digest(), node.version);
        let number = node.version as u64;
        self.handle(at, Event::Publish(number, records));
    }

    /// The number of the last publication that all have taken.
    pub fn acknowledged(&mut self, at: usize) -> u64 {
        self.nodes[at].session.acknowledged()
    }

    pub(crate) fn request_takeover(&mut self, at: usize, other: usize) {
        self.requested = self.requested % 250 + 1;
        let node = &mut self.nodes[at];
        node.requests.insert(self.requested, node.model.version());
        node.unanswered += 1;
        let routers = vec![router(self.requested)];
        self.handle(at, Event::RequestTakeover(Self::peer(at, other), routers));
    }

    /// A node goes on after all.
    pub(crate) fn withdraw(&mut self, at: usize, other: usize) {
        self.nodes[at].unanswered -= 1;
        self.handle(at, Event::Withdraw(Self::peer(at, other)));
    }

    /// A node has not taken another one's history.
    pub(crate) fn request_transfer(&mut self, at: usize, other: usize) {
        self.handle(at, Event::RequestTransfer(Self::peer(at, other)));
    }

    /// A node lacks flows of another one that have arrived, or lacks none.
    pub(crate) fn lack(&mut self, at: usize, other: usize, lacks: bool) {
        self.handle(at, Event::Lack(Self::peer(at, other), lacks));
    }

    /// A node goes on from a snapshot of its beginning: with the same session, whose counters begin again.
    pub(crate) fn restore(&mut self, at: usize) {
        let (model, id) = (self.nodes[at].model.clone(), self.nodes[at].session.id());
        let versions = self.nodes[at].versions.clone();
        let count = self.nodes.len();
        let mut node = self.node_with(at, count, model, id);
        node.versions.extend(versions);
        self.nodes[at] = node;
        self.handle(at, Event::SetState(NodeState::default()));
    }

    pub(crate) fn restart(&mut self, at: usize, goodbye: bool) {
        if goodbye {
            self.handle(at, Event::Bye);
        }
        let model = self.nodes[at].model.clone();
        // What others still receive of the session before is one of its states.
        let (versions, version) = (self.nodes[at].versions.clone(), self.nodes[at].version + 1);
        let mut node = self.node(at, self.nodes.len(), model);
        node.versions.extend(versions);
        node.version = version;
        node.versions.insert(node.model.digest(), version);
        self.nodes[at] = node;
        self.handle(at, Event::SetState(NodeState::default()));
    }

    pub(crate) fn freeze(&mut self, at: usize, time: Duration) {
        self.nodes[at].frozen_until = self.now + time;
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize, time: Duration) {
        self.cuts.insert((from, to), self.now + time);
    }

    /// Sends up to a hundred datagrams that were recorded.
    pub(crate) fn replay(&mut self) {
        for _ in 0..self.recorded.len().min(100) {
            let which = self.random() as usize % self.recorded.len();
            let Flight { from, to, datagram, .. } = &self.recorded[which];
            let (from, to, datagram) = (*from, *to, datagram.clone());
            let at = self.now + Duration::from_micros(self.random() % 50_000);
            self.flights.push(Flight { at, from, to, datagram });
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut turns = 0_u64;
        loop {
            let deadlines = self.nodes.iter().filter_map(|node| {
                let at = node.session.deadline()?;
                Some(at.max(node.frozen_until))
            });
            let thaws = self.nodes.iter().filter(|node| !node.waiting.is_empty());
            let thaws = thaws.map(|node| node.frozen_until);
            let arrivals = self.flights.iter().map(|flight| flight.at);
            let Some(next) = deadlines.chain(thaws).chain(arrivals).min() else { break };
            if next > end {
                break;
            }
            turns += 1;
            assert!(turns < 1_000_000, "time stands still");
            self.now = self.now.max(next);
            self.arrive();
            for at in 0..self.nodes.len() {
                if self.nodes[at].frozen_until > self.now {
                    continue;
                }
                for (from, mut datagram) in std::mem::take(&mut self.nodes[at].waiting) {
                    self.handle(at, Event::Received(from, &mut datagram));
                }
                // What one tick does may make something else due at once.
                let mut ticks = 0;
                while self.nodes[at].session.deadline().is_some_and(|at| at <= self.now) {
                    self.handle(at, Event::Tick);
                    ticks += 1;
                    assert!(ticks < 3, "its deadline stands still");
                }
            }
        }
        self.now = end;
    }

    fn arrive(&mut self) {
        let now = self.now;
        let (mut arrived, flights): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.flights).into_iter().partition(|flight| flight.at <= now);
        self.flights = flights;
        arrived.sort_by_key(|flight| flight.at);
        for Flight { from, to, datagram, .. } in arrived {
            self.nodes[to].waiting.push((address(from), datagram));
        }
    }

    /// The links lose nothing from now on. Asserts that every node has all records within 8 s, and that few
    /// datagrams are sent after that.
    pub(crate) fn converge(&mut self) {
        self.links = Links::SOUND;
        self.cuts.clear();
        self.run(Duration::from_secs(8));
        for (at, node) in self.nodes.iter().enumerate() {
            assert_eq!(node.known.len(), self.nodes.len() - 1);
            for (peer, known) in &node.known {
                let other = &self.nodes[Self::node_of(at, *peer)];
                let status = &self.status(at)[usize::from(peer.0)];
                assert!(known.joined && known.complete, "node {at}: {known:?} {status:?}");
                assert_eq!(known.model, other.model, "node {at}: {status:?}");
                assert!(status.complete_here && status.complete_there, "{status:?}");
            }
            assert_eq!(node.unanswered, 0, "a request has no answer");
        }
        let before = self.sent;
        self.run(Duration::from_secs(1));
        let pairs = (self.nodes.len() * (self.nodes.len() - 1)) as u64;
        assert!(self.sent - before <= 11 * pairs, "{} in a quiet second", self.sent - before);
    }
}

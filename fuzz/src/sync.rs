//! Sync: any bytes as messages, and a session with a peer that has the key and sends anything.
//!
//! The first byte of an input chooses. A message that is read is written and read again; a session panics
//! at nothing, reports a peer only between that it has joined and that it is lost, and sends nothing
//! that its peer can't open and read.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    num::{NonZeroU8, NonZeroU32},
    time::{Duration, Instant, SystemTime},
};

use lb_common::abi::Destination;
use lb_model::{
    backend_address::BackendAddress,
    desired::{Extent, Protocol, ServiceKey},
    router::{Family, RouterKey, State},
};
use lb_sync::{
    Config, Key, Mark, NodeState, PeerId, Record, Report, RouterState,
    id::SessionId,
    record::{Base, Flow, Pin},
    seal::{self, Opener, Sealer},
    session::{Action, Event, Recipient, Session},
    wire::{
        BODY, DATAGRAM, Header, Hello, Message, NAME, PARTS, node_state,
        parts::{Assembler, Packer, unpack},
    },
};

use crate::input::Input;

/// The most operations of an input.
const OPERATIONS: usize = 256;
/// Ticks that may be due at one moment, one after the other.
const AT_ONCE: usize = 8;
const PEER: PeerId = PeerId(0);
const KEY: Key = Key([7; 32]);

/// Takes an input.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    match input.byte() {
        b'm' => {
            let kind = input.byte();
            message(kind, input.0);
        }
        b'n' => packed_records(input.0),
        b'd' => {
            let mut datagram = input.0.to_vec();
            let _ = seal::open(&KEY, &SessionId([1; 16]), &mut datagram);
        }
        _ => {
            let mut harness = Harness::new();
            for _ in 0..OPERATIONS {
                if input.is_empty() || harness.ended {
                    break;
                }
                harness.act(&mut input);
            }
        }
    }
}

fn message(kind: u8, body: &[u8]) {
    if body.len() > BODY {
        return;
    }
    let Ok(message) = Message::decode(kind, body) else { return };
    let mut written = Vec::new();
    message.encode(&mut written);
    // Longer names are cut off where they are written.
    let is_long = matches!(&message, Message::Hello(hello) if hello.node.len() > usize::from(NAME));
    if !is_long {
        assert_eq!(message.kind(), kind);
        assert_eq!(Message::decode(kind, &written).expect("what was written is read"), message);
    }
    match message {
        Message::Changes { parts, .. } | Message::Transfer { parts, .. } => packed_records(parts),
        Message::NodeState { half, bytes, .. } => node_state_message(half, bytes),
        _ => {}
    }
}

/// A half of a node's state.
fn node_state_message(half: u8, bytes: &[u8]) {
    let mut read = NodeState::default();
    if node_state::decode(half, bytes, &mut read).is_err() {
        return;
    }
    let mut again = NodeState::default();
    node_state::decode(half, &node_state::encode(half, &read), &mut again)
        .expect("what was written is read");
    assert_eq!(again, read);
}

/// The parts of a packet of records.
fn packed_records(parts: &[u8]) {
    let Ok(parts) = unpack(parts) else { return };
    let mut records = Vec::new();
    if Assembler::default().take(parts, &mut records).is_err() {
        return;
    }
    let mut again = Vec::new();
    let mut assembler = Assembler::default();
    let mut packer = Packer::new(records.clone(), PARTS);
    while !packer.is_empty() {
        let packed = packer.next_packet();
        assert!(packed.bytes.len() <= PARTS, "{} bytes", packed.bytes.len());
        assert!(packed.parts > 0, "a packet without parts, and there is more to send");
        let parts = unpack(&packed.bytes).expect("what was packed is unpacked");
        assembler.take(parts, &mut again).expect("parts of one record belong together");
    }
    assert_eq!(joined(again), joined(records));
}

/// Records as they were before they were split over packets; empty ones are left out.
fn joined(records: Vec<Record>) -> Vec<Record> {
    let mut all: Vec<Record> = Vec::new();
    for record in records {
        match (all.last_mut(), record) {
            (
                Some(Record::Bases { service, bases }),
                Record::Bases { service: of, bases: more },
            ) if *service == of => {
                bases.extend(more);
            }
            (Some(Record::Pins { service, pins }), Record::Pins { service: of, pins: more })
                if *service == of =>
            {
                pins.extend(more);
            }
            (
                Some(Record::Ended { service, flows }),
                Record::Ended { service: of, flows: more },
            ) if *service == of => {
                flows.extend(more);
            }
            (_, record) => all.push(record),
        }
    }
    all
}

/// A session, and its peer, which has the key and sends the messages of the input.
struct Harness {
    session: Session,
    own: SessionId,
    at: SocketAddr,
    now: Instant,
    sealer: Sealer,
    opener: Opener,
    /// The last challenge that was received.
    challenge: u32,
    /// Sessions of the peer so far.
    lives: u8,
    last: Vec<u8>,
    marks: Vec<Mark>,
    has_joined: bool,
    ended: bool,
}

impl Harness {
    fn new() -> Self {
        let now = Instant::now();
        let at: SocketAddr = (Ipv4Addr::new(10, 0, 0, 2), 3780).into();
        let config = Config {
            node: "one".into(),
            listen: (Ipv4Addr::new(10, 0, 0, 1), 3780).into(),
            peers: vec![at],
            multicast: None,
            key: KEY,
            rate: NonZeroU32::new(12_500_000).expect("it is not 0"),
            timeout: Duration::from_secs(1),
        };
        let own = SessionId([1; 16]);
        let mut harness = Self {
            session: Session::new(&config, own, now),
            own,
            at,
            now,
            sealer: Sealer::new(&KEY, SessionId([2; 16])),
            opener: Opener::new(&KEY, own),
            challenge: 0,
            lives: 2,
            last: Vec::new(),
            marks: Vec::new(),
            has_joined: false,
            ended: false,
        };
        harness.does(Event::SetState(NodeState::default()));
        harness
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.byte() % 20 {
            0..=2 => self.hello(input),
            3..=5 => {
                let (kind, count) = (input.byte() % 12, input.byte());
                let body = input.bytes(usize::from(count) * 2);
                self.seal_and_receive(kind, input.byte() & 7 != 7, body);
            }
            6 => {
                let (sequence, ahead) = (u64::from(input.byte()), u64::from(input.byte() % 4));
                let parts = Packer::new(any_records(input), PARTS).next_packet().bytes;
                self.send(&Message::Changes { sequence, ahead, parts: &parts });
            }
            7 => {
                let flags = input.byte();
                let (transfer, index) = (u32::from(flags >> 4), u32::from(input.byte() % 8));
                let parts = Packer::new(any_records(input), PARTS).next_packet().bytes;
                let since = u64::from(input.byte());
                let last = flags & 1 != 0;
                self.send(&Message::Transfer { transfer, index, last, since, parts: &parts });
            }
            8 => {
                let half = input.byte() % 2;
                let generation = u32::from(input.byte());
                let bytes = node_state::encode(half, &node_state_of(input));
                let fragments: Vec<_> = node_state::fragments(&bytes).collect();
                for (index, bytes) in fragments.iter().enumerate() {
                    let index = (index as u16, fragments.len() as u16);
                    self.send(&Message::NodeState { half, generation, index, bytes });
                }
            }
            9 => {
                // An earlier datagram, changed or not.
                let mut datagram = self.last.clone();
                let (at, change) = (input.below(datagram.len().max(1)), input.byte());
                if let Some(byte) = datagram.get_mut(at) {
                    *byte ^= change;
                }
                self.receive(datagram);
            }
            10 => {
                let count = input.byte();
                let mut datagram = input.bytes(usize::from(count)).to_vec();
                if count & 1 != 0 {
                    let header = Header::new(input.byte(), self.own.tag(), &self.own, 1, 0);
                    datagram.splice(0..0, zerocopy::IntoBytes::as_bytes(&header).iter().copied());
                }
                self.receive(datagram);
            }
            11 | 12 => self.wait(input),
            13 => {
                let number = u64::from(input.byte());
                let records = any_records(input);
                self.does(Event::Publish(number, records));
            }
            14 => {
                let records = any_records(input);
                self.does(Event::SendTransfer(PEER, records));
            }
            15 => match input.byte() % 5 {
                0 => self.does(Event::RequestTransfer(PEER)),
                1 => self.does(Event::RequestTakeover(PEER, vec![router(input)])),
                2 => self.does(Event::Withdraw(PEER)),
                3 => self.does(Event::Answer(PEER, Ok(()))),
                _ => self.does(Event::Answer(PEER, Err("x".repeat(usize::from(input.short()))))),
            },
            16 => {
                if let Some(mark) = self.marks.pop() {
                    self.does(Event::Acknowledge(PEER, mark));
                }
            }
            17 => {
                let node_state = node_state_of(input);
                self.does(Event::SetState(node_state));
            }
            18 => {
                self.lives = self.lives.wrapping_add(1).max(2);
                self.sealer = Sealer::new(&KEY, SessionId([self.lives; 16]));
            }
            _ if input.byte() == 0 => {
                self.does(Event::Bye);
                self.ended = true;
            }
            _ => {
                let _ = self.session.status(self.now, SystemTime::UNIX_EPOCH);
                let _ = self.session.acknowledged();
            }
        }
    }

    fn hello(&mut self, input: &mut Input<'_>) {
        let flags = input.byte();
        let echo = if flags & 1 == 0 { self.challenge } else { u32::from(input.byte()) };
        let own = if flags & 2 == 0 { self.own } else { SessionId([0; 16]) };
        let hello = Hello {
            node: "two",
            challenge: u32::from(flags >> 6),
            echo: (own, echo),
            losses: u32::from(flags >> 5 & 1),
            clock: u64::from(input.byte()),
            echo_clock: (u64::from(input.byte()), u64::from(input.byte())),
            head: u64::from(input.byte()),
            next: u64::from(input.byte()),
            acknowledged: u64::from(input.byte()),
            complete: flags & 4 != 0,
            node_state: [u32::from(input.byte()), u32::from(input.byte())],
            has: [u32::from(input.byte()), u32::from(input.byte())],
        };
        let mut body = Vec::new();
        Message::Hello(hello).encode(&mut body);
        self.seal_and_receive(Message::HELLO, flags & 8 == 0, &body);
    }

    fn send(&mut self, message: &Message<'_>) {
        let mut body = Vec::new();
        message.encode(&mut body);
        self.seal_and_receive(message.kind(), true, &body);
    }

    fn seal_and_receive(&mut self, kind: u8, bound: bool, body: &[u8]) {
        let to = bound.then_some(self.own);
        let datagram = self.sealer.seal(kind, to.as_ref(), |out| out.extend_from_slice(body));
        self.receive(datagram);
    }

    fn receive(&mut self, mut datagram: Vec<u8>) {
        self.last.clone_from(&datagram);
        let from = self.at;
        self.does(Event::Received(from, &mut datagram));
    }

    /// Time goes on, from one deadline to the next.
    fn wait(&mut self, input: &mut Input<'_>) {
        let until = self.now + Duration::from_millis(u64::from(input.short() % 4_096));
        while let Some(at) = self.session.deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let mut ticks = 0;
            while self.session.deadline().is_some_and(|at| at <= self.now) {
                self.does(Event::Tick);
                ticks += 1;
                assert!(ticks <= AT_ONCE, "its deadline is always now");
            }
        }
        self.now = until;
    }

    fn does(&mut self, event: Event<'_>) {
        let mut out = Vec::new();
        self.session.handle(event, self.now, &mut out);
        for action in out {
            match action {
                Action::Send(recipient, datagram) => self.sent(recipient, datagram),
                Action::Report(report) => self.reported(report),
            }
        }
    }

    /// Its datagrams can be opened and read.
    fn sent(&mut self, recipient: Recipient, mut datagram: Vec<u8>) {
        assert_eq!(recipient, Recipient::Peer(self.at));
        assert!(datagram.len() <= DATAGRAM, "{} bytes", datagram.len());
        let (header, sealed) = Header::split(&mut datagram).expect("it has a header");
        let body = match self.opener.open(&header, &self.sealer.session(), sealed) {
            Ok(body) => body,
            // It is for the peer's session before.
            Err(seal::Refused::ElseWhere) => return,
            Err(refused) => panic!("{refused:?}"),
        };
        // A half of a node's state, or a ring, may be in several.
        match Message::decode(header.kind, body).expect("it is a message") {
            Message::Changes { parts, .. } | Message::Transfer { parts, .. } => {
                unpack(parts).expect("each part can be read");
            }
            Message::Hello(hello) => self.challenge = hello.challenge,
            _ => {}
        }
    }

    fn reported(&mut self, report: Report) {
        match report {
            Report::Joined(_) => {
                assert!(!self.has_joined, "it has joined twice");
                self.has_joined = true;
            }
            Report::Lost(..) => {
                assert!(self.has_joined, "it is lost, and was not there");
                self.has_joined = false;
            }
            Report::Records(_, _, mark) => {
                assert!(self.has_joined, "records of a peer that is not there");
                self.marks.push(mark);
            }
            // A request to a peer that is not there fails with these.
            Report::Unreadable(..) | Report::Answer(..) => {}
            report => assert!(self.has_joined, "of a peer that is not there: {report:?}"),
        }
    }
}

fn router(input: &mut Input<'_>) -> RouterKey {
    let number = input.byte();
    let family = if number & 1 == 0 { Family::V4 } else { Family::V6 };
    RouterKey { family, vrid: NonZeroU8::new(number).unwrap_or(NonZeroU8::MIN) }
}

fn node_state_of(input: &mut Input<'_>) -> NodeState {
    let mut node_state = NodeState { draining: input.byte() & 1 != 0, ..NodeState::default() };
    node_state.fingerprint.seed = u64::from(input.byte());
    for _ in 0..input.byte() {
        let (state, priority, flags) = (input.of(&State::ALL), input.byte(), input.byte());
        let router_state = RouterState {
            state,
            priority,
            wants: flags & 1 != 0,
            lowered: flags & 2 != 0,
            source: Some(address(input)),
            fingerprint: u64::from(input.byte()),
            interval_centis: input.short(),
            addresses: u64::from(input.byte()),
        };
        node_state.routers.insert(router(input), router_state);
    }
    node_state
}

fn backend_address(input: &mut Input<'_>) -> BackendAddress {
    let ip = address(input);
    BackendAddress { ip, port: NonZeroU16::new(input.byte().into()) }
}

fn address(input: &mut Input<'_>) -> IpAddr {
    let number = input.byte();
    match number & 1 {
        0 => IpAddr::from([10, 0, 0, number]),
        _ => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)]),
    }
}

fn destination(input: &mut Input<'_>) -> Destination {
    match input.byte() {
        number @ 200.. => Destination { port: u16::from(number).into(), host: [0, number] },
        _ => Destination::ONLY,
    }
}

fn flow(input: &mut Input<'_>) -> Flow {
    let kind = input.byte();
    match kind % 3 {
        0 => Flow::Pinned(address(input), input.short(), destination(input)),
        1 => Flow::Tracked(address(input), input.short(), destination(input)),
        _ => Flow::Connection([kind; 8]),
    }
}

/// A few records, of up to thousands of items.
fn any_records(input: &mut Input<'_>) -> Vec<Record> {
    let mut records = Vec::new();
    for _ in 0..input.byte() % 5 {
        let head = input.byte();
        let protocol = if head & 1 == 0 { Protocol::Tcp } else { Protocol::Udp };
        let service = ServiceKey::new(address(input), 80, protocol);
        let more_ports = u16::from(input.byte()).saturating_sub(200);
        let service = service.with_extent(Extent { host_bits: 0, more_ports }).unwrap_or(service);
        let count = match input.byte() {
            many @ 250.. => u32::from(many - 249) * 300,
            few => u32::from(few % 32),
        };
        let (first, second) = (backend_address(input), backend_address(input));
        let backend = |number: u32| if number.is_multiple_of(2) { first } else { second };
        let some_flow = flow(input);
        records.push(match head >> 1 & 3 {
            0 => Record::Ring {
                service,
                slots: 1_009,
                members: (0..count).map(|n| (Ipv4Addr::from(n).into(), n)).collect(),
                digest: u64::from(head),
            },
            1 => {
                let base = |slot| Base { slot, backend: (slot % 3 != 0).then(|| backend(slot)) };
                Record::Bases { service, bases: (0..count).map(base).collect() }
            }
            2 => {
                let pin = |n: u32| Pin {
                    flow: Flow::Pinned(Ipv4Addr::from(n).into(), n as u16, Destination::ONLY),
                    backend: backend(n),
                    flags: n as u16,
                    idle: Duration::from_secs(u64::from(n)),
                };
                Record::Pins { service, pins: (0..count).map(pin).collect() }
            }
            _ => Record::Ended { service, flows: vec![some_flow] },
        });
    }
    records
}

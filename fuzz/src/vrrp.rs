//! VRRP: messages as bytes, and a virtual router that receives them.
//!
//! An input is a router's configuration and its events. Messages are those of a neighbour,
//! whole or changed, or any bytes.

use std::{
    net::IpAddr,
    num::NonZeroU8,
    time::{Duration, Instant, SystemTime},
};

use lb_common::rewrite::{fold, sum};
use lb_model::router::{
    Announce, Auth, Checksum, Family, Router, RouterKey, State, Version, VirtualAddress,
};
use lb_vrrp::{
    Yield, announce,
    fsm::{Action, Assessment, Event, Settings, VirtualRouter},
    packet::{Codec, PROTOCOL, Packet, Path, decode, encode, vrid},
};

use crate::input::Input;

/// The most operations of an input.
const OPERATIONS: usize = 256;
/// Timers that may be due at one moment, one after the other.
const AT_ONCE: usize = 8;

/// Takes an input.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let router = router(&mut input);
    let mut harness = Harness::new(&router);
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        harness.act(&mut input);
    }
}

fn router(input: &mut Input<'_>) -> Router {
    let kind = input.byte();
    let (family, version) = match kind % 3 {
        0 => (Family::V4, Version::V2),
        1 => (Family::V4, Version::V3),
        _ => (Family::V6, Version::V3),
    };
    let auth = match kind / 3 % 3 {
        1 if version == Version::V2 => Auth::Pass(*b"secret\0\0"),
        2 => Auth::Hmac { id: 1, secret: vec![7; 32] },
        _ => Auth::None,
    };
    let names: &[&str] = match family {
        Family::V4 => &["10.0.0.100", "10.0.0.101"],
        Family::V6 => &["fe80::100", "2001:db8::100"],
    };
    let addresses = names.iter().map(|address| VirtualAddress {
        address: ip(address),
        prefix: 32,
        interface: None,
        label: None,
        nodad: true,
        advertised: true,
    });
    let flags = input.byte();
    let unicast = flags & 1 != 0;
    Router {
        name: "main".into(),
        interface: "eth0".into(),
        key: RouterKey { family, vrid: NonZeroU8::new(51).expect("it is not 0") },
        version,
        priority: NonZeroU8::new(input.of(&[100, 1, 50, 150, 254, 255])).expect("none is 0"),
        interval: interval(input, version),
        preempt: flags & 2 == 0,
        preempt_delay: Duration::from_millis(input.of(&[0, 0, 100, 5_000])),
        accept: true,
        addresses: addresses.collect(),
        source: None,
        peers: if unicast { vec![peer(family, 1), peer(family, 3)] } else { Vec::new() },
        min_ttl: if flags & 4 == 0 { 255 } else { 64 },
        second_path: None,
        auth,
        checksum: if flags & 8 == 0 { Checksum::PseudoHeader } else { Checksum::Message },
        virtual_mac: None,
        announce: Announce {
            repeat: input.of(&[1, 5, 0]),
            delay: Duration::from_secs(input.of(&[0, 5])),
            refresh: Duration::from_secs(input.of(&[0, 60])),
        },
        tracks: Vec::new(),
        notify: None,
    }
}

fn interval(input: &mut Input<'_>, version: Version) -> Duration {
    match version {
        Version::V2 => Duration::from_secs(input.of(&[1, 2, 255])),
        Version::V3 => Duration::from_millis(input.of(&[1_000, 10, 100, 40_950])),
    }
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("it is an address")
}

/// A host of the link; this node is the second.
fn peer(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 0, 0, number]),
        Family::V6 => IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(number)]),
    }
}

/// A router, its neighbour, and the time.
struct Harness {
    router: Router,
    own: Codec,
    neighbour: Codec,
    machine: VirtualRouter,
    assessment: Assessment,
    now: Instant,
    wall: SystemTime,
    /// Its last state.
    state: State,
}

impl Harness {
    fn new(router: &Router) -> Self {
        let now = Instant::now();
        let mut machine = VirtualRouter::new(Settings::from(router), now);
        let assessment = Assessment {
            priority: router.priority.get(),
            fault: None,
            holds_back: None,
            abstains: None,
            known_after: None,
            draining: false,
            drains_there: false,
            lowered: false,
            lowered_there: false,
            handed_over: false,
        };
        let mut out = Vec::new();
        machine.set_assessment(assessment.clone(), now, &mut out);
        let mut harness = Self {
            own: Codec::new(router),
            neighbour: Codec::new(router),
            router: router.clone(),
            machine,
            assessment,
            now,
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            state: State::Initialize,
        };
        harness.check(&out);
        harness
    }

    fn family(&self) -> Family {
        self.router.key.family
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.wall += time;
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0..=4 => self.receive(input),
            5 => self.receive_anything(input),
            6 | 7 => self.wait_for_timer(),
            8 => {
                let time = Duration::from_millis(u64::from(input.short()));
                self.wait(time);
                self.early();
            }
            9 => self.handle(Event::Startup { inherited: input.byte() & 1 != 0 }),
            10 => self.handle(Event::Stop { release: input.byte() & 1 != 0 }),
            11 => {
                let how = input.of(&[Yield::Requested, Yield::Outranked, Yield::Advertised]);
                self.handle(Event::Yield(how));
            }
            12 => self.handle(match input.byte() % 3 {
                0 => Event::Take,
                1 => Event::MateActive("mate".into()),
                _ => Event::MateBackup("mate".into()),
            }),
            13 => self.assess(input),
            14 => self.configure(input),
            _ => {
                let _ = announce::claim(input.bytes(90));
            }
        }
    }

    /// One event; it leads to one transition at most.
    fn handle(&mut self, event: Event) {
        let mut out = Vec::new();
        self.machine.handle(event, self.now, &mut out);
        self.check(&out);
    }

    /// Something before the deadline is nothing.
    fn early(&mut self) {
        if self.machine.deadline().is_some_and(|at| at > self.now) {
            let mut out = Vec::new();
            self.machine.handle(Event::Timer, self.now, &mut out);
            assert_eq!(out, [], "nothing was due");
        }
    }

    fn wait_for_timer(&mut self) {
        let Some(at) = self.machine.deadline() else { return };
        self.wait(at.saturating_duration_since(self.now));
        for _ in 0..AT_ONCE {
            self.handle(Event::Timer);
            if self.machine.deadline().is_none_or(|at| at > self.now) {
                return;
            }
        }
        panic!("its deadline is always now: {:?}", self.machine);
    }

    fn assess(&mut self, input: &mut Input<'_>) {
        let flags = input.byte();
        self.assessment = Assessment {
            priority: input.of(&[100, 0, 1, 50, 150, 254, 255]).max(1),
            fault: (flags & 3 == 3).then(|| "eth0 is down".into()),
            holds_back: (flags & 12 == 12).then(|| "its flows are not known".into()),
            abstains: (flags & 10 == 10).then(|| "another router has given way".into()),
            known_after: (flags & 16 != 0).then(|| u64::from(flags >> 5)),
            draining: flags & 96 == 96,
            drains_there: flags & 65 == 65,
            lowered: false,
            lowered_there: flags & 36 == 36,
            handed_over: flags & 128 != 0,
        };
        let mut out = Vec::new();
        self.machine.set_assessment(self.assessment.clone(), self.now, &mut out);
        self.check(&out);
    }

    fn configure(&mut self, input: &mut Input<'_>) {
        self.router.interval = interval(input, self.router.version);
        self.router.preempt = input.byte() & 1 == 0;
        let mut codec = Codec::new(&self.router);
        codec.resume(&mut self.own);
        self.own = codec;
        let mut out = Vec::new();
        self.machine.set_settings(Settings::from(&self.router), self.now, &mut out);
        self.check(&out);
    }

    /// Checks the actions of one call.
    fn check(&mut self, out: &[Action]) {
        let mut transitions = 0;
        for action in out {
            match action {
                Action::Transition { from, to, cause } => {
                    assert_eq!(*from, self.state, "it was in another state: {out:?}");
                    assert_ne!(from, to, "a transition to the same state: {out:?}");
                    assert!(!cause.is_empty(), "a transition without a cause");
                    self.state = *to;
                    transitions += 1;
                }
                Action::Advertise { priority } => {
                    // As it would be sent; a sender ignores its own.
                    let (from, to) = (peer(self.family(), 2), self.destination(2));
                    let bytes = self.own.write(*priority, Path::First, from, to, self.wall);
                    self.round_trip(&Packet {
                        source: from,
                        destination: to,
                        ttl: 255,
                        message: &bytes,
                    });
                }
                _ => {}
            }
        }
        assert!(transitions <= 1, "one event, and more than one transition: {out:?}");
        assert_eq!(self.machine.state(), self.state, "a transition that was not reported: {out:?}");
    }

    fn destination(&self, from: u8) -> IpAddr {
        match self.router.peers.is_empty() {
            true => self.family().group(),
            false => peer(self.family(), if from == 2 { 1 } else { 2 }),
        }
    }

    /// An advertisement of a neighbour, whole or changed in places.
    fn receive(&mut self, input: &mut Input<'_>) {
        let from = input.of(&[1, 3, 2, 4]);
        let (source, destination) = (peer(self.family(), from), self.destination(from));
        let priority = input.byte();
        let mut message =
            self.neighbour.write(priority, Path::First, source, destination, self.wall);
        let changes = input.byte();
        for _ in 0..changes % 4 {
            let (at, value) = (input.below(message.len().max(1)), input.byte());
            match value {
                0xff => message.truncate(at),
                0xfe => message.extend_from_slice(input.bytes(28)),
                value if at < message.len() => message[at] ^= value,
                _ => {}
            }
        }
        if changes & 4 != 0 {
            mend(&mut message, source, destination, changes & 8 != 0);
        }
        let ttl = if changes & 16 != 0 { input.byte() } else { 255 };
        self.take(&Packet { source, destination, ttl, message: &message });
    }

    /// Any bytes; perhaps with the right checksum.
    fn receive_anything(&mut self, input: &mut Input<'_>) {
        let (how, count) = (input.byte(), input.byte());
        let mut message = input.bytes(usize::from(count)).to_vec();
        // Sometimes a family that the message is not of.
        let family = if how & 4 == 0 { self.family() } else { Family::V6 };
        let (source, destination) = (peer(family, 1), self.destination(1));
        if how & 1 != 0 {
            mend(&mut message, source, destination, how & 2 != 0);
        }
        self.take(&Packet { source, destination, ttl: 255, message: &message });
    }

    fn take(&mut self, packet: &Packet<'_>) {
        self.round_trip(packet);
        if let Ok(taken) = self.own.read(packet, Path::First, self.wall) {
            assert_eq!(taken.received.from, packet.source);
            assert!(
                !taken.received.interval.is_zero(),
                "an interval of 0 is waited for without end"
            );
            self.handle(Event::Received(taken.received));
        }
    }

    /// A message that can be read can be written, and is read as the same.
    fn round_trip(&self, packet: &Packet<'_>) {
        let Ok(decoded) = decode(packet) else { return };
        assert_eq!(vrid(packet.message), Some(decoded.advertisement.vrid));
        let written = encode(
            &decoded.advertisement,
            packet.source,
            packet.destination,
            self.router.checksum,
            decoded.proof,
        );
        let again = Packet { message: &written, ..*packet };
        let again = decode(&again).expect("what was written is read");
        assert_eq!(again.advertisement, decoded.advertisement);
        assert_eq!(again.proof, decoded.proof);
        assert_eq!(again.trailer, None);
    }
}

/// Makes the checksum of a message right, of the message alone or with the pseudo-header.
fn mend(message: &mut [u8], source: IpAddr, destination: IpAddr, alone: bool) {
    if message.len() < 8 {
        return;
    }
    message[6..8].fill(0);
    let of = |address: IpAddr| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    let pseudo = of(source) + of(destination) + message.len() as u32 + u32::from(PROTOCOL);
    let check = !fold(sum(message) + if alone { 0 } else { pseudo });
    message[6..8].copy_from_slice(&check.to_be_bytes());
}

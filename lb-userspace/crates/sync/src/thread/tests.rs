//! Over real sockets on the loopback device.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use lb_common::abi::Destination;
use lb_model::desired::{Protocol, ServiceKey};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::{
    Key,
    record::{Flow, Pin},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A node of a test.
struct Node {
    sync: SyncThread,
    reports: UnboundedReceiver<Report>,
    /// What was reported and not looked at yet.
    seen: Vec<Report>,
}

impl Node {
    fn start(config: Config) -> Self {
        let (sender, reports) = unbounded_channel();
        let sync = SyncThread::start(config, sender).expect("it starts");
        Self { sync, reports, seen: Vec::new() }
    }

    /// Waits for a report that `wanted` takes something from; answers what is to be answered.
    fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&Report) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.reports.try_recv() {
                Ok(report) => {
                    let found = wanted(&report);
                    self.seen.push(report);
                    if let Some(found) = found {
                        return found;
                    }
                }
                Err(_) if Instant::now() < end => thread::sleep(Duration::from_micros(50)),
                Err(_) => panic!("no {what}; {:?}", self.seen),
            }
        }
    }

    fn until_report(&mut self, report: &Report) {
        if self.seen.contains(report) {
            return;
        }
        self.until(&format!("{report:?}"), |seen| (seen == report).then_some(()));
    }
}

/// Two addresses of the loopback device, with ports that are free.
fn addresses(one: IpAddr, other: IpAddr) -> [SocketAddr; 2] {
    [one, other].map(|ip| {
        let socket = UdpSocket::bind((ip, 0)).expect("a port");
        socket.local_addr().expect("its number")
    })
}

fn config(listen: SocketAddr, peer: SocketAddr) -> Config {
    Config {
        node: listen.to_string(),
        listen,
        peers: vec![peer],
        multicast: None,
        key: Key([7; 32]),
        rate: NonZeroU32::new(125_000_000).expect("it is more than 0"),
        timeout: Duration::from_secs(1),
    }
}

fn v4() -> [SocketAddr; 2] {
    addresses(Ipv4Addr::new(127, 0, 0, 1).into(), Ipv4Addr::new(127, 0, 0, 2).into())
}

fn service() -> ServiceKey {
    ServiceKey::new(Ipv4Addr::new(10, 0, 0, 100).into(), 443, Protocol::Tcp)
}

fn pin(number: u32) -> Pin {
    Pin {
        flow: Flow::Pinned(
            Ipv4Addr::from(0x0a01_0000 + number / 1000).into(),
            number as u16,
            Destination::ONLY,
        ),
        backend: Ipv4Addr::from(0x0a00_0200 + number % 100).into(),
        flags: 1,
        idle: Duration::from_secs(u64::from(number % 900)),
    }
}

fn pins(numbers: std::ops::Range<u32>) -> Record {
    Record::Pins { service: service(), pins: numbers.map(pin).collect() }
}

/// The CPU time of this process.
fn cpu() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.expect("the clock is there").into()
}

const PEER: PeerId = PeerId(0);

/// Two nodes that have joined and are complete, with this history of the first.
fn joined([one, other]: [SocketAddr; 2], history: Vec<Record>) -> (Node, Node) {
    joined_as([config(one, other), config(other, one)], history)
}

fn joined_as(configs: [Config; 2], history: Vec<Record>) -> (Node, Node) {
    let [mut active, mut backup] = configs.map(Node::start);
    for node in [&active, &backup] {
        node.sync.set_state(NodeState::default());
    }
    active.until_report(&Report::TransferRequested(PEER));
    active.sync.send_transfer(PEER, history);
    backup.until_report(&Report::TransferRequested(PEER));
    backup.sync.send_transfer(PEER, Vec::new());
    active.until_report(&Report::Complete(PEER, true));
    backup.until_report(&Report::Complete(PEER, true));
    (active, backup)
}

/// All records that were reported.
fn reported(node: &Node) -> Vec<Record> {
    let mut all = Vec::new();
    for report in &node.seen {
        if let Report::Records(_, records, _) = report {
            all.extend(records.iter().cloned());
        }
    }
    all
}

fn pins_of(records: &[Record]) -> Vec<Pin> {
    let of = |record: &Record| match record {
        Record::Pins { pins, .. } => pins.clone(),
        _ => Vec::new(),
    };
    records.iter().flat_map(of).collect()
}

#[test]
fn a_quarter_of_a_million_pins_arrive_whole() {
    const PINS: u32 = 262_144;
    let [one, other] = v4();
    let (start, used) = (Instant::now(), cpu());
    let (active, backup) = joined([one, other], vec![pins(0..PINS)]);
    let (took, used) = (start.elapsed(), cpu() - used);
    let mut pins = pins_of(&reported(&backup));
    pins.sort_by_key(|pin| pin.flow);
    assert_eq!(pins.len(), PINS as usize);
    let mut expected: Vec<_> = (0..PINS).map(pin).collect();
    expected.sort_by_key(|pin| pin.flow);
    assert!(pins == expected, "some are others");
    let counters = active.sync.status()[0].counters;
    let per_pin = counters.bytes_sent as f64 / f64::from(PINS);
    println!("{PINS} pins: {took:?}, {used:?} of CPU on both sides, {per_pin:.2} bytes each");
    println!("{counters:?}");
}

/// A thread that sends back what it gets, and how long that takes: two wake-ups and two datagrams.
struct Echo(UdpSocket);

impl Echo {
    fn start() -> Self {
        let [there, here] = v4().map(|at| UdpSocket::bind(at).expect("a socket"));
        here.connect(there.local_addr().expect("an address")).expect("it is known");
        here.set_read_timeout(Some(PATIENCE)).expect("it is set");
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((len, from)) = there.recv_from(&mut buffer) {
                if len == 0 || there.send_to(&buffer[..len], from).is_err() {
                    return;
                }
            }
        });
        Self(here)
    }

    fn round_trip(&self) -> Duration {
        let start = Instant::now();
        self.0.send(&[1; 64]).expect("it is sent");
        self.0.recv(&mut [0; 64]).expect("it comes back");
        start.elapsed()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.send(&[]);
    }
}

#[test]
fn what_is_published_arrives_almost_as_soon_as_a_datagram() {
    const TIMES: u32 = 1_000;
    let (active, mut backup) = joined(v4(), Vec::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("it can be built");
    let echo = Echo::start();
    // The least counts: with others on the CPUs most take longer.
    let (mut least, mut floor) = (Duration::MAX, Duration::MAX);
    for number in 0..TIMES {
        floor = floor.min(echo.round_trip());
        let start = Instant::now();
        active.sync.publish(u64::from(number), vec![pins(number..number + 1)]);
        let mut arrived = false;
        while !arrived {
            let report = async { tokio::time::timeout(PATIENCE, backup.reports.recv()).await };
            let report = runtime.block_on(report).expect("it comes").expect("the link runs");
            arrived = matches!(report, Report::Records(..));
            backup.seen.push(report);
        }
        least = least.min(start.elapsed());
    }
    println!("publish to records {least:?}, a datagram and its answer {floor:?}");
    assert!(least < 8 * floor, "{least:?}, where a datagram and its answer take {floor:?}");
    assert_eq!(pins_of(&reported(&backup)), (0..TIMES).map(pin).collect::<Vec<_>>());
}

#[test]
fn nodes_talk_over_ipv6() {
    let [one, other] = addresses("::1".parse().unwrap(), "::1".parse().unwrap());
    let (_active, backup) = joined([one, other], vec![pins(0..1000)]);
    assert_eq!(pins_of(&reported(&backup)).len(), 1000);
    let status = &backup.sync.status()[0];
    assert!(status.connected && status.complete_here, "{status:?}");
    assert_eq!(status.node.as_deref(), Some(one.to_string().as_str()));
}

#[test]
fn a_node_that_ends_says_so_and_can_come_back() {
    let [one, other] = v4();
    // A timeout that is longer than the test waits.
    let patient = |listen, peer| Config { timeout: 2 * PATIENCE, ..config(listen, peer) };
    let (active, mut backup) =
        joined_as([patient(one, other), patient(other, one)], vec![pins(0..10)]);
    drop(active);
    backup.until("goodbye", |report| matches!(report, Report::Lost(..)).then_some(()));
    backup.seen.clear();
    let active = Node::start(config(one, other));
    active.sync.set_state(NodeState::default());
    backup.until_report(&Report::Joined(PEER));
}

#[test]
fn another_key_is_told_on_both_sides() {
    let [one, other] = v4();
    let mut active = Node::start(config(one, other));
    let mut backup = Node::start(Config { key: Key([8; 32]), ..config(other, one) });
    for node in [&mut active, &mut backup] {
        let why = node.until("report", |report| match report {
            Report::Unreadable(PEER, why) => Some(why.clone()),
            _ => None,
        });
        assert!(why.contains("is the key the same on both nodes?"), "{why}");
        let status = &node.sync.status()[0];
        assert_eq!((status.connected, status.refused.as_ref()), (false, Some(&why)));
    }
}

/// As a node that is upgraded after this one, or before.
#[test]
fn a_peer_of_another_version_is_told_of_until_it_is_of_this_one() {
    let [one, other] = v4();
    let mut node = Node::start(config(one, other));
    node.sync.set_state(NodeState::default());
    let old = UdpSocket::bind(other).expect("it is free");
    old.set_read_timeout(Some(PATIENCE)).expect("a socket has one");
    // Its version is in what all versions begin with, so that either can report what is wrong.
    let mut datagram = [0; 200];
    let (len, _) = old.recv_from(&mut datagram).expect("it sends its hello");
    assert_eq!((&datagram[..2], datagram[2]), (&b"ls"[..], wire::VERSION));
    datagram[2] = wire::VERSION - 1;
    old.send_to(&datagram[..len], one).expect("it is sent");
    let why = node.until("report", |report| match report {
        Report::Unreadable(PEER, why) => Some(why.clone()),
        _ => None,
    });
    let (before, own) = (wire::VERSION - 1, wire::VERSION);
    let versions = format!("version {before} of the protocol, and this node speaks version {own}");
    assert!(why.contains(&versions), "{why}");
    assert!(why.contains("run the same release on both nodes"), "{why}");
    let status = &node.sync.status()[0];
    assert_eq!((status.connected, status.refused.as_ref()), (false, Some(&why)));
    drop(old);
    let _upgraded = Node::start(config(other, one));
    node.until_report(&Report::Joined(PEER));
    assert_eq!(node.sync.status()[0].refused, None);
}

#[test]
fn an_address_that_another_program_has_is_an_error() {
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("its number");
    let (sender, _reports) = unbounded_channel();
    let peer = "127.0.0.2:9".parse().unwrap();
    let error = SyncThread::start(config(listen, peer), sender).expect_err("it is taken");
    assert!(format!("{error:#}").contains(&format!("listen at {listen}")), "{error:#}");
}

#[test]
fn nonsense_is_refused() {
    let refused = |config: Config| {
        let (sender, _reports) = unbounded_channel();
        format!("{:#}", SyncThread::start(config, sender).expect_err("it is nonsense"))
    };
    let [one, other] = v4();
    let six = "[::1]:3780".parse().unwrap();
    assert!(refused(config(one, one)).contains("this node itself"));
    assert!(refused(config(one, six)).contains("not of the family"));
    let twice = Config { peers: vec![other, other], ..config(one, other) };
    assert!(refused(twice).contains("twice"));
    let group = Some((other, "lo".to_owned()));
    let no_group = Config { multicast: group, ..config(one, other) };
    assert!(refused(no_group).contains("no multicast group"));
}

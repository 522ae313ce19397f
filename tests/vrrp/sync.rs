//! Nodes that synchronise their history over a real link: by multicast, with losses, and with an
//! address that comes late.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use kit::{is_root, namespace::Namespace, wait};
use lb_api::peers::PeerStatus;
use lb_common::abi::Destination;
use lb_model::desired::{Protocol, ServiceKey};
use lb_sync::{
    Config, Key, NodeState, PeerId, Peers as _, Record, Report, SyncThread,
    record::{Flow, Pin},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 3780;

/// A switch with hosts; each has `eth0` with `10.77.0.N` and `fd77::N`, N from 1 on.
struct Net {
    _switch: Namespace,
    hosts: Vec<Namespace>,
}

impl Net {
    fn new(hosts: usize) -> Self {
        let switch = Namespace::new("switch").expect("a namespace");
        switch.ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up").expect("a bridge");
        let host = |number: usize| {
            let host = Namespace::new(&format!("node{number}")).expect("a namespace");
            let (name, switch_name) = (host.name(), switch.name());
            let line = format!(
                "link add eth0 netns {name} type veth peer name p{number} netns {switch_name}"
            );
            switch.ip(&line).expect("a link");
            switch.ip(&format!("link set p{number} master br0 up")).expect("a port");
            host.ip("link set eth0 up").expect("it is up");
            host
        };
        let hosts = (1..=hosts).map(host).collect();
        Self { _switch: switch, hosts }
    }

    /// Gives a host its addresses.
    fn address(&self, host: usize) {
        let number = host + 1;
        self.hosts[host]
            .ip(&format!(
                "addr add 10.77.0.{number}/24 dev eth0\naddr add fd77::{number}/64 dev eth0 nodad"
            ))
            .expect("addresses");
    }
}

/// The output of `nft` in a host.
trait Nft {
    fn nft(&self, line: &str) -> String;
}

impl Nft for Namespace {
    fn nft(&self, line: &str) -> String {
        let output = self.command("nft").arg(line).output().expect("nft is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("it is text")
    }
}

fn listen(host: usize, v6: bool) -> SocketAddr {
    let number = host as u8 + 1;
    let ip = if v6 {
        IpAddr::V6([0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)].into())
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 77, 0, number))
    };
    SocketAddr::new(ip, PORT)
}

struct Node {
    sync: SyncThread,
    reports: UnboundedReceiver<Report>,
    /// Pins that were received, of each peer.
    pins: Vec<Vec<Pin>>,
    complete: Vec<bool>,
    history: Vec<Record>,
}

impl Node {
    fn start(net: &Net, host: usize, v6: bool, group: Option<&str>, history: Vec<Record>) -> Self {
        let peers = (0..net.hosts.len()).filter(|peer| *peer != host);
        let peers: Vec<_> = peers.map(|peer| listen(peer, v6)).collect();
        let config = Config {
            node: format!("node{host}"),
            listen: listen(host, v6),
            multicast: group.map(|group| (group.parse().expect("a group"), "eth0".into())),
            key: Key([7; 32]),
            rate: NonZeroU32::new(12_500_000).expect("it is more than 0"),
            timeout: Duration::from_secs(1),
            peers,
        };
        let others = net.hosts.len() - 1;
        let (sender, reports) = unbounded_channel();
        let start = || SyncThread::start(config, sender).expect("it starts");
        let sync = net.hosts[host].enter(start).expect("the namespace is there");
        sync.set_state(NodeState::default());
        let (pins, complete) = (vec![Vec::new(); others], vec![false; others]);
        Self { sync, reports, pins, complete, history }
    }

    /// Handles reports as a daemon does.
    fn live(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            match report {
                Report::TransferRequested(peer) => {
                    self.sync.send_transfer(peer, self.history.clone())
                }
                Report::TransferBegins(PeerId(peer)) => self.pins[usize::from(peer)].clear(),
                Report::Complete(PeerId(peer), complete) => {
                    self.complete[usize::from(peer)] = complete;
                }
                Report::Records(PeerId(peer), records, mark) => {
                    self.sync.acknowledge(PeerId(peer), mark);
                    for record in records {
                        let Record::Pins { pins, .. } = record else { panic!("{record:?}") };
                        self.pins[usize::from(peer)].extend(pins);
                    }
                }
                _ => {}
            }
        }
    }

    fn publish(&mut self, pins: Record) {
        self.history.push(pins.clone());
        self.sync.publish(self.history.len() as u64, vec![pins]);
    }

    fn status(&self) -> Vec<PeerStatus> {
        self.sync.status()
    }
}

fn pins(numbers: std::ops::Range<u32>) -> Record {
    let vip = Ipv4Addr::new(10, 0, 0, 100).into();
    let service = ServiceKey::new(vip, 443, Protocol::Tcp);
    let pin = |number| Pin {
        flow: Flow::Pinned(Ipv4Addr::from(0x0a01_0000 + number).into(), 1000, Destination::ONLY),
        backend: Ipv4Addr::from(0x0a00_0200 + number % 9).into(),
        flags: 1,
        idle: Duration::from_secs(1),
    };
    Record::Pins { service, pins: numbers.map(pin).collect() }
}

/// Waits until every node is complete and knows so many pins of its first peer.
fn until_known(nodes: &mut [Node], known: usize) {
    wait::until_true(PATIENCE, "everybody knows everything", || {
        nodes.iter_mut().for_each(Node::live);
        Ok(nodes.iter().all(|node| node.complete.iter().all(|complete| *complete))
            && nodes[1..].iter().all(|node| node.pins[0].len() == known))
    })
    .expect("they agree in the end");
}

fn by_multicast(v6: bool, group: &str) {
    if !is_root() {
        return;
    }
    let net = Net::new(3);
    (0..3).for_each(|host| net.address(host));
    let mut nodes: Vec<_> = (0..3)
        .map(|host| {
            let history = if host == 0 { vec![pins(0..5000)] } else { Vec::new() };
            Node::start(&net, host, v6, Some(group), history)
        })
        .collect();
    until_known(&mut nodes, 5000);
    let family = if v6 { "ip6" } else { "ip" };
    for host in &net.hosts[1..] {
        host.nft(&format!(
            "add table inet count; add chain inet count in {{ type filter hook input priority 0; }}; \
             add rule inet count in {family} daddr {} counter",
            group.parse::<SocketAddr>().expect("a group").ip()
        ));
    }
    for step in 50..100 {
        nodes[0].publish(pins(step * 100..step * 100 + 100));
    }
    until_known(&mut nodes, 10_000);
    for host in &net.hosts[1..] {
        let counted = host.nft("list chain inet count in");
        let packets = counted.split_once("counter packets ").expect("a counter").1;
        let packets: u32 =
            packets.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
        assert!(packets >= 50, "only {packets} packets came by the group");
    }
    let flows = |node: &Node| {
        node.pins[0].iter().map(|pin| pin.flow).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(flows(&nodes[1]).len(), 10_000);
    assert_eq!(flows(&nodes[1]), flows(&nodes[2]));
}

#[test]
fn news_reach_all_peers_by_one_ipv4_multicast() {
    by_multicast(false, "239.0.0.7:3781");
}

#[test]
fn news_reach_all_peers_by_one_ipv6_multicast() {
    by_multicast(true, "[ff15::7]:3781");
}

#[test]
fn history_arrives_over_a_link_that_loses_a_fifth_both_ways() {
    if !is_root() {
        return;
    }
    let net = Net::new(2);
    (0..2).for_each(|host| net.address(host));
    for host in &net.hosts {
        host.nft(
            "add table inet loss; add chain inet loss in { type filter hook input priority 0; }; \
             add rule inet loss in udp dport 3780 numgen random mod 100 < 20 drop",
        );
    }
    let mut nodes = [
        Node::start(&net, 0, false, None, vec![pins(0..50_000)]),
        Node::start(&net, 1, false, None, Vec::new()),
    ];
    until_known(&mut nodes, 50_000);
    for step in 500..600 {
        nodes[0].publish(pins(step * 100..step * 100 + 100));
    }
    until_known(&mut nodes, 60_000);
    let counters = nodes[0].status()[0].counters;
    assert!(counters.retransmissions > 0, "{counters:?}");
}

#[test]
fn an_address_that_comes_late_is_waited_for() {
    if !is_root() {
        return;
    }
    let net = Net::new(2);
    net.address(0);
    let mut nodes = [
        Node::start(&net, 0, false, None, vec![pins(0..10)]),
        Node::start(&net, 1, false, None, Vec::new()),
    ];
    let refused = nodes[1].status()[0].refused.clone().expect("it waits");
    assert_eq!(refused, "10.77.0.2 is not an address of this node yet");
    net.address(1);
    until_known(&mut nodes, 10);
    assert_eq!(nodes[1].status()[0].refused, None);
}

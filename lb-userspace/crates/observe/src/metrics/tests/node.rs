//! A node that has everything that can be exported.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    num::NonZeroU8,
    time::{Duration, UNIX_EPOCH},
};

use lb_api::{
    check_status::{CheckStatus, Counts, Histogram, Load},
    peers::{PeerCounters, PeerStatus},
    routers::{Counters, RouterStatus},
    status::{
        Backend, Connections, Count, Interface, Peer, Service, Standing, Status, Totals, Usage,
        Writes,
    },
};
use lb_common::{
    tx_errors,
    verdict::{Drop, Pass},
};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Mode, Protocol, ServiceKey, UdpPolicy},
    router::{Family, RouterKey, State},
    seen::Condition,
};

fn check() -> CheckStatus {
    let mut latency = Histogram::default();
    for micros in [90, 1_200, 3_000_000] {
        latency.add(Duration::from_micros(micros));
    }
    CheckStatus {
        kind: "http".into(),
        condition: Condition::Up,
        assumed: false,
        waiting: false,
        held_secs: None,
        suspect: false,
        last: Some("ok".into()),
        last_secs: Some(1),
        since: 1_700_000_000,
        latency_us: Some(1_200),
        counts: Counts { ok: 3, failed: 2, unknown: 1 },
        latency,
        went_up: 2,
        went_down: 1,
        suspicions: 4,
        against: 0,
        silent: 0,
        rise: 2,
        fall: 3,
    }
}

fn backends() -> BTreeMap<BackendAddress, Backend> {
    let deadline = None;
    let up = || Backend {
        weight: 2,
        id: 1,
        slots: 100,
        sent: Count { packets: 1_000, bytes: 60_000 },
        new_flows: 50,
        check: Some(check()),
        ..Backend::default()
    };
    let all = [
        up(),
        Backend { backup: true, ..up() },
        Backend { held: true, ..up() },
        Backend { condition: Condition::SoftDown, ..up() },
        Backend { condition: Condition::HardDown, unusable: Some("it refuses".into()), ..up() },
        Backend { unusable: Some("no answer".into()), ..up() },
        Backend { admin: Admin::Draining { deadline }, ..up() },
        Backend { admin: Admin::Removing { deadline }, ..up() },
        Backend { admin: Admin::Disabled, ..up() },
        Backend { admin: Admin::Down, unusable: Some("taken down".into()), ..up() },
        Backend {
            name: Some("web21".into()),
            slow_start_permille: Some(500),
            suspect: true,
            ..up()
        },
    ];
    (11..).map(|n| BackendAddress::from([10, 0, 0, n])).zip(all).collect()
}

fn service(port: u16, udp_policy: Option<UdpPolicy>) -> Service {
    let protocol = if udp_policy.is_some() { Protocol::Udp } else { Protocol::Tcp };
    let mut service = Service {
        key: ServiceKey::new(IpAddr::from([10, 0, 0, 100]), port, protocol),
        mode: Mode::Dsr,
        udp_policy,
        ring_slots: 65_537,
        slots_in_flux: 3,
        idle_timeout_secs: 900,
        standing: Standing { up: 5, enabled: 7, ready: true, ..Standing::default() },
        totals: Totals { sent: Count { packets: 20_000, bytes: 900_000 }, new_flows: 700 },
        target_port: None,
        backends: backends(),
    };
    if udp_policy.is_some() {
        service.mode = Mode::Nat;
        for backend in service.backends.values_mut() {
            backend.check = None;
            backend.returned = Some(Count { packets: 900, bytes: 120_000 });
        }
    }
    if port == 5432 {
        service.mode = Mode::Nat;
        for backend in service.backends.values_mut() {
            backend.returned = Some(Count { packets: 700, bytes: 90_000 });
            backend.connections = Some(Connections { open: 7, accepted: 90, refused: 2 });
            backend.local_sockets = Some(3);
        }
    }
    service
}

fn router() -> RouterStatus {
    RouterStatus {
        name: "main".into(),
        key: RouterKey { family: Family::V4, vrid: NonZeroU8::MIN },
        interface: "eth0".into(),
        source: None,
        group: None,
        state: State::Active,
        since: UNIX_EPOCH + Duration::from_millis(1_700_000_000_250),
        cause: "nobody else is".into(),
        base_priority: 100,
        priority: 90,
        interval_millis: 100,
        active: None,
        addresses: vec!["10.0.0.100/32".into()],
        problems: vec!["eth1 is down".into()],
        holds_back: None,
        wants: false,
        lowered: false,
        counters: Counters { sent: 7, transitions: 2, ..Counters::default() },
    }
}

fn peer() -> Peer {
    let session = PeerStatus {
        address: "10.0.0.3:3780".parse().expect("an address"),
        node: Some("lb2".into()),
        connected: true,
        since: None,
        complete_here: true,
        complete_there: false,
        follows: true,
        refused: None,
        round_trip_micros: Some(210),
        counters: PeerCounters { packets_sent: 5, bytes_sent: 500, ..PeerCounters::default() },
    };
    Peer { session, routers: Vec::new(), draining: false, problems: vec!["web differs".into()] }
}

/// A node with services, virtual routers and a peer; backends in every state.
pub fn node() -> Status {
    let count = Count { packets: 1, bytes: 60 };
    let interface = |name: &str, mode: &str| Interface {
        name: name.into(),
        ifindex: 2,
        mode: mode.into(),
        attached: true,
        others: Vec::new(),
    };
    Status {
        version: "0.1.0".into(),
        uptime_secs: 60,
        interfaces: vec![interface("eth0", "native"), interface("eth1", "generic")],
        services: [
            ("web".to_owned(), service(80, None)),
            ("pg".to_owned(), service(5432, None)),
            ("dns".to_owned(), service(53, Some(UdpPolicy::Oneshot))),
        ]
        .into(),
        passed: Pass::ALL.iter().map(|why| (why.name().to_owned(), count)).collect(),
        dropped: Drop::ALL
            .iter()
            .map(|why| why.name())
            .chain(tx_errors::Reason::ALL.map(tx_errors::Reason::name))
            .map(|why| (why.to_owned(), count))
            .collect(),
        pins: Usage { used: 5, capacity: 262_144 },
        services_used: Usage { used: 2, capacity: 512 },
        backends_used: Usage { used: 22, capacity: 4_096 },
        vrrp: vec![router()],
        peers: vec![peer()],
        events: [("backend_up".to_owned(), 3)].into(),
        http: vec![lb_api::status::Listener {
            address: ([127, 0, 0, 1], 9105).into(),
            obstacle: None,
        }],
        writes: Writes { changes: 9, slots_moved: 3, ..Writes::default() },
        checks: Load { backends: 11, limit: 512, ..Load::default() },
        ..Status::default()
    }
}

//! The statuses that the tests use.

use std::{net::IpAddr, time::SystemTime};

use lb_api::{
    routers::{Counters, RouterStatus},
    status::{Backend, Count, Interface, Service, Standing, Status, Totals, Usage},
};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Mode, Protocol, ServiceKey},
    router::{Family, RouterKey, State},
    seen::Condition,
};

fn backend(slots: u32, packets: u64) -> Backend {
    Backend {
        weight: 1,
        slots,
        pins: 7,
        sent: Count { packets, bytes: packets * 100 },
        new_flows: packets / 10,
        interface: Some("eth0".into()),
        ..Backend::default()
    }
}

fn service(port: u16, protocol: Protocol, backends: Vec<(u8, Backend)>) -> Service {
    let at = |last: u8| IpAddr::from([10, 0, 0, last]);
    let mut totals = Totals::default();
    for (_, backend) in &backends {
        totals.add(Totals { sent: backend.sent, new_flows: backend.new_flows });
    }
    Service {
        key: ServiceKey::new(at(100), port, protocol),
        mode: Mode::Dsr,
        udp_policy: None,
        ring_slots: 1_000,
        slots_in_flux: 0,
        idle_timeout_secs: 900,
        standing: Standing { up: 1, enabled: 1, ready: true, ..Standing::default() },
        totals,
        target_port: None,
        backends: backends.into_iter().map(|(last, backend)| (at(last).into(), backend)).collect(),
    }
}

/// Two services, three of whose backends have something.
pub(super) fn node() -> Status {
    let down = Backend { condition: Condition::HardDown, ..backend(0, 0) };
    let draining = Backend { admin: Admin::Draining { deadline: None }, ..backend(0, 500) };
    let web =
        vec![(11, backend(600, 1_000)), (12, backend(400, 2_000)), (13, down), (14, draining)];
    let router = RouterStatus {
        name: "main".into(),
        key: RouterKey { family: Family::V4, vrid: 51.try_into().expect("not zero") },
        interface: "eth0".into(),
        source: None,
        group: None,
        state: State::Active,
        since: SystemTime::UNIX_EPOCH,
        cause: "no other router was heard".into(),
        base_priority: 150,
        priority: 150,
        interval_millis: 1_000,
        active: None,
        addresses: vec!["10.0.0.100/32".into()],
        problems: Vec::new(),
        holds_back: None,
        wants: false,
        lowered: false,
        counters: Counters::default(),
    };
    Status {
        version: "0.1.0".into(),
        uptime_secs: 3_700,
        interfaces: vec![Interface {
            name: "eth0".into(),
            ifindex: 2,
            mode: "native".into(),
            attached: true,
            others: Vec::new(),
        }],
        services: [
            ("web".into(), service(80, Protocol::Tcp, web)),
            ("dns".into(), service(53, Protocol::Udp, vec![(11, backend(1_000, 10))])),
        ]
        .into(),
        dropped: [("no_backend".into(), Count { packets: 5, bytes: 300 })].into(),
        pins: Usage { used: 12_345, capacity: 262_144 },
        vrrp: vec![router],
        ..Status::default()
    }
}

/// Lets so many packets go to a backend of it.
pub(super) fn send(status: &mut Status, name: &str, last: u8, packets: u64) {
    let sent = Count { packets, bytes: packets * 100 };
    let more = Totals { sent, new_flows: packets / 10 };
    let service = status.services.get_mut(name).expect("it is there");
    service.totals.add(more);
    let backend = service.backends.get_mut(&BackendAddress::from([10, 0, 0, last]));
    let backend = backend.expect("it is there");
    let mut all = Totals { sent: backend.sent, new_flows: backend.new_flows };
    all.add(more);
    (backend.sent, backend.new_flows) = (all.sent, all.new_flows);
}

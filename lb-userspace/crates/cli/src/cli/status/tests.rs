//! The printed status.

use lb_api::status::{Drain, Interface, Standing, Unseen};
use lb_model::desired::{Mode, Protocol, ServiceKey};

use super::*;

fn backend_with(admin: Admin, unusable: Option<&str>) -> Backend {
    Backend {
        weight: 2,
        admin,
        unusable: unusable.map(str::to_owned),
        interface: unusable.is_none().then(|| "eth0".to_owned()),
        mac: None,
        id: 1,
        slots: 500,
        base_slots: 0,
        pins: 12_345,
        sent: Count { packets: 1_000_000, bytes: 3 << 20 },
        new_flows: 7,
        ..Backend::default()
    }
}

fn shown(one: &Backend) -> String {
    backend("web", &OneBackend { address: [10, 0, 0, 11].into(), backend: one.clone() })
}

fn node() -> Status {
    let mut drained = backend_with(Admin::Draining { deadline: None }, None);
    (drained.slots, drained.pins) = (0, 0);
    let service = Service {
        key: ServiceKey::new(std::net::IpAddr::from([10, 0, 0, 100]), 80, Protocol::Tcp),
        mode: Mode::Dsr,
        udp_policy: None,
        ring_slots: 1_009,
        slots_in_flux: 100,
        idle_timeout_secs: 900,
        standing: Standing { up: 1, enabled: 2, ready: true, ..Standing::default() },
        totals: Totals { sent: Count { packets: 3_000_000, bytes: 9 << 20 }, new_flows: 21 },
        target_port: None,
        backends: [
            ([10, 0, 0, 11].into(), backend_with(Admin::Enabled, None)),
            ([10, 0, 0, 12].into(), backend_with(Admin::Enabled, Some("no answer"))),
            ([10, 0, 0, 13].into(), drained),
        ]
        .into(),
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
        services: [("web".to_owned(), service)].into(),
        passed: [("not_ip".to_owned(), Count::default())].into(),
        dropped: [("no_backend".to_owned(), Count { packets: 5, bytes: 300 })].into(),
        pins: Usage { used: 12_345, capacity: 262_144 },
        services_used: Usage { used: 1, capacity: 512 },
        backends_used: Usage { used: 3, capacity: 4_096 },
        last_error: None,
        ..Status::default()
    }
}

#[test]
fn the_overview_shows_all_that_matters() {
    let expected = "\
lbd 0.1.0, up 1h1m
interface eth0: XDP native, attached
services 1 of 512, backends 3 of 4096, pins 12345 of 262144

service web: tcp 10.0.0.100:80, dsr, 1009 slots, idle timeout 15m, 9.9 % of the ring in flux
  BACKEND    STATE                    WEIGHT   SHARE  PACKETS     BYTES  NEW FLOWS   PINS  INTERFACE
  10.0.0.11  up                            2  49.6 %    1.00M  3.00 MiB          7  12.3k  eth0
  10.0.0.12  unresolved (no answer)        2  49.6 %    1.00M  3.00 MiB          7  12.3k  -
  10.0.0.13  draining (no flow left)       2   0.0 %    1.00M  3.00 MiB          7      0  eth0

dropped:
  REASON      PACKETS  BYTES
  no_backend        5  300 B

passed to the node: none
";
    assert_eq!(overview(&node()), expected);
}

#[test]
fn services_are_summed() {
    let expected = "\
SERVICE  PROTOCOL  VIP            MODE  BACKENDS  USABLE  PACKETS     BYTES  NEW FLOWS  IN FLUX
web      tcp       10.0.0.100:80  dsr          3       1    3.00M  9.00 MiB         21    9.9 %
";
    assert_eq!(services(&node().services), expected);
}

#[test]
fn trouble_stands_out() {
    let mut node = node();
    node.interfaces[0].attached = false;
    node.last_error = Some("no room".into());
    node.state_file_error = Some("read-only file system".into());
    let service = node.services.get_mut("web").expect("it is there");
    service.backends.retain(|_, backend| backend.unusable.is_some());
    let text = overview(&node);
    for expected in [
        "NOT ATTACHED",
        "LAST WRITE OF MAPS FAILED: no room",
        "CHANGES ARE NOT KEPT over a restart of lbd: read-only file system",
        "NO BACKEND TAKES NEW FLOWS",
    ] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_deadline_is_told() {
    let deadline = Some(SystemTime::now() + Duration::from_millis(90_500));
    let backend = backend_with(Admin::Removing { deadline }, None);
    assert_eq!(state(&backend), "removing (at most 1m30s)");
}

#[test]
fn a_drain_says_how_many_flows_are_closing_and_when_it_ends() {
    let drain = Drain {
        silence_secs: 90,
        heard_secs: Some(3),
        ends_in_secs: Some(898),
        ..Drain::default()
    };
    let mut one = Backend {
        pins: 1_240,
        pins_closing: 1_237,
        base_slots: 512,
        drain: Some(drain),
        ..backend_with(Admin::Draining { deadline: None }, None)
    };
    one.slots = 0;
    assert_eq!(state(&one), "draining (1.24k pins closing)");
    let text = shown(&one);
    for expected in [
        "1240, 1237 of them closing",
        "3 pinned flows and 1.24k closing, older flows possible in 512 slots; last packet 3s ago; \
         over for certain in 14m58s if all stay silent",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let heard_secs = Some(91);
    one.drain = Some(Drain { estimated: true, heard_secs, ends_in_secs: Some(880), ..drain });
    one.pins_closing = one.pins;
    assert_eq!(state(&one), "draining (silent for 1m30s, 1.24k pins closing)");
    let text = shown(&one);
    let expected = "no flow left with a packet for 1m30s (estimated: safe to stop unless a client is \
                    silent for longer; proven in 14m40s)";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_backend_whose_both_directions_pass_the_node_says_how_many_connections_it_has() {
    let mut one = Backend {
        pins: 2,
        base_slots: 512,
        drain: Some(Drain::default()),
        connections: Some(Connections { open: 5, accepted: 1_300, refused: 2 }),
        ..backend_with(Admin::Draining { deadline: None }, None)
    };
    one.slots = 0;
    let text = shown(&one);
    for expected in [
        "5 open; 1300 accepted, 2 refused so far",
        "5 open connections, 2 pinned flows, older flows possible in 512 slots",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let ends_in_secs = Some(600);
    one.drain = Some(Drain { estimated: true, closed: true, ends_in_secs, ..Drain::default() });
    assert_eq!(state(&one), "draining (no connection left)");
    let text = shown(&one);
    let expected =
        "no connection left: both ends have closed all that passed this node; proven in 10m";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_backup_that_is_told_nothing_says_so() {
    let mut one = backend_with(Admin::Draining { deadline: None }, None);
    one.drain = Some(Drain { unseen: Some(Unseen::Unsynced), ..Drain::default() });
    (one.slots, one.base_slots, one.pins) = (0, 0, 0);
    assert_eq!(state(&one), "draining (only the Active sees its flows)");
    let text = shown(&one);
    assert!(text.contains("unknown: only the Active sees the traffic"), "{text}");
    one.admin = Admin::Enabled;
    assert!(!state(&one).contains("Active"), "it does not drain");
}

//! The printed routers and peers.

use std::net::IpAddr;

use super::*;
use lb_api::peers::{PeerCounters, PeerStatus};
use lb_api::routers::{ActiveRouter, Counters};
use lb_api::status::PeerRouter;
use lb_model::router::{Family, RouterKey};

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn router(name: &str, state: State) -> RouterStatus {
    RouterStatus {
        name: name.into(),
        key: RouterKey { family: Family::V4, vrid: 51.try_into().expect("not zero") },
        interface: "eth0".into(),
        source: None,
        group: None,
        state,
        since: now() - Duration::from_secs(90),
        cause: "no other router was heard".into(),
        base_priority: 150,
        priority: 150,
        interval_millis: 1_000,
        active: None,
        addresses: vec!["10.0.0.100/32".into(), "10.0.0.101/24".into()],
        problems: Vec::new(),
        holds_back: None,
        wants: false,
        lowered: false,
        counters: Counters::default(),
    }
}

fn peer(connected: bool) -> Peer {
    let main = router("main", State::Backup);
    Peer {
        session: PeerStatus {
            address: "10.0.0.3:3780".parse().expect("an address"),
            node: Some("lb2".into()),
            connected,
            since: Some(now() - Duration::from_secs(7)),
            complete_here: true,
            complete_there: true,
            follows: true,
            refused: None,
            round_trip_micros: Some(210),
            counters: PeerCounters { bytes_sent: 2_048, full_syncs: 2, ..Default::default() },
        },
        routers: vec![PeerRouter {
            name: Some("main".into()),
            key: main.key,
            state: State::Backup,
            priority: 100,
        }],
        draining: false,
        problems: Vec::new(),
    }
}

#[test]
fn who_is_active_is_seen_at_a_glance() {
    let mut second = router("second", State::Backup);
    second.priority = 100;
    second.active = Some(ActiveRouter { address: IpAddr::from([10, 0, 0, 3]), priority: 120 });
    second.cause = "10.0.0.3 is active".into();
    second.holds_back = Some("not all flows of lb2 are known here".into());
    second.problems = vec!["interface eth1 is down".into()];
    let pair =
        Pair { routers: vec![router("main", State::Active), second], peers: vec![peer(true)] };
    let expected = "\
ROUTER  ID            INTERFACE  STATE    PRIORITY  SINCE  ACTIVE          ADDRESSES
main    IPv4 VRID 51  eth0       active        150  1m30s  this node       10.0.0.100/32, 10.0.0.101/24
second  IPv4 VRID 51  eth0       backup  100 (150)  1m30s  10.0.0.3 (120)  10.0.0.100/32, 10.0.0.101/24
main is active: no other router was heard
second is backup: 10.0.0.3 is active
second: PROBLEM: interface eth1 is down
second keeps from preempting: not all flows of lb2 are known here
peer lb2 (10.0.0.3:3780): connected for 7s, all flows are known on both sides; there: main backup (priority 100)
";
    assert_eq!(status(&pair, now()), expected);
}

#[test]
fn news_that_are_on_their_way_are_no_flows_that_a_peer_lacks() {
    let mut behind = peer(true);
    (behind.session.complete_there, behind.session.follows) = (false, true);
    assert_eq!(
        (flows(&behind), peer_state(&behind)),
        ("all flows are known on both sides", "synced")
    );
    behind.session.follows = false;
    assert_eq!(flows(&behind), "IT DOES NOT KNOW ALL FLOWS OF THIS NODE");
}

#[test]
fn trouble_with_a_peer_stands_out() {
    let mut lacking = peer(true);
    (lacking.session.complete_there, lacking.session.follows) = (false, false);
    lacking.draining = true;
    lacking.problems = vec!["web: mode differs".into()];
    lacking.session.refused = Some("another version".into());
    let text = peers(&[lacking, peer(false)], now());
    for expected in [
        "IT DOES NOT KNOW ALL FLOWS OF THIS NODE, draining; there: main backup",
        "\n  PROBLEM: another version\n  PROBLEM: web: mode differs\n",
        "peer lb2 (10.0.0.3:3780): GONE for 7s",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let mut never = peer(false);
    (never.session.since, never.session.node) = (None, None);
    never.routers.clear();
    assert_eq!(peers(&[never], now()), "peer 10.0.0.3:3780: NOT CONNECTED\n");
}

#[test]
fn sync_is_counted() {
    let expected = "\
PEER  ADDRESS        STATE      SINCE  KNOWN HERE  KNOWN THERE  ROUND TRIP      SENT  PIECES SENT  RECEIVED  GAPS  FULL SYNCS
lb2   10.0.0.3:3780  connected     7s  all         all              210 µs  2.00 KiB            0         0     0           2
";
    assert_eq!(sync_status(&[peer(true)], now()), expected);
    let mut strange = peer(true);
    strange.session.counters.replayed = 3;
    let text = sync_status(&[strange], now());
    assert!(text.ends_with("lb2: 3 packets not taken: not authentic, or repeated\n"), "{text}");
    assert_eq!(sync_status(&[], now()), "no peers; add [sync] to the configuration\n");
}

#[test]
fn the_overview_has_a_line_for_routers_and_one_for_peers() {
    let mut faulty = router("second", State::Fault);
    faulty.problems = vec!["interface eth1 is down".into(), "forwarding".into()];
    let mut unlike = peer(true);
    unlike.problems = vec!["web: mode differs".into()];
    let mut behind = peer(true);
    behind.session.complete_here = false;
    let status = Status {
        vrrp: vec![router("main", State::Active), faulty],
        peers: vec![peer(true), peer(false), unlike, behind],
        ..Status::default()
    };
    assert_eq!(
        lines(&status),
        "virtual routers: main active, second fault (interface eth1 is down)\n\
         peers: lb2 synced, lb2 GONE, lb2 CONFIGURED OTHERWISE, lb2 NOT SYNCED\n"
    );
    assert_eq!(lines(&Status::default()), "");
}

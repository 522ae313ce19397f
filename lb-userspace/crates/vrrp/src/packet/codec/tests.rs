use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use lb_api::routers::Counters;
use lb_model::router::SecondPath;

use super::*;
use crate::packet::{
    fill_checksum,
    tests::{NOW, ip, packet, router},
    total,
};

/// A message of each kind, and how it is refused when one thing about it is another one.
#[test]
fn every_reason_to_refuse_is_told_and_counted() {
    let multicast = router(Family::V4, 52, Version::V3, &["10.0.0.100"]);
    let good = Codec::new(&multicast).write(7, Path::First, ip("10.0.0.1"), GROUP, NOW);
    const GROUP: IpAddr = Family::V4.group();
    let take = |router: &Router, change: fn(&mut Packet<'_>, &mut Vec<u8>)| {
        let mut message = good.clone();
        let mut packet = packet("10.0.0.1", "224.0.0.18", &[]);
        change(&mut packet, &mut message);
        if packet.destination == GROUP && message.len() == good.len() && message != good {
            // Only what is changed is to be wrong.
            fill_checksum(&mut message, packet.source, packet.destination, Checksum::Message);
        }
        let packet = Packet { message: &message, ..packet };
        Codec::new(router).read(&packet, Path::First, NOW)
    };
    let why = |router: &Router, change: fn(&mut Packet<'_>, &mut Vec<u8>)| {
        take(router, change).unwrap_err().why
    };
    let unicast = Router { peers: vec![ip("10.0.0.9")], ..multicast.clone() };
    let password =
        Router { version: Version::V2, auth: Auth::Pass(*b"secret\0\0"), ..multicast.clone() };
    let hmac = Router { auth: Auth::Hmac { id: 1, secret: vec![1; 32] }, ..multicast.clone() };
    assert!(take(&multicast, |_, _| {}).is_ok());

    assert_eq!(why(&multicast, |p, _| p.ttl = 254), Refusal::Ttl(254));
    assert_eq!(why(&multicast, |p, _| p.destination = ip("10.0.0.2")), Refusal::Foreign);
    assert_eq!(why(&multicast, |p, _| p.source = ip("fe80::1")), Refusal::Foreign);
    assert_eq!(why(&unicast, |_, _| {}), Refusal::Foreign);
    assert_eq!(why(&unicast, |p, _| p.destination = ip("10.0.0.2")), Refusal::Foreign);
    assert_eq!(why(&multicast, |_, m| m[0] = 0x41), Refusal::Version(4));
    assert_eq!(why(&multicast, |_, m| m[1] = 53), Refusal::Vrid);
    assert_eq!(why(&hmac, |_, _| {}), Refusal::Auth(Failure::Missing));
    let changes: [fn(&mut Packet<'_>, &mut Vec<u8>); 8] = [
        |_, m| m[0] = 0x32,
        |_, m| m[1] = 0,
        |_, m| m[3] = 0,
        |_, m| m[3] = 2,
        |_, m| m[4..6].fill(0),
        |_, m| m.push(0),
        |_, m| m.truncate(7),
        |_, m| m.truncate(11),
    ];
    for change in changes {
        assert!(matches!(why(&multicast, change), Refusal::Malformed(_)));
    }
    // Another configuration of the sender: the refusal carries its content.
    let refused = take(&password, |_, _| {}).unwrap_err();
    assert_eq!(refused.why, Refusal::Version(3));
    assert_eq!(refused.received.map(|received| received.priority), Some(7));

    let mut broken = good;
    broken[2] += 1;
    let broken = Codec::new(&multicast)
        .read(&packet("10.0.0.1", "224.0.0.18", &broken), Path::First, NOW)
        .unwrap_err();
    assert_eq!(broken, Refused { why: Refusal::Checksum, received: None });

    let mut counters = Counters::default();
    for why in [
        Refusal::Own,
        Refusal::Vrid,
        Refusal::Ttl(1),
        Refusal::Malformed(""),
        Refusal::Checksum,
        Refusal::Version(2),
        Refusal::Foreign,
        Refusal::Auth(Failure::Wrong),
        Refusal::Interval(Duration::ZERO),
    ] {
        why.count(&mut counters);
    }
    let once = Counters {
        ttl_errors: 1,
        malformed: 1,
        checksum_errors: 1,
        version_errors: 1,
        foreign: 1,
        auth_errors: 1,
        mismatches: 1,
        ..Counters::default()
    };
    assert_eq!(counters, once);
}

#[test]
fn version_2_wants_the_same_interval_and_password() {
    let ours = Router {
        auth: Auth::Pass(*b"secret\0\0"),
        ..router(Family::V4, 51, Version::V2, &["10.0.0.100"])
    };
    let (source, group) = (ip("10.0.0.1"), Family::V4.group());
    let read = |theirs: &Router| {
        let message = Codec::new(theirs).write(9, Path::First, source, group, NOW);
        Codec::new(&ours).read(&packet("10.0.0.1", "224.0.0.18", &message), Path::First, NOW)
    };
    let refused = |theirs: &Router| {
        let refused = read(theirs).unwrap_err();
        assert_eq!(refused.received.unwrap().priority, 9);
        refused.why
    };
    assert!(read(&ours).is_ok());
    let slower = Router { interval: Duration::from_secs(2), ..ours.clone() };
    assert_eq!(refused(&slower), Refusal::Interval(Duration::from_secs(2)));
    let other = Router { auth: Auth::Pass(*b"geheim\0\0"), ..ours.clone() };
    assert_eq!(refused(&other), Refusal::Auth(Failure::Password));
    let open = Router { auth: Auth::None, ..ours.clone() };
    assert_eq!(refused(&open), Refusal::Auth(Failure::Missing));
    let message = Codec::new(&ours).write(9, Path::First, source, group, NOW);
    let unexpected = Codec::new(&open)
        .read(&packet("10.0.0.1", "224.0.0.18", &message), Path::First, NOW)
        .unwrap_err();
    assert_eq!(unexpected.why, Refusal::Auth(Failure::Unexpected));
}

#[test]
fn version_3_learns_the_interval_and_tells_what_differs() {
    let ours = router(Family::V4, 51, Version::V3, &["10.0.0.100", "10.0.0.101"]);
    let (source, group) = (ip("10.0.0.1"), Family::V4.group());
    let read = |theirs: &Router| {
        let message = Codec::new(theirs).write(9, Path::First, source, group, NOW);
        Codec::new(&ours)
            .read(&packet("10.0.0.1", "224.0.0.18", &message), Path::First, NOW)
            .unwrap()
    };
    let slower = read(&Router { interval: Duration::from_millis(40_950), ..ours.clone() });
    assert_eq!(slower.received.interval, Duration::from_millis(40_950));
    assert_eq!(slower.mismatch.as_deref(), Some("its interval is 40950 ms"));
    let other = read(&router(Family::V4, 51, Version::V3, &["10.0.0.101"]));
    assert_eq!(other.mismatch.as_deref(), Some("its addresses are 10.0.0.101"));
    // Their order does not matter.
    let turned = read(&router(Family::V4, 51, Version::V3, &["10.0.0.101", "10.0.0.100"]));
    assert_eq!(turned.mismatch, None);
}

#[test]
fn both_checksums_of_version_3_over_ipv4_are_taken_and_either_is_sent() {
    for checksum in [Checksum::PseudoHeader, Checksum::Message] {
        let theirs = Router { checksum, ..router(Family::V4, 51, Version::V3, &["10.0.0.100"]) };
        let ours = router(Family::V4, 51, Version::V3, &["10.0.0.100"]);
        let group = Family::V4.group();
        let message = Codec::new(&theirs).write(9, Path::First, ip("10.0.0.1"), group, NOW);
        let alone = total(&message, ip("10.0.0.1"), group, Checksum::Message) == 0xffff;
        assert_eq!(alone, checksum == Checksum::Message);
        let packet = packet("10.0.0.1", "224.0.0.18", &message);
        assert!(Codec::new(&ours).read(&packet, Path::First, NOW).is_ok());
    }
}

#[test]
fn only_addresses_of_the_family_that_are_advertised_are_named_and_the_link_local_one_first() {
    let mut router = router(
        Family::V6,
        9,
        Version::V3,
        &["2001:db8::1", "10.0.0.1", "fe80::1", "2001:db8::2", "2001:db8::3"],
    );
    router.addresses[3].advertised = false;
    let message = Codec::new(&router).write(1, Path::First, ip("fe80::a"), ip("ff02::12"), NOW);
    let decoded = decode(&packet("fe80::a", "ff02::12", &message)).unwrap();
    let named = [ip("fe80::1"), ip("2001:db8::1"), ip("2001:db8::3")];
    assert_eq!(decoded.advertisement.addresses, named);
}

#[test]
fn what_this_node_has_sent_is_its_own() {
    let router = router(Family::V4, 51, Version::V3, &["10.0.0.100"]);
    let mut codec = Codec::new(&router);
    let message = codec.write(9, Path::First, ip("10.0.0.1"), Family::V4.group(), NOW);
    let packet = packet("10.0.0.1", "224.0.0.18", &message);
    assert_eq!(codec.read(&packet, Path::First, NOW).unwrap_err().why, Refusal::Own);
    // New settings of the same router do not forget it.
    let mut next = Codec::new(&router);
    next.resume(&mut codec);
    assert_eq!(next.read(&packet, Path::First, NOW).unwrap_err().why, Refusal::Own);
}

#[test]
fn each_path_has_its_peers() {
    let router = Router {
        second_path: Some(SecondPath {
            interface: "eth1".into(),
            source: None,
            peers: vec![ip("192.168.9.3")],
        }),
        ..router(Family::V4, 51, Version::V3, &["10.0.0.100"])
    };
    let read = |source: &str, destination: &str, path| {
        let message = Codec::new(&router).write(9, path, ip(source), ip(destination), NOW);
        let taken = Codec::new(&router).read(&packet(source, destination, &message), path, NOW);
        taken.map(|taken| taken.received.from).map_err(|refused| refused.why)
    };
    assert_eq!(read("10.0.0.3", "224.0.0.18", Path::First), Ok(ip("10.0.0.3")));
    assert_eq!(read("192.168.9.3", "192.168.9.2", Path::Second), Ok(ip("192.168.9.3")));
    assert_eq!(read("192.168.9.3", "192.168.9.2", Path::First), Err(Refusal::Foreign));
    assert_eq!(read("192.168.9.4", "192.168.9.2", Path::Second), Err(Refusal::Foreign));
    assert_eq!(read("192.168.9.3", "224.0.0.18", Path::Second), Err(Refusal::Foreign));
}

#[test]
fn peers_behind_routers_need_a_lower_least_ttl() {
    let far = Router {
        peers: vec![ip("192.0.2.1")],
        min_ttl: 250,
        ..router(Family::V4, 51, Version::V3, &["10.0.0.100"])
    };
    let source = ip("192.0.2.1");
    let message = Codec::new(&far).write(9, Path::First, source, ip("10.0.0.2"), NOW);
    let with = |ttl| {
        let packet = Packet { ttl, ..packet("192.0.2.1", "10.0.0.2", &message) };
        Codec::new(&far).read(&packet, Path::First, NOW).map_err(|refused| refused.why)
    };
    assert!(with(250).is_ok());
    assert_eq!(with(249), Err(Refusal::Ttl(249)));
}

#[test]
fn a_second_path_may_cross_routers_though_the_first_is_multicast() {
    let path = SecondPath { interface: "eth1".into(), source: None, peers: vec![ip("192.0.2.1")] };
    let router = Router {
        second_path: Some(path),
        min_ttl: 250,
        ..router(Family::V4, 51, Version::V3, &["10.0.0.100"])
    };
    let read = |path, source: &str, destination: &str| {
        let mut codec = Codec::new(&router);
        let message = codec.write(9, path, ip(source), ip(destination), NOW);
        let packet = Packet { ttl: 250, ..packet(source, destination, &message) };
        Codec::new(&router).read(&packet, path, NOW).map_err(|refused| refused.why)
    };
    assert!(read(Path::Second, "192.0.2.1", "192.0.2.9").is_ok());
    let multicast = read(Path::First, "10.0.0.1", "224.0.0.18");
    assert_eq!(multicast, Err(Refusal::Ttl(250)), "that is never forwarded");
}

#[test]
fn a_signed_advertisement_is_taken_once_and_of_either_family_and_version() {
    let secret = Auth::Hmac { id: 3, secret: vec![7; 32] };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for (family, version, source) in [
        (Family::V4, Version::V2, "10.0.0.1"),
        (Family::V4, Version::V3, "10.0.0.1"),
        (Family::V6, Version::V3, "fe80::a"),
    ] {
        let router = Router {
            auth: secret.clone(),
            ..router(family, 51, version, &["10.0.0.100", "fe80::100"])
        };
        let (mut ours, mut theirs) = (Codec::new(&router), Codec::new(&router));
        let group = family.group();
        let message = theirs.write(9, Path::First, ip(source), group, now);
        let packet = Packet { source: ip(source), destination: group, ttl: 255, message: &message };
        assert_eq!(ours.read(&packet, Path::First, now).unwrap().received.priority, 9);
        let again = ours.read(&packet, Path::First, now).unwrap_err();
        let replayed = Refused { why: Refusal::Auth(Failure::Replayed), received: None };
        assert_eq!(again, replayed, "{family:?} {version:?}");
        // Nor after a change of settings.
        let mut next = Codec::new(&router);
        next.resume(&mut ours);
        assert_eq!(next.read(&packet, Path::First, now), Err(replayed));
        let open = Router { auth: Auth::None, ..router };
        let unexpected = Codec::new(&open).read(&packet, Path::First, now).unwrap_err();
        assert_eq!(unexpected.why, Refusal::Auth(Failure::Unexpected));
    }
}

#[test]
fn what_is_signed_by_a_wrong_clock_is_heard_of_known_peers_alone() {
    let router = Router {
        auth: Auth::Hmac { id: 1, secret: vec![1; 32] },
        ..router(Family::V4, 51, Version::V3, &["10.0.0.100"])
    };
    let (source, group) = (IpAddr::from([10, 0, 0, 1]), router.key.family.group());
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let message = Codec::new(&router).write(9, Path::First, source, group, then);
    let packet = Packet { source, destination: group, ttl: 255, message: &message };
    let late = then + Duration::from_secs(60);
    let refused = Codec::new(&router).read(&packet, Path::First, late).unwrap_err();
    assert_eq!(refused.why, Refusal::Auth(Failure::Stale));
    assert!(refused.why.is_reported());
    assert_eq!(refused.received.map(|received| received.priority), Some(9));
    let mut external = crate::ExternalState::default();
    assert!(!external.accepts_refused(router.key, source, refused.why));
    external.active.insert((router.key, source));
    assert!(external.accepts_refused(router.key, source, refused.why));
    // What is not signed at all needs more than that.
    assert!(!external.accepts_refused(router.key, source, Refusal::Auth(Failure::Missing)));
}

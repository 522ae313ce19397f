//! The holder of the addresses over faults and restarts.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kit::wait::{until, until_true};
use lb_model::router::{Auth, Family, SecondPath, State, Version};
use lb_vrrp::{
    ExternalState, NoticeKind, Order, Report, Yield,
    sockets::{Sender, SocketInterface},
};

use super::{
    addresses::index_of,
    testbed::{SOON, Testbed, VIP, VIP6, neighbour, ping, router, with_priority},
};

#[test]
fn backup_takes_over_when_the_active_router_dies() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.start(&router(Family::V4, 51))?;
    assert!(testbed.a.has(VIP)? && !testbed.b.has(VIP)?);
    until_true(SOON, "the client reaches it", || ping(&testbed.client, VIP))?;
    assert_eq!(neighbour(&testbed.client, VIP)?, testbed.a.namespace.mac("eth0")?);

    testbed.a.die();
    testbed.b.wait_for(State::Active)?;
    // From the announcement: the client sends no request.
    let mac = testbed.b.namespace.mac("eth0")?;
    until_true(SOON, "the client knows", || Ok(neighbour(&testbed.client, VIP)? == mac))?;

    // The address that it has left goes when it receives the other's advertisement, and comes back when it preempts.
    testbed.a.clear_reports();
    testbed.a.start(vec![with_priority(&router(Family::V4, 51), 150)])?;
    testbed.a.wait_for_notice(NoticeKind::Leftover, "predecessor")?;
    testbed.a.wait_for(State::Active)?;
    testbed.b.wait_for(State::Backup)?;
    testbed.b.wait_to_have(VIP, false)?;
    let first = testbed.a.transitions().first().map(|(_, one)| one.to);
    assert_eq!(first, Some(State::Backup), "it did not take part while the other was active");
    Ok(())
}

#[test]
fn neighbours_of_ipv6_are_told_of_a_takeover() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.start(&router(Family::V6, 51))?;
    until_true(SOON, "the client reaches it", || ping(&testbed.client, VIP6))?;
    assert_eq!(neighbour(&testbed.client, VIP6)?, testbed.a.namespace.mac("eth0")?);
    testbed.a.die();
    testbed.b.wait_for(State::Active)?;
    let mac = testbed.b.namespace.mac("eth0")?;
    until_true(SOON, "the client knows", || Ok(neighbour(&testbed.client, VIP6)? == mac))?;
    // Without duplicate address detection it answers at once, and it is no source of the node.
    let name = testbed.b.namespace.name();
    let shown = kit::command::run(kit::command::command("ip").args(["-n", name, "-6", "addr"]))?;
    let line = shown.lines().skip_while(|line| !line.contains(VIP6));
    let lines = line.take(2).collect::<Vec<_>>().join(" ");
    assert!(lines.contains("nodad") && lines.contains("deprecated"), "{lines}");
    assert!(!lines.contains("tentative"), "{lines}");
    Ok(())
}

#[test]
fn planned_yield_keeps_the_address_until_the_other_router_has_it() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let router = router(Family::V4, 51);
    testbed.start(&router)?;
    testbed.a.order(Order::Yield(router.key, Yield::Advertised));
    let by = until(SOON, "the yield ends", || {
        let reports = testbed.a.reports();
        let ended = reports.into_iter().find_map(|(_, report)| match report {
            Report::Yielded { by, .. } => Some(by),
            _ => None,
        });
        ended.context("it has not")
    })?;
    assert_eq!(by, Ok("10.0.0.2".parse()?));
    testbed.a.wait_for(State::Backup)?;
    testbed.b.wait_for(State::Active)?;
    testbed.a.wait_to_have(VIP, false)?;
    assert!(testbed.b.has(VIP)?);
    // The other one has become Active first.
    let (took, _) = testbed.b.transitions().pop().context("the other one's transition")?;
    let (gave, _) = testbed.a.transitions().pop().context("its transition")?;
    assert!(took <= gave + Duration::from_millis(20), "nobody had it for a while");
    // And it stays so, though the first has the higher priority.
    thread::sleep(Duration::from_millis(500));
    assert_eq!(testbed.b.router()?.state, State::Active);
    Ok(())
}

#[test]
fn router_that_takes_is_active_at_once_and_the_other_yields() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let router = router(Family::V4, 51);
    testbed.start(&router)?;
    testbed.a.order(Order::Yield(router.key, Yield::Requested));
    testbed.b.order(Order::Take(router.key));
    testbed.b.wait_for(State::Active)?;
    testbed.a.wait_for(State::Backup)?;
    testbed.a.wait_to_have(VIP, false)?;
    Ok(())
}

#[test]
fn router_that_stops_hands_over_and_releases() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.start(&router(Family::V4, 51))?;
    testbed.a.stop(false)?;
    assert!(!testbed.a.has(VIP)?);
    testbed.b.wait_for(State::Active)?;
    Ok(())
}

#[test]
fn router_that_stops_alone_leaves_its_address_and_is_resumed() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let router = with_priority(&router(Family::V4, 51), 150);
    testbed.a.start(vec![router.clone()])?;
    testbed.a.wait_for(State::Active)?;
    testbed.a.stop(false)?;
    assert!(testbed.a.has(VIP)?, "forwarding goes on without lbd");
    // Its age shows that it was not put there anew.
    testbed.a.start(vec![router])?;
    let mut seen = Vec::new();
    until_true(SOON, "it resumes", || {
        seen.push(testbed.a.has(VIP)?);
        Ok(testbed.a.router().is_ok_and(|router| router.state == State::Active))
    })?;
    let reports = testbed.a.reports();
    assert!(seen.iter().all(|has| *has), "the address was away for a moment: {reports:?}");
    testbed.a.stop(true)?;
    assert!(!testbed.a.has(VIP)?);
    Ok(())
}

#[test]
fn router_whose_link_fails_lets_the_other_take_over_and_comes_back() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.start(&router(Family::V4, 51))?;
    // The other end: this one sees that it has no carrier.
    testbed.switch.ip("link set to-a down")?;
    testbed.a.wait_for(State::Fault)?;
    testbed.b.wait_for(State::Active)?;
    testbed.a.wait_to_have(VIP, false)?;
    testbed.switch.ip("link set to-a up")?;
    testbed.a.wait_for(State::Active)?;
    testbed.b.wait_for(State::Backup)?;
    Ok(())
}

#[test]
fn router_follows_its_interface_when_that_is_made_anew() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.start(&router(Family::V4, 51))?;
    testbed.switch.ip("link del to-a")?;
    testbed.a.wait_for(State::Fault)?;
    testbed.b.wait_for(State::Active)?;
    let node = testbed.a.namespace.name();
    testbed.switch.ip(&format!(
        "link add to-a type veth peer name eth0 netns {node}\nlink set to-a master br0 up"
    ))?;
    testbed.a.namespace.ip("addr add 10.0.0.1/24 dev eth0\nlink set eth0 up")?;
    testbed.a.wait_for(State::Active)?;
    testbed.a.wait_to_have(VIP, true)?;
    testbed.b.wait_for(State::Backup)
}

#[test]
fn at_10_ms_the_backup_takes_over_within_the_protocols_bound() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let mut router = router(Family::V4, 51);
    router.interval = Duration::from_millis(10);
    testbed.start(&router)?;
    // One that has received nothing yet listens for 3 s.
    until_true(SOON, "it receives the other's advertisements", || {
        Ok(testbed.b.router()?.active.is_some())
    })?;
    let died = Instant::now();
    testbed.a.die();
    testbed.b.wait_for(State::Active)?;
    let transitions = testbed.b.transitions();
    let (at, _) = transitions
        .iter()
        .find(|(at, one)| *at > died && one.to == State::Active)
        .context("a takeover")?;
    let took = at.duration_since(died);
    // Three intervals and a skew of (256 - 100) / 256 of one, from the last advertisement; and what
    // a machine with much else to do needs.
    eprintln!("took over after {took:?}");
    assert!(took >= Duration::from_millis(26), "{took:?}");
    assert!(took < Duration::from_millis(1000), "{took:?}");
    Ok(())
}

#[test]
fn second_path_keeps_one_router_active_when_the_first_is_cut() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    // A wire between the nodes themselves.
    let other = testbed.b.namespace.name();
    testbed.a.namespace.ip(&format!("link add eth1 type veth peer name eth1 netns {other}"))?;
    let mut routers = Vec::new();
    for (node, number, peer, priority) in [(&testbed.a, 1, 2, 150), (&testbed.b, 2, 1, 100)] {
        node.namespace.ip(&format!("addr add 10.1.0.{number}/24 dev eth1\nlink set eth1 up"))?;
        let mut router = with_priority(&router(Family::V4, 51), priority);
        router.peers = vec![format!("10.0.0.{peer}").parse()?];
        router.second_path = Some(SecondPath {
            interface: "eth1".into(),
            source: None,
            peers: vec![format!("10.1.0.{peer}").parse()?],
        });
        routers.push(router);
    }
    let [for_a, for_b] = &routers[..] else { unreachable!("there are two") };
    testbed.a.start(vec![for_a.clone()])?;
    testbed.a.wait_for(State::Active)?;
    testbed.b.start(vec![for_b.clone()])?;
    testbed.b.wait_for(State::Backup)?;

    // Both keep their carrier: nothing passes between them on eth0.
    testbed.switch.ip("link set to-b nomaster")?;
    let received = || testbed.b.router().map_or(0, |router| router.counters.received);
    let before = received();
    until_true(SOON, "it receives the other's advertisements by the second path", || {
        Ok(received() > before + 20)
    })?;
    assert_eq!(testbed.b.router()?.state, State::Backup);
    assert_eq!(testbed.b.router()?.counters.became_active, 0);

    // Without any path it can't know.
    testbed.a.namespace.ip("link set eth1 down")?;
    testbed.b.wait_for(State::Active)?;
    assert_eq!(testbed.a.router()?.state, State::Active);
    testbed.switch.ip("link set to-b master br0")?;
    testbed.b.wait_for(State::Backup)?;
    testbed.b.wait_to_have(VIP, false)?;
    assert_eq!(testbed.a.router()?.state, State::Active);
    until_true(SOON, "both were counted", || Ok(testbed.a.router()?.counters.two_active > 0))
}

#[test]
fn advertisements_that_cannot_be_read_are_told() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.a.start(vec![router(Family::V4, 51)])?;
    testbed.a.wait_for(State::Active)?;
    testbed.client.enter(|| -> Result<()> {
        let eth0 = SocketInterface { name: "eth0".into(), index: index_of("eth0")? };
        // Version 3, with a checksum that is not its own.
        let message = [0x31, 51, 200, 1, 0, 10, 1, 2, 10, 0, 0, 100];
        Sender::open(&eth0, "10.0.0.9".parse()?)?.send(&message, Family::V4.group())?;
        Ok(())
    })??;
    testbed.a.wait_for_notice(NoticeKind::Mismatch, "advertisements of 10.0.0.9 are not taken")?;
    assert_eq!(testbed.a.router()?.state, State::Active);
    Ok(())
}

#[test]
fn peer_with_another_password_is_told_and_heard_once_it_is_known() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let mut router = router(Family::V4, 51);
    router.version = Version::V2;
    router.interval = Duration::from_secs(1);
    router.auth = Auth::Pass(*b"password");
    testbed.a.start(vec![with_priority(&router, 150)])?;
    testbed.a.wait_for(State::Active)?;
    router.auth = Auth::Pass(*b"passw0rd");
    testbed.b.start(vec![with_priority(&router, 100)])?;
    testbed.b.wait_for(State::Active)?;
    for (node, peer) in [(&testbed.a, "10.0.0.2"), (&testbed.b, "10.0.0.1")] {
        let words = format!("advertisements of {peer} are not taken");
        node.wait_for_notice(NoticeKind::Mismatch, &words)?;
        let counted = || Ok(node.router()?.counters.auth_errors > 0);
        until_true(SOON, "it is counted", counted)?;
    }
    // The sync key has shown that it is the peer.
    let mismatched = [(router.key, "10.0.0.1".parse()?)].into();
    testbed.b.order(Order::ExternalState(ExternalState { mismatched, ..ExternalState::default() }));
    testbed.b.wait_for(State::Backup)?;
    testbed.b.wait_to_have(VIP, false)?;
    assert!(testbed.a.has(VIP)?);
    Ok(())
}

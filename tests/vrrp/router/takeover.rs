//! Who holds the addresses when something happens.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kit::wait::{until, until_true};
use lb_model::router::{Auth, Family, SecondPath, State, Version};
use lb_vrrp::{
    Facts, NoticeKind, Order, Report, Yield,
    sockets::{Interface, Sender},
};

use super::{
    addresses::index_of,
    site::{SOON, Site, VIP, VIP6, neighbour, ping, router, with_priority},
};

#[test]
fn backup_takes_over_when_the_active_router_dies() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    site.start(&router(Family::V4, 51))?;
    assert!(site.a.has(VIP)? && !site.b.has(VIP)?);
    until_true(SOON, "the client reaches it", || ping(&site.client, VIP))?;
    assert_eq!(neighbour(&site.client, VIP)?, site.a.namespace.mac("eth0")?);

    site.a.die();
    site.b.wait_for(State::Active)?;
    // Told by the announcement: the client asks nobody.
    let mac = site.b.namespace.mac("eth0")?;
    until_true(SOON, "the client knows", || Ok(neighbour(&site.client, VIP)? == mac))?;

    // The address that it has left goes when it hears the other one, and comes back when it preempts.
    site.a.forget_what_was_told();
    site.a.start(vec![with_priority(&router(Family::V4, 51), 150)])?;
    site.a.wait_for_notice(NoticeKind::Leftover, "predecessor")?;
    site.a.wait_for(State::Active)?;
    site.b.wait_for(State::Backup)?;
    site.b.wait_to_have(VIP, false)?;
    let first = site.a.transitions().first().map(|(_, one)| one.to);
    assert_eq!(first, Some(State::Backup), "it did not take part while the other was active");
    Ok(())
}

#[test]
fn neighbours_of_ipv6_are_told_of_a_takeover() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    site.start(&router(Family::V6, 51))?;
    until_true(SOON, "the client reaches it", || ping(&site.client, VIP6))?;
    assert_eq!(neighbour(&site.client, VIP6)?, site.a.namespace.mac("eth0")?);
    site.a.die();
    site.b.wait_for(State::Active)?;
    let mac = site.b.namespace.mac("eth0")?;
    until_true(SOON, "the client knows", || Ok(neighbour(&site.client, VIP6)? == mac))?;
    // Without duplicate address detection it answers at once, and it is no source of the node.
    let name = site.b.namespace.name();
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
    let mut site = Site::new()?;
    let router = router(Family::V4, 51);
    site.start(&router)?;
    site.a.order(Order::Yield(router.key, Yield::Told));
    let by = until(SOON, "the yield ends", || {
        let told = site.a.told();
        let ended = told.into_iter().find_map(|(_, report)| match report {
            Report::Yielded { by, .. } => Some(by),
            _ => None,
        });
        ended.context("it has not")
    })?;
    assert_eq!(by, Ok("10.0.0.2".parse()?));
    site.a.wait_for(State::Backup)?;
    site.b.wait_for(State::Active)?;
    site.a.wait_to_have(VIP, false)?;
    assert!(site.b.has(VIP)?);
    // The other one has become Active first.
    let (took, _) = site.b.transitions().pop().context("the other one's transition")?;
    let (gave, _) = site.a.transitions().pop().context("its transition")?;
    assert!(took <= gave + Duration::from_millis(20), "nobody had it for a while");
    // And it stays so, though the first has the higher priority.
    thread::sleep(Duration::from_millis(500));
    assert_eq!(site.b.router()?.state, State::Active);
    Ok(())
}

#[test]
fn router_that_takes_is_active_at_once_and_the_other_yields() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    let router = router(Family::V4, 51);
    site.start(&router)?;
    site.a.order(Order::Yield(router.key, Yield::Asked));
    site.b.order(Order::Take(router.key));
    site.b.wait_for(State::Active)?;
    site.a.wait_for(State::Backup)?;
    site.a.wait_to_have(VIP, false)?;
    Ok(())
}

#[test]
fn router_that_stops_hands_over_and_releases() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    site.start(&router(Family::V4, 51))?;
    site.a.stop(false)?;
    assert!(!site.a.has(VIP)?);
    site.b.wait_for(State::Active)?;
    Ok(())
}

#[test]
fn router_that_stops_alone_leaves_its_address_and_is_resumed() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    let router = with_priority(&router(Family::V4, 51), 150);
    site.a.start(vec![router.clone()])?;
    site.a.wait_for(State::Active)?;
    site.a.stop(false)?;
    assert!(site.a.has(VIP)?, "forwarding goes on without lbd");
    // Its age shows that it was not put there anew.
    site.a.start(vec![router])?;
    let mut seen = Vec::new();
    until_true(SOON, "it resumes", || {
        seen.push(site.a.has(VIP)?);
        Ok(site.a.router().is_ok_and(|router| router.state == State::Active))
    })?;
    let told = site.a.told();
    assert!(seen.iter().all(|has| *has), "the address was away for a moment: {told:?}");
    site.a.stop(true)?;
    assert!(!site.a.has(VIP)?);
    Ok(())
}

#[test]
fn router_whose_link_fails_lets_the_other_take_over_and_comes_back() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    site.start(&router(Family::V4, 51))?;
    // The other end: this one sees that it has no carrier.
    site.switch.ip("link set to-a down")?;
    site.a.wait_for(State::Fault)?;
    site.b.wait_for(State::Active)?;
    site.a.wait_to_have(VIP, false)?;
    site.switch.ip("link set to-a up")?;
    site.a.wait_for(State::Active)?;
    site.b.wait_for(State::Backup)?;
    Ok(())
}

#[test]
fn router_follows_its_interface_when_that_is_made_anew() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    site.start(&router(Family::V4, 51))?;
    site.switch.ip("link del to-a")?;
    site.a.wait_for(State::Fault)?;
    site.b.wait_for(State::Active)?;
    let node = site.a.namespace.name();
    site.switch.ip(&format!(
        "link add to-a type veth peer name eth0 netns {node}\nlink set to-a master br0 up"
    ))?;
    site.a.namespace.ip("addr add 10.0.0.1/24 dev eth0\nlink set eth0 up")?;
    site.a.wait_for(State::Active)?;
    site.a.wait_to_have(VIP, true)?;
    site.b.wait_for(State::Backup)
}

#[test]
fn at_10_ms_the_backup_takes_over_within_the_protocols_bound() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    let mut router = router(Family::V4, 51);
    router.interval = Duration::from_millis(10);
    site.start(&router)?;
    // One that has heard nobody yet listens for 3 s.
    until_true(SOON, "it hears the other", || Ok(site.b.router()?.active.is_some()))?;
    let died = Instant::now();
    site.a.die();
    site.b.wait_for(State::Active)?;
    let transitions = site.b.transitions();
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
    let mut site = Site::new()?;
    // A wire between the nodes themselves.
    let other = site.b.namespace.name();
    site.a.namespace.ip(&format!("link add eth1 type veth peer name eth1 netns {other}"))?;
    let mut routers = Vec::new();
    for (node, number, peer, priority) in [(&site.a, 1, 2, 150), (&site.b, 2, 1, 100)] {
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
    site.a.start(vec![for_a.clone()])?;
    site.a.wait_for(State::Active)?;
    site.b.start(vec![for_b.clone()])?;
    site.b.wait_for(State::Backup)?;

    // Both keep their carrier: they hear nothing of each other on eth0.
    site.switch.ip("link set to-b nomaster")?;
    let received = || site.b.router().map_or(0, |router| router.counters.received);
    let before = received();
    until_true(SOON, "it hears the other one by the second path", || Ok(received() > before + 20))?;
    assert_eq!(site.b.router()?.state, State::Backup);
    assert_eq!(site.b.router()?.counters.became_active, 0);

    // Without any path it can't know.
    site.a.namespace.ip("link set eth1 down")?;
    site.b.wait_for(State::Active)?;
    assert_eq!(site.a.router()?.state, State::Active);
    site.switch.ip("link set to-b master br0")?;
    site.b.wait_for(State::Backup)?;
    site.b.wait_to_have(VIP, false)?;
    assert_eq!(site.a.router()?.state, State::Active);
    until_true(SOON, "both were counted", || Ok(site.a.router()?.counters.two_active > 0))
}

#[test]
fn advertisements_that_cannot_be_read_are_told() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    site.a.start(vec![router(Family::V4, 51)])?;
    site.a.wait_for(State::Active)?;
    site.client.enter(|| -> Result<()> {
        let eth0 = Interface { name: "eth0".into(), index: index_of("eth0")? };
        // Version 3, with a checksum that is not its own.
        let message = [0x31, 51, 200, 1, 0, 10, 1, 2, 10, 0, 0, 100];
        Sender::open(&eth0, "10.0.0.9".parse()?)?.send(&message, Family::V4.group())?;
        Ok(())
    })??;
    site.a.wait_for_notice(NoticeKind::Mismatch, "advertisements of 10.0.0.9 are not taken")?;
    assert_eq!(site.a.router()?.state, State::Active);
    Ok(())
}

#[test]
fn peer_with_another_password_is_told_and_heard_once_it_is_known() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    let mut router = router(Family::V4, 51);
    router.version = Version::V2;
    router.interval = Duration::from_secs(1);
    router.auth = Auth::Pass(*b"password");
    site.a.start(vec![with_priority(&router, 150)])?;
    site.a.wait_for(State::Active)?;
    router.auth = Auth::Pass(*b"passw0rd");
    site.b.start(vec![with_priority(&router, 100)])?;
    site.b.wait_for(State::Active)?;
    for (node, peer) in [(&site.a, "10.0.0.2"), (&site.b, "10.0.0.1")] {
        let words = format!("advertisements of {peer} are not taken");
        node.wait_for_notice(NoticeKind::Mismatch, &words)?;
        let counted = || Ok(node.router()?.counters.auth_errors > 0);
        until_true(SOON, "it is counted", counted)?;
    }
    // The sync key has told that it is the peer.
    let mismatched = [(router.key, "10.0.0.1".parse()?)].into();
    site.b.order(Order::Facts(Facts { mismatched, ..Facts::default() }));
    site.b.wait_for(State::Backup)?;
    site.b.wait_to_have(VIP, false)?;
    assert!(site.a.has(VIP)?);
    Ok(())
}

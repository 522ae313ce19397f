//! The addresses on the interfaces.

use std::{io::Write as _, net::IpAddr, process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use kit::{
    command::{command, run},
    namespace::Namespace,
    wait::until_true,
};
use lb_model::router::{Family, State};
use lb_netlink::{
    client::{Events, Read},
    interfaces::GROUPS,
};
use lb_vrrp::{NoticeKind, Report, sockets::Announcer};

use super::testbed::{
    SOON, Testbed, VIP, VIP6, address_of, neighbour, ping, router, with_priority,
};

#[test]
fn address_that_somebody_removes_is_put_back_and_told() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.start(&router(Family::V4, 51))?;
    testbed.a.namespace.ip(&format!("addr del {VIP}/32 dev eth0"))?;
    testbed.a.wait_for_notice(NoticeKind::Trouble, "put back")?;
    testbed.a.wait_to_have(VIP, true)?;
    assert_eq!(testbed.a.router()?.state, State::Active);
    Ok(())
}

#[test]
fn address_of_the_operator_is_never_removed() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.a.namespace.ip(&format!("addr add {VIP}/32 dev eth0"))?;
    testbed.a.start(vec![with_priority(&router(Family::V4, 51), 255)])?;
    testbed.a.wait_for(State::Active)?;
    testbed.a.stop(true)?;
    assert!(testbed.a.has(VIP)?);
    Ok(())
}

#[test]
fn address_that_was_set_by_hand_on_the_only_node_is_no_problem_and_becomes_its_own() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.a.namespace.ip(&format!("addr add {VIP}/32 dev eth0"))?;
    testbed.a.start(vec![router(Family::V4, 51)])?;
    until_true(SOON, "it is active, and had no problem before", || {
        let router = testbed.a.router()?;
        assert_eq!(router.problems, [""; 0], "whoever removes it cuts the clients off");
        Ok(router.state == State::Active)
    })?;
    testbed.a.namespace.ip(&format!("addr del {VIP}/32 dev eth0"))?;
    testbed
        .a
        .wait_for_notice(NoticeKind::Leftover, "the one that was set by hand has been removed")?;
    testbed.a.wait_to_have(VIP, true)?;
    // The removal of an address that lbd holds is an error of the operator.
    testbed.a.namespace.ip(&format!("addr del {VIP}/32 dev eth0"))?;
    testbed.a.wait_for_notice(NoticeKind::Trouble, "somebody has removed it")?;
    testbed.a.wait_to_have(VIP, true)
}

#[test]
fn address_that_was_set_by_hand_on_a_node_that_is_not_active_is_told() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.start(&router(Family::V4, 51))?;
    testbed.b.namespace.ip(&format!("addr add {VIP}/24 dev eth0"))?;
    testbed.b.wait_for_notice(NoticeKind::Trouble, &format!("{VIP}/24 on eth0 is set by hand"))?;
    until_true(SOON, "it is a problem", || {
        Ok(testbed
            .b
            .router()?
            .problems
            .iter()
            .any(|one| one.contains("ip address del 10.0.0.100/24")))
    })?;
    testbed.b.namespace.ip(&format!("addr del {VIP}/24 dev eth0"))?;
    until_true(SOON, "it is no problem", || Ok(testbed.b.router()?.problems.is_empty()))
}

#[test]
fn leftovers_that_no_router_has_are_removed_at_the_start() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let mut left = router(Family::V4, 51);
    left.addresses.push(address_of(VIP6.parse()?));
    testbed.a.start(vec![left])?;
    testbed.a.wait_for(State::Active)?;
    testbed.a.wait_to_have(VIP6, true)?;
    testbed.a.die();
    testbed.a.namespace.ip("addr add 10.0.0.50/32 dev eth0")?;
    let mut other = router(Family::V4, 52);
    other.addresses = vec![address_of("10.0.0.101".parse()?)];
    testbed.a.start(vec![other])?;
    testbed.a.wait_for_notice(NoticeKind::Leftover, "no virtual router has them")?;
    testbed.a.wait_to_have(VIP, false)?;
    assert!(!testbed.a.has(VIP6)?);
    assert!(testbed.a.has("10.0.0.50")?, "that was nobody's leftover");
    Ok(())
}

#[test]
fn nothing_older_than_a_loss_of_events_is_read_after_it() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let namespace = Namespace::new("a")?;
    let mut events = namespace.enter(|| Events::open(&GROUPS))??;
    // More than is kept for a reader that is late.
    let change = |n: u32| {
        let address = std::net::Ipv4Addr::from(0x0a01_0000 + n);
        format!("addr add {address}/32 dev lo\naddr del {address}/32 dev lo\n")
    };
    let changes: String = (1..=12_000).map(change).collect();
    namespace.ip(changes.trim_end())?;
    assert_eq!(events.read(drop)?, Read::Lost);
    let mut count = 0;
    assert_eq!(events.read(|_| count += 1)?, Read::All);
    assert_eq!(count, 0, "old events");
    namespace.ip("addr add 10.0.0.1/32 dev lo")?;
    assert_eq!(events.read(|_| count += 1)?, Read::All);
    assert!(count > 0, "it receives events again");
    Ok(())
}

#[test]
fn address_goes_though_its_interface_has_another_name() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.a.start(vec![router(Family::V4, 51)])?;
    testbed.a.wait_for(State::Active)?;
    testbed.a.wait_to_have(VIP, true)?;
    testbed.a.namespace.ip("link set eth0 name other")?;
    testbed.a.wait_for(State::Fault)?;
    until_true(SOON, "it goes", || {
        Ok(!testbed.a.addresses("other")?.contains(&format!("{VIP}/32")))
    })
}

#[test]
fn change_of_addresses_takes_effect_while_active() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let mut router = router(Family::V4, 51);
    testbed.a.start(vec![router.clone()])?;
    testbed.a.wait_for(State::Active)?;
    let transitions = testbed.a.status()[0].counters.transitions;
    router.addresses = vec![address_of("10.0.0.101".parse()?)];
    router.addresses[0].label = Some("eth0:vip".into());
    testbed.a.configure(vec![router]);
    testbed.a.wait_to_have("10.0.0.101", true)?;
    testbed.a.wait_to_have(VIP, false)?;
    assert_eq!(testbed.a.status()[0].counters.transitions, transitions, "it stays active");
    let shown = run(testbed.a.namespace.command("ip").args(["addr", "show", "eth0"]))?;
    assert!(shown.contains("eth0:vip"), "{shown}");
    testbed.a.configure(Vec::new());
    testbed.a.wait_to_have("10.0.0.101", false)
}

#[test]
fn other_host_with_an_address_of_ours_is_told() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let mut router = router(Family::V4, 51);
    router.addresses.push(address_of(VIP6.parse()?));
    testbed.a.start(vec![router])?;
    testbed.a.wait_for(State::Active)?;
    let claims = |address: IpAddr| -> Result<()> {
        testbed.client.enter(|| -> Result<()> {
            let index = index_of("eth0")?;
            Announcer::open()?.announce(index, [2, 0, 0, 0, 0, 9], address, false)?;
            Ok(())
        })?
    };
    for address in [VIP, VIP6] {
        // Right after a takeover, claims of the one before are none.
        until_true(SOON, "it is reported", || {
            claims(address.parse()?)?;
            let message = format!("another host on eth0 has {address}");
            Ok(testbed.a.reports().iter().any(|(_, report)| {
                format!("{report:?}").contains(&message)
                    && format!("{report:?}").contains("02:00:00:00:00:09")
            }))
        })?;
    }
    Ok(())
}

#[test]
fn claim_of_an_address_names_the_peer_whose_mac_address_has_it() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    for (family, vip) in [(Family::V4, VIP), (Family::V6, VIP6)] {
        let mut testbed = Testbed::new()?;
        let mut router = router(family, 51);
        router.announce.refresh = Duration::from_secs(1);
        testbed.start(&router)?;
        let source = testbed.b.router()?.source.context("it has a source")?.to_string();
        // It is Active for a while, so that the other receives its advertisements.
        testbed.b.configure(vec![with_priority(&router, 200)]);
        testbed.b.wait_for(State::Active)?;
        testbed.b.configure(vec![with_priority(&router, 100)]);
        testbed.a.wait_for(State::Active)?;
        testbed.b.wait_for(State::Backup)?;
        testbed.b.wait_to_have(vip, false)?;
        testbed.a.clear_reports();
        // Its process dies, and an operator sets the address by hand.
        testbed.b.die();
        let add = if family == Family::V4 { "" } else { " nodad" };
        testbed.b.namespace.ip(&format!("addr add {vip} dev eth0{add}"))?;
        let mac = testbed.b.namespace.mac("eth0")?;
        let named =
            format!("{vip} on eth0 is claimed by {mac}, the MAC address of the peer {source}");
        testbed.a.wait_for_report(&named, |report| match report {
            Report::Notice(notice) => notice.message == named,
            _ => false,
        })?;
        let claim = || -> Result<()> {
            testbed.client.enter(|| -> Result<()> {
                let index = index_of("eth0")?;
                Announcer::open()?.announce(index, [2, 0, 0, 0, 0, 9], vip.parse()?, false)?;
                Ok(())
            })?
        };
        let cause = format!("it was claimed by 02:00:00:00:00:09; the peer {source} has {mac}");
        until_true(SOON, "a claim of another host is reported", || {
            claim()?;
            Ok(testbed.a.reports().iter().any(|(_, report)| match report {
                Report::Notice(notice) => {
                    notice.message == format!("another host on eth0 has {vip}")
                        && notice.cause == cause
                }
                _ => false,
            }))
        })?;
    }
    Ok(())
}

#[test]
fn other_host_that_has_an_address_of_ours_and_says_nothing_is_found_and_told() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed
        .client
        .ip(&format!("addr add {VIP}/32 dev eth0\naddr add {VIP6}/128 dev eth0 nodad"))?;
    let mac = testbed.client.mac("eth0")?;
    let mut router = router(Family::V4, 51);
    router.announce.refresh = Duration::from_secs(1);
    router.addresses.push(address_of(VIP6.parse()?));
    testbed.a.start(vec![router])?;
    for address in [VIP, VIP6] {
        let message = format!("another host on eth0 has {address}");
        testbed.a.wait_for_report(&message, |report| match report {
            Report::Notice(notice) => notice.message == message && notice.cause.contains(&mac),
            _ => false,
        })?;
    }
    Ok(())
}

pub fn index_of(interface: &str) -> Result<u32> {
    let shown = run(command("ip").args(["-o", "link", "show", interface]))?;
    shown.split(':').next().and_then(|n| n.trim().parse().ok()).context("an index")
}

#[test]
fn router_that_does_not_accept_answers_no_ping_but_is_found() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let mut closed = router(Family::V4, 51);
    closed.addresses.push(address_of(VIP6.parse()?));
    testbed.a.start(vec![closed.clone()])?;
    testbed.a.wait_for(State::Active)?;
    for address in [VIP, VIP6] {
        until_true(SOON, "it answers", || ping(&testbed.client, address))?;
    }
    closed.accept = false;
    testbed.a.configure(vec![closed.clone()]);
    for address in [VIP, VIP6] {
        until_true(SOON, "it answers no more", || Ok(!ping(&testbed.client, address)?))?;
        testbed.client.ip("neigh flush all")?;
        assert!(!ping(&testbed.client, address)?);
        assert_eq!(neighbour(&testbed.client, address)?, testbed.a.namespace.mac("eth0")?);
    }
    assert!(ping(&testbed.client, "10.0.0.1")?, "that is none of the router's");
    closed.addresses.push(address_of("10.0.0.101".parse()?));
    testbed.a.configure(vec![closed.clone()]);
    testbed.a.wait_to_have("10.0.0.101", true)?;
    until_true(SOON, "it does not answer", || Ok(!ping(&testbed.client, "10.0.0.101")?))?;
    let faults = testbed.a.transitions().into_iter().filter(|(_, one)| one.to == State::Fault);
    assert_eq!(faults.count(), 0, "the filter was changed while it was active");
    let tables =
        |testbed: &Testbed| run(testbed.a.namespace.command("nft").args(["list", "tables"]));
    assert!(tables(&testbed)?.contains("lbd_vrrp"));
    testbed.a.stop(true)?;
    assert!(!tables(&testbed)?.contains("lbd_vrrp"));
    Ok(())
}

#[test]
fn router_takes_part_without_the_filter_and_has_it_once_it_can_be_made() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    // A table that another process owns can be neither replaced nor removed, until that process ends.
    let mut owner = testbed.a.namespace.command("nft");
    let mut owner = owner.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let table = b"add table inet lbd_vrrp { flags owner; }\n";
    owner.stdin.as_mut().context("its input")?.write_all(table)?;
    let namespace = &testbed.a.namespace;
    until_true(SOON, "the table is there", || {
        let mut nft = namespace.command("nft");
        Ok(run(nft.args(["list", "tables"]))?.contains("lbd_vrrp"))
    })?;
    let mut closed = router(Family::V4, 51);
    closed.accept = false;
    testbed.a.start(vec![closed])?;
    testbed.a.wait_for(State::Active)?;
    testbed.a.wait_for_notice(NoticeKind::Trouble, "are not filtered")?;
    until_true(SOON, "its addresses answer", || ping(&testbed.client, VIP))?;
    let problems = |testbed: &Testbed| Ok(testbed.a.router()?.problems) as Result<Vec<String>>;
    until_true(SOON, "the problem is shown", || {
        Ok(problems(&testbed)?
            .iter()
            .any(|one| one.contains("are not filtered") && one.contains("nft")))
    })?;

    owner.kill()?;
    owner.wait()?;
    until_true(SOON, "it answers no more", || Ok(!ping(&testbed.client, VIP)?))?;
    until_true(SOON, "nothing is wrong", || Ok(problems(&testbed)?.is_empty()))?;
    let faults = testbed.a.transitions().into_iter().filter(|(_, one)| one.to == State::Fault);
    assert_eq!(faults.count(), 0, "that the filter can't be made is no fault");
    Ok(())
}

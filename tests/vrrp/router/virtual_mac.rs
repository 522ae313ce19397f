//! A virtual MAC address on a macvlan device, with an XDP program on the interface below.

use anyhow::Result;
use kit::{
    command::{command, run},
    namespace::Namespace,
    wait::until_true,
};
use lb_model::router::{Family, Router, State, VirtualMac};
use lb_vrrp::Report;

use super::testbed::{
    SOON, Testbed, VIP, VIP6, address_of, neighbour, ping, router, with_priority,
};

/// Of VRID 81, which is 0x51.
const MAC: [u8; 6] = [0, 0, 0x5e, 0, 1, 81];
const MAC_TEXT: &str = "00:00:5e:00:01:51";

fn router_with_mac(family: Family) -> Router {
    let mut router = router(family, 81);
    router.virtual_mac = Some(VirtualMac { interface: "vrrp.81".into() });
    router
}

/// XDP programs on the interfaces of both nodes, in native mode.
fn programs(testbed: &Testbed) -> Result<Pins> {
    let mut pins = Pins(Vec::new());
    for node in [&testbed.a, &testbed.b] {
        let pin = std::path::PathBuf::from(format!("/sys/fs/bpf/{}", node.namespace.name()));
        kit::xdp::pass(&node.namespace, "eth0", &pin)?;
        pins.0.push(pin);
    }
    Ok(pins)
}

struct Pins(Vec<std::path::PathBuf>);

impl Drop for Pins {
    fn drop(&mut self) {
        for pin in &self.0 {
            let _ = std::fs::remove_file(pin);
        }
    }
}

#[test]
fn virtual_mac_address_moves_with_the_address() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let _pins = programs(&testbed)?;
    testbed.start(&router_with_mac(Family::V4))?;
    let taken =
        |report: &Report| matches!(report, Report::TakeMac { take: true, mac, .. } if *mac == MAC);
    testbed.a.wait_for_report("that it takes the MAC address", taken)?;
    assert!(testbed.a.addresses("vrrp.81")?.contains(&format!("{VIP}/32")));
    until_true(SOON, "the client reaches it", || ping(&testbed.client, VIP))?;
    assert_eq!(neighbour(&testbed.client, VIP)?, MAC_TEXT);
    // The switch has learnt where the address is by frames that come from it.
    let port = |port: &str| {
        let shown = run(testbed.switch.command("bridge").args(["fdb", "show", "dev", port]))?;
        Ok(shown.contains(MAC_TEXT))
    };
    until_true(SOON, "the switch knows", || port("to-a"))?;
    // Neither does the interface answer for the virtual address, nor the device for the node's.
    testbed.client.ip("neigh flush all")?;
    for (address, mac) in
        [(VIP, MAC_TEXT.to_owned()), ("10.0.0.1", testbed.a.namespace.mac("eth0")?)]
    {
        until_true(SOON, "the client reaches it", || ping(&testbed.client, address))?;
        assert_eq!(neighbour(&testbed.client, address)?, mac);
    }

    testbed.a.die();
    testbed.b.wait_for(State::Active)?;
    until_true(SOON, "the switch knows", || port("to-b"))?;
    until_true(SOON, "the client reaches it", || ping(&testbed.client, VIP))?;
    assert_eq!(neighbour(&testbed.client, VIP)?, MAC_TEXT);

    // The device and its addresses are found again.
    testbed.a.start(vec![with_priority(&router_with_mac(Family::V4), 150)])?;
    testbed.a.wait_for(State::Active)?;
    testbed.b.wait_for(State::Backup)?;
    until_true(SOON, "the switch knows", || port("to-a"))?;
    until_true(SOON, "the client reaches it", || ping(&testbed.client, VIP))
}

#[test]
fn routers_with_virtual_mac_addresses_hear_each_other() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    // Both have a device with the MAC address that the other one's advertisements come from.
    for family in [Family::V4, Family::V6] {
        let mut testbed = Testbed::new()?;
        testbed.start(&router_with_mac(family))?;
        let received = || testbed.b.router().map_or(0, |router| router.counters.received);
        let before = received();
        until_true(SOON, "it receives the active router's advertisements", || {
            Ok(received() > before + 20)
        })?;
        assert_eq!(testbed.a.router()?.counters.two_active, 0);
        assert_eq!(testbed.b.router()?.state, State::Backup);
    }
    Ok(())
}

#[test]
fn virtual_mac_address_of_ipv6_is_told_and_reached() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let _pins = programs(&testbed)?;
    testbed.start(&router_with_mac(Family::V6))?;
    until_true(SOON, "the client reaches it", || ping(&testbed.client, VIP6))?;
    assert_eq!(neighbour(&testbed.client, VIP6)?, "00:00:5e:00:02:51");
    Ok(())
}

#[test]
fn active_router_keeps_its_address_when_its_mac_address_changes() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let with = router_with_mac(Family::V4);
    let mut plain = with.clone();
    plain.virtual_mac = None;
    testbed.start(&plain)?;
    let transitions = testbed.a.status()[0].counters.transitions;
    let vip = format!("{VIP}/32");
    testbed.a.configure(vec![with_priority(&with, 150)]);
    until_true(SOON, "the address moves to the device", || {
        // In this order: it is there before it is not here any more.
        let is_here = testbed.a.addresses("eth0")?.contains(&vip);
        let is_there = testbed.a.addresses("vrrp.81").is_ok_and(|all| all.contains(&vip));
        assert!(is_there || is_here, "it is somewhere all the time");
        Ok(is_there && !is_here)
    })?;
    testbed.a.wait_for_report(
        "that it takes the MAC address",
        |report| matches!(report, Report::TakeMac { take: true, mac, .. } if *mac == MAC),
    )?;
    until_true(SOON, "the client has the new MAC address", || {
        Ok(ping(&testbed.client, VIP)? && neighbour(&testbed.client, VIP)? == MAC_TEXT)
    })?;
    testbed.a.configure(vec![with_priority(&plain, 150)]);
    testbed.a.wait_for_report(
        "that it gives the MAC address back",
        |report| matches!(report, Report::TakeMac { take: false, mac, .. } if *mac == MAC),
    )?;
    testbed.a.wait_to_have(VIP, true)?;
    until_true(SOON, "the client has the new MAC address", || {
        Ok(ping(&testbed.client, VIP)? && neighbour(&testbed.client, VIP)? != MAC_TEXT)
    })?;
    assert_eq!(testbed.a.status()[0].counters.transitions, transitions, "it stays active");
    Ok(())
}

#[test]
fn router_that_is_added_begins_when_its_device_is_there() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let other = router(Family::V4, 82);
    let mut added = router_with_mac(Family::V4);
    added.addresses = vec![address_of("10.0.0.101".parse()?)];
    let mut closed = router(Family::V4, 83);
    closed.addresses = vec![address_of("10.0.0.102".parse()?)];
    closed.accept = false;
    testbed.a.start(vec![other.clone()])?;
    testbed.a.wait_for(State::Active)?;
    testbed.a.configure(vec![other, added, closed]);
    until_true(SOON, "all three are there", || Ok(testbed.a.status().len() == 3))?;
    testbed.a.wait_for(State::Active)?;
    let faults = testbed.a.transitions().into_iter().filter(|(_, one)| one.to == State::Fault);
    assert_eq!(faults.count(), 0, "{:?}", testbed.a.transitions());
    Ok(())
}

#[test]
fn device_goes_with_its_router_and_settings_are_put_back() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let Testbed { a: mut node, b: _b, client: _client, switch: _switch } = Testbed::new()?;
    let name = node.namespace.name().to_owned();
    let setting = || {
        let mut sysctl = Namespace::existing(&name).command("sysctl");
        let value = run(sysctl.args(["-n", "net.ipv4.conf.eth0.arp_ignore"]))?;
        Ok::<_, anyhow::Error>(value.trim().to_owned())
    };
    assert_eq!(setting()?, "0");
    let exists = |device: &str| {
        let shown = run(command("ip").args(["-n", &name, "-o", "link"]))?;
        Ok::<_, anyhow::Error>(shown.contains(&format!("{device}@")))
    };
    node.start(vec![router_with_mac(Family::V4)])?;
    node.wait_for(State::Active)?;
    assert!(exists("vrrp.81")?);
    assert_eq!(setting()?, "1");
    // An operator removes it: it is made again, and the router is active again.
    node.namespace.ip("link del vrrp.81")?;
    node.wait_for_report(
        "a fault",
        |report| matches!(report, Report::Transition(one) if one.to == State::Fault),
    )?;
    node.wait_for(State::Active)?;
    until_true(SOON, "it has its address", || {
        Ok(node.addresses("vrrp.81")?.contains(&format!("{VIP}/32")))
    })?;
    let mut plain = router_with_mac(Family::V4);
    plain.virtual_mac = None;
    node.configure(vec![plain]);
    node.wait_to_have(VIP, true)?;
    until_true(SOON, "the device goes", || Ok(!exists("vrrp.81")?))?;
    until_true(SOON, "the setting is put back", || Ok(setting()? == "0"))?;
    node.configure(vec![router_with_mac(Family::V4)]);
    until_true(SOON, "the device comes", || exists("vrrp.81"))?;
    node.wait_for(State::Active)?;
    node.stop(true)?;
    assert!(!exists("vrrp.81")?);
    Ok(())
}

#[test]
fn detach_without_a_daemon_takes_away_what_one_has_left() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let _pins = programs(&testbed)?;
    let mut router = router_with_mac(Family::V4);
    router.accept = false;
    testbed.start(&router)?;
    let taken = |report: &Report| matches!(report, Report::TakeMac { take: true, .. });
    testbed.a.wait_for_report("that it takes the MAC address", taken)?;
    let has_address = || Ok(testbed.a.addresses("vrrp.81")?.contains(&format!("{VIP}/32")));
    until_true(SOON, "it holds the address", has_address)?;
    let host = &testbed.a.namespace;
    let table = || Ok(run(host.command("nft").args(["list", "tables"]))?.contains("lbd_vrrp"));
    until_true(SOON, "its table is there", table)?;
    testbed.a.die();
    // An address that was set by hand is not ours.
    let host = &testbed.a.namespace;
    host.ip("address add 10.0.0.99/32 dev eth0")?;
    let detach = |more: &[&str]| {
        let mut lbctl = kit::balancer::program(host, "lbctl")?;
        let common = ["--socket", "/nonexistent", "detach", "--pin-dir", "/sys/fs/bpf/lbt-none"];
        run(lbctl.args(common).args(more))
    };
    let dry = detach(&["--dry-run"])?;
    assert!(dry.contains(&format!("{VIP} is taken off vrrp.81")), "{dry}");
    assert!(testbed.a.addresses("vrrp.81")?.contains(&format!("{VIP}/32")), "nothing was changed");
    let output = detach(&[])?;
    for part in [VIP, "interface vrrp.81 removed", "table inet lbd_vrrp of nftables removed"] {
        assert!(output.contains(part), "{output}");
    }
    let links = host.ip("address show")?;
    assert!(!links.contains("vrrp.81") && !links.contains(&format!("{VIP}/")), "{links}");
    assert!(links.contains("10.0.0.99/32"), "{links}");
    let tables = run(host.command("nft").args(["list", "tables"]))?;
    assert!(!tables.contains("lbd_vrrp"), "{tables}");
    assert!(detach(&[])?.contains("nothing is pinned"));
    Ok(())
}

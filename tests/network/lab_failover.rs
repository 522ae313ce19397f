//! The lab's pair under keepalived, without a balancer: the effects of faults of a node or a wire on the holder of an address,
//! and the samples of the kit's watches and probes.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use kit::{
    can_run, command,
    haproxy::{self, Haproxy},
    http::Connection,
    keepalived::{Instance, Keepalived},
    lab::{self, Lab, Options},
    owners::Watch,
    pair::{self, Wire},
    probes::Probes,
    wait,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// keepalived and HAProxy on both nodes of a pair: as high availability is built of other parts.
struct Testbed {
    lab: Lab,
    keepalived: [Keepalived; 2],
    _haproxy: [Haproxy; 2],
    vip: SocketAddr,
    interval: Duration,
}

impl Testbed {
    fn new(vip: impl Into<std::net::IpAddr>) -> Result<Self> {
        let lab = Lab::new(&Options { pair: true, ..Options::default() })?;
        let (vip, interval) = (SocketAddr::new(vip.into(), 80), Duration::from_millis(100));
        let nodes = lab.pair()?;
        let bind = "transparent".to_owned();
        let settings = haproxy::Settings { bind, ..haproxy::Settings::default() };
        let haproxy = |node| Haproxy::on(&lab, node, vip, &settings);
        let haproxy = [haproxy(nodes[0])?, haproxy(nodes[1])?];
        let keepalived = |node, priority| {
            let instance = Instance::new(51, priority, interval, &[vip.ip()]);
            Keepalived::start(&lab, node, &[instance])
        };
        let keepalived = [keepalived(nodes[0], 150)?, keepalived(nodes[1], 100)?];
        let testbed = Self { lab, keepalived, _haproxy: haproxy, vip, interval };
        testbed.wait_for(0)?;
        Ok(testbed)
    }

    /// Waits until the client is answered and this node alone holds the address.
    fn wait_for(&self, holder: usize) -> Result<()> {
        wait::until(PATIENCE, "the address is assigned", || {
            let nodes = self.lab.pair()?.map(|node| &node.namespace);
            let watch = Watch::start(&nodes, self.vip.ip())?;
            thread::sleep(Duration::from_millis(20));
            let owners = watch.finish()?;
            ensure!(owners.at(Instant::now()) == [holder], "{owners:?}");
            let limit = Duration::from_millis(200);
            let mut connection = Connection::open(&self.lab.client.namespace, self.vip, limit)?;
            connection.get("/")?.ok()
        })
        .map(drop)
    }
}

#[test]
fn a_failover_of_keepalived_is_seen_by_the_watch_and_by_the_probes() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for vip in [lab::VIPS_V4[0].into(), std::net::IpAddr::from(lab::VIPS_V6[0])] {
        let mut testbed = Testbed::new(vip)?;
        let nodes = testbed.lab.pair()?.map(|node| &node.namespace);
        let watch = Watch::start(&nodes, vip)?;
        let probes = Probes::start(&testbed.lab.client.namespace, testbed.vip)?;
        thread::sleep(Duration::from_millis(300));
        let cut = Instant::now();
        testbed.lab.cut("lb1")?;
        thread::sleep(testbed.interval * 8);
        let owners = watch.finish()?;
        let end = Instant::now();
        let answers = probes.finish()?;
        // Three intervals and the skew, less the elapsed part of the first; and no more.
        let outage = answers.outage(cut, end);
        assert!(outage > testbed.interval * 2 && outage < testbed.interval * 5, "{outage:?}");
        assert_eq!(owners.at(cut), [0]);
        assert_eq!(owners.at(end), [1]);
        let calm = answers.outage(end - testbed.interval * 2, end);
        assert!(calm < testbed.interval, "{calm:?}");
        assert!(answers.lost(cut, end).count() > 50);
        testbed.lab.mend("lb1")?;
        testbed.wait_for(0)?;
        testbed.keepalived[0].stop()?;
        testbed.wait_for(1)?;
        testbed.keepalived[0].launch()?;
        testbed.wait_for(0)?;
        testbed.keepalived[0].kill()?;
        let node = &nodes[0];
        assert!(node.ip("addr show eth0")?.contains(&vip.to_string()), "it stays behind");
        testbed.keepalived[0].launch()?;
        testbed.wait_for(0)?;
    }
    Ok(())
}

#[test]
fn nodes_that_are_parted_both_hold_the_address_until_the_wire_is_healed() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let testbed = Testbed::new(lab::VIPS_V4[0])?;
    let nodes = testbed.lab.pair()?;
    let namespaces = nodes.map(|node| &node.namespace);
    let watch = Watch::start(&namespaces, testbed.vip.ip())?;
    testbed.lab.part(Wire::First)?;
    let parted = Instant::now();
    let reach = |wire| {
        let to = match wire {
            Wire::First => nodes[1].v4.to_string(),
            Wire::Second => pair::second_addresses(nodes[1])[0].to_string(),
        };
        command::run(nodes[0].namespace.command("ping").args(["-c1", "-W1", &to])).is_ok()
    };
    assert!(!reach(Wire::First) && reach(Wire::Second));
    testbed.lab.part(Wire::Second)?;
    assert!(!reach(Wire::Second));
    for web in &testbed.lab.webs {
        let to = SocketAddr::new(web.host.v4.into(), 80);
        for node in namespaces {
            Connection::open(node, to, PATIENCE)?.get("/")?.ok()?;
        }
    }
    testbed.lab.heal(Wire::Second)?;
    assert!(reach(Wire::Second));
    testbed.lab.heal(Wire::First)?;
    wait::until_true(PATIENCE, "they reach each other", || Ok(reach(Wire::First)))?;
    let healed = Instant::now();
    thread::sleep(testbed.interval * 5);
    let owners = watch.finish()?;
    let longest = owners.longest(parted, healed);
    assert!(longest.two > Duration::from_millis(500), "{longest}");
    assert_eq!(owners.at(Instant::now()), [0]);
    Ok(())
}

#[test]
fn a_frozen_node_is_silent_and_goes_on_where_it_was() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new(lab::VIPS_V4[0])?;
    let node = testbed.lab.pair()?[0];
    testbed.lab.freeze(node)?;
    testbed.wait_for(1).unwrap_err();
    let other = &testbed.lab.pair()?[1].namespace;
    assert!(other.ip("addr show eth0")?.contains(&testbed.vip.ip().to_string()), "it took over");
    testbed.lab.thaw(node)?;
    testbed.wait_for(0)?;
    testbed.keepalived.iter_mut().try_for_each(Keepalived::check)
}

#[test]
fn some_of_the_advertisements_get_lost_and_nothing_else() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let testbed = Testbed::new(lab::VIPS_V4[0])?;
    let nodes = testbed.lab.pair()?;
    testbed.lab.lose_advertisements(Wire::First, 95)?;
    let to = nodes[1].v4.to_string();
    command::run(nodes[0].namespace.command("ping").args(["-c50", "-i0.01", "-W1", &to]))?;
    wait::until_true(PATIENCE, "three in a row are lost, and both take the address", || {
        let shown = nodes[1].namespace.ip("addr show eth0")?;
        Ok(shown.contains(&testbed.vip.ip().to_string()))
    })?;
    testbed.lab.heal(Wire::First)?;
    testbed.wait_for(0)
}

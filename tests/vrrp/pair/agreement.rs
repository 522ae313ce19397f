//! Nodes that are not configured alike: both report it, and no harm comes of it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run,
    ha_pair::{HaPair, Plan},
    lab::Options,
    router,
    status::PairExt as _,
    wait,
    ways::Way,
};

const INTERVAL: Duration = Duration::from_millis(100);
const SOON: Duration = Duration::from_secs(10);

/// Waits until a node has an event with all of these words.
fn wait_event(ha_pair: &HaPair, n: usize, words: &[&str]) -> Result<()> {
    wait::until(SOON, &format!("node {n} has an event with {words:?}"), || {
        let events = ha_pair.nodes[n].lbctl(&["events"])?;
        let found = events.lines().any(|line| words.iter().all(|word| line.contains(word)));
        ensure!(found, "events of node {n}:\n{events}");
        Ok(())
    })
}

/// Starts both nodes, whatever comes of it.
fn launch(ha_pair: &mut HaPair) -> Result<()> {
    ha_pair.nodes.iter_mut().try_for_each(|node| {
        node.launch()?;
        node.wait_usable().map(drop)
    })
}

#[test]
fn another_password_is_told_on_both_nodes_and_makes_no_two_owners() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let interval = Duration::from_secs(1);
    let lines = ["one", "other"].map(|word| format!("version = 2\npassword = \"{word}\""));
    let plan = Plan { lines, ..Plan::new(&[Way::DsrV4], interval) };
    let mut ha_pair = HaPair::new(&Options::default(), plan)?;
    launch(&mut ha_pair)?;
    ha_pair.wait_active(0)?;
    for n in [0, 1] {
        wait_event(&ha_pair, n, &["main", "authentication"])
            .or_else(|_| wait_event(&ha_pair, n, &["main", "password"]))?;
    }
    // Longer than a router waits for an advertisement.
    std::thread::sleep(interval * 5);
    ensure!(ha_pair.holders(Way::DsrV4.vip())? == [0], "{}", ha_pair.logs());
    Ok(())
}

#[test]
fn another_interval_of_version_2_is_told_on_both_nodes_and_makes_no_two_owners() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let interval = Duration::from_secs(1);
    let lines = ["version = 2"; 2].map(str::to_owned);
    let plan = Plan { lines, ..Plan::new(&[Way::DsrV4], interval) };
    let mut ha_pair = HaPair::new(&Options::default(), plan)?;
    let tables = ha_pair.plan.tables(&ha_pair.lab, 1)?;
    let slower = tables.replace("interval = \"1000ms\"", "interval = \"2s\"");
    ensure!(slower != tables, "no interval in:\n{tables}");
    ha_pair.nodes[1].set_more(&slower);
    ha_pair.nodes[1].configure(&ha_pair.plan.services(&ha_pair.lab))?;
    launch(&mut ha_pair)?;
    ha_pair.wait_active(0)?;
    for n in [0, 1] {
        wait_event(&ha_pair, n, &["main", "interval"])?;
    }
    for n in [0, 1] {
        let router = ha_pair.pair(n)?.router("main")?.clone();
        ensure!(!router.problems.is_empty(), "node {n} has it among its problems: {router:?}");
    }
    // Longer than the slower one waits for an advertisement.
    std::thread::sleep(interval * 9);
    ensure!(ha_pair.holders(Way::DsrV4.vip())? == [0], "{}", ha_pair.logs());
    Ok(())
}

#[test]
fn a_peer_with_another_seed_is_refused_and_told_on_both_nodes() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = HaPair::new(&Options::default(), Plan::new(&[Way::DsrV4], INTERVAL))?;
    let config = std::fs::read_to_string(ha_pair.nodes[1].config())?;
    ensure!(config.contains("seed = \"0001"), "{config}");
    let config = config.replace("seed = \"0001", "seed = \"ff01");
    std::fs::write(ha_pair.nodes[1].config(), config)?;
    launch(&mut ha_pair)?;
    ha_pair.wait_active(0)?;
    for n in [0, 1] {
        wait_event(&ha_pair, n, &["seed"])?;
        wait::until(SOON, "the peer is refused", || {
            let pair = ha_pair.pair(n)?;
            let peer = pair.peers.first().context("a peer")?;
            let problems = format!("{:?} {:?}", peer.session.refused, peer.problems);
            ensure!(problems.contains("seed"), "{peer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_service_that_differs_is_told_on_both_nodes_and_the_others_are_synced() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let plan = Plan::new(&[Way::DsrV4, Way::IpipV4], INTERVAL);
    let mut ha_pair = HaPair::new(&Options::default(), plan)?;
    let mut services = ha_pair.plan.services(&ha_pair.lab);
    services[1] = services[1].clone().with("ring_slots = 16381");
    ha_pair.nodes[1].configure(&services)?;
    launch(&mut ha_pair)?;
    ha_pair.wait_active(0)?;
    for n in [0, 1] {
        wait_event(&ha_pair, n, &[Way::IpipV4.name()])?;
    }
    let problems = ha_pair.pair(0)?.peers.first().context("a peer")?.problems.join("; ");
    ensure!(problems.contains(Way::IpipV4.name()), "{problems}");
    ensure!(!problems.contains(Way::DsrV4.name()), "{problems}");
    Ok(())
}

#[test]
fn backends_that_differ_for_long_are_told_on_both_nodes_and_stop_nothing() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = HaPair::new(&Options::default(), Plan::new(&[Way::DsrV4], INTERVAL))?;
    let mut services = ha_pair.plan.services(&ha_pair.lab);
    services[0].backends.pop();
    ha_pair.nodes[1].configure(&services)?;
    launch(&mut ha_pair)?;
    ha_pair.wait_active(0)?;
    ha_pair.wait_synced()?;
    for n in [0, 1] {
        // A change on one node after the other makes no event.
        wait::until(2 * SOON, &format!("node {n} reports the backends"), || {
            let events = ha_pair.nodes[n].lbctl(&["events", "--kind", "peer_differs"])?;
            ensure!(events.contains("the backends' addresses"), "events of node {n}:\n{events}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_change_by_lbctl_on_one_node_alone_is_reported_on_both_until_it_is_made_on_the_other()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = HaPair::new(&Options::default(), Plan::new(&[Way::DsrV4], INTERVAL))?;
    launch(&mut ha_pair)?;
    ha_pair.wait_active(0)?;
    ha_pair.wait_synced()?;
    let services = ha_pair.plan.services(&ha_pair.lab);
    let (web, backend) = (services[0].name.clone(), services[0].backends[0].to_string());
    let new = backend.rsplit_once('.').map(|(net, _)| format!("{net}.250")).context("IPv4")?;
    let steps: [(&[&str], &str); 2] = [
        (&["backend", "add", &web, &new], "the backends' addresses"),
        (&["backend", "drain", &web, &backend], "weights or states of backends"),
    ];
    for (step, expected) in steps {
        for n in [1, 0] {
            ha_pair.nodes[n].lbctl(step)?;
            if n == 0 {
                continue;
            }
            for n in [0, 1] {
                wait::until(2 * SOON, &format!("node {n} reports {step:?}"), || {
                    let status = ha_pair.nodes[n].lbctl(&["vrrp", "status"])?;
                    ensure!(status.contains(&format!("PROBLEM: {web}: {expected}")), "{status}");
                    Ok(())
                })?;
            }
        }
        for n in [0, 1] {
            wait::until(SOON, &format!("node {n} is content after {step:?} on both"), || {
                let status = ha_pair.nodes[n].lbctl(&["vrrp", "status"])?;
                ensure!(!status.contains("PROBLEM"), "{status}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_peer_with_another_key_is_no_peer_and_told_on_both_nodes() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = HaPair::new(&Options::default(), Plan::new(&[Way::DsrV4], INTERVAL))?;
    let config = std::fs::read_to_string(ha_pair.nodes[1].config())?;
    let other = router::KEY.replace('0', "f");
    ensure!(config.contains(router::KEY), "{config}");
    std::fs::write(ha_pair.nodes[1].config(), config.replace(router::KEY, &other))?;
    launch(&mut ha_pair)?;
    ha_pair.wait_active(0)?;
    for n in [0, 1] {
        wait_event(&ha_pair, n, &["key"])?;
        let pair = ha_pair.pair(n)?;
        ensure!(pair.peers.iter().all(|peer| !peer.session.connected), "{:?}", pair.peers);
    }
    Ok(())
}

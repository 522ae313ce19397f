//! A node with the higher priority that comes back, or stays: it waits for the flows, and is handed over to.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run,
    ha_pair::{HaPair, Plan},
    lab::Options,
    owners::Watch,
    pair::{SECOND, Wire},
    status::PairExt as _,
    wait,
    ways::Way,
};

use super::clients::Clients;

const INTERVAL: Duration = Duration::from_millis(50);

#[test]
fn a_node_that_comes_back_waits_for_the_flows_and_takes_over_without_a_break() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair =
        HaPair::start(&Options::default(), Plan::new(&[Way::DsrV4, Way::DsrV6], INTERVAL))?;
    let clients = Clients::start(&ha_pair, Duration::from_secs(120))?;
    ha_pair.nodes[0].stop()?;
    ha_pair.wait_holds(1)?;
    // It can't receive the flows, however long it receives the lower one's advertisements.
    ha_pair.lab.part(Wire::Second)?;
    ha_pair.nodes[0].launch()?;
    ha_pair.nodes[0].wait_usable()?;
    thread::sleep(INTERVAL * 40);
    let router = ha_pair.pair(0)?.router("main")?.clone();
    let why = router.holds_back.clone().unwrap_or_default();
    ensure!(why.contains("flows of another node"), "{router:?}; {}", ha_pair.logs());
    let metric_is = |n: usize, value: &str| {
        let page = ha_pair.nodes[n].metrics()?;
        let line = format!("lb_vrrp_holds_back{{router=\"main\"}} {value}");
        ensure!(page.lines().any(|one| one == line), "no `{line}` in:\n{page}");
        Ok(())
    };
    metric_is(0, "1.0")?;
    metric_is(1, "0.0")?;
    ensure!(ha_pair.holders(Way::DsrV4.vip())? == [1], "{router:?}; {}", ha_pair.logs());
    let watch = {
        let nodes = ha_pair.lab.pair()?.map(|host| &host.namespace);
        Watch::start(&nodes, Way::DsrV4.vip())?
    };
    let begun = Instant::now();
    ha_pair.lab.heal(Wire::Second)?;
    ha_pair.wait_active(0)?;
    ha_pair.wait_synced()?;
    wait::until(Duration::from_secs(10), "it holds back no more", || metric_is(0, "0.0"))?;
    clients.go_on()?;
    let owners = watch.finish()?;
    let seen = owners.longest(begun, Instant::now());
    ensure!(seen.none <= owners.precision, "somebody holds the address: {seen}");
    let events = ha_pair.nodes[1].lbctl(&["events"])?;
    let message = "main is handed over: lb1";
    ensure!(events.contains(message) && !events.contains("two_active"), "events of lb2:\n{events}");
    clients.finish().with_context(|| ha_pair.logs())
}

#[test]
fn a_failover_by_weight_needs_no_sync() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut plan = Plan::new(&[Way::DsrV4, Way::DsrV6], INTERVAL);
    let track = format!(
        "[[virtual_router.track]]\ntype = \"interface\"\ninterface = \"{SECOND}\"\nweight = -100"
    );
    plan.lines = [track.clone(), track];
    let ha_pair = HaPair::start(&Options::default(), plan)?;
    // The nodes' synchronisation goes by the interface that the first one tracks.
    let sever = |n: usize, state: &str| {
        ha_pair.host(n).namespace.ip(&format!("link set {SECOND} {state}")).map(drop)
    };
    sever(0, "down")?;
    let begun = Instant::now();
    ha_pair.wait_active(1)?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(8), "it took {took:?}; {}", ha_pair.logs());
    Ok(())
}

#[test]
fn a_failover_by_weight_undoes_one_by_order() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut plan = Plan::new(&[Way::DsrV4, Way::DsrV6], INTERVAL);
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), "0")?;
    let path = file.path().display();
    plan.lines[1] =
        format!("[[virtual_router.track]]\ntype = \"file\"\npath = \"{path}\"\nweight = 1");
    let ha_pair = HaPair::start(&Options::default(), plan)?;
    let clients = Clients::start_short(&ha_pair)?;
    ha_pair.hand_over(0)?;
    ha_pair.wait_active(1)?;
    thread::sleep(INTERVAL * 20);
    ensure!(ha_pair.holders(Way::DsrV4.vip())? == [1], "{}", ha_pair.logs());
    fs::write(file.path(), "-60")?;
    ha_pair.wait_active(0)?;
    clients.go_on()?;
    clients.finish().with_context(|| ha_pair.logs())
}

#[test]
fn a_failover_by_order_to_a_node_that_something_has_lowered_before_is_undone() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut plan = Plan::new(&[Way::DsrV4, Way::DsrV6], INTERVAL);
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), "-60")?;
    let path = file.path().display();
    plan.lines[1] =
        format!("[[virtual_router.track]]\ntype = \"file\"\npath = \"{path}\"\nweight = 1");
    let ha_pair = HaPair::start(&Options::default(), plan)?;
    ensure!(ha_pair.pair(1)?.router("main")?.priority == 40, "{}", ha_pair.logs());
    let clients = Clients::start_short(&ha_pair)?;
    ha_pair.hand_over(0)?;
    ha_pair.wait_active(0)?;
    ha_pair.wait_synced()?;
    let router = ha_pair.pair(0)?.router("main")?.clone();
    ensure!(router.counters.became_active == 2, "it has given way: {router:?}");
    clients.go_on()?;
    clients.finish().with_context(|| ha_pair.logs())
}

#[test]
fn a_node_that_was_drained_and_stays_takes_over_again_without_a_break() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ha_pair = HaPair::start(&Options::default(), Plan::new(&[Way::DsrV4], INTERVAL))?;
    let clients = Clients::start_short(&ha_pair)?;
    ha_pair.nodes[0].lbctl(&["node", "drain"])?;
    ha_pair.wait_active(1)?;
    // It has the higher priority, and keeps away for as long as it is to leave.
    thread::sleep(INTERVAL * 20);
    ensure!(ha_pair.holders(Way::DsrV4.vip())? == [1], "{}", ha_pair.logs());
    clients.go_on()?;
    ha_pair.nodes[0].lbctl(&["node", "enable"])?;
    ha_pair.wait_active(0)?;
    ha_pair.wait_synced()?;
    clients.go_on()?;
    clients.finish().with_context(|| ha_pair.logs())
}

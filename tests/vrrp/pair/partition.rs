//! Wires between the nodes that fail, or lose packets, while clients reach both.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run, command,
    ha_pair::{HaPair, Plan},
    lab::{INTERFACE, Options},
    owners::Watch,
    pair::{self, Wire},
    probes::Probes,
    status::PairExt as _,
    wait,
    ways::Way,
};

use super::{clients::Clients, faults::SLACK};

const INTERVAL: Duration = Duration::from_millis(50);

/// How long it may take that one of two owners is left: three intervals, and the delay of a busy machine.
const BOUND: Duration = Duration::from_millis(3 * 50).saturating_add(SLACK);

/// The MAC address by which the client would reach a VIP.
fn neighbour(ha_pair: &HaPair, vip: std::net::IpAddr) -> Result<String> {
    let client = ha_pair.lab.client.namespace.name();
    let mut ip = command::command("ip");
    let vip = vip.to_string();
    ip.args(["-n", client, "-j", "neigh", "show", &vip, "dev", INTERFACE]);
    let shown: serde_json::Value = serde_json::from_str(&command::run(&mut ip)?)?;
    let mac = shown[0]["lladdr"].as_str();
    mac.map(str::to_owned).with_context(|| format!("no neighbour {vip}: {shown}"))
}

#[test]
fn when_parted_nodes_meet_again_one_is_left_and_clients_go_to_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ways = [Way::DsrV4, Way::DsrV6, Way::IpipV4, Way::IpipV6];
    let ha_pair = HaPair::start(&Options::default(), Plan::new(&ways, INTERVAL))?;
    let clients = Clients::start(&ha_pair, Duration::from_secs(60))?;
    let macs = [ha_pair.host(0), ha_pair.host(1)].map(|host| host.namespace.mac(INTERFACE));
    let [first, _] = macs.map(Result::unwrap_or_default);
    for turn in 0..4 {
        ha_pair.lab.part(Wire::First)?;
        ha_pair.lab.part(Wire::Second)?;
        ha_pair.wait_holds(1)?;
        ha_pair.wait_holds(0)?;
        clients.go_on()?;
        // At any time between two advertisements.
        thread::sleep(INTERVAL * turn / 4);
        let watches = [Way::DsrV4, Way::DsrV6].map(|way| {
            let nodes = ha_pair.lab.pair()?.map(|host| &host.namespace);
            anyhow::Ok((way, Watch::start(&nodes, way.vip())?))
        });
        thread::sleep(Duration::from_millis(20));
        ha_pair.lab.heal(Wire::First)?;
        let healed = Instant::now();
        ha_pair.wait_active(0)?;
        for (way, watch) in watches.into_iter().collect::<Result<Vec<_>>>()? {
            wait::until(BOUND + SLACK, "the client goes to the one that is left", || {
                let mac = neighbour(&ha_pair, way.vip())?;
                ensure!(mac == first, "it goes to {mac}, and {first} is right");
                Ok(())
            })?;
            thread::sleep(INTERVAL * 4);
            let owners = watch.finish()?;
            let seen = owners.longest(healed, Instant::now());
            println!("{}: {seen}", way.name());
            ensure!(seen.two <= BOUND + owners.precision, "{}: {seen}", way.name());
            ensure!(seen.none <= owners.precision, "{}: {seen}; {}", way.name(), ha_pair.logs());
        }
        ha_pair.lab.heal(Wire::Second)?;
        ha_pair.wait_synced()?;
        clients.go_on()?;
    }
    for n in [0, 1] {
        let router = ha_pair.pair(n)?.router("main")?.clone();
        ensure!(router.counters.two_active > 0, "node {n} has counted it: {router:?}");
        let events = ha_pair.nodes[n].lbctl(&["events"])?;
        ensure!(events.contains("two_active"), "node {n} has no such event:\n{events}");
    }
    clients.finish().with_context(|| ha_pair.logs())
}

/// A pair that advertises by both wires.
fn with_second_path() -> Result<HaPair> {
    let lab_free = |n: usize| {
        // The nodes' addresses on the second wire end as those on the first.
        let peer = [6, 5][n];
        format!(
            "second_path = {{ interface = \"{}\", peers = [\"192.168.9.{peer}\"] }}",
            pair::SECOND
        )
    };
    let plan = Plan { lines: [lab_free(0), lab_free(1)], ..Plan::new(&[Way::DsrV4], INTERVAL) };
    HaPair::start(&Options::default(), plan)
}

#[test]
fn with_a_second_path_nodes_that_are_parted_on_the_first_have_one_owner() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ha_pair = with_second_path()?;
    let nodes = ha_pair.lab.pair()?.map(|host| &host.namespace);
    let watch = Watch::start(&nodes, Way::DsrV4.vip())?;
    thread::sleep(INTERVAL);
    let begun = Instant::now();
    ha_pair.lab.part(Wire::First)?;
    thread::sleep(INTERVAL * 20);
    ha_pair.lab.heal(Wire::First)?;
    thread::sleep(INTERVAL * 4);
    ha_pair.lab.part(Wire::Second)?;
    thread::sleep(INTERVAL * 20);
    ha_pair.lab.heal(Wire::Second)?;
    let owners = watch.finish()?;
    let seen = owners.exceptions(begun, Instant::now());
    ensure!(seen.is_empty(), "{seen:?}; {}", ha_pair.logs());
    ensure!(owners.at(Instant::now()) == [0], "{owners:?}");
    Ok(())
}

#[test]
fn lost_advertisements_break_nothing_and_leave_one_owner() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ways = [Way::DsrV4, Way::DsrV6];
    let ha_pair = HaPair::start(&Options::default(), Plan::new(&ways, INTERVAL))?;
    let clients = Clients::start(&ha_pair, Duration::from_secs(40))?;
    let watch = {
        let nodes = ha_pair.lab.pair()?.map(|host| &host.namespace);
        Watch::start(&nodes, Way::DsrV4.vip())?
    };
    let probes = Probes::start(&ha_pair.lab.client.namespace, Way::DsrV4.target())?;
    thread::sleep(INTERVAL);
    let begun = Instant::now();
    ha_pair.lab.lose_advertisements(Wire::First, 20)?;
    thread::sleep(Duration::from_secs(8));
    ha_pair.lab.heal(Wire::First)?;
    ha_pair.wait_active(0)?;
    let (owners, answers, end) = (watch.finish()?, probes.finish()?, Instant::now());
    // Of four in a row, one gets through but for once in six hundred times.
    let (seen, outage) = (owners.longest(begun, end), answers.outage(begun, end));
    println!("{seen}, no answer for {outage:?}");
    ensure!(seen.two <= INTERVAL * 2 + BOUND, "{seen}; {}", ha_pair.logs());
    ensure!(seen.none <= owners.precision + SLACK, "{seen}; {}", ha_pair.logs());
    ensure!(outage <= SLACK * 2, "no answer for {outage:?}");
    clients.finish().with_context(|| ha_pair.logs())
}

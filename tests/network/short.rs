//! The basic functions of a node and a pair: for kernels and drivers that the other tests don't run on.
//!
//! `cargo xtask test kernels` runs it in virtual machines, on veth and on virtio NICs; it is all
//! real programs and real connections, and expects native mode.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run_lab,
    downloads::{self, Downloads},
    ha_pair::{self, HaPair},
    http::Connection,
    lab::{INTERFACE, Lab, Options},
    nics,
    ways::{Way, balanced},
};

use crate::{egress, mtu};

/// Both modes, both families.
const WAYS: [Way; 2] = [Way::DsrV4, Way::IpipV6];
/// A virtual machine without help of the processor is slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between advertisements: a missed one must mean the other node and not a moment on the CPU.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long downloads would take if nothing ended them.
const LONG: Duration = Duration::from_secs(100);
/// For this long, changes are given time to break connections.
const A_WHILE: Duration = Duration::from_secs(2);

fn options() -> Result<Options> {
    Ok(Options { nics: nics::of_this_machine()?, ..Options::default() })
}

/// The hosts that answer these requests, with counts, each on a connection of its own.
pub fn spread(lab: &Lab, way: Way, requests: usize) -> Result<BTreeMap<String, usize>> {
    let mut answers = BTreeMap::new();
    for n in 0..requests {
        let page = Connection::open(&lab.client.namespace, way.target(), PATIENCE)
            .and_then(|mut connection| connection.get("/")?.ok())
            .with_context(|| format!("request {n} by {}", way.name()))?;
        *answers.entry(page.text()).or_default() += 1;
    }
    Ok(answers)
}

fn download(lab: &Lab, way: Way) -> Result<Downloads> {
    let (target, patience) = (way.target(), PATIENCE);
    Downloads::start(lab, downloads::Plan { target, each: 1, time: LONG, patience })
}

/// That every download has got more since a moment, and ends whole.
fn check(downloads: Downloads, since: Instant) -> Result<()> {
    let (silent, ended) = (downloads.silent_since(since), downloads.ended());
    ensure!(silent == 0 && ended == 0, "{silent} got nothing any more, {ended} have ended");
    for download in downloads.end()? {
        let end = download.end.as_ref();
        ensure!(end.is_ok(), "the download from {}: {:?}", download.host, download.end);
    }
    Ok(())
}

fn is_native(balancer: &Balancer) -> Result<()> {
    let status = balancer.status()?;
    for interface in &status.interfaces {
        ensure!(interface.mode == "native", "{interface:?}");
    }
    Ok(())
}

#[test]
fn every_backend_answers_and_a_drain_breaks_nothing_that_is_established() -> Result<()> {
    if !can_run_lab() {
        return Ok(());
    }
    let (lab, balancer) = balanced(&options()?, &WAYS, "")?;
    is_native(&balancer)?;
    let drained = &lab.webs[0];
    for way in WAYS {
        let answers = spread(&lab, way, 40)?;
        ensure!(answers.len() == 3, "every host answers by {}: {answers:?}", way.name());
        let downloads = download(&lab, way)?;
        let address = way.backend(drained).to_string();
        balancer.lbctl(&["backend", "drain", way.name(), &address])?;
        let answers = spread(&lab, way, 20)?;
        let name = &drained.host.name;
        ensure!(!answers.contains_key(name), "{name} is drained by {}: {answers:?}", way.name());
        let since = Instant::now();
        thread::sleep(A_WHILE);
        check(downloads, since).with_context(|| format!("drain by {}", way.name()))?;
    }
    let status = balancer.status()?;
    let dropped: u64 = status.dropped.values().map(|count| count.packets).sum();
    ensure!(dropped == 0, "dropped: {:?}", status.dropped);
    Ok(())
}

#[test]
fn frames_that_the_program_makes_are_seen_to_leave() -> Result<()> {
    if !can_run_lab() {
        return Ok(());
    }
    let options = Options { webs: 1, ..options()? };
    let (lab, balancer) = balanced(&options, &WAYS, "")?;
    is_native(&balancer)?;
    egress::until_egress(&balancer, &lab.webs[0].host.namespace.mac(INTERFACE)?, "forwards")
}

#[test]
fn a_client_is_told_what_fits_the_tunnel() -> Result<()> {
    mtu::a_large_upload_fits_the_tunnel(&options()?, Way::IpipV6)
}

#[test]
fn a_failover_of_a_pair_breaks_nothing_that_is_established() -> Result<()> {
    if !can_run_lab() {
        return Ok(());
    }
    let ha_pair = HaPair::start(&options()?, ha_pair::Plan::new(&WAYS, INTERVAL))?;
    for node in &ha_pair.nodes {
        is_native(node)?;
    }
    a_failover_breaks_nothing(&ha_pair)
}

#[test]
fn a_failover_from_a_node_at_xdp_to_one_at_tc_breaks_nothing_that_is_established() -> Result<()> {
    if !can_run_lab() {
        return Ok(());
    }
    let mut ha_pair = HaPair::new(&options()?, ha_pair::Plan::new(&WAYS, INTERVAL))?;
    let services = ha_pair.plan.services(&ha_pair.lab);
    ha_pair.nodes[1].set_attach("tc");
    ha_pair.nodes[1].configure(&services)?;
    ha_pair.launch()?;
    is_native(&ha_pair.nodes[0])?;
    let interface = &ha_pair.nodes[1].status()?.interfaces[0];
    ensure!(interface.mode == "tc" && interface.attached, "{interface:?}");
    a_failover_breaks_nothing(&ha_pair)
}

/// The first node stands still, and the other one takes over.
fn a_failover_breaks_nothing(ha_pair: &HaPair) -> Result<()> {
    let downloads = WAYS.map(|way| download(&ha_pair.lab, way));
    ha_pair.lab.freeze(ha_pair.host(0))?;
    ha_pair.wait_holds(1)?;
    for way in WAYS {
        let answers = spread(&ha_pair.lab, way, 10)?;
        ensure!(answers.values().sum::<usize>() == 10, "{answers:?}");
    }
    // TCP retransmits segments that were lost meanwhile, at growing intervals.
    thread::sleep(INTERVAL * 3);
    let since = Instant::now();
    thread::sleep(A_WHILE);
    for (way, downloads) in WAYS.iter().zip(downloads) {
        check(downloads?, since).with_context(|| format!("failover by {}", way.name()))?;
    }
    Ok(())
}

//! Mode `nat` sees both directions: connections are counted as they are, and a drain ends with the last.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    http::Connection,
    lab::{Lab, Web},
    nginx,
    status::{ServiceExt as _, StatusExt as _},
    ways::Way,
};
use lb_api::status::{Backend, Connections};
use lb_model::{backend_address::BackendAddress, seen::Condition};

use crate::nat::{FAMILIES, PATIENCE, lab_of_gateways, service, translated_by_a_pair};

/// The services' idle timeout. A drain that waits for it, or for the `drain_silence` of 90 seconds, lasts longer than any here.
const IDLE: Duration = Duration::from_secs(20);
/// Within which a drain is over after its last connection.
const SOON: Duration = Duration::from_secs(10);

fn settings() -> String {
    let idle = IDLE.as_secs();
    format!("idle_timeout = \"{idle}s\"\ncheck = {{ type = \"tcp\", interval = \"30s\" }}")
}

fn counting(attach: &'static str) -> Result<(Lab, Balancer)> {
    let lab = lab_of_gateways(attach)?;
    let services = FAMILIES.map(|way| service(&lab, way).with(&settings()));
    let balancer = Balancer::start(&lab, &services)?;
    Ok((lab, balancer))
}

fn address(way: Way, web: &Web) -> BackendAddress {
    BackendAddress::from(way.backend(web)).or_port(nginx::PORTS[1].try_into().ok())
}

fn backend(balancer: &Balancer, way: Way, web: &Web) -> Result<Backend> {
    Ok(balancer.status()?.service(way.name())?.backend(address(way, web))?.clone())
}

fn connections(balancer: &Balancer, way: Way, web: &Web) -> Result<Connections> {
    backend(balancer, way, web)?.connections.context("connections are counted")
}

/// Waits until so many connections to a host are open.
fn wait_open(balancer: &Balancer, way: Way, web: &Web, wanted: u64) -> Result<()> {
    let until = Instant::now() + SOON;
    loop {
        let Connections { open, .. } = connections(balancer, way, web)?;
        if open == wanted {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("{open} connections to {} are counted, {wanted} are open", web.host.name);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Connections of which a host has answered a request.
fn used(lab: &Lab, way: Way, host: &str, count: usize) -> Result<Vec<Connection>> {
    let mut all = Vec::new();
    while all.len() < count {
        let mut open = Connection::open(&lab.client.namespace, way.target(), PATIENCE)?;
        if open.get("/")?.backend()? == host {
            all.push(open);
        }
    }
    Ok(all)
}

/// A drain with connections that have been used and some that have sent nothing yet; it ends with the last of them.
fn drain_ends_with_the_last(lab: &Lab, balancer: &Balancer, way: Way) -> Result<()> {
    let web = &lab.webs[0];
    let mut active = used(lab, way, &web.host.name, 3)?;
    let silent = |_| Connection::open(&lab.client.namespace, way.target(), PATIENCE);
    let silent: Vec<_> = (0..24).map(silent).collect::<Result<_>>()?;
    let at = address(way, web).to_string();
    balancer.lbctl(&["backend", "drain", way.name(), &at])?;
    let mut seen = 0;
    let until = Instant::now() + SOON;
    while seen != 27 {
        ensure!(Instant::now() < until, "{seen} connections are counted, 27 are open");
        thread::sleep(Duration::from_millis(200));
        seen = 0;
        for web in &lab.webs {
            seen += connections(balancer, way, web)?.open;
        }
    }
    let here = connections(balancer, way, web)?.open;
    ensure!(here > 3 && here < 27, "{here} of the connections are on {}", web.host.name);
    for open in &mut active {
        ensure!(open.get("/")?.backend()? == web.host.name, "it stays");
    }
    drop(active);
    wait_open(balancer, way, web, here - 3)?;
    thread::sleep(Duration::from_secs(4));
    ensure!(!backend(balancer, way, web)?.is_estimated_over(), "clients that are silent are there");
    let closed = Instant::now();
    drop(silent);
    let wait = ["--wait", "--timeout", "60s"];
    balancer.lbctl(&[&["backend", "drain", way.name(), &at][..], &wait].concat())?;
    ensure!(closed.elapsed() < SOON, "the drain has ended after {:?}", closed.elapsed());
    balancer.lbctl(&["backend", "enable", way.name(), &at])?;
    Ok(())
}

#[test]
fn a_translated_backend_is_drained_moments_after_its_last_connection_has_closed() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for attach in ["xdp", "tc"] {
        let (lab, balancer) = counting(attach)?;
        // Before, a connection may be open that has had no answer yet.
        thread::sleep(IDLE + Duration::from_secs(2));
        for way in FAMILIES {
            drain_ends_with_the_last(&lab, &balancer, way)
                .with_context(|| format!("{attach}, {}", way.name()))?;
        }
    }
    Ok(())
}

#[test]
fn a_translated_backend_that_refuses_connections_is_found_by_its_answers() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (mut lab, balancer) = counting("xdp")?;
    let way = FAMILIES[0];
    lab.webs[0].nginx.stop()?;
    let until = Instant::now() + SOON;
    loop {
        // Refused or not.
        let _ = Connection::open(&lab.client.namespace, way.target(), PATIENCE);
        let one = backend(&balancer, way, &lab.webs[0])?;
        if one.condition == Condition::SoftDown {
            let Connections { refused, .. } = one.connections.context("counted")?;
            ensure!(refused > 0, "{one:?}");
            return Ok(());
        }
        ensure!(Instant::now() < until, "{one:?}");
    }
}

/// The Backup is the backends' gateway: it translates the answers to what the Active forwards.
#[test]
fn a_drain_waits_for_connections_whose_answers_pass_another_node() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ha_pair = translated_by_a_pair(&settings(), |lab| {
        let node = &lab.pair()?[1];
        Ok(FAMILIES.map(|way| node.address(way.vip()).to_string()))
    })?;
    let (lab, way) = (&ha_pair.lab, FAMILIES[0]);
    ha_pair.wait_active(0)?;
    let web = &lab.webs[0];
    thread::sleep(IDLE + Duration::from_secs(2));
    let mut open = used(lab, way, &web.host.name, 1)?;
    let at = address(way, web).to_string();
    for node in &ha_pair.nodes {
        node.lbctl(&["backend", "drain", way.name(), &at])?;
    }
    let Connections { open: counted, .. } = connections(&ha_pair.nodes[0], way, web)?;
    ensure!(counted == 0, "the Active sees answers of {counted} connections");
    let until = Instant::now() + SOON;
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(500));
        let one = backend(&ha_pair.nodes[0], way, web)?;
        ensure!(!one.is_estimated_over(), "a connection is open: {one:?}");
    }
    ensure!(open[0].get("/")?.backend()? == web.host.name, "it stays");
    Ok(())
}

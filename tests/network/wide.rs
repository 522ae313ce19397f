//! Services with several VIPs or ports: clients of each reach the backends, and the most specific service is first.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run,
    http::Connection,
    lab::{Lab, Options, VIPS_V4, VIPS_V6},
    nginx::PORTS,
    status::StatusExt as _,
    wait,
    ways::{Way, decapsulate},
    wide::{Connections, PREFIXES, destinations, table},
};
use lb_model::seen::Condition;

const PATIENCE: Duration = Duration::from_secs(5);

/// A balancer with a service of a prefix and a range for each family, and one of a single destination in them that has one
/// backend.
fn balanced(attach: &'static str, ways: [Way; 2]) -> Result<(Lab, Balancer)> {
    let lab = Lab::new(&Options { attach, ..Options::default() })?;
    if ways.iter().any(|way| way.overhead() > 0) {
        decapsulate(&lab)?;
    }
    let tables = [
        table(&lab, "all-v4", (PREFIXES[0], "\"80-8080\""), ways[0], 3),
        table(&lab, "all-v6", (PREFIXES[1], "\"any\""), ways[1], 3),
        table(&lab, "one", ("10.0.0.101", "80"), ways[0], 1),
        table(&lab, "high", (PREFIXES[0], "\"8000-8080\""), ways[0], 2),
    ];
    let mut balancer = Balancer::on(&lab, &lab.balancer, &[], &tables.concat())?;
    balancer.launch()?;
    balancer.wait_usable()?;
    Ok((lab, balancer))
}

/// The host and the port that answer a connection.
fn answer(lab: &Lab, target: SocketAddr) -> Result<(String, u16)> {
    let mut connection = Connection::open(&lab.client.namespace, target, PATIENCE)?;
    let page = connection.get("/connection")?.ok()?.text();
    let words: Vec<_> = page.split_whitespace().collect();
    let [host, _, _, port] = words[..] else { anyhow::bail!("{page}") };
    Ok((host.to_owned(), port.parse().context("a port")?))
}

/// The hosts that answer at a destination, each at the port that the client connects to.
pub fn hosts(lab: &Lab, target: SocketAddr) -> Result<BTreeSet<String>> {
    let answers = (0..40).map(|_| answer(lab, target)).collect::<Result<Vec<_>>>();
    let answers = answers.with_context(|| format!("{target}"))?;
    assert!(answers.iter().all(|(_, port)| *port == target.port()), "{target}: {answers:?}");
    Ok(answers.into_iter().map(|(host, _)| host).collect())
}

pub fn names(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

fn all_destinations_are_served(attach: &'static str, ways: [Way; 2]) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, balancer) = balanced(attach, ways)?;
    let all = names(&["web1", "web2", "web3"]);
    for vip in VIPS_V4 {
        let at = |port| SocketAddr::new(vip.into(), port);
        let is_one = vip == VIPS_V4[1];
        let expected = if is_one { names(&["web1"]) } else { all.clone() };
        assert_eq!(hosts(&lab, at(PORTS[0]))?, expected, "{vip}");
        assert_eq!(hosts(&lab, at(PORTS[1]))?, names(&["web1", "web2"]), "{vip}");
    }
    for vip in VIPS_V6 {
        for port in PORTS {
            assert_eq!(hosts(&lab, SocketAddr::new(vip.into(), port))?, all, "{vip} {port}");
        }
    }
    // Nothing listens there, which a backend says.
    let syns = || -> Result<u64> {
        let status = balancer.status()?;
        Ok(status.service("all-v4")?.backends.values().map(|backend| backend.new_flows).sum())
    };
    let before = syns()?;
    let closed = SocketAddr::new(VIPS_V4[0].into(), 81);
    Connection::refused(&lab.client.namespace, closed, PATIENCE)?;
    wait::until(PATIENCE, "its SYN is counted", || {
        let now = syns()?;
        ensure!(now > before, "{before} {now}");
        Ok(())
    })?;
    shown(&balancer)
}

/// What the node's commands and metrics say of these services.
fn shown(balancer: &Balancer) -> Result<()> {
    let list = balancer.lbctl(&["service", "list"])?;
    assert!(list.contains("10.0.0.100/30:80-8080"), "{list}");
    assert!(list.contains("[fd00::100/127]:any"), "{list}");
    let metrics = balancer.metrics()?;
    let info = "vip=\"10.0.0.100/30\",port=\"80-8080\"";
    assert!(metrics.contains(info), "{info}");
    let status = balancer.status()?;
    for name in ["all-v4", "all-v6", "one", "high"] {
        let backends = &status.service(name)?.backends;
        assert!(
            backends.values().all(|backend| backend.condition == Condition::Up),
            "{name}: {backends:?}"
        );
    }
    Ok(())
}

#[test]
fn each_vip_and_port_is_served_by_dsr() -> Result<()> {
    all_destinations_are_served("xdp", [Way::DsrV4, Way::DsrV6])
}

#[test]
fn each_vip_and_port_is_served_by_ipip() -> Result<()> {
    all_destinations_are_served("xdp", [Way::IpipV4, Way::IpipV6])
}

#[test]
fn each_vip_and_port_is_served_by_tc() -> Result<()> {
    all_destinations_are_served("tc", [Way::DsrV4, Way::DsrV6])
}

/// A service is added and drained by lbctl; its flows have their destinations, and explain finds what the packets do.
#[test]
fn flows_of_one_source_port_are_told_apart_by_their_destinations() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = Lab::new(&Options::default())?;
    let balancer = {
        let mut balancer = Balancer::new(&lab, &[] as &[Service])?;
        balancer.launch()?;
        balancer
    };
    let add = "service add web --vip 10.0.0.100/30 --port 80-8080 --idle-timeout 20s --check http \
               --check-path /health --check-interval 200ms";
    let add: Vec<_> = add.split_whitespace().collect();
    let refused = balancer.lbctl(&add).unwrap_err().to_string();
    assert!(refused.contains("say which one shows that a backend serves"), "{refused}");
    balancer.lbctl(&[&add[..], &["--check-port", "80"]].concat())?;
    for web in &lab.webs {
        balancer.lbctl(&["backend", "add", "web", &web.host.v4.to_string()])?;
    }
    balancer.wait_usable()?;
    // A drain makes the slots of one backend those of others: new flows in them are pinned.
    balancer.lbctl(&["backend", "drain", "web", &lab.webs[0].host.v4.to_string()])?;
    let mut connections = Connections::open(&lab, 40_000..40_040, &destinations(false))?;
    assert!(connections.iter().all(|(_, _, host)| host != "web1"), "one was drained");
    let flows = balancer.lbctl(&["flows", "--limit", "1000"])?;
    let is_pinned = |port: u16, to: SocketAddr| flows.contains(&format!(":{port} > {to} "));
    let pinned: Vec<_> = connections.iter().filter(|(port, to, _)| is_pinned(*port, *to)).collect();
    // A third of the slots are in flux.
    assert!(pinned.len() > 30, "{flows}");
    let told_apart = pinned.windows(2).any(|two| two[0].0 == two[1].0);
    assert!(told_apart, "two of one source port: {flows}");
    for (port, to, host) in connections.iter().step_by(20) {
        let from = format!("{}:{port}", lab.client.v4);
        let explained = balancer.lbctl(&["explain", "tcp", &from, &to.to_string(), "--ack"])?;
        let at = lab.web(host)?.host.v4.to_string();
        assert!(explained.contains(&at), "{from} {to} is at {host}: {explained}");
        assert!(explained.contains("web: tcp 10.0.0.100/30:80-8080, dsr"), "{explained}");
        assert!(explained.contains("and the destination's port"), "{explained}");
    }
    balancer.lbctl(&["backend", "enable", "web", &lab.webs[0].host.v4.to_string()])?;
    balancer.lbctl(&["backend", "drain", "web", &lab.webs[1].host.v4.to_string()])?;
    connections.go_on()
}

//! Mode `nat` with several ports: backends without the VIP that get the port that a client connects to.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    http::Connection,
    lab::Lab,
    nginx::PORTS,
    status::StatusExt as _,
    udp::{Echo, Probe},
    ways::Way,
    wide::{Connections, table_of_nat},
};

use crate::{
    nat::{FAMILIES, PATIENCE, lab_of_gateways, pair_of_gateways, vips_for_gateways},
    wide::{hosts, names},
};

/// The port of a UDP echo.
const ECHO: u16 = 5_353;

/// A service of a range and one of all ports, each of one family, and one of a port of the range that has one backend.
fn tables(lab: &Lab) -> String {
    let [v4, v6] = FAMILIES.map(Way::vip).map(|vip| vip.to_string());
    let echo = table_of_nat(lab, "echo", (&v4, "\"5000-5400\""), FAMILIES[0], 3);
    [
        table_of_nat(lab, "range", (&v4, "\"80-8080\""), FAMILIES[0], 3),
        table_of_nat(lab, "any", (&v6, "\"any\""), FAMILIES[1], 3),
        table_of_nat(lab, "one", (&v4, &PORTS[1].to_string()), FAMILIES[0], 1),
        echo.replace("\"tcp\"", "\"udp\""),
    ]
    .concat()
}

fn at(way: Way, port: u16) -> SocketAddr {
    SocketAddr::new(way.vip(), port)
}

/// Every packet of some UDP flows is answered from the VIP and the port that it was sent to.
fn echoes(lab: &Lab) -> Result<()> {
    let _echo = Echo::start_at(lab, |web| SocketAddr::new(FAMILIES[0].backend(web), ECHO))?;
    for bytes in [0, 1_900] {
        let pause = Duration::from_millis(2);
        let target = at(FAMILIES[0], ECHO);
        let probe = Probe::start_of_size(&lab.client.namespace, target, 20, pause, bytes)?;
        thread::sleep(Duration::from_millis(500));
        let tally = probe.finish()?;
        ensure!(tally.sent > 50 && tally.lost.is_empty() && tally.moved.is_empty(), "{tally:?}");
    }
    Ok(())
}

fn each_port_is_served(lab: &Lab, balancer: &Balancer) -> Result<()> {
    let all = names(&["web1", "web2", "web3"]);
    assert_eq!(hosts(lab, at(FAMILIES[0], PORTS[0]))?, all);
    assert_eq!(
        hosts(lab, at(FAMILIES[0], PORTS[1]))?,
        names(&["web1"]),
        "the more specific service"
    );
    for port in PORTS {
        assert_eq!(hosts(lab, at(FAMILIES[1], port))?, all, "{port}");
    }
    echoes(lab)?;
    // A client takes a refusal only from where it has connected to.
    for way in FAMILIES {
        Connection::refused(&lab.client.namespace, at(way, 81), PATIENCE).context(way.name())?;
    }
    let status = balancer.status()?;
    for (name, backends) in [("range", 3), ("any", 3), ("one", 1), ("echo", 3)] {
        let service = status.service(name)?;
        let answered = |backend: &&lb_api::status::Backend| {
            backend.returned.is_some_and(|returned| returned.packets > 0)
        };
        let answered = service.backends.values().filter(answered).count();
        assert_eq!(answered, backends, "{name}: answers are counted at each backend");
    }
    explained(lab, balancer)
}

/// What explain says of a client's packet and of its answer.
fn explained(lab: &Lab, balancer: &Balancer) -> Result<()> {
    let (client, vip) = (format!("{}:40000", lab.client.v4), at(FAMILIES[0], 8_000).to_string());
    let there = balancer.lbctl(&["explain", "tcp", &client, &vip, "--syn"])?;
    ensure!(there.contains("range: tcp 10.0.0.100:80-8080, nat"), "{there}");
    ensure!(there.contains(", and its port stays"), "{there}");
    let web = format!("{}:8000", lab.webs[1].host.v4);
    let back = balancer.lbctl(&["explain", "tcp", &web, &client, "--ack"])?;
    ensure!(back.contains("its source becomes 10.0.0.100, and its port stays"), "{back}");
    Ok(())
}

#[test]
fn backends_get_each_port_of_a_range_and_clients_see_only_the_vip() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for attach in ["xdp", "tc"] {
        let lab = lab_of_gateways(attach)?;
        let mut balancer = Balancer::on(&lab, &lab.balancer, &[], &tables(&lab))?;
        balancer.launch()?;
        balancer.wait_usable()?;
        each_port_is_served(&lab, &balancer).with_context(|| attach)?;
        // What is translated follows from the maps, which outlive the daemon, and from the configuration.
        let to = [at(FAMILIES[0], PORTS[0]), at(FAMILIES[1], PORTS[1])];
        let mut connections = Connections::open(&lab, 21_000..21_010, &to)?;
        balancer.stop()?;
        connections.go_on().context("without lbd")?;
        balancer.launch()?;
        balancer.wait_usable()?;
        connections.go_on().context("after a restart")?;
    }
    Ok(())
}

/// A service is added, changed and deleted by lbctl, and another one takes over its port.
#[test]
fn a_range_that_another_service_would_translate_differently_is_refused() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let lab = lab_of_gateways("xdp")?;
    let mut balancer = Balancer::on(&lab, &lab.balancer, &[], &tables(&lab))?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let web = lab.webs[0].host.v4.to_string();
    let add = |name: &str, vip: IpAddr, port: &str| {
        let (vip, port) = (vip.to_string(), port.to_owned());
        balancer.lbctl(&[
            "service",
            "add",
            name,
            "--vip",
            &vip,
            "--port",
            &port,
            "--mode",
            "nat",
            "--check",
            "tcp",
            "--check-port",
            "80",
        ])
    };
    let other = kit::lab::VIPS_V4[1].into();
    add("other", other, "8000-8050")?;
    let refused = balancer.lbctl(&["backend", "add", "other", &web]).unwrap_err().to_string();
    let reason =
        format!("{web}:80-8080 is a backend of service other, too: by nat its answers could");
    ensure!(refused.contains(&reason), "{refused}");
    // Of the same VIP, the translation is the same.
    add("part", FAMILIES[0].vip(), "8000-8050")?;
    balancer.lbctl(&["backend", "add", "part", &web])?;
    balancer.wait_usable()?;
    assert_eq!(hosts(&lab, at(FAMILIES[0], 80))?, names(&["web1", "web2", "web3"]));
    // Nobody listens at the ports of the new one; its backend's refusals are those of the new one's.
    Connection::refused(&lab.client.namespace, at(FAMILIES[0], 8_030), PATIENCE)?;
    let answers = |name: &str| -> Result<u64> {
        let status = balancer.status()?;
        let backends = status.service(name)?.backends.values();
        Ok(backends.filter_map(|backend| backend.returned).map(|back| back.packets).sum())
    };
    assert_eq!(answers("part")?, 1);
    balancer.lbctl(&["service", "remove", "part", "--yes"])?;
    let before = answers("range")?;
    Connection::refused(&lab.client.namespace, at(FAMILIES[0], 8_030), PATIENCE)
        .context("the wider service has the port")?;
    ensure!(answers("range")? > before);
    Ok(())
}

/// Connections from each of a few source ports to several ports of a service.
#[test]
fn connections_to_a_range_outlive_a_drain_and_the_loss_of_the_active_node() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ha_pair = pair_of_gateways(vips_for_gateways, |_| [], tables)?;
    let (lab, any) = (&ha_pair.lab, FAMILIES[1]);
    let to = PORTS.map(|port| at(any, port));
    let mut older = Connections::open(lab, 21_000..21_020, &to)?;
    let drained = any.backend(&lab.webs[0]).to_string();
    for node in &ha_pair.nodes {
        node.lbctl(&["backend", "drain", "any", &drained])?;
    }
    let mut newer = Connections::open(lab, 22_000..22_020, &to)?;
    let mut go_on = |when: &str| -> Result<()> {
        older
            .go_on()
            .and_then(|()| newer.go_on())
            .with_context(|| format!("{when}; {}", ha_pair.logs()))
    };
    go_on("drained")?;
    ha_pair.wait_synced()?;
    lab.cut(&ha_pair.host(0).name)?;
    ha_pair.wait_holds(1)?;
    go_on("on the other node")?;
    lab.mend(&ha_pair.host(0).name)?;
    ha_pair.wait_active(0)?;
    go_on("back")
}

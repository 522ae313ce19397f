//! Services with several VIPs or ports on a pair: flows of one source port to several destinations keep their backends.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use kit::{
    balancer::program,
    can_run, command,
    ha_pair::{HaPair, PRIORITIES, Plan},
    lab::{INTERFACE, Lab, Options},
    nginx::PORTS,
    pair::Wire,
    router::{self, Router},
    ways::Way,
    wide::{Connections, PREFIXES, destinations, table},
};

/// The ways whose VIPs are those of both prefixes, so that the routers have them.
const WAYS: [Way; 5] = [Way::DsrV4, Way::IpipV4, Way::IpipV4InV6, Way::DsrV6, Way::IpipV6];

fn started() -> Result<HaPair> {
    let plan = Plan::new(&WAYS, Duration::from_millis(100));
    let mut ha_pair = HaPair::new(&Options::default(), plan)?;
    let services = [
        table(&ha_pair.lab, "v4", (PREFIXES[0], "\"80-8080\""), Way::DsrV4, 3),
        table(&ha_pair.lab, "v6", (PREFIXES[1], "\"any\""), Way::IpipV6, 3),
    ];
    for n in [0, 1] {
        let tables = services.concat() + &ha_pair.plan.tables(&ha_pair.lab, n)?;
        ha_pair.nodes[n].set_more(&tables);
        ha_pair.nodes[n].configure(&[])?;
    }
    ha_pair.launch()?;
    Ok(ha_pair)
}

/// A drain pins flows, which the peer needs by their destinations: the source port alone is that of six.
#[test]
fn flows_of_several_vips_and_ports_outlive_a_drain_a_death_and_a_return() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut ha_pair = started()?;
    let open = |ha_pair: &HaPair, from: u16| -> Result<Vec<Connections>> {
        let open = |v6| Connections::open(&ha_pair.lab, from..from + 20, &destinations(v6));
        Ok(vec![open(false)?, open(true)?])
    };
    let mut connections = open(&ha_pair, 40_000)?;
    for (name, way) in [("v4", Way::DsrV4), ("v6", Way::IpipV6)] {
        let drained = way.backend(&ha_pair.lab.webs[0]).to_string();
        for node in &ha_pair.nodes {
            node.lbctl(&["backend", "drain", name, &drained])?;
        }
    }
    connections.extend(open(&ha_pair, 41_000)?);
    let mut go_on = |ha_pair: &HaPair, after: &str| {
        let mut all = connections.iter_mut();
        all.try_for_each(Connections::go_on).with_context(|| format!("{after}; {}", ha_pair.logs()))
    };
    go_on(&ha_pair, "drained")?;
    ha_pair.wait_synced()?;
    ha_pair.lab.cut("lb1")?;
    ha_pair.wait_holds(1)?;
    go_on(&ha_pair, "lb2 took over")?;
    ha_pair.lab.mend("lb1")?;
    ha_pair.wait_active(0)?;
    go_on(&ha_pair, "lb1 is back")?;
    ha_pair.wait_synced()?;
    ha_pair.nodes[0].stop()?;
    ha_pair.wait_holds(1)?;
    ha_pair.nodes[0].launch()?;
    ha_pair.wait_active(0)?;
    go_on(&ha_pair, "lb1 was stopped and started")
}

/// A prefix that no host of the link has an address of.
const ROUTED: &str = "198.51.100.0/28";

/// The web hosts have the prefix by a route of its own, and take it out of tunnels; the client has a route to it.
fn route(lab: &Lab) -> Result<()> {
    for web in &lab.webs {
        web.host.namespace.ip(&format!("route add local {ROUTED} dev lo"))?;
        let mut attach = program(&web.host.namespace, "lbctl")?;
        attach.args(["decap", "attach", "--dev", INTERFACE, "--from", "172.16.0.0/16"]);
        attach.args(["--vip", ROUTED, "--pin-dir"]).arg(lab.pins().join(&web.host.name));
        command::run(&mut attach).with_context(|| web.host.name.clone())?;
    }
    lab.client.namespace.ip(&format!("route add {ROUTED} via 10.0.0.100")).map(drop)
}

#[test]
fn a_routed_prefix_moves_with_the_virtual_router_that_has_one_of_its_addresses() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let interval = Duration::from_millis(100);
    let mut ha_pair = HaPair::new(&Options::default(), Plan::new(&[Way::DsrV4], interval))?;
    route(&ha_pair.lab)?;
    let services = [("dsr", "80", Way::DsrV4), ("ipip", "\"any\"", Way::IpipV4)]
        .map(|(name, port, way)| table(&ha_pair.lab, name, (ROUTED, port), way, 3));
    let addresses = [Way::DsrV4.vip(), IpAddr::from([198, 51, 100, 1])];
    for n in [0, 1] {
        let router = Router::new("main", 51, PRIORITIES[n], interval, &addresses).toml();
        let sync = router::sync(&ha_pair.lab, ha_pair.host(n), Wire::Second, router::KEY)?;
        ha_pair.nodes[n].set_more(&(services.concat() + &router + &sync));
        ha_pair.nodes[n].configure(&[])?;
    }
    ha_pair.launch()?;
    let vips = [0, 1, 7, 15].map(|last| IpAddr::from([198, 51, 100, last]));
    let all: Vec<_> =
        vips.iter().flat_map(|vip| PORTS.map(|port| SocketAddr::new(*vip, port))).collect();
    let mut connections = Connections::open(&ha_pair.lab, 40_000..40_010, &all)?;
    for name in ["dsr", "ipip"] {
        let drained = ha_pair.lab.webs[0].host.v4.to_string();
        for node in &ha_pair.nodes {
            node.lbctl(&["backend", "drain", name, &drained])?;
        }
    }
    let mut pinned = Connections::open(&ha_pair.lab, 41_000..41_010, &all)?;
    ha_pair.wait_synced()?;
    ha_pair.nodes[0].kill()?;
    ha_pair.wait_holds(1)?;
    for connections in [&mut connections, &mut pinned] {
        connections.go_on().with_context(|| ha_pair.logs())?;
    }
    Connections::open(&ha_pair.lab, 42_000..42_005, &all).map(drop)
}

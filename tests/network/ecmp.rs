//! Three nodes that serve a VIP at once, behind a router that hashes connections over them (ECMP).

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    lab::{Host, Lab, Options},
    load::{Load, Plan},
    namespace::Namespace,
    pair::Wire,
    router,
    status::{PairExt as _, StatusExt as _},
    wait,
    ways::Way,
};

const WAY: Way = Way::DsrV4;
/// How long a silent flow is kept: longer than a peer may be silent (five seconds). The load's pauses are much shorter,
/// the test's waits longer.
const IDLE: Duration = Duration::from_secs(6);
const SETTINGS: &str = "idle_timeout = \"6s\"";
/// How long a few idle timeouts may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The nodes end before the hosts do.
struct Nodes {
    nodes: [Balancer; 3],
    third: Host,
    lab: Lab,
}

impl Nodes {
    /// Three nodes, each with the flows of the others. The router sends nothing to any of them.
    fn start() -> Result<Self> {
        let lab = Lab::new(&Options { pair: true, router: true, ..Options::default() })?;
        let third = lab.add_balancer("lb3", 7)?;
        let [first, second] = lab.pair()?;
        let hosts = [first, second, &third];
        let services = [WAY.service(&lab).with(SETTINGS)];
        let node = |host: &Host| {
            let sync = router::sync_among(&hosts, host, Wire::First, router::KEY);
            Balancer::on(&lab, host, &services, &sync)
        };
        let nodes = [node(first)?, node(second)?, node(&third)?];
        router_of(&lab)?.sysctl(&[("ipv4/fib_multipath_hash_policy", "1")])?;
        let mut nodes = Self { nodes, third, lab };
        for node in &mut nodes.nodes {
            node.launch()?;
            node.wait_usable()?;
        }
        nodes.wait_synced()?;
        Ok(nodes)
    }

    fn hosts(&self) -> Result<[&Host; 3]> {
        let [first, second] = self.lab.pair()?;
        Ok([first, second, &self.third])
    }

    fn wait_synced(&self) -> Result<()> {
        wait::until(PATIENCE, "each node has the flows of the others", || {
            for node in &self.nodes {
                let pair = node.poll_pair()?;
                ensure!(pair.synced(), "{:?}", pair.peers);
            }
            Ok(())
        })
    }

    /// The router hashes connections over these nodes.
    fn route(&self, nodes: &[usize]) -> Result<()> {
        let hosts = self.hosts()?;
        let hops: String =
            nodes.iter().map(|&node| format!(" nexthop via {}", hosts[node].v4)).collect();
        let route = format!("route replace {}/32{hops}", WAY.vip());
        router_of(&self.lab)?.ip(&route).map(drop)
    }

    /// Gives these nodes an order of the operator's.
    fn order(&self, nodes: &[usize], what: &str, web: usize) -> Result<()> {
        let backend = WAY.backend(&self.lab.webs[web]).to_string();
        for &node in nodes {
            self.nodes[node].lbctl(&["backend", what, WAY.name(), &backend])?;
        }
        Ok(())
    }

    fn slots_in_flux(&self, node: usize) -> Result<u32> {
        Ok(self.nodes[node].status()?.service(WAY.name())?.slots_in_flux)
    }

    /// New connections, which stay open.
    fn load(&self) -> Result<Load> {
        let pause = Duration::from_millis(200);
        let plan = Plan { target: WAY.target(), steady: 40, passing: 0, pause };
        Load::start(&self.lab.client.namespace, plan)
    }
}

fn router_of(lab: &Lab) -> Result<&Namespace> {
    Ok(&lab.router.as_ref().context("this lab has no router")?.namespace)
}

fn run(loads: &[Load], time: Duration, when: &str) -> Result<()> {
    loads.first().context("there is load")?.run_for(time);
    loads.iter().try_for_each(|load| load.report().check().with_context(|| when.to_owned()))
}

#[test]
fn no_connection_breaks_when_a_router_hashes_anew_after_changes_and_a_crash() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut nodes = Nodes::start()?;

    // All come by the first node, and the others see none of them for longer than flows live.
    nodes.route(&[0])?;
    let mut loads = vec![nodes.load()?];
    nodes.order(&[0, 1, 2], "drain", 0)?;
    loads.push(nodes.load()?);
    run(&loads, IDLE * 5, "by the first node, after a drain")?;
    for node in 0..3 {
        ensure!(nodes.slots_in_flux(node)? > 0, "node {node} has ended the change alone");
    }
    nodes.route(&[1, 2])?;
    run(&loads, IDLE, "by the others")?;

    nodes.order(&[0, 1, 2], "enable", 0)?;
    nodes.order(&[0, 1, 2], "drain", 1)?;
    nodes.route(&[0, 1, 2])?;
    loads.push(nodes.load()?);
    run(&loads, IDLE, "by all")?;

    // A node crashes; forwarded flows live on, and the router finds out later.
    nodes.nodes[2].kill()?;
    run(&loads, IDLE / 3, "by all, one of which has crashed")?;
    nodes.route(&[0, 1])?;
    nodes.order(&[0, 1], "enable", 1)?;
    nodes.order(&[0, 1], "drain", 2)?;
    loads.push(nodes.load()?);
    run(&loads, IDLE * 3, "without the node that has crashed")?;

    // It comes back, and gets the orders that it has missed.
    nodes.nodes[2].launch()?;
    nodes.nodes[2].wait_usable()?;
    nodes.order(&[2], "enable", 1)?;
    nodes.order(&[2], "drain", 2)?;
    nodes.wait_synced()?;
    nodes.route(&[2])?;
    loads.push(nodes.load()?);
    run(&loads, IDLE * 5, "by the node that has come back")?;
    nodes.route(&[0, 1])?;
    run(&loads, IDLE, "by the others again")?;

    let mut backends = 0;
    for load in loads {
        let report = load.finish();
        report.check()?;
        backends = backends.max(report.by_backend.len());
    }
    ensure!(backends == 3, "the first connections were on {backends} backends");
    wait::until(PATIENCE, "the changes are over on all nodes", || {
        for node in 0..3 {
            let slots = nodes.slots_in_flux(node)?;
            ensure!(slots == 0, "node {node} has {slots} slots in flux");
        }
        Ok(())
    })
}

//! Two balancers that stand for each other, at work: `lbd` on both nodes of a lab.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_api::status::Pair;

use crate::{
    balancer::{Balancer, Service},
    command,
    lab::{Host, Lab, Options},
    pair::Wire,
    router::{self, Router},
    status::PairExt as _,
    wait,
    ways::{self, Way},
};

/// How the nodes are set up.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How clients' packets go; a service for each.
    pub ways: Vec<Way>,
    /// More lines for each service.
    pub settings: String,
    /// Between two advertisements.
    pub interval: Duration,
    /// More lines for each virtual router, by node.
    pub lines: [String; 2],
    /// The wire by which the nodes synchronise their flows; none: they don't.
    pub sync: Option<Wire>,
}

/// The nodes. The first has the higher priority.
#[derive(Debug)]
pub struct HaPair {
    /// `lbd` on each node. They end before the hosts do.
    pub nodes: [Balancer; 2],
    /// The hosts.
    pub lab: Lab,
    /// How they are set up.
    pub plan: Plan,
}

/// The nodes' priorities.
pub const PRIORITIES: [u8; 2] = [150, 100];

/// How long the nodes may take for a change that takes an instant, or a few intervals.
const SOON: Duration = Duration::from_secs(15);

impl Plan {
    /// These ways, with all else as it should be for a pair.
    #[must_use]
    pub fn new(ways: &[Way], interval: Duration) -> Self {
        Self {
            ways: ways.to_vec(),
            settings: String::new(),
            interval,
            lines: Default::default(),
            sync: Some(Wire::Second),
        }
    }

    /// The services, the same on both nodes.
    #[must_use]
    pub fn services(&self, lab: &Lab) -> Vec<Service> {
        self.ways.iter().map(|way| way.service(lab).with(&self.settings)).collect()
    }

    /// The VIPs of all ways.
    #[must_use]
    pub fn vips(&self) -> Vec<IpAddr> {
        let vips: BTreeSet<_> = self.ways.iter().map(|way| way.vip()).collect();
        vips.into_iter().collect()
    }

    /// The virtual routers of a node: one for each family that has a VIP, both Active on one node.
    #[must_use]
    pub fn routers(&self, n: usize) -> Vec<Router> {
        let (v4, v6): (Vec<_>, Vec<_>) = self.vips().into_iter().partition(IpAddr::is_ipv4);
        let routers = [("main", 51, v4), ("main6", 61, v6)].into_iter();
        let routers = routers.filter(|(_, _, vips)| !vips.is_empty());
        let router = |(name, vrid, vips): (&str, u8, Vec<IpAddr>)| {
            Router::new(name, vrid, PRIORITIES[n], self.interval, &vips).with(&self.lines[n])
        };
        routers.map(router).collect()
    }

    /// The configuration of a node of the pair: the tables of its routers, and of its synchronisation.
    ///
    /// # Errors
    ///
    /// If the lab is not that of a pair.
    pub fn tables(&self, lab: &Lab, n: usize) -> Result<String> {
        let routers = self.routers(n);
        let mut tables: String = routers.iter().map(Router::toml).collect();
        if let [one, other] = &routers[..] {
            let (one, other) = (&one.name, &other.name);
            tables +=
                &format!("\n[[sync_group]]\nname = \"all\"\nrouters = [\"{one}\", \"{other}\"]\n");
        }
        if let Some(wire) = self.sync {
            tables += &router::sync(lab, lab.pair()?[n], wire, router::KEY)?;
        }
        Ok(tables)
    }
}

impl HaPair {
    /// Builds the hosts and the configuration of both nodes. `lbd` is not started. Web hosts take packets out of
    /// tunnels, unless the nodes are web hosts: their interfaces have the balancer's program.
    ///
    /// # Errors
    ///
    /// If something is missing.
    pub fn new(options: &Options, plan: Plan) -> Result<Self> {
        let lab = Lab::new(&Options { pair: true, ..options.clone() })?;
        if !options.serve && plan.ways.iter().any(|way| way.overhead() > 0) {
            ways::decapsulate(&lab)?;
        }
        if plan.ways.iter().any(|way| way.mode() == "nat") {
            ways::return_through_balancers(&lab)?;
        }
        let services = plan.services(&lab);
        let node = |n: usize| Balancer::on(&lab, lab.pair()?[n], &services, &plan.tables(&lab, n)?);
        let nodes = [node(0)?, node(1)?];
        Ok(Self { nodes, lab, plan })
    }

    /// As [`Self::new`], and starts both nodes and waits until the first is Active and each has the
    /// other's flows.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn start(options: &Options, plan: Plan) -> Result<Self> {
        let mut ha_pair = Self::new(options, plan)?;
        ha_pair.launch()?;
        Ok(ha_pair)
    }

    /// Starts both nodes and waits until the first is Active and each has the other's flows.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn launch(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.launch()?;
            node.wait_usable()?;
        }
        self.wait_active(0)?;
        self.wait_synced()
    }

    /// A node's host.
    ///
    /// # Panics
    ///
    /// Never: the lab of a pair has two nodes.
    #[must_use]
    pub fn host(&self, n: usize) -> &Host {
        self.lab.pair().expect("the lab of a pair has two nodes")[n]
    }

    /// Which nodes have a VIP on a link: on the loopback every web host has it.
    ///
    /// # Errors
    ///
    /// If a namespace can't be entered.
    pub fn holders(&self, vip: IpAddr) -> Result<Vec<usize>> {
        let mut holders = Vec::new();
        for (n, host) in self.lab.pair()?.into_iter().enumerate() {
            let mut ip = host.namespace.command("ip");
            let shown = command::run(ip.args(["-o", "address", "show", "to", &vip.to_string()]))?;
            if shown.lines().any(|line| line.split_whitespace().nth(1) != Some("lo")) {
                holders.push(n);
            }
        }
        Ok(holders)
    }

    /// A node's status of the pair.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn pair(&self, n: usize) -> Result<Pair> {
        // A stopped node accepts requests, and answers when it goes on.
        ensure!(self.nodes[n].is_answering(), "{} does not run", self.host(n).name);
        self.nodes[n].poll_pair()
    }

    /// Waits until a node has all VIPs, and reports that it is Active.
    ///
    /// # Errors
    ///
    /// If that does not come to pass.
    pub fn wait_holds(&self, n: usize) -> Result<()> {
        let host = self.host(n).name.clone();
        wait::until(self.patience(), &format!("{host} has the VIPs"), || {
            for vip in self.plan.vips() {
                let holders = self.holders(vip)?;
                ensure!(holders.contains(&n), "{vip} is on {holders:?}");
            }
            let pair = self.pair(n)?;
            ensure!(pair.is_active(), "it reports: {:?}", pair.routers);
            Ok(())
        })
        .with_context(|| self.logs())
    }

    /// Waits until a node alone has all VIPs, and reports that it is Active.
    ///
    /// # Errors
    ///
    /// If that does not come to pass.
    pub fn wait_active(&self, n: usize) -> Result<()> {
        self.wait_holds(n)?;
        wait::until(self.patience(), &format!("{} alone has the VIPs", self.host(n).name), || {
            for vip in self.plan.vips() {
                let holders = self.holders(vip)?;
                ensure!(holders == [n], "{vip} is on {holders:?}");
            }
            Ok(())
        })
        .with_context(|| self.logs())
    }

    /// Waits until each node has all flows of the other.
    ///
    /// # Errors
    ///
    /// If that does not come to pass.
    pub fn wait_synced(&self) -> Result<()> {
        if self.plan.sync.is_none() {
            return Ok(());
        }
        wait::until(SOON, "each node has the flows of the other", || {
            for n in [0, 1] {
                let pair = self.pair(n)?;
                ensure!(pair.synced(), "{} reports: {:?}", self.host(n).name, pair.peers);
            }
            Ok(())
        })
        .with_context(|| self.logs())
    }

    /// Hands the addresses over from a node, as an operator does.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn hand_over(&self, from: usize) -> Result<()> {
        let done = self.nodes[from].lbctl(&["vrrp", "failover", "--all"]);
        done.map(drop).with_context(|| self.logs())
    }

    /// The last log lines of both nodes.
    #[must_use]
    pub fn logs(&self) -> String {
        let tail = |n: usize| {
            let log = self.nodes[n].log();
            let lines: Vec<_> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(150)..].join("\n");
            format!("{} wrote:\n{last}\n", self.host(n).name)
        };
        tail(0) + &tail(1)
    }

    fn patience(&self) -> Duration {
        SOON + self.plan.interval * 4
    }
}

//! A pair of balancers of one kind, before three web hosts.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    balancer::Balancer,
    haproxy::{self, Haproxy},
    http::Connection,
    keepalived::{Instance, Keepalived},
    lab::{INTERFACE, Lab, Options},
    pair::Wire,
    router::{self, Router},
    wait,
    ways::Way,
};
use serde::Serialize;

use super::faults::Fault;

/// The service that is measured.
const WAY: Way = Way::DsrV4;

/// Where the client connects.
pub const TARGET: SocketAddr = WAY.target();

/// The virtual router.
const VRID: u8 = 51;

/// The nodes' priorities: the first is to be Active whenever it can.
const PRIORITIES: [u8; 2] = [150, 100];

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// `lbd` on both nodes.
    Lb,
    /// keepalived for the address, and HAProxy in TCP mode, on both nodes.
    Keepalived,
}

/// A pair at work.
pub struct Site {
    /// What it is made of.
    pub system: System,
    /// The hosts.
    pub lab: Lab,
    /// Between two advertisements.
    pub interval: Duration,
    nodes: [Node; 2],
}

/// A balancer.
enum Node {
    Lb(Balancer),
    Keepalived(Keepalived, Haproxy),
}

impl System {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Lb, Self::Keepalived];

    /// As `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lb => "lb",
            Self::Keepalived => "keepalived",
        }
    }

    /// Whether this fault can come to it.
    pub fn is_asked(self, fault: Fault) -> bool {
        fault != Fault::HandedOver || self == Self::Lb
    }
}

impl Site {
    /// Builds the hosts, starts both nodes, and waits until the first is Active.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn new(system: System, interval: Duration) -> Result<Self> {
        let lab = Lab::new(&Options { pair: true, ..Options::default() })?;
        let node = |n: usize| match system {
            System::Lb => lbd(&lab, n, interval),
            System::Keepalived => keepalived(&lab, n, interval),
        };
        let nodes = [node(0)?, node(1)?];
        let site = Self { system, lab, interval, nodes };
        site.wait_settled().with_context(|| format!("a pair of {}", system.name()))?;
        Ok(site)
    }

    /// Kills what holds a node's address.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&mut self, n: usize) -> Result<()> {
        match &mut self.nodes[n] {
            Node::Lb(balancer) => balancer.kill(),
            Node::Keepalived(keepalived, _) => keepalived.kill(),
        }
    }

    /// Stops it in order.
    ///
    /// # Errors
    ///
    /// If it does not run, or does not end.
    pub fn stop(&mut self, n: usize) -> Result<()> {
        match &mut self.nodes[n] {
            Node::Lb(balancer) => balancer.stop().map(drop),
            Node::Keepalived(keepalived, _) => keepalived.stop().map(drop),
        }
    }

    /// Starts it again.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn launch(&mut self, n: usize) -> Result<()> {
        match &mut self.nodes[n] {
            Node::Lb(balancer) => balancer.launch(),
            Node::Keepalived(keepalived, _) => keepalived.launch(),
        }
    }

    /// Lets the other node take over from this one.
    ///
    /// # Errors
    ///
    /// If it does not, or can't be told to.
    pub fn hand_over(&self, n: usize) -> Result<()> {
        match &self.nodes[n] {
            Node::Lb(balancer) => balancer.lbctl(&["vrrp", "failover", ROUTER]).map(drop),
            Node::Keepalived(..) => bail!("keepalived can't hand over"),
        }
    }

    /// Which of the nodes have the address.
    ///
    /// # Errors
    ///
    /// If a namespace can't be entered.
    pub fn holders(&self) -> Result<Vec<usize>> {
        let mut holders = Vec::new();
        for (n, node) in self.lab.pair()?.into_iter().enumerate() {
            if node.namespace.enter(|| UdpSocket::bind((TARGET.ip(), 0)).is_ok())? {
                holders.push(n);
            }
        }
        Ok(holders)
    }

    /// That everything still runs.
    ///
    /// # Errors
    ///
    /// If something has ended.
    pub fn check(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| match node {
            Node::Lb(balancer) => balancer.check(),
            Node::Keepalived(keepalived, haproxy) => {
                haproxy.states()?;
                keepalived.check()
            }
        })
    }

    /// Waits until the second node has the address.
    ///
    /// # Errors
    ///
    /// If that does not come to pass.
    pub fn wait_taken_over(&self) -> Result<()> {
        wait::until(self.patience(), "the second node has the address", || {
            let holders = self.holders()?;
            ensure!(holders.contains(&1), "who has it: {holders:?}");
            Ok(())
        })
    }

    /// Waits until the first node alone has the address.
    ///
    /// # Errors
    ///
    /// If that does not come to pass.
    pub fn wait_returned(&self) -> Result<()> {
        wait::until(self.patience(), "the first node alone has the address", || {
            let holders = self.holders()?;
            ensure!(holders == [0], "who has it: {holders:?}");
            Ok(())
        })
        .with_context(|| format!("the first node wrote:\n{}", self.nodes[0].log()))
    }

    /// Waits until all is as it is without a fault: the first node alone has the address, and the
    /// client is answered. What the client knows of its neighbours it forgets.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn wait_settled(&self) -> Result<()> {
        self.wait_returned()?;
        // An entry of which it is sure it may keep for most of a minute, wrong as it may be.
        let client = &self.lab.client.namespace;
        client.ip(&format!("neigh flush dev {INTERFACE}"))?;
        wait::until(self.patience(), "the client is answered", || {
            Connection::open(client, TARGET, Duration::from_millis(300))?.get("/")?.ok()
        })?;
        Ok(())
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(20) + self.interval * 4
    }
}

/// The virtual router's name.
const ROUTER: &str = "main";

fn lbd(lab: &Lab, n: usize, interval: Duration) -> Result<Node> {
    let node = lab.pair()?[n];
    let router = Router::new(ROUTER, VRID, PRIORITIES[n], interval, &[TARGET.ip()]);
    let more = router.toml() + &router::sync(lab, node, Wire::Second, router::KEY)?;
    let mut balancer = Balancer::on(lab, node, &[WAY.service(lab)], &more)?;
    balancer.launch()?;
    balancer.wait_usable()?;
    Ok(Node::Lb(balancer))
}

fn keepalived(lab: &Lab, n: usize, interval: Duration) -> Result<Node> {
    let node = lab.pair()?[n];
    // As net.ipv4.ip_nonlocal_bind=1, for one socket.
    let bind = "transparent".to_owned();
    let settings = haproxy::Settings { bind, ..haproxy::Settings::default() };
    let haproxy = Haproxy::on(lab, node, TARGET, &settings)?;
    let instance = Instance::new(VRID, PRIORITIES[n], interval, &[TARGET.ip()]);
    Ok(Node::Keepalived(Keepalived::start(lab, node, &[instance])?, haproxy))
}

impl Node {
    fn log(&self) -> String {
        let log = match self {
            Self::Lb(balancer) => balancer.log(),
            Self::Keepalived(keepalived, _) => keepalived.log(),
        };
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

//! A pair of balancers of one kind, before three web hosts.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    balancer::Balancer,
    ha_pair::{HaPair, PRIORITIES, Plan},
    haproxy::{self, Haproxy},
    http::Connection,
    keepalived::{Instance, Keepalived},
    lab::{INTERFACE, Lab, Options},
    reports::vrrp::System,
    wait,
    ways::Way,
};

/// The service that is measured.
const WAY: Way = Way::DsrV4;

/// Where the client connects.
pub const TARGET: SocketAddr = WAY.target();

/// The virtual router.
const VRID: u8 = 51;

/// A pair at work.
pub struct Testbed {
    /// The system under test.
    pub system: System,
    /// Between two advertisements.
    pub interval: Duration,
    nodes: Nodes,
}

/// The balancers.
enum Nodes {
    Lb(Box<HaPair>),
    Keepalived(Box<Today>),
}

/// High availability as it is built of other parts. The programs end before the hosts do.
struct Today {
    keepalived: [Keepalived; 2],
    haproxy: [Haproxy; 2],
    lab: Lab,
}

impl Testbed {
    /// Builds the hosts, starts both nodes, and waits until the first is Active.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn new(system: System, interval: Duration) -> Result<Self> {
        let nodes = match system {
            System::Lb => {
                let plan = Plan::new(&[WAY], interval);
                Nodes::Lb(Box::new(HaPair::start(&Options::default(), plan)?))
            }
            System::Keepalived => Nodes::Keepalived(Box::new(Today::start(interval)?)),
        };
        let testbed = Self { system, interval, nodes };
        testbed.wait_settled().with_context(|| format!("a pair of {}", system.name()))?;
        Ok(testbed)
    }

    /// The hosts.
    pub fn lab(&self) -> &Lab {
        match &self.nodes {
            Nodes::Lb(ha_pair) => &ha_pair.lab,
            Nodes::Keepalived(today) => &today.lab,
        }
    }

    /// Kills the process that holds a node's address.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&mut self, n: usize) -> Result<()> {
        match &mut self.nodes {
            Nodes::Lb(ha_pair) => ha_pair.nodes[n].kill(),
            Nodes::Keepalived(today) => today.keepalived[n].kill(),
        }
    }

    /// Stops it in order.
    ///
    /// # Errors
    ///
    /// If it does not run, or does not end.
    pub fn stop(&mut self, n: usize) -> Result<()> {
        match &mut self.nodes {
            Nodes::Lb(ha_pair) => ha_pair.nodes[n].stop().map(drop),
            Nodes::Keepalived(today) => today.keepalived[n].stop().map(drop),
        }
    }

    /// Starts it again.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn launch(&mut self, n: usize) -> Result<()> {
        match &mut self.nodes {
            Nodes::Lb(ha_pair) => ha_pair.nodes[n].launch(),
            Nodes::Keepalived(today) => today.keepalived[n].launch(),
        }
    }

    /// Lets the other node take over from this one.
    ///
    /// # Errors
    ///
    /// If it does not, or the command fails.
    pub fn hand_over(&self, n: usize) -> Result<()> {
        match &self.nodes {
            Nodes::Lb(ha_pair) => ha_pair.hand_over(n),
            Nodes::Keepalived(..) => bail!("keepalived can't hand over"),
        }
    }

    /// Which of the nodes have the address.
    ///
    /// # Errors
    ///
    /// If a namespace can't be entered.
    pub fn holders(&self) -> Result<Vec<usize>> {
        let mut holders = Vec::new();
        for (n, node) in self.lab().pair()?.into_iter().enumerate() {
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
        match &mut self.nodes {
            Nodes::Lb(ha_pair) => ha_pair.nodes.iter_mut().try_for_each(Balancer::check),
            Nodes::Keepalived(today) => {
                today.haproxy.iter().try_for_each(|haproxy| haproxy.states().map(drop))?;
                today.keepalived.iter_mut().try_for_each(Keepalived::check)
            }
        }
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
        .with_context(|| self.logs())
    }

    /// Waits until all is as it is without a fault: the first node alone has the address, and the
    /// client is answered. The client forgets its neighbours.
    ///
    /// # Errors
    ///
    /// If it does not come to that.
    pub fn wait_settled(&self) -> Result<()> {
        self.wait_returned()?;
        if let Nodes::Lb(ha_pair) = &self.nodes {
            ha_pair.wait_active(0)?;
            ha_pair.wait_synced()?;
        }
        // An entry of which it is sure it may keep for most of a minute, wrong as it may be.
        let client = &self.lab().client.namespace;
        client.ip(&format!("neigh flush dev {INTERFACE}"))?;
        wait::until(self.patience(), "the client is answered", || {
            Connection::open(client, TARGET, Duration::from_millis(300))?.get("/")?.ok()
        })?;
        Ok(())
    }

    fn logs(&self) -> String {
        match &self.nodes {
            Nodes::Lb(ha_pair) => ha_pair.logs(),
            Nodes::Keepalived(today) => {
                let log = today.keepalived[0].log();
                let lines: Vec<_> = log.lines().collect();
                lines[lines.len().saturating_sub(30)..].join("\n")
            }
        }
    }

    fn patience(&self) -> Duration {
        // An interface that fails every few seconds has to stay well for up to 30 s before it counts.
        Duration::from_secs(45) + self.interval * 4
    }
}

impl Today {
    fn start(interval: Duration) -> Result<Self> {
        let lab = Lab::new(&Options { pair: true, ..Options::default() })?;
        // As net.ipv4.ip_nonlocal_bind=1, for one socket.
        let bind = "transparent".to_owned();
        let settings = haproxy::Settings { bind, ..haproxy::Settings::default() };
        let [one, other] = lab.pair()?;
        let haproxy = |node| Haproxy::on(&lab, node, TARGET, &settings);
        let haproxy = [haproxy(one)?, haproxy(other)?];
        let keepalived = |node, priority| {
            let instance = Instance::new(VRID, priority, interval, &[TARGET.ip()]);
            let instances = [instance];
            let mut keepalived = Keepalived::new(&lab, node, &instances)?.in_real_time();
            keepalived.configure(&instances)?;
            keepalived.launch()?;
            anyhow::Ok(keepalived)
        };
        let keepalived = [keepalived(one, PRIORITIES[0])?, keepalived(other, PRIORITIES[1])?];
        Ok(Self { keepalived, haproxy, lab })
    }
}

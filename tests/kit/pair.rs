//! A lab with two balancers: their additional wires, and faults of them.
//!
//! ```text
//!          ┌── br0 ── client, web hosts                10.0.0.0/24   fd00::/64
//!  lb1, lb2┤
//!          └── br1                                     192.168.9.0/24   fd00:9::/64
//! ```
//!
//! Both bridges are in the switch's namespace: what happens on a wire happens there, and the nodes
//! learn of it by their interfaces or not at all.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command,
    lab::{Host, Lab, OFFLOADS},
    namespace::Namespace,
};

/// The nodes' interface to each other alone.
pub const SECOND: &str = "eth1";

/// A way between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// That which the clients use as well.
    First,
    /// That of the nodes alone.
    Second,
}

/// Connects the nodes by a bridge of their own.
pub(crate) fn wire(switch: &Namespace, nodes: [&Host; 2]) -> Result<()> {
    switch.ip("link add br1 type bridge mcast_snooping 0\nlink set br1 up")?;
    for node in nodes {
        let (port, namespace) = (second_port(node), node.namespace.name());
        switch.ip(&format!(
            "link add {port} type veth peer name {SECOND} netns {namespace}\n\
             link set {port} master br1\nlink set {port} up"
        ))?;
        let [v4, v6] = second_addresses(node);
        node.namespace.ip(&format!(
            "addr add {v4}/24 dev {SECOND}\naddr add {v6}/64 dev {SECOND} nodad\n\
             link set {SECOND} up"
        ))?;
        node.namespace.ethtool(SECOND, OFFLOADS)?;
        switch.ethtool(&port, OFFLOADS)?;
        // Each interface answers for its own addresses, and an address that is taken away and set
        // again does not take others with it.
        node.namespace.sysctl(&[
            ("ipv4/conf/all/arp_ignore", "1"),
            ("ipv4/conf/all/promote_secondaries", "1"),
        ])?;
    }
    Ok(())
}

/// The switch's port to a node's second interface.
fn second_port(node: &Host) -> String {
    format!("{}-2", node.name)
}

/// A node's addresses on the second wire.
#[must_use]
pub fn second_addresses(node: &Host) -> [IpAddr; 2] {
    let last = node.v4.octets()[3];
    [
        Ipv4Addr::new(192, 168, 9, last).into(),
        Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, last.into()).into(),
    ]
}

impl Lab {
    /// The two balancers.
    ///
    /// # Errors
    ///
    /// If this is no lab of a pair.
    pub fn pair(&self) -> Result<[&Host; 2]> {
        let peer = self.peer.as_ref().context("this lab has one balancer")?;
        Ok([&self.balancer, peer])
    }

    /// The files of one host, in a folder of its own.
    ///
    /// # Errors
    ///
    /// If it can't be made.
    pub fn folder_of(&self, host: &Host) -> Result<std::path::PathBuf> {
        let folder = self.folder().join(&host.name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }

    /// Nothing that a node of the pair sends reaches the other one by this wire; everybody else is
    /// reached as before.
    ///
    /// # Errors
    ///
    /// If nft refuses.
    pub fn part(&self, wire: Wire) -> Result<()> {
        self.filter(wire, "drop")
    }

    /// Of the advertisements between the nodes, these many of a hundred get lost on this wire, at
    /// random.
    ///
    /// # Errors
    ///
    /// If nft refuses.
    pub fn lose_advertisements(&self, wire: Wire, percent: u8) -> Result<()> {
        ensure!(percent < 100, "{percent} of a hundred is all: part the nodes");
        self.filter(wire, &format!("meta l4proto 112 numgen random mod 100 < {percent} drop"))
    }

    /// Every packet passes this wire again.
    ///
    /// # Errors
    ///
    /// If nft refuses.
    pub fn heal(&self, wire: Wire) -> Result<()> {
        let table = wire.table();
        // To delete a missing object is an error; to make an existing one is none.
        self.nft(&format!("add table bridge {table}\ndelete table bridge {table}\n"))
    }

    /// Lets a rule stand for all that the nodes send to each other by a wire.
    fn filter(&self, wire: Wire, rule: &str) -> Result<()> {
        let [one, other] = self.pair()?;
        let ports = [one, other].map(|node| match wire {
            Wire::First => node.name.clone(),
            Wire::Second => second_port(node),
        });
        let (table, ports) = (wire.table(), ports.join(", "));
        self.nft(&format!(
            "add table bridge {table}\ndelete table bridge {table}\n\
             table bridge {table} {{\n\
             chain forward {{\n\
             type filter hook forward priority 0\n\
             iifname {{ {ports} }} oifname {{ {ports} }} {rule}\n\
             }}\n\
             }}\n"
        ))
    }

    fn nft(&self, rules: &str) -> Result<()> {
        let mut nft = self.switch().command("nft");
        command::run_with_input(nft.args(["-f", "-"]), rules).map(drop)
    }

    /// Stops everything on a node where it is and takes its wires away, as when it loses power:
    /// nothing leaves it any more, not even a last message.
    ///
    /// # Errors
    ///
    /// If it can't be done.
    pub fn freeze(&self, node: &Host) -> Result<()> {
        // Running processes notice a pulled cable: so they are stopped first.
        signal_all(node, libc::SIGSTOP)?;
        self.switch().ip(&format!(
            "link set {} down\nlink set {} down",
            node.name,
            second_port(node)
        ))?;
        Ok(())
    }

    /// Lets a node go on that was [frozen](Self::freeze), as if no time had passed for it.
    ///
    /// # Errors
    ///
    /// If it can't be done.
    pub fn thaw(&self, node: &Host) -> Result<()> {
        self.switch().ip(&format!(
            "link set {} up\nlink set {} up",
            node.name,
            second_port(node)
        ))?;
        signal_all(node, libc::SIGCONT)
    }
}

impl Wire {
    /// The name of its table in the switch.
    const fn table(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
        }
    }
}

/// Sends a signal to every process in a node's namespace.
fn signal_all(node: &Host, signal: i32) -> Result<()> {
    for pid in node.namespace.pids()? {
        let pid = i32::try_from(pid).context("a pid")?;
        // SAFETY: a call with two integers; a process that has ended meanwhile is no process of
        // another namespace within this time.
        unsafe { libc::kill(pid, signal) };
    }
    Ok(())
}

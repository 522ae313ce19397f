//! The part of a node's configuration that makes it one of a pair: virtual routers, and the
//! `[sync]` table.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;

use crate::{
    lab::{Host, INTERFACE, Lab},
    pair::{self, Wire},
};

/// A virtual router of `lbd`.
#[derive(Clone, Debug)]
pub struct Router {
    /// Its name.
    pub name: String,
    /// Its VRID.
    pub vrid: u8,
    /// Its priority.
    pub priority: u8,
    /// Between advertisements.
    pub interval: Duration,
    /// The virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// More lines of its table: `preempt = false`.
    pub lines: String,
}

/// The key that the nodes share in tests.
pub const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// The port that the nodes talk to each other by.
const PORT: u16 = 3780;

impl Router {
    /// A virtual router of version 3 that multicasts on the nodes' first interface.
    #[must_use]
    pub fn new(
        name: &str,
        vrid: u8,
        priority: u8,
        interval: Duration,
        addresses: &[IpAddr],
    ) -> Self {
        let (name, addresses, lines) = (name.to_owned(), addresses.to_vec(), String::new());
        Self { name, vrid, priority, interval, addresses, lines }
    }

    /// With more lines in its table.
    #[must_use]
    pub fn with(mut self, lines: &str) -> Self {
        self.lines.push_str(lines);
        self.lines.push('\n');
        self
    }

    /// By unicast, from an address of the node to these.
    #[must_use]
    pub fn unicast(self, from: IpAddr, to: &[IpAddr]) -> Self {
        self.with(&format!("source = \"{from}\"\npeers = {}", list(to)))
    }

    /// Of version 2, with a password in each advertisement.
    #[must_use]
    pub fn password(self, password: &str) -> Self {
        self.with(&format!("version = 2\npassword = \"{password}\""))
    }

    /// Its table.
    #[must_use]
    pub fn toml(&self) -> String {
        let Self { name, vrid, priority, lines, .. } = self;
        let (interval, addresses) = (self.interval.as_millis(), list(&self.addresses));
        format!(
            "\n[[virtual_router]]\nname = \"{name}\"\ninterface = \"{INTERFACE}\"\nvrid = {vrid}\n\
             priority = {priority}\ninterval = \"{interval}ms\"\naddresses = {addresses}\n{lines}"
        )
    }
}

fn list(addresses: &[IpAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    format!("[{}]", addresses.join(", "))
}

/// The table of a node's synchronisation with the other one, by one of the wires.
///
/// # Errors
///
/// If the lab is not that of a pair.
pub fn sync(lab: &Lab, node: &Host, wire: Wire, key: &str) -> Result<String> {
    Ok(sync_among(&lab.pair()?, node, wire, key))
}

/// The same for one of any number of nodes.
#[must_use]
pub fn sync_among(nodes: &[&Host], node: &Host, wire: Wire, key: &str) -> String {
    let address = |host: &Host| match wire {
        Wire::First => host.v4.into(),
        Wire::Second => pair::second_addresses(host)[0],
    };
    let others = nodes.iter().filter(|other| other.name != node.name);
    let peers: Vec<_> = others.map(|other| format!("\"{}:{PORT}\"", address(other))).collect();
    let (name, own, peers) = (&node.name, address(node), peers.join(", "));
    format!(
        "\n[sync]\nnode = \"{name}\"\nkey = \"{key}\"\nlisten = \"{own}:{PORT}\"\npeers = [{peers}]\n"
    )
}

//! The host of the database is a container of the balancer's node: the other end of its veth pair is a port of a bridge
//! there, which has the address of its gateway.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    can_run,
    http::Connection,
    lab::{INTERFACE, Lab, OFFLOADS, Options},
    namespace::Namespace,
    postgres::{BOUNCERS, Database, Pgbench},
    status::StatusExt as _,
    ways::{FORWARDING, Way},
};

use super::{long, service, short, target};
use crate::nat::FAMILIES;

/// The bridge, and its port.
const BRIDGE: &str = "docker0";
const VETH: &str = "veth0";

/// A node with a container, in which the database runs.
struct Node {
    database: Database,
    balancer: Balancer,
    container: Namespace,
    lab: Lab,
}

/// The container's address of a family.
fn address(way: Way) -> IpAddr {
    match way.vip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(172, 17, 0, 2)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfd17, 0, 0, 0, 0, 0, 0, 2)),
    }
}

/// A container as Docker sets it up, with these interfaces and hooks of `lbd`.
fn start(attach: &'static str, interfaces: &[&str]) -> Result<Node> {
    let options = Options { webs: 0, router: true, attach, ..Options::default() };
    let lab = Lab::new(&options)?;
    let node = &lab.balancer.namespace;
    node.sysctl(FORWARDING)?;
    let container = Namespace::new("container")?;
    container.sysctl(&[("ipv6/conf/default/accept_dad", "0")])?;
    let name = container.name();
    // Docker gives its bridge an address that is not that of a port.
    node.ip(&format!(
        "link add {BRIDGE} address 02:42:00:00:00:01 type bridge\n\
         link add {VETH} type veth peer name {INTERFACE} netns {name}\n\
         link set {VETH} master {BRIDGE}\nlink set {VETH} up\nlink set {BRIDGE} up\n\
         addr add 172.17.0.1/16 dev {BRIDGE}\naddr add fd17::1/64 dev {BRIDGE} nodad"
    ))?;
    container.ip(&format!(
        "addr add 172.17.0.2/16 dev {INTERFACE}\naddr add fd17::2/64 dev {INTERFACE} nodad\n\
         link set {INTERFACE} up\nroute add default via 172.17.0.1\nroute add default via fd17::1"
    ))?;
    if attach == "auto" {
        container.ethtool(INTERFACE, OFFLOADS)?;
        // XDP of the node sends by the veth pair then.
        container.ethtool(INTERFACE, &["gro", "on"])?;
    } else {
        lab.with_offloads()?;
    }
    let database = Database::start(&container, lab.folder())?;
    let services = FAMILIES.map(|way| service(way, address(way), "check = { type = \"tcp\" }"));
    let mut balancer = Balancer::new(&lab, &services)?;
    balancer.set_interfaces(interfaces);
    balancer.configure(&services)?;
    balancer.launch()?;
    balancer.wait_usable()?;
    Ok(Node { database, balancer, container, lab })
}

/// pgbench is served by all PgBouncers of the container, and answers are counted.
fn serves(node: &Node) -> Result<()> {
    for way in FAMILIES {
        let client = &node.lab.client.namespace;
        let start = |load| Pgbench::start(client, target(way), load);
        let both = [start(long(RUN))?, start(short(RUN))?];
        node.database.wait_logins(&BOUNCERS, 10)?;
        for pgbench in both {
            pgbench.finish()?.check().with_context(|| way.name())?;
        }
        for backend in node.balancer.status()?.service(way.name())?.backends.values() {
            let returned = backend.returned.context("answers are counted")?;
            ensure!(returned.packets > 0, "{backend:?}");
        }
    }
    Ok(())
}

/// XDP on the clients' interface, and tc on the bridge, which has no driver that could run XDP.
#[test]
fn a_database_in_a_container_behind_a_bridge_is_served_with_xdp_before_the_clients() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let node = start("auto", &[INTERFACE, BRIDGE])?;
    let modes = node.balancer.status()?.interfaces.into_iter();
    let modes: Vec<_> = modes.map(|one| one.mode).collect();
    ensure!(modes == ["native", "tc"], "{modes:?}");
    serves(&node)
}

/// Answers come by the port, and the program sees them there, too.
#[test]
fn a_database_in_a_container_behind_a_bridge_is_served_with_tc_on_its_port() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    serves(&start("tc", &[INTERFACE, VETH])?)
}

/// Without the program on the way of the answers, they leave as they come.
#[test]
fn answers_by_a_bridge_without_the_program_are_not_translated() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let node = start("tc", &[INTERFACE])?;
    for way in FAMILIES {
        let client = &node.lab.client.namespace;
        let open = Connection::open(client, target(way), Duration::from_secs(2));
        ensure!(open.is_err(), "{}", way.name());
    }
    Ok(())
}

#[test]
fn a_database_in_a_container_behind_a_bridge_is_served_with_tc_on_the_bridge() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let node = start("tc", &[INTERFACE, BRIDGE])?;
    serves(&node)?;
    ensure!(node.container.received(INTERFACE)? > 1_000, "by the container's interface");
    Ok(())
}

const RUN: Duration = Duration::from_secs(4);

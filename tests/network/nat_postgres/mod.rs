//! Three PgBouncers at three ports of one host, behind one VIP in mode `nat`, with pgbench as their client: a drain, a
//! death, a failover.

mod beside;
mod bridge;
mod death;
mod failover;

use std::{
    net::{IpAddr, SocketAddr},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    balancer::{Balancer, Service},
    can_run,
    lab::Lab,
    postgres::{BOUNCERS, Connections, Database, Load, PORT, Pgbench},
    status::{ServiceExt as _, StatusExt as _},
    wait,
    ways::Way,
};
use lb_api::status::Backend;
use lb_model::backend_address::BackendAddress;

use crate::nat::{FAMILIES, lab_of_gateways};

/// The services' idle timeout. A drain that waits for it, or for the `drain_silence` of 90 seconds, lasts longer than any
/// here.
const IDLE: Duration = Duration::from_secs(20);
/// Within which a drain is over after its last connection, and a check finds a change.
const SOON: Duration = Duration::from_secs(10);
/// The PgBouncer that is drained, or dies.
const ONE: u16 = BOUNCERS[1];
/// The others.
const OTHERS: [u16; 2] = [BOUNCERS[0], BOUNCERS[2]];

/// The host of the database, before a balancer.
struct Bed {
    // Its clients end first, its host last.
    database: Database,
    balancer: Balancer,
    lab: Lab,
}

impl Bed {
    fn start(attach: &'static str, settings: &str) -> Result<Self> {
        let lab = lab_of_gateways(attach)?;
        let database = lab.start_database(0)?;
        let services = FAMILIES.map(|way| service(way, way.backend(&lab.webs[0]), settings));
        let balancer = Balancer::start(&lab, &services)?;
        Ok(Self { database, balancer, lab })
    }

    fn address(&self, way: Way, port: u16) -> BackendAddress {
        BackendAddress::from(way.backend(&self.lab.webs[0])).or_port(port.try_into().ok())
    }

    fn backend(&self, way: Way, port: u16) -> Result<Backend> {
        let status = self.balancer.status()?;
        Ok(status.service(way.name())?.backend(self.address(way, port))?.clone())
    }

    /// How many connections to a PgBouncer are open.
    fn open(&self, way: Way, port: u16) -> Result<u64> {
        Ok(self.backend(way, port)?.connections.context("connections are counted")?.open)
    }

    fn pgbench(&self, way: Way, load: Load) -> Result<Pgbench> {
        Pgbench::start(&self.lab.client.namespace, target(way), load)
    }
}

/// The service of a family with each PgBouncer of a host as a backend.
fn service(way: Way, host: IpAddr, settings: &str) -> Service {
    let backend =
        |port| format!("[[service.backend]]\naddress = \"{}\"", SocketAddr::new(host, port));
    let backends = BOUNCERS.map(backend).join("\n");
    let idle = IDLE.as_secs();
    Service::tcp(way.name(), way.vip(), PORT, "nat", Vec::new())
        .with(&format!("idle_timeout = \"{idle}s\"\n{settings}\n{backends}"))
}

/// The address that pgbench connects to.
fn target(way: Way) -> SocketAddr {
    SocketAddr::new(way.vip(), PORT)
}

/// Clients that keep their connections: so many that each PgBouncer has some.
const fn long(time: Duration) -> Load {
    Load { connections: Connections::Long, clients: 24, rate: 200, time }
}

/// Clients with a connection for each transaction.
const fn short(time: Duration) -> Load {
    Load { connections: Connections::Short, clients: 8, rate: 150, time }
}

/// Both kinds of clients run while one PgBouncer is drained.
fn no_transaction_fails_in_a_drain(bed: &Bed, way: Way) -> Result<()> {
    let lasting = bed.pgbench(way, long(Duration::from_secs(16)))?;
    let passing = bed.pgbench(way, short(Duration::from_secs(12)))?;
    bed.database.wait_logins(&BOUNCERS, 20)?;
    let at = bed.address(way, ONE).to_string();
    bed.balancer.lbctl(&["backend", "drain", way.name(), &at])?;
    let syns = bed.backend(way, ONE)?.new_flows;
    // Clients whose SYN came before the drain have logged in when later ones have.
    bed.database.wait_logins(&OTHERS, 20)?;
    let logins = bed.database.bouncer(ONE)?.logins()?;
    let mut drain = bed.balancer.lbctl_command();
    drain.args(["backend", "drain", way.name(), &at, "--wait", "--timeout", "60s"]);
    let mut drain = drain.stdout(Stdio::null()).spawn().context("lbctl")?;

    let passing = passing.finish()?;
    passing.check().context("short connections")?;
    let kept = bed.open(way, ONE)?;
    ensure!(kept > 0, "long connections stay");
    if let Some(status) = drain.try_wait()? {
        bail!("the drain has ended ({status}) with {kept} connections");
    }
    let lasting = lasting.finish()?;
    let ended = Instant::now();
    lasting.check().context("long connections")?;
    let status = wait::until(SOON, "the drain ends", || drain.try_wait()?.context("it waits"))?;
    ensure!(status.success(), "{status}");
    let one = bed.backend(way, ONE)?;
    ensure!(one.new_flows == syns, "{} SYNs after the drain", one.new_flows - syns);
    ensure!(bed.database.bouncer(ONE)?.logins()? == logins, "a new connection after the drain");
    println!(
        "{}: {} transactions by long connections, {kept} of them to {ONE}, {} by short ones, none failed; drained {:?} \
         after the last",
        way.name(),
        lasting.transactions,
        passing.transactions,
        ended.elapsed()
    );

    bed.balancer.lbctl(&["backend", "enable", way.name(), &at])?;
    let again = bed.pgbench(way, short(Duration::from_secs(2)))?;
    bed.database.wait_logins(&BOUNCERS, 10)?;
    again.finish()?.check()
}

fn drain(attach: &'static str) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let bed = Bed::start(attach, "check = { type = \"tcp\" }")?;
    // Before, a connection may be open that has had no answer yet.
    thread::sleep(IDLE + Duration::from_secs(2));
    for way in FAMILIES {
        no_transaction_fails_in_a_drain(&bed, way).with_context(|| way.name())?;
    }
    let log = bed.database.bouncer(ONE)?.log()?;
    for client in [bed.lab.client.v4.to_string(), format!("[{}]", bed.lab.client.v6)] {
        ensure!(log.contains(&format!("@{client}:")), "PgBouncer sees {client}: {log}");
    }
    Ok(())
}

#[test]
fn a_drained_pgbouncer_gets_no_connection_and_no_transaction_fails() -> Result<()> {
    drain("xdp")
}

#[test]
fn a_pgbouncer_drained_by_tc_gets_no_connection_and_no_transaction_fails() -> Result<()> {
    drain("tc")
}

//! An application on the backends' own link as a client: it is answered through the balancer where the backends have a
//! host route to it by their gateway.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run, command,
    http::Connection,
    postgres::{BOUNCERS, Pgbench},
};

use super::{Bed, ONE, long, short, target};
use crate::nat::FAMILIES;

#[test]
fn an_application_beside_the_backends_is_served_with_a_host_route_by_the_gateway() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let bed = Bed::start("xdp", "check = { type = \"tcp\" }")?;
    let (backend, application) = (&bed.lab.webs[0].host, &bed.lab.webs[1].host);
    let connects = |to: SocketAddr, within| Connection::open(&application.namespace, to, within);
    let a_moment = Duration::from_secs(2);
    // IPv6 has no setting by which the gateway sends none.
    backend.namespace.sysctl(&[
        ("ipv4/conf/all/accept_redirects", "1"),
        ("ipv4/conf/eth0/accept_redirects", "1"),
    ])?;
    for way in FAMILIES {
        let direct = SocketAddr::new(backend.address(way.vip()), ONE);
        let without = connects(target(way), a_moment);
        ensure!(without.is_err(), "it is answered by {direct}, to which it has not connected");
        ensure!(connects(direct, a_moment).is_ok(), "its own connections to the backend work");

        let (to, gateway) = (application.address(way.vip()), bed.lab.balancer.address(way.vip()));
        backend.namespace.ip(&format!("route add {to} via {gateway}"))?;
        // What a backend sends of its own by the gateway must not earn it a redirect, which would lead past the gateway.
        let to = to.to_string();
        command::run(backend.namespace.command("ping").args(["-c", "3", "-i", "0.2", &to]))?;
        let start = |load| Pgbench::start(&application.namespace, target(way), load);
        let both = [start(long(RUN))?, start(short(RUN))?];
        bed.database.wait_logins(&BOUNCERS, 20)?;
        for pgbench in both {
            let tally = pgbench.finish()?;
            tally.check().with_context(|| way.name())?;
            println!("{}: {} transactions", way.name(), tally.transactions);
        }
        // All that comes from the PgBouncer's port by the gateway comes from the VIP.
        ensure!(connects(direct, a_moment).is_err(), "answers to {direct} are translated, too");
    }
    Ok(())
}

const RUN: Duration = Duration::from_secs(5);

//! Faults of the network and of the node under real clients: their cost, and that all is well
//! again without a hand.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    arrivals::{Arrivals, Plan},
    balancer::Balancer,
    http::Connection,
    lab::Lab,
    load::{self, Load},
    status::{BackendExt as _, ServiceExt as _, StatusExt as _},
    wait,
    ways::Way,
};
use lb_api::status::Backend;

mod descriptors;
mod interface;
mod kill;
mod neighbour;
mod netlink;

/// The way of the tests that need no other.
const WAY: Way = Way::DsrV4;
/// A check that finds faults soon.
const CHECK: &str = "[service.check]\ntype = \"http\"\ninterval = \"100ms\"\ntimeout = \"500ms\"\nrise = 2\nfall = 2";
/// Long enough for a change that should take a second.
const SOON: Duration = Duration::from_secs(10);
/// Longer than the answer of a host to a client that has to send nothing again.
const AT_ONCE: Duration = Duration::from_millis(500);

/// The status of a backend.
fn backend(balancer: &Balancer, way: Way, at: IpAddr) -> Result<Backend> {
    Ok(balancer.status()?.service(way.name())?.backend(at)?.clone())
}

/// Waits until something is so of a backend.
fn wait_for(
    balancer: &Balancer,
    way: Way,
    at: IpAddr,
    what: &str,
    is: impl Fn(&Backend) -> bool,
) -> Result<Backend> {
    wait::until(SOON, &format!("{at} {what}"), || {
        let backend = backend(balancer, way, at)?;
        ensure!(is(&backend), "{backend:?}");
        Ok(backend)
    })
    .with_context(|| format!("lbd wrote:\n{}", balancer.log()))
}

/// Waits until every host has its share again.
fn wait_all_serve(lab: &Lab, balancer: &Balancer, way: Way) -> Result<()> {
    for web in &lab.webs {
        wait_for(balancer, way, way.backend(web), "serves", |backend| {
            backend.unusable.is_none() && backend.is_up() && backend.slots > 0
        })?;
    }
    Ok(())
}

/// A client every ten milliseconds.
fn clients(lab: &Lab, way: Way) -> Result<Arrivals> {
    let every = Duration::from_millis(10);
    Arrivals::start(&lab.client.namespace, Plan { target: way.target(), every, limit: SOON })
}

/// That clients came, and all were answered.
fn none_failed(arrivals: Arrivals) -> Result<()> {
    let arrivals = arrivals.finish()?;
    ensure!(!arrivals.is_empty(), "no client came");
    let failed: Vec<_> = arrivals.iter().filter(|arrival| arrival.end.is_err()).collect();
    let first = failed.iter().take(5);
    ensure!(failed.is_empty(), "{} of {}: {first:?}", failed.len(), arrivals.len());
    Ok(())
}

/// Connections that request a page again and again.
fn load(lab: &Lab) -> Result<Load> {
    let pause = Duration::from_millis(50);
    let plan = load::Plan { target: WAY.target(), steady: 40, passing: 0, pause };
    Load::start(&lab.client.namespace, plan)
}

/// Requests one page; returns the host that answers.
fn ask(lab: &Lab, way: Way, limit: Duration) -> Result<String> {
    let mut connection = Connection::open(&lab.client.namespace, way.target(), limit)?;
    connection.get("/")?.ok()?.backend()
}

/// Waits until clients are answered at once, by every host.
fn wait_answered(lab: &Lab, way: Way) -> Result<()> {
    let mut answered = std::collections::BTreeSet::new();
    let mut since = Instant::now();
    wait::until(SOON, "all hosts answer", || {
        if let Err(error) = ask(lab, way, AT_ONCE).map(|host| answered.insert(host)) {
            answered.clear();
            since = Instant::now();
            return Err(error);
        }
        ensure!(answered.len() == lab.webs.len(), "{answered:?} since {:?}", since.elapsed());
        Ok(())
    })
}

/// The events of a kind, one a line.
fn events(balancer: &Balancer, kind: &str) -> Result<Vec<String>> {
    let shown = balancer.lbctl(&["events", "--kind", kind])?;
    Ok(shown.lines().map(str::to_owned).collect())
}

/// Lets time pass in which clients come; they make load, no moment counts.
fn run_for(time: Duration) {
    std::thread::sleep(time);
}

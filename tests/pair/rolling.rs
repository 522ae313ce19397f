//! What operators do to backends, while the nodes take over from each other.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run,
    lab::Options,
    twins::{Plan, Twins},
    wait,
    ways::Way,
};

use crate::clients::Clients;

const INTERVAL: Duration = Duration::from_millis(50);

/// How long a silent flow is kept: longer than the load's pauses.
const IDLE: Duration = Duration::from_secs(2);
const SETTINGS: &str = "idle_timeout = \"2s\"";

/// Says the same of a web host on both nodes, for all ways.
fn change(twins: &Twins, what: &str, web: usize) -> Result<()> {
    for node in &twins.nodes {
        for way in &twins.plan.ways {
            let backend = way.backend(&twins.lab.webs[web]).to_string();
            node.lbctl(&["backend", what, way.name(), &backend])?;
        }
    }
    Ok(())
}

/// Lets the other node take over from a node that dies, and the first one come back.
fn die(twins: &mut Twins, active: usize) -> Result<()> {
    twins.nodes[active].kill()?;
    twins.wait_holds(1 - active)?;
    twins.nodes[active].launch()?;
    twins.wait_active(0)?;
    twins.wait_synced()
}

#[test]
fn no_connection_breaks_by_drains_between_failovers() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ways = [Way::DsrV4, Way::DsrV6, Way::IpipV4, Way::IpipV6];
    let plan = Plan { settings: SETTINGS.to_owned(), ..Plan::new(&ways, INTERVAL) };
    let mut twins = Twins::start(&Options::default(), plan)?;
    let clients = Clients::start(&twins, Duration::from_secs(60))?;
    for web in 0..3 {
        let host = twins.lab.webs[web].host.name.clone();
        // A node that takes over while slots are in flux has to know their history.
        change(&twins, "drain", web)?;
        clients.go_on().with_context(|| format!("{host} is drained"))?;
        die(&mut twins, 0)?;
        clients.go_on().with_context(|| format!("the Active node died, {host} being drained"))?;
        twins.hand_over(0)?;
        twins.wait_active(1)?;
        clients.go_on().with_context(|| format!("handed over, {host} being drained"))?;
        change(&twins, "enable", web)?;
        clients.go_on().with_context(|| format!("{host} is enabled"))?;
        twins.hand_over(1)?;
        twins.wait_active(0)?;
        twins.wait_synced()?;
        clients.go_on().with_context(|| format!("handed back, {host} being enabled"))?;
    }
    clients.finish().with_context(|| twins.logs())
}

#[test]
fn no_connection_breaks_by_a_rolling_restart_between_failovers() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let plan =
        Plan { settings: SETTINGS.to_owned(), ..Plan::new(&[Way::DsrV4, Way::IpipV6], INTERVAL) };
    let mut twins = Twins::start(&Options::default(), plan)?;
    let clients = Clients::start_short(&twins)?;
    for web in 0..3 {
        change(&twins, "drain", web)?;
        thread::sleep(IDLE / 4);
        match web {
            0 => die(&mut twins, 0)?,
            1 => twins.hand_over(0).and_then(|()| twins.wait_active(1))?,
            _ => twins.hand_over(1).and_then(|()| twins.wait_active(0))?,
        }
        let active = usize::from(web == 1);
        wait::until(IDLE * 10, "the backend has no flow any more", || {
            let status = twins.nodes[active].poll()?;
            for way in &twins.plan.ways {
                let backend = way.backend(&twins.lab.webs[web]);
                let backend = status.service(way.name())?.backend(backend)?.clone();
                let left = (backend.slots, backend.base_slots, backend.pins);
                ensure!(left == (0, 0, 0), "{}: {left:?}", way.name());
            }
            Ok(())
        })
        .with_context(|| twins.logs())?;
        let orphan = twins.lab.orphan();
        let web_host = &mut twins.lab.webs[web];
        web_host.nginx.kill()?;
        web_host.nginx.restart(&web_host.host.namespace, orphan)?;
        change(&twins, "enable", web)?;
        clients.go_on().with_context(|| format!("web{} was restarted", web + 1))?;
    }
    clients.finish().with_context(|| twins.logs())
}

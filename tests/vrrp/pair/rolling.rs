//! What operators do to backends, while the nodes take over from each other.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run,
    lab::Options,
    status::{ServiceExt as _, StatusExt as _},
    twins::{Plan, Twins},
    wait,
    ways::Way,
};

use super::clients::Clients;

const INTERVAL: Duration = Duration::from_millis(50);

/// How long a silent flow is kept: longer than the load's pauses.
const IDLE: Duration = Duration::from_secs(2);
/// How long a drain may take: a peer that is starved takes slots that settle in after a fifth of a second,
/// 64 at a time.
const DRAINED: Duration = Duration::from_secs(240);
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

/// Lets the other node take over from the Active one, which dies and comes back; then the first one is Active.
fn die(twins: &mut Twins, active: usize, clients: &Clients) -> Result<()> {
    let [dead, heir] = [active, 1 - active].map(|n| twins.host(n).name.clone());
    clients.kill(twins, active)?;
    twins.wait_holds(1 - active)?;
    clients.note(&format!("{heir} took over"));
    twins.nodes[active].launch()?;
    clients.note(&format!("lbd on {dead} is back"));
    twins.wait_active(0)?;
    clients.note("lb1 is Active");
    twins.wait_synced()
}

/// Hands over from a node, and waits until it is done.
fn hand_over(twins: &Twins, from: usize, clients: &Clients) -> Result<()> {
    twins.hand_over(from)?;
    twins.wait_active(1 - from)?;
    clients.note(&format!("{} handed over", twins.host(from).name));
    Ok(())
}

#[test]
fn no_connection_breaks_by_drains_between_failovers() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ways = [Way::DsrV4, Way::DsrV6, Way::IpipV4, Way::IpipV6];
    let plan = Plan { settings: SETTINGS.to_owned(), ..Plan::new(&ways, INTERVAL) };
    let mut twins = Twins::start(&Options::default(), plan)?;
    let clients = Clients::start(&twins, Duration::from_secs(240))?;
    for web in 0..2 {
        let host = twins.lab.webs[web].host.name.clone();
        // A node that takes over while slots are in flux has to know their history.
        change(&twins, "drain", web)?;
        clients.note("drained");
        clients.go_on().with_context(|| format!("{host} is drained; {}", twins.logs()))?;
        die(&mut twins, 0, &clients)?;
        clients.go_on().with_context(|| {
            format!("the Active node died, {host} being drained; {}", twins.logs())
        })?;
        hand_over(&twins, 0, &clients)?;
        clients
            .go_on()
            .with_context(|| format!("handed over, {host} being drained; {}", twins.logs()))?;
        change(&twins, "enable", web)?;
        clients.note("enabled");
        clients.go_on().with_context(|| format!("{host} is enabled; {}", twins.logs()))?;
        hand_over(&twins, 1, &clients)?;
        twins.wait_synced()?;
        clients
            .go_on()
            .with_context(|| format!("handed back, {host} being enabled; {}", twins.logs()))?;
    }
    clients.finish().with_context(|| twins.logs())
}

#[test]
fn no_connection_breaks_by_drains_and_failovers_between_a_node_at_xdp_and_one_at_tc() -> Result<()>
{
    if !can_run() {
        return Ok(());
    }
    let ways = [Way::DsrV4, Way::IpipV6];
    let plan = Plan { settings: SETTINGS.to_owned(), ..Plan::new(&ways, INTERVAL) };
    let mut twins = Twins::new(&Options::default(), plan)?;
    twins.nodes[1].set_attach("tc");
    twins.nodes[1].configure(&twins.plan.services(&twins.lab))?;
    twins.launch()?;
    for (node, mode) in twins.nodes.iter().zip(["native", "tc"]) {
        let status = node.status()?;
        ensure!(status.interfaces.iter().all(|one| one.mode == mode), "{:?}", status.interfaces);
    }
    let clients = Clients::start(&twins, Duration::from_secs(240))?;
    for web in 0..2 {
        let host = twins.lab.webs[web].host.name.clone();
        change(&twins, "drain", web)?;
        clients.note("drained");
        die(&mut twins, 0, &clients)?;
        clients.go_on().with_context(|| format!("{host}, XDP died; {}", twins.logs()))?;
        hand_over(&twins, 0, &clients)?;
        clients.go_on().with_context(|| format!("{host}, tc is Active; {}", twins.logs()))?;
        die(&mut twins, 1, &clients)?;
        clients.go_on().with_context(|| format!("{host}, tc died; {}", twins.logs()))?;
        hand_over(&twins, 0, &clients)?;
        change(&twins, "enable", web)?;
        clients.note("enabled");
        clients.go_on().with_context(|| format!("{host} is enabled; {}", twins.logs()))?;
        hand_over(&twins, 1, &clients)?;
        twins.wait_synced()?;
        clients.go_on().with_context(|| format!("{host}, handed back; {}", twins.logs()))?;
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
        clients.note("drained");
        thread::sleep(IDLE / 4);
        match web {
            0 => die(&mut twins, 0, &clients)?,
            1 => hand_over(&twins, 0, &clients)?,
            _ => hand_over(&twins, 1, &clients)?,
        }
        let active = usize::from(web == 1);
        wait::until(DRAINED, "the backend has no flow any more", || {
            let status = twins.nodes[active].status()?;
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
        clients.note(&format!("nginx of web{} was killed", web + 1));
        web_host.nginx.restart(&web_host.host.namespace, orphan)?;
        change(&twins, "enable", web)?;
        clients.note("enabled");
        clients
            .go_on()
            .with_context(|| format!("web{} was restarted; {}", web + 1, twins.logs()))?;
    }
    clients.finish().with_context(|| twins.logs())
}

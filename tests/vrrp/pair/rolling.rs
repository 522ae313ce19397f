//! Operators' changes of backends, while the nodes take over from each other.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run,
    ha_pair::{HaPair, Plan},
    lab::Options,
    status::{ServiceExt as _, StatusExt as _},
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

/// Runs the same command about a web host on both nodes, for all ways.
fn change(ha_pair: &HaPair, what: &str, web: usize) -> Result<()> {
    for node in &ha_pair.nodes {
        for way in &ha_pair.plan.ways {
            let backend = way.backend(&ha_pair.lab.webs[web]).to_string();
            node.lbctl(&["backend", what, way.name(), &backend])?;
        }
    }
    Ok(())
}

/// Lets the other node take over from the Active one, which dies and comes back; then the first one is Active.
fn die(ha_pair: &mut HaPair, active: usize, clients: &Clients) -> Result<()> {
    let [dead, heir] = [active, 1 - active].map(|n| ha_pair.host(n).name.clone());
    clients.kill(ha_pair, active)?;
    ha_pair.wait_holds(1 - active)?;
    clients.note(&format!("{heir} took over"));
    ha_pair.nodes[active].launch()?;
    clients.note(&format!("lbd on {dead} is back"));
    ha_pair.wait_active(0)?;
    clients.note("lb1 is Active");
    ha_pair.wait_synced()
}

/// Hands over from a node, and waits until it is done.
fn hand_over(ha_pair: &HaPair, from: usize, clients: &Clients) -> Result<()> {
    ha_pair.hand_over(from)?;
    ha_pair.wait_active(1 - from)?;
    clients.note(&format!("{} handed over", ha_pair.host(from).name));
    Ok(())
}

#[test]
fn no_connection_breaks_by_drains_between_failovers() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ways = [Way::DsrV4, Way::DsrV6, Way::IpipV4, Way::IpipV6];
    let plan = Plan { settings: SETTINGS.to_owned(), ..Plan::new(&ways, INTERVAL) };
    let mut ha_pair = HaPair::start(&Options::default(), plan)?;
    let clients = Clients::start(&ha_pair, Duration::from_secs(240))?;
    for web in 0..2 {
        let host = ha_pair.lab.webs[web].host.name.clone();
        // A node that takes over while slots are in flux has to know their history.
        change(&ha_pair, "drain", web)?;
        clients.note("drained");
        clients.go_on().with_context(|| format!("{host} is drained; {}", ha_pair.logs()))?;
        die(&mut ha_pair, 0, &clients)?;
        clients.go_on().with_context(|| {
            format!("the Active node died, {host} being drained; {}", ha_pair.logs())
        })?;
        hand_over(&ha_pair, 0, &clients)?;
        clients
            .go_on()
            .with_context(|| format!("handed over, {host} being drained; {}", ha_pair.logs()))?;
        change(&ha_pair, "enable", web)?;
        clients.note("enabled");
        clients.go_on().with_context(|| format!("{host} is enabled; {}", ha_pair.logs()))?;
        hand_over(&ha_pair, 1, &clients)?;
        ha_pair.wait_synced()?;
        clients
            .go_on()
            .with_context(|| format!("handed back, {host} being enabled; {}", ha_pair.logs()))?;
    }
    clients.finish().with_context(|| ha_pair.logs())
}

#[test]
fn no_connection_breaks_by_drains_and_failovers_between_a_node_at_xdp_and_one_at_tc() -> Result<()>
{
    if !can_run() {
        return Ok(());
    }
    let ways = [Way::DsrV4, Way::IpipV6];
    let plan = Plan { settings: SETTINGS.to_owned(), ..Plan::new(&ways, INTERVAL) };
    let mut ha_pair = HaPair::new(&Options::default(), plan)?;
    ha_pair.nodes[1].set_attach("tc");
    ha_pair.nodes[1].configure(&ha_pair.plan.services(&ha_pair.lab))?;
    ha_pair.launch()?;
    for (node, mode) in ha_pair.nodes.iter().zip(["native", "tc"]) {
        let status = node.status()?;
        ensure!(status.interfaces.iter().all(|one| one.mode == mode), "{:?}", status.interfaces);
    }
    let clients = Clients::start(&ha_pair, Duration::from_secs(240))?;
    for web in 0..2 {
        let host = ha_pair.lab.webs[web].host.name.clone();
        change(&ha_pair, "drain", web)?;
        clients.note("drained");
        die(&mut ha_pair, 0, &clients)?;
        clients.go_on().with_context(|| format!("{host}, XDP died; {}", ha_pair.logs()))?;
        hand_over(&ha_pair, 0, &clients)?;
        clients.go_on().with_context(|| format!("{host}, tc is Active; {}", ha_pair.logs()))?;
        die(&mut ha_pair, 1, &clients)?;
        clients.go_on().with_context(|| format!("{host}, tc died; {}", ha_pair.logs()))?;
        hand_over(&ha_pair, 0, &clients)?;
        change(&ha_pair, "enable", web)?;
        clients.note("enabled");
        clients.go_on().with_context(|| format!("{host} is enabled; {}", ha_pair.logs()))?;
        hand_over(&ha_pair, 1, &clients)?;
        ha_pair.wait_synced()?;
        clients.go_on().with_context(|| format!("{host}, handed back; {}", ha_pair.logs()))?;
    }
    clients.finish().with_context(|| ha_pair.logs())
}

#[test]
fn no_connection_breaks_by_a_rolling_restart_between_failovers() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let plan =
        Plan { settings: SETTINGS.to_owned(), ..Plan::new(&[Way::DsrV4, Way::IpipV6], INTERVAL) };
    let mut ha_pair = HaPair::start(&Options::default(), plan)?;
    let clients = Clients::start_short(&ha_pair)?;
    for web in 0..3 {
        change(&ha_pair, "drain", web)?;
        clients.note("drained");
        thread::sleep(IDLE / 4);
        match web {
            0 => die(&mut ha_pair, 0, &clients)?,
            1 => hand_over(&ha_pair, 0, &clients)?,
            _ => hand_over(&ha_pair, 1, &clients)?,
        }
        let active = usize::from(web == 1);
        wait::until(DRAINED, "the backend has no flow any more", || {
            let status = ha_pair.nodes[active].status()?;
            for way in &ha_pair.plan.ways {
                let backend = way.backend(&ha_pair.lab.webs[web]);
                let backend = status.service(way.name())?.backend(backend)?.clone();
                let left = (backend.slots, backend.base_slots, backend.pins);
                ensure!(left == (0, 0, 0), "{}: {left:?}", way.name());
            }
            Ok(())
        })
        .with_context(|| ha_pair.logs())?;
        let orphan = ha_pair.lab.orphan();
        let web_host = &mut ha_pair.lab.webs[web];
        web_host.nginx.kill()?;
        clients.note(&format!("nginx of web{} was killed", web + 1));
        web_host.nginx.restart(&web_host.host.namespace, orphan)?;
        change(&ha_pair, "enable", web)?;
        clients.note("enabled");
        clients
            .go_on()
            .with_context(|| format!("web{} was restarted; {}", web + 1, ha_pair.logs()))?;
    }
    clients.finish().with_context(|| ha_pair.logs())
}

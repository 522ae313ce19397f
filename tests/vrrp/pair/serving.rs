//! Two nodes that are balancers and web hosts at once, as small sites have them.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{
    can_run,
    http::Connection,
    lab::Options,
    twins::{Plan, Twins},
    wait,
    ways::Way,
};

use super::clients::Clients;

const WAYS: [Way; 2] = [Way::DsrV4, Way::DsrV6];
const INTERVAL: Duration = Duration::from_millis(50);
const SETTINGS: &str = "idle_timeout = \"2s\"\nring_slots = 1021\ncheck = { type = \"http\", interval = \"200ms\", fall = 2 }";
const PATIENCE: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(10);

/// Two nodes that serve, `attach` on both, beside so many web hosts.
fn serving(webs: u8, attach: &'static str) -> Result<Twins> {
    let options = Options { webs, serve: true, attach, ..Options::default() };
    Twins::start(&options, Plan { settings: SETTINGS.to_owned(), ..Plan::new(&WAYS, INTERVAL) })
}

/// The nodes' places among the web hosts.
fn places(twins: &Twins) -> [usize; 2] {
    let webs = twins.lab.webs.len();
    [webs - 2, webs - 1]
}

/// Says something of a web host to one node, by all ways.
fn say(twins: &Twins, node: usize, what: &str, web: usize) -> Result<()> {
    for way in WAYS {
        let backend = way.backend(&twins.lab.webs[web]).to_string();
        twins.nodes[node].lbctl(&["backend", what, way.name(), &backend])?;
    }
    Ok(())
}

/// The hosts that answer.
fn answering(twins: &Twins, way: Way) -> Result<BTreeSet<String>> {
    let mut hosts = BTreeSet::new();
    for n in 0..40 {
        let page = Connection::open(&twins.lab.client.namespace, way.target(), PATIENCE)
            .and_then(|mut connection| connection.get("/")?.ok())
            .with_context(|| format!("request {n} by {}; {}", way.name(), twins.logs()))?;
        hosts.insert(page.text());
    }
    Ok(hosts)
}

/// Each node thinks that the other one alone serves.
fn no_packet_goes_to_and_fro_between_nodes_that_disagree(attach: &'static str) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let twins = serving(1, attach)?;
    let nodes = places(&twins);
    for (node, own) in nodes.into_iter().enumerate() {
        say(&twins, node, "disable", 0)?;
        say(&twins, node, "disable", own)?;
    }
    for active in [0, 1] {
        let (other, name) = (1 - active, &twins.host(1 - active).name);
        wait::until(SOON, &format!("the Active node's ring has {name} alone"), || {
            let status = twins.nodes[active].status()?;
            for way in WAYS {
                let backends = &status.service(way.name())?.backends;
                let other = way.backend(&twins.lab.webs[nodes[other]]);
                let owners = backends.iter().filter(|(_, one)| one.slots + one.base_slots > 0);
                let owners: Vec<_> = owners.map(|(address, _)| *address).collect();
                ensure!(owners == [other], "{owners:?}");
            }
            Ok(())
        })?;
        let before = |node: usize, web: usize, way: Way| -> Result<u64> {
            let status = twins.nodes[node].status()?;
            let service = status.service(way.name())?;
            Ok(service.backend(way.backend(&twins.lab.webs[web]))?.sent.packets)
        };
        for way in WAYS {
            let (delivered, back) = (nodes[other], nodes[active]);
            let sent = before(active, delivered, way)?;
            let (had, returned) = (before(other, delivered, way)?, before(other, back, way)?);
            let hosts = answering(&twins, way)?;
            ensure!(
                hosts == BTreeSet::from([name.clone()]),
                "{}, {} Active: {hosts:?}; {}",
                way.name(),
                twins.host(active).name,
                twins.logs()
            );
            let sent = before(active, delivered, way)? - sent;
            let had = before(other, delivered, way)? - had;
            let returned = before(other, back, way)? - returned;
            ensure!(
                sent > 100 && had >= sent && returned == 0,
                "{}: {sent} packets were forwarded to {name}, {had} delivered there, {returned} \
                 sent back",
                way.name()
            );
        }
        if active == 0 {
            twins.hand_over(0)?;
            twins.wait_active(1)?;
        }
    }
    Ok(())
}

#[test]
fn no_packet_goes_to_and_fro_between_nodes_at_xdp_that_disagree() -> Result<()> {
    no_packet_goes_to_and_fro_between_nodes_that_disagree("xdp")
}

#[test]
fn no_packet_goes_to_and_fro_between_nodes_at_tc_that_disagree() -> Result<()> {
    no_packet_goes_to_and_fro_between_nodes_that_disagree("tc")
}

#[test]
fn no_connection_breaks_by_drains_and_failovers_of_nodes_that_serve() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut twins = serving(1, "xdp")?;
    let nodes = places(&twins);
    let clients = Clients::start(&twins, Duration::from_secs(180))?;
    for web in nodes {
        let host = twins.lab.webs[web].host.name.clone();
        // One node drains it, and the other one still gives it new flows.
        for active in [0, 1] {
            say(&twins, active, "drain", web)?;
            clients.note("drained on the Active node alone");
            clients.go_on().with_context(|| format!("{host} is drained; {}", twins.logs()))?;
            twins.hand_over(active)?;
            twins.wait_active(1 - active)?;
            clients.note("handed over to the node that does not drain it");
            clients.go_on().with_context(|| format!("{host}, handed over; {}", twins.logs()))?;
            say(&twins, active, "enable", web)?;
            twins.wait_synced()?;
        }
        for node in [0, 1] {
            say(&twins, node, "drain", web)?;
        }
        clients.note("drained");
        clients.go_on().with_context(|| format!("{host} is drained; {}", twins.logs()))?;
        twins.hand_over(0)?;
        twins.wait_active(1)?;
        clients.note("lb1 handed over");
        clients.go_on().with_context(|| format!("{host}, handed over; {}", twins.logs()))?;
        for node in [0, 1] {
            say(&twins, node, "enable", web)?;
        }
        twins.hand_over(1)?;
        twins.wait_active(0)?;
        clients.note("lb2 handed back");
        twins.wait_synced()?;
        clients.go_on().with_context(|| format!("{host}, handed back; {}", twins.logs()))?;
    }
    // Its host lives, and so does its nginx.
    clients.kill(&mut twins, 0)?;
    twins.wait_holds(1)?;
    clients.note("lb2 took over");
    clients.go_on().with_context(|| twins.logs())?;
    twins.nodes[0].launch()?;
    twins.wait_active(0)?;
    clients.note("lb1 is back");
    twins.wait_synced()?;
    clients.go_on().with_context(|| twins.logs())?;
    clients.finish().with_context(|| twins.logs())
}

/// The nodes find out at moments of their own that a backend is down, and that it is up.
#[test]
fn new_connections_are_answered_while_a_node_s_nginx_dies_and_returns() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut twins = serving(1, "xdp")?;
    let [first, second] = places(&twins);
    let state = |twins: &Twins, web: usize, up: bool| {
        let name = format!("{} is up on both nodes: {up}", twins.lab.webs[web].host.name);
        wait::until(SOON, &name, || {
            for node in &twins.nodes {
                let status = node.status()?;
                for way in WAYS {
                    let backend = way.backend(&twins.lab.webs[web]);
                    let backend = status.service(way.name())?.backend(backend)?.clone();
                    ensure!((backend.condition == "up") == up, "{backend:?}");
                }
            }
            Ok(())
        })
    };
    for web in [first, second] {
        let (orphan, name) = (twins.lab.orphan(), twins.lab.webs[web].host.name.clone());
        twins.lab.webs[web].nginx.kill()?;
        state(&twins, web, false).with_context(|| twins.logs())?;
        for way in WAYS {
            let hosts = answering(&twins, way)?;
            ensure!(!hosts.contains(&name) && hosts.len() == 2, "{}: {hosts:?}", way.name());
        }
        let killed = &mut twins.lab.webs[web];
        killed.nginx.restart(&killed.host.namespace, orphan)?;
        state(&twins, web, true).with_context(|| twins.logs())?;
        for way in WAYS {
            let hosts = answering(&twins, way)?;
            ensure!(hosts.len() == 3, "{}: {hosts:?}", way.name());
        }
    }
    Ok(())
}

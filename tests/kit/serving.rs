//! Two nodes that are balancers and web hosts at once, as small sites have them.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    downloads::{self, Downloads},
    http::Connection,
    lab::Options,
    status::{ServiceExt as _, StatusExt as _},
    twins::{Plan, Twins},
    wait,
    ways::Way,
};

/// How clients' packets go.
pub const WAYS: [Way; 2] = [Way::DsrV4, Way::DsrV6];

const PATIENCE: Duration = Duration::from_secs(20);
/// How long downloads would take if nobody ended them.
const LONG: Duration = Duration::from_secs(200);
/// For this long, changes are given time to break what they can.
const A_WHILE: Duration = Duration::from_secs(2);

/// The nodes with `attach` on both, beside so many web hosts. `lbd` is not started.
///
/// # Errors
///
/// If something is missing.
pub fn nodes(webs: u8, attach: &'static str, plan: Plan) -> Result<Twins> {
    Twins::new(&Options { webs, serve: true, attach, ..Options::default() }, plan)
}

/// The nodes' places among the web hosts.
#[must_use]
pub fn places(twins: &Twins) -> [usize; 2] {
    let webs = twins.lab.webs.len();
    [webs - 2, webs - 1]
}

/// Runs `lbctl backend` about a web host on one node, for all services.
///
/// # Errors
///
/// If it fails.
pub fn say(twins: &Twins, node: usize, what: &str, web: usize) -> Result<()> {
    for way in &twins.plan.ways {
        let backend = way.backend(&twins.lab.webs[web]).to_string();
        twins.nodes[node].lbctl(&["backend", what, way.name(), &backend])?;
    }
    Ok(())
}

/// The hosts that answer forty requests, each on a connection of its own.
///
/// # Errors
///
/// If one is not answered.
pub fn answering(twins: &Twins, way: Way) -> Result<BTreeSet<String>> {
    let mut hosts = BTreeSet::new();
    for n in 0..40 {
        let page = Connection::open(&twins.lab.client.namespace, way.target(), PATIENCE)
            .and_then(|mut connection| connection.get("/")?.ok())
            .with_context(|| format!("request {n} by {}; {}", way.name(), twins.logs()))?;
        hosts.insert(page.text());
    }
    Ok(hosts)
}

/// Each node thinks that the other one alone serves, and what the Active one forwards is delivered there. Then all
/// hosts serve again.
///
/// # Errors
///
/// If another host answers, or a packet is sent back.
pub fn no_packet_goes_to_and_fro(twins: &Twins) -> Result<()> {
    let nodes = places(twins);
    let others = 0..twins.lab.webs.len() - 2;
    for (node, own) in nodes.into_iter().enumerate() {
        for web in others.clone().chain([own]) {
            say(twins, node, "disable", web)?;
        }
    }
    for active in [0, 1] {
        all_go_to_the_other(twins, active)?;
        if active == 0 {
            twins.hand_over(0)?;
            twins.wait_active(1)?;
            // The addresses are there before the base owners that the other node has exported are in the rings; until
            // these are settled, a SYN without the lease follows them.
            thread::sleep(A_WHILE);
        }
    }
    for (node, own) in nodes.into_iter().enumerate() {
        for web in others.clone().chain([own]) {
            say(twins, node, "enable", web)?;
        }
    }
    twins.hand_over(1)?;
    twins.wait_active(0)?;
    twins.wait_synced()
}

/// What backends of a service own and got by one node, for who looks for a fault.
fn shares(twins: &Twins, node: usize, way: Way) -> Result<String> {
    let status = twins.nodes[node].status()?;
    let backends = status.service(way.name())?.backends.iter();
    let each = backends.map(|(address, one)| {
        let (slots, base, pins) = (one.slots, one.base_slots, one.pins);
        format!("{address} {slots} slots, {base} as base owner, {pins} pins, {:?}", one.sent)
    });
    let each: Vec<_> = each.collect();
    Ok(format!("{}: {}", twins.host(node).name, each.join("; ")))
}

/// New connections reach the other node, which would send those that it has not got from a peer to the Active one. What
/// comes by a tunnel its program does not see.
fn all_go_to_the_other(twins: &Twins, active: usize) -> Result<()> {
    let nodes = places(twins);
    let (other, name) = (1 - active, &twins.host(1 - active).name);
    for node in [0, 1] {
        let (alone, said) = (nodes[1 - node], format!("{} sends to one", twins.host(node).name));
        wait::until(PATIENCE, &said, || {
            let status = twins.nodes[node].status()?;
            for way in &twins.plan.ways {
                let backends = &status.service(way.name())?.backends;
                let alone = way.backend(&twins.lab.webs[alone]);
                // The other node has the Active one's base owners.
                let base = |slots| if node == active { slots } else { 0 };
                let owners =
                    backends.iter().filter(|(_, one)| one.slots + base(one.base_slots) > 0);
                let owners: Vec<_> = owners.map(|(address, _)| *address).collect();
                ensure!(owners == [alone], "{owners:?}");
            }
            Ok(())
        })?;
    }
    let count = |node: usize, web: usize, way: Way| -> Result<u64> {
        let status = twins.nodes[node].status()?;
        let service = status.service(way.name())?;
        Ok(service.backend(way.backend(&twins.lab.webs[web]))?.sent.packets)
    };
    for &way in &twins.plan.ways {
        let (delivered, back) = (nodes[other], nodes[active]);
        let sent = count(active, delivered, way)?;
        let (had, returned) = (count(other, delivered, way)?, count(other, back, way)?);
        let hosts = answering(twins, way)?;
        ensure!(
            hosts == BTreeSet::from([name.clone()]),
            "{}, {} Active: {hosts:?}; {}; {}; {}",
            way.name(),
            twins.host(active).name,
            shares(twins, 0, way)?,
            shares(twins, 1, way)?,
            twins.logs()
        );
        let sent = count(active, delivered, way)? - sent;
        let had = count(other, delivered, way)? - had;
        let returned = count(other, back, way)? - returned;
        ensure!(
            sent > 100 && (way.overhead() > 0 || had >= sent) && returned == 0,
            "{}: {sent} packets were forwarded to {name}, {had} delivered there, {returned} sent back",
            way.name()
        );
    }
    Ok(())
}

/// Downloads from all hosts go on while the nodes drain each host, hand over, and lose the Active `lbd`. The first node
/// is Active before and afterwards.
///
/// # Errors
///
/// If one breaks.
pub fn no_download_breaks(twins: &mut Twins) -> Result<()> {
    let start = |way: &Way| {
        let plan =
            downloads::Plan { target: way.target(), each: 2, time: LONG, patience: PATIENCE };
        Downloads::start(&twins.lab, plan)
    };
    let all = twins.plan.ways.iter().map(start).collect::<Result<Vec<_>>>()?;
    let live = |what: &str, twins: &Twins| -> Result<()> {
        thread::sleep(A_WHILE);
        let since = Instant::now();
        thread::sleep(A_WHILE);
        for (way, downloads) in twins.plan.ways.iter().zip(&all) {
            let (silent, ended) = (downloads.silent_since(since), downloads.ended());
            let name = way.name();
            ensure!(
                silent == 0 && ended == 0,
                "{name}, {what}: {silent} get nothing, {ended} have ended; {}",
                twins.logs()
            );
        }
        Ok(())
    };
    for web in places(twins) {
        let name = twins.lab.webs[web].host.name.clone();
        // One node drains it, and the other one still gives it new connections.
        say(twins, 0, "drain", web)?;
        live(&format!("{name} is drained on lb1"), twins)?;
        twins.hand_over(0)?;
        twins.wait_active(1)?;
        live(&format!("{name} is drained on lb1, which has handed over"), twins)?;
        say(twins, 1, "drain", web)?;
        twins.hand_over(1)?;
        twins.wait_active(0)?;
        live(&format!("{name} is drained on both, lb2 has handed back"), twins)?;
        for node in [0, 1] {
            say(twins, node, "enable", web)?;
        }
        twins.wait_synced()?;
    }
    twins.nodes[0].kill()?;
    twins.wait_holds(1)?;
    live("lbd on lb1 was killed", twins)?;
    twins.nodes[0].launch()?;
    twins.wait_active(0)?;
    live("lb1 is back", twins)?;
    for downloads in all {
        for download in downloads.end()? {
            let end = download.end.as_ref();
            ensure!(end.is_ok(), "the download from {}: {:?}", download.host, download.end);
        }
    }
    Ok(())
}

//! Two nodes that are balancers and web hosts at once, as small installations have them.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    downloads::{self, Downloads},
    ha_pair::{HaPair, Plan},
    http::Connection,
    lab::Options,
    status::{ServiceExt as _, StatusExt as _},
    wait,
    ways::Way,
};

/// How clients' packets go.
pub const WAYS: [Way; 2] = [Way::DsrV4, Way::DsrV6];

const PATIENCE: Duration = Duration::from_secs(20);
/// How long downloads would take if nothing ended them.
const LONG: Duration = Duration::from_secs(200);
/// For this long, changes are given time to break connections.
const A_WHILE: Duration = Duration::from_secs(2);

/// The nodes with `attach` on both, beside so many web hosts. `lbd` is not started.
///
/// # Errors
///
/// If something is missing.
pub fn nodes(webs: u8, attach: &'static str, plan: Plan) -> Result<HaPair> {
    HaPair::new(&Options { webs, serve: true, attach, ..Options::default() }, plan)
}

/// The nodes' places among the web hosts.
#[must_use]
pub fn places(ha_pair: &HaPair) -> [usize; 2] {
    let webs = ha_pair.lab.webs.len();
    [webs - 2, webs - 1]
}

/// Runs `lbctl backend` about a web host on one node, for all services.
///
/// # Errors
///
/// If it fails.
pub fn administer(ha_pair: &HaPair, node: usize, what: &str, web: usize) -> Result<()> {
    for way in &ha_pair.plan.ways {
        let backend = way.backend(&ha_pair.lab.webs[web]).to_string();
        ha_pair.nodes[node].lbctl(&["backend", what, way.name(), &backend])?;
    }
    Ok(())
}

/// The hosts that answer forty requests, each on a connection of its own.
///
/// # Errors
///
/// If one is not answered.
pub fn answering(ha_pair: &HaPair, way: Way) -> Result<BTreeSet<String>> {
    let mut hosts = BTreeSet::new();
    for n in 0..40 {
        let page = Connection::open(&ha_pair.lab.client.namespace, way.target(), PATIENCE)
            .and_then(|mut connection| connection.get("/")?.ok())
            .with_context(|| format!("request {n} by {}; {}", way.name(), ha_pair.logs()))?;
        hosts.insert(page.text());
    }
    Ok(hosts)
}

/// Each node thinks that the other one alone serves, and the Active one's packets are delivered there. Then all
/// hosts serve again.
///
/// # Errors
///
/// If another host answers, or a packet is sent back.
pub fn no_packet_goes_to_and_fro(ha_pair: &HaPair) -> Result<()> {
    let nodes = places(ha_pair);
    let others = 0..ha_pair.lab.webs.len() - 2;
    for (node, own) in nodes.into_iter().enumerate() {
        for web in others.clone().chain([own]) {
            administer(ha_pair, node, "disable", web)?;
        }
    }
    for active in [0, 1] {
        all_go_to_the_other(ha_pair, active)?;
        if active == 0 {
            ha_pair.hand_over(0)?;
            ha_pair.wait_active(1)?;
            // The addresses are there before the base owners that the other node has exported are in the rings; until
            // these are settled, a SYN without the lease follows them.
            thread::sleep(A_WHILE);
        }
    }
    for (node, own) in nodes.into_iter().enumerate() {
        for web in others.clone().chain([own]) {
            administer(ha_pair, node, "enable", web)?;
        }
    }
    ha_pair.hand_over(1)?;
    ha_pair.wait_active(0)?;
    ha_pair.wait_synced()
}

/// The slots and packets of a service's backends on one node, for the message of an error.
fn shares(ha_pair: &HaPair, node: usize, way: Way) -> Result<String> {
    let status = ha_pair.nodes[node].status()?;
    let backends = status.service(way.name())?.backends.iter();
    let each = backends.map(|(address, one)| {
        let (slots, base, pins) = (one.slots, one.base_slots, one.pins);
        format!("{address} {slots} slots, {base} as base owner, {pins} pins, {:?}", one.sent)
    });
    let each: Vec<_> = each.collect();
    Ok(format!("{}: {}", ha_pair.host(node).name, each.join("; ")))
}

/// New connections reach the other node, which would send those that it has not got from a peer to the Active one. What
/// comes by a tunnel its program does not see.
fn all_go_to_the_other(ha_pair: &HaPair, active: usize) -> Result<()> {
    let nodes = places(ha_pair);
    let (other, name) = (1 - active, &ha_pair.host(1 - active).name);
    for node in [0, 1] {
        let (alone, waited_for) =
            (nodes[1 - node], format!("{} sends to one", ha_pair.host(node).name));
        wait::until(PATIENCE, &waited_for, || {
            let status = ha_pair.nodes[node].status()?;
            for way in &ha_pair.plan.ways {
                let backends = &status.service(way.name())?.backends;
                let alone = way.backend(&ha_pair.lab.webs[alone]);
                // The other node has the Active one's base owners.
                let base = |slots| if node == active { slots } else { 0 };
                let owners =
                    backends.iter().filter(|(_, one)| one.slots + base(one.base_slots) > 0);
                let owners: Vec<_> = owners.map(|(address, _)| *address).collect();
                ensure!(owners == [alone.into()], "{owners:?}");
            }
            Ok(())
        })?;
    }
    let count = |node: usize, web: usize, way: Way| -> Result<u64> {
        let status = ha_pair.nodes[node].status()?;
        let service = status.service(way.name())?;
        Ok(service.backend(way.backend(&ha_pair.lab.webs[web]))?.sent.packets)
    };
    for &way in &ha_pair.plan.ways {
        let (delivered, back) = (nodes[other], nodes[active]);
        let sent = count(active, delivered, way)?;
        let (had, returned) = (count(other, delivered, way)?, count(other, back, way)?);
        let hosts = answering(ha_pair, way)?;
        ensure!(
            hosts == BTreeSet::from([name.clone()]),
            "{}, {} Active: {hosts:?}; {}; {}; {}",
            way.name(),
            ha_pair.host(active).name,
            shares(ha_pair, 0, way)?,
            shares(ha_pair, 1, way)?,
            ha_pair.logs()
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
pub fn no_download_breaks(ha_pair: &mut HaPair) -> Result<()> {
    let start = |way: &Way| {
        let plan =
            downloads::Plan { target: way.target(), each: 2, time: LONG, patience: PATIENCE };
        Downloads::start(&ha_pair.lab, plan)
    };
    let all = ha_pair.plan.ways.iter().map(start).collect::<Result<Vec<_>>>()?;
    let live = |what: &str, ha_pair: &HaPair| -> Result<()> {
        thread::sleep(A_WHILE);
        let since = Instant::now();
        thread::sleep(A_WHILE);
        for (way, downloads) in ha_pair.plan.ways.iter().zip(&all) {
            let (silent, ended) = (downloads.silent_since(since), downloads.ended());
            let name = way.name();
            ensure!(
                silent == 0 && ended == 0,
                "{name}, {what}: {silent} get nothing, {ended} have ended; {}",
                ha_pair.logs()
            );
        }
        Ok(())
    };
    for web in places(ha_pair) {
        let name = ha_pair.lab.webs[web].host.name.clone();
        // One node drains it, and the other one still gives it new connections.
        administer(ha_pair, 0, "drain", web)?;
        live(&format!("{name} is drained on lb1"), ha_pair)?;
        ha_pair.hand_over(0)?;
        ha_pair.wait_active(1)?;
        live(&format!("{name} is drained on lb1, which has handed over"), ha_pair)?;
        administer(ha_pair, 1, "drain", web)?;
        ha_pair.hand_over(1)?;
        ha_pair.wait_active(0)?;
        live(&format!("{name} is drained on both, lb2 has handed back"), ha_pair)?;
        for node in [0, 1] {
            administer(ha_pair, node, "enable", web)?;
        }
        ha_pair.wait_synced()?;
    }
    ha_pair.nodes[0].kill()?;
    ha_pair.wait_holds(1)?;
    live("lbd on lb1 was killed", ha_pair)?;
    ha_pair.nodes[0].launch()?;
    ha_pair.wait_active(0)?;
    live("lb1 is back", ha_pair)?;
    for downloads in all {
        for download in downloads.end()? {
            let end = download.end.as_ref();
            ensure!(end.is_ok(), "the download from {}: {:?}", download.host, download.end);
        }
    }
    Ok(())
}

//! `lbctl vrrp` and `lbctl sync`: the holders of the addresses, and the nodes that know the flows.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::{Args, Subcommand};
use hyper::Method;
use lb_api::paths;

use super::{Misuse, change::Changer, options::Confirm, table::Table};
use lb_api::requests::Failover;
use lb_api::routers::RouterStatus;
use lb_api::status::{Pair, Peer, Status};
use lb_model::router::State;
use lb_model::units::{counted, format_bytes, format_count, format_duration};
use lb_sync::Key;

/// What to do with virtual routers.
#[derive(Debug, Subcommand)]
pub(super) enum VrrpCommand {
    /// Show the virtual routers, their Active nodes, and the peers.
    Status,
    /// Hand virtual routers over to another node, and return when it has them.
    ///
    /// A peer that knows all flows takes over first, so that no packet is lost. Without one, the
    /// routers leave by an advertisement, and flows of services whose backends change at that
    /// moment may break. If no node takes over, they stay here.
    Failover(FailoverArgs),
}

/// Which virtual routers to hand over.
#[derive(Debug, Args)]
pub(super) struct FailoverArgs {
    /// The names of the virtual routers; the others of their sync groups go along.
    routers: Vec<String>,
    /// All that are active on this node.
    #[arg(long, conflicts_with = "routers")]
    all: bool,
    #[command(flatten)]
    confirm: Confirm,
}

/// What to do with peers.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum SyncCommand {
    /// Show the peers, and the flow sync in both directions.
    Status,
    /// Print a new key, for the file that `key_file` names on all nodes.
    Key,
}

pub(super) async fn vrrp(command: &VrrpCommand, changer: &Changer<'_>) -> Result<()> {
    let Changer { client, printer, .. } = *changer;
    match command {
        VrrpCommand::Status => {
            let pair: Pair = client.get(paths::VRRP).await?;
            printer.print(&pair, || status(&pair, SystemTime::now()))
        }
        VrrpCommand::Failover(FailoverArgs { routers, all, confirm }) => {
            if routers.is_empty() && !all {
                let message = "name the virtual routers to hand over, or pass --all";
                return Err(Misuse(message.into()).into());
            }
            let changer = Changer { terms: (*confirm).into(), ..*changer };
            let which = Failover { routers: routers.clone() };
            changer.make_with(Method::POST, paths::FAILOVER, &which).await
        }
    }
}

pub(super) async fn sync(command: SyncCommand, changer: &Changer<'_>) -> Result<()> {
    match command {
        SyncCommand::Status => {
            let peers: Vec<Peer> = changer.client.get(paths::PEERS).await?;
            changer.printer.print(&peers, || sync_status(&peers, SystemTime::now()))
        }
        SyncCommand::Key => {
            let key = Key::generate()?.to_text();
            changer.printer.print(&key, || format!("{key}\n"))
        }
    }
}

/// Routers and peers, for people.
fn status(pair: &Pair, now: SystemTime) -> String {
    if pair.routers.is_empty() {
        return "no virtual router; add a [[virtual_router]] to the configuration\n".to_owned()
            + &peers(&pair.peers, now);
    }
    let mut table = Table::new(&[
        "ROUTER",
        "ID",
        "INTERFACE",
        "STATE",
        ">PRIORITY",
        ">SINCE",
        "ACTIVE",
        "ADDRESSES",
    ]);
    for router in &pair.routers {
        table.row([
            router.name.clone(),
            router.key.to_string(),
            router.interface.clone(),
            router.state.to_string(),
            priority(router),
            ago(router.since, now),
            active(router),
            router.addresses.join(", "),
        ]);
    }
    let mut text = table.render();
    for router in &pair.routers {
        let name = &router.name;
        let state = match router.state {
            State::Fault => "in fault",
            state => state.name(),
        };
        text += &format!("{name} is {state}: {}\n", router.cause);
        for problem in &router.problems {
            text += &format!("{name}: PROBLEM: {problem}\n");
        }
        if let Some(why) = &router.holds_back {
            text += &format!("{name} keeps from preempting: {why}\n");
        }
    }
    text + &peers(&pair.peers, now)
}

/// The priority as it is, and as configured where that differs.
fn priority(router: &RouterStatus) -> String {
    match (router.priority, router.base_priority) {
        (now, base) if now == base => now.to_string(),
        (now, base) => format!("{now} ({base})"),
    }
}

fn active(router: &RouterStatus) -> String {
    match (router.state, &router.active) {
        (State::Active, _) => "this node".into(),
        (_, Some(active)) => format!("{} ({})", active.address, active.priority),
        (_, None) => "-".into(),
    }
}

fn ago(since: SystemTime, now: SystemTime) -> String {
    let secs = now.duration_since(since).unwrap_or_default().as_secs();
    format_duration(Duration::from_secs(secs))
}

/// A few lines for each peer.
fn peers(peers: &[Peer], now: SystemTime) -> String {
    peers.iter().map(|peer| self::peer(peer, now)).collect()
}

fn peer(peer: &Peer, now: SystemTime) -> String {
    let session = &peer.session;
    let name = match &session.node {
        Some(node) => format!("{node} ({})", session.address),
        None => session.address.to_string(),
    };
    let since = session.since.map(|since| ago(since, now));
    let mut text = match (session.connected, since) {
        (true, since) => {
            let since = since.map_or_else(String::new, |since| format!(" for {since}"));
            format!("peer {name}: connected{since}, {}", flows(peer))
        }
        (false, Some(since)) => format!("peer {name}: GONE for {since}"),
        (false, None) => format!("peer {name}: NOT CONNECTED"),
    };
    if peer.draining {
        text += ", draining";
    }
    let routers = peer.routers.iter().map(|router| {
        let name = router.name.clone().unwrap_or_else(|| router.key.to_string());
        format!("{name} {} (priority {})", router.state, router.priority)
    });
    let routers: Vec<String> = routers.collect();
    if !routers.is_empty() {
        text += &format!("; there: {}", routers.join(", "));
    }
    text.push('\n');
    for problem in problems(peer) {
        text += &format!("  PROBLEM: {problem}\n");
    }
    text
}

/// Everything that keeps flows from it, or its advertisements.
fn problems(peer: &Peer) -> impl Iterator<Item = &String> {
    let refused = peer.session.refused.iter().filter(|text| !peer.problems.contains(text));
    refused.chain(&peer.problems)
}

/// The state of the flow sync in both directions.
fn flows(peer: &Peer) -> &'static str {
    match (peer.session.complete_here, peer.session.is_known_there()) {
        (true, true) => "all flows are known on both sides",
        (true, false) => "IT DOES NOT KNOW ALL FLOWS OF THIS NODE",
        (false, true) => "ITS FLOWS ARE NOT ALL KNOWN HERE",
        (false, false) => "FLOWS ARE NOT KNOWN ON EITHER SIDE",
    }
}

/// The peers with their counters, for people.
fn sync_status(all: &[Peer], now: SystemTime) -> String {
    if all.is_empty() {
        return "no peers; add [sync] to the configuration\n".into();
    }
    let mut table = Table::new(&[
        "PEER",
        "ADDRESS",
        "STATE",
        ">SINCE",
        "KNOWN HERE",
        "KNOWN THERE",
        ">ROUND TRIP",
        ">SENT",
        ">PIECES SENT",
        ">RECEIVED",
        ">GAPS",
        ">FULL SYNCS",
    ]);
    let known = |known: bool| if known { "all" } else { "not all" }.to_owned();
    for peer in all {
        let (session, counters) = (&peer.session, &peer.session.counters);
        table.row([
            session.node.clone().unwrap_or_else(|| "-".into()),
            session.address.to_string(),
            if session.connected { "connected" } else { "gone" }.into(),
            session.since.map_or_else(|| "-".into(), |since| ago(since, now)),
            known(session.complete_here),
            known(session.is_known_there()),
            session.round_trip_micros.map_or_else(|| "-".into(), |micros| format!("{micros} µs")),
            format_bytes(counters.bytes_sent),
            format_count(counters.pieces_sent),
            format_count(counters.pieces_received),
            format_count(counters.gaps),
            format_count(counters.full_syncs),
        ]);
    }
    let mut text = table.render();
    for peer in all {
        for problem in problems(peer) {
            text += &format!("{}: PROBLEM: {problem}\n", peer.name());
        }
        let strange = peer.session.counters.unauthentic + peer.session.counters.replayed;
        if strange > 0 {
            let name = peer.name();
            text += &format!(
                "{name}: {} not taken: not authentic, or repeated\n",
                counted(strange, "packet")
            );
        }
    }
    text
}

/// A line each for routers and peers, where there are any.
pub(super) fn lines(status: &Status) -> String {
    let mut text = String::new();
    let routers: Vec<_> = status
        .vrrp
        .iter()
        .map(|router| match router.problems.as_slice() {
            [] => format!("{} {}", router.name, router.state),
            [first, ..] => format!("{} {} ({first})", router.name, router.state),
        })
        .collect();
    if !routers.is_empty() {
        text += &format!("virtual routers: {}\n", routers.join(", "));
    }
    let peers: Vec<_> =
        status.peers.iter().map(|peer| format!("{} {}", peer.name(), peer_state(peer))).collect();
    if !peers.is_empty() {
        text += &format!("peers: {}\n", peers.join(", "));
    }
    text
}

/// Whether a peer is there and knows all flows.
pub(super) fn peer_state(peer: &Peer) -> &'static str {
    match peer.session.connected {
        false => "GONE",
        true if problems(peer).next().is_some() => "CONFIGURED OTHERWISE",
        true => match (peer.session.complete_here, peer.session.is_known_there()) {
            (true, true) => "synced",
            _ => "NOT SYNCED",
        },
    }
}

#[cfg(test)]
mod tests;

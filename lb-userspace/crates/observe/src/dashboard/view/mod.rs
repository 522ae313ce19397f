//! The page's view of a node: less than [`lb_api::status::Status`] has, in few bytes, and such
//! that little of it differs from one second to the next. Moments instead of ages, whole numbers, and
//! nothing where there is nothing to show.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use lb_api::{
    routers::RouterStatus,
    status::{Backend, Count, Interface, Peer, PeerRouter, Service, Usage},
};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Ports, Vips},
    router::State,
};
use serde::Serialize;
use serde_json::Value;

use crate::samples::{Rate, Sample, ServiceRates};

/// Packets, bytes and new flows.
type Three = [u64; 3];

#[derive(Serialize)]
struct Node<'a> {
    number: u64,
    /// Milliseconds since 1970, here and in all that is a moment.
    at: u64,
    version: &'a str,
    name: &'a str,
    /// Seconds.
    uptime: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    draining_since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    interfaces: &'a [Interface],
    usage: BTreeMap<&'static str, Usage>,
    rate: Three,
    passed: BTreeMap<&'a str, Reason>,
    dropped: BTreeMap<&'a str, Reason>,
    routers: Vec<Router<'a>>,
    peers: Vec<Neighbour<'a>>,
    services: BTreeMap<&'a str, OfService<'a>>,
}

/// How often packets end in a way.
#[derive(Serialize)]
struct Reason {
    /// Packets and bytes per second.
    rate: [u64; 2],
    total: Count,
}

/// A virtual router.
#[derive(Serialize)]
struct Router<'a> {
    name: &'a str,
    key: String,
    interface: &'a str,
    state: State,
    since: u64,
    cause: &'a str,
    priority: u8,
    base_priority: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<String>,
    addresses: &'a [String],
    problems: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    holds_back: Option<&'a str>,
    transitions: u64,
}

/// A peer.
#[derive(Serialize)]
struct Neighbour<'a> {
    name: String,
    address: String,
    connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    /// Whether this node has all of its flows.
    here: bool,
    /// Whether it has all of this node's.
    there: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip_micros: Option<u64>,
    draining: bool,
    problems: &'a [String],
    routers: Vec<OnPeer<'a>>,
}

/// A virtual router on a peer.
#[derive(Serialize)]
struct OnPeer<'a> {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    state: State,
    priority: u8,
}

#[derive(Serialize)]
struct OfService<'a> {
    vip: Vips,
    port: Ports,
    protocol: String,
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    udp: Option<lb_model::desired::UdpPolicy>,
    slots: u32,
    flux: u32,
    idle_timeout: u64,
    #[serde(flatten)]
    standing: lb_api::status::Standing,
    rate: Three,
    backends: BTreeMap<BackendAddress, OfBackend<'a>>,
}

#[derive(Serialize)]
struct OfBackend<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    /// The name of its state.
    state: &'static str,
    /// The reason, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    weight: u16,
    backup: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    slow_start_permille: Option<u16>,
    slots: u32,
    base_slots: u32,
    pins: u64,
    pins_closing: u64,
    pins_stale: bool,
    has_flows: bool,
    /// Whether only the Active sees its flows, and does not send them to this node.
    unsynced: bool,
    /// Whether its drain is over by estimate.
    silent: bool,
    /// Seconds without a packet after which it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_silence: Option<u64>,
    /// Seconds until its drain is over for certain if no flow sends any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_ends_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<u64>,
    rate: Three,
    total: Three,
    /// Mode `nat`: packets and bytes of its answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    returned: Option<[u64; 2]>,
    /// TCP in mode `nat`: connections that are open, were accepted, were refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Three>,
    /// Connections of this node's own processes while it drains.
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<u64>,
    unpinned: u64,
    resent: u64,
    second: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<Check<'a>>,
}

#[derive(Serialize)]
struct Check<'a> {
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<&'a str>,
    since: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    micros: Option<u64>,
    ok: u64,
    failed: u64,
    against: u8,
    /// How many answers in a row change the condition.
    of: u8,
    went_down: u64,
}

/// The page's view.
pub(super) fn view(sample: &Sample) -> Value {
    let status = &sample.status;
    let node = Node {
        number: sample.number,
        at: millis(sample.at),
        version: &status.version,
        name: &status.name,
        uptime: status.uptime_secs,
        draining_since: status.node.draining_since.map(millis),
        error: status.last_error.as_deref(),
        interfaces: &status.interfaces,
        usage: [
            ("pins", status.pins),
            ("services", status.services_used),
            ("backends", status.backends_used),
        ]
        .into(),
        rate: rate(sample.rates.node),
        passed: reasons(&status.passed, &sample.rates.passed),
        dropped: reasons(&status.dropped, &sample.rates.dropped),
        routers: status.vrrp.iter().map(router).collect(),
        peers: status.peers.iter().map(peer).collect(),
        services: status
            .services
            .iter()
            .map(|(name, of)| (name.as_str(), service(of, sample.rates.services.get(name))))
            .collect(),
    };
    serde_json::to_value(node).expect("names are text")
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn rate(rate: Rate) -> Three {
    [rate.packets, rate.bytes, rate.new_flows].map(|figure| figure.round() as u64)
}

fn reasons<'a>(
    counts: &'a BTreeMap<String, Count>,
    rates: &BTreeMap<String, Rate>,
) -> BTreeMap<&'a str, Reason> {
    let some = counts.iter().filter(|(_, count)| count.packets > 0);
    some.map(|(reason, &total)| {
        let [packets, bytes, _] = rate(rates.get(reason).copied().unwrap_or_default());
        (reason.as_str(), Reason { rate: [packets, bytes], total })
    })
    .collect()
}

fn router(router: &RouterStatus) -> Router<'_> {
    Router {
        name: &router.name,
        key: router.key.to_string(),
        interface: &router.interface,
        state: router.state,
        since: millis(router.since),
        cause: &router.cause,
        priority: router.priority,
        base_priority: router.base_priority,
        active: router.active.as_ref().map(|active| active.address.to_string()),
        addresses: &router.addresses,
        problems: &router.problems,
        holds_back: router.holds_back.as_deref(),
        transitions: router.counters.transitions,
    }
}

fn peer(peer: &Peer) -> Neighbour<'_> {
    let session = &peer.session;
    Neighbour {
        name: peer.name(),
        address: session.address.to_string(),
        connected: session.connected,
        since: session.since.map(millis),
        here: session.complete_here,
        // The latest flows may be on their way, at any moment.
        there: session.is_known_there(),
        refused: session.refused.as_deref(),
        // To a tenth of a millisecond, so that it does not differ each time.
        round_trip_micros: session.round_trip_micros.map(|micros| micros.div_ceil(100) * 100),
        draining: peer.draining,
        problems: &peer.problems,
        routers: peer.routers.iter().map(on_peer).collect(),
    }
}

fn on_peer(router: &PeerRouter) -> OnPeer<'_> {
    OnPeer {
        key: router.key.to_string(),
        name: router.name.as_deref(),
        state: router.state,
        priority: router.priority,
    }
}

fn service<'a>(service: &'a Service, rates: Option<&ServiceRates>) -> OfService<'a> {
    let of = |at: &BackendAddress| rates.and_then(|rates| rates.backends.get(at)).copied();
    let backends = service.backends.iter();
    OfService {
        vip: service.key.vips(),
        port: service.key.ports(),
        protocol: service.key.protocol.to_string(),
        mode: service.mode.to_string(),
        udp: service.udp_policy,
        slots: service.ring_slots,
        flux: service.slots_in_flux,
        idle_timeout: service.idle_timeout_secs,
        standing: service.standing,
        rate: rate(rates.map(|rates| rates.total).unwrap_or_default()),
        backends: backends.map(|(at, of_it)| (*at, backend(of_it, of(at)))).collect(),
    }
}

fn totals(backend: &Backend) -> Three {
    [backend.sent.packets, backend.sent.bytes, backend.new_flows]
}

fn backend(backend: &Backend, rates: Option<Rate>) -> OfBackend<'_> {
    let check = backend.check.as_ref().filter(|check| check.kind != "none");
    let deadline = match backend.admin {
        Admin::Draining { deadline } | Admin::Removing { deadline } => deadline,
        Admin::Enabled | Admin::Disabled | Admin::Down => None,
    };
    OfBackend {
        name: backend.name.as_deref(),
        state: backend.state().name(),
        why: backend.why(),
        weight: backend.weight,
        backup: backend.backup,
        slow_start_permille: backend.slow_start_permille,
        slots: backend.slots,
        base_slots: backend.base_slots,
        pins: backend.pins,
        pins_closing: backend.pins_closing,
        pins_stale: backend.pins_stale,
        has_flows: backend.has_flows(),
        unsynced: backend.is_unsynced(),
        silent: backend.is_estimated_over(),
        drain_silence: backend.drain.map(|drain| drain.silence_secs).filter(|secs| *secs > 0),
        drain_ends_in: backend.drain.and_then(|drain| drain.ends_in_secs),
        deadline: deadline.map(millis),
        rate: rate(rates.unwrap_or_default()),
        total: totals(backend),
        returned: backend.returned.map(|count| [count.packets, count.bytes]),
        connections: backend.connections.map(|all| [all.open, all.accepted, all.refused]),
        local: backend.drain.map(|drain| drain.local_connections).filter(|count| *count > 0),
        unpinned: backend.unpinned_packets,
        resent: backend.syn_retransmissions,
        second: backend.second_choices,
        interface: backend.interface.as_deref(),
        mac: backend.mac.as_deref(),
        check: check.map(|check| Check {
            kind: &check.kind,
            last: check.last.as_deref(),
            since: check.since.saturating_mul(1_000),
            micros: check.latency_us,
            ok: check.counts.ok,
            failed: check.counts.failed,
            against: check.against,
            of: match check.condition {
                lb_model::seen::Condition::Up => check.fall,
                _ => check.rise,
            },
            went_down: check.went_down,
        }),
    }
}

#[cfg(test)]
mod tests;

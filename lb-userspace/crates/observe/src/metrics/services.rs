//! Services and their backends: their traffic and states.

use std::fmt;

use lb_api::status::{Backend, BackendState, Connections, Count, Service, Status};
use lb_model::{
    desired::{Admin, UdpPolicy},
    seen::Condition,
};

use super::page::{Family, Labels, Page, seconds, truth};

/// A backend with its labels.
struct Row<'s> {
    service: &'s str,
    address: String,
    backend: &'s Backend,
}

impl Row<'_> {
    fn labels(&self) -> Labels<'_, 2> {
        [("service", self.service), ("backend", &self.address)]
    }

    fn labelled<'s>(&'s self, name: &'static str, value: &'s str) -> Labels<'s, 3> {
        [("service", self.service), ("backend", &self.address), (name, value)]
    }
}

/// The labels of `lb_backend_state`; each backend has one of them.
const STATES: [&str; 9] = [
    "up",
    "backup",
    "held",
    "down",
    "unresolved",
    "draining",
    "removing",
    "disabled",
    "taken_down",
];

/// The label of a backend's state. That it is suspect is a metric of its own.
fn state(backend: &Backend) -> &'static str {
    match backend.state() {
        BackendState::TakenDown => "taken_down",
        BackendState::Suspect if backend.backup => BackendState::Backup.name(),
        BackendState::Suspect => BackendState::Up.name(),
        state => state.name(),
    }
}

/// Whether a backend serves by its checks and its next hop, whatever its administrative state.
pub(super) fn is_up(backend: &Backend) -> bool {
    let reached = backend.unusable.is_none() || backend.admin == Admin::Down;
    backend.condition == Condition::Up && reached
}

pub(super) fn write(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    services(page, status)?;
    let rows: Vec<Row<'_>> = status
        .services
        .iter()
        .flat_map(|(name, service)| {
            let row = |(address, backend): (&_, _)| Row {
                service: name,
                address: ToString::to_string(address),
                backend,
            };
            service.backends.iter().map(row)
        })
        .collect();
    page.infos(
        Family::new("lb_backend", "A backend that has a name beside its address"),
        rows.iter().filter_map(|row| Some(row.labelled("name", row.backend.name.as_deref()?))),
    )?;
    traffic(page, &rows)?;
    backend_states(page, &rows)?;
    checks(page, &rows)
}

fn services(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let all = |value: fn(&Service) -> u64| {
        status
            .services
            .iter()
            .map(move |(name, service)| ([("service", name.as_str())], value(service)))
    };
    let keys: Vec<_> = status
        .services
        .iter()
        .map(|(name, service)| {
            let key = service.key;
            let (vips, ports) = (key.vips().to_string(), key.ports().to_string());
            let labels = [vips, ports, key.protocol.to_string()];
            (name, labels, service.mode.to_string(), service.udp_policy)
        })
        .collect();
    page.infos(
        Family::new(
            "lb_service",
            "A service: its VIP, port, protocol, forwarding mode and UDP policy",
        ),
        keys.iter().map(|(name, [vip, port, protocol], mode, udp)| {
            let udp = match udp {
                None => "",
                Some(UdpPolicy::Oneshot) => "oneshot",
                Some(UdpPolicy::Tracked) => "tracked",
                Some(UdpPolicy::Quic) => "quic",
            };
            [
                ("service", name.as_str()),
                ("vip", vip),
                ("port", port),
                ("protocol", protocol),
                ("mode", mode),
                ("udp", udp),
            ]
        }),
    )?;
    page.counters(
        Family::new(
            "lb_service_packets",
            "Packets sent to the backends of a service, those included that it has no more",
        ),
        all(|service| service.totals.sent.packets),
    )?;
    page.counters(
        Family::bytes(
            "lb_service",
            "Bytes of IP sent to the backends of a service, those included that it has no more",
        ),
        all(|service| service.totals.sent.bytes),
    )?;
    page.counters(
        Family::new(
            "lb_service_new_flows",
            "Packets that opened a flow to a backend of a service, those included that it has no more",
        ),
        all(|service| service.totals.new_flows),
    )?;
    page.gauges(
        Family::new(
            "lb_service_backends_enabled",
            "Backends of a service that the operator lets have new flows",
        ),
        all(|service| service.standing.enabled.into()),
    )?;
    page.gauges(
        Family::new("lb_service_backends_up", "Backends of a service that can have new flows"),
        all(|service| service.standing.up.into()),
    )?;
    page.gauges(
        Family::new(
            "lb_service_ready",
            "Whether as many backends are up as the service needs (min_healthy)",
        ),
        all(|service| service.standing.ready.into()),
    )?;
    page.gauges(
        Family::new(
            "lb_service_panic",
            "Whether so few backends are up that checks are ignored (panic_threshold)",
        ),
        all(|service| service.standing.panic.into()),
    )?;
    page.gauges(
        Family::new("lb_service_on_backups", "Whether backups serve, since no other backend is up"),
        all(|service| service.standing.on_backups.into()),
    )?;
    page.gauges(
        Family::new("lb_ring_slots", "Slots of a service's ring"),
        all(|service| service.ring_slots.into()),
    )?;
    page.gauges(
        Family::new(
            "lb_slots_in_flux",
            "Slots whose older flows are still on another backend than their new ones",
        ),
        all(|service| service.slots_in_flux.into()),
    )
}

fn traffic(page: &mut Page<'_>, rows: &[Row<'_>]) -> fmt::Result {
    let all =
        |value: fn(&Backend) -> u64| rows.iter().map(move |row| (row.labels(), value(row.backend)));
    page.counters(
        Family::new("lb_backend_packets", "Packets sent to a backend"),
        all(|backend| backend.sent.packets),
    )?;
    page.counters(
        Family::bytes("lb_backend", "Bytes of IP sent to a backend"),
        all(|backend| backend.sent.bytes),
    )?;
    let returned = |value: fn(Count) -> u64| {
        rows.iter().filter_map(move |row| Some((row.labels(), value(row.backend.returned?))))
    };
    page.counters(
        Family::new(
            "lb_backend_returned_packets",
            "Answers of a backend in mode nat that this node has translated",
        ),
        returned(|count| count.packets),
    )?;
    page.counters(
        Family::bytes("lb_backend_returned", "Bytes of IP of answers of a backend in mode nat"),
        returned(|count| count.bytes),
    )?;
    page.counters(
        Family::new(
            "lb_backend_accepted_connections",
            "Connections that a backend in mode nat has accepted: its SYN-ACKs, without repetitions",
        ),
        connections(rows, |count| count.accepted),
    )?;
    page.counters(
        Family::new(
            "lb_backend_refused_connections",
            "RSTs of a backend in mode nat that ended no known connection",
        ),
        connections(rows, |count| count.refused),
    )?;
    page.counters(
        Family::new(
            "lb_backend_local_sockets",
            "Sockets of this node itself that were given a backend in mode nat for its VIP",
        ),
        rows.iter().filter_map(|row| Some((row.labels(), row.backend.local_sockets?))),
    )?;
    page.counters(
        Family::new("lb_backend_new_flows", "Packets that opened a flow to a backend"),
        all(|backend| backend.new_flows),
    )?;
    page.counters(
        Family::new(
            "lb_backend_unpinned_packets",
            "Packets sent to a backend as a slot's base owner, without a pin",
        ),
        all(|backend| backend.unpinned_packets),
    )?;
    page.counters(
        Family::new(
            "lb_backend_syn_retransmissions",
            "SYNs to a backend that were seen before: it did not answer",
        ),
        all(|backend| backend.syn_retransmissions),
    )?;
    page.counters(
        Family::new(
            "lb_backend_second_choices",
            "Retransmitted SYNs that went to this backend, as the second choice for a silent one",
        ),
        all(|backend| backend.second_choices),
    )?;
    page.counters(
        Family::new(
            "lb_backend_suspicions",
            "Times that clients' packets showed that a backend may be silent; most end with its next answer",
        ),
        all(|backend| backend.check.as_ref().map_or(0, |check| check.suspicions)),
    )
}

/// Of the backends whose connections are counted.
fn connections<'a>(
    rows: &'a [Row<'a>],
    value: fn(Connections) -> u64,
) -> impl Iterator<Item = (Labels<'a, 2>, u64)> {
    rows.iter().filter_map(move |row| Some((row.labels(), value(row.backend.connections?))))
}

fn backend_states(page: &mut Page<'_>, rows: &[Row<'_>]) -> fmt::Result {
    let all =
        |value: fn(&Backend) -> u64| rows.iter().map(move |row| (row.labels(), value(row.backend)));
    page.gauges(
        Family::new(
            "lb_backend_up",
            "Whether a backend is up by its checks and its next hop, without regard to drain and disable",
        ),
        all(|backend| is_up(backend).into()),
    )?;
    page.gauges(
        Family::new(
            "lb_backend_state",
            "The state of a backend: 1 for its current one, 0 for the others",
        ),
        rows.iter().flat_map(|row| {
            let now = state(row.backend);
            STATES.iter().map(move |state| (row.labelled("state", state), truth(*state == now)))
        }),
    )?;
    page.gauges(
        Family::new(
            "lb_backend_suspect",
            "Whether clients' packets show that a backend may be silent, and no check has decided yet",
        ),
        all(|backend| backend.suspect.into()),
    )?;
    page.gauges(
        Family::new(
            "lb_backend_weight",
            "The weight of a backend, relative to the others of its service",
        ),
        all(|backend| backend.weight.into()),
    )?;
    page.gauges(
        Family::new("lb_backend_slots", "Slots whose new flows go to a backend"),
        all(|backend| backend.slots.into()),
    )?;
    page.gauges(
        Family::new(
            "lb_backend_base_slots",
            "Slots whose older flows stay on a backend while new ones go to another",
        ),
        all(|backend| backend.base_slots.into()),
    )?;
    page.gauges(
        Family::new(
            "lb_backend_connections",
            "Open connections to a backend in mode nat, counted by the packets of both directions",
        ),
        connections(rows, |count| count.open),
    )?;
    page.gauges(
        Family::new("lb_backend_pins", "Flows that are pinned to a backend"),
        all(|backend| backend.pins),
    )
}

fn checks(page: &mut Page<'_>, rows: &[Row<'_>]) -> fmt::Result {
    let checked = || {
        let check = |row| Some((row, Row::check(row)?));
        rows.iter().filter_map(check)
    };
    page.counters(
        Family::new("lb_backend_health_checks", "Health checks of a backend, by result"),
        checked().flat_map(|(row, check)| {
            let counts = check.counts;
            [("ok", counts.ok), ("failed", counts.failed), ("unknown", counts.unknown)]
                .map(|(result, count)| (row.labelled("result", result), count))
        }),
    )?;
    page.counters(
        Family::new(
            "lb_backend_health_transitions",
            "Times that a backend came up or went down by its check",
        ),
        checked().flat_map(|(row, check)| {
            [("up", check.went_up), ("down", check.went_down)]
                .map(|(to, count)| (row.labelled("to", to), count))
        }),
    )?;
    page.gauges(
        Family::seconds(
            "lb_backend_health_since_timestamp",
            "When the health of a backend changed last",
        ),
        checked().map(|(row, check)| (row.labels(), check.since)),
    )?;
    page.gauges(
        Family::seconds(
            "lb_backend_health_check_last_duration",
            "How long the last answer to a backend's check took",
        ),
        checked().filter_map(|(row, check)| Some((row.labels(), seconds(check.latency_us?)))),
    )?;
    page.histograms(
        Family::seconds(
            "lb_backend_health_check_duration",
            "How long good answers to a backend's check took",
        ),
        checked().map(|(row, check)| (row.labels(), &check.latency)),
    )
}

impl Row<'_> {
    /// The state of the checks, if there are any.
    fn check(&self) -> Option<&lb_api::check_status::CheckStatus> {
        self.backend.check.as_ref().filter(|check| check.kind != "none")
    }
}

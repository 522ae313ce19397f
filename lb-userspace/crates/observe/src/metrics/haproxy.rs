//! The figures by the names of HAProxy's own exporter, for alerts and dashboards that are there.
//!
//! A service is a frontend and a backend (`proxy`), a backend is a server, by its name or else its address. Only metrics with the same meaning
//! are exported: answers bypass the balancer, so it knows nothing of bytes out, sessions that are
//! open, response times and errors of servers, and it has no queues.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use lb_api::status::{Backend, BackendState, Service, Status};

use super::{
    page::{Family, Labels, Page, seconds, truth},
    process::Process,
    services::is_up,
};

/// HAProxy's names of the states of a server.
const STATES: [&str; 5] = ["DOWN", "UP", "MAINT", "DRAIN", "NOLB"];

/// A backend's state in HAProxy's words.
fn state(backend: &Backend) -> &'static str {
    match backend.state() {
        BackendState::TakenDown => "MAINT",
        _ if !is_up(backend) => "DOWN",
        BackendState::Draining | BackendState::Removing | BackendState::Disabled => "DRAIN",
        BackendState::Held => "NOLB",
        _ => "UP",
    }
}

/// Thousandths of a weight that a backend has, in a slow start.
fn permille(backend: &Backend) -> u64 {
    backend.slow_start_permille.map_or(1_000, u64::from)
}

/// A backend with its labels.
struct Row<'s> {
    proxy: &'s str,
    server: String,
    backend: &'s Backend,
}

impl Row<'_> {
    fn labels(&self) -> Labels<'_, 2> {
        [("proxy", self.proxy), ("server", &self.server)]
    }
}

pub(super) fn write(
    page: &mut Page<'_>,
    status: &Status,
    process: Option<&Process>,
) -> fmt::Result {
    page.gauge(
        Family::seconds("haproxy_process_uptime", "How long lbd has run"),
        status.uptime_secs,
    )?;
    if let Some(process) = process {
        page.gauge(
            Family::seconds("haproxy_process_start_time", "When lbd started, since 1970"),
            process.started_secs(),
        )?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    frontends(page, status)?;
    backends(page, status, now)?;
    let rows: Vec<Row<'_>> = status
        .services
        .iter()
        .flat_map(|(proxy, service)| {
            service.backends.iter().map(move |(address, backend)| Row {
                proxy,
                server: backend.name.clone().unwrap_or_else(|| address.to_string()),
                backend,
            })
        })
        .collect();
    servers(page, &rows)?;
    checks(page, &rows, now)
}

/// A value of each service.
fn of_services<'s>(
    status: &'s Status,
    value: fn(&Service) -> u64,
) -> impl Iterator<Item = (Labels<'s, 1>, u64)> {
    status.services.iter().map(move |(name, service)| ([("proxy", name.as_str())], value(service)))
}

/// Whether each service is up, as a state of [`STATES`].
fn up_and_down<'s>(
    status: &'s Status,
    is_up: fn(&Service) -> bool,
) -> impl Iterator<Item = (Labels<'s, 2>, u32)> {
    status.services.iter().flat_map(move |(name, service)| {
        ["DOWN", "UP"].map(|state| {
            ([("proxy", name.as_str()), ("state", state)], truth(is_up(service) == (state == "UP")))
        })
    })
}

fn frontends(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    page.gauges(
        Family::new("haproxy_frontend_status", "Whether packets to the service are taken: always"),
        up_and_down(status, |_| true),
    )?;
    page.counters(
        Family::new("haproxy_frontend_bytes_in", "Bytes of IP of clients, sent to backends"),
        of_services(status, |service| service.totals.sent.bytes),
    )?;
    page.counters(
        Family::new("haproxy_frontend_sessions", "Flows that were opened"),
        of_services(status, |service| service.totals.new_flows),
    )?;
    page.counters(
        Family::new("haproxy_frontend_connections", "Flows that were opened"),
        of_services(status, |service| service.totals.new_flows),
    )
}

fn backends(page: &mut Page<'_>, status: &Status, now: u64) -> fmt::Result {
    let serves = |service: &Service| service.standing.up > 0 || service.standing.panic;
    page.gauges(
        Family::new(
            "haproxy_backend_status",
            "Whether a backend of the service can have new flows",
        ),
        up_and_down(status, serves),
    )?;
    page.counters(
        Family::new("haproxy_backend_bytes_in", "Bytes of IP of clients, sent to backends"),
        of_services(status, |service| service.totals.sent.bytes),
    )?;
    page.counters(
        Family::new("haproxy_backend_sessions", "Flows that were opened"),
        of_services(status, |service| service.totals.new_flows),
    )?;
    page.counters(
        Family::new("haproxy_backend_loadbalanced", "Flows that were opened"),
        of_services(status, |service| service.totals.new_flows),
    )?;
    page.counters(
        Family::new(
            "haproxy_backend_retry_warnings",
            "SYNs that were seen before: a backend did not answer",
        ),
        of_services(status, |service| {
            service.backends.values().map(|b| b.syn_retransmissions).sum()
        }),
    )?;
    page.gauges(
        Family::new(
            "haproxy_backend_weight",
            "Weights of the backends that are up and no backups, with slow starts",
        ),
        of_services(status, |service| {
            active(service).map(|b| u64::from(b.weight) * permille(b) / 1_000).sum()
        }),
    )?;
    page.gauges(
        Family::new(
            "haproxy_backend_uweight",
            "Weights of the backends that are up and no backups",
        ),
        of_services(status, |service| active(service).map(|b| u64::from(b.weight)).sum()),
    )?;
    page.gauges(
        Family::new("haproxy_backend_active_servers", "Backends that are up and no backups"),
        of_services(status, |service| active(service).count() as u64),
    )?;
    page.gauges(
        Family::new("haproxy_backend_backup_servers", "Backups that are up"),
        of_services(status, |service| up(service).filter(|b| b.backup).count() as u64),
    )?;
    page.counters(
        Family::new(
            "haproxy_backend_check_up_down",
            "Times that a backend of the service went down by its check",
        ),
        of_services(status, |service| {
            service.backends.values().filter_map(|b| Some(b.check.as_ref()?.went_down)).sum()
        }),
    )?;
    page.gauges(
        Family::seconds(
            "haproxy_backend_check_last_change",
            "How long ago the condition of a backend changed last",
        ),
        status.services.iter().filter_map(|(name, service)| {
            let since =
                service.backends.values().filter_map(|b| Some(b.check.as_ref()?.since)).max()?;
            Some(([("proxy", name.as_str())], now.saturating_sub(since)))
        }),
    )?;
    page.gauges(
        Family::new("haproxy_backend_agg_server_status", "Backends by their state"),
        status.services.iter().flat_map(|(name, service)| {
            STATES.map(|wanted| {
                let count = service.backends.values().filter(|b| state(b) == wanted).count();
                ([("proxy", name.as_str()), ("state", wanted)], count as u64)
            })
        }),
    )
}

fn up(service: &Service) -> impl Iterator<Item = &Backend> {
    service.backends.values().filter(|backend| state(backend) == "UP")
}

fn active(service: &Service) -> impl Iterator<Item = &Backend> {
    up(service).filter(|backend| !backend.backup)
}

fn servers(page: &mut Page<'_>, rows: &[Row<'_>]) -> fmt::Result {
    let all =
        |value: fn(&Backend) -> u64| rows.iter().map(move |row| (row.labels(), value(row.backend)));
    page.gauges(
        Family::new(
            "haproxy_server_status",
            "The state of a backend: 1 for its current one, 0 for the others",
        ),
        rows.iter().flat_map(|row| {
            let now = state(row.backend);
            STATES.map(|state| {
                let labels =
                    [("proxy", row.proxy), ("server", row.server.as_str()), ("state", state)];
                (labels, truth(state == now))
            })
        }),
    )?;
    page.counters(
        Family::new("haproxy_server_bytes_in", "Bytes of IP of clients, sent to the backend"),
        all(|backend| backend.sent.bytes),
    )?;
    page.counters(
        Family::new("haproxy_server_sessions", "Flows that were opened"),
        all(|backend| backend.new_flows),
    )?;
    page.counters(
        Family::new("haproxy_server_loadbalanced", "Flows that were opened"),
        all(|backend| backend.new_flows),
    )?;
    page.counters(
        Family::new(
            "haproxy_server_retry_warnings",
            "SYNs that were seen before: the backend did not answer",
        ),
        all(|backend| backend.syn_retransmissions),
    )?;
    page.gauges(
        Family::new("haproxy_server_weight", "The backend's weight, with a slow start"),
        all(|backend| u64::from(backend.weight) * permille(backend) / 1_000),
    )?;
    page.gauges(
        Family::new("haproxy_server_uweight", "The backend's weight"),
        all(|backend| backend.weight.into()),
    )?;
    page.gauges(
        Family::new(
            "haproxy_server_current_throttle",
            "Percent of its share that a backend has in a slow start",
        ),
        all(|backend| permille(backend) / 10),
    )
}

fn checks(page: &mut Page<'_>, rows: &[Row<'_>], now: u64) -> fmt::Result {
    let checked = || {
        rows.iter().filter_map(|row| {
            let check = row.backend.check.as_ref().filter(|check| check.kind != "none")?;
            Some((row.labels(), check))
        })
    };
    page.counters(
        Family::new("haproxy_server_check_failures", "Checks that failed"),
        checked().map(|(labels, check)| (labels, check.counts.failed)),
    )?;
    page.counters(
        Family::new(
            "haproxy_server_check_up_down",
            "Times that the backend went down by its check",
        ),
        checked().map(|(labels, check)| (labels, check.went_down)),
    )?;
    page.gauges(
        Family::seconds(
            "haproxy_server_check_last_change",
            "How long ago the condition of the backend changed",
        ),
        checked().map(|(labels, check)| (labels, now.saturating_sub(check.since))),
    )?;
    page.gauges(
        Family::seconds(
            "haproxy_server_check_duration",
            "How long the last answer to the check took",
        ),
        checked().filter_map(|(labels, check)| Some((labels, seconds(check.latency_us?)))),
    )
}

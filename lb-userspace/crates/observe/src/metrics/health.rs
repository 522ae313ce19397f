//! The health checks as a whole.

use std::fmt;

use lb_api::status::Status;

use super::page::{Family, Page};

pub(super) fn write(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let load = &status.checks;
    let counts = load.counts;
    page.gauge(
        Family::new("lb_health_backends", "Backends that are checked"),
        load.backends as u64,
    )?;
    page.counters(
        Family::new("lb_health_checks", "Health checks by result, those of removed backends included; unknown: the check could not start"),
        [("ok", counts.ok), ("failed", counts.failed), ("unknown", counts.unknown)]
            .map(|(result, count)| ([("result", result)], count)),
    )?;
    page.gauge(
        Family::new("lb_health_checks_in_flight", "Health checks that wait for an answer"),
        load.in_flight as u64,
    )?;
    page.gauge(
        Family::new("lb_health_checks_limit", "Health checks that may wait for an answer at once"),
        // A limit that is not set is larger than a gauge of whole numbers can hold.
        load.limit as f64,
    )?;
    page.histogram(
        Family::seconds(
            "lb_health_check_lateness",
            "Time from a health check's due time to its start",
        ),
        &load.lateness,
    )?;
    page.counter(
        Family::new(
            "lb_health_pauses",
            "Times that lbd did not run for a while, as the prober found",
        ),
        load.pauses,
    )?;
    page.gauge(
        Family::new(
            "lb_health_troubles",
            "Reasons for which health checks can't start at present; the log names them",
        ),
        load.troubles.len() as u64,
    )
}

//! The health checks as a whole.

use std::fmt;

use super::page::{Family, Page};
use crate::status::Status;

pub(super) fn write(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let load = &status.checks;
    let counts = load.counts;
    page.gauge(
        Family::new("lb_health_backends", "Backends that are checked"),
        load.backends as u64,
    )?;
    page.counters(
        Family::new("lb_health_checks", "Questions of all checks by what came of them, those of backends that are gone included"),
        [("ok", counts.ok), ("failed", counts.failed), ("unknown", counts.unknown)]
            .map(|(result, count)| ([("result", result)], count)),
    )?;
    page.gauge(
        Family::new("lb_health_checks_in_flight", "Questions that wait for their answer"),
        load.in_flight as u64,
    )?;
    page.gauge(
        Family::new("lb_health_checks_limit", "Questions that may wait at once"),
        // What is not limited is larger than a gauge of whole numbers can tell.
        load.limit as f64,
    )?;
    page.histogram(
        Family::seconds(
            "lb_health_check_lateness",
            "How much later than they were due questions were asked",
        ),
        &load.lateness,
    )?;
    page.counter(
        Family::new(
            "lb_health_pauses",
            "Times that the process was found not to have run for a while",
        ),
        load.pauses,
    )?;
    page.gauge(
        Family::new(
            "lb_health_troubles",
            "Reasons for which questions can't be asked at present; the log names them",
        ),
        load.troubles.len() as u64,
    )
}

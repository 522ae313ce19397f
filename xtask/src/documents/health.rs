//! The chapter of `bench health`.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Page,
    table::{Table, commas},
    typed,
};

#[derive(Deserialize)]
struct Report {
    floor_us: f64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    backends: u64,
    interval_ms: u64,
    checks: u64,
    checks_per_second: f64,
    failed: u64,
    unknown: u64,
    cpu_percent: f64,
    cpu_us_per_check: f64,
    late_us_p50: Option<u64>,
    late_us_p99: Option<u64>,
    reason: Option<String>,
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    page.say(&format!(
        "CPU time of the prober's thread, and how much later than due checks began. A bare connection that \
         is made and reset costs the kernel {:.1} microseconds here. *Failed*: checks that had no good answer in \
         time (a second at most), and checks that could not be asked. What is kept of a backend is its last \
         answer, so a reason is known only where that was a failure.",
        report.floor_us
    ));
    let head = [
        "check",
        "backends",
        "interval, ms",
        "checks/s",
        "CPU, % of a core",
        "CPU, µs a check",
        "late, median, ms",
        "99 of 100, ms",
        "failed",
    ];
    let mut table = Table::new(head);
    let late = |us: Option<u64>| {
        us.map_or_else(|| "> 1000".to_owned(), |us| format!("≤ {}", us as f64 / 1_000.0))
    };
    for case in &report.cases {
        table.row([
            case.name.clone(),
            commas(case.backends),
            commas(case.interval_ms),
            commas(case.checks_per_second.round() as u64),
            format!("{:.1}", case.cpu_percent),
            format!("{:.1}", case.cpu_us_per_check),
            late(case.late_us_p50),
            late(case.late_us_p99),
            format!("{} of {}", commas(case.failed + case.unknown), commas(case.checks)),
        ]);
    }
    table.write(&mut page.text);
    for case in report.cases.iter().filter(|case| case.failed + case.unknown > 0) {
        let Case { name, failed, unknown, reason, .. } = case;
        let why = reason.as_ref().map_or_else(
            || "no reason is kept: in the end every backend's last answer was good".to_owned(),
            |reason| format!("of those whose last check failed, most did so since `{reason}`"),
        );
        let (failed, unknown) = (commas(*failed), commas(*unknown));
        page.say(&format!(
            "`{name}`: {failed} checks failed, {unknown} could not be asked; {why}."
        ));
    }
    Ok(())
}

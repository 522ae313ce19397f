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
    checks_per_second: f64,
    failed: u64,
    unknown: u64,
    cpu_percent: f64,
    cpu_us_per_check: f64,
    late_us_p50: Option<u64>,
    late_us_p99: Option<u64>,
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    page.say(&format!(
        "CPU time of the prober's thread, and how much later than due checks began. A bare connection that \
         is made and reset costs the kernel {:.1} microseconds here.",
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
            commas(case.failed + case.unknown),
        ]);
    }
    table.write(&mut page.text);
    Ok(())
}

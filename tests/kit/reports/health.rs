//! The results of `bench health`, as tables for people and as JSON for programs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Everything that was measured.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// CPU time of a bare connection that is made and reset, without a prober, in microseconds:
    /// what the kernel takes here.
    pub floor_us: f64,
    /// The cases.
    pub cases: Vec<Case>,
}

/// One kind of check.
#[derive(Serialize, Deserialize)]
pub struct Case {
    /// The kind of check.
    pub name: String,
    /// How many backends.
    pub backends: usize,
    /// The interval of each.
    pub interval_ms: u64,
    /// Probes in the time measured.
    pub checks: u64,
    /// The same, a second.
    pub checks_per_second: f64,
    /// Bad answers among them.
    pub failed: u64,
    /// Probes that couldn't be sent among them.
    pub unknown: u64,
    /// CPU time of the prober's thread, in per cent of one core.
    pub cpu_percent: f64,
    /// The same for each probe, in microseconds.
    pub cpu_us_per_check: f64,
    /// How much later than due half of the probes were sent at most, in microseconds.
    pub late_us_p50: Option<u64>,
    /// The same of 99 in 100.
    pub late_us_p99: Option<u64>,
    /// How often the thread could not run for 100 ms.
    pub pauses: u64,
    /// Why most of those failed that failed last.
    pub reason: Option<String>,
}

fn millis(us: Option<u64>) -> String {
    us.map_or_else(|| "> 1000".into(), |us| format!("<={}", us as f64 / 1_000.0))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "health checks: CPU time of the prober's thread in per cent of one core and for each check,\n\
             and how much later than due checks began"
        )?;
        writeln!(
            f,
            "{:<24}{:>9}{:>10}{:>10}{:>8}{:>9}{:>10}{:>10}{:>8}",
            "",
            "backends",
            "interval",
            "checks/s",
            "CPU, %",
            "us/check",
            "late p50",
            "late p99",
            "failed"
        )?;
        writeln!(f, "{:<24}{:>46.1}", "floor: bare connection", self.floor_us)?;
        for case in &self.cases {
            writeln!(
                f,
                "{:<24}{:>9}{:>7} ms{:>10.0}{:>8.2}{:>9.1}{:>7} ms{:>7} ms{:>8}",
                case.name,
                case.backends,
                case.interval_ms,
                case.checks_per_second,
                case.cpu_percent,
                case.cpu_us_per_check,
                millis(case.late_us_p50),
                millis(case.late_us_p99),
                case.failed + case.unknown
            )?;
            if let Some(reason) = &case.reason {
                writeln!(f, "    {reason}")?;
            }
        }
        Ok(())
    }
}

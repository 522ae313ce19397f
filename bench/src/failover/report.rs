//! The results, as a table for people and as JSON for programs.

use std::fmt;

use serde::Serialize;

use super::{
    cell::{Cell, EVERY, Ended, LIMIT},
    faults::Fault,
};

/// A generator that was later than this measured the machine as well.
const LATE_MS: f64 = 100.0;

/// Everything that was measured.
#[derive(Default, Serialize)]
pub struct Report {
    /// One system and one fault each.
    pub cells: Vec<Cell>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (every, limit) = (EVERY.as_millis(), LIMIT.as_secs());
        writeln!(
            f,
            "a connection every {every} ms, a request each; failed is what has no answer within {limit} s. Times\n\
             in seconds from the fault: the last request that failed, and when the balancer stopped\n\
             choosing the host; downloads that broke, of all, from the host and from the others"
        )?;
        for fault in Fault::ALL {
            let cells = || self.cells.iter().filter(|cell| cell.fault == fault);
            if cells().next().is_none() {
                continue;
            }
            writeln!(f, "\n{}", fault.describe())?;
            writeln!(
                f,
                "{:<20}{:<36}{:>7}{:>6}{:>10}{:>9}{:>9}{:>7}{:>8}",
                "", "", "failed", "of", "last", "noticed", "slowest", "its", "others'"
            )?;
            for cell in cells() {
                cell.line(f)?;
            }
        }
        if self.cells.iter().any(|cell| cell.failed_before > 0) {
            writeln!(f, "\n!  requests failed before the fault")?;
        }
        if self.cells.iter().any(|cell| cell.late_ms > LATE_MS) {
            writeln!(f, "\n~  this machine was too busy to make every request in time")?;
        }
        Ok(())
    }
}

impl Cell {
    fn line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds =
            |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{:.3}", ms / 1e3));
        let last = seconds(self.last_failure_ms);
        let last = if self.failing_at_end { last + ".." } else { last };
        let broken = |ended: &Ended| format!("{}/{}", ended.broken, ended.downloads);
        let early = if self.failed_before > 0 { "!" } else { "" };
        let late = if self.late_ms > LATE_MS { "~" } else { "" };
        writeln!(
            f,
            "{:<20}{:<36}{:>7}{:>6}{:>10}{:>9}{:>9}{:>7}{:>8} {early}{late}",
            self.system,
            self.settings,
            self.failed,
            self.requests,
            last,
            seconds(self.noticed_ms),
            seconds(Some(self.slowest_ms)),
            broken(&self.faulted),
            broken(&self.others),
        )
    }
}

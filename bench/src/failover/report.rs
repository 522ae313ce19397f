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
            "a request every {every} ms on a connection of its own; it failed if it has no answer within {limit} s.\n\
             Times in seconds: from the fault to the beginning of the last request that failed (`..`:\n\
             they still do; below 0: it was under way), and until the balancer no longer chooses the\n\
             host; the longest that a request took that did not fail. Downloads that broke: from the\n\
             hosts that the fault came to, from the others"
        )?;
        for fault in Fault::ALL {
            let mut cells = self.cells.iter().filter(|cell| cell.fault == fault).peekable();
            if cells.peek().is_none() {
                continue;
            }
            let (requests, downloads) = ("requests", "downloads");
            writeln!(f, "\n{}\n{:56}{requests:^32}{:9}{downloads:^18}", fault.describe(), "", "")?;
            let [failed, of, last, noticed] = ["failed", "of", "last", "noticed"];
            let [longest, own, others] = ["longest", "own", "others'"];
            write!(f, "{:56}{failed:>7}{of:>6}{last:>10}{longest:>9}", "")?;
            writeln!(f, "{noticed:>9}{own:>9}{others:>9}")?;
            cells.try_for_each(|cell| cell.line(f))?;
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
        let last = seconds(self.last_failure_ms) + if self.failing_at_end { ".." } else { "" };
        let [longest, noticed] = [Some(self.longest_ms), self.noticed_ms].map(seconds);
        let [own, others] =
            [&self.faulted, &self.others].map(|Ended { broken, downloads, .. }| match downloads {
                0 => "-".to_owned(),
                _ => format!("{broken}/{downloads}"),
            });
        let early = if self.failed_before > 0 { "!" } else { "" };
        let late = if self.late_ms > LATE_MS { "~" } else { "" };
        let Self { system, settings, failed, requests, .. } = self;
        writeln!(
            f,
            "{system:<20}{settings:<36}{failed:>7}{requests:>6}{last:>10}{longest:>9}{noticed:>9}\
             {own:>9}{others:>9} {early}{late}"
        )
    }
}

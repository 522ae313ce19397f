//! The results of `bench failover`, as tables for people and as JSON for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Time from a request to the next.
pub const EVERY: Duration = Duration::from_millis(5);
/// How long a request may take.
pub const LIMIT: Duration = Duration::from_secs(5);

/// A generator that was later than this measured the machine as well.
const LATE_MS: f64 = 100.0;

/// Everything that was measured.
#[derive(Default, Serialize, Deserialize)]
pub struct Report {
    /// One system and one fault each.
    pub cells: Vec<Cell>,
}

/// The results. Times are in milliseconds, from the fault on.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cell {
    /// The system.
    pub system: String,
    /// Its settings in a few words.
    pub settings: String,
    /// The fault.
    pub fault: Fault,
    /// Requests that were made.
    pub requests: usize,
    /// Requests that failed.
    pub failed: usize,
    /// The same by error.
    pub failures: BTreeMap<String, usize>,
    /// Failed requests that had ended before the fault; they are among `failed`.
    pub failed_before: usize,
    /// When the last request began that failed.
    pub last_failure_ms: Option<f64>,
    /// Whether requests still failed when no more were made.
    pub failing_at_end: bool,
    /// When the system no longer gave the host new connections; not measured where it comes to every host.
    pub noticed_ms: Option<f64>,
    /// The longest that a request took that succeeded.
    pub longest_ms: f64,
    /// Downloads from the hosts that the fault came to.
    pub faulted: Ended,
    /// Downloads from the other hosts.
    pub others: Ended,
    /// The latest that a request was made after its time: the load of this machine.
    pub late_ms: f64,
}

/// The results of downloads.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ended {
    /// How many there were.
    pub downloads: usize,
    /// How many broke.
    pub broken: usize,
    /// The same by error.
    pub failures: BTreeMap<String, usize>,
    /// When the last of them broke.
    pub last_ms: Option<f64>,
}

/// A fault, or an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// nginx is killed; the kernel resets its connections and refuses others.
    Killed,
    /// The host is off the net, without a last message.
    CutOff,
    /// nginx hangs: the kernel accepts connections without an answer.
    Hangs,
    /// nginx is killed and started again.
    Restarted,
    /// The operator drains the backend.
    Drained,
    /// nginx takes no connection and serves those that it has to their end.
    Quit,
    /// The same on every host in turn, which takes connections again before the next one does not.
    Rolling,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Killed,
        Self::CutOff,
        Self::Hangs,
        Self::Restarted,
        Self::Drained,
        Self::Quit,
        Self::Rolling,
    ];

    /// As `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::CutOff => "cut-off",
            Self::Hangs => "hangs",
            Self::Restarted => "restarted",
            Self::Drained => "drained",
            Self::Quit => "quit",
            Self::Rolling => "rolling",
        }
    }

    /// In a sentence.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Killed => "nginx is killed",
            Self::CutOff => "the host is cut off: its packets are lost",
            Self::Hangs => "nginx hangs: the kernel accepts connections, and no answer comes",
            Self::Restarted => "nginx is killed and back after 0.2 s",
            Self::Drained => "the operator drains the backend",
            Self::Quit => "nginx -s quit: it accepts no connection, and finishes its downloads",
            Self::Rolling => "nginx -s quit on every host in turn, each started again after 1 s",
        }
    }
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

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} failed", self.failed, self.requests)?;
        let broken = self.others.broken;
        if broken > 0 { write!(f, ", {broken} downloads from other hosts broke") } else { Ok(()) }
    }
}

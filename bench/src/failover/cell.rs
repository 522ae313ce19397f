//! One system, one fault, one lab: what became of the requests and of the downloads.

use std::{
    collections::BTreeMap,
    fmt, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use kit::{
    arrivals::{self, Arrival, Arrivals},
    downloads::{self, Download, Downloads},
    lab::{Lab, Options},
    signals,
};
use serde::Serialize;

use super::{
    faults::Fault,
    systems::{Running, System, TARGET},
};

/// The host that the fault comes to.
const VICTIM: &str = "web2";

/// Time from a request to the next.
pub const EVERY: Duration = Duration::from_millis(5);

/// How long a request may take.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Downloads from each host.
const DOWNLOADS: usize = 4;

/// How long requests are made before the fault.
const BEFORE: Duration = Duration::from_millis(1500);

/// How often the system is asked whether it has noticed.
const ASK: Duration = Duration::from_millis(20);

/// What was measured. Times are in milliseconds, from the fault on.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// The system.
    pub system: &'static str,
    /// Its settings in a few words.
    pub settings: String,
    /// The fault.
    pub fault: Fault,
    /// Requests that were made.
    pub requests: usize,
    /// Requests that failed.
    pub failed: usize,
    /// The same by what happened.
    pub failures: BTreeMap<String, usize>,
    /// Failed requests that had ended before the fault; they are among `failed`.
    pub failed_before: usize,
    /// When the last request began that failed.
    pub last_failure_ms: Option<f64>,
    /// Whether requests still failed when no more were made.
    pub failing_at_end: bool,
    /// When the system no longer gave the host new connections; not asked where it comes to every host.
    pub noticed_ms: Option<f64>,
    /// The longest that a request took that succeeded.
    pub longest_ms: f64,
    /// Downloads from the hosts that the fault came to.
    pub faulted: Ended,
    /// Downloads from the other hosts.
    pub others: Ended,
    /// The latest that a request was made after its time: what this machine was busy with.
    pub late_ms: f64,
}

/// What became of downloads.
#[derive(Debug, Serialize)]
pub struct Ended {
    /// How many there were.
    pub downloads: usize,
    /// How many broke.
    pub broken: usize,
    /// The same by what happened.
    pub failures: BTreeMap<String, usize>,
    /// When the last of them broke.
    pub last_ms: Option<f64>,
}

/// Builds the lab, lets the fault come, and removes the lab.
///
/// # Errors
///
/// If something of it can't be done, or a signal came.
pub fn measure(system: &System, fault: Fault) -> Result<Cell> {
    let mut lab = Lab::new(&Options::default())?;
    fault.prepare(&mut lab)?;
    let running = system.start(&lab)?;
    let after = fault.takes(lab.webs.len()) + system.after();
    // Longer than everything else, so that each is under way when the fault comes and after it.
    let time = BEFORE + after + Duration::from_secs(1);
    let plan = downloads::Plan { target: TARGET, each: DOWNLOADS, time, patience: LIMIT };
    let downloads = Downloads::start(&lab, plan)?;
    let plan = arrivals::Plan { target: TARGET, every: EVERY, limit: LIMIT };
    let arrivals = Arrivals::start(&lab.client.namespace, plan)?;
    pass(BEFORE, || Ok(()))?;
    let start = fault.strike(&mut lab, &running, VICTIM)?;
    let mut noticed = None;
    pass(after.saturating_sub(start.elapsed()), || {
        let asks = noticed.is_none() && !fault.is_for_all();
        if asks && !running.chooses(lab.web(VICTIM)?)? {
            noticed = Some(start.elapsed());
        }
        Ok(())
    })?;
    let end = Instant::now();
    let arrivals = arrivals.finish()?;
    let downloads = downloads.finish()?;
    alive(running)?;
    let mut cell = Cell::new(system, fault, &arrivals, start, end);
    cell.noticed_ms = noticed.map(millis);
    let is_faulted = |download: &&Download| fault.is_for_all() || download.host == VICTIM;
    let (faulted, others) = downloads.iter().partition(is_faulted);
    (cell.faulted, cell.others) = (Ended::new(faulted, start), Ended::new(others, start));
    Ok(cell)
}

/// That the system did not end meanwhile.
fn alive(running: Running) -> Result<()> {
    match running {
        Running::Lb(mut balancer) => balancer.check(),
        Running::Haproxy(haproxy) => haproxy.states().map(drop),
    }
}

/// Lets time go by, calling `look` now and then.
fn pass(time: Duration, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        ensure!(!signals::caught(), "interrupted");
        look()?;
        thread::sleep(ASK.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

impl Cell {
    fn new(
        system: &System,
        fault: Fault,
        arrivals: &[Arrival],
        start: Instant,
        end: Instant,
    ) -> Self {
        let failed = || arrivals.iter().filter(|arrival| arrival.end.is_err());
        let mut failures = BTreeMap::new();
        for failure in arrivals.iter().filter_map(|arrival| arrival.end.as_ref().err()) {
            *failures.entry(failure.word().to_owned()).or_default() += 1;
        }
        let last = failed().next_back().map(|arrival| arrival.at);
        let longest = arrivals.iter().filter(|arrival| arrival.end.is_ok());
        let longest = longest.map(|arrival| arrival.took).max();
        let late = arrivals.iter().map(|arrival| arrival.late).max();
        Self {
            system: system.name,
            settings: system.settings(),
            fault,
            requests: arrivals.len(),
            failed: failed().count(),
            failures,
            failed_before: failed().filter(|arrival| arrival.at + arrival.took < start).count(),
            last_failure_ms: last.map(|at| since(at, start)),
            // Every third request or so goes to the host: twenty in a row tell.
            failing_at_end: last.is_some_and(|at| at + EVERY * 20 > end),
            noticed_ms: None,
            longest_ms: millis(longest.unwrap_or_default()),
            faulted: Ended::new(Vec::new(), start),
            others: Ended::new(Vec::new(), start),
            late_ms: millis(late.unwrap_or_default()),
        }
    }
}

impl Ended {
    fn new(downloads: Vec<&Download>, start: Instant) -> Self {
        let broken = || downloads.iter().filter_map(|one| Some((one.at, one.end.as_ref().err()?)));
        let mut failures = BTreeMap::new();
        for (_, failure) in broken() {
            *failures.entry(failure.clone()).or_default() += 1;
        }
        Self {
            downloads: downloads.len(),
            broken: broken().count(),
            failures,
            last_ms: broken().map(|(at, _)| since(at, start)).max_by(f64::total_cmp),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} failed", self.failed, self.requests)?;
        let broken = self.others.broken;
        if broken > 0 { write!(f, ", {broken} downloads from other hosts broke") } else { Ok(()) }
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

/// From one moment to another, which may have been before it.
fn since(at: Instant, start: Instant) -> f64 {
    millis(at.saturating_duration_since(start)) - millis(start.saturating_duration_since(at))
}

#[cfg(test)]
mod tests {
    use kit::arrivals::Failure;

    use super::{super::systems, *};

    const SECOND: Duration = Duration::from_secs(1);

    /// Requests in the second before a fault and the three after it, of which those at these
    /// milliseconds of the four seconds failed.
    fn cell(failed: &[u64]) -> Cell {
        let begin = Instant::now();
        let arrivals = (0..4_000).step_by(5).map(|ms| Arrival {
            at: begin + Duration::from_millis(ms),
            late: Duration::ZERO,
            took: Duration::from_millis(1),
            end: if failed.contains(&ms) { Err(Failure::Refused) } else { Ok("web1".to_owned()) },
        });
        let arrivals: Vec<_> = arrivals.collect();
        let (start, end) = (begin + SECOND, begin + SECOND * 4);
        Cell::new(&systems::ALL[0], Fault::Killed, &arrivals, start, end)
    }

    #[test]
    fn the_last_failure_counts_from_the_fault() {
        let cell = cell(&[1_005, 1_500]);
        assert_eq!((cell.requests, cell.failed, cell.failed_before), (800, 2, 0));
        assert_eq!(cell.last_failure_ms, Some(500.0));
        assert_eq!(cell.failures["refused"], 2);
        assert!(!cell.failing_at_end);
    }

    #[test]
    fn a_fault_that_lasts_is_told_apart_from_one_that_ended() {
        assert!(cell(&[3_990]).failing_at_end);
        assert!(!cell(&[3_700]).failing_at_end);
    }

    #[test]
    fn a_request_that_failed_before_the_fault_is_no_part_of_it() {
        let cell = cell(&[500]);
        assert_eq!((cell.failed, cell.failed_before), (1, 1));
    }
}

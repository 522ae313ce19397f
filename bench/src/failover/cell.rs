//! One system, one fault, one lab: the results of the requests and of the downloads.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use kit::{
    arrivals::{self, Arrival, Arrivals},
    downloads::{self, Download, Downloads},
    lab::{Lab, Options},
    reports::failover::{Cell, EVERY, Ended, Fault, LIMIT},
    signals,
};

use super::{
    faults,
    systems::{Running, System, TARGET},
};

/// The host that the fault comes to.
const VICTIM: &str = "web2";

/// Downloads from each host.
const DOWNLOADS: usize = 4;

/// How long requests are made before the fault.
const BEFORE: Duration = Duration::from_millis(1500);

/// How often the system's state is read until it has noticed.
const ASK: Duration = Duration::from_millis(20);

/// Builds the lab, lets the fault come, and removes the lab.
///
/// # Errors
///
/// If something of it can't be done, or a signal came.
pub fn measure(system: &System, fault: Fault) -> Result<Cell> {
    let mut lab = Lab::new(&Options::default())?;
    faults::prepare(fault, &mut lab)?;
    let running = system.start(&lab)?;
    let after = faults::takes(fault, lab.webs.len()) + system.after();
    // Longer than everything else, so that each is under way when the fault comes and after it.
    let time = BEFORE + after + Duration::from_secs(1);
    let plan = downloads::Plan { target: TARGET, each: DOWNLOADS, time, patience: LIMIT };
    let downloads = Downloads::start(&lab, plan)?;
    let plan = arrivals::Plan { target: TARGET, every: EVERY, limit: LIMIT };
    let arrivals = Arrivals::start(&lab.client.namespace, plan)?;
    pass(BEFORE, || Ok(()))?;
    let start = faults::strike(fault, &mut lab, &running, VICTIM)?;
    let mut noticed = None;
    pass(after.saturating_sub(start.elapsed()), || {
        let asks = noticed.is_none() && !faults::is_for_all(fault);
        if asks && !running.chooses(lab.web(VICTIM)?)? {
            noticed = Some(start.elapsed());
        }
        Ok(())
    })?;
    let end = Instant::now();
    let arrivals = arrivals.finish()?;
    let downloads = downloads.finish()?;
    alive(running)?;
    let mut cell = of_requests(system, fault, &arrivals, start, end);
    cell.noticed_ms = noticed.map(millis);
    let is_faulted = |download: &&Download| faults::is_for_all(fault) || download.host == VICTIM;
    let (faulted, others) = downloads.iter().partition(is_faulted);
    (cell.faulted, cell.others) = (ended(faulted, start), ended(others, start));
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

/// The results of the requests; nothing of downloads yet.
fn of_requests(
    system: &System,
    fault: Fault,
    arrivals: &[Arrival],
    start: Instant,
    end: Instant,
) -> Cell {
    let failed = || arrivals.iter().filter(|arrival| arrival.end.is_err());
    let mut failures = BTreeMap::new();
    for failure in arrivals.iter().filter_map(|arrival| arrival.end.as_ref().err()) {
        *failures.entry(failure.word().to_owned()).or_default() += 1;
    }
    let last = failed().next_back().map(|arrival| arrival.at);
    let longest = arrivals.iter().filter(|arrival| arrival.end.is_ok());
    let longest = longest.map(|arrival| arrival.took).max();
    let late = arrivals.iter().map(|arrival| arrival.late).max();
    Cell {
        system: system.name.to_owned(),
        settings: system.settings(),
        fault,
        requests: arrivals.len(),
        failed: failed().count(),
        failures,
        failed_before: failed().filter(|arrival| arrival.at + arrival.took < start).count(),
        last_failure_ms: last.map(|at| since(at, start)),
        // Every third request or so goes to the host: twenty in a row show it.
        failing_at_end: last.is_some_and(|at| at + EVERY * 20 > end),
        noticed_ms: None,
        longest_ms: millis(longest.unwrap_or_default()),
        faulted: ended(Vec::new(), start),
        others: ended(Vec::new(), start),
        late_ms: millis(late.unwrap_or_default()),
    }
}

fn ended(downloads: Vec<&Download>, start: Instant) -> Ended {
    let broken = || downloads.iter().filter_map(|one| Some((one.at, one.end.as_ref().err()?)));
    let mut failures = BTreeMap::new();
    for (_, failure) in broken() {
        *failures.entry(failure.clone()).or_default() += 1;
    }
    Ended {
        downloads: downloads.len(),
        broken: broken().count(),
        failures,
        last_ms: broken().map(|(at, _)| since(at, start)).max_by(f64::total_cmp),
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
        of_requests(&systems::ALL[0], Fault::Killed, &arrivals, start, end)
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

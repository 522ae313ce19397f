//! One fault at one testbed: the results of the probes and of the downloads.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use kit::{
    downloads::{self, Download, Downloads},
    probes::{Answers, Probes},
    reports::vrrp::{Event, Fault, System, TOLERATED, Trial},
    signals,
};

use super::{
    faults,
    testbed::{TARGET, Testbed},
};

/// Downloads from each of the three web hosts, so 48.
const DOWNLOADS: usize = 16;

/// How long probes are made before the fault, and then a part of an interval more.
const BEFORE: Duration = Duration::from_millis(200);

/// A download gets a piece every 0.2 s. One that got none for so long, and an interval or two, does not
/// run.
const SILENT: Duration = Duration::from_millis(500);

/// Lets a fault come and go, the `n`-th time.
///
/// # Errors
///
/// If something of it can't be done, or a signal came.
pub fn run(testbed: &mut Testbed, fault: Fault, n: u32) -> Result<Trial> {
    let interval = testbed.interval;
    // A sender that has lost packets for all of an outage may wait as long again.
    let after = interval * 8 + SILENT * 2;
    let aftermath = faults::aftermath(fault, interval).max(SILENT * 2);
    // Starts of programs are in there.
    let whole = BEFORE + interval * 8 + after + aftermath + Duration::from_secs(3);
    let patience = Duration::from_secs(3) + interval * 8;
    let plan = downloads::Plan { target: TARGET, each: DOWNLOADS, time: whole, patience };
    let first = Downloads::start(testbed.lab(), plan)?;
    let probes = Probes::start(&testbed.lab().client.namespace, TARGET)?;
    // Faults come at any time between two advertisements: the golden ratio spreads few as evenly as
    // many.
    let phase = interval.mul_f64((f64::from(n) * 0.618_034).fract());
    pass(BEFORE + phase)?;
    let begun = Instant::now();
    faults::strike(fault, testbed)?;
    pass(after.saturating_sub(begun.elapsed()))?;
    testbed.wait_taken_over()?;
    // The trial does not wait for a node to come back with the connections that it had: what does not go on
    // while it is away is broken.
    let silent = Instant::now() - SILENT - interval * 2;
    let (ran, broken) = (DOWNLOADS * testbed.lab().webs.len(), first.silent_since(silent));
    let at_the_fault = (ran, broken);
    let plan = downloads::Plan { time: whole.saturating_sub(begun.elapsed()), ..plan };
    let second = Downloads::start(testbed.lab(), plan)?;
    pass(phase)?;
    let ended = Instant::now();
    faults::end(fault, testbed)?;
    testbed.wait_returned()?;
    pass(aftermath.saturating_sub(ended.elapsed()))?;
    let over = Instant::now();
    let answers = probes.finish()?;
    let (first, second) = (first.finish()?, second.finish()?);
    let broke = |downloads: &[Download]| downloads.iter().filter(|one| one.end.is_err()).count();
    if testbed.system == System::Lb {
        // None should, so the cause is of interest.
        for one in first.iter().chain(&second) {
            if let Err(why) = &one.end {
                let silent = one.at.saturating_duration_since(one.last);
                eprintln!("a download from {} broke, silent for {silent:?}: {why}", one.host);
            }
        }
    }
    let living = ran.saturating_sub(broken);
    let at_the_end = (living + second.len(), broke(&first).saturating_sub(broken) + broke(&second));
    testbed.check()?;
    testbed.wait_settled()?;
    Ok(Trial {
        fault: event(&answers, begun, ended, at_the_fault),
        end: event(&answers, ended, over, at_the_end),
        late_ms: millis(answers.late),
    })
}

/// Lets time go by.
fn pass(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        ensure!(!signals::caught(), "interrupted");
        let left = end.saturating_duration_since(Instant::now());
        thread::sleep(left.min(Duration::from_millis(100)));
    }
    Ok(())
}

/// The effect of a change on the probes between two moments; the downloads that ran and that broke.
fn event(answers: &Answers, from: Instant, to: Instant, downloads: (usize, usize)) -> Event {
    Event {
        outage_ms: millis(answers.outage(from, to)),
        trouble_ms: millis(answers.trouble(from, to, TOLERATED)),
        lost: answers.lost(from, to).count(),
        probes: Some(answers.between(from, to).count()),
        downloads: downloads.0,
        broken: downloads.1,
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

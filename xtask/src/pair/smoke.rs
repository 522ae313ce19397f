//! `cargo xtask run -- --pair --smoke`: the Active node dies in several ways, and the clients notice
//! nothing but a pause.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    arrivals::{self, Arrivals},
    downloads::Downloads,
};

use super::{
    ADVERTISEMENTS, Show, WAYS,
    operations::{self, Operation},
    view,
};
use crate::signals;

/// How long a request may take: a SYN that was lost is sent again after a second.
const LIMIT: Duration = Duration::from_secs(5);

/// The faults of the Active node, and the first node's return.
const SEQUENCE: [Operation; 4] =
    [Operation::Kill, Operation::PowerOff, Operation::Stop, Operation::HandOver];

/// Lets it all happen.
///
/// # Errors
///
/// If a download broke, a request failed, or no node took over.
pub fn run(mut show: Show) -> Result<()> {
    let every = Duration::from_millis(20);
    let requests = WAYS.map(|way| {
        let plan = arrivals::Plan { target: way.target(), every, limit: LIMIT };
        Arrivals::start(&show.ha_pair.lab.client.namespace, plan)
    });
    let requests: Vec<Arrivals> = requests.into_iter().collect::<Result<_>>()?;
    print!("{}", view::header(false));
    println!("{}", show.look());
    let mut outages = Vec::new();
    for operation in SEQUENCE {
        let active = operations::active(&show.ha_pair).context("no node is Active")?;
        let _ = show.probes.tally();
        let start = Instant::now();
        println!("  -> {}", operations::done(&mut show.ha_pair, operation)?);
        show.ha_pair.wait_holds(1 - active)?;
        let other = show.ha_pair.host(1 - active).name.clone();
        println!("  -> {other} is Active after {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        pass(ADVERTISEMENTS * 10)?;
        let line = show.look();
        println!("{line}");
        outages.push((operation, line.probes.gap));
        println!("  -> {}", operations::done(&mut show.ha_pair, Operation::Restore)?);
        if operation == Operation::HandOver {
            println!("  -> {}", operations::done(&mut show.ha_pair, Operation::HandOver)?);
        }
        show.ha_pair.wait_active(0)?;
        show.ha_pair.wait_synced()?;
        pass(ADVERTISEMENTS * 10)?;
        println!("{}", show.look());
    }
    let mut ended = Vec::new();
    for downloads in show.downloads.drain(..) {
        ended.extend(Downloads::end(downloads)?);
    }
    show.tally.add(&ended);
    let (mut made, mut failed) = (0, Vec::new());
    for arrivals in requests {
        let arrivals = arrivals.finish()?;
        made += arrivals.len();
        failed.extend(arrivals.into_iter().filter_map(|one| one.end.err()));
    }
    let view::Tally { whole, broken } = show.tally;
    for (operation, gap) in outages {
        let gap = gap.as_secs_f64() * 1e3;
        println!("{operation:?}: at most {gap:.1} ms without an answer");
    }
    println!(
        "{whole} of {} downloads whole; {made} requests, {} failed",
        whole + broken,
        failed.len()
    );
    ensure!(broken == 0, "{broken} downloads broke");
    ensure!(failed.is_empty(), "requests failed: {:?}", failed.first());
    Ok(())
}

/// Lets time go by.
fn pass(time: Duration) -> Result<()> {
    thread::sleep(time);
    ensure!(!signals::caught(), "interrupted");
    Ok(())
}

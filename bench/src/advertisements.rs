//! The cost of advertisements at each interval: packets, and CPU time of the threads that send and receive
//! them, on a pair at which nothing happens.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    balancer::Balancer,
    ha_pair::{HaPair, Plan},
    lab::{self, Options},
    reports::advertisements::{Cell, Node, Report},
    signals,
    ways::Way,
};

use crate::{output::Output, vrrp::interval};

/// The thread of the virtual routers.
const THREAD: &str = "lb-vrrp";

/// The measurement, and its length.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// Times between two advertisements
    #[arg(long, value_delimiter = ',', value_parser = interval, default_value = "1s,100ms,10ms")]
    interval: Vec<Duration>,
    /// How long each is measured, in seconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

/// The counters of a node at a moment.
struct Mark {
    at: Instant,
    sent: u64,
    received: u64,
    thread: Duration,
    process: Duration,
}

/// Measures and prints.
///
/// # Errors
///
/// If the lab does not come up, a node of it changes its state, or a signal came.
pub fn run(arguments: &Arguments) -> Result<()> {
    signals::catch();
    lab::sweep()?;
    let mut report = Report { seconds: arguments.seconds, cells: Vec::new() };
    for &interval in &arguments.interval {
        let cell = measure(interval, Duration::from_secs(arguments.seconds));
        report.cells.push(cell.with_context(|| format!("at an interval of {interval:?}"))?);
    }
    arguments.output.print(&report)
}

fn measure(interval: Duration, time: Duration) -> Result<Cell> {
    let ha_pair = HaPair::start(&Options::default(), Plan::new(&[Way::DsrV4], interval))?;
    let marks = || anyhow::Ok([Mark::of(&ha_pair.nodes[0])?, Mark::of(&ha_pair.nodes[1])?]);
    let before = marks()?;
    let end = Instant::now() + time;
    while Instant::now() < end {
        ensure!(!signals::caught(), "interrupted");
        thread::sleep(
            end.saturating_duration_since(Instant::now()).min(Duration::from_millis(200)),
        );
    }
    let [active, backup] = marks()?;
    // A node that was not run in time is no pair at which nothing happens.
    ha_pair.wait_active(0)?;
    let [active_before, backup_before] = before;
    Ok(Cell {
        interval_ms: interval.as_millis() as u64,
        active: active.since(&active_before),
        backup: backup.since(&backup_before),
    })
}

impl Mark {
    fn of(node: &Balancer) -> Result<Self> {
        let pid = node.pid()?;
        let pair = node.poll_pair()?;
        let counters = pair.routers.first().context("no virtual router")?.counters;
        let (thread, process) = cpu_times(pid)?;
        let (sent, received) = (counters.sent, counters.received);
        Ok(Self { at: Instant::now(), sent, received, thread, process })
    }

    fn since(&self, before: &Self) -> Node {
        let seconds = (self.at - before.at).as_secs_f64();
        let share = |cpu: Duration| 100.0 * cpu.as_secs_f64() / seconds;
        Node {
            sent_per_second: (self.sent - before.sent) as f64 / seconds,
            received_per_second: (self.received - before.received) as f64 / seconds,
            cpu_percent: share(self.thread.saturating_sub(before.thread)),
            process_cpu_percent: share(self.process.saturating_sub(before.process)),
        }
    }
}

/// How long the thread of the virtual routers has run, and all threads of the process.
fn cpu_times(pid: u32) -> Result<(Duration, Duration)> {
    let (mut routers, mut all) = (None, Duration::ZERO);
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the threads of lbd")? {
        let task = task?.path();
        let read = |file| fs::read_to_string(task.join(file));
        // A thread may have ended meanwhile.
        let (Ok(name), Ok(times)) = (read("comm"), read("schedstat")) else { continue };
        let nanos = times.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
        let time = Duration::from_nanos(nanos.with_context(|| format!("schedstat: {times}"))?);
        all += time;
        if name.trim_end() == THREAD {
            routers = Some(time);
        }
    }
    Ok((routers.with_context(|| format!("no thread is named {THREAD}"))?, all))
}

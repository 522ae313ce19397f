//! The cost of more services, backends, flows and pins; and the limits.
//!
//! Packets and changes are measured in maps that the daemon's engine fills, one set of them for each size,
//! with the program run over them ([`packets`]). Starts, and errors at the limits, are those of
//! `lbd` in a lab ([`daemon`], [`limits`]). Health checks are measured by `bench health`.

mod cases;
mod daemon;
mod limits;
mod packets;
mod testbed;

use std::time::Duration;

use anyhow::{Context as _, Result};
use kit::reports::scale::{Base, Report};

use crate::{harness::SLOTS, health, output::Output};

/// The checks whose cost is reported.
const CHECKS: [&str; 2] = ["tcp", "http"];

/// How often, and how long.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How often each case of packets and each change is measured; medians and minima are printed
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets in each measurement
    #[arg(long, default_value_t = 524_288, value_parser = clap::value_parser!(u32).range(1_000..))]
    packets: u32,
    /// How often lbd is started at each size
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    starts: u32,
    /// How long health checks are measured, in seconds for each kind
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

/// Measures and prints.
///
/// # Errors
///
/// If something can't be made or measured.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut bench = daemon::Bench::new()?;
    let daemon = bench.measure(arguments.starts).context("starts of lbd")?;
    let limits = limits::exceed(&mut bench).context("limits")?;
    drop(bench);
    let measured = packets::measure(arguments.rounds, arguments.packets).context("packets")?;
    // The last: from here on, this thread is on one CPU.
    let seconds = Duration::from_secs(arguments.seconds);
    let (health, checked) =
        health::survey(health::BACKENDS, seconds, |name| CHECKS.contains(&name))?;
    let packets::Measured { floors, packets, pins_full, memory, changes } = measured;
    let base = Base {
        services: cases::BASE.services,
        backends: cases::BASE.each,
        flows: cases::FLOWS,
        pins: 0,
        ring_slots: SLOTS,
        mode: "ipip".into(),
    };
    let report =
        Report { base, floors, packets, pins_full, memory, changes, daemon, limits, health };
    arguments.output.print(&report)?;
    checked.context("health checks")
}

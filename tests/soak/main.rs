//! `lb-soak`: a pair of balancers under checked traffic, while everything that operators do and that may
//! befall hosts, wires and `lbd` happens to them, at random. `cargo xtask soak` builds and runs it.
//!
//! - [`plan`] has the operations and their times, by the seed alone.
//! - [`testbed`] does it, to a real pair in network namespaces.
//! - [`clients`] are the traffic, [`unsolicited`] the packets that none of them has asked for; [`node_logs`] has the
//!   nodes' logs; [`samples`] their memory, descriptors and maps.
//! - [`model`] decides of each connection that breaks whether it may.
//! - [`mod@run`] brings them together, [`kit::reports::soak`] is the report.
//!
//! A seed gives the same operations with the same parameters in the same order, at the same times but for
//! what the machine was late by. What it does not give again is the order in which the kernel lets
//! processes run, the packets between them, and the ports of clients: a violation that hangs by
//! milliseconds may take several runs of its seed.

mod clients;
mod clock;
mod model;
mod node_logs;
mod plan;
mod random;
mod run;
mod samples;
mod testbed;
mod unsolicited;

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

/// Random operations on a pair of balancers under checked traffic
#[derive(Parser)]
struct Arguments {
    /// How long operations are carried out, in minutes
    #[arg(long, default_value_t = 3.0)]
    minutes: f64,
    /// The seed of the operations; the time of day unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Write the JSON to this file as well
    #[arg(long)]
    json_file: Option<PathBuf>,
    /// Where logs are kept, in a folder of the seed
    #[arg(long, default_value = "target/soak")]
    folder: PathBuf,
    /// Print the operations and end
    #[arg(long)]
    plan: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("soak: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was as it should be.
fn run(arguments: &Arguments) -> Result<bool> {
    ensure!(arguments.minutes > 0.0, "nothing is done in {} minutes", arguments.minutes);
    let length = Duration::try_from_secs_f64(arguments.minutes * 60.0).context("--minutes")?;
    let of_day = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = arguments.seed.unwrap_or(of_day.as_millis() as u64);
    if arguments.plan {
        let mut out = io::stdout().lock();
        for step in plan::Plan::new(seed).take_while(|step| step.at <= length) {
            writeln!(out, "{:>10.3} s {}", step.at.as_secs_f64(), step.op)?;
        }
        return Ok(true);
    }
    ensure!(kit::is_root(), "network namespaces and BPF take root");
    kit::signals::catch();
    for name in kit::lab::sweep()? {
        eprintln!("soak: removed {name}, which a run has left that was killed");
    }
    let folder = arguments.folder.join(format!("seed-{seed}"));
    let report = run::run(run::Arguments { seed, length, folder: folder.clone() })?;
    let json = serde_json::to_string(&report).context("the report")?;
    if let Some(file) = &arguments.json_file {
        fs::write(file, &json).with_context(|| format!("write {}", file.display()))?;
    }
    if arguments.json {
        println!("{json}");
    } else {
        print!("{report}");
    }
    let well = report.violations.is_empty();
    if !well {
        eprintln!(
            "soak: {} violations; logs and what was done are in {}",
            report.violations.len(),
            folder.display()
        );
    }
    Ok(well)
}

//! `cargo xtask bench`: builds the benchmark optimised, and runs it as root.

use std::process::Command;

use anyhow::Result;
use clap::Subcommand;

use crate::{
    cargo::{self, call},
    root, setup,
};

#[derive(Subcommand)]
pub enum Bench {
    /// Cost of a packet in the program beside two floors, of a ring's change, and of the maps in
    /// memory
    Datapath {
        /// Print JSON instead of tables
        #[arg(long)]
        json: bool,
        /// How often each case is measured [default: 11]
        #[arg(long)]
        rounds: Option<u32>,
        /// Packets in each measurement [default: 200000]
        #[arg(long)]
        packets: Option<u32>,
    },
}

/// Builds and runs a benchmark.
///
/// # Errors
///
/// If it does not build, or fails.
pub fn run(bench: &Bench) -> Result<()> {
    let Bench::Datapath { json, rounds, packets } = bench;
    setup::tools()?;
    eprintln!("bench: building it optimised; the first time takes minutes");
    call(&["build", "--quiet", "--release", "--package", "lb-bench"])?;
    let mut command = Command::new(cargo::folder(true)?.join("lb-bench"));
    command.arg("datapath");
    if *json {
        command.arg("--json");
    }
    for (flag, value) in [("--rounds", rounds), ("--packets", packets)] {
        if let Some(value) = value {
            command.args([flag, &value.to_string()]);
        }
    }
    eprintln!("bench: measuring; half a minute");
    cargo::run(&mut root::as_root(command, "loading programs into the kernel")?)
}

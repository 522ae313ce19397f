//! `cargo xtask bench`: builds the benchmark optimised, and runs it as root.

use std::process::Command;

use anyhow::Result;
use clap::Subcommand;
use kit::signals;

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
    /// Instructions that a packet takes, here and with IPVS, in a virtual machine whose clock counts
    /// them: the same however busy this machine is
    Instructions(crate::instructions::Arguments),
    /// What a fault of one backend costs the clients, here and with HAProxy
    Failover {
        /// Print JSON instead of tables
        #[arg(long)]
        json: bool,
        /// Only these systems and faults; the beginning of a name will do: `lb,haproxy-guides,killed`
        #[arg(long)]
        only: Option<String>,
    },
    /// What a failover of a pair costs the clients, here and with keepalived and HAProxy
    Vrrp {
        /// Print JSON instead of tables
        #[arg(long)]
        json: bool,
        /// How often each fault comes [default: 20]
        #[arg(long)]
        trials: Option<u32>,
        /// Times between two advertisements [default: 1s,100ms,10ms]
        #[arg(long)]
        interval: Option<String>,
        /// Only these systems and faults; the beginning of a name will do: `lb,keepalived,killed`
        #[arg(long)]
        only: Option<String>,
    },
    /// CPU time of health checks, and how late they begin, with thousands of backends
    Health {
        /// Print JSON instead of tables
        #[arg(long)]
        json: bool,
        /// How many backends are asked once a second [default: 4096]
        #[arg(long)]
        backends: Option<u32>,
        /// How long each case is measured, in seconds [default: 10]
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// How long a scrape of /metrics takes, with a hundred services of ten backends each
    Metrics {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
        /// How many services [default: 100]
        #[arg(long)]
        services: Option<u16>,
        /// How many scrapes [default: 40]
        #[arg(long)]
        scrapes: Option<u32>,
    },
}

/// Builds and runs a benchmark.
///
/// # Errors
///
/// If it does not build, or fails.
pub fn run(bench: &Bench) -> Result<()> {
    setup::tools()?;
    match bench {
        Bench::Datapath { json, rounds, packets } => {
            let rounds = rounds.map(|rounds| rounds.to_string());
            let packets = packets.map(|packets| packets.to_string());
            let options = [("--rounds", rounds), ("--packets", packets)];
            measure("datapath", *json, options, "half a minute")
        }
        Bench::Instructions(arguments) => crate::instructions::run(arguments),
        Bench::Failover { json, only } => {
            setup::packages()?;
            eprintln!("bench: building lbd and lbctl optimised; the first time takes minutes");
            build("lb-userspace")?;
            measure(
                "failover",
                *json,
                [("--only", only.clone())],
                "ten minutes, or 10 to 25 s a line of what `--only` leaves",
            )
        }
        Bench::Vrrp { json, trials, interval, only } => {
            setup::packages()?;
            eprintln!("bench: building lbd and lbctl optimised; the first time takes minutes");
            build("lb-userspace")?;
            let trials = trials.map(|trials| trials.to_string());
            measure(
                "vrrp",
                *json,
                [("--trials", trials), ("--interval", interval.clone()), ("--only", only.clone())],
                "an hour and a half, or 20 to 60 s a trial of all faults and both systems",
            )
        }
        Bench::Health { json, backends, seconds } => {
            let backends = backends.map(|backends| backends.to_string());
            let seconds = seconds.map(|seconds| seconds.to_string());
            let options = [("--backends", backends), ("--seconds", seconds)];
            measure("health", *json, options, "a minute")
        }
        Bench::Metrics { json, services, scrapes } => {
            setup::packages()?;
            eprintln!("bench: building lbd and lbctl optimised; the first time takes minutes");
            call(&["build", "--quiet", "--release", "--package", "lb-userspace", "--bins"])?;
            let services = services.map(|services| services.to_string());
            let scrapes = scrapes.map(|scrapes| scrapes.to_string());
            let options = [("--services", services), ("--scrapes", scrapes)];
            measure("metrics", *json, options, "half a minute")
        }
    }
}

fn build(package: &str) -> Result<()> {
    let build = ["build", "--release", "--bins", "--package", package];
    call(&[&build, cargo::quiet()].concat())
}

/// Builds the benchmarks and runs one as root.
fn measure(
    name: &str,
    json: bool,
    options: impl IntoIterator<Item = (&'static str, Option<String>)>,
    time: &str,
) -> Result<()> {
    eprintln!("bench: building it optimised; the first time takes minutes");
    build("lb-bench")?;
    let mut command = Command::new(cargo::folder(true)?.join("lb-bench"));
    command.arg(name);
    if json {
        command.arg("--json");
    }
    for (option, value) in options {
        command.args(value.into_iter().flat_map(|value| [option.to_owned(), value]));
    }
    eprintln!("bench: measuring; {time}");
    // It puts away what it made before it ends.
    signals::catch();
    cargo::run(&mut root::as_root(command, "measuring in the kernel")?)
}

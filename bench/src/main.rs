//! Measures what the balancer costs. `cargo xtask bench` runs it.

mod advertisements;
mod attack;
mod datapath;
mod failover;
mod frames;
mod harness;
mod health;
mod http;
mod instructions;
mod metrics;
mod output;
mod rings;
mod runner;
mod scale;
mod vrrp;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

use kit::reports::datapath::Report;

use output::Output;

/// Measures what the balancer costs
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Cost of a packet in the program, of a ring's change, and of the maps in memory
    Datapath(Datapath),
    /// Instructions of a packet, here and with IPVS, on a machine whose clock counts them
    Instructions(instructions::Arguments),
    /// What a fault of one backend costs the clients, here and with HAProxy
    Failover(failover::Arguments),
    /// What a failover of a pair costs the clients, here and with keepalived and HAProxy
    Vrrp(vrrp::Arguments),
    /// What advertisements cost at each interval
    Advertisements(advertisements::Arguments),
    /// What a request costs through each kind of balancer
    Http(http::Arguments),
    /// What floods cost legitimate traffic
    Attack(attack::Arguments),
    /// What checking thousands of backends costs
    Health(health::Arguments),
    /// What more services, backends, flows and pins cost, and where it ends
    Scale(scale::Arguments),
    /// What a scrape of many backends takes
    Metrics(metrics::Arguments),
    /// The server of `health`
    #[command(hide = true)]
    HealthServer {
        /// Its port
        port: u16,
    },
}

/// How the datapath is measured.
#[derive(clap::Args)]
struct Datapath {
    #[command(flatten)]
    output: Output,
    /// How often each case is measured; medians and minima are printed
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets in each measurement
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1_000..))]
    packets: u32,
}

fn main() -> ExitCode {
    match run(Arguments::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("bench: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: What) -> Result<()> {
    ensure!(kit::is_root(), "the benchmark loads programs into the kernel: run it as root");
    match what {
        What::Datapath(arguments) => datapath(&arguments),
        What::Instructions(arguments) => instructions::run(&arguments),
        What::Failover(arguments) => failover::run(&arguments),
        What::Vrrp(arguments) => vrrp::run(&arguments),
        What::Advertisements(arguments) => advertisements::run(&arguments),
        What::Http(arguments) => http::run(&arguments),
        What::Attack(arguments) => attack::run(&arguments),
        What::Health(arguments) => health::run(&arguments),
        What::Scale(arguments) => scale::run(&arguments),
        What::Metrics(arguments) => metrics::run(&arguments),
        What::HealthServer { port } => health::serve(port),
    }
}

fn datapath(arguments: &Datapath) -> Result<()> {
    kit::datapath::kernel::stay_on_one_cpu()?;
    let report = Report {
        packets: datapath::measure(arguments.rounds, arguments.packets)?,
        rings: rings::measure(arguments.rounds)?,
        memory: rings::memory()?,
    };
    arguments.output.print(&report)
}

//! The node as it is from second to second, on the whole terminal or in batches of lines.
//!
//! [`app`] is the state, a pure function of its events; [`view`] and [`head`] draw it, [`rows`] and
//! [`rates`] are its rows. [`screen`] is the input and output: the terminal, signals and the daemon's
//! answers.

mod app;
mod batch;
mod head;
mod looks;
mod rates;
mod rows;
mod screen;
mod view;

use std::{
    env, fs,
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::Args;

use super::{Misuse, options::Output};
use lb_api::client::Client;
use lb_model::units::parse_duration;

/// How it is watched.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// How often to update, as 500ms, 1s or 10s.
    #[arg(short, long, default_value = "1s", value_parser = parse_duration)]
    interval: Duration,
    /// Print plain lines, as where the output is no terminal; see -n.
    #[arg(short, long)]
    batch: bool,
    /// In batches: print so many times, and end.
    #[arg(short = 'n', long, value_name = "TIMES", requires = "batch")]
    iterations: Option<u64>,
    /// The same as -b -n 1.
    #[arg(long, conflicts_with = "iterations")]
    once: bool,
}

/// Polling more often shows nothing new, and costs.
const SHORTEST: Duration = Duration::from_millis(100);

pub(super) async fn run(args: &TopArgs, client: &Client, output: Output) -> Result<ExitCode> {
    if args.interval < SHORTEST {
        return Err(Misuse("--interval is at least 100ms".into()).into());
    }
    let is_terminal =
        io::stdout().is_terminal() && env::var_os("TERM").is_some_and(|t| t != "dumb");
    if args.batch || args.once || output == Output::Json || !is_terminal {
        let times = if args.once { Some(1) } else { args.iterations };
        batch::run(args.interval, times, client, output).await?;
        return Ok(ExitCode::SUCCESS);
    }
    screen::run(args.interval, client).await
}

/// The name of this host.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests;

//! `lbctl`: operates the load balancer.

use std::process::ExitCode;

use clap::Parser as _;
use lb_userspace::cli::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    Cli::parse().run().await
}

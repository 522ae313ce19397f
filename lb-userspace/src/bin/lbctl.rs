//! `lbctl`: operates the load balancer.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use clap_complete::CompleteEnv;
use lb_cli::cli::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Shells ask in its environment what could come next; it then ends here.
    CompleteEnv::with_factory(Cli::command).complete();
    Cli::parse().run().await
}

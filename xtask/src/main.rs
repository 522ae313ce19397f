//! The project's own commands, as `cargo xtask <command>`.
//!
//! Each does its own set-up ([`setup`]), so that a fresh clone needs nothing before `cargo xtask
//! run` and `cargo xtask test`. This program builds before the BPF linker is there, and so depends
//! on no crate that embeds a BPF object.

mod bench;
mod cargo;
mod check;
mod ci;
mod documents;
mod fuzz;
mod imports;
mod instructions;
mod kernels;
mod lab;
mod package;
mod pair;
mod pictures;
mod root;
mod run;
mod setup;
mod side_by_side;
mod smoke;
mod soak;
mod test;
mod view;
mod vm;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use kit::signals;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The project's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the balancer at work in a lab of network namespaces, or run lbd on this machine
    Run(run::Arguments),
    /// Run the tests
    Test(test::Arguments),
    /// Build lbd and lbctl, with the BPF objects in them
    Build {
        /// Optimised, as for use
        #[arg(long)]
        release: bool,
    },
    /// Check the formatting, and clippy on the host and on the BPF target
    Check,
    /// Look for inputs that break their readers: frames, messages, requests, files
    Fuzz(fuzz::Arguments),
    /// Build the Debian package
    Package(package::Arguments),
    /// Measure what the balancer costs
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Random operations on a pair of balancers under checked traffic, and a model of what may break
    Soak(soak::Arguments),
    /// Write docs/BENCHMARKS.md and docs/RELIABILITY.md anew, of what is in docs/results, and the guide as a book
    Documents,
    /// The lab without a view: client, balancer or a pair of them, web hosts
    #[command(subcommand)]
    Lab(lab::Command),
    /// Run a command on another kernel, in a virtual machine over a scratch copy of this one's root
    Vm(vm::Arguments),
    /// Make the documents' pictures of the dashboard and of `lbctl top`, in docs/pictures
    Pictures(pictures::Arguments),
    /// What CI runs and the tests on other kernels, one after the other: an hour and a half
    Ci,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(without_separator(std::env::args().collect()));
    match carry_out(arguments.command, kit::in_ci()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if signals::caught() => ExitCode::from(130),
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// Carries one out. In CI, a test that can't run has failed.
fn carry_out(command: Command, in_ci: bool) -> Result<()> {
    match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Test(arguments) => test::run(&arguments, in_ci),
        Command::Build { release } => setup::tools().and_then(|()| {
            let folder = cargo::build(release)?;
            println!("built {0}/lbd and {0}/lbctl", folder.display());
            Ok(())
        }),
        Command::Check => setup::tools().and_then(|()| check::run()),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Package(arguments) => package::run(&arguments),
        Command::Bench(bench) => bench::run(&bench),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Documents => documents::run(),
        Command::Lab(command) => lab::run(command),
        Command::Vm(arguments) => vm::run(&arguments),
        Command::Pictures(arguments) => pictures::run(&arguments),
        Command::Ci => ci::run(),
    }
}

/// `cargo xtask run -- --smoke` is `cargo xtask run --smoke`: users of `cargo run` type the
/// separator.
fn without_separator(mut arguments: Vec<String>) -> Vec<String> {
    if arguments.get(1).is_some_and(|command| command == "run")
        && arguments.get(2).is_some_and(|separator| separator == "--")
    {
        arguments.remove(2);
    }
    arguments
}

/// The workspace's folder.
fn workspace() -> PathBuf {
    let mut folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.pop();
    folder
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_separator_of_run_is_optional() {
        for line in ["xtask run -- --smoke", "xtask run --smoke"] {
            let words = line.split(' ').map(str::to_owned).collect();
            let Command::Run(run) = Arguments::parse_from(without_separator(words)).command else {
                panic!("{line} is not run");
            };
            assert!(run.smoke, "{line}");
        }
        let words = "xtask run -- --pair --smoke".split(' ').map(str::to_owned).collect();
        let Command::Run(run) = Arguments::parse_from(without_separator(words)).command else {
            panic!("it is not run");
        };
        assert!(run.pair && run.smoke);
    }

    #[test]
    fn what_runs_in_the_lab_keeps_its_options() {
        let line = "xtask lab exec client -- curl -s http://10.0.0.100/";
        let words = line.split(' ').map(str::to_owned).collect();
        let Command::Lab(lab::Command::Exec { host, command }) =
            Arguments::parse_from(without_separator(words)).command
        else {
            panic!("{line} is not lab exec");
        };
        assert_eq!(host, "client");
        assert_eq!(command, ["curl", "-s", "http://10.0.0.100/"]);
    }
}

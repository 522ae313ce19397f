//! `cargo xtask ci`: all that can fail, one after the other: what `.ci/run` has, and the tests on other kernels.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Parser as _;
use kit::signals;

use crate::Arguments;

/// The commands, each of which any one can be run by itself, and does its own set-up. Steps that fail most often
/// and find most come first.
const STEPS: [&str; 7] = [
    "check",
    "test",
    "soak --minutes 2 --seed 1",
    "bench instructions --check",
    "fuzz packets api --seconds 60",
    "fuzz vrrp sync config state --seconds 20",
    "test kernels",
];

/// Runs all of them, whatever became of the one before.
///
/// # Errors
///
/// If one fails; which, and how long each took, is printed at the end.
pub fn run() -> Result<()> {
    let mut times = Vec::new();
    let mut failed = Vec::new();
    for step in STEPS {
        println!("\n=== cargo xtask {step}");
        let start = Instant::now();
        if let Err(error) = crate::carry_out(arguments(step)?.command, true) {
            eprintln!("xtask: {error:#}");
            failed.push(step);
        }
        times.push((step, start.elapsed()));
        if signals::caught() {
            break;
        }
    }
    print!("\n{}", table(&times, &failed));
    ensure!(!signals::caught(), "interrupted");
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn arguments(step: &str) -> Result<Arguments> {
    Ok(Arguments::try_parse_from(std::iter::once("xtask").chain(step.split(' ')))?)
}

fn table(times: &[(&str, Duration)], failed: &[&str]) -> String {
    let line = |&(step, time): &(&str, Duration)| {
        let result = if failed.contains(&step) { "FAILED" } else { "ok" };
        format!("{result:<6} {:>7.1} s  cargo xtask {step}\n", time.as_secs_f64())
    };
    times.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_a_command_as_it_is_typed() -> Result<()> {
        for step in STEPS {
            arguments(step)?;
        }
        Ok(())
    }

    #[test]
    fn what_ci_runs_is_all_but_the_tests_on_other_kernels() {
        let script = include_str!("../../.ci/run").lines();
        let steps = script.filter_map(|line| line.split_once("cargo xtask "));
        let steps: Vec<_> =
            steps.map(|(_, step)| step.split(" >").next().unwrap_or(step)).collect();
        let here: Vec<_> = STEPS.into_iter().filter(|step| *step != "test kernels").collect();
        assert_eq!(steps, here);
    }

    #[test]
    fn what_failed_is_marked_in_the_table() {
        let times = [("check", Duration::from_secs(2)), ("test", Duration::from_millis(90_250))];
        let lines = "ok         2.0 s  cargo xtask check\nFAILED    90.2 s  cargo xtask test\n";
        assert_eq!(table(&times, &["test"]), lines);
    }
}

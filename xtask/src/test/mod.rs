//! `cargo xtask test`: every test, or one suite.
//!
//! Cargo builds the tests; those that need root are then run as root, so that nothing in the target
//! folder comes to belong to root. Programs run side by side, and tests with hosts of their own ([`lanes`]).

mod lanes;
mod program;

use std::{
    num::NonZeroUsize,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use kit::{lab, mounts, signals};

pub use self::program::{Program, build_some};
use crate::{cargo, kernels, setup, side_by_side::side_by_side};

#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Which tests
    #[arg(value_enum, default_value_t)]
    suite: Suite,
    /// Only tests whose names contain one of these; of the suite `kernels`, the kernels: 6.12, newest,
    /// or the folder of an unpacked kernel package
    filters: Vec<String>,
    /// How many network tests at a time; without it, two for each CPU and one more, 5 at most
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    /// Of the suite `kernels`: keep what became of it in docs/results, and write docs/RELIABILITY.md anew
    #[arg(long)]
    save: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Beside the code: unit, property, table
    Unit,
    /// The loaded BPF object
    Datapath,
    /// Configuration in, maps out
    Control,
    /// Real hosts in network namespaces
    Network,
    /// The loaded BPF object and a short network test on other kernels, in virtual machines
    Kernels,
    /// All of them but those on other kernels
    #[default]
    All,
}

/// In CI, with so many failures none is repeated: the run has failed.
const MANY: usize = 3;

/// Builds and runs the suite. In CI, a test that can't run has failed.
///
/// # Errors
///
/// If a test fails; in CI, whose machines others use as well, if it also fails when it is repeated by itself, or
/// if three or more fail.
pub fn run(arguments: &Arguments, in_ci: bool) -> Result<()> {
    setup::tools()?;
    if arguments.suite == Suite::Kernels {
        return kernels::run(&arguments.filters, arguments.save);
    }
    ensure!(!arguments.save, "--save is for `cargo xtask test kernels`");
    let programs = program::build(arguments.suite)?;
    ensure!(!programs.is_empty(), "no test program in this suite");
    let (network, plain): (Vec<_>, Vec<_>) =
        programs.iter().partition(|program| program.suite() == Suite::Network);
    if !network.is_empty() || in_ci {
        setup::all_tests()?;
    }
    if programs.iter().any(Program::needs_binaries) {
        cargo::build_for_tests(&[])?;
    }
    let mut tally = Tally::default();
    tally.whole(&plain, &arguments.filters, in_ci)?;
    if matches!(arguments.suite, Suite::Unit | Suite::All) && arguments.filters.is_empty() {
        tally.examples();
    }
    if !network.is_empty() {
        if kit::is_root() {
            // Several at once would each find nothing there.
            mounts::prepare()?;
            for name in lab::sweep()? {
                println!("removed {name}, which a run has left that was killed");
            }
        }
        let jobs = arguments.jobs.unwrap_or_else(jobs).get();
        tally.side_by_side(&network, &arguments.filters, jobs, in_ci)?;
    }
    if in_ci {
        tally.repeat()?;
    }
    tally.verdict()?;
    let parts = &arguments.filters;
    ensure!(
        parts.is_empty() || tally.passed + tally.skipped > 0,
        "no test of this suite has {} in its name",
        parts.join(" or ")
    );
    Ok(())
}

/// Most tests wait most of the time: for a browser, a scrape, or nodes that notice each other's silence.
fn jobs() -> NonZeroUsize {
    NonZeroUsize::new((cpus() * 2 + 1).clamp(2, 5)).unwrap_or(NonZeroUsize::MIN)
}

fn cpus() -> usize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN).get()
}

/// A test that failed.
struct Failure<'a> {
    program: &'a Program,
    test: String,
}

/// The results of the tests.
#[derive(Default)]
struct Tally<'a> {
    passed: usize,
    skipped: usize,
    failed: Vec<Failure<'a>>,
    /// Programs that failed without naming a test: they crashed.
    crashed: Vec<String>,
    /// Tests that failed, and passed when they were repeated.
    unstable: Vec<String>,
    times: Vec<(String, Duration)>,
}

impl<'a> Tally<'a> {
    /// Runs programs whole, one for each CPU at a time.
    fn whole(&mut self, programs: &[&'a Program], filters: &[String], in_ci: bool) -> Result<()> {
        let jobs = cpus().min(programs.len());
        let results = side_by_side(programs, jobs, |program| -> Result<_> {
            let start = Instant::now();
            let mut arguments: Vec<_> = filters.iter().map(String::as_str).collect();
            arguments.extend(program.waits_mostly().then_some("--test-threads=8"));
            let (status, outcome) = program.run(&arguments, in_ci)?;
            Ok((status, outcome, start.elapsed()))
        });
        ensure!(!signals::caught(), "interrupted");
        for (&program, result) in programs.iter().zip(results) {
            let (status, outcome, time) = result?;
            self.passed += outcome.passed;
            if !status.success() && outcome.failed.is_empty() {
                eprintln!("xtask: {}: {status}", program.title());
                self.crashed.push(program.title());
            }
            self.failed.extend(outcome.failed.into_iter().map(|test| Failure { program, test }));
            self.times.push((program.title(), time));
        }
        Ok(())
    }

    /// Compiles and runs the examples in the documentation.
    fn examples(&mut self) {
        let (start, title) = (Instant::now(), "examples in the documentation");
        println!("\n== {title}");
        if let Err(err) = cargo::call(&["test", "--quiet", "--doc"]) {
            eprintln!("xtask: {err:#}");
            self.crashed.push(title.into());
        }
        self.times.push((title.into(), start.elapsed()));
    }

    /// Runs the tests of these programs, a process for each.
    fn side_by_side(
        &mut self,
        programs: &[&'a Program],
        filters: &[String],
        jobs: usize,
        in_ci: bool,
    ) -> Result<()> {
        let tests = lanes::list(programs, filters)?;
        for lane in lanes::LANES {
            let tests: Vec<_> = tests.iter().filter(|test| test.lane == lane).collect();
            if tests.is_empty() {
                continue;
            }
            let jobs = lane.width(jobs);
            let start = Instant::now();
            println!("\n== {} network tests, {jobs} at a time", tests.len());
            for (test, result) in lanes::run(&tests, jobs, in_ci)? {
                match result {
                    lanes::Outcome::Passed => self.passed += 1,
                    lanes::Outcome::Skipped => self.skipped += 1,
                    lanes::Outcome::Failed => {
                        self.failed
                            .push(Failure { program: test.program, test: test.name.clone() });
                    }
                }
            }
            self.times.push((format!("network tests, {jobs} at a time"), start.elapsed()));
        }
        Ok(())
    }

    /// Runs tests that failed once more, each by itself, if they are few.
    fn repeat(&mut self) -> Result<()> {
        if self.failed.len() >= MANY {
            return Ok(());
        }
        for failure in std::mem::take(&mut self.failed) {
            println!("\n== again: {}", failure.test);
            let (status, outcome) = failure.program.run(&["--exact", &failure.test], true)?;
            if status.success() && outcome.passed == 1 {
                self.passed += 1;
                self.unstable.push(failure.test);
            } else {
                self.failed.push(failure);
            }
        }
        Ok(())
    }

    /// Prints the sums, and fails if a test has.
    fn verdict(&self) -> Result<()> {
        println!();
        for (title, time) in &self.times {
            println!("{:>7.1} s  {title}", time.as_secs_f64());
        }
        for name in &self.unstable {
            println!("UNSTABLE: {name} failed, and passed when it ran again by itself");
        }
        for failure in &self.failed {
            println!("FAILED: {} ({})", failure.test, failure.program.title());
        }
        let (failed, skipped) = (self.failed.len() + self.crashed.len(), self.skipped);
        let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        println!("{} passed, {failed} failed{skipped}", self.passed);
        ensure!(!signals::caught(), "interrupted");
        let names = self.failed.iter().map(|failure| &failure.test).chain(&self.crashed);
        let names: Vec<_> = names.map(String::as_str).collect();
        if !names.is_empty() {
            bail!("failed: {}", names.join(", "));
        }
        Ok(())
    }
}

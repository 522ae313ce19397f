//! The cost of a request through each kind of balancer, and without one: the same three nginx, the same
//! client, the same wires.
//!
//! Each of the [systems](System) has a lab of its own. Their runs alternate in every round, so
//! that all meet the same machine. perf measures where the time goes at the end ([`profile`]).

mod profile;
mod systems;
mod throughput;
mod wrk;

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    lab,
    progress::Progress,
    reports::http::{Case, Report, Run, Skipped, System, Throughput},
    signals,
};

use crate::output::Output;
use systems::Testbed;

/// The clients' load: how many connections, and whether they are kept.
const LOADS: [(u16, bool); 4] = [(16, true), (64, true), (16, false), (64, false)];

/// A run that is thrown away, so that all is warm.
const WARM_UP: Duration = Duration::from_millis(500);

/// The arguments: measurements and output.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How often each case is measured; medians are printed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each run takes, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Only these systems; the beginning of a name will do: `direct,lb,haproxy`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// Measures and prints.
///
/// # Errors
///
/// If a lab does not come up, a system answers wrongly, or a signal came.
pub fn run(arguments: &Arguments) -> Result<()> {
    let systems = select(&arguments.only)?;
    let missing = kit::missing(&["haproxy", "nft"]);
    ensure!(
        missing.is_empty(),
        "needs {}; `cargo xtask bench http` sees to it",
        missing.join(", ")
    );
    signals::catch();
    lab::sweep()?;
    let (systems, skipped) = without_lacking(systems)?;
    let testbeds = systems
        .iter()
        .map(|&system| Testbed::new(system).with_context(|| format!("set up {}", system.name())));
    let testbeds: Vec<Testbed> = testbeds.collect::<Result<_>>()?;
    let time = Duration::from_secs(arguments.seconds);
    let mut report = Report {
        seconds: arguments.seconds,
        cases: cases(&systems),
        throughput: Vec::new(),
        profiles: Vec::new(),
        skipped,
    };
    report.throughput.extend(systems.iter().map(|&system| Throughput::new(system)));
    let measured = measure(&testbeds, arguments.rounds, time, &mut report);
    // After an error or a signal the results so far are printed: they took minutes to measure.
    arguments.output.print(&report)?;
    measured
}

fn cases(systems: &[System]) -> Vec<Case> {
    let of = |&(connections, keep_alive): &(u16, bool)| {
        let case =
            move |&system: &System| Case { system, connections, keep_alive, runs: Vec::new() };
        systems.iter().map(case).collect::<Vec<_>>()
    };
    LOADS.iter().flat_map(of).collect()
}

fn measure(testbeds: &[Testbed], rounds: u32, time: Duration, report: &mut Report) -> Result<()> {
    let each = report.cases.len() + report.throughput.len();
    let profiled: Vec<_> =
        testbeds.iter().filter(|testbed| profile::SYSTEMS.contains(&testbed.system)).collect();
    let profiles = profiled.len() * profile::LOADS.len();
    let mut progress = Progress::new(each * rounds as usize + profiles);
    for round in 0..rounds {
        // The order changes, so that none always comes after the same one.
        for n in 0..report.cases.len() {
            let n = (n + round as usize) % report.cases.len();
            let case = &mut report.cases[n];
            let testbed = testbed(testbeds, case.system)?;
            let name = describe(case.system, case.connections, case.keep_alive);
            progress.begin(&name);
            ensure!(!signals::caught(), "interrupted");
            wrk::run(testbed, case.connections, case.keep_alive, WARM_UP).context(name.clone())?;
            let run: Run =
                wrk::run(testbed, case.connections, case.keep_alive, time).context(name.clone())?;
            progress.end(Some(&format!("{name}: {run}")));
            case.runs.push(run);
        }
        for of in &mut report.throughput {
            let name = format!("{}, throughput", of.system.name());
            progress.begin(&name);
            ensure!(!signals::caught(), "interrupted");
            let bits =
                throughput::run(testbed(testbeds, of.system)?, time).context(name.clone())?;
            progress.end(Some(&format!("{name}: {:.2} Gbit/s", bits / 1e9)));
            of.bits_per_second.push(bits);
        }
    }
    for (connections, keep_alive) in profile::LOADS {
        for testbed in &profiled {
            let name = format!("{}, profile", describe(testbed.system, connections, keep_alive));
            progress.begin(&name);
            ensure!(!signals::caught(), "interrupted");
            let profile =
                profile::take(testbed, connections, keep_alive, time).context(name.clone())?;
            progress.end(Some(&format!("{name}: {profile}")));
            report.profiles.push(profile);
        }
    }
    Ok(())
}

/// A system and a load in a few words.
fn describe(system: System, connections: u16, keep_alive: bool) -> String {
    let keep_alive = if keep_alive { "keep-alive" } else { "a connection each" };
    format!("{}, {connections} connections, {keep_alive}", system.name())
}

fn testbed(testbeds: &[Testbed], system: System) -> Result<&Testbed> {
    testbeds.iter().find(|testbed| testbed.system == system).context("a system without a lab")
}

/// The systems that these words leave.
fn select(only: &[String]) -> Result<Vec<System>> {
    let names = System::ALL.map(System::name);
    for word in only {
        if !names.iter().any(|name| name.starts_with(word.as_str())) {
            bail!("`{word}` is no system; one of: {}", names.join(", "));
        }
    }
    let chosen =
        |name: &str| only.is_empty() || only.iter().any(|word| name.starts_with(word.as_str()));
    Ok(System::ALL.into_iter().filter(|system| chosen(system.name())).collect())
}

/// The systems that this kernel has, and those that it lacks.
fn without_lacking(systems: Vec<System>) -> Result<(Vec<System>, Vec<Skipped>)> {
    let (mut here, mut skipped) = (Vec::new(), Vec::new());
    for system in systems {
        match systems::lacking(system)? {
            None => here.push(system),
            Some(reason) => {
                eprintln!("bench: {} is skipped: {reason}", system.name());
                skipped.push(Skipped { system, reason });
            }
        }
    }
    Ok((here, skipped))
}

/// Busy CPU time of the whole machine since it started, of all CPUs together.
fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let ticks = busy_ticks(&stat).context("the first line of /proc/stat")?;
    let each = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("clock ticks")?;
    Ok(Duration::from_secs_f64(ticks as f64 / each as f64))
}

/// user, nice, system, irq, softirq of proc_stat(5): not idle, iowait, and the hypervisor's share.
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    (ticks.len() >= 7).then(|| [0, 1, 2, 5, 6].iter().map(|&n| ticks[n]).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_neither_idle_nor_stolen() {
        let stat = "cpu  10 20 30 4000 500 6 7 8000 90 0\ncpu0 1 2 3\n";
        assert_eq!(busy_ticks(stat), Some(10 + 20 + 30 + 6 + 7));
        assert_eq!(busy_ticks("intr 1"), None);
    }

    #[test]
    fn the_beginning_of_a_name_chooses_systems() -> Result<()> {
        let only = |words: &str| select(&[words.to_owned()]);
        assert_eq!(select(&[])?, System::ALL);
        let ours = [System::Dsr, System::DsrTc, System::Ipip, System::Nat, System::NatTc];
        assert_eq!(only("lb")?, ours);
        assert!(only("traefik").is_err());
        Ok(())
    }
}

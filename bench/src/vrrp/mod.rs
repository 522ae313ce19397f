//! The cost of a failover of a pair of balancers for the clients: with the balancer, and with keepalived and
//! HAProxy as they are set up today, on the same hosts at the same intervals.
//!
//! Each interval has a lab of each of the [systems](System). A [trial] lets one of the [faults]
//! come to the node that is Active, waits, lets it end, and waits until all is as before, while a client
//! requests a page every two milliseconds and long downloads run. The systems' trials alternate, so
//! that both meet the same machine.

mod faults;
mod testbed;
mod trial;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    lab,
    progress::Progress,
    reports::vrrp::{Cell, Fault, Report, System},
    signals,
};

use crate::output::Output;
use testbed::Testbed;

/// The arguments: measurements and output.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How often each fault comes
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    trials: u32,
    /// Times between two advertisements
    #[arg(long, value_delimiter = ',', value_parser = interval, default_value = "1s,100ms,10ms")]
    interval: Vec<Duration>,
    /// Only these systems and faults; the beginning of a name will do: `lb,killed`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// Measures and prints.
///
/// # Errors
///
/// If a lab does not come up, a failover does not come to pass, or a signal came.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (systems, faults) = select(&arguments.only)?;
    let missing = kit::missing(&["haproxy", "keepalived", "nft"]);
    ensure!(
        missing.is_empty(),
        "needs {}; `cargo xtask bench vrrp` sees to it",
        missing.join(", ")
    );
    signals::catch();
    lab::sweep()?;
    let mut report = Report::default();
    let mut measured = Ok(());
    for &interval in &arguments.interval {
        measured = measure(&systems, &faults, interval, arguments.trials, &mut report)
            .with_context(|| format!("at an interval of {interval:?}"));
        if measured.is_err() {
            break;
        }
    }
    // After an error or a signal the results so far are printed: they took minutes to measure.
    arguments.output.print(&report)?;
    measured
}

fn measure(
    systems: &[System],
    faults: &[Fault],
    interval: Duration,
    trials: u32,
    report: &mut Report,
) -> Result<()> {
    let testbeds = systems.iter().map(|&system| Testbed::new(system, interval));
    let mut testbeds: Vec<Testbed> = testbeds.collect::<Result<_>>()?;
    let is_measured =
        |fault| testbeds.iter().filter(|testbed| testbed.system.is_measured(fault)).count();
    let cells: usize = faults.iter().map(|&fault| is_measured(fault)).sum();
    let mut progress = Progress::new(cells * trials as usize);
    for &fault in faults {
        let first = report.cells.len();
        let is_measured = |testbed: &&mut Testbed| testbed.system.is_measured(fault);
        let cells = testbeds.iter_mut().filter(is_measured);
        report.cells.extend(cells.map(|testbed| Cell::new(testbed.system, interval, fault)));
        for n in 0..trials {
            for (cell, testbed) in testbeds.iter_mut().filter(is_measured).enumerate() {
                let name = format!("{}, {}, trial {}", testbed.system.name(), fault.name(), n + 1);
                let name = format!("{interval:?}, {name} of {trials}");
                progress.begin(&name);
                let trial = trial::run(testbed, fault, n).with_context(|| name.clone())?;
                progress.end(Some(&format!("{name}: {trial}")));
                report.cells[first + cell].trials.push(trial);
            }
        }
    }
    Ok(())
}

/// Reads `100ms` or `1s`.
pub fn interval(text: &str) -> Result<Duration, String> {
    let parse = |number: &str| number.parse::<u64>().ok().filter(|&number| number > 0);
    let millis = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(millis), _) => parse(millis),
        (None, Some(seconds)) => parse(seconds).map(|seconds| seconds * 1_000),
        (None, None) => None,
    };
    millis.map(Duration::from_millis).ok_or_else(|| "a time as `10ms` or `1s`".to_owned())
}

/// The systems and faults that these words leave.
fn select(only: &[String]) -> Result<(Vec<System>, Vec<Fault>)> {
    let names: Vec<_> =
        System::ALL.map(System::name).into_iter().chain(Fault::ALL.map(Fault::name)).collect();
    for word in only {
        if !names.iter().any(|name| name.starts_with(word.as_str())) {
            bail!("`{word}` is no system and no fault; one of: {}", names.join(", "));
        }
    }
    let chosen = |name: &str| only.iter().any(|word| name.starts_with(word.as_str()));
    let any_system = !System::ALL.iter().any(|system| chosen(system.name()));
    let any_fault = !Fault::ALL.iter().any(|fault| chosen(fault.name()));
    let systems = System::ALL.into_iter().filter(|one| any_system || chosen(one.name()));
    let faults = Fault::ALL.into_iter().filter(|one| any_fault || chosen(one.name()));
    Ok((systems.collect(), faults.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn words_of_one_kind_leave_the_other_whole() -> Result<()> {
        assert_eq!(select(&[])?, (System::ALL.to_vec(), Fault::ALL.to_vec()));
        assert_eq!(select(&words("killed"))?, (System::ALL.to_vec(), vec![Fault::Killed]));
        assert_eq!(select(&words("keep"))?, (vec![System::Keepalived], Fault::ALL.to_vec()));
        let error = select(&words("nginx")).expect_err("no such thing").to_string();
        assert!(error.contains("`nginx`") && error.contains("keepalived"), "{error}");
        Ok(())
    }

    #[test]
    fn intervals_have_a_unit() {
        assert_eq!(interval("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(interval("10ms"), Ok(Duration::from_millis(10)));
        assert!(["10", "ms", "0s", "1m"].iter().all(|text| interval(text).is_err()));
    }
}

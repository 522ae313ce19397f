//! The cost of a fault of one backend for the clients: with the balancer and with HAProxy, on the same
//! hosts at the same settings.
//!
//! Each cell of the table is a lab of its own: three web hosts, and one of the [`systems`] before
//! them. A client opens a connection every few milliseconds, and downloads run on every host, while
//! one of the [`faults`] comes to one host.

mod cell;
mod faults;
mod systems;

use crate::output::Output;
use anyhow::{Context as _, Result, bail, ensure};
use kit::{
    lab,
    progress::Progress,
    reports::failover::{Fault, Report},
    signals,
};
use systems::System;

/// The arguments: measurements and output.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// Only these systems and faults; the beginning of a name will do: `lb,haproxy-guides,killed`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// Measures and prints.
///
/// # Errors
///
/// If a lab does not come up, or a signal came.
pub fn run(arguments: &Arguments) -> Result<()> {
    let cells = select(&arguments.only)?;
    let missing = kit::missing(&["haproxy"]);
    ensure!(
        missing.is_empty(),
        "needs {}; `cargo xtask bench failover` sees to it",
        missing.join(", ")
    );
    signals::catch();
    lab::sweep()?;
    let mut report = Report::default();
    let measured = measure(&cells, &mut report);
    // After an error or a signal the results so far are printed: they took minutes to measure.
    arguments.output.print(&report)?;
    measured
}

fn measure(cells: &[(&System, Fault)], report: &mut Report) -> Result<()> {
    let mut progress = Progress::new(cells.len());
    for &(system, fault) in cells {
        let name = format!("{}, {}", system.name, fault.name());
        progress.begin(&name);
        let cell = cell::measure(system, fault).with_context(|| name.clone())?;
        progress.end(Some(&format!("{name}: {cell}")));
        report.cells.push(cell);
    }
    Ok(())
}

/// The cells that these words leave, fault by fault.
fn select(only: &[String]) -> Result<Vec<(&'static System, Fault)>> {
    let names = || systems::ALL.iter().map(|system| system.name);
    let faults = || Fault::ALL.iter().map(|fault| fault.name());
    for word in only {
        if !names().chain(faults()).any(|name| name.starts_with(word.as_str())) {
            let known: Vec<_> = names().chain(faults()).collect();
            bail!("`{word}` is no system and no fault; one of: {}", known.join(", "));
        }
    }
    let chosen = |name: &str| only.iter().any(|word| name.starts_with(word.as_str()));
    let (any_system, any_fault) = (!names().any(chosen), !faults().any(chosen));
    let cells = Fault::ALL.iter().flat_map(|&fault| {
        let systems = systems::ALL.iter().filter(move |system| system.is_measured(fault));
        systems.map(move |system| (system, fault))
    });
    let wanted = |(system, fault): &(&System, Fault)| {
        (any_system || chosen(system.name)) && (any_fault || chosen(fault.name()))
    };
    let cells: Vec<_> = cells.filter(wanted).collect();
    if cells.is_empty() {
        bail!("these systems are not put to these faults");
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn without_words_every_system_and_every_fault_is_measured() -> Result<()> {
        let cells = select(&[])?;
        assert!(systems::ALL.iter().all(|one| cells.iter().any(|(it, _)| it.name == one.name)));
        assert!(Fault::ALL.iter().all(|one| cells.iter().any(|(_, it)| it == one)));
        Ok(())
    }

    #[test]
    fn words_of_one_kind_leave_the_other_whole() -> Result<()> {
        let cells = select(&words("killed"))?;
        assert!(cells.iter().all(|&(_, fault)| fault == Fault::Killed));
        assert!(cells.iter().any(|(system, _)| system.name.starts_with("lb")));
        assert!(cells.iter().any(|(system, _)| system.name.starts_with("haproxy")));
        let cells = select(&words("haproxy-guides killed drained"))?;
        assert_eq!(cells.len(), 2);
        Ok(())
    }

    #[test]
    fn moved_flows_are_measured_where_hosts_end_gracefully_and_nowhere_else() -> Result<()> {
        let faults: Vec<_> = select(&words("lb-move"))?.into_iter().map(|(_, it)| it).collect();
        assert_eq!(faults, [Fault::Quit, Fault::Rolling]);
        for fault in faults {
            let cells = select(&words(fault.name()))?;
            for other in ["lb-100ms", "haproxy-100ms"] {
                assert!(cells.iter().any(|(system, _)| system.name == other), "{fault:?}: {other}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_word_that_means_nothing_is_named() {
        let error = select(&words("killed nginx")).expect_err("no such thing").to_string();
        assert!(error.contains("`nginx`") && error.contains("lb-guides"), "{error}");
    }
}

//! The cost of floods for legitimate traffic.
//!
//! Three parts. [`cell`]: a lab with real connections, and an attacker on its switch that sends one kind of
//! flood, in the steady state and while a backend drains. [`tables`]: a flood through the loaded program,
//! frame by frame, beside a table of all flows in the same memory. [`slots`]: where the tuples of a flood
//! fall, if the sender does not know the seed.

mod cell;
mod slots;
mod tables;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cell::Storm;
use kit::{
    lab,
    progress::Progress,
    reports::attack::{Phase, Report},
    signals,
};

use crate::output::Output;

/// The arguments: measurements and output.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
    /// How long each flood lasts, in seconds
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Frames of a flood in a second, if this machine can send as many
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Only these floods and parts; the beginning of a name will do: `syn,steady,tables`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// The words of `--only` that are no floods.
const TABLES: &str = "tables";
const SLOTS: &str = "slots";

/// The measurements.
#[derive(Debug, PartialEq, Eq)]
struct Selection {
    cells: Vec<(Storm, Phase)>,
    tables: bool,
    slots: bool,
}

/// Measures and prints.
///
/// # Errors
///
/// If a lab does not come up, the kernel refuses a program, or a signal came.
pub fn run(arguments: &Arguments) -> Result<()> {
    let selection = select(&arguments.only)?;
    let missing = kit::missing(&["nft"]);
    ensure!(
        missing.is_empty(),
        "needs {}; `cargo xtask bench attack` sees to it",
        missing.join(", ")
    );
    signals::catch();
    lab::sweep()?;
    let time = Duration::from_secs(arguments.seconds);
    let mut report = Report::new(time, arguments.rate, cell::EVERY, cell::PINS);
    let measured = measure(&selection, &mut report, time);
    // After an error or a signal the results so far are printed: they took minutes to measure.
    arguments.output.print(&report)?;
    measured
}

fn measure(selection: &Selection, report: &mut Report, time: Duration) -> Result<()> {
    let parts = usize::from(selection.tables) + usize::from(selection.slots);
    let mut progress = Progress::new(selection.cells.len() + parts);
    if selection.slots {
        progress.begin(SLOTS);
        report.slots = slots::measure();
        progress.end(None);
    }
    if selection.tables {
        progress.begin(TABLES);
        report.tables = Some(tables::measure()?);
        progress.end(None);
    }
    for &(storm, phase) in &selection.cells {
        let name = format!("{}, {}", storm.name(), phase.name());
        progress.begin(&name);
        let cell = cell::measure(storm, phase, report.frames_per_second_asked, time);
        let cell = cell.with_context(|| name.clone())?;
        progress.end(Some(&format!("{name}: {cell}")));
        report.cells.push(cell);
    }
    Ok(())
}

/// The cases that these arguments leave.
fn select(only: &[String]) -> Result<Selection> {
    let storms = Storm::all();
    let storm_names = || storms.iter().map(|storm| storm.name());
    let phases = || Phase::ALL.iter().map(|phase| phase.name());
    let known = || storm_names().chain(phases()).chain([TABLES, SLOTS]);
    for word in only {
        if !known().any(|name| name.starts_with(word.as_str())) {
            let known: Vec<_> = known().collect();
            bail!("`{word}` is no flood and no part; one of: {}", known.join(", "));
        }
    }
    let chosen = |name: &str| only.iter().any(|word| name.starts_with(word.as_str()));
    let (any_storm, any_phase) = (!storm_names().any(chosen), !phases().any(chosen));
    let parts_only = any_storm && any_phase && !only.is_empty();
    let cells =
        Phase::ALL.iter().flat_map(|&phase| storms.iter().map(move |&storm| (storm, phase)));
    let wanted = |(storm, phase): &(Storm, Phase)| {
        (any_storm || chosen(storm.name())) && (any_phase || chosen(phase.name()))
    };
    let cells = if parts_only { Vec::new() } else { cells.filter(wanted).collect() };
    let part = |name| only.is_empty() || chosen(name);
    Ok(Selection { cells, tables: part(TABLES), slots: part(SLOTS) })
}

#[cfg(test)]
mod tests {
    use kit::flood::Kind;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn without_words_all_is_measured() -> Result<()> {
        let all = select(&[])?;
        assert_eq!(all.cells.len(), 2 * (Kind::ALL.len() + 1));
        assert!(all.tables && all.slots);
        Ok(())
    }

    #[test]
    fn words_of_one_kind_leave_the_other_whole() -> Result<()> {
        let syns = select(&words("syn"))?;
        assert_eq!(syns.cells.len(), 4, "two floods, in both phases");
        assert!(!syns.tables && !syns.slots);
        let steady = select(&words("steady"))?;
        assert!(steady.cells.iter().all(|&(_, phase)| phase == Phase::Steady));
        let tables = select(&words("tables"))?;
        assert_eq!(tables, Selection { cells: Vec::new(), tables: true, slots: false });
        Ok(())
    }

    #[test]
    fn a_word_that_means_nothing_is_named() {
        let error = select(&words("syn ping")).expect_err("no such thing").to_string();
        assert!(error.contains("`ping`") && error.contains("malformed"), "{error}");
    }
}

//! The chapter of `bench vrrp`.

use anyhow::Result;
use kit::reports::vrrp::{Cell, Event, Fault, Report, System, Trial, median};
use minijinja::{Value, context};
use serde::Serialize;
use serde_json::Value as Json;

use super::{
    Plots,
    plot::{self, Bar},
    typed,
};

/// Trials of one kind, together.
#[derive(Serialize)]
pub struct Sum {
    /// Outages.
    pub outage_ms: Spread,
    trouble_ms: Spread,
    /// Requests lost, in the worst trial.
    pub lost: usize,
    /// Downloads that broke.
    pub broken: usize,
    /// Downloads that ran.
    pub downloads: usize,
}

/// A figure of all trials.
#[derive(Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Its median.
    pub median: f64,
    worst: f64,
}

impl Spread {
    /// None of no trials.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.collect();
        let median = median(&mut values);
        Some(Self { median, worst: *values.last()? })
    }
}

/// One of the two events of a trial.
type Side = fn(&Trial) -> &Event;

/// None of no trials.
pub fn sum(trials: &[Trial], of: impl Fn(&Trial) -> &Event) -> Option<Sum> {
    let events = || trials.iter().map(&of);
    Some(Sum {
        outage_ms: Spread::of(events().map(|event| event.outage_ms))?,
        trouble_ms: Spread::of(events().map(|event| event.trouble_ms))?,
        lost: events().map(|event| event.lost).max().unwrap_or(0),
        broken: events().map(|event| event.broken).sum(),
        downloads: events().map(|event| event.downloads).sum(),
    })
}

/// As tables call it.
fn title(system: System) -> &'static str {
    match system {
        System::Lb => "lb",
        System::Keepalived => "keepalived + HAProxy",
    }
}

/// As the fault's section is headed.
const fn heading(fault: Fault) -> &'static str {
    match fault {
        Fault::Killed => "Process crash",
        Fault::LinkDown => "Link failure",
        Fault::Stopped => "Orderly stop",
        Fault::PowerOff => "Power loss",
        Fault::Parted => "Network partition",
        Fault::HandedOver => "Handover",
    }
}

/// A plot and a row for each cell and event, by fault; and the faults of which there is no cell.
pub fn prepare(results: &Json, plots: &mut Plots) -> Result<Value> {
    let Report { cells } = typed(results)?;
    let trials = cells.iter().flat_map(|cell| &cell.trials);
    let late_ms = trials.map(|trial| trial.late_ms).fold(0.0, f64::max);
    let (mut faults, mut missing) = (Vec::new(), Vec::new());
    for fault in Fault::ALL {
        let (name, [begins, ends]) = (fault.name(), fault.describe());
        let cells: Vec<_> = cells.iter().filter(|cell| cell.fault == fault).collect();
        if cells.is_empty() {
            missing.push(context! { name, begins });
            continue;
        }
        let svg =
            plot::bars(&format!("outage when {begins}, median"), "milliseconds", &bars(&cells))?;
        plots.insert(format!("vrrp-{name}"), svg);
        let sides: [(&str, Side); 2] = [(begins, |trial| &trial.fault), (ends, |trial| &trial.end)];
        let rows = sides
            .iter()
            .flat_map(|(event, of)| cells.iter().filter_map(move |cell| row(event, cell, of)));
        let title = heading(fault);
        faults.push(context! { name, title, begins, rows => rows.collect::<Vec<_>>() });
    }
    Ok(context! { late_ms, faults, missing })
}

fn row(event: &str, cell: &Cell, of: impl Fn(&Trial) -> &Event) -> Option<Value> {
    let sum = Value::from_serialize(sum(&cell.trials, of)?);
    let (system, trials) = (title(cell.system), cell.trials.len());
    Some(context! { event, system, trials, interval_ms => cell.interval_ms, ..sum })
}

fn bars(cells: &[&Cell]) -> Vec<Bar> {
    let bar = |cell: &&Cell| {
        let sum = sum(&cell.trials, |trial| &trial.fault)?;
        let name = format!("{}, {} ms", title(cell.system), cell.interval_ms);
        let kind = usize::from(cell.system != System::Lb);
        Some(Bar { name, value: sum.outage_ms.median, kind })
    };
    cells.iter().filter_map(bar).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::tests::rendered, *};

    fn trial(outage_ms: f64, broken: usize) -> Trial {
        let event = |outage_ms, broken| Event {
            outage_ms,
            trouble_ms: outage_ms * 2.0,
            lost: broken,
            probes: None,
            downloads: 48,
            broken,
        };
        Trial { fault: event(outage_ms, broken), end: event(1.0, 0), late_ms: 3.0 }
    }

    #[test]
    fn trials_come_together() {
        let trials = [trial(40.0, 0), trial(10.0, 48), trial(20.0, 0), trial(30.0, 2)];
        let sum = sum(&trials, |trial| &trial.fault).expect("there are trials");
        assert_eq!(sum.outage_ms, Spread { median: 25.0, worst: 40.0 });
        assert_eq!(sum.trouble_ms, Spread { median: 50.0, worst: 80.0 });
        assert_eq!((sum.lost, sum.broken, sum.downloads), (48, 50, 192));
        assert!(super::sum(&[], |trial| &trial.fault).is_none());
    }

    #[test]
    fn what_a_record_lacks_is_said() -> Result<()> {
        let mut cells = Fault::ALL
            .map(|fault| Cell::new(System::Lb, Duration::from_secs(1), fault))
            .into_iter()
            .collect::<Vec<_>>();
        for cell in &mut cells {
            cell.trials.push(trial(10.0, 0));
        }
        let mut report = Report { cells };
        let command = "cargo xtask bench vrrp";
        assert!(!rendered("vrrp", command, &report)?.contains("Not measured"));
        report.cells.retain(|cell| !matches!(cell.fault, Fault::PowerOff | Fault::HandedOver));
        let text = rendered("vrrp", command, &report)?;
        let line = "as without power); `handed-over` (the operator hands over).";
        assert!(text.contains(line) && !text.contains("`parted`"), "{text}");
        Ok(())
    }
}

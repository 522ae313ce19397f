//! The chapter of `bench vrrp`.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Page,
    plot::{self, Bar},
    table::Table,
    typed,
};

#[derive(Deserialize)]
struct Report {
    cells: Vec<Cell>,
}

#[derive(Deserialize)]
struct Cell {
    system: String,
    interval_ms: u64,
    fault: String,
    trials: Vec<Trial>,
}

#[derive(Deserialize)]
struct Trial {
    fault: Event,
    end: Event,
    late_ms: f64,
}

#[derive(Deserialize)]
struct Event {
    outage_ms: f64,
    trouble_ms: f64,
    lost: u64,
    downloads: u64,
    broken: u64,
}

/// Trials of one kind, together.
struct Sum {
    outage_ms: Spread,
    trouble_ms: Spread,
    lost: u64,
    broken: u64,
    downloads: u64,
}

/// A figure of all trials.
#[derive(Debug, PartialEq)]
struct Spread {
    median: f64,
    worst: f64,
}

impl Spread {
    /// None of no trials.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let worst = *values.last()?;
        let middle = values.len() / 2;
        let median = match values.len() {
            odd if odd % 2 == 1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Some(Self { median, worst })
    }
}

/// What can happen, by the name that the command has for it, and how it ends.
const FAULTS: [(&str, &str, &str); 6] = [
    ("killed", "the process is killed", "it is started again"),
    ("link-down", "the node's cable is pulled", "it is plugged in again"),
    ("stopped", "the process is stopped in order", "it is started again"),
    (
        "power-off",
        "the node is frozen and off the net, as without power",
        "it goes on where it was",
    ),
    ("parted", "the nodes don't hear each other, clients reach both", "they hear each other"),
    ("handed-over", "the operator hands over", "and back"),
];

fn fault(name: &str) -> (&str, &str) {
    let found = FAULTS.iter().find(|(known, ..)| *known == name);
    found.map_or((name, "it ends"), |(_, begins, ends)| (begins, ends))
}

/// What the command measures as well, if it is not told otherwise, and is not among these.
fn not_measured(faults: &[&str]) -> Option<String> {
    let missing = FAULTS.iter().filter(|(name, ..)| !faults.contains(name));
    let missing: Vec<_> = missing.map(|(name, begins, _)| format!("`{name}` ({begins})")).collect();
    (!missing.is_empty()).then(|| format!("Not measured: {}.", missing.join("; ")))
}

fn system(name: &str) -> &str {
    match name {
        "keepalived" => "keepalived + HAProxy",
        other => other,
    }
}

/// One of the two events of a trial.
type Side = fn(&Trial) -> &Event;

/// None of no trials.
fn sum(trials: &[Trial], of: impl Fn(&Trial) -> &Event) -> Option<Sum> {
    let events = || trials.iter().map(&of);
    Some(Sum {
        outage_ms: Spread::of(events().map(|event| event.outage_ms))?,
        trouble_ms: Spread::of(events().map(|event| event.trouble_ms))?,
        lost: events().map(|event| event.lost).max().unwrap_or(0),
        broken: events().map(|event| event.broken).sum(),
        downloads: events().map(|event| event.downloads).sum(),
    })
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    let trials = report.cells.iter().flat_map(|cell| &cell.trials);
    let late = trials.map(|trial| trial.late_ms).fold(0.0, f64::max);
    page.say(&format!(
        "The node that is Active fails, and comes back, while a client asks every 2 ms and long downloads \
         run; trials with `lbd` and with keepalived and HAProxy alternate on hosts alike, at the same \
         interval of advertisements. *Outage*: the longest time between two answers. *Trouble*: from the event \
         to the end of the last time without answers of more than 50 ms, or to the beginning of the last \
         request that failed, whichever is later; 0 if there was neither. So it is no time without service: \
         one pause long after the event makes it long, and clients are watched until the node that is back \
         holds the address again, which took half a minute in some trials (an interface that failed several \
         times has to stay well for up to 30 s). This machine was once too busy to send a request for \
         {late:.0} ms. *Lost*: requests that failed, or took 180 ms or more, as one does of which a packet is \
         sent again; in the worst trial. *Broken*: downloads that did not come whole, of those that ran, in all \
         trials."
    ));
    let mut faults: Vec<&str> = Vec::new();
    for cell in &report.cells {
        if !faults.contains(&cell.fault.as_str()) {
            faults.push(&cell.fault);
        }
    }
    if let Some(text) = not_measured(&faults) {
        page.say(&text);
    }
    for name in faults {
        let cells = || report.cells.iter().filter(|cell| cell.fault == name);
        let (begins, ends) = fault(name);
        let mut bars = Vec::new();
        let mut table = Table::new([
            "",
            "interval, ms",
            "system",
            "trials",
            "outage, median, ms",
            "worst, ms",
            "trouble, median, ms",
            "worst, ms",
            "lost",
            "broken",
        ]);
        let sides: [(&str, Side); 2] = [(begins, |trial| &trial.fault), (ends, |trial| &trial.end)];
        for (side, (title, of)) in sides.into_iter().enumerate() {
            for cell in cells() {
                let Some(sum) = sum(&cell.trials, of) else { continue };
                let system = system(&cell.system);
                if side == 0 {
                    let kind = usize::from(cell.system != "lb");
                    let name = format!("{system}, {} ms", cell.interval_ms);
                    bars.push(Bar { name, value: sum.outage_ms.median, kind });
                }
                table.row([
                    title.to_owned(),
                    cell.interval_ms.to_string(),
                    system.to_owned(),
                    cell.trials.len().to_string(),
                    format!("{:.1}", sum.outage_ms.median),
                    format!("{:.1}", sum.outage_ms.worst),
                    format!("{:.0}", sum.trouble_ms.median),
                    format!("{:.0}", sum.trouble_ms.worst),
                    sum.lost.to_string(),
                    format!("{} of {}", sum.broken, sum.downloads),
                ]);
            }
        }
        page.say(&format!("### {}{}", begins[..1].to_uppercase(), &begins[1..]));
        let svg = plot::bars(&format!("outage when {begins}, median"), "milliseconds", &bars)?;
        page.plot(&format!("vrrp-{name}"), &format!("Outage when {begins}"), svg);
        table.write(&mut page.text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(outage_ms: f64, broken: u64) -> Trial {
        let event = |outage_ms, broken| Event {
            outage_ms,
            trouble_ms: outage_ms * 2.0,
            lost: broken,
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
    fn what_a_record_lacks_is_said() {
        let text = not_measured(&["killed", "link-down", "stopped", "parted"]).unwrap_or_default();
        assert!(
            text.contains("as without power); `handed-over` (the operator hands over)."),
            "{text}"
        );
        assert!(!text.contains("parted"), "{text}");
        assert_eq!(not_measured(&FAULTS.map(|(name, ..)| name)), None);
    }
}

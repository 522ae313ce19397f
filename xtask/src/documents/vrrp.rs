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
    median_ms: f64,
    worst_ms: f64,
    trouble_ms: f64,
    lost: u64,
    broken: u64,
    downloads: u64,
}

/// What happened and how it ended, by the name that the command has for it.
fn fault(name: &str) -> (&str, &str) {
    match name {
        "killed" => ("the process is killed", "it is started again"),
        "link-down" => ("the node's cable is pulled", "it is plugged in again"),
        "stopped" => ("the process is stopped in order", "it is started again"),
        "power-off" => ("the node is frozen and off the net", "it goes on where it was"),
        "parted" => ("the nodes don't hear each other, clients reach both", "they hear each other"),
        "handed-over" => ("the operator hands over", "and back"),
        other => (other, "it ends"),
    }
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
    let mut outages: Vec<_> = events().map(|event| event.outage_ms).collect();
    outages.sort_by(f64::total_cmp);
    let middle = outages.len() / 2;
    let worst_ms = *outages.last()?;
    let median_ms = match outages.len() {
        odd if odd % 2 == 1 => outages[middle],
        _ => f64::midpoint(outages[middle - 1], outages[middle]),
    };
    Some(Sum {
        median_ms,
        worst_ms,
        trouble_ms: events().map(|event| event.trouble_ms).fold(0.0, f64::max),
        lost: events().map(|event| event.lost).max().unwrap_or(0),
        broken: events().map(|event| event.broken).sum(),
        downloads: events().map(|event| event.downloads).sum(),
    })
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    page.say(
        "The node that is Active fails, and comes back, while a client asks every 2 ms and long downloads \
         run; trials with `lbd` and with keepalived and HAProxy alternate on hosts alike, at the same \
         interval of advertisements. *Outage*: the longest time between two answers. *Trouble*: how long \
         clients noticed anything of it. *Lost*: probes that lost a packet, in the worst trial. *Broken*: \
         downloads that did not come whole, of those that ran, in all trials.",
    );
    let mut faults: Vec<&str> = Vec::new();
    for cell in &report.cells {
        if !faults.contains(&cell.fault.as_str()) {
            faults.push(&cell.fault);
        }
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
            "trouble, ms",
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
                    bars.push(Bar { name, value: sum.median_ms, kind });
                }
                table.row([
                    title.to_owned(),
                    cell.interval_ms.to_string(),
                    system.to_owned(),
                    cell.trials.len().to_string(),
                    format!("{:.1}", sum.median_ms),
                    format!("{:.1}", sum.worst_ms),
                    format!("{:.0}", sum.trouble_ms),
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
        Trial { fault: event(outage_ms, broken), end: event(1.0, 0) }
    }

    #[test]
    fn trials_come_together() {
        let trials = [trial(40.0, 0), trial(10.0, 48), trial(20.0, 0), trial(30.0, 2)];
        let sum = sum(&trials, |trial| &trial.fault).expect("there are trials");
        assert_eq!((sum.median_ms, sum.worst_ms, sum.trouble_ms), (25.0, 40.0, 80.0));
        assert_eq!((sum.lost, sum.broken, sum.downloads), (48, 50, 192));
        assert!(super::sum(&[], |trial| &trial.fault).is_none());
    }
}

//! The results of `bench vrrp`, as tables for people and as JSON for programs.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// A time without answers that is not yet trouble: probes come every 2 ms, and this machine has other
/// things to do as well.
pub const TOLERATED: Duration = Duration::from_millis(50);

/// Everything that was measured.
#[derive(Default, Serialize, Deserialize)]
pub struct Report {
    /// One system, interval and fault each.
    pub cells: Vec<Cell>,
}

/// The trials of one fault with one system at one interval.
#[derive(Serialize, Deserialize)]
pub struct Cell {
    /// The system.
    pub system: System,
    /// Between two advertisements, in milliseconds.
    pub interval_ms: u64,
    /// The fault.
    pub fault: Fault,
    /// The result of each.
    pub trials: Vec<Trial>,
}

/// A fault that came and went.
#[derive(Debug, Serialize, Deserialize)]
pub struct Trial {
    /// When the fault came.
    pub fault: Event,
    /// When it ended.
    pub end: Event,
    /// The longest that this machine was too busy to make a probe, in milliseconds.
    pub late_ms: f64,
}

/// The effects of a change of the Active node.
#[derive(Debug, Serialize, Deserialize)]
pub struct Event {
    /// The longest time between two answers, in milliseconds.
    pub outage_ms: f64,
    /// How long after it there was trouble for the last time, in milliseconds.
    pub trouble_ms: f64,
    /// Probes that lost a packet.
    pub lost: usize,
    /// Probes; a record may have been kept without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<usize>,
    /// Downloads that ran when it came.
    pub downloads: usize,
    /// How many of them broke by it.
    pub broken: usize,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// `lbd` on both nodes.
    Lb,
    /// keepalived for the address, and HAProxy in TCP mode, on both nodes.
    Keepalived,
}

impl System {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Lb, Self::Keepalived];

    /// As `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lb => "lb",
            Self::Keepalived => "keepalived",
        }
    }

    /// Whether this fault can come to it.
    pub fn is_measured(self, fault: Fault) -> bool {
        fault != Fault::HandedOver || self == Self::Lb
    }
}

/// A fault, or an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The process that holds the address is killed.
    Killed,
    /// The node's cable is pulled.
    LinkDown,
    /// The process is stopped in order.
    Stopped,
    /// The node loses power.
    PowerOff,
    /// No advertisement passes between the nodes, and clients reach both.
    Parted,
    /// The operator hands the address to the other node.
    HandedOver,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Killed,
        Self::LinkDown,
        Self::Stopped,
        Self::PowerOff,
        Self::Parted,
        Self::HandedOver,
    ];

    /// As `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::LinkDown => "link-down",
            Self::Stopped => "stopped",
            Self::PowerOff => "power-off",
            Self::Parted => "parted",
            Self::HandedOver => "handed-over",
        }
    }

    /// How it begins and how it ends, each as a clause.
    pub const fn describe(self) -> [&'static str; 2] {
        match self {
            Self::Killed => ["the process is killed", "it is started again"],
            Self::LinkDown => ["the node's cable is pulled", "the cable is plugged in again"],
            Self::Stopped => ["the process is stopped in order", "it is started again"],
            Self::PowerOff => {
                ["the node is frozen and its cables are cut, as without power", "it continues"]
            }
            Self::Parted => [
                "packets between the nodes are lost, clients reach both",
                "packets between the nodes arrive",
            ],
            Self::HandedOver => ["the operator hands over", "the operator hands back"],
        }
    }
}

impl Cell {
    /// Without trials.
    pub fn new(system: System, interval: Duration, fault: Fault) -> Self {
        let interval_ms = interval.as_millis() as u64;
        Self { system, interval_ms, fault, trials: Vec::new() }
    }

    /// Median and worst outage, the longest trouble, the worst number of probes lost, the downloads
    /// that broke, and of how many.
    fn columns(&self, event: impl Fn(&Trial) -> &Event) -> String {
        let worst = |what: fn(&Event) -> f64| {
            self.trials.iter().map(|trial| what(event(trial))).max_by(f64::total_cmp).unwrap_or(0.0)
        };
        let sum = |what: fn(&Event) -> usize| -> usize {
            self.trials.iter().map(|trial| what(event(trial))).sum()
        };
        let mut outages: Vec<_> = self.trials.iter().map(|trial| event(trial).outage_ms).collect();
        let median = median(&mut outages);
        let (longest, trouble) = (worst(|event| event.outage_ms), worst(|event| event.trouble_ms));
        let lost = worst(|event| event.lost as f64);
        let broken = format!("{}/{}", sum(|event| event.broken), sum(|event| event.downloads));
        format!("{median:>8.1}{longest:>8.1}{trouble:>9.0}{lost:>6.0}{broken:>12}")
    }
}

/// The median, or the mean of the two in the middle; 0 of none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, end, late_ms } = self;
        write!(f, "{fault}; its end: {end}; late {late_ms:.1} ms")
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outage_ms, trouble_ms, lost, broken, downloads, .. } = self;
        write!(f, "{outage_ms:.1} ms, trouble for {trouble_ms:.0} ms, {lost} probes lost, ")?;
        write!(f, "{broken}/{downloads} downloads broken")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "a probe every 2 ms. Outage: the longest time between two answers, in milliseconds, median and\n\
             worst of all trials. Trouble: the longest time from the change until the clients noticed\n\
             nothing more of it (no time without answers above {} ms, no probe failed). Lost: probes that\n\
             lost a packet, in the worst trial. Broken: downloads that did not come whole, of those that ran,\n\
             in all trials together",
            TOLERATED.as_millis()
        )?;
        for fault in Fault::ALL {
            let mut cells = self.cells.iter().filter(|cell| cell.fault == fault).peekable();
            if cells.peek().is_none() {
                continue;
            }
            let [begins, ends] = fault.describe();
            writeln!(f, "\n{begins}; then {ends}")?;
            let (at, end) = ("at the change", "at its end");
            writeln!(f, "{:31}{at:^43} | {end:^43}", "")?;
            let [median, worst, trouble, lost] = ["median", "worst", "trouble", "lost"];
            let columns = format!("{median:>8}{worst:>8}{trouble:>9}{lost:>6}{:>12}", "broken");
            writeln!(f, "{:12}{:>10}{:>8} {columns} | {columns}", "", "interval", "trials")?;
            for cell in cells {
                let (name, trials) = (cell.system.name(), cell.trials.len());
                let interval = format!("{:?}", Duration::from_millis(cell.interval_ms));
                let at = cell.columns(|trial| &trial.fault);
                let end = cell.columns(|trial| &trial.end);
                writeln!(f, "{name:12}{interval:>10}{trials:>8} {at} | {end}")?;
            }
        }
        let late = self.cells.iter().flat_map(|cell| &cell.trials).map(|trial| trial.late_ms);
        let late = late.max_by(f64::total_cmp).unwrap_or(0.0);
        writeln!(f, "\nat the worst, this machine was too busy for a probe for {late:.1} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn a_table_has_a_line_for_each_cell() {
        let event = |outage_ms, broken| Event {
            outage_ms,
            trouble_ms: outage_ms,
            lost: 1,
            probes: Some(100),
            downloads: 48,
            broken,
        };
        let trial =
            |ms, broken| Trial { fault: event(ms, broken), end: event(2.0, 0), late_ms: 0.5 };
        let mut cell = Cell::new(System::Keepalived, Duration::from_millis(100), Fault::LinkDown);
        cell.trials = vec![trial(310.0, 48), trial(350.0, 48), trial(300.0, 0)];
        let table = Report { cells: vec![cell] }.to_string();
        let line = table.lines().find(|line| line.starts_with("keepalived")).unwrap_or_default();
        let words: Vec<_> = line.split_whitespace().collect();
        let expected = ["keepalived", "100ms", "3", "310.0", "350.0", "350", "1", "96/144", "|"];
        assert_eq!(words[..9], expected, "{table}");
        assert!(table.contains("cable is pulled") && !table.contains("is killed"), "{table}");
    }
}

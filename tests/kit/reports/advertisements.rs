//! The results of `bench advertisements`, as a table for people and as JSON for programs.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// The results.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// How long each interval was watched.
    pub seconds: u64,
    /// By interval.
    pub cells: Vec<Cell>,
}

/// A pair of one interval.
#[derive(Serialize, Deserialize)]
pub struct Cell {
    /// Between two advertisements.
    pub interval_ms: u64,
    /// The node that advertises.
    pub active: Node,
    /// The other.
    pub backup: Node,
}

/// One of its nodes.
#[derive(Serialize, Deserialize)]
pub struct Node {
    /// Advertisements sent.
    pub sent_per_second: f64,
    /// Advertisements received.
    pub received_per_second: f64,
    /// CPU time of the thread of the virtual routers, in percent of a core.
    pub cpu_percent: f64,
    /// CPU time of all of `lbd`, in percent of a core.
    pub process_cpu_percent: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "advertisements a second and CPU time in percent of a core, of the thread of the virtual routers\n\
             and of all of lbd, over {} s\n\n{:>10}{:9}{:>9}{:>10}{:>12}{:>12}",
            self.seconds, "interval", "", "sent", "received", "CPU thread", "CPU lbd"
        )?;
        for cell in &self.cells {
            let interval = format!("{:?}", Duration::from_millis(cell.interval_ms));
            for (name, node) in [("Active", &cell.active), ("Backup", &cell.backup)] {
                let Node { sent_per_second: sent, received_per_second: received, .. } = node;
                let Node { cpu_percent: thread, process_cpu_percent: process, .. } = node;
                writeln!(
                    f,
                    "{interval:>10}  {name:7}{sent:>9.1}{received:>10.1}{thread:>12.2}{process:>12.2}"
                )?;
            }
        }
        Ok(())
    }
}

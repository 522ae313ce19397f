//! The chapter of `bench advertisements`.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{Page, table::Table, typed};

#[derive(Deserialize)]
struct Report {
    seconds: u64,
    cells: Vec<Cell>,
}

#[derive(Deserialize)]
struct Cell {
    interval_ms: u64,
    active: Node,
    backup: Node,
}

#[derive(Deserialize)]
struct Node {
    sent_per_second: f64,
    received_per_second: f64,
    cpu_percent: f64,
    process_cpu_percent: f64,
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    page.say(&format!(
        "A pair with one virtual router and the flow sync, at which nothing happens, for {} s at each \
         interval. An advertisement of one IPv4 address is an Ethernet frame of the least size, 64 bytes, \
         to a multicast group. CPU time is in percent of a core: of the thread of the virtual routers, and of all \
         of `lbd`, which has other things to do as well.",
        report.seconds
    ));
    let mut table = Table::new([
        "interval, ms",
        "node",
        "sent a second",
        "received a second",
        "CPU of the thread, %",
        "CPU of lbd, %",
    ]);
    for cell in &report.cells {
        for (name, node) in [("Active", &cell.active), ("Backup", &cell.backup)] {
            table.row([
                cell.interval_ms.to_string(),
                name.to_owned(),
                format!("{:.1}", node.sent_per_second),
                format!("{:.1}", node.received_per_second),
                format!("{:.2}", node.cpu_percent),
                format!("{:.2}", node.process_cpu_percent),
            ]);
        }
    }
    table.write(&mut page.text);
    Ok(())
}

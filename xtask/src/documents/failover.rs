//! The chapter of `bench failover`.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Page,
    table::{Table, commas},
    typed,
};

#[derive(Deserialize)]
struct Report {
    cells: Vec<Cell>,
}

#[derive(Deserialize)]
struct Cell {
    system: String,
    settings: String,
    fault: String,
    requests: u64,
    failed: u64,
    last_failure_ms: Option<f64>,
    failing_at_end: bool,
    longest_ms: f64,
    faulted: Ended,
    others: Ended,
}

#[derive(Deserialize)]
struct Ended {
    downloads: u64,
    broken: u64,
}

/// What happened, by the name that the command has for it.
fn fault(name: &str) -> &str {
    match name {
        "killed" => "nginx is killed",
        "cut-off" => "the host is cut off: packets vanish",
        "hangs" => "nginx hangs: the kernel accepts, nobody answers",
        "restarted" => "nginx is killed and back after 0.2 s",
        "drained" => "the operator drains the backend",
        "quit" => "nginx -s quit: it takes no connection, and finishes its downloads",
        "rolling" => "nginx -s quit on every host in turn, each started again after 1 s",
        other => other,
    }
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    page.say(
        "One of three web hosts fails while a client makes a request every few milliseconds, each on a \
         connection of its own, and downloads run on every host. *Last*: from the fault to the beginning of \
         the last request that failed. *Longest*: that a request took which succeeded. A download from a \
         host that is dead can't be saved by anybody; one from another host must not break. A host that \
         is asked to end goes on with the downloads that it has begun: none of them must break either, \
         unless the service says that flows move (`on_down = \"move\"`, here to show that they would). A \
         proxy's connections to the hosts are its own, so it has nothing to move.",
    );
    let mut faults: Vec<&str> = report.cells.iter().map(|cell| cell.fault.as_str()).collect();
    faults.dedup();
    for name in faults {
        page.say(&format!("**{}**", fault(name)));
        let head = [
            "system",
            "check",
            "failed",
            "of",
            "last, s",
            "longest, s",
            "own downloads broken",
            "others'",
        ];
        let mut table = Table::new(head);
        for cell in report.cells.iter().filter(|cell| cell.fault == name) {
            let seconds = |ms: f64| format!("{:.3}", ms / 1e3);
            let end = if cell.failing_at_end { " (still)" } else { "" };
            let broken = |ended: &Ended| match ended.downloads {
                0 => "-".to_owned(),
                downloads => format!("{} of {downloads}", ended.broken),
            };
            table.row([
                cell.system.clone(),
                cell.settings.clone(),
                commas(cell.failed),
                commas(cell.requests),
                cell.last_failure_ms.map_or_else(|| "-".into(), seconds) + end,
                seconds(cell.longest_ms),
                broken(&cell.faulted),
                broken(&cell.others),
            ]);
        }
        table.write(&mut page.text);
    }
    Ok(())
}

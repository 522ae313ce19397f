//! The chapter of `fuzz`.

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
    targets: Vec<Run>,
}

/// The last run of a target.
#[derive(Deserialize)]
struct Run {
    target: String,
    /// When it ended.
    date: String,
    executions: u64,
    seconds: f64,
    /// How many ran at a time.
    jobs: usize,
    coverage_edges: u64,
    corpus_inputs: u64,
    findings: Vec<String>,
}

/// Writes it: what was run, what it reached, what was found.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let Report { targets: runs } = typed(results)?;
    page.say(
        "Inputs that coverage leads to, in one process with what reads them, with all assertions and overflow checks. \
         `packets`: the core on the host and the program in the kernel agree in the verdict, in every byte and in every \
         table that they have written. `vrrp`: an advertisement is read, written and read again, and heard by a virtual \
         router. `sync`: a peer that has the key says anything to a session. `api`: requests to a daemon over maps in \
         memory, none of which is answered with 500. `config` and `state`: a file is refused with words, or equal when it \
         was written and read again. What is found is fixed, and becomes a test beside the code.",
    );
    let mut table = Table::new([
        "target",
        "inputs run",
        "wall clock, s",
        "at a time",
        "ended",
        "edges reached",
        "inputs of use",
        "found in this run",
    ]);
    for run in &runs {
        table.row([
            run.target.clone(),
            commas(run.executions),
            format!("{:.0}", run.seconds),
            run.jobs.to_string(),
            run.date.clone(),
            commas(run.coverage_edges),
            commas(run.corpus_inputs),
            run.findings.len().to_string(),
        ]);
    }
    table.write(&mut page.text);
    page.say(&format!(
        "*At a time*: how many targets ran side by side, on {} cores; each has a part of their time. A row is from \
         the last run of its target, and the command below from the last run of all: `cargo xtask fuzz TARGET \
         --seconds SECONDS` repeats a row, with other inputs, since what is tried is drawn by lot.",
        page.cores
    ));
    page.say(
        "That nothing is found shows the absence of nothing. Not reached are sockets and drivers around these parts, \
         and what takes two CPUs at one moment.",
    );
    Ok(())
}

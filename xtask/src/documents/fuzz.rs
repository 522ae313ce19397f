//! The chapter of `fuzz`.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Page;

/// Writes it: what was run, what it reached, what was found.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let runs = results["targets"].as_array().context("no targets")?;
    page.say(
        "Inputs that coverage leads to, in one process with what reads them, with all assertions and overflow checks. \
         `packets`: the core on the host and the program in the kernel agree in the verdict, in every byte and in every \
         table that they have written. `vrrp`: an advertisement is read, written and read again, and heard by a virtual \
         router. `sync`: a peer that has the key says anything to a session. `api`: requests to a daemon over maps in \
         memory, none of which is answered with 500. `config` and `state`: a file is refused with words, or equal when it \
         was written and read again. What is found is fixed, and becomes a test beside the code.",
    );
    Ok(write(runs, &mut page.text)?)
}

fn write(runs: &[Value], out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "\n| target | inputs run | seconds | ended | edges reached | inputs of use | found |"
    )?;
    writeln!(out, "|---|---:|---:|---|---:|---:|---:|")?;
    for run in runs {
        let number = |key: &str| run[key].as_f64().unwrap_or_default();
        let found = run["findings"].as_array().map_or(0, Vec::len);
        writeln!(
            out,
            "| {} | {} | {:.0} | {} | {} | {} | {found} |",
            run["target"].as_str().unwrap_or_default(),
            number("executions"),
            number("seconds"),
            run["date"].as_str().unwrap_or_default(),
            number("coverage_edges"),
            number("corpus_inputs"),
        )?;
    }
    writeln!(
        out,
        "\nThat nothing is found shows the absence of nothing. Not reached are sockets and drivers around these parts, \
         and what takes two CPUs at one moment."
    )
}

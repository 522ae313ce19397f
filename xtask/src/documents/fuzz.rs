//! What fuzzing has come to, for the document on reliability.

use std::fmt::Write as _;

use serde_json::Value;

/// Appends the table of `cargo xtask fuzz --json`.
pub fn render(results: &Value, out: &mut String) {
    out.push_str(
        "Inputs that coverage leads to, in one process with what reads them, with all assertions and overflow checks: \
         a packet goes through the core on the host and through the program in the kernel, which must agree in the \
         verdict, in every byte and in every table that they have written; an advertisement is read, written and read \
         again, and heard by a virtual router; a peer that has the key says anything to a session; requests come to \
         the API of a daemon over maps in memory, and none is answered with 500; a configuration or a state file is \
         refused with words, or equal when it was written and read again. What was found before is fixed, and is a \
         test beside the code.\n\n",
    );
    out.push_str("| target | inputs run | seconds | per second | edges reached | inputs kept | found |\n");
    out.push_str("|---|---:|---:|---:|---:|---:|---:|\n");
    for run in results["targets"].as_array().into_iter().flatten() {
        let number = |key: &str| run[key].as_f64().unwrap_or_default();
        let found = run["findings"].as_array().map_or(0, Vec::len);
        let _ = writeln!(
            out,
            "| {} | {} | {:.0} | {} | {} | {} | {found} |",
            run["target"].as_str().unwrap_or_default(),
            number("executions"),
            number("seconds"),
            number("executions_per_second"),
            number("coverage_edges"),
            number("corpus_inputs"),
        );
    }
    out.push_str(
        "\nThis shows the absence of nothing. Not reached are the sockets and the drivers around these parts, real \
         NICs among them, and what takes two CPUs at one moment.\n",
    );
}

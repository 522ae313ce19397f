//! The chapter of `soak`.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Page;

/// Writes it: what was done, what broke, what `lbd` held.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    ensure!(results["operations"].is_object(), "no operations");
    Ok(write(results, &mut page.text)?)
}

fn write(results: &Value, out: &mut String) -> std::fmt::Result {
    let number = |name: &str| results[name].as_u64().unwrap_or_default();
    let minutes = results["duration_seconds"].as_f64().unwrap_or_default() / 60.0;
    let operations = sum(&results["operations"]);
    let (allowed, not) = (sum(&results["broken_allowed"]), number("broken_not_allowed"));
    writeln!(
        out,
        "\n{operations} random operations in {minutes:.0} minutes on a pair of nodes with four web hosts and \
         four services (`dsr` and `ipip`, IPv4 and IPv6), at whole traffic: every answer was compared with \
         what it should be. `cargo xtask soak --minutes {minutes:.0} --seed {}` does the same operations \
         again; the kernel's scheduling is not replayed.\n",
        number("seed")
    )?;
    writeln!(out, "| | |\n|---|---:|")?;
    for (what, count) in [
        ("connections", number("connections")),
        ("requests answered and compared", number("requests")),
        ("long downloads that came whole", number("downloads")),
        ("MiB compared", number("bytes_verified") >> 20),
        ("takeovers", number("takeovers")),
        ("connections that broke, as they may", allowed),
        ("**connections that broke and may not**", not),
    ] {
        writeln!(out, "| {what} | {count} |")?;
    }
    writeln!(out, "\n| operation | times |\n|---|---:|")?;
    for (kind, count) in results["operations"].as_object().into_iter().flatten() {
        writeln!(out, "| `{kind}` | {count} |")?;
    }
    writeln!(out, "\n| why connections may break | times |\n|---|---:|")?;
    for (reason, count) in results["broken_allowed"].as_object().into_iter().flatten() {
        writeln!(out, "| {} | {count} |", words(reason))?;
    }
    writeln!(out, "\n| node | | first | median | last |\n|---|---|---:|---:|---:|")?;
    for node in results["nodes"].as_array().into_iter().flatten() {
        let name = node["name"].as_str().unwrap_or_default();
        for (figure, what, unit) in [
            ("rss_bytes", "memory, KiB", 1024),
            ("fds", "descriptors", 1),
            ("bpf_maps", "BPF maps", 1),
            ("bpf_programs", "BPF programs", 1),
        ] {
            let of = |name: &str| node[figure][name].as_u64().unwrap_or_default() / unit;
            writeln!(
                out,
                "| {name} | {what} | {} | {} | {} |",
                of("first"),
                of("median"),
                of("last")
            )?;
        }
    }
    let stall = results["longest_stall_ns"].as_u64().unwrap_or_default() / 1_000_000;
    writeln!(
        out,
        "\nA run fails when a connection broke that the model does not allow, when a byte or a backend was \
         wrong, when a node moved flows or took over without cause, and when memory, descriptors, maps or \
         programs of a process that nobody touched go on to grow. The machine once kept the run waiting \
         for {stall} ms.\n"
    )
}

fn sum(counts: &Value) -> u64 {
    counts.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}

/// A reason of the model, in words.
fn words(reason: &str) -> &str {
    match reason {
        "Killed" => "its nginx was killed or restarted",
        "Undetected" => "it was opened to a dead nginx before a check could know",
        "Moved" => "its backend was dead or cut off, and a node moved its flows",
        "Forced" => "its backend was taken away by `--force`",
        "Deadline" => "the deadline of a drain came",
        "Untold" => "it began in the moment in which the Active node died",
        "Parted" => "it began while the nodes heard nothing of each other and both were Active",
        "NoBackend" => "no backend was there",
        "Patience" => "its backend was cut off for longer than the client waits",
        "Raced" => "its SYN was sent again to a backend that had just come back, and answered late",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soak_is_told_with_what_broke() {
        let results = serde_json::json!({
            "seed": 7, "duration_seconds": 180.2, "operations": { "drain": 3, "add": 2 },
            "broken_allowed": { "Killed": 5 }, "broken_not_allowed": 1, "requests": 12,
            "nodes": [{ "name": "lb1", "rss_bytes": { "first": 2048, "median": 4096, "last": 5120 } }],
        });
        let mut page = Page::default();
        render(&results, &mut page).unwrap();
        let out = page.text;
        for line in [
            "5 random operations in 3 minutes",
            "--seed 7",
            "| `drain` | 3 |",
            "| its nginx was killed or restarted | 5 |",
            "| **connections that broke and may not** | 1 |",
            "| lb1 | memory, KiB | 2 | 4 | 5 |",
        ] {
            assert!(out.contains(line), "{line}: {out}");
        }
    }
}

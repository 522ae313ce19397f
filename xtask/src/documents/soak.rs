//! The chapter of `soak`.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    Page,
    table::{Table, commas},
};

/// Writes it: what was done, what broke, what `lbd` held.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    ensure!(results["operations"].is_object(), "no operations");
    let is_optimised = page.has("--release");
    write(results, is_optimised, &mut page.text)?;
    growth(results, page);
    Ok(())
}

fn write(results: &Value, is_optimised: bool, out: &mut String) -> std::fmt::Result {
    let number = |name: &str| results[name].as_u64().unwrap_or_default();
    let minutes = results["duration_seconds"].as_f64().unwrap_or_default() / 60.0;
    let operations = sum(&results["operations"]);
    let (allowed, not) = (sum(&results["broken_allowed"]), number("broken_not_allowed"));
    let (lbd, release) = match is_optimised {
        true => ("`lbd` was optimised, as it is used", " --release"),
        false => ("`lbd` was a debug build, not optimised", ""),
    };
    writeln!(
        out,
        "\n{operations} random operations in {minutes:.0} minutes on a pair of nodes with four web hosts and \
         four services (`dsr` and `ipip`, IPv4 and IPv6). All the while clients of each service made long \
         downloads, connections that asked now and then for up to a minute, and short ones, one after the other; \
         every answer was compared with what it should be. {lbd}. `cargo xtask soak --minutes {minutes:.0} \
         --seed {}{release}` does the same operations again, in the same order; the kernel's scheduling is not \
         replayed.\n",
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
    writeln!(
        out,
        "\nWhat `lbd` held, once a second, over all processes that a node had one after the other, as many \
         as are in brackets:"
    )?;
    writeln!(out, "\n| node | | first | median | last |\n|---|---|---:|---:|---:|")?;
    for node in results["nodes"].as_array().into_iter().flatten() {
        let name = node["name"].as_str().unwrap_or_default();
        let processes = node["processes"].as_u64().unwrap_or_default();
        let name = format!("{name} ({processes})");
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
    Ok(())
}

/// How what a process holds has grown while it was spared, by node and turn: a cell for each figure.
fn growth(results: &Value, page: &mut Page) {
    let mut rows: Vec<((&str, u64), [String; 4])> = Vec::new();
    for growth in results["growth"].as_array().into_iter().flatten() {
        let number = |name: &str| growth[name].as_u64().unwrap_or_default();
        let (place, unit) = match growth["what"].as_str() {
            Some("rss_bytes") => (0, 1024),
            Some("fds") => (1, 1),
            Some("bpf_maps") => (2, 1),
            Some("bpf_programs") => (3, 1),
            _ => continue,
        };
        let turn = (growth["node"].as_str().unwrap_or_default(), number("turn"));
        if rows.last().is_none_or(|(last, _)| *last != turn) {
            rows.push((turn, Default::default()));
        }
        if let Some((_, cells)) = rows.last_mut() {
            let [middle, last, bound] =
                ["middle", "last", "bound"].map(|name| commas(number(name) / unit));
            cells[place] = format!("{middle}, {last} (at most {bound})");
        }
    }
    if !rows.is_empty() {
        page.say(
            "In turns of ten minutes one node is spared all that ends its `lbd`. How its process grows in such a \
             turn is what is judged, if there are a minute's samples of it: the medians of the middle and of the \
             last third of these, and what the latter may be at most.",
        );
        let head = ["node, turn", "memory, KiB", "descriptors", "BPF maps", "BPF programs"];
        let mut table = Table::new(head);
        for ((node, turn), [memory, descriptors, maps, programs]) in rows {
            let turn = format!("{node}, {}", turn + 1);
            table.row([turn, memory, descriptors, maps, programs]);
        }
        table.write(&mut page.text);
    }
    let stall = results["longest_stall_ns"].as_u64().unwrap_or_default() / 1_000_000;
    page.say(&format!(
        "A run fails, and is not kept here, when an operation failed or a node's log had an alarm, when a \
         connection broke that the model does not allow, when a byte or a backend was wrong, when a node moved \
         flows or took over without cause, when such a process had grown beyond its bound, and when slots in \
         flux or pins stayed in the end. The machine once kept the run waiting for {stall} ms."
    ));
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
        "Parted" => {
            "both nodes were Active, and it began when one could not tell the other of it in time"
        }
        "NoBackend" => "no backend was there",
        "Patience" => "its backend was cut off for longer than the client waits",
        "Raced" => {
            "its SYN was sent again to a backend whose cable was just back, and both were answered"
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(command: &str) -> String {
        let course = serde_json::json!({ "first": 2048, "median": 4096, "last": 5120 });
        let growth = |what: &str, turn: u64, [middle, last, bound]: [u64; 3]| {
            serde_json::json!({
                "node": "lb1", "turn": turn, "what": what, "middle": middle, "last": last, "bound": bound,
            })
        };
        let results = serde_json::json!({
            "seed": 7, "duration_seconds": 180.2, "operations": { "drain": 3, "add": 2 },
            "broken_allowed": { "Killed": 5 }, "broken_not_allowed": 1, "requests": 12,
            "nodes": [{ "name": "lb1", "processes": 3, "rss_bytes": course }],
            "growth": [
                growth("rss_bytes", 0, [30 << 20, 31 << 20, 38 << 20]), growth("fds", 0, [50, 51, 54]),
                growth("rss_bytes", 1, [32 << 20, 32 << 20, 40 << 20]),
            ],
        });
        let mut page = Page { command: command.into(), ..Page::default() };
        render(&results, &mut page).unwrap();
        page.text
    }

    #[test]
    fn a_soak_is_told_with_what_broke() {
        let out = told("cargo xtask soak --minutes 3");
        for line in [
            "5 random operations in 3 minutes",
            "not optimised. `cargo xtask soak --minutes 3 --seed 7` does",
            "| `drain` | 3 |",
            "| its nginx was killed or restarted | 5 |",
            "| **connections that broke and may not** | 1 |",
            "| lb1 (3) | memory, KiB | 2 | 4 | 5 |",
        ] {
            assert!(out.contains(line), "{line}: {out}");
        }
        let out = told("cargo xtask soak --release");
        assert!(out.contains("as it is used. `cargo xtask soak --minutes 3 --seed 7 --release`"));
    }

    #[test]
    fn growth_is_told_by_node_and_turn() {
        let out = told("cargo xtask soak");
        for line in [
            "| lb1, 1 | 30,720, 31,744 (at most 38,912) | 50, 51 (at most 54) |  |  |",
            "| lb1, 2 | 32,768, 32,768 (at most 40,960) |  |  |  |",
        ] {
            assert!(out.contains(line), "{line}: {out}");
        }
    }
}

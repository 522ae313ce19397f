//! `lbctl flows`, over few flows and over as many as there is room for.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{balancer::Balancer, can_run, command};
use lb_common::abi::DEFAULT_PINS;

use super::testbed::{Testbed, WAY};

#[test]
fn flows_are_told_by_their_backend_their_client_and_what_holds_them() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let none = testbed.balancer.lbctl(&["flows"])?;
    ensure!(none.contains("no flow is in a table"), "{none}");
    let ids = [testbed.id(0)?, testbed.id(1)?];
    for port in 1..=150 {
        testbed.pin(0x6407, port, ids[0])?;
    }
    testbed.pin(0x6500, 9, ids[1])?;
    let lbctl = |args: &[&str]| testbed.balancer.lbctl(args);

    let all = lbctl(&["flows"])?;
    ensure!(all.lines().count() == 102, "a heading, 100 flows, and what is left out:\n{all}");
    ensure!(all.contains("51 more of 151: narrow them by"), "{all}");
    let (first, second) = (testbed.backend(0).to_string(), testbed.backend(1).to_string());
    let on = lbctl(&["flows", WAY.name(), "--backend", &second])?;
    ensure!(on.lines().count() == 2 && on.contains("198.51.101.0:9"), "{on}");
    let of = lbctl(&["flows", "--client", "198.51.101.0/24", "--kind", "pin"])?;
    ensure!(of.lines().count() == 2 && of.contains(&second) && of.contains("established"), "{of}");
    let no = lbctl(&["flows", "--kind", "quic"])?;
    ensure!(no.contains("no flow is in a table"), "{no}");
    let count = lbctl(&["flows", "--count"])?;
    let cells: Vec<Vec<&str>> =
        count.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(cells.contains(&vec![WAY.name(), &first, "150", "0", "0", "150", "0"]), "{count}");
    ensure!(cells.contains(&vec!["all", "151", "0", "0", "151", "0"]), "{count}");

    let lines = lbctl(&["-o", "json", "flows"])?;
    ensure!(lines.lines().count() == 151, "{} lines", lines.lines().count());
    let flow: serde_json::Value = serde_json::from_str(lines.lines().next().context("a line")?)?;
    ensure!(flow["service"] == WAY.name() && flow["slot"].is_u64(), "{flow}");
    let few = lbctl(&["-o", "json", "flows", "--limit", "2"])?;
    ensure!(few.lines().count() == 2, "{few}");

    for (args, code, expected) in [
        (&["flows", "dsr-v5"][..], 1, "no service dsr-v5; did you mean dsr-v4?"),
        (&["flows", "--backend", "203.0.113.1"], 1, "no service has a backend 203.0.113.1"),
        (&["flows", "--limit", "100000"], 2, "are too many for a table"),
    ] {
        let output = testbed.balancer.lbctl_output(args)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code) && text.contains(expected), "{args:?}: {text}");
    }
    Ok(())
}

/// How long the daemon's task takes for an answer, many times in a row.
fn answers(balancer: &Balancer, times: usize) -> Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let start = Instant::now();
        balancer.status()?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    Ok(took)
}

/// The memory that `lbd` uses, in kilobytes.
fn memory(balancer: &Balancer) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", balancer.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let digits = line.context("VmRSS")?.trim().trim_end_matches(" kB");
    digits.parse().context("a number")
}

#[test]
fn full_tables_are_read_in_bounded_memory_while_the_daemon_answers() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let id = testbed.id(0)?;
    let full = DEFAULT_PINS;
    for flow in 0..full {
        testbed.pin((flow / 60_000) as u16, (flow % 60_000) as u16, id)?;
    }
    let balancer = &testbed.balancer;
    let count = balancer.lbctl(&["flows", "--count"])?;
    ensure!(count.contains(&format!("  {full}  ")), "{full} are not in:\n{count}");
    let before = memory(balancer)?;
    let idle = answers(balancer, 200)?;
    let mut busy = Vec::new();
    let mut walks = Vec::new();
    let mut lbctl = balancer.lbctl_command();
    lbctl.args(["flows", "--count"]);
    for _ in 0..2 {
        let start = Instant::now();
        let mut walk = lbctl.stdout(std::process::Stdio::null()).spawn()?;
        while walk.try_wait()?.is_none() {
            busy.extend(answers(balancer, 1)?);
        }
        walks.push(start.elapsed());
    }
    busy.sort_unstable();
    let middle = |times: &[Duration]| times[times.len() / 2];
    let most = |times: &[Duration]| times[times.len() - 1];
    println!(
        "answers: {:?} and at most {:?}; during walks of {:?}: {:?} and at most {:?}, {} of them",
        middle(&idle),
        most(&idle),
        middle(&walks),
        middle(&busy),
        most(&busy),
        busy.len()
    );
    // If the daemon's own task walked, other requests would wait for that each time.
    ensure!(middle(&busy) < middle(&walks) / 4, "{:?} of {:?}", middle(&busy), middle(&walks));

    // All of them as lines, of which few are in memory.
    let mut lbctl = balancer.lbctl_command();
    let lines = command::run(lbctl.args(["-o", "json", "flows"]))?;
    // One that moves while it is read may be met twice.
    let count = lines.lines().count();
    ensure!(count >= full as usize && count < full as usize + 1_000, "{count} lines");
    let grown = memory(balancer)?.saturating_sub(before);
    println!("{} bytes of lines; lbd has grown by {grown} kB", lines.len());
    ensure!(grown < 32 * 1024, "lbd has grown by {grown} kB");
    Ok(())
}

//! Where the time of a request goes, by perf: which functions of the kernel take it, with a balancer and
//! without.
//!
//! The whole machine is sampled by the CPU clock while wrk runs, and the samples are laid over the busy time
//! of the same run: microseconds of CPU for each request.

use std::{
    collections::BTreeMap,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    command,
    reports::http::{Profile, System},
};

use super::{systems::Testbed, wrk};

/// The systems that are looked into: without a balancer, with another hop, and ours.
pub const SYSTEMS: [System; 4] = [System::Direct, System::Router, System::Dsr, System::Ipip];

/// Under which loads: connections, and whether they are kept.
pub const LOADS: [(u16, bool); 2] = [(64, true), (64, false)];

/// Samples of each CPU in a second; no divisor of the kernel's ticks.
const FREQUENCY: &str = "1997";

/// A function that takes less of a request than this is not listed, in microseconds.
const LEAST: f64 = 0.05;

/// The time of all programs outside of the kernel, as one.
const USER: &str = "user";

/// The functions below the least share, as one.
const OTHER: &str = "other";

/// Runs wrk under perf.
///
/// # Errors
///
/// If one of them fails, or perf has seen next to nothing.
pub fn take(
    testbed: &Testbed,
    connections: u16,
    keep_alive: bool,
    time: Duration,
) -> Result<Profile> {
    let data = testbed.lab.folder().join("perf.data");
    let recorder = record(&data, time)?;
    let run = wrk::run(testbed, connections, keep_alive, time);
    let output = recorder.wait_with_output().context("perf record")?;
    let run = run?;
    ensure!(
        output.status.success(),
        "perf record: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let perf = command::find("perf").context("perf is not installed")?;
    let mut script = std::process::Command::new(perf);
    script.args(["script", "-F", "ip,sym", "-i"]).arg(&data);
    let counts = count(&command::run(&mut script)?);
    let samples: u64 = counts.values().sum();
    ensure!(samples > 1_000, "perf took {samples} samples of a busy machine");
    let each = run.machine_cpu_us_per_request / samples as f64;
    let mut functions = BTreeMap::<String, f64>::new();
    for (name, count) in counts {
        let time = count as f64 * each;
        let name = if time < LEAST { OTHER.to_owned() } else { name };
        *functions.entry(name).or_default() += time;
    }
    Ok(Profile {
        system: testbed.system,
        connections,
        keep_alive,
        samples,
        machine_cpu_us_per_request: run.machine_cpu_us_per_request,
        functions,
    })
}

/// Starts perf for the middle of so long a run.
fn record(data: &std::path::Path, time: Duration) -> Result<Child> {
    let perf = command::find("perf").context("perf is not installed")?;
    let seconds = time.mul_f64(0.8).as_secs_f64().to_string();
    let mut command = std::process::Command::new(perf);
    command.args(["record", "-q", "-a", "-e", "cpu-clock", "-F", FREQUENCY, "-o"]).arg(data);
    command.args(["--", "sleep", &seconds]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().context("perf record")?;
    // wrk begins while perf makes ready.
    thread::sleep(Duration::from_millis(50));
    Ok(child)
}

/// Samples by function of the kernel; all others are one.
fn count(samples: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in samples.lines() {
        let Some((address, symbol)) = line.trim().split_once(' ') else { continue };
        let Ok(address) = u64::from_str_radix(address, 16) else { continue };
        // The upper half of addresses is the kernel's.
        let is_kernel = address >> 63 == 1;
        let symbol = symbol.trim();
        if is_kernel && is_idle(symbol) {
            continue;
        }
        let name = if is_kernel { plain(symbol) } else { USER };
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

/// Whether it is where the kernel waits.
fn is_idle(symbol: &str) -> bool {
    symbol.contains("safe_halt") || symbol.contains("idle") || symbol.contains("mwait")
}

/// A function's name without the additions of compilers and loaders: `.isra.0`, `.constprop.0`, a program's tag.
fn plain(symbol: &str) -> &str {
    let symbol = symbol.split('.').next().unwrap_or(symbol);
    match symbol.strip_prefix("bpf_prog_").and_then(|tagged| tagged.split_once('_')) {
        Some((tag, name)) if tag.len() == 16 => name,
        _ => symbol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_counted_by_function_without_idle_ones() {
        let counts = count(
            " ffffffff821eb0e7 skb_pp_cow_data.isra.0\n\
             ffffffff821eb0e8 skb_pp_cow_data\n\
             ffffffffc0001234 bpf_prog_0123456789abcdef_balance\n\
             ffffffff82200000 pv_native_safe_halt\n\
             55e0eb9acc32 [unknown]\n\
             7f50a20a8b75 __memmove_avx512_unaligned_erms\n\n",
        );
        let counts: Vec<_> = counts.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert_eq!(counts, [("balance", 1), ("skb_pp_cow_data", 2), ("user", 2)]);
    }
}

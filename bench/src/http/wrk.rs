//! A run of wrk: requests for a small page, and how long they took.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{command, reports::http::Run};
use serde::Deserialize;

use super::{busy, systems::Testbed};

/// Threads of wrk. Without a balancer each sends to one host.
const THREADS: u16 = 4;

/// wrk prints percentiles as text only. This script prints a line of JSON, and gives each thread its target.
const SCRIPT: &str = r#"
local targets = { TARGETS }
local next_target = 0
function setup(thread)
  local target = targets[next_target % #targets + 1]
  next_target = next_target + 1
  thread.addr = wrk.lookup(target, "80")[1]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"duration_us":%d,"errors":%d,"p50_us":%d,"p99_us":%d,"p999_us":%d}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// The line of JSON that the script prints.
#[derive(Debug, Deserialize)]
struct WrkReport {
    requests: u64,
    duration_us: u64,
    errors: u64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
}

/// Runs wrk for so long.
///
/// # Errors
///
/// If wrk fails, or more than one request in a thousand does.
pub fn run(testbed: &Testbed, connections: u16, keep_alive: bool, time: Duration) -> Result<Run> {
    let targets: Vec<_> = testbed.targets().iter().map(|target| format!("\"{target}\"")).collect();
    let script = testbed.lab.folder().join("wrk.lua");
    fs::write(&script, SCRIPT.replace("TARGETS", &targets.join(", "))).context("write wrk.lua")?;
    let wrk = command::find("wrk").context("wrk is not installed")?;
    let mut wrk = testbed.lab.client.namespace.command(wrk);
    // wrk takes whole seconds; a shorter run is one that is thrown away.
    let seconds = time.as_secs().max(1);
    wrk.arg(format!("-t{THREADS}")).arg(format!("-c{connections}"));
    wrk.arg(format!("-d{seconds}s")).arg("-s").arg(&script);
    if !keep_alive {
        wrk.args(["-H", "Connection: close"]);
    }
    wrk.arg(format!("http://{}/", testbed.targets()[0]));
    let before = busy()?;
    let output = command::run(&mut wrk)?;
    let cpu = busy()? - before;
    let report = read(&output)?;
    ensure!(
        report.requests > 0 && report.errors * 1_000 <= report.requests,
        "{} of {} requests failed:\n{output}",
        report.errors,
        report.requests
    );
    Ok(Run {
        requests_per_second: report.requests as f64 / (report.duration_us as f64 / 1e6),
        errors: report.errors,
        p50_us: report.p50_us,
        p99_us: report.p99_us,
        p999_us: report.p999_us,
        machine_cpu_us_per_request: cpu.as_secs_f64() * 1e6 / report.requests as f64,
    })
}

fn read(output: &str) -> Result<WrkReport> {
    let line = output.lines().find_map(|line| line.strip_prefix("RESULT "));
    let line = line.with_context(|| format!("no result in the output of wrk:\n{output}"))?;
    serde_json::from_str(line).with_context(|| format!("wrk's result: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_found_in_what_wrk_says() -> Result<()> {
        let line =
            r#"RESULT {"requests":9,"duration_us":1,"errors":0,"p50_us":2,"p99_us":3,"p999_us":4}"#;
        let report = read(&format!("Running 3s test\n  4 threads\n\n{line}\n"))?;
        assert_eq!((report.requests, report.p50_us, report.p999_us), (9, 2, 4));
        assert!(read("unable to connect").is_err());
        Ok(())
    }
}

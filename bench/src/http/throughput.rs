//! A run of iperf3: one connection, as many bytes as go through.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kit::command;
use serde_json::Value;

use super::systems::{IPERF, Testbed};

/// Bits a second that came to the server.
///
/// # Errors
///
/// If iperf3 fails.
pub fn run(testbed: &Testbed, time: Duration) -> Result<f64> {
    let iperf = command::find("iperf3").context("iperf3 is not installed")?;
    let mut client = testbed.lab.client.namespace.command(iperf);
    let (seconds, port) = (time.as_secs().max(1).to_string(), IPERF.to_string());
    client.args(["-J", "-t", &seconds, "-p", &port, "-c", &testbed.targets()[0]]);
    received(&command::run(&mut client)?)
}

fn received(report: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(report).context("the output of iperf3")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    bits.with_context(|| format!("iperf3: {}", report["error"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_counts_and_not_what_was_sent() -> Result<()> {
        let report =
            r#"{"end":{"sum_sent":{"bits_per_second":9},"sum_received":{"bits_per_second":8.5}}}"#;
        assert!((received(report)? - 8.5).abs() < 1e-9);
        let err = received(r#"{"error":"unable to connect"}"#).expect_err("no figure").to_string();
        assert!(err.contains("unable to connect"), "{err}");
        Ok(())
    }
}

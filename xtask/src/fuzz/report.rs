//! The results of a run of the engine, read from its output.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The results of all runs.
#[derive(Serialize, Deserialize)]
pub struct Report {
    engine: String,
    /// The last run of each target.
    pub targets: Vec<Run>,
}

/// The results of one target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    target: String,
    /// When it ended: RFC 3339, in UTC.
    date: String,
    /// Inputs that were run.
    pub executions: u64,
    seconds: f64,
    executions_per_second: u64,
    /// How many ran at a time.
    jobs: usize,
    /// Inputs that reach something that no other one does, and their bytes.
    corpus_inputs: u64,
    corpus_bytes: u64,
    /// Edges between blocks of code that were reached.
    coverage_edges: u64,
    /// The same with counts, and with comparisons.
    coverage_features: u64,
    /// Files with inputs that broke something.
    pub findings: Vec<String>,
}

impl Run {
    /// Reads the engine's output.
    pub fn read(target: &str, log: &str, time: Duration) -> Self {
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let seconds = (time.as_secs_f64() * 10.0).round() / 10.0;
        let mut run = Self { target: target.to_owned(), date, seconds, ..Self::default() };
        for line in log.lines() {
            if let Some(file) = line.split("Test unit written to ").nth(1) {
                if file.contains("-slow-unit-") {
                    continue;
                }
                run.findings.push(file.trim().trim_start_matches("./").to_owned());
            } else if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
                run.executions = count.trim().parse().unwrap_or_default();
            } else if let Some(status) = line.strip_prefix('#') {
                run.status(status);
            }
        }
        run.executions_per_second =
            (run.executions as f64 / time.as_secs_f64().max(0.001)).round() as u64;
        run
    }

    /// `2097 NEW    cov: 811 ft: 2201 corp: 96/4096b lim: 63 exec/s: 699 rss: 90Mb L: 9/63 MS: 1 ...`
    fn status(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        let mut pairs = words.windows(2);
        if let Some(count) = words.first().and_then(|count| count.parse().ok()) {
            self.executions = self.executions.max(count);
        }
        let mut value = |name: &str| pairs.find(|pair| pair[0] == name).map(|pair| pair[1]);
        if let Some(edges) = value("cov:") {
            self.coverage_edges = edges.parse().unwrap_or_default();
        }
        if let Some(features) = value("ft:") {
            self.coverage_features = features.parse().unwrap_or_default();
        }
        if let Some((inputs, bytes)) = value("corp:").and_then(|corpus| corpus.split_once('/')) {
            self.corpus_inputs = inputs.parse().unwrap_or_default();
            self.corpus_bytes = bytes_of(bytes);
        }
    }

    /// As one of so many at a time.
    pub fn beside(self, jobs: usize) -> Self {
        Self { jobs, ..self }
    }

    /// In one line.
    pub fn line(&self) -> String {
        let Self { target, executions, seconds, coverage_edges, findings, .. } = self;
        let found = match findings.len() {
            0 => "nothing found".to_owned(),
            count => format!("{count} FOUND"),
        };
        format!(
            "{target}: {executions} executions in {seconds:.0} s, {coverage_edges} edges, {found}"
        )
    }

    /// The failure, as the engine or the panic printed it.
    pub fn failure<'t>(&self, log: &'t str) -> &'t str {
        let begins = ["panicked at", "ERROR: libFuzzer", "ALARM: working"];
        let begin = begins.iter().filter_map(|words| log.find(words)).min().unwrap_or(0);
        let begin = log[..begin].rfind('\n').map_or(0, |at| at + 1);
        &log[begin..]
    }
}

/// `4096b`, `12Kb`, `3Mb`.
fn bytes_of(text: &str) -> u64 {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "Kb" => 1 << 10,
        "Mb" => 1 << 20,
        _ => 1,
    };
    digits.parse::<u64>().unwrap_or_default() * unit
}

impl Report {
    /// Of these runs.
    pub fn new(targets: Vec<Run>) -> Self {
        Self { engine: "libFuzzer".into(), targets }
    }

    /// With the kept results of targets that did not run now.
    pub fn beside(&self, kept: Option<Self>) -> Self {
        let is_new = |run: &Run| self.targets.iter().any(|new| run.target == new.target);
        let kept = kept.into_iter().flat_map(|kept| kept.targets).filter(|run| !is_new(run));
        Self::new(self.targets.iter().cloned().chain(kept).collect())
    }

    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:<9} {:>12} {:>8} {:>8} {:>8} {:>9} {:>8} {:>9}",
            "target", "executions", "seconds", "per s", "edges", "features", "inputs", "findings"
        );
        for run in &self.targets {
            let _ = writeln!(
                out,
                "{:<9} {:>12} {:>8.0} {:>8} {:>8} {:>9} {:>8} {:>9}",
                run.target,
                run.executions,
                run.seconds,
                run.executions_per_second,
                run.coverage_edges,
                run.coverage_features,
                run.corpus_inputs,
                run.findings.len(),
            );
        }
        out
    }

    /// # Errors
    ///
    /// Something was found, or a target ran nothing at all.
    pub fn verdict(&self) -> Result<()> {
        for run in &self.targets {
            ensure!(run.findings.is_empty(), "{} breaks; see above", run.target);
            ensure!(run.executions > 0, "{} ran no input at all", run.target);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "INFO: Seed: 1
#2\tINITED cov: 700 ft: 1900 corp: 88/3990b exec/s: 0 rss: 80Mb
#2097\tNEW    cov: 811 ft: 2201 corp: 96/12Kb lim: 63 exec/s: 699 rss: 90Mb L: 9/63 MS: 1 ChangeBit-
thread '<unnamed>' panicked at fuzz/src/state.rs:9:1:
it differs
==7== ERROR: libFuzzer: deadly signal
artifact_prefix='fuzz/findings/state-'; Test unit written to fuzz/findings/state-slow-unit-2c
artifact_prefix='fuzz/findings/state-'; Test unit written to fuzz/findings/state-crash-0a1b
stat::number_of_executed_units: 2100
";

    #[test]
    fn figures_and_findings_are_read_from_what_the_engine_says() {
        let run = Run::read("state", LOG, Duration::from_secs(3));
        assert_eq!((run.executions, run.executions_per_second), (2100, 700));
        assert_eq!((run.coverage_edges, run.coverage_features), (811, 2201));
        assert_eq!((run.corpus_inputs, run.corpus_bytes), (96, 12 << 10));
        assert_eq!(run.findings, ["fuzz/findings/state-crash-0a1b"]);
        assert!(
            run.failure(LOG).starts_with("thread '<unnamed>' panicked"),
            "{}",
            run.failure(LOG)
        );
        let report = Report::new(vec![run]);
        let error = report.verdict().expect_err("something was found").to_string();
        assert!(error.contains("state breaks"), "{error}");
        assert!(report.table().contains("2201"));
    }

    #[test]
    fn a_run_of_one_target_leaves_what_is_kept_of_others() {
        let run = |target| Run::read(target, LOG, Duration::from_secs(3));
        let kept = Report::new(vec![run("api"), run("state")]);
        let mut new = run("state");
        new.executions = 7;
        let all = Report::new(vec![new]).beside(Some(kept)).targets;
        let executions: Vec<_> =
            all.iter().map(|run| (run.target.as_str(), run.executions)).collect();
        assert_eq!(executions, [("state", 7), ("api", 2100)]);
    }

    #[test]
    fn a_target_that_ran_nothing_is_a_failure() {
        let run = Run::read("api", "INFO: Seed: 1\n", Duration::from_secs(60));
        let error = Report::new(vec![run]).verdict().expect_err("nothing ran").to_string();
        assert!(error.contains("ran no input"), "{error}");
    }
}

//! What a run of the engine has come to, read from what it says.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// What all runs have come to.
pub(super) struct Report {
    pub runs: Vec<Run>,
}

/// What the run of one target has come to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Run {
    target: &'static str,
    /// When it ended: RFC 3339, in UTC.
    date: String,
    executions: u64,
    seconds: f64,
    /// How many ran at a time.
    jobs: usize,
    /// Inputs that reach something that no other one does, and their bytes.
    corpus_inputs: u64,
    corpus_bytes: u64,
    /// Edges between blocks of code that were reached.
    coverage_edges: u64,
    /// The same with how often, and with what was compared.
    coverage_features: u64,
    /// Files with inputs that broke something.
    pub findings: Vec<String>,
}

impl Run {
    /// Reads what the engine has said.
    pub fn read(target: &'static str, log: &str, time: Duration) -> Self {
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut run = Self { target, date, seconds: time.as_secs_f64(), ..Self::default() };
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

    fn per_second(&self) -> u64 {
        (self.executions as f64 / self.seconds.max(0.001)).round() as u64
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

    /// What broke, as the engine or the panic has told it.
    pub fn told<'t>(&self, log: &'t str) -> &'t str {
        let begins = ["panicked at", "ERROR: libFuzzer", "ALARM: working"];
        let begin = begins.iter().filter_map(|words| log.find(words)).min().unwrap_or(0);
        let begin = log[..begin].rfind('\n').map_or(0, |at| at + 1);
        &log[begin..]
    }

    fn json(&self) -> Value {
        json!({
            "target": self.target,
            "date": self.date,
            "executions": self.executions,
            "jobs": self.jobs,
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "executions_per_second": self.per_second(),
            "corpus_inputs": self.corpus_inputs,
            "corpus_bytes": self.corpus_bytes,
            "coverage_edges": self.coverage_edges,
            "coverage_features": self.coverage_features,
            "findings": self.findings,
        })
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
    pub fn json(&self) -> Value {
        json!({
            "engine": "libFuzzer",
            "targets": self.runs.iter().map(Run::json).collect::<Vec<_>>(),
        })
    }

    /// The same, with the kept results of targets that did not run now.
    pub fn beside(&self, kept: Option<&Value>) -> Value {
        let mut all = self.json();
        let is_new = |run: &Value| self.runs.iter().any(|new| run["target"] == new.target);
        let kept = kept.and_then(|kept| kept["targets"].as_array()).into_iter().flatten();
        if let Some(targets) = all["targets"].as_array_mut() {
            targets.extend(kept.filter(|run| !is_new(run)).cloned());
        }
        all
    }

    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:<9} {:>12} {:>8} {:>8} {:>8} {:>9} {:>8} {:>9}",
            "target", "executions", "seconds", "per s", "edges", "features", "inputs", "findings"
        );
        for run in &self.runs {
            let _ = writeln!(
                out,
                "{:<9} {:>12} {:>8.0} {:>8} {:>8} {:>9} {:>8} {:>9}",
                run.target,
                run.executions,
                run.seconds,
                run.per_second(),
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
        for run in &self.runs {
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
        assert_eq!((run.executions, run.per_second()), (2100, 700));
        assert_eq!((run.coverage_edges, run.coverage_features), (811, 2201));
        assert_eq!((run.corpus_inputs, run.corpus_bytes), (96, 12 << 10));
        assert_eq!(run.findings, ["fuzz/findings/state-crash-0a1b"]);
        assert!(run.told(LOG).starts_with("thread '<unnamed>' panicked"), "{}", run.told(LOG));
        let report = Report { runs: vec![run] };
        let error = report.verdict().expect_err("something was found").to_string();
        assert!(error.contains("state breaks"), "{error}");
        assert_eq!(report.json()["targets"][0]["coverage_edges"], 811);
        assert!(report.table().contains("2201"));
    }

    #[test]
    fn a_run_of_one_target_leaves_what_is_kept_of_others() {
        let run = |target| Run::read(target, LOG, Duration::from_secs(3));
        let kept = Report { runs: vec![run("api"), run("state")] }.json();
        let mut new = run("state");
        new.executions = 7;
        let all = Report { runs: vec![new] }.beside(Some(&kept));
        let targets = all["targets"].as_array().expect("a list");
        let told: Vec<_> = targets.iter().map(|run| (&run["target"], &run["executions"])).collect();
        assert_eq!(told, [(&json!("state"), &json!(7)), (&json!("api"), &json!(2100))]);
    }

    #[test]
    fn a_target_that_ran_nothing_is_a_failure() {
        let run = Run::read("api", "INFO: Seed: 1\n", Duration::from_secs(60));
        let error = Report { runs: vec![run] }.verdict().expect_err("nothing ran").to_string();
        assert!(error.contains("ran no input"), "{error}");
    }
}

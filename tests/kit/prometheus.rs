//! A real Prometheus on a host of the lab, and `promtool`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    command,
    lab::{Host, Lab},
    namespace::Namespace,
    process::Process,
    wait,
};

/// Where it listens, on its host.
const LISTEN: &str = "127.0.0.1:9090";

/// A running Prometheus; killed when dropped.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    namespace: Namespace,
}

impl Prometheus {
    /// Starts it on a host with a job `lb` of these targets, scraped each second, and with a file of
    /// rules, and waits until it answers.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not come to that.
    pub fn start(lab: &Lab, host: &Host, targets: &[String], rules: &Path) -> Result<Self> {
        let program = command::find("prometheus").context("Prometheus is not installed")?;
        let folder = lab.folder_of(host)?.join("prometheus");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let config = folder.join("prometheus.yml");
        let rules = rules.canonicalize().with_context(|| rules.display().to_string())?;
        // JSON is YAML.
        let text = serde_json::json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [rules],
            "scrape_configs": [{ "job_name": "lb", "static_configs": [{ "targets": targets }] }],
        });
        fs::write(&config, text.to_string()).context("write prometheus.yml")?;
        let args = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            format!("--web.listen-address={LISTEN}"),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let log = folder.join("prometheus.log");
        let process = Process::start(&host.namespace, &program, &args, &log, lab.orphan())?;
        let namespace = Namespace::existing(host.namespace.name());
        let mut prometheus = Self { process, namespace };
        wait::until(Duration::from_secs(30), "Prometheus is ready", || {
            prometheus.process.check()?;
            fetch(&prometheus.namespace, &format!("http://{LISTEN}/-/ready"), &[])
        })
        .with_context(|| format!("Prometheus wrote:\n{}", prometheus.process.log()))?;
        Ok(prometheus)
    }

    /// The answer of its API: the `data`.
    ///
    /// # Errors
    ///
    /// If it refuses.
    pub fn api(&self, path: &str, parameters: &[&str]) -> Result<Value> {
        let mut args = vec!["--get"];
        args.extend(parameters.iter().flat_map(|parameter| ["--data-urlencode", parameter]));
        let url = format!("http://{LISTEN}/api/v1/{path}");
        let answer = fetch(&self.namespace, &url, &args)?;
        let mut answer: Value = serde_json::from_str(&answer).context(answer)?;
        ensure!(answer["status"] == "success", "{answer}");
        Ok(answer["data"].take())
    }

    /// The results of a query at this moment: labels and values.
    ///
    /// # Errors
    ///
    /// If it is no query.
    pub fn query(&self, query: &str) -> Result<Vec<Value>> {
        let found = self.api("query", &[&format!("query={query}")])?;
        let found = found["result"].as_array().with_context(|| format!("{query}: {found}"))?;
        Ok(found.clone())
    }
}

/// The body that curl gets from a host.
///
/// # Errors
///
/// If that fails, or the answer is an error, whose text it has.
pub fn fetch(from: &Namespace, url: &str, args: &[&str]) -> Result<String> {
    let mut curl = from.command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20", "--fail-with-body"]);
    let output = command::output(curl.args(args).arg(url), "")?;
    let body = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{url} {args:?}: {text}{body}");
    Ok(body)
}

/// Runs `promtool` in a folder; returns its output, if it succeeds.
///
/// # Errors
///
/// If it is not.
pub fn promtool(folder: &Path, args: &[&str], input: &str) -> Result<String> {
    let program: PathBuf = command::find("promtool").context("promtool is not installed")?;
    let mut promtool = Command::new(program);
    let output = command::output(promtool.current_dir(folder).args(args), input)?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(output.status.success(), "promtool {args:?}: {text}");
    Ok(text)
}

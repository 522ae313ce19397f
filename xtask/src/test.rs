//! `cargo xtask test`: every test, or one suite.
//!
//! Cargo builds the tests; what needs root is then run as root, so that nothing in the target
//! folder comes to belong to root.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use kit::signals;

use crate::{
    cargo::{self, cargo},
    kernels, root, setup,
};

#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Which tests
    #[arg(value_enum, default_value_t)]
    suite: Suite,
    /// Only tests whose names contain one of these; of the suite `kernels`, the kernels: 6.12, newest,
    /// or the folder of an unpacked kernel package
    filters: Vec<String>,
    /// Of the suite `kernels`: keep what became of it in docs/results, and write docs/RELIABILITY.md anew
    #[arg(long)]
    save: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Beside the code: unit, property, table
    Unit,
    /// The loaded BPF object
    Datapath,
    /// Configuration in, maps out
    Control,
    /// Real hosts in network namespaces
    Network,
    /// The loaded BPF object and a short network test on other kernels, in virtual machines
    Kernels,
    /// All of them but those on other kernels
    #[default]
    All,
}

/// A built test program.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    package: String,
    name: String,
    /// Its file.
    pub executable: PathBuf,
    /// The folder that it is to run in.
    pub folder: PathBuf,
    is_integration: bool,
}

/// The package of the integration tests.
const INTEGRATION: &str = "lb-tests";

/// Builds and runs the suite. In CI, a test that can't run has failed.
///
/// # Errors
///
/// If a test fails.
pub fn run(arguments: &Arguments, in_ci: bool) -> Result<()> {
    setup::tools()?;
    if arguments.suite == Suite::Kernels {
        return kernels::run(&arguments.filters, arguments.save);
    }
    ensure!(!arguments.save, "--save is for `cargo xtask test kernels`");
    let programs = build(arguments.suite)?;
    ensure!(!programs.is_empty(), "no test program in this suite");
    if programs.iter().any(|program| program.suite() == Suite::Network) {
        setup::all_tests()?;
    }
    if programs.iter().any(Program::needs_binaries) {
        cargo::build(false)?;
    }
    let mut failed = Vec::new();
    let mut times = Vec::new();
    for program in &programs {
        ensure!(!signals::caught(), "interrupted");
        let start = Instant::now();
        println!("\n== {}", program.title());
        if let Err(err) = program.run(&arguments.filters, in_ci) {
            eprintln!("xtask: {err:#}");
            failed.push(program.title());
        }
        times.push((program.title(), start.elapsed()));
    }
    if matches!(arguments.suite, Suite::Unit | Suite::All) && arguments.filters.is_empty() {
        let start = Instant::now();
        println!("\n== examples in the documentation");
        if let Err(err) = cargo::call(&["test", "--quiet", "--doc"]) {
            eprintln!("xtask: {err:#}");
            failed.push("examples in the documentation".into());
        }
        times.push(("examples in the documentation".into(), start.elapsed()));
    }
    println!();
    for (title, time) in times {
        let result = if failed.contains(&title) { "FAILED" } else { "ok" };
        println!("{result:<6} {:>6.1} s  {title}", seconds(time));
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// Builds the suite's test programs.
fn build(suite: Suite) -> Result<Vec<Program>> {
    let which: &[&str] = match suite {
        Suite::All => &[],
        Suite::Unit => &[
            "--workspace",
            "--exclude",
            "lb-ebpf",
            "--exclude",
            "lb-fuzz",
            "--exclude",
            INTEGRATION,
        ],
        _ => &["--package", INTEGRATION],
    };
    let mut programs = build_with(which)?;
    programs.retain(|program| suite == Suite::All || program.suite() == suite);
    // What is quick and basic fails first.
    programs.sort_by_key(|program| (program.suite() as u8, program.title()));
    Ok(programs)
}

/// Builds these of the integration tests' programs.
///
/// # Errors
///
/// If they don't build.
pub fn build_some(names: &[&str]) -> Result<Vec<Program>> {
    let named = names.iter().flat_map(|name| ["--test", name]);
    build_with(&["--package", INTEGRATION].into_iter().chain(named).collect::<Vec<_>>())
}

fn build_with(which: &[&str]) -> Result<Vec<Program>> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    command.args(cargo::quiet()).args(which);
    command.stderr(Stdio::inherit());
    let output = command.output().context("cargo test --no-run")?;
    ensure!(output.status.success(), "the tests don't build");
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// Reads cargo's messages.
fn parse(messages: &str) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("message of cargo")?;
        let Some(executable) = message["executable"].as_str() else { continue };
        if message["profile"]["test"] != true {
            continue;
        }
        let manifest = message["manifest_path"].as_str().context("a message without manifest")?;
        let folder = PathBuf::from(manifest).parent().context("a manifest's folder")?.to_owned();
        let target = &message["target"];
        let package = message["package_id"].as_str().context("a message without package")?;
        programs.push(Program {
            package: package_name(package).to_owned(),
            name: target["name"].as_str().context("a message without target")?.to_owned(),
            executable: executable.into(),
            folder,
            is_integration: target["kind"][0] == "test",
        });
    }
    Ok(programs)
}

/// `path+file:///lb/tests#lb-tests@0.1.0`, or `path+file:///lb/xtask#0.1.0` where the folder has
/// the package's name.
fn package_name(id: &str) -> &str {
    let (path, rest) = id.rsplit_once('#').unwrap_or(("", id));
    rest.rsplit_once('@').map_or_else(|| path.rsplit('/').next().unwrap_or(id), |(name, _)| name)
}

impl Program {
    /// Whether it is the integration tests' program of this name.
    pub fn is_called(&self, name: &str) -> bool {
        self.package == INTEGRATION && self.name == name
    }

    fn title(&self) -> String {
        let kind = if self.is_integration { "tests of" } else { "unit tests of" };
        format!("{kind} {} {}", self.package, self.name)
    }

    fn suite(&self) -> Suite {
        match self.name.as_str() {
            _ if self.package != INTEGRATION => Suite::Unit,
            "datapath" => Suite::Datapath,
            "control" => Suite::Control,
            _ => Suite::Network,
        }
    }

    /// The daemon's crate has tests of netlink, in namespaces of their own.
    fn needs_root(&self) -> bool {
        matches!(self.suite(), Suite::Datapath | Suite::Network) || self.package == "lb-userspace"
    }

    fn needs_binaries(&self) -> bool {
        self.package == INTEGRATION
    }

    /// Whether its tests wait most of the time, for a browser, a terminal, a scrape, or nodes that notice
    /// each other's silence, and two at once do not spoil what they measure.
    fn waits_mostly(&self) -> bool {
        const WAIT: [&str; 7] =
            ["dashboard", "doors", "explain", "metrics", "pair", "top", "vrrp_interop"];
        self.package == INTEGRATION && WAIT.contains(&self.name.as_str())
    }

    fn run(&self, filters: &[String], in_ci: bool) -> Result<()> {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command.env("LB_BIN_DIR", cargo::folder(false)?);
        if in_ci {
            command.env("CI", "true");
        }
        command.args(filters);
        if self.waits_mostly() {
            command.arg("--test-threads=2");
        } else if self.suite() == Suite::Network {
            // Each has a lab and load of its own: side by side they would measure each other.
            command.arg("--test-threads=1");
        }
        let mut command =
            if self.needs_root() { root::as_root(command, &self.title())? } else { command };
        let status = command.status().with_context(|| self.executable.display().to_string())?;
        ensure!(status.success(), "{}: {status}", self.title());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_read_from_cargos_messages() -> Result<()> {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","package_id":"path+file:///lb/tests#lb-tests@0.1.0","#,
            r#""manifest_path":"/lb/tests/Cargo.toml","target":{"kind":["test"],"name":"network"},"#,
            r#""profile":{"test":true},"executable":"/lb/target/debug/deps/network-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///lb/xtask#0.1.0","#,
            r#""manifest_path":"/lb/xtask/Cargo.toml","target":{"kind":["bin"],"name":"xtask"},"#,
            r#""profile":{"test":false},"executable":"/lb/target/debug/xtask"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///lb/xtask#0.1.0","#,
            r#""manifest_path":"/lb/xtask/Cargo.toml","target":{"kind":["lib"],"name":"x"},"#,
            r#""profile":{"test":true},"executable":null}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let [program] = &parse(messages)?[..] else { panic!("one program is expected") };
        assert_eq!(program.package, "lb-tests");
        assert_eq!(program.folder, PathBuf::from("/lb/tests"));
        assert_eq!(program.suite(), Suite::Network);
        assert!(program.needs_root() && program.is_integration);
        Ok(())
    }

    #[test]
    fn package_ids_name_the_package() {
        assert_eq!(package_name("path+file:///lb/tests#lb-tests@0.1.0"), "lb-tests");
        assert_eq!(package_name("path+file:///lb/xtask#0.1.0"), "xtask");
    }
}

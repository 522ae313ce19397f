//! `cargo xtask test`: every test, or one suite.
//!
//! Cargo builds the tests; what needs root is then run as root, so that nothing in the target
//! folder comes to belong to root.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
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
    let mut repeated = Vec::new();
    let mut times = Vec::new();
    for program in &programs {
        ensure!(!signals::caught(), "interrupted");
        let start = Instant::now();
        println!("\n== {}", program.title());
        match program.run(&arguments.filters, in_ci) {
            Ok(names) => repeated.extend(names),
            Err(err) => {
                eprintln!("xtask: {err:#}");
                failed.push(program.title());
            }
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
    for name in &repeated {
        println!("UNSTABLE: {name} failed, and passed when it ran again by itself");
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
    // What is for other kernels can panic one: `kernels::run` alone has it, in virtual machines.
    programs.retain(|program| program.suite() != Suite::Kernels);
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
            "guest" => Suite::Kernels,
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

    /// Runs it, and in CI, whose machines others use as well, tests that fail once more by themselves. Gives
    /// the names of those that passed only then.
    ///
    /// # Errors
    ///
    /// If a test fails, in CI twice; if many do, once is enough.
    fn run(&self, filters: &[String], in_ci: bool) -> Result<Vec<String>> {
        const MANY: usize = 3;
        let threads = if self.waits_mostly() {
            Some(2)
        } else {
            // Each has a lab and load of its own: side by side they would measure each other.
            (self.suite() == Suite::Network).then_some(1)
        };
        let (status, failed) = self.run_once(filters, threads, in_ci)?;
        if status.success() {
            return Ok(Vec::new());
        }
        ensure!(in_ci && (1..MANY).contains(&failed.len()), "{}: {status}", self.title());
        println!("\n== {}, again: {}", self.title(), failed.join(", "));
        let exactly: Vec<_> = failed.iter().cloned().chain(["--exact".to_owned()]).collect();
        let (status, _) = self.run_once(&exactly, Some(1), in_ci)?;
        ensure!(status.success(), "{}: {status}", self.title());
        Ok(failed)
    }

    /// Runs it; how it ended, and the names of the tests that failed.
    fn run_once(
        &self,
        arguments: &[String],
        threads: Option<u32>,
        in_ci: bool,
    ) -> Result<(ExitStatus, Vec<String>)> {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command.env("LB_BIN_DIR", cargo::folder(false)?);
        if in_ci {
            command.env("CI", "true");
        }
        command.args(arguments).args(threads.map(|number| format!("--test-threads={number}")));
        let mut command =
            if self.needs_root() { root::as_root(command, &self.title())? } else { command };
        command.stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| self.executable.display().to_string())?;
        let mut failures = Failures::default();
        for line in BufReader::new(child.stdout.take().context("a pipe")?).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            failures.read(&line);
        }
        Ok((child.wait()?, failures.names))
    }
}

/// The list of failed tests at the end of a test program's output.
#[derive(Default)]
struct Failures {
    is_list: bool,
    names: Vec<String>,
}

impl Failures {
    /// Reads the next line. The outputs of failed tests have the same title as the list, and come first.
    fn read(&mut self, line: &str) {
        if line == "failures:" {
            *self = Self { is_list: true, names: Vec::new() };
            return;
        }
        match line.strip_prefix("    ") {
            Some(name) if self.is_list => self.names.push(name.to_owned()),
            _ if line.is_empty() && self.names.is_empty() => {}
            _ => self.is_list = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tests_are_those_of_the_list_at_the_end() {
        let output = "running 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\n\nfailures:\n\n---- a::c stdout ----\n    \
                      left: 1\n\nfailures:\n    a::c\n    a::d\n\ntest result: FAILED. 1 passed\n    more\n";
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.read(line));
        assert_eq!(failures.names, ["a::c", "a::d"]);
    }

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

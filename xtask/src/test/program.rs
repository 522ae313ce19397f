//! The built test programs, and the results in their output.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::Suite;
use crate::{
    cargo::{self, cargo},
    root, workspace,
};

/// The package of the integration tests.
const INTEGRATION: &str = "lb-tests";

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

/// Builds the suite's test programs.
///
/// # Errors
///
/// If they don't build.
pub(super) fn build(suite: Suite) -> Result<Vec<Program>> {
    let targets = if suite == Suite::All { Vec::new() } else { targets(suite)? };
    let mut programs = build_targets(&targets)?;
    programs.retain(|program| match program.suite() {
        Suite::Kernels => false,
        of => suite == Suite::All || of == suite,
    });
    // Quick and basic tests fail first.
    programs.sort_by_key(|program| (program.suite() as u8, program.title()));
    Ok(programs)
}

/// Builds these of the integration tests' programs.
///
/// # Errors
///
/// If they don't build.
pub fn build_some(names: &[&str]) -> Result<Vec<Program>> {
    build_targets(
        &names.iter().flat_map(|name| ["--test", name]).map(str::to_owned).collect::<Vec<_>>(),
    )
}

/// Names no package: with any choice of packages, others' crates would be compiled anew for the features that these
/// want of them.
fn build_targets(targets: &[String]) -> Result<Vec<Program>> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    command.args(cargo::quiet()).args(targets);
    command.stderr(Stdio::inherit());
    let output = command.output().context("cargo test --no-run")?;
    ensure!(output.status.success(), "the tests don't build");
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// The arguments of cargo for a suite.
fn targets(suite: Suite) -> Result<Vec<String>> {
    let metadata = cargo().args(["metadata", "--no-deps", "--format-version=1"]).output();
    let metadata: serde_json::Value =
        serde_json::from_slice(&metadata.context("cargo metadata")?.stdout)
            .context("cargo metadata")?;
    let mut targets: Vec<String> = Vec::new();
    if suite == Suite::Unit {
        targets.extend(["--lib", "--bins"].map(str::to_owned));
    }
    let all = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    for package in all(&metadata["packages"]) {
        let of = package["name"].as_str().unwrap_or_default();
        for target in all(&package["targets"]).iter().filter(|target| target["kind"][0] == "test") {
            let name = target["name"].as_str().context("a target without name")?;
            if suite_of(of, name, true) == suite {
                targets.extend(["--test".to_owned(), name.to_owned()]);
            }
        }
    }
    Ok(targets)
}

/// The suite of a program of this package; `is_integration`: none of unit tests.
fn suite_of(package: &str, name: &str, is_integration: bool) -> Suite {
    match name {
        _ if package != INTEGRATION || !is_integration => Suite::Unit,
        "datapath" => Suite::Datapath,
        "control" => Suite::Control,
        // It can panic a kernel.
        "guest" => Suite::Kernels,
        _ => Suite::Network,
    }
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

    /// One of the integration tests' programs that is nowhere.
    #[cfg(test)]
    pub(super) fn named(name: &str) -> Self {
        Self {
            package: INTEGRATION.into(),
            name: name.into(),
            executable: PathBuf::new(),
            folder: PathBuf::new(),
            is_integration: true,
        }
    }

    /// Its name among the package's programs.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn title(&self) -> String {
        let kind = if self.is_integration { "tests of" } else { "unit tests of" };
        format!("{kind} {} {}", self.package, self.name)
    }

    pub(super) fn suite(&self) -> Suite {
        suite_of(&self.package, &self.name, self.is_integration)
    }

    /// The user side's crates have tests of netlink and the kit's of its hosts, in namespaces of their own.
    fn needs_root(&self) -> bool {
        let is_kit = self.package == INTEGRATION && !self.is_integration;
        matches!(self.suite(), Suite::Datapath | Suite::Network)
            || self.folder.starts_with(workspace().join("lb-userspace"))
            || is_kit
    }

    pub(super) fn needs_binaries(&self) -> bool {
        self.package == INTEGRATION && self.is_integration
    }

    /// Whether its tests wait most of the time, for timers of the daemons that they start.
    pub(super) fn waits_mostly(&self) -> bool {
        self.package == "lb-userspace" && self.is_integration
    }

    /// The names of its tests that have one of these parts; without parts, of all.
    ///
    /// # Errors
    ///
    /// If it can't be run.
    pub fn tests(&self, parts: &[String]) -> Result<Vec<String>> {
        let mut command = Command::new(&self.executable);
        command.args(["--list", "--format", "terse"]).args(parts);
        let listed = kit::command::run(&mut command)?;
        Ok(listed
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
            .map(str::to_owned)
            .collect())
    }

    /// The command that runs it with these arguments, as root where its tests need that. As root it has a
    /// network namespace of its own, so that no test can reach an interface of this machine by mistake.
    ///
    /// # Errors
    ///
    /// If it needs root and there is no way to that.
    pub(super) fn command(&self, arguments: &[&str], in_ci: bool) -> Result<Command> {
        let is_apart = kit::is_root() || self.needs_root();
        let mut command = Command::new(if is_apart { "unshare" } else { "env" });
        if is_apart {
            // The shell becomes the program: its pid is the child's.
            let script = "ip link set lo up && exec \"$0\" \"$@\"";
            command.args(["--net", "--", "sh", "-c", script]);
        }
        command.arg(&self.executable);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command.env("LB_BIN_DIR", cargo::folder(false)?);
        let network = fs::read_link("/proc/self/ns/net").context("the network of this program")?;
        command.env("LB_NETWORK_OF_RUNNER", network);
        if in_ci {
            command.env("CI", "true");
        }
        command.args(arguments);
        if self.needs_root() { root::as_root(command, &self.title()) } else { Ok(command) }
    }

    /// Runs it whole, and shows its output when it ends: others run beside it.
    ///
    /// # Errors
    ///
    /// If it can't be run.
    pub(super) fn run(&self, arguments: &[&str], in_ci: bool) -> Result<(ExitStatus, Outcome)> {
        let mut command = self.command(arguments, in_ci)?;
        command.stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| self.executable.display().to_string())?;
        let (mut outcome, mut output) = (Outcome::default(), format!("\n== {}\n", self.title()));
        for line in BufReader::new(child.stdout.take().context("a pipe")?).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            // A test that hangs has to be named at once.
            if line.contains(" has been running for over ") {
                println!("{line}");
            }
            outcome.read(&line);
            output.push_str(&line);
            output.push('\n');
        }
        print!("{output}");
        Ok((child.wait()?, outcome))
    }
}

/// The results of tests in a program's output.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// How many passed.
    pub(super) passed: usize,
    /// The names of those that failed.
    pub(super) failed: Vec<String>,
    is_list: bool,
}

impl Outcome {
    /// Reads the next line. The outputs of failed tests have the same title as the list of their names, and
    /// come first.
    fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            let passed = result.split([' ', ';']).skip_while(|word| word.parse::<usize>().is_err());
            self.passed = passed.map_while(|word| word.parse().ok()).next().unwrap_or(0);
        }
        if line == "failures:" {
            (self.is_list, self.failed) = (true, Vec::new());
            return;
        }
        match line.strip_prefix("    ") {
            Some(name) if self.is_list => self.failed.push(name.to_owned()),
            _ if line.is_empty() && self.failed.is_empty() => {}
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
                      left: 1\n\nfailures:\n    a::c\n    a::d\n\n\
                      test result: FAILED. 13 passed; 2 failed; 0 ignored\n    more\n";
        let mut outcome = Outcome::default();
        output.lines().for_each(|line| outcome.read(line));
        assert_eq!(outcome.failed, ["a::c", "a::d"]);
        assert_eq!(outcome.passed, 13);
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

//! The project's own commands, as a user types them: they leave nothing behind.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use kit::{balancer, can_run, lab, namespace, wait};

const PATIENCE: Duration = Duration::from_secs(20);

fn xtask() -> Result<Command> {
    let xtask = balancer::binaries()?.join("xtask");
    ensure!(xtask.is_file(), "{} is not built; `cargo xtask test` does it", xtask.display());
    Ok(Command::new(xtask))
}

/// `cargo xtask run`, when it shows something.
struct Run {
    child: Child,
    out: Option<BufReader<ChildStdout>>,
}

impl Run {
    fn start() -> Result<Self> {
        let mut run = xtask()?;
        let mut child = run.args(["run", "--built"]).stdout(Stdio::piped()).spawn()?;
        let mut out = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut line = String::new();
        while !line.starts_with("web 10.0.0.100:80") {
            line.clear();
            ensure!(out.read_line(&mut line)? > 0, "it ended: {:?}", child.wait()?);
        }
        Ok(Self { child, out: Some(out) })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: i32) -> Result<()> {
        let pid = i32::try_from(self.pid())?;
        // SAFETY: the child has not been waited for, so the pid is still its own.
        let sent = unsafe { libc::kill(pid, signal) };
        ensure!(sent == 0, "signal {signal}");
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Where a test fails in between; otherwise it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The objects of a maker: namespaces, folders, pins and processes.
fn left_of(pid: u32) -> Result<Vec<String>> {
    let mut left: Vec<String> = namespace::all()?
        .into_iter()
        .filter(|&(_, maker)| maker == pid)
        .map(|(name, _)| name)
        .collect();
    for folder in [lab::ROOT, "/sys/fs/bpf"].map(PathBuf::from) {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if namespace::maker(&name) == Some(pid) {
                left.push(format!("{}/{name}", folder.display()));
            }
        }
    }
    let named = format!("lbt-{pid}-");
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(&named) {
            left.push(path.display().to_string());
        }
    }
    Ok(left)
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut run = Run::start()?;
        assert!(!left_of(run.pid())?.is_empty(), "it has a lab");
        run.signal(signal)?;
        let status =
            wait::until(PATIENCE, "it ends", || run.child.try_wait()?.context("it still runs"))?;
        assert!(status.success(), "{status}");
        assert_eq!(left_of(run.pid())?, Vec::<String>::new());
    }
    Ok(())
}

#[test]
fn a_view_that_nobody_reads_ends_and_leaves_nothing_behind() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut run = Run::start()?;
    let pid = run.pid();
    run.out = None;
    let status =
        wait::until(PATIENCE, "it ends", || run.child.try_wait()?.context("it still runs"))?;
    assert!(status.success(), "{status}");
    assert_eq!(left_of(pid)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn what_a_killed_run_leaves_is_swept_up() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut run = Run::start()?;
    let pid = run.pid();
    run.signal(libc::SIGKILL)?;
    run.child.wait()?;
    assert!(!left_of(pid)?.is_empty(), "a kill leaves something");
    // As `lab down` and the next run do.
    lab::sweep()?;
    assert_eq!(left_of(pid)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn the_smoke_run_tells_who_answered_and_the_mode() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let smoke = xtask()?.args(["run", "--", "--smoke", "--built"]).output()?;
    let printed = text(&smoke);
    assert!(smoke.status.success(), "{printed}");
    for expected in ["web1", "web2", "web3", "1000 requests", "0 failed", "XDP native"] {
        assert!(printed.contains(expected), "{expected} is missing:\n{printed}");
    }
    Ok(())
}

#[test]
fn the_smoke_run_of_a_pair_tells_who_took_over_and_leaves_nothing_behind() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut run = xtask()?;
    let child = run.args(["run", "--", "--pair", "--smoke", "--built"]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = child.id();
    let smoke = child.wait_with_output()?;
    let output = text(&smoke);
    assert!(smoke.status.success(), "{output}");
    for expected in
        ["lbd on lb1 was killed", "lb2 is Active", "24 of 24 downloads whole", "0 failed"]
    {
        assert!(output.contains(expected), "{expected} is missing:\n{output}");
    }
    assert_eq!(left_of(pid)?, Vec::<String>::new());
    Ok(())
}

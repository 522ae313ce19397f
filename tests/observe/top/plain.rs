//! Where the output is no terminal it is plain; where it is one, it moves.

use std::{env, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{can_run, command, progress::Progress, tmux::Terminal, wait};

use super::testbed::{Testbed, WAY};

/// Neither colours nor a line that is drawn anew.
fn is_plain(text: &str) -> bool {
    !text.contains(['\x1b', '\r'])
}

#[test]
fn top_prints_plain_batches_into_a_pipe() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let text = testbed.balancer.lbctl(&["top", "-b", "-n", "2", "-i", "100ms"])?;
    ensure!(is_plain(&text), "{text:?}");
    ensure!(text.matches("SERVICE ").count() == 2, "two batches:\n{text}");
    ensure!(text.contains("forwarding: 0 pps") && text.contains("dsr-v4:\n"), "{text}");
    let once = testbed.balancer.lbctl(&["top", "--once", "-i", "100ms"])?;
    ensure!(once.matches("SERVICE ").count() == 1, "{once}");
    let json = testbed.balancer.lbctl(&["-o", "json", "top", "--once", "-i", "100ms"])?;
    let look: serde_json::Value = serde_json::from_str(&json)?;
    let backend = testbed.backend(0).to_string();
    let rate = &look["per_second"]["services"][WAY.name()]["backends"][&backend]["packets"];
    ensure!(rate.is_number(), "{json}");
    let misuse = testbed.balancer.lbctl_output(&["top", "-i", "1ms"])?;
    ensure!(misuse.status.code() == Some(2), "{misuse:?}");
    Ok(())
}

#[test]
fn a_drain_that_is_waited_for_moves_on_a_terminal_and_is_plain_in_a_pipe() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let (backend, id) = (testbed.backend(0).to_string(), testbed.id(0)?);
    testbed.pin(1, 1, id)?;
    let drain = ["backend", "drain", WAY.name(), &backend, "--wait", "--timeout"];
    let piped = testbed.balancer.lbctl_output(&[&drain[..], &["1500ms"]].concat())?;
    let output = String::from_utf8(piped.stderr).context("UTF-8")?;
    ensure!(piped.status.code() == Some(1), "a flow is left:\n{output}");
    ensure!(is_plain(&output) && output.contains("draining: "), "{output:?}");
    let terminal = Terminal::open(&testbed.balancer, 80, 24)?;
    terminal.types(&format!("lbctl {} 60s", drain.join(" ")))?;
    let line = |screen: &str| {
        let line = screen.lines().find(|line| line.starts_with("draining for "));
        line.map(str::to_owned)
    };
    let first = terminal.wait_until("it prints the progress", |screen| line(screen).is_some())?;
    let next = terminal.wait_until("it goes on", |screen| {
        line(screen).is_some_and(|now| Some(now) != line(&first))
    })?;
    ensure!(next.matches("draining for ").count() == 1, "it is one line:\n{next}");
    terminal.press(&["C-c"])?;
    // An interrupt returns to the prompt.
    terminal.types("echo done")?;
    terminal.wait_for("\ndone").map(drop)
}

#[test]
fn a_capture_moves_on_a_terminal_and_ends_by_a_key_with_a_whole_file() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let file = testbed.lab.folder().join("keys.pcapng");
    let terminal = Terminal::open(&testbed.balancer, 80, 24)?;
    terminal.types(&format!("lbctl capture --duration 10m -w {}", file.display()))?;
    // The kernel verifies a program first.
    let moment = |screen: &str| {
        screen.lines().find(|line| line.contains("; Ctrl-C ends it")).map(str::to_owned)
    };
    let patience = Duration::from_secs(90);
    let first = wait::until(patience, "it captures", || {
        let screen = terminal.screen()?;
        moment(&screen).with_context(|| screen.clone())
    })?;
    terminal.wait_until("it goes on", |screen| moment(screen).is_some_and(|now| now != first))?;
    terminal.press(&["C-c"])?;
    let screen = terminal.wait_for(" packets written to ")?;
    ensure!(moment(&screen).is_none(), "the line is taken back:\n{screen}");
    ensure!(screen.contains(" packets seen, "), "it has its sums:\n{screen}");
    command::run(Command::new("capinfos").arg(&file)).map(drop)
}

/// Set for a run of this program that only shows progress: the file that it waits for between two steps.
const SHOWS: &str = "LB_TEST_PROGRESS";

/// Two steps: the second one begins, and ends when there is a file.
fn show_progress(until: &Path) -> Result<()> {
    let mut progress = Progress::new(2);
    progress.begin("the first step");
    progress.end(Some("the first step: fine"));
    progress.begin("the second step");
    wait::until_true(Duration::from_secs(30), "the file is there", || Ok(until.exists()))?;
    progress.end(None);
    Ok(())
}

#[test]
fn steps_are_a_line_that_changes_on_a_terminal_and_lines_in_a_pipe() -> Result<()> {
    if let Some(until) = env::var_os(SHOWS) {
        return show_progress(Path::new(&until));
    }
    if !can_run() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let file = testbed.lab.folder().join("progress");
    let this = env::current_exe()?;
    let name = "top::plain::steps_are_a_line_that_changes_on_a_terminal_and_lines_in_a_pipe";
    let args = ["--exact", name, "--nocapture"];

    let terminal = Terminal::open(&testbed.balancer, 80, 24)?;
    let program = format!("{} {}", this.display(), args.join(" "));
    terminal.types(&format!("clear; {SHOWS}={} {program} >/dev/null", file.display()))?;
    let screen = terminal.wait_for("[2/2] the second step; ")?;
    ensure!(screen.contains("[1/2] the first step: fine\n"), "a result stays:\n{screen}");
    ensure!(!screen.contains("[1/2] the first step\n"), "a step does not:\n{screen}");
    fs::write(&file, "")?;
    terminal.wait_until("the line is taken back", |screen| !screen.contains("second step"))?;

    let piped = command::output(Command::new(this).args(args).env(SHOWS, &file), "")?;
    let text = String::from_utf8(piped.stderr).context("UTF-8")?;
    ensure!(piped.status.success() && is_plain(&text), "{text:?}");
    for line in
        ["[1/2] the first step\n", "[1/2] the first step: fine\n", "[2/2] the second step; "]
    {
        ensure!(text.contains(line), "{line:?} is missing in {text:?}");
    }
    Ok(())
}

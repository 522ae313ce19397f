//! `lbctl top` on a terminal of tmux.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use kit::{balancer, can_run, command, http::Connection, tmux::Terminal, wait};

use super::testbed::{Testbed, WAY};

const PATIENCE: Duration = Duration::from_secs(10);
/// Often enough that a test need not wait long.
const TOP: &str = "lbctl top --interval 200ms";

/// The settings of the terminal, as `stty` prints them.
fn settings(terminal: &Terminal, mark: &str) -> Result<String> {
    terminal.types(&format!("echo {mark} $(stty -g | md5sum)"))?;
    let line = format!("\n{mark} ");
    let screen = terminal.wait_for(&line)?;
    let line = screen.lines().rev().find(|line| line.starts_with(&format!("{mark} ")));
    Ok(line.context("a line")?.trim_start_matches(mark).trim().to_owned())
}

/// The terminal is the shell's again, with its former screen.
fn is_given_back(terminal: &Terminal, before: &str, mark: &str) -> Result<()> {
    wait::until(PATIENCE, "the screen is given back", || {
        ensure!(!terminal.is_taken()?, "the screen is:\n{}", terminal.screen()?);
        Ok(())
    })?;
    let screen = terminal.wait_for("before top")?;
    ensure!(!screen.contains("quit"), "nothing of it is left:\n{screen}");
    let after = settings(terminal, mark)?;
    ensure!(after == before, "the terminal was {before}, and is {after}");
    Ok(())
}

/// The `lbctl top` that runs: of all of them, the one of this balancer.
fn pid_of_top(testbed: &Testbed) -> Result<String> {
    let line = format!("{} top", testbed.balancer.socket().display());
    let pids = command::run(Command::new("pgrep").args(["-f", &line]))?;
    Ok(pids.lines().last().context("it runs")?.to_owned())
}

fn send(signal: &str, pid: &str) -> Result<()> {
    command::run(Command::new("kill").args([&format!("-{signal}"), pid])).map(drop)
}

#[test]
fn top_is_sorted_filtered_drilled_into_and_gives_the_terminal_back() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let backend = testbed.backend(0).to_string();
    let id = testbed.id(0)?;
    for port in 1..=3 {
        testbed.pin(0x6407, port, id)?;
    }
    for _ in 0..30 {
        Connection::open(&testbed.lab.client.namespace, WAY.target(), PATIENCE)?.get("/")?.ok()?;
    }
    let terminal = Terminal::open(&testbed.balancer, 80, 24)?;
    let before = settings(&terminal, "before top")?;
    terminal.types(TOP)?;
    // It is drawn from the top to the bottom, and looked at in between.
    let expected = ["lbd ", "eth0 XDP native", "forwarding: ", "dropped: ", "3/3", "q quit"];
    terminal.wait_until("everything is shown", |screen| {
        screen.contains("services (1), by PPS ▼")
            && expected.iter().all(|text| screen.contains(text))
    })?;
    ensure!(terminal.is_taken()?, "it has a screen of its own");
    terminal.wait_until("rates are known", |screen| !screen.contains("forwarding: - pps"))?;

    // Sorted by another column, and the other way round.
    terminal.press(&["1"])?;
    terminal.wait_for("SERVICE▲")?;
    terminal.press(&["r"])?;
    terminal.wait_for("SERVICE▼")?;

    terminal.press(&["Enter"])?;
    let title = format!("backends of {} (3)", WAY.name());
    terminal.wait_until("the backends are shown", |screen| {
        screen.contains(&title)
            && screen.contains(&format!("{backend} "))
            && screen.contains(" up ")
    })?;

    // Filtered while it is typed.
    terminal.press(&["/"])?;
    terminal.types(&backend)?;
    let other = testbed.backend(1).to_string();
    terminal.wait_until("one is left", |screen| {
        screen.contains("(1)") && screen.contains(&backend) && !screen.contains(&other)
    })?;

    terminal.press(&["Enter"])?;
    terminal.wait_for("flows of dsr-v4 on")?;
    terminal.wait_until("the flows are shown", |screen| {
        screen.matches("established").count() == 3 && screen.contains("(3)")
    })?;

    // Back, with the filter as it was; then without.
    terminal.press(&["Escape"])?;
    terminal.wait_for("backends of dsr-v4 (1)")?;
    terminal.press(&["Escape"])?;
    terminal.wait_for("backends of dsr-v4 (3)")?;

    terminal.press(&["?"])?;
    terminal.wait_for("any of them closes this")?;
    terminal.press(&["x"])?;
    terminal.wait_until("the help is closed", |screen| !screen.contains("closes this"))?;

    // Other sizes.
    terminal.resize(120, 30)?;
    terminal.wait_until("it is wider", |screen| {
        screen.lines().any(|line| line.contains("BACKEND") && line.chars().count() > 100)
    })?;
    terminal.resize(40, 8)?;
    terminal.wait_until("it is small", |screen| {
        screen.lines().count() <= 8 && screen.contains("backends of dsr-v4")
    })?;
    terminal.resize(80, 24)?;
    terminal.wait_for("q quit")?;

    // Suspended by a key, and continued.
    terminal.press(&["C-z"])?;
    is_given_back(&terminal, &before, "suspended")?;
    terminal.types("fg")?;
    terminal.wait_for("backends of dsr-v4")?;

    terminal.press(&["q"])?;
    is_given_back(&terminal, &before, "after top")
}

#[test]
fn top_gives_the_terminal_back_when_it_is_terminated() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let terminal = Terminal::open(&testbed.balancer, 80, 24)?;
    let before = settings(&terminal, "before top")?;
    for (signal, code) in [("TERM", "143"), ("HUP", "129"), ("INT", "130")] {
        terminal.types(&format!("{TOP}; echo code $?"))?;
        terminal.wait_for("services (1)")?;
        send(signal, &pid_of_top(&testbed)?)?;
        terminal.wait_for(&format!("code {code}"))?;
        is_given_back(&terminal, &before, signal)?;
        terminal.types("clear; echo before top")?;
        terminal.wait_until("the screen is clear", |screen| !screen.contains("code"))?;
    }
    Ok(())
}

#[test]
fn top_gives_the_terminal_back_while_it_is_stopped() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let terminal = Terminal::open(&testbed.balancer, 80, 24)?;
    let before = settings(&terminal, "before top")?;
    terminal.types(TOP)?;
    terminal.wait_for("services (1)")?;
    for mark in ["once", "twice"] {
        send("TSTP", &pid_of_top(&testbed)?)?;
        is_given_back(&terminal, &before, mark)?;
        terminal.types("fg")?;
        terminal.wait_for("services (1)")?;
        ensure!(terminal.is_taken()?, "it has its screen again");
    }
    terminal.press(&["q"])?;
    is_given_back(&terminal, &before, "after top")
}

#[test]
fn top_does_not_stop_where_nobody_could_continue_it() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let terminal = Terminal::open(&testbed.balancer, 80, 24)?;
    // In the place of the shell, as by `ssh -t NODE lbctl top`.
    let lbctl = balancer::binaries()?.join("lbctl");
    let socket = testbed.balancer.socket();
    terminal.types(&format!("exec {} --socket {} top", lbctl.display(), socket.display()))?;
    terminal.wait_for("services (1)")?;
    let pid = pid_of_top(&testbed)?;
    let listens = || -> Result<()> {
        terminal.press(&["?"])?;
        terminal.wait_for("any of them closes this")?;
        terminal.press(&["x"])?;
        terminal.wait_until("the help is closed", |screen| !screen.contains("closes this"))?;
        Ok(())
    };
    terminal.press(&["C-z"])?;
    listens()?;
    send("TSTP", &pid)?;
    listens()?;
    // A process can't catch this; its sender can send the other.
    send("STOP", &pid)?;
    send("CONT", &pid)?;
    listens()?;
    terminal.press(&["q"])?;
    wait::until_true(PATIENCE, "it ends", || Ok(!Path::new("/proc").join(&pid).exists()))
}

#[test]
fn top_waits_for_a_daemon_that_is_started_again() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let terminal = Terminal::open(&testbed.balancer, 80, 24)?;
    terminal.types(TOP)?;
    terminal.wait_for("services (1)")?;
    testbed.balancer.kill()?;
    let screen = terminal.wait_for("NO ANSWER for")?;
    ensure!(screen.contains("dsr-v4"), "what was known stays:\n{screen}");
    testbed.balancer.launch()?;
    terminal.wait_for("services (1)")?;
    terminal.press(&["q"])?;
    terminal.wait_until("it ends", |screen| !screen.contains("services (1)"))?;
    testbed.balancer.stop()?;
    // One that was not there to begin with is an error, and no screen.
    terminal.types(TOP)?;
    let screen = terminal.wait_for("lbd is not running")?;
    ensure!(!terminal.is_taken()?, "{screen}");
    Ok(())
}

#[test]
fn top_has_colours_unless_they_are_not_wanted() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let colours = |screen: &str| {
        let named = (30..=37).chain(90..=97).any(|colour| {
            screen.contains(&format!("\x1b[{colour}m")) || screen.contains(&format!(";{colour}m"))
        });
        named || screen.contains("38;5;")
    };
    for (start, expected) in [(TOP, true), ("export NO_COLOR=1; lbctl top", false)] {
        let terminal = Terminal::open(&testbed.balancer, 80, 24)?;
        terminal.types(start)?;
        // The last line is drawn last.
        terminal.wait_for("q quit")?;
        let screen = terminal.coloured()?;
        ensure!(colours(&screen) == expected, "{start}: {screen:?}");
    }
    let picture =
        kit::tmux::picture_of_top(&testbed.balancer, (100, 20), Duration::from_millis(500))?;
    ensure!(colours(&picture) && picture.contains("backends of"), "{picture}");
    Ok(())
}

//! Where the output is no terminal it is plain; where it is one, it moves.

use anyhow::{Context as _, Result, ensure};
use kit::{can_run, tmux::Terminal};

use crate::site::{Site, WAY};

/// Neither colours nor a line that is drawn anew.
fn is_plain(text: &str) -> bool {
    !text.contains(['\x1b', '\r'])
}

#[test]
fn top_prints_plain_batches_into_a_pipe() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let site = Site::new()?;
    let text = site.balancer.lbctl(&["top", "-b", "-n", "2", "-i", "100ms"])?;
    ensure!(is_plain(&text), "{text:?}");
    ensure!(text.matches("SERVICE ").count() == 2, "two batches:\n{text}");
    ensure!(text.contains("forwarding: 0 pps") && text.contains("dsr-v4:\n"), "{text}");
    let once = site.balancer.lbctl(&["top", "--once", "-i", "100ms"])?;
    ensure!(once.matches("SERVICE ").count() == 1, "{once}");
    let json = site.balancer.lbctl(&["-o", "json", "top", "--once", "-i", "100ms"])?;
    let look: serde_json::Value = serde_json::from_str(&json)?;
    let backend = site.backend(0).to_string();
    let rate = &look["per_second"]["services"][WAY.name()]["backends"][&backend]["packets"];
    ensure!(rate.is_number(), "{json}");
    let misuse = site.balancer.lbctl_output(&["top", "-i", "1ms"])?;
    ensure!(misuse.status.code() == Some(2), "{misuse:?}");
    Ok(())
}

#[test]
fn a_drain_that_is_waited_for_moves_on_a_terminal_and_is_plain_in_a_pipe() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut site = Site::new()?;
    let (backend, id) = (site.backend(0).to_string(), site.id(0)?);
    site.pin(1, 1, id)?;
    let drain = ["backend", "drain", WAY.name(), &backend, "--wait", "--timeout"];
    let piped = site.balancer.lbctl_output(&[&drain[..], &["1500ms"]].concat())?;
    let said = String::from_utf8(piped.stderr).context("UTF-8")?;
    ensure!(piped.status.code() == Some(1), "a flow is left:\n{said}");
    ensure!(is_plain(&said) && said.contains("draining: "), "{said:?}");
    let terminal = Terminal::open(&site.balancer, 80, 24)?;
    terminal.types(&format!("lbctl {} 60s", drain.join(" ")))?;
    let line = |screen: &str| {
        let line = screen.lines().find(|line| line.starts_with("draining for "));
        line.map(str::to_owned)
    };
    let first = terminal.wait_until("it tells how far it is", |screen| line(screen).is_some())?;
    let next = terminal.wait_until("it goes on", |screen| {
        line(screen).is_some_and(|now| Some(now) != line(&first))
    })?;
    ensure!(next.matches("draining for ").count() == 1, "it is one line:\n{next}");
    terminal.press(&["C-c"])?;
    // Who interrupts it has the prompt again.
    terminal.types("echo done")?;
    terminal.wait_for("\ndone").map(drop)
}

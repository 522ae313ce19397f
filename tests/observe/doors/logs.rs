//! The log's level, changed while `lbd` runs, and the messages of the program in the kernel.

use std::{
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use kit::{can_run, router::Router, wait};

use super::{PATIENCE, WAY, testbed};

/// Of a virtual router.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 150);

#[test]
fn the_level_changes_for_a_while_and_the_program_speaks() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = testbed(|_| "[log]\nlevel = \"info\"\n".into())?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let level = |more: &[&str]| -> Result<String> {
        let output = balancer.lbctl(&[&["log", "level"], more].concat())?;
        Ok(output.trim_end().to_owned())
    };
    ensure!(level(&[])? == "log level info", "as configured");
    let slip = balancer.lbctl_output(&["log", "level", "dbug"])?;
    ensure!(slip.status.code() == Some(2), "{slip:?}");
    let words = String::from_utf8_lossy(&slip.stderr).into_owned();
    ensure!(words.contains("`dbug` is no level; did you mean debug?"), "{words}");
    let output = level(&["info,engine=debug", "--for", "3s"])?;
    ensure!(output == "log level info,engine=debug for 3s, then info", "{output}");
    let status = balancer.lbctl(&["status"])?;
    ensure!(status.contains("log level info,engine=debug for "), "{status}");
    wait::until(PATIENCE, "its time is over", || {
        ensure!(level(&[])? == "log level info", "not yet");
        Ok(())
    })?;

    // No backend: SYNs are dropped, and the program logs which, at level debug.
    let host = lab.webs[0].host.v4.to_string();
    balancer.lbctl(&["backend", "disable", WAY.name(), &host, "--force", "--yes"])?;
    let knock = || {
        let soon = Duration::from_millis(200);
        lab.client.namespace.enter(|| TcpStream::connect_timeout(&WAY.target(), soon).is_ok())
    };
    ensure!(!knock()?, "nobody answers");
    ensure!(!balancer.log().contains("no_backend"), "it was not asked to");
    let output = level(&["info,xdp=debug"])?;
    ensure!(output.ends_with("set by lbctl; the configuration says info"), "{output}");
    wait::until(PATIENCE, "the program logs a packet that was dropped", || {
        knock()?;
        let log = balancer.log();
        let line = log.lines().find(|line| line.contains("packet dropped:"));
        let line = line.ok_or_else(|| anyhow::anyhow!("not yet:\n{log}"))?;
        ensure!(line.contains("reason=\"no_backend\""), "{line}");
        // The frame itself: to the VIP, in the middle of the IPv4 header.
        ensure!(line.contains("interface=") && line.contains("frame="), "{line}");
        Ok(())
    })?;
    ensure!(level(&["--reset"])? == "log level info", "as configured");
    // The budget is used up, or taken back within a second.
    let quiet = || balancer.log().matches("packet dropped:").count();
    wait::until(PATIENCE, "the program is silent", || {
        let before = quiet();
        for _ in 0..6 {
            knock()?;
        }
        ensure!(quiet() == before, "it still speaks");
        Ok(())
    })
}

#[test]
fn the_virtual_routers_speak_at_a_level_of_their_own() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let router = Router::new("main", 51, 100, Duration::from_millis(100), &[ADDRESS.into()]);
    let log = "[log]\nlevel = \"info,vrrp=debug\"\n";
    let (_lab, mut balancer) = testbed(|_| format!("{log}{}", router.toml()))?;
    balancer.launch()?;
    wait::until(PATIENCE, "it logs that it is Active", || {
        let log = balancer.log();
        let mut lines = log.lines().filter(|line| line.contains("DEBUG"));
        let is_logged =
            lines.any(|line| line.contains("virtual router") && line.contains("to=active"));
        ensure!(is_logged, "not yet:\n{log}");
        Ok(())
    })?;
    // No other part does, though the daemon has debug lines for each write and each way out.
    let log = balancer.log();
    let others = log.lines().filter(|line| line.contains("DEBUG") && !line.contains("router"));
    ensure!(others.count() == 0, "{log}");
    Ok(())
}

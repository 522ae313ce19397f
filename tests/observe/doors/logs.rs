//! The log's level, changed while `lbd` runs, and what the program in the kernel says.

use std::net::TcpStream;

use anyhow::{Result, ensure};
use kit::{can_run, wait};

use super::{PATIENCE, WAY, site};

#[test]
fn the_level_changes_for_a_while_and_the_program_speaks() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (lab, mut balancer) = site(|_| "[log]\nlevel = \"info\"\n".into())?;
    balancer.launch()?;
    balancer.wait_usable()?;
    let level = |more: &[&str]| -> Result<String> {
        let told = balancer.lbctl(&[&["log", "level"], more].concat())?;
        Ok(told.trim_end().to_owned())
    };
    ensure!(level(&[])? == "log level info", "as configured");
    let slip = balancer.lbctl_output(&["log", "level", "dbug"])?;
    ensure!(slip.status.code() == Some(2), "{slip:?}");
    let words = String::from_utf8_lossy(&slip.stderr).into_owned();
    ensure!(words.contains("`dbug` is no level; did you mean debug?"), "{words}");
    let told = level(&["info,engine=debug", "--for", "3s"])?;
    ensure!(told == "log level info,engine=debug for 3s, then info", "{told}");
    let status = balancer.lbctl(&["status"])?;
    ensure!(status.contains("log level info,engine=debug for "), "{status}");
    wait::until(PATIENCE, "its time is over", || {
        ensure!(level(&[])? == "log level info", "not yet");
        Ok(())
    })?;

    // No backend: SYNs are dropped, and the program says which, when it is asked to.
    let host = lab.webs[0].host.v4.to_string();
    balancer.lbctl(&["backend", "disable", WAY.name(), &host, "--force", "--yes"])?;
    let knock = || {
        let soon = std::time::Duration::from_millis(200);
        lab.client.namespace.enter(|| TcpStream::connect_timeout(&WAY.target(), soon).is_ok())
    };
    ensure!(!knock()?, "nobody answers");
    ensure!(!balancer.log().contains("no_backend"), "it was not asked to");
    let told = level(&["info,xdp=debug"])?;
    ensure!(told.ends_with("set by lbctl; the configuration says info"), "{told}");
    wait::until(PATIENCE, "the program tells of a packet that was dropped", || {
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
    // What was granted is used up, or taken back within a second.
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

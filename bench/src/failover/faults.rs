//! The faults of a web host.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kit::{lab::Lab, reports::failover::Fault};

use super::systems::Running;

/// How long nginx is away when it is restarted: the time of `systemctl restart nginx`.
const RESTART: Duration = Duration::from_millis(200);

/// How long a host takes no connection in a rolling update, and how long the next one then waits for its
/// turn: a check every 100 ms notices both.
const STEP: Duration = Duration::from_secs(1);

/// Whether it comes to every host, and not to one alone.
pub const fn is_for_all(fault: Fault) -> bool {
    matches!(fault, Fault::Rolling)
}

/// How long it takes on so many hosts until its last change.
pub fn takes(fault: Fault, hosts: usize) -> Duration {
    if is_for_all(fault) { STEP * 2 * hosts as u32 } else { Duration::ZERO }
}

/// Sets the web hosts up for it, before anything is measured.
///
/// # Errors
///
/// If nginx does not start.
pub fn prepare(fault: Fault, lab: &mut Lab) -> Result<()> {
    if !matches!(fault, Fault::Quit | Fault::Rolling) {
        return Ok(());
    }
    let orphan = lab.orphan();
    lab.webs.iter_mut().try_for_each(|web| web.nginx.serve(&web.host.namespace, orphan))
}

/// Lets it happen to the web host with this name, or to all; since when.
///
/// # Errors
///
/// If it can't be done.
pub fn strike(fault: Fault, lab: &mut Lab, system: &Running, host: &str) -> Result<Instant> {
    let orphan = lab.orphan();
    let start = Instant::now();
    match fault {
        Fault::CutOff => {
            // The command that does it may take longer than requests do: those that it cuts
            // in two have begun before the fault.
            return lab.cut(host).map(|()| Instant::now());
        }
        Fault::Drained => return system.drain(lab.web(host)?).map(|()| start),
        Fault::Rolling => return roll(lab).map(|()| start),
        Fault::Killed | Fault::Hangs | Fault::Restarted | Fault::Quit => {}
    }
    let web = lab.webs.iter_mut().find(|web| web.host.name == host);
    let web = web.with_context(|| format!("no web host {host}"))?;
    match fault {
        Fault::Hangs => return web.nginx.freeze().map(|()| start),
        Fault::Quit => return web.nginx.quit().map(|()| start),
        _ => {}
    }
    web.nginx.kill()?;
    if fault == Fault::Restarted {
        thread::sleep(RESTART);
        web.nginx.restart(&web.host.namespace, orphan)?;
    }
    Ok(start)
}

/// Replaces every nginx by another one, host by host; each finishes its requests.
fn roll(lab: &mut Lab) -> Result<()> {
    let orphan = lab.orphan();
    for web in &mut lab.webs {
        web.nginx.quit()?;
        thread::sleep(STEP);
        web.nginx.serve(&web.host.namespace, orphan)?;
        thread::sleep(STEP);
    }
    Ok(())
}

//! What happens to a web host.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kit::lab::Lab;
use serde::Serialize;

use super::systems::Running;

/// How long nginx is away when it is restarted: what `systemctl restart nginx` takes.
const RESTART: Duration = Duration::from_millis(200);

/// How long a host takes no connection in a rolling update, and how long the next one then waits for its
/// turn: a check every 100 ms notices both.
const STEP: Duration = Duration::from_secs(1);

/// A fault, or an operator's deed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// nginx is killed; the kernel resets its connections and refuses others.
    Killed,
    /// The host is off the net; nobody is told.
    CutOff,
    /// nginx hangs: the kernel accepts connections and nobody answers.
    Hangs,
    /// nginx is killed and started again.
    Restarted,
    /// The operator drains the backend.
    Drained,
    /// nginx takes no connection and serves those that it has to their end.
    Quit,
    /// The same on every host in turn, which takes connections again before the next one does not.
    Rolling,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Killed,
        Self::CutOff,
        Self::Hangs,
        Self::Restarted,
        Self::Drained,
        Self::Quit,
        Self::Rolling,
    ];

    /// As `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::CutOff => "cut-off",
            Self::Hangs => "hangs",
            Self::Restarted => "restarted",
            Self::Drained => "drained",
            Self::Quit => "quit",
            Self::Rolling => "rolling",
        }
    }

    /// In a sentence.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Killed => "nginx is killed: the kernel refuses connections",
            Self::CutOff => "the host is cut off: packets vanish",
            Self::Hangs => "nginx hangs: the kernel accepts connections and nobody answers",
            Self::Restarted => "nginx is killed and back after 0.2 s",
            Self::Drained => "the backend is drained by the operator",
            Self::Quit => "nginx -s quit: it takes no connection, and finishes its downloads",
            Self::Rolling => "nginx -s quit on every host in turn, each started again after 1 s",
        }
    }

    /// Whether it comes to every host, and not to one alone.
    pub const fn is_for_all(self) -> bool {
        matches!(self, Self::Rolling)
    }

    /// How long it takes on so many hosts until its last change.
    pub fn takes(self, hosts: usize) -> Duration {
        if self.is_for_all() { STEP * 2 * hosts as u32 } else { Duration::ZERO }
    }

    /// Sets the web hosts up for it, before anything is measured.
    ///
    /// # Errors
    ///
    /// If nginx does not start.
    pub fn prepare(self, lab: &mut Lab) -> Result<()> {
        if !matches!(self, Self::Quit | Self::Rolling) {
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
    pub fn strike(self, lab: &mut Lab, system: &Running, host: &str) -> Result<Instant> {
        let orphan = lab.orphan();
        let start = Instant::now();
        match self {
            Self::CutOff => {
                // The command that does it may take longer than requests do: those that it cuts
                // in two have begun before the fault.
                return lab.cut(host).map(|()| Instant::now());
            }
            Self::Drained => return system.drain(lab.web(host)?).map(|()| start),
            Self::Rolling => return roll(lab).map(|()| start),
            Self::Killed | Self::Hangs | Self::Restarted | Self::Quit => {}
        }
        let web = lab.webs.iter_mut().find(|web| web.host.name == host);
        let web = web.with_context(|| format!("no web host {host}"))?;
        match self {
            Self::Hangs => return web.nginx.freeze().map(|()| start),
            Self::Quit => return web.nginx.quit().map(|()| start),
            _ => {}
        }
        web.nginx.kill()?;
        if self == Self::Restarted {
            thread::sleep(RESTART);
            web.nginx.restart(&web.host.namespace, orphan)?;
        }
        Ok(start)
    }
}

/// Replaces every nginx by another one, host by host; each finishes what it has begun.
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

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
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Killed, Self::CutOff, Self::Hangs, Self::Restarted, Self::Drained];

    /// As `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::CutOff => "cut-off",
            Self::Hangs => "hangs",
            Self::Restarted => "restarted",
            Self::Drained => "drained",
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
        }
    }

    /// Lets it happen to the web host with this name; since when.
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
            Self::Killed | Self::Hangs | Self::Restarted => {}
        }
        let web = lab.webs.iter_mut().find(|web| web.host.name == host);
        let web = web.with_context(|| format!("no web host {host}"))?;
        if self == Self::Hangs {
            return web.nginx.freeze().map(|()| start);
        }
        web.nginx.kill()?;
        if self == Self::Restarted {
            thread::sleep(RESTART);
            web.nginx.restart(&web.host.namespace, orphan)?;
        }
        Ok(start)
    }
}

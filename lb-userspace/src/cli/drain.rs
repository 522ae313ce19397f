//! Waits until a backend that drains has no flow left.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;

use super::{Target, patience::Patient};
use crate::{
    api::client::{self, Client},
    desired::Admin,
    status::Backend,
    units::{format_count, format_duration},
};

/// How often the daemon is asked.
const POLL: Duration = Duration::from_millis(500);

/// Waits; 0 when no flow is left, 1 after `timeout` or if it does not drain any more.
pub(super) async fn wait(
    client: &Client,
    target: &Target,
    timeout: Option<Duration>,
) -> Result<ExitCode> {
    let started = Instant::now();
    let mut patient = Patient::new(client);
    let mut progress = Progress::new(Pulse::EachChange);
    let mut removing = false;
    loop {
        let Target { service, address } = target;
        let backend: Backend = match patient.get(&target.path()).await {
            // One that is removed while it drains leaves with its last flow.
            Err(client::Error::Refused(_)) if removing => {
                progress.end();
                eprintln!("backend {address} of {service} has no flow left, and is removed");
                return Ok(ExitCode::SUCCESS);
            }
            answer => answer?,
        };
        removing = matches!(backend.admin, Admin::Removing { .. });
        let passed = match backend.admin {
            Admin::Draining { deadline } | Admin::Removing { deadline } => {
                deadline.is_some_and(|deadline| deadline <= SystemTime::now())
            }
            _ => false,
        };
        let left = left(&backend);
        if !matches!(backend.admin, Admin::Draining { .. } | Admin::Removing { .. }) {
            progress.end();
            eprintln!("lbctl: backend {address} of {service} does not drain any more");
            return Ok(ExitCode::FAILURE);
        }
        if !backend.has_flows() {
            progress.end();
            let after = format_duration(Duration::from_secs(started.elapsed().as_secs()));
            let why =
                if passed { ": its deadline has passed, and what it had was moved" } else { "" };
            eprintln!("backend {address} of {service} has no flow left, after {after}{why}");
            return Ok(ExitCode::SUCCESS);
        }
        if timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
            progress.end();
            eprintln!("lbctl: backend {address} of {service} still drains: {left}");
            return Ok(ExitCode::FAILURE);
        }
        progress.show(&left, started.elapsed());
        let rest = timeout.map_or(POLL, |timeout| timeout.saturating_sub(started.elapsed()));
        tokio::time::sleep(rest.min(POLL)).await;
    }
}

/// What is left on a backend.
fn left(backend: &Backend) -> String {
    let slots = backend.slots + backend.base_slots;
    if slots == 0 && backend.pins == 0 {
        return "its pinned flows are counted".into();
    }
    format!(
        "{} pinned flow{}, older flows possible in {slots} slot{}",
        format_count(backend.pins),
        if backend.pins == 1 { "" } else { "s" },
        if slots == 1 { "" } else { "s" },
    )
}

/// How often a change is told where no line can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pulse {
    /// Each.
    EachChange,
    /// What it is at the moment, every ten seconds.
    Slow,
}

/// Shows how far it is: one line that changes on a terminal, a line now and then elsewhere.
#[derive(Debug)]
pub(super) struct Progress {
    pulse: Pulse,
    shown: Option<(String, Duration)>,
}

impl Progress {
    pub(super) const fn new(pulse: Pulse) -> Self {
        Self { pulse, shown: None }
    }

    pub(super) fn show(&mut self, left: &str, elapsed: Duration) {
        let mut out = io::stderr().lock();
        let is_terminal = out.is_terminal();
        let is_due = self.shown.as_ref().is_none_or(|(shown, at)| {
            let slow = Duration::from_secs(10);
            shown != left && (self.pulse == Pulse::EachChange || elapsed - *at >= slow)
        });
        if !is_terminal && !is_due {
            return;
        }
        self.shown = Some((left.into(), elapsed));
        let elapsed = format_duration(Duration::from_secs(elapsed.as_secs()));
        // Progress that can't be shown is no reason to stop waiting.
        let _ = if is_terminal {
            write!(out, "\r\x1b[Kdraining for {elapsed}: {left}").and_then(|()| out.flush())
        } else {
            writeln!(out, "draining: {left}")
        };
    }

    /// Clears the line that changes.
    pub(super) fn end(&self) {
        let mut out = io::stderr().lock();
        if out.is_terminal() && self.shown.is_some() {
            let _ = write!(out, "\r\x1b[K");
        }
    }
}

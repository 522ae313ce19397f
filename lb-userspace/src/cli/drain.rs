//! Waits until a backend that drains has no flow left.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::Target;
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
    let mut progress = Progress::default();
    let mut removing = false;
    loop {
        let Target { service, address } = target;
        let backend: Backend = match client.get(&target.path()).await {
            // One that is removed while it drains leaves with its last flow.
            Err(client::Error::Refused(_)) if removing => {
                progress.end();
                eprintln!("backend {address} of {service} has no flow left, and is removed");
                return Ok(ExitCode::SUCCESS);
            }
            answer => answer?,
        };
        removing = matches!(backend.admin, Admin::Removing { .. });
        let left = left(&backend);
        if !matches!(backend.admin, Admin::Draining { .. } | Admin::Removing { .. }) {
            progress.end();
            eprintln!("lbctl: backend {address} of {service} does not drain any more");
            return Ok(ExitCode::FAILURE);
        }
        if !backend.has_flows() {
            progress.end();
            let after = format_duration(Duration::from_secs(started.elapsed().as_secs()));
            eprintln!("backend {address} of {service} has no flow left, after {after}");
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

/// Shows how far it is: one line that changes on a terminal, a line for each change elsewhere.
#[derive(Default)]
struct Progress {
    shown: String,
}

impl Progress {
    fn show(&mut self, left: &str, elapsed: Duration) {
        let mut out = io::stderr().lock();
        let elapsed = format_duration(Duration::from_secs(elapsed.as_secs()));
        // Progress that can't be shown is no reason to stop waiting.
        let _ = if out.is_terminal() {
            self.shown = left.into();
            write!(out, "\r\x1b[Kdraining for {elapsed}: {left}").and_then(|()| out.flush())
        } else if self.shown != left {
            self.shown = left.into();
            writeln!(out, "draining: {left}")
        } else {
            Ok(())
        };
    }

    /// Clears the line that changes.
    fn end(&self) {
        let mut out = io::stderr().lock();
        if out.is_terminal() && !self.shown.is_empty() {
            let _ = write!(out, "\r\x1b[K");
        }
    }
}

//! Waits until a backend that drains has no flow left, by estimate or for certain.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;

use super::{Target, args::Until, patience::Patient, progress::on_one_line};
use crate::{
    api::client::{self, Client},
    desired::Admin,
    status::{Backend, QUIET_SECS},
    units::{counted, format_count, format_duration},
};

/// How often the daemon is asked.
const POLL: Duration = Duration::from_millis(500);

/// Waits; 0 when no flow is left, 1 after `timeout` or if it does not drain any more.
pub(super) async fn wait(
    client: &Client,
    target: &Target,
    until: Until,
    timeout: Option<Duration>,
) -> Result<ExitCode> {
    let started = Instant::now();
    let mut patient = Patient::new(client);
    let mut progress = Progress::new(Pulse::EachChange);
    let (mut removing, mut is_warned) = (false, false);
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
            let after = whole_secs(started.elapsed().as_secs());
            let why = if passed {
                "its deadline has passed, and what it had was moved"
            } else {
                "proven: all that it had have ended"
            };
            eprintln!("backend {address} of {service} has no flow left, after {after} ({why})");
            return Ok(ExitCode::SUCCESS);
        }
        if until == Until::Estimated && backend.is_estimated_over() {
            progress.end();
            let after = whole_secs(started.elapsed().as_secs());
            eprintln!("backend {address} of {service} has {}, after {after}", estimate(&backend));
            return Ok(ExitCode::SUCCESS);
        }
        if timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
            progress.end();
            eprintln!("lbctl: backend {address} of {service} still drains: {left}");
            return Ok(ExitCode::FAILURE);
        }
        if until == Until::Estimated && !is_warned && has_no_estimate(&backend) {
            is_warned = true;
            progress.end();
            eprintln!(
                "lbctl: this node does not see all packets of {service}, and can't estimate; it waits \
                 for the proven end"
            );
        }
        // What changes each second is for a line that changes.
        let times = if io::stderr().is_terminal() { times(&backend) } else { String::new() };
        progress.show(&format!("{left}{times}"), started.elapsed());
        let rest = timeout.map_or(POLL, |timeout| timeout.saturating_sub(started.elapsed()));
        tokio::time::sleep(rest.min(POLL)).await;
    }
}

/// What is left on a backend.
pub(super) fn left(backend: &Backend) -> String {
    let slots = backend.slots + backend.base_slots;
    if slots == 0 && backend.pins == 0 {
        return "its pinned flows are counted".into();
    }
    let open = backend.pins.saturating_sub(backend.pins_closing);
    let closing = match backend.pins_closing {
        0 => String::new(),
        closing => format!(" and {} closing", format_count(closing)),
    };
    format!(
        "{} pinned flow{}{closing}, older flows possible in {}",
        format_count(open),
        if open == 1 { "" } else { "s" },
        counted(slots, "slot"),
    )
}

/// When a backend was sent the last packet of a flow that may be left, and when its drain is over.
pub(super) fn times(backend: &Backend) -> String {
    let Some(drain) = backend.drain else { return String::new() };
    let heard = drain.heard_secs.map(|secs| format!("; last packet {} ago", whole_secs(secs)));
    let ends = drain
        .ends_in_secs
        .map(|secs| format!("; over for certain in {} if all stay silent", whole_secs(secs)));
    heard.into_iter().chain(ends).collect()
}

/// That a drain is over by estimate.
pub(super) fn estimate(backend: &Backend) -> String {
    let open = backend.pins.saturating_sub(backend.pins_closing);
    let silent = match open {
        0 => String::new(),
        1 => "; 1 pinned flow is open and silent".into(),
        open => format!("; {} pinned flows are open and silent", format_count(open)),
    };
    let ends = backend.drain.and_then(|drain| drain.ends_in_secs);
    let ends = ends.map(|secs| format!("; proven in {}", whole_secs(secs))).unwrap_or_default();
    format!(
        "no flow left that was heard for {QUIET_SECS}s (estimated: safe to stop unless a client is \
         silent{silent}{ends})"
    )
}

/// Whether this node can't say when the drain is over by estimate.
fn has_no_estimate(backend: &Backend) -> bool {
    let unknown = |drain: crate::status::Drain| drain == crate::status::Drain::default();
    let left = backend.has_flows() && backend.slots == 0 && !backend.pins_stale;
    left && backend.drain.is_some_and(unknown)
}

fn whole_secs(secs: u64) -> String {
    format_duration(Duration::from_secs(secs))
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
            let line = on_one_line(&format!("draining for {elapsed}: {left}"));
            write!(out, "\r\x1b[K{line}").and_then(|()| out.flush())
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

//! Waits until a backend that drains has no flow left, by estimate or for certain.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use clap::ValueEnum;
use lb_api::{
    client::{self, Client},
    paths,
    status::{Backend, Connections, OneBackend},
};
use lb_model::{
    desired::Admin,
    units::{counted, format_count, format_duration},
};

use super::{options::BackendSelector, patience::Patient, progress::on_one_line};

/// How often the daemon is polled.
const POLL: Duration = Duration::from_millis(500);

/// This node does not know a backend's remaining flows.
pub(super) const UNSYNCED: &str =
    "unknown: only the Active sees the traffic, and does not send its flows to this node";

/// Which end of a drain is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Until {
    /// All pinned flows are closed, and no packet has come for drain_silence or longer.
    Estimated,
    /// No flow can be left.
    Proven,
}

/// For how long flows of a backend have no packet when its drain is over by estimate.
pub(super) fn silence(backend: &Backend) -> String {
    let secs = backend.drain.map_or(0, |drain| drain.silence_secs);
    format_duration(Duration::from_secs(secs))
}

/// Waits; 0 when no flow is left, 1 after `timeout`, if it does not drain any more, or if this node
/// does not know.
pub(super) async fn wait(
    client: &Client,
    target: &BackendSelector,
    until: Until,
    timeout: Option<Duration>,
) -> Result<ExitCode> {
    let started = Instant::now();
    let mut patient = Patient::new(client);
    let mut progress = Progress::new(Pulse::EachChange);
    let mut removing = false;
    let mut warned = Vec::new();
    let mut path = target.path();
    loop {
        let BackendSelector { service, backend: name } = target;
        let OneBackend { address, backend } = match patient.get(&path).await {
            // One that is removed while it drains leaves with its last flow.
            Err(client::Error::Refused(_)) if removing => {
                progress.end();
                eprintln!("backend {name} of {service} has no flow left, and is removed");
                return Ok(ExitCode::SUCCESS);
            }
            answer => answer?,
        };
        // Its name may become another's while it drains.
        path = paths::backend(service, &address.into());
        removing = matches!(backend.admin, Admin::Removing { .. });
        let passed = match backend.admin {
            Admin::Draining { deadline } | Admin::Removing { deadline } => {
                deadline.is_some_and(|deadline| deadline <= SystemTime::now())
            }
            _ => false,
        };
        let left = left(&backend);
        if !backend.drains() {
            progress.end();
            eprintln!("lbctl: backend {name} of {service} does not drain any more");
            return Ok(ExitCode::FAILURE);
        }
        if backend.is_unsynced() {
            progress.end();
            eprintln!(
                "lbctl: backend {name} of {service} drains, but this node does not know when it has no \
                 flow left: only the Active sees the traffic of {service}, and does not send its \
                 flows to this node (see [sync]); run `lbctl backend drain {service} {name} --wait` on the \
                 Active, which `lbctl vrrp status` names"
            );
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
            eprintln!("backend {name} of {service} has no flow left, after {after} ({why})");
            return Ok(ExitCode::SUCCESS);
        }
        if until == Until::Estimated && backend.is_estimated_over() {
            progress.end();
            let after = whole_secs(started.elapsed().as_secs());
            eprintln!("backend {name} of {service} has {}, after {after}", estimate(&backend));
            return Ok(ExitCode::SUCCESS);
        }
        if timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
            progress.end();
            eprintln!("lbctl: backend {name} of {service} still drains: {left}");
            return Ok(ExitCode::FAILURE);
        }
        if until == Until::Estimated
            && let Some(why) = waits_for_proof(&backend)
            && !warned.contains(&why)
        {
            progress.end();
            eprintln!("lbctl: {}", why.text(target));
            warned.push(why);
        }
        // Values that change each second are for a line that changes.
        let times = if io::stderr().is_terminal() { times(&backend) } else { String::new() };
        progress.show(&format!("{left}{times}"), started.elapsed());
        let rest = timeout.map_or(POLL, |timeout| timeout.saturating_sub(started.elapsed()));
        tokio::time::sleep(rest.min(POLL)).await;
    }
}

/// The remaining flows of a backend.
pub(super) fn left(backend: &Backend) -> String {
    let slots = backend.slots + backend.base_slots;
    let local = backend.drain.map_or(0, |drain| drain.local_connections);
    let local = match local {
        0 => String::new(),
        some => format!("{} of this node", counted(some, "connection")),
    };
    if slots == 0 && backend.pins == 0 {
        return if local.is_empty() { "its pinned flows are counted".into() } else { local };
    }
    let local = if local.is_empty() { local } else { local + ", " };
    let connections = match backend.connections {
        Some(Connections { open, .. }) => format!("{}, ", counted(open, "open connection")),
        None => String::new(),
    };
    let open = backend.pins.saturating_sub(backend.pins_closing);
    let closing = match backend.pins_closing {
        0 => String::new(),
        closing => format!(" and {} closing", format_count(closing)),
    };
    format!(
        "{connections}{local}{} pinned flow{}{closing}, older flows possible in {}",
        format_count(open),
        if open == 1 { "" } else { "s" },
        counted(slots, "slot"),
    )
}

/// When a backend was sent the last packet of a flow that may be left, and when its drain is over.
pub(super) fn times(backend: &Backend) -> String {
    let Some(drain) = backend.drain else { return String::new() };
    let last_packet =
        drain.heard_secs.map(|secs| format!("; last packet {} ago", whole_secs(secs)));
    let ends = drain
        .ends_in_secs
        .map(|secs| format!("; over for certain in {} if all stay silent", whole_secs(secs)));
    last_packet.into_iter().chain(ends).collect()
}

/// That a drain is over by estimate.
pub(super) fn estimate(backend: &Backend) -> String {
    let ends = backend.drain.and_then(|drain| drain.ends_in_secs);
    let ends = ends.map(|secs| format!("; proven in {}", whole_secs(secs))).unwrap_or_default();
    if backend.drain.is_some_and(|drain| drain.closed) {
        return format!(
            "no connection left: both ends have closed all that passed this node{ends}"
        );
    }
    let silence = silence(backend);
    format!(
        "no flow left with a packet for {silence} (estimated: safe to stop unless a client is silent \
         for longer{ends})"
    )
}

/// Why an estimate is not to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitsForProof {
    /// This node does not see all packets of the service.
    Unseen,
    /// Pinned flows are open that are silent for as long as it takes to give an estimate.
    Open,
    /// Processes of this node have connections.
    Local,
}

impl WaitsForProof {
    fn text(self, BackendSelector { service, backend: name }: &BackendSelector) -> String {
        match self {
            Self::Unseen => format!(
                "this node does not see all packets of {service}, and can't estimate; it waits for the \
                 proven end"
            ),
            Self::Open => format!(
                "pinned flows are open, though silent: without an estimate it waits until they close, or \
                 for the proven end; `lbctl flows {service} --backend {name}` shows them, \
                 `--deadline` moves them"
            ),
            Self::Local => format!(
                "processes of this node have connections to {name}, which its own `ss -tp` shows; it waits until they are \
                 closed"
            ),
        }
    }
}

fn waits_for_proof(backend: &Backend) -> Option<WaitsForProof> {
    let is_known = backend.has_flows() && backend.slots == 0 && !backend.pins_stale;
    let drain = backend.drain.filter(|_| is_known)?;
    let is_silent = drain.heard_secs.is_some_and(|secs| secs >= drain.silence_secs);
    match drain.unseen {
        _ if drain.local_connections > 0 => Some(WaitsForProof::Local),
        Some(_) => Some(WaitsForProof::Unseen),
        None if backend.pins > backend.pins_closing && is_silent => Some(WaitsForProof::Open),
        None => None,
    }
}

fn whole_secs(secs: u64) -> String {
    format_duration(Duration::from_secs(secs))
}

/// How often a change is printed where no line can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pulse {
    /// Each.
    EachChange,
    /// The current value, every ten seconds.
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

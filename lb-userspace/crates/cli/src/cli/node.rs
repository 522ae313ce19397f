//! The node as a whole: maintenance.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, Subcommand};
use hyper::Method;
use lb_api::paths;

use super::{
    change::Changer,
    drain_wait::{Progress, Pulse},
    options::Dry,
    patience::Patient,
};
use lb_api::client::Client;
use lb_api::requests::{NodeChange, Terms};
use lb_api::status::Status;
use lb_model::{
    desired::Vips,
    units::{format_count, format_duration, parse_duration, rfc3339},
};

/// How often the counters are read.
const POLL: Duration = Duration::from_millis(500);

/// What to do with the node.
#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Show whether it is enabled or draining, since when, and what it serves.
    #[command(visible_alias = "show")]
    Status,
    /// Mark it as leaving, for maintenance: virtual routers are handed over, and not taken back until
    /// it is enabled; what other VIPs draw is forwarded until they are elsewhere.
    Drain(NodeDrain),
    /// Take that back.
    Enable {
        #[command(flatten)]
        dry: Dry,
    },
}

/// How to leave.
#[derive(Debug, Args)]
pub(super) struct NodeDrain {
    #[command(flatten)]
    dry: Dry,
    /// Return when no packet for a service comes any more.
    #[arg(long)]
    wait: bool,
    /// How long none may have come.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "wait", default_value = "5s")]
    quiet: Duration,
    /// Wait no longer than this, as 15m; then print what still comes, and exit with 1.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "wait")]
    timeout: Option<Duration>,
}

pub(super) async fn run(command: &NodeCommand, changer: &Changer<'_>) -> Result<ExitCode> {
    let Changer { client, printer, .. } = *changer;
    let change = async |draining, dry: &Dry| {
        let terms = Terms { dry_run: dry.dry_run, yes: false };
        let changer = Changer { terms, ..*changer };
        changer.make_with(Method::PATCH, paths::NODE, &NodeChange { draining }).await
    };
    match command {
        NodeCommand::Status => {
            let status: Status = client.get(paths::STATUS).await?;
            printer.print(&status.node, || show(&status))?;
        }
        NodeCommand::Enable { dry } => change(false, dry).await?,
        NodeCommand::Drain(drain) => {
            change(true, &drain.dry).await?;
            if drain.wait && !drain.dry.dry_run {
                return wait(client, drain.quiet, drain.timeout).await;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(status: &Status) -> String {
    let vips: BTreeSet<Vips> = status.services.values().map(|service| service.key.vips()).collect();
    let vips: Vec<_> = vips.iter().map(ToString::to_string).collect();
    let vips = if vips.is_empty() { "none".into() } else { vips.join(", ") };
    format!("{}\nVIPs: {vips}\n", state(status))
}

/// The node's state, in a line.
pub(super) fn state(status: &Status) -> String {
    match status.node.draining_since {
        Some(since) => format!(
            "node: draining since {}; 'lbctl node enable' takes it back",
            rfc3339::format(since)
        ),
        None => "node: enabled".into(),
    }
}

/// Waits until nothing comes any more; 1 after `timeout`, or if the drain is called off.
async fn wait(client: &Client, quiet: Duration, timeout: Option<Duration>) -> Result<ExitCode> {
    let started = Instant::now();
    let mut patient = Patient::new(client);
    let mut traffic = Traffic::new(started);
    let mut progress = Progress::new(Pulse::Slow);
    loop {
        let status: Status = patient.get(paths::STATUS).await?;
        let now = Instant::now();
        let rate = traffic.look(counters(&status), now);
        if status.node.draining_since.is_none() {
            progress.end();
            eprintln!("lbctl: this node does not drain any more");
            return Ok(ExitCode::FAILURE);
        }
        if traffic.silence(now) >= quiet {
            progress.end();
            let quiet = format_duration(quiet);
            eprintln!("no packet for a service has come for {quiet}: traffic is elsewhere");
            return Ok(ExitCode::SUCCESS);
        }
        let left = format!("{} packets per second", format_count(rate));
        let elapsed = started.elapsed();
        if timeout.is_some_and(|timeout| elapsed >= timeout) {
            progress.end();
            eprintln!(
                "lbctl: packets still come: {left}, the last one {} ago",
                format_duration(Duration::from_secs(traffic.silence(now).as_secs()))
            );
            return Ok(ExitCode::FAILURE);
        }
        progress.show(&left, elapsed);
        let rest = timeout.map_or(POLL, |timeout| timeout.saturating_sub(elapsed));
        tokio::time::sleep(rest.min(POLL)).await;
    }
}

/// The packet counters of services: each backend, and each reason to drop.
type Counters = BTreeMap<String, u64>;

fn counters(status: &Status) -> Counters {
    let backends = status.services.iter().flat_map(|(name, service)| {
        let backends = service.backends.iter();
        backends.map(move |(address, backend)| (format!("{name} {address}"), backend.sent.packets))
    });
    let dropped = status.dropped.iter().map(|(reason, count)| (reason.clone(), count.packets));
    backends.chain(dropped).collect()
}

/// The recent packets.
#[derive(Debug)]
struct Traffic {
    last: Option<(Counters, Instant)>,
    /// When a packet was seen; at first, when one may have been.
    seen: Instant,
}

impl Traffic {
    const fn new(now: Instant) -> Self {
        Self { last: None, seen: now }
    }

    /// Takes the counters in; packets per second since the last time.
    fn look(&mut self, counters: Counters, now: Instant) -> u64 {
        let before = self.last.replace((counters, now));
        let (Some((before, then)), Some((counters, _))) = (before, &self.last) else { return 0 };
        // A backend that is gone, or is counted from zero again, has had no packet by that.
        let came: u64 = counters
            .iter()
            .map(|(name, count)| count.saturating_sub(before.get(name).copied().unwrap_or(0)))
            .sum();
        if came > 0 {
            self.seen = now;
        }
        let millis = u64::try_from(now.duration_since(then).as_millis()).unwrap_or(u64::MAX);
        came.saturating_mul(1_000) / millis.max(1)
    }

    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_from_the_last_packet() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let of = |a: u64, dropped: u64| -> Counters {
            [("web 10.0.0.11".to_owned(), a), ("no_backend".to_owned(), dropped)].into()
        };
        let mut traffic = Traffic::new(start);
        assert_eq!(traffic.look(of(1_000, 5), at(0)), 0, "what came before is not counted");
        assert_eq!(traffic.look(of(1_100, 5), at(500)), 200);
        assert_eq!(traffic.look(of(1_100, 5), at(1_000)), 0);
        assert_eq!(traffic.silence(at(3_000)), Duration::from_millis(2_500));
        assert_eq!(traffic.look(of(1_100, 6), at(3_000)), 0, "less than one a second");
        assert_eq!(traffic.silence(at(3_000)), Duration::ZERO, "a dropped one is one too");
        let fewer: Counters = [("no_backend".to_owned(), 6)].into();
        assert_eq!(traffic.look(fewer, at(4_000)), 0);
        assert_eq!(traffic.silence(at(4_000)), Duration::from_secs(1), "a backend was removed");
    }
}

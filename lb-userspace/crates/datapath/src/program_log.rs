//! The log records of the balancer's program about rare packets, on their way into the log.
//!
//! The program writes into a ring that is its own and not pinned, and only as many messages as it was
//! granted: none unless the log takes them, which is looked at each second.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use aya_log::EbpfLogger;
use lb_common::verdict::{Drop, Pass};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{Level, debug, enabled};

/// The map with the number of messages that may be written.
const BUDGET: &str = "LOG_BUDGET";
/// Messages in a second, of all CPUs together: fewer than the ring has room for.
const IN_A_SECOND: u64 = 100;
/// How often the ring is read.
const READ: Duration = Duration::from_millis(100);
/// Reads between two grants.
const GRANT: u32 = 10;

/// The program's log.
pub struct ProgramLog {
    logger: EbpfLogger<Sink>,
    budget: Array<MapData, u64>,
}

impl std::fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProgramLog")
    }
}

impl ProgramLog {
    /// Takes the log's maps out of the program's object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self> {
        let budget = object.take_map(BUDGET).with_context(|| format!("no map {BUDGET}"))?;
        let budget = budget.try_into().with_context(|| BUDGET.to_owned())?;
        let logger = EbpfLogger::init_with_logger(object, Sink).context("the program's log")?;
        Ok(Self { logger, budget })
    }

    /// Passes on the program's records, for as long as the process runs.
    pub async fn run(mut self) {
        let mut tick = interval(READ);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for turn in (0..GRANT).cycle() {
            tick.tick().await;
            self.logger.flush();
            if turn == 0 {
                self.grant(if enabled!(target: "xdp", Level::DEBUG) { IN_A_SECOND } else { 0 });
            }
        }
    }

    fn grant(&mut self, messages: u64) {
        if let Err(error) = self.budget.set(0, messages, 0) {
            debug!("grant messages to the program: {error}");
        }
    }
}

/// Turns the program's records into events of the log.
#[derive(Debug)]
struct Sink;

impl log::Log for Sink {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        enabled!(target: "xdp", Level::DEBUG)
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        match reason(&text) {
            Some((verdict, reason, rest)) => {
                debug!(target: "xdp", reason, "packet {verdict}: {rest}")
            }
            None => debug!(target: "xdp", "{text}"),
        }
    }

    fn flush(&self) {}
}

/// The meaning of a reason's number, and the rest of the record: `reason=16 length=60`.
fn reason(text: &str) -> Option<(&'static str, &'static str, &str)> {
    let (number, rest) = text.strip_prefix("reason=")?.split_once(' ')?;
    let number: u32 = number.parse().ok()?;
    let passed = Pass::ALL.iter().find(|reason| reason.index() == number);
    let dropped = Drop::ALL.iter().find(|reason| reason.index() == number);
    let passed = passed.map(|reason| ("passed to the node", reason.name()));
    let (verdict, name) = passed.or(dropped.map(|reason| ("dropped", reason.name())))?;
    Some((verdict, name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_names_of_their_counters() {
        let text = format!("reason={} interface=2 length=60", Drop::NoBackend.index());
        assert_eq!(reason(&text), Some(("dropped", "no_backend", "interface=2 length=60")));
        let text = format!("reason={} length=13", Pass::Malformed.index());
        assert_eq!(reason(&text), Some(("passed to the node", "malformed", "length=13")));
        assert_eq!(reason("no room for a pin: client=::1 port=1"), None);
        assert_eq!(reason("reason=4000000000 length=1"), None);
    }
}

//! The results of `bench attack`, as tables for people and as JSON for programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use lb_api::status::{Count, Status};
use serde::{Deserialize, Serialize};

use crate::{arrivals::Arrival, udp::Tally};

/// How long a request may take.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Everything that was measured.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// How long each flood lasted.
    pub flood_seconds: f64,
    /// Frames in a second that were to be sent.
    pub frames_per_second_asked: u32,
    /// Time from a request to the next.
    pub request_every_ms: u64,
    /// Room for pins in the labs.
    pub pins_in_labs: u32,
    /// One flood in one phase each.
    pub cells: Vec<Cell>,
    /// Floods through the program, beside a table of all flows.
    pub tables: Option<Tables>,
    /// Where tuples fall.
    pub slots: Vec<Spread>,
}

/// The change of the ring meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// No backend has changed.
    Steady,
    /// One of three drains: its slots are in flux, and new flows of them are pinned.
    InFlux,
}

/// One flood in one phase.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cell {
    /// The flood.
    pub flood: String,
    /// The change of the ring.
    pub phase: Phase,
    /// Frames that were sent.
    pub frames: u64,
    /// Frames that the attacker's own interface had no room for; they are not among `frames`.
    pub frames_refused: u64,
    /// Frames in a second.
    pub frames_per_second: u64,
    /// The balancer's verdicts on all packets during the flood, those of clients among them.
    pub packets: Packets,
    /// Requests before the flood.
    pub quiet: Requests,
    /// Requests during the flood.
    pub flooded: Requests,
    /// Connections that made requests from before the flood until after the change that followed it.
    pub connections: usize,
    /// Those of them that broke or changed their host.
    pub connections_broken: usize,
    /// Downloads during the same time.
    pub downloads: usize,
    /// Those of them that broke.
    pub downloads_broken: usize,
    /// Small datagrams.
    pub udp: Datagrams,
    /// Datagrams that take two fragments each.
    pub udp_fragmented: Datagrams,
    /// Flows in the table of pins.
    pub pins: Pins,
    /// Flows in the table of tracked UDP flows that were the clients' before the flood.
    pub tracked: Kept,
    /// How often a backend was taken for dead.
    pub backends_went_down: u64,
    /// The latest that a request was made after its time: the load of this machine.
    pub late_ms: f64,
}

/// Packets by their fate.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packets {
    /// Sent to a backend.
    pub forwarded: u64,
    /// Left to the node's own stack, by reason.
    pub passed: BTreeMap<String, u64>,
    /// Dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// Requests, each on a connection of its own.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// How many.
    pub requests: usize,
    /// How many of them failed.
    pub failed: usize,
    /// The same by error.
    pub failures: BTreeMap<String, usize>,
    /// Median of those that did not fail.
    pub median_ms: f64,
    /// Their 99th percentile.
    pub p99_ms: f64,
    /// The longest.
    pub longest_ms: f64,
}

/// Datagrams of clients, from before the flood until after it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Datagrams {
    /// How many were sent.
    pub sent: u64,
    /// How many were not answered.
    pub lost: usize,
    /// Flows of them.
    pub flows: usize,
    /// Flows that were answered by more than one host.
    pub flows_moved: usize,
}

/// Entries of the clients' in a table.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Before the flood.
    pub before: usize,
    /// How many of them were not there after it, or named another backend.
    pub lost: usize,
}

/// The table of pins.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pins {
    /// Those of the clients' open connections.
    pub clients: Kept,
    /// Entries before the flood, of all sources.
    pub used_before: u64,
    /// Entries after it.
    pub used_after: u64,
    /// Room.
    pub capacity: u64,
}

/// The effects of floods on the program alone.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tables {
    /// Floods through each system.
    pub runs: Vec<Run>,
    /// Segments that are forged with the tuples of clients.
    pub forged: Forged,
}

/// One flood through one system.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// The table that keeps flows where they are.
    pub system: String,
    /// Entries that its table has room for.
    pub capacity: u32,
    /// The kernel's memory for it.
    pub table_bytes: u64,
    /// Frames of the flood.
    pub flood_frames: u64,
    /// How many of them in a row had the same tuple.
    pub frames_per_tuple: u64,
    /// Clients' flows in the table before the flood.
    pub entries_before: usize,
    /// How many of them were not there after it.
    pub entries_lost: usize,
    /// Entries after the flood, most of them the flood's.
    pub entries_after: usize,
    /// Flows that sent nothing during the flood.
    pub silent: Moved,
    /// Flows that sent a packet now and then.
    pub busy: Moved,
    /// Flows that were opened at the end of the flood.
    pub late: Moved,
}

/// Flows, and those of them that the change after the flood has sent to another backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// All.
    pub flows: usize,
    /// Those that moved: their connections break.
    pub moved: usize,
}

/// The attacks of a sender that knows the addresses and ports of clients.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Forged {
    /// A SYN for each flow while no slot is in flux.
    pub syn_steady: Moved,
    /// A SYN for each flow that is older than the change, in slots that are in flux since.
    pub syn_in_flux: Moved,
    /// A SYN for each pinned flow, whose slot has changed again.
    pub syn_pinned: Moved,
    /// A FIN and then a SYN for each of them.
    pub fin_and_syn_pinned: Moved,
}

/// How even a flood falls.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The flood.
    pub flood: String,
    /// Frames.
    pub frames: u64,
    /// Slots of the ring.
    pub slots: u32,
    /// Slots that were hit.
    pub slots_hit: usize,
    /// Frames of a slot on average.
    pub mean_frames: f64,
    /// Frames of the slot that was hit most.
    pub busiest_slot_frames: u32,
    /// The same if every frame's slot were drawn by lot.
    pub busiest_slot_frames_by_lot: u32,
    /// Share of the backend that got most, of all frames; a third is even.
    pub busiest_backend_share: f64,
}

impl Report {
    /// Without results.
    pub fn new(time: Duration, per_second: u32, every: Duration, pins: u32) -> Self {
        Self {
            flood_seconds: time.as_secs_f64(),
            frames_per_second_asked: per_second,
            request_every_ms: every.as_millis() as u64,
            pins_in_labs: pins,
            cells: Vec::new(),
            tables: None,
            slots: Vec::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.cells.is_empty() {
            let (every, limit) = (self.request_every_ms, LIMIT.as_secs());
            let pins = self.pins_in_labs;
            writeln!(
                f,
                "a request every {every} ms on a connection of its own; it failed if it has no answer within {limit} s.\n\
                 Times in ms. Broken: of {} connections and of the downloads. Pins: of open connections, lost;\n\
                 entries of the table after the flood, of {pins}. `nowhere`: the flood leaves its sender and\n\
                 reaches nobody",
                self.cells[0].connections
            )?;
        }
        for phase in Phase::ALL {
            let mut cells = self.cells.iter().filter(|cell| cell.phase == phase).peekable();
            if cells.peek().is_none() {
                continue;
            }
            writeln!(f, "\n{}", phase.describe())?;
            writeln!(
                f,
                "{:<12}{:>9}{:>9}{:>7}{:>6}{:>16}{:>16}{:>8}{:>10}{:>9}{:>8}{:>10}",
                "flood",
                "frames",
                "/s",
                "failed",
                "of",
                "median (quiet)",
                "p99 (quiet)",
                "broken",
                "downloads",
                "pins",
                "entries",
                "udp lost"
            )?;
            cells.try_for_each(|cell| cell.line(f))?;
        }
        if let Some(tables) = &self.tables {
            write!(f, "{tables}")?;
        }
        if !self.slots.is_empty() {
            writeln!(
                f,
                "\n{:<34}{:>9}{:>9}{:>8}{:>9}{:>8}{:>9}",
                "tuples", "frames", "hit", "mean", "busiest", "by lot", "backend"
            )?;
            self.slots.iter().try_for_each(|spread| spread.line(f))?;
        }
        Ok(())
    }
}

impl Phase {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Steady, Self::InFlux];

    /// As `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::InFlux => "in-flux",
        }
    }

    /// In a sentence.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Steady => "Steady: no slot is in flux, and no flow needs a pin.",
            Self::InFlux => "In flux: one of the three hosts drains since before the flood.",
        }
    }
}

impl Moved {
    /// One more flow.
    pub fn count(&mut self, moved: bool) {
        self.flows += 1;
        self.moved += usize::from(moved);
    }
}

impl Packets {
    /// The differences between two moments.
    pub fn between(before: &Status, after: &Status) -> Self {
        let sent = |status: &Status| -> u64 {
            let services = status.services.values();
            services.flat_map(|one| one.backends.values()).map(|one| one.sent.packets).sum()
        };
        let since = |before: &BTreeMap<String, Count>, after: &BTreeMap<_, _>| {
            let packets = |(reason, count): (&String, &Count)| {
                let had = before.get(reason).map_or(0, |count| count.packets);
                (reason.clone(), count.packets - had)
            };
            after.iter().map(packets).filter(|(_, packets)| *packets > 0).collect()
        };
        Self {
            forwarded: sent(after) - sent(before),
            passed: since(&before.passed, &after.passed),
            dropped: since(&before.dropped, &after.dropped),
        }
    }
}

impl Requests {
    /// These.
    pub fn of(arrivals: &[&Arrival]) -> Self {
        let mut failures = BTreeMap::new();
        for failure in arrivals.iter().filter_map(|arrival| arrival.end.as_ref().err()) {
            *failures.entry(failure.word().to_owned()).or_default() += 1;
        }
        let ended = arrivals.iter().filter(|arrival| arrival.end.is_ok());
        let mut took: Vec<_> = ended.map(|arrival| arrival.took).collect();
        took.sort_unstable();
        let at = |part: f64| {
            let place = ((took.len() as f64 * part).ceil() as usize).saturating_sub(1);
            took.get(place).copied().map_or(0.0, millis)
        };
        Self {
            requests: arrivals.len(),
            failed: arrivals.len() - took.len(),
            failures,
            median_ms: at(0.5),
            p99_ms: at(0.99),
            longest_ms: at(1.0),
        }
    }
}

impl Datagrams {
    /// Those of a probe with so many flows.
    pub fn of(tally: &Tally, flows: usize) -> Self {
        let (lost, flows_moved) = (tally.lost.len(), tally.moved.len());
        Self { sent: tally.sent, lost, flows, flows_moved }
    }
}

impl Kept {
    /// Of flows with their backends.
    pub fn of(before: &BTreeSet<(u16, String)>, after: &BTreeSet<(u16, String)>) -> Self {
        Self { before: before.len(), lost: before.difference(after).count() }
    }
}

/// In milliseconds, to the hundredth.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

impl Cell {
    fn line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let beside = |flooded: f64, quiet: f64| format!("{flooded:.2} ({quiet:.2})");
        let Self { quiet, flooded, pins, udp, udp_fragmented, .. } = self;
        writeln!(
            f,
            "{:<12}{:>9}{:>9}{:>7}{:>6}{:>16}{:>16}{:>8}{:>10}{:>9}{:>8}{:>10}",
            self.flood,
            self.frames,
            self.frames_per_second,
            flooded.failed,
            flooded.requests,
            beside(flooded.median_ms, quiet.median_ms),
            beside(flooded.p99_ms, quiet.p99_ms),
            self.connections_broken,
            format!("{} of {}", self.downloads_broken, self.downloads),
            format!("{} of {}", pins.clients.lost, pins.clients.before),
            pins.used_after,
            udp.lost + udp_fragmented.lost,
        )
    }
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nfloods through the program, one frame at a time; flows that a change of backends after them moves\n\
             {:<22}{:>9}{:>10}{:>7}{:>9}{:>8}{:>9}{:>15}{:>15}{:>13}",
            "",
            "MiB",
            "frames",
            "each",
            "entries",
            "lost",
            "after",
            "silent moved",
            "busy moved",
            "late moved"
        )?;
        for run in &self.runs {
            let moved = |of: Moved| format!("{} of {}", of.moved, of.flows);
            writeln!(
                f,
                "{:<22}{:>9.1}{:>10}{:>7}{:>9}{:>8}{:>9}{:>15}{:>15}{:>13}",
                run.system,
                run.table_bytes as f64 / f64::from(1 << 20),
                run.flood_frames,
                run.frames_per_tuple,
                run.entries_before,
                run.entries_lost,
                run.entries_after,
                moved(run.silent),
                moved(run.busy),
                moved(run.late),
            )?;
        }
        let Forged { syn_steady, syn_in_flux, syn_pinned, fin_and_syn_pinned } = self.forged;
        writeln!(f, "\nsegments forged with the clients' own tuples; flows that move by that")?;
        for (what, of) in [
            ("SYN, steady", syn_steady),
            ("SYN, older flow in flux", syn_in_flux),
            ("SYN, pinned flow", syn_pinned),
            ("FIN and SYN, pinned flow", fin_and_syn_pinned),
        ] {
            writeln!(f, "{what:<34}{:>9} of {}", of.moved, of.flows)?;
        }
        Ok(())
    }
}

impl Spread {
    fn line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<34}{:>9}{:>9}{:>8.2}{:>9}{:>8}{:>8.1}%",
            self.flood,
            self.frames,
            self.slots_hit,
            self.mean_frames,
            self.busiest_slot_frames,
            self.busiest_slot_frames_by_lot,
            self.busiest_backend_share * 100.0,
        )
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flooded, connections_broken, downloads_broken, pins, .. } = self;
        write!(f, "{} of {} requests failed, ", flooded.failed, flooded.requests)?;
        write!(f, "{connections_broken} connections and {downloads_broken} downloads broke, ")?;
        write!(f, "{} of {} pins lost", pins.clients.lost, pins.clients.before)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::arrivals::Failure;

    fn arrival(took_ms: u64, end: Result<String, Failure>) -> Arrival {
        let took = Duration::from_millis(took_ms);
        Arrival { at: Instant::now(), late: Duration::ZERO, took, end }
    }

    #[test]
    fn percentiles_are_those_of_what_did_not_fail() {
        let mut arrivals: Vec<_> = (1..=200).map(|ms| arrival(ms, Ok("web1".into()))).collect();
        arrivals.push(arrival(5_000, Err(Failure::TimedOut)));
        let requests = Requests::of(&arrivals.iter().collect::<Vec<_>>());
        assert_eq!((requests.requests, requests.failed), (201, 1));
        assert_eq!((requests.median_ms, requests.p99_ms), (100.0, 198.0));
        assert_eq!(requests.longest_ms, 200.0);
        assert_eq!(requests.failures["timed out"], 1);
    }

    #[test]
    fn nothing_has_no_percentiles() {
        let requests = Requests::of(&[]);
        assert_eq!((requests.requests, requests.median_ms), (0, 0.0));
    }

    #[test]
    fn a_pin_is_lost_that_is_gone_or_names_another() {
        let flows = |list: &[(u16, &str)]| -> BTreeSet<_> {
            list.iter().map(|&(port, backend)| (port, backend.to_owned())).collect()
        };
        let before = flows(&[(1, "a"), (2, "b"), (3, "c")]);
        let after = flows(&[(1, "a"), (2, "c"), (4, "d")]);
        assert_eq!(Kept::of(&before, &after), Kept { before: 3, lost: 2 });
    }
}

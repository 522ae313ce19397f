//! The results, as tables for people and as JSON for programs.

use std::{fmt, time::Duration};

use serde::Serialize;

use super::{
    cell::{Cell, EVERY, LIMIT, PINS, Phase},
    slots::Spread,
    tables::{Forged, Moved, Tables},
};

/// Everything that was measured.
#[derive(Serialize)]
pub struct Report {
    /// How long each flood lasted.
    pub flood_seconds: f64,
    /// Frames in a second that were to be sent.
    pub frames_per_second_asked: u32,
    /// Time from a request to the next.
    pub request_every_ms: u128,
    /// Room for pins in the labs.
    pub pins_in_labs: u32,
    /// One flood in one phase each.
    pub cells: Vec<Cell>,
    /// Floods through the program, beside a table of all flows.
    pub tables: Option<Tables>,
    /// Where tuples fall.
    pub slots: Vec<Spread>,
}

impl Report {
    /// Without results.
    pub fn new(time: Duration, per_second: u32) -> Self {
        Self {
            flood_seconds: time.as_secs_f64(),
            frames_per_second_asked: per_second,
            request_every_ms: EVERY.as_millis(),
            pins_in_labs: PINS,
            cells: Vec::new(),
            tables: None,
            slots: Vec::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.cells.is_empty() {
            let (every, limit) = (EVERY.as_millis(), LIMIT.as_secs());
            writeln!(
                f,
                "a request every {every} ms on a connection of its own; it failed if it has no answer within {limit} s.\n\
                 Times in ms. Broken: of {} connections and of the downloads. Pins: of open connections, lost;\n\
                 entries of the table after the flood, of {PINS}. `nowhere`: the flood leaves its sender and\n\
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
    const fn describe(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::InFlux => "in flux: one of three backends drains",
        }
    }
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

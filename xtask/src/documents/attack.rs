//! The chapter of `bench attack`.

use anyhow::Result;
use kit::reports::attack::{Cell, Phase, Report};
use minijinja::{Value, context};
use serde_json::Value as Json;

use super::{Plots, typed};

/// Cells by phase, and sums of all cells.
pub fn prepare(results: &Json, _: &mut Plots) -> Result<Value> {
    let report: Report = typed(results)?;
    let phase = |phase: Phase| {
        let cells: Vec<_> = report.cells.iter().filter(|cell| cell.phase == phase).collect();
        (!cells.is_empty()).then(|| context! { title => phase.describe(), cells })
    };
    let phases: Vec<_> = Phase::ALL.into_iter().filter_map(phase).collect();
    let sum = |of: fn(&Cell) -> usize| report.cells.iter().map(of).sum::<usize>();
    let tracked = context! {
        lost => sum(|cell| cell.tracked.lost),
        before => sum(|cell| cell.tracked.before),
    };
    let went_down: u64 = report.cells.iter().map(|cell| cell.backends_went_down).sum();
    let runs = report.tables.iter().flat_map(|tables| &tables.runs);
    let capacity = runs.map(|run| run.capacity).max();
    Ok(context! { phases, tracked, went_down, capacity, report })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kit::reports::attack::{Datagrams, Kept, Packets, Pins, Requests};

    use super::{super::tests::rendered, *};

    #[test]
    fn a_flood_is_told_with_what_it_cost() -> Result<()> {
        let requests = |failed| Requests {
            requests: 1_600,
            failed,
            failures: [].into(),
            median_ms: 0.8,
            p99_ms: 4.25,
            longest_ms: 1_020.82,
        };
        let datagrams = || Datagrams { sent: 900, lost: 2, flows: 20, flows_moved: 1 };
        let cell = Cell {
            flood: "syn-new".into(),
            phase: Phase::InFlux,
            frames: 400_000,
            frames_refused: 0,
            frames_per_second: 50_000,
            packets: Packets {
                forwarded: 412_000,
                passed: [("malformed".into(), 3)].into(),
                dropped: [].into(),
            },
            quiet: requests(0),
            flooded: requests(7),
            connections: 60,
            connections_broken: 0,
            downloads: 9,
            downloads_broken: 0,
            udp: datagrams(),
            udp_fragmented: datagrams(),
            pins: Pins {
                clients: Kept { before: 21, lost: 0 },
                used_before: 30,
                used_after: 65_536,
                capacity: 65_536,
            },
            tracked: Kept { before: 24, lost: 4 },
            backends_went_down: 0,
            late_ms: 0.0,
        };
        let (time, every) = (Duration::from_secs(8), Duration::from_millis(5));
        let mut report = Report::new(time, 50_000, every, 65_536);
        report.cells.push(cell);
        let text = rendered("attack", "cargo xtask bench attack", &report)?;
        for line in [
            "| SYNs, new tuples | 400,000 | 50,000 | 7 of 1,600 | 0.80 (0.80) | 4.25 (4.25) | 1021 (1021) | 0 of 60 | 0 of 9 |",
            "| SYNs, new tuples | 0 of 21 | 30, 65,536 | 2 of 900 | 2 of 900 | 2 of 40 | 412,000 | 3 | 0 |",
            "4 of 24 were lost in all runs",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(
            !text.contains("### Comparison") && !text.contains("### Floods of one slot"),
            "{text}"
        );
        Ok(())
    }
}

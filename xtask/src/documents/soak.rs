//! The chapter of `soak`.

use anyhow::Result;
use kit::reports::soak::{Growth, Report};
use minijinja::{Value, context};
use serde_json::Value as Json;

use super::{Plots, templates::commas, typed};

/// The figures of a process, and the unit that they are shown in.
const FIGURES: [(&str, u64); 4] =
    [("rss_bytes", 1024), ("fds", 1), ("bpf_maps", 1), ("bpf_programs", 1)];

/// How each process has grown that was spared: a row for each node and turn, a cell for each figure.
pub fn prepare(results: &Json, _: &mut Plots) -> Result<Value> {
    let report: Report = typed(results)?;
    let mut turns: Vec<(&str, usize)> =
        report.growth.iter().map(|growth| (growth.node.as_str(), growth.turn)).collect();
    turns.dedup();
    let row = |(node, turn): (&str, usize)| {
        let of_turn = |growth: &&Growth| growth.node == node && growth.turn == turn;
        let cells = FIGURES.map(|(figure, unit)| {
            let mut growths = report.growth.iter().filter(of_turn);
            let growth = growths.find(|growth| growth.what == figure)?;
            let [middle, last, bound] =
                [growth.middle, growth.last, growth.bound].map(|number| commas(number / unit));
            Some(format!("{middle}, {last} (at most {bound})"))
        });
        context! { node, number => turn + 1, cells => cells.map(Option::unwrap_or_default) }
    };
    let turns: Vec<_> = turns.into_iter().map(row).collect();
    Ok(context! { turns, services => &report.services, report })
}

#[cfg(test)]
mod tests {
    use kit::reports::soak::{Course, Node};

    use super::{super::tests, *};

    fn rendered(command: &str) -> Result<String> {
        let growth = |what: &str, turn, [middle, last, bound]: [u64; 3]| {
            let (node, what) = ("lb1".into(), what.into());
            Growth { node, turn, what, middle, last, bound }
        };
        let rss_bytes = Course { first: 2048, median: 4096, last: 5120 };
        let report = Report {
            seed: 7,
            services: vec!["dsr-v4".into(), "nat-v6".into()],
            duration_seconds: 180.2,
            operations: [("drain".into(), 3), ("add".into(), 2)].into(),
            broken_allowed: [("Killed".into(), 5)].into(),
            broken_not_allowed: 1,
            nodes: vec![Node { name: "lb1".into(), processes: 3, rss_bytes, ..Node::default() }],
            growth: vec![
                growth("rss_bytes", 0, [30 << 20, 31 << 20, 38 << 20]),
                growth("fds", 0, [50, 51, 54]),
                growth("rss_bytes", 1, [32 << 20, 32 << 20, 40 << 20]),
            ],
            ..Report::default()
        };
        tests::rendered("soak", command, &report)
    }

    #[test]
    fn a_soak_is_told_with_what_broke() -> Result<()> {
        let out = rendered("cargo xtask soak --minutes 3")?;
        for line in [
            "5 random operations in 3 minutes",
            "2 services (dsr-v4, nat-v6)",
            "not optimised. `cargo xtask soak --minutes 3 --seed 7` repeats",
            "| `drain` | 3 |",
            "| its nginx was killed or restarted | 5 |",
            "| **connections broken without a permitted reason** | 1 |",
            "| lb1 (3) | memory, KiB | 2 | 4 | 5 |",
        ] {
            assert!(out.contains(line), "{line}: {out}");
        }
        let out = rendered("cargo xtask soak --release")?;
        assert!(out.contains("as it is used. `cargo xtask soak --minutes 3 --seed 7 --release`"));
        Ok(())
    }

    #[test]
    fn growth_is_told_by_node_and_turn() -> Result<()> {
        let out = rendered("cargo xtask soak")?;
        for line in [
            "| lb1, 1 | 30,720, 31,744 (at most 38,912) | 50, 51 (at most 54) |  |  |",
            "| lb1, 2 | 32,768, 32,768 (at most 40,960) |  |  |  |",
        ] {
            assert!(out.contains(line), "{line}: {out}");
        }
        Ok(())
    }
}

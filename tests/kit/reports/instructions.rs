//! The results of `bench instructions`, as tables for people and as JSON for programs.

use std::{collections::BTreeMap, fmt};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// How much more than the figure in the tree is too much, as a part of it.
const GROWTH: f64 = 0.03;

/// Whose packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The cost of a program that does the same to the frame and decides nothing.
    Floor,
    /// The balancer.
    Lb,
    /// The balancer at tc. Most of it is the kernel's way of a socket buffer, which differs between kernels: it is not
    /// checked for growth.
    Tc,
    /// IPVS.
    Ipvs,
}

/// The cost of one packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Which packet.
    pub name: String,
    /// Whose.
    pub kind: Kind,
    /// To receive, decide and transmit it.
    pub instructions_per_packet: f64,
    /// The largest deviation of a round, as a part of the whole that was measured.
    pub spread: f64,
}

/// All of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The kernel, as `uname -r` has it.
    pub kernel: String,
    /// The cost of making a frame, sending it to the node and dropping it there: taken off all.
    pub taken_off_instructions_per_packet: f64,
    /// By case, in the order of the measurement.
    pub cases: Vec<Case>,
}

/// The floor that shows the difference between the kernels of two reports.
pub const FLOOR: &str = "floor: new MACs, and transmit";

impl Report {
    fn figure(&self, name: &str) -> Option<f64> {
        let case = self.cases.iter().find(|case| case.name == name);
        case.map(|case| case.instructions_per_packet)
    }

    /// That no packet of the balancer's costs much more than it did in `before`. The kernel's own
    /// cost may differ, by the floor's difference.
    ///
    /// # Errors
    ///
    /// If one does, or if a case of `before` is missing; the error names all.
    pub fn check(&self, before: &Self) -> Result<()> {
        let kernels = self.figure(FLOOR).unwrap_or(0.0) - before.figure(FLOOR).unwrap_or(0.0);
        let mut wrong = Vec::new();
        for case in before.cases.iter().filter(|case| case.kind == Kind::Lb) {
            let (name, was) = (&case.name, case.instructions_per_packet);
            match self.figure(name) {
                None => wrong.push(format!("{name}: not measured")),
                Some(is) if is - kernels > was * (1.0 + GROWTH) => {
                    wrong.push(format!("{name}: {:.0}, was {was:.0}", is - kernels));
                }
                Some(_) => {}
            }
        }
        ensure!(
            wrong.is_empty(),
            "instructions of a packet that have grown by more than {:.0} %: {}; if they must, \
             `cargo xtask bench instructions --update` notes the figures in bench/instructions.json",
            GROWTH * 100.0,
            wrong.join("; ")
        );
        Ok(())
    }

    /// A table; beside it the values of `before`.
    pub fn table<'a>(&'a self, before: Option<&'a Self>) -> Table<'a> {
        Table { report: self, before }
    }
}

/// A report for people.
pub struct Table<'a> {
    report: &'a Report,
    before: Option<&'a Report>,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { report, before } = self;
        writeln!(
            f,
            "instructions to receive a packet, decide, and transmit it, on Linux {}; making it and the\n\
             way to the node, {:.0}, are taken off",
            report.kernel, report.taken_off_instructions_per_packet
        )?;
        let noted: BTreeMap<_, _> = before
            .iter()
            .flat_map(|before| &before.cases)
            .map(|case| (case.name.as_str(), case.instructions_per_packet))
            .collect();
        let last = if before.is_some() { "noted" } else { "" };
        writeln!(f, "{:<44}{:>8}{:>12}{:>8}", "", "", "over floor", last)?;
        let floor = report.figure(FLOOR).unwrap_or(0.0);
        for case in &report.cases {
            let cost = case.instructions_per_packet;
            let noted = noted.get(case.name.as_str());
            let noted = noted.map_or_else(String::new, |noted| format!("{noted:.0}"));
            writeln!(f, "{:<44}{cost:>8.0}{:>12.0}{noted:>8}", case.name, cost - floor)?;
        }
        let spread = report.cases.iter().map(|case| case.spread).fold(0.0, f64::max);
        writeln!(f, "rounds differ from their median by {:.2} % at most", spread * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(floor: f64, ours: f64, theirs: f64) -> Report {
        let case = |name: &str, kind, instructions_per_packet| Case {
            name: name.to_owned(),
            kind,
            instructions_per_packet,
            spread: 0.0,
        };
        Report {
            kernel: "6.12".into(),
            taken_off_instructions_per_packet: 900.0,
            cases: vec![
                case(FLOOR, Kind::Floor, floor),
                case("dsr", Kind::Lb, ours),
                case("ipvs", Kind::Ipvs, theirs),
            ],
        }
    }

    #[test]
    fn growth_beyond_three_percent_is_refused_and_named() {
        let before = report(365.0, 480.0, 4_000.0);
        assert!(report(365.0, 494.0, 4_000.0).check(&before).is_ok());
        let error = report(365.0, 495.0, 4_000.0).check(&before).expect_err("it has grown");
        assert!(error.to_string().contains("dsr: 495, was 480"), "{error}");
    }

    #[test]
    fn another_kernel_or_a_slower_ipvs_is_no_growth() {
        let before = report(365.0, 480.0, 4_000.0);
        assert!(report(465.0, 580.0, 9_000.0).check(&before).is_ok());
        assert!(report(300.0, 480.0, 4_000.0).check(&before).is_err(), "the program has grown");
    }

    #[test]
    fn a_case_that_is_gone_is_refused() {
        let before = report(365.0, 480.0, 4_000.0);
        let mut after = before.clone();
        after.cases.retain(|case| case.kind != Kind::Lb);
        assert!(after.check(&before).is_err());
    }
}

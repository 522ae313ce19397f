//! The chapter of `bench instructions`.

use anyhow::Result;
use kit::reports::instructions::{Case, Kind, Report};
use minijinja::{Value, context};
use serde_json::Value as Json;

use super::{
    Plots,
    plot::{self, Bar},
    typed,
};

/// The aims for a packet, all included: of one flow and of new ones.
const AIMS: [(&str, f64); 4] = [
    ("dsr, one flow", 500.0),
    ("dsr, a new flow each", 500.0),
    ("ipip, one flow", 560.0),
    ("ipip, a new flow each", 560.0),
];

/// How far rounds were from their median at most, in per cent of the figures that are shown: the record
/// has it as a part of the whole, from which `taken_off` is not taken yet.
fn spread<'a>(cases: impl Iterator<Item = &'a Case>, taken_off: f64) -> f64 {
    let part = |case: &Case| {
        case.spread * (case.instructions_per_packet + taken_off) / case.instructions_per_packet
    };
    cases.map(part).fold(0.0, f64::max) * 100.0
}

/// The aim of a case, and by how many instructions it is over it; none of a case that has none.
pub fn over_aim(case: &Case) -> Option<(f64, f64)> {
    let (_, aim) = AIMS.iter().find(|(name, _)| *name == case.name)?;
    Some((*aim, case.instructions_per_packet.round() - aim))
}

/// How the aims compare with the figures.
fn aims(cases: &[Case]) -> Vec<String> {
    let verdict = |case: &Case| {
        let (name, (_, over)) = (&case.name, over_aim(case)?);
        Some(match over > 0.0 {
            true => format!("{name}: missed by {over:.0}"),
            false => format!("{name}: met"),
        })
    };
    cases.iter().filter_map(verdict).collect()
}

/// Floors, and one flow and new flows out of flux.
fn bars(cases: &[Case]) -> Vec<Bar> {
    let is_shown = |case: &&Case| {
        let flows = ["one flow", "a new flow each"].iter().any(|flows| case.name.ends_with(flows));
        case.kind == Kind::Floor || flows && !case.name.contains("in flux")
    };
    let bar = |case: &Case| {
        let kind = match case.kind {
            Kind::Lb => 0,
            Kind::Floor => 5,
            Kind::Ipvs => 1,
            Kind::Tc => 4,
        };
        Bar { name: case.name.clone(), value: case.instructions_per_packet.round(), kind }
    };
    cases.iter().filter(is_shown).map(bar).collect()
}

/// A plot, the lower floor, and how far rounds differ.
pub fn prepare(results: &Json, plots: &mut Plots) -> Result<Value> {
    let report: Report = typed(results)?;
    let (cases, taken_off) = (&report.cases, report.taken_off_instructions_per_packet);
    let is_xdp = |case: &&Case| matches!(case.kind, Kind::Floor | Kind::Lb);
    let spread_xdp = spread(cases.iter().filter(is_xdp), taken_off);
    let spread_stack = spread(cases.iter().filter(|case| !is_xdp(case)), taken_off);
    let svg = plot::bars("instructions of a packet", "instructions", &bars(cases))?;
    plots.insert("instructions".into(), svg);
    let floors = cases.iter().filter(|case| case.kind == Kind::Floor);
    let floor = floors.map(|case| case.instructions_per_packet).fold(f64::MAX, f64::min);
    Ok(context! { spread_xdp, spread_stack, floor, aims => aims(cases), report })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, kind: Kind, instructions_per_packet: f64, spread: f64) -> Case {
        Case { name: name.into(), kind, instructions_per_packet, spread }
    }

    #[test]
    fn a_spread_is_a_part_of_what_is_told() {
        let cases = [case("dsr", Kind::Lb, 500.0, 0.001), case("ipip", Kind::Lb, 1_500.0, 0.001)];
        assert!((spread(cases.iter(), 1_500.0) - 0.4).abs() < 1e-9);
    }

    #[test]
    fn each_aim_is_met_or_missed_by_its_figure() {
        let cases = [
            case("dsr, one flow", Kind::Lb, 637.2, 0.0),
            case("ipip, one flow", Kind::Lb, 560.0, 0.0),
        ];
        assert_eq!(aims(&cases), ["dsr, one flow: missed by 137", "ipip, one flow: met"]);
    }

    #[test]
    fn the_plot_has_floors_and_what_is_out_of_flux() {
        let names = [
            ("floor: new MACs, and transmit", Kind::Floor),
            ("dsr, one flow", Kind::Lb),
            ("dsr, 65,536 flows", Kind::Lb),
            ("dsr, in flux, one flow", Kind::Lb),
            ("IPVS DR, a new flow each", Kind::Ipvs),
        ];
        let cases = names.map(|(name, kind)| case(name, kind, 500.0, 0.0));
        let bars = bars(&cases);
        let shown: Vec<_> = bars.iter().map(|bar| (bar.name.as_str(), bar.kind)).collect();
        assert_eq!(shown, [(names[0].0, 5), (names[1].0, 0), (names[4].0, 1)]);
    }
}

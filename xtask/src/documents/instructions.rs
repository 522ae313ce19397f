//! The chapter of `bench instructions`.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Page,
    plot::{self, Bar},
    table::{Table, commas},
    typed,
};

#[derive(Deserialize)]
struct Report {
    kernel: String,
    taken_off_instructions_per_packet: f64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    kind: String,
    instructions_per_packet: f64,
    spread: f64,
}

/// The aims for a packet, all included: of one flow and of new ones.
const AIMS: [(&str, f64); 4] = [
    ("dsr, one flow", 500.0),
    ("dsr, a new flow each", 500.0),
    ("ipip, one flow", 560.0),
    ("ipip, a new flow each", 560.0),
];

/// How far rounds were from their median at most, in per cent of the figures that are told: the record
/// has it as a part of the whole, from which `taken_off` is not taken yet.
fn spread<'a>(cases: impl Iterator<Item = &'a Case>, taken_off: f64) -> f64 {
    let part = |case: &Case| {
        case.spread * (case.instructions_per_packet + taken_off) / case.instructions_per_packet
    };
    cases.map(part).fold(0.0, f64::max) * 100.0
}

/// How the aims compare with the figures.
fn aims(cases: &[Case]) -> String {
    let told = |&(name, aim): &(&str, f64)| {
        let case = cases.iter().find(|case| case.name == name)?;
        let over = case.instructions_per_packet.round() - aim;
        Some(match over > 0.0 {
            true => format!("{name}: missed by {over:.0}"),
            false => format!("{name}: met"),
        })
    };
    AIMS.iter().filter_map(told).collect::<Vec<_>>().join("; ")
}

/// Floors, and one flow and new flows out of flux.
fn bars(cases: &[Case]) -> Vec<Bar> {
    let is_shown = |case: &&Case| {
        let flows = ["one flow", "a new flow each"].iter().any(|flows| case.name.ends_with(flows));
        case.kind == "floor" || flows && !case.name.contains("in flux")
    };
    let bar = |case: &Case| {
        let kind = match case.kind.as_str() {
            "lb" => 0,
            "floor" => 5,
            _ => 1,
        };
        Bar { name: case.name.clone(), value: case.instructions_per_packet.round(), kind }
    };
    cases.iter().filter(is_shown).map(bar).collect()
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let Report { kernel, taken_off_instructions_per_packet: taken_off, cases } = typed(results)?;
    let spread = |is_ipvs: bool| {
        spread(cases.iter().filter(|case| (case.kind == "ipvs") == is_ipvs), taken_off)
    };
    let (ours, theirs) = (spread(false), spread(true));
    page.say(&format!(
        "Instructions that Linux {kernel} executes to receive a packet from one end of a veth pair, decide, \
         and transmit it, in a virtual machine whose clock is its count of instructions: it makes no \
         difference how busy the machine below is. Rounds of a case differ from their median by {ours:.2} % of \
         it at most, with IPVS by {theirs:.2} %. What it takes to make a packet and to bring it to the node, \
         {taken_off:.0}, is taken off. The floors do to a packet what the balancer does and decide nothing; \
         *over the floor* is over the one that takes less. IPVS has its Maglev scheduler, a large table of \
         connections and no connection tracking, and transmits into a dummy interface, so less is charged to it."
    ));
    let svg = plot::bars("instructions of a packet", "instructions", &bars(&cases))?;
    page.plot("instructions", "Instructions of a packet, beside two floors and IPVS", svg);
    let floors = cases.iter().filter(|case| case.kind == "floor");
    let floor = floors.map(|case| case.instructions_per_packet).fold(f64::MAX, f64::min);
    let mut table = Table::new(["packets", "instructions", "over the floor"]);
    for case in &cases {
        let cost = case.instructions_per_packet;
        let over = commas((cost - floor).max(0.0).round() as u64);
        table.row([case.name.clone(), commas(cost.round() as u64), over]);
    }
    table.write(&mut page.text);
    page.say(&format!(
        "The aims, which are no measurement, were 500 with `dsr` and 560 with `ipip`, for one flow and for new \
         ones, all included. {}. [plain.rs](../lb-common/src/plain.rs) has a table of where the \
         instructions of a packet go.",
        aims(&cases)
    ));
    page.say(
        "Not shown: what memory costs. A table of flows grows with them and a ring does not, so beyond the \
         caches the distance may be larger than the counts tell.",
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, kind: &str, instructions_per_packet: f64, spread: f64) -> Case {
        Case { name: name.into(), kind: kind.into(), instructions_per_packet, spread }
    }

    #[test]
    fn a_spread_is_a_part_of_what_is_told() {
        let cases = [case("dsr", "lb", 500.0, 0.001), case("ipip", "lb", 1_500.0, 0.001)];
        assert!((spread(cases.iter(), 1_500.0) - 0.4).abs() < 1e-9);
    }

    #[test]
    fn each_aim_is_met_or_missed_by_its_figure() {
        let cases =
            [case("dsr, one flow", "lb", 637.2, 0.0), case("ipip, one flow", "lb", 560.0, 0.0)];
        assert_eq!(aims(&cases), "dsr, one flow: missed by 137; ipip, one flow: met");
    }

    #[test]
    fn the_plot_has_floors_and_what_is_out_of_flux() {
        let names = [
            ("floor: new MACs, and transmit", "floor"),
            ("dsr, one flow", "lb"),
            ("dsr, 65,536 flows", "lb"),
            ("dsr, in flux, one flow", "lb"),
            ("IPVS DR, a new flow each", "ipvs"),
        ];
        let cases = names.map(|(name, kind)| case(name, kind, 500.0, 0.0));
        let bars = bars(&cases);
        let shown: Vec<_> = bars.iter().map(|bar| (bar.name.as_str(), bar.kind)).collect();
        assert_eq!(shown, [(names[0].0, 5), (names[1].0, 0), (names[4].0, 1)]);
    }
}

//! The chapter of `bench instructions`.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Page,
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

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let Report { kernel, taken_off_instructions_per_packet, cases } = typed(results)?;
    let spread = cases.iter().map(|case| case.spread).fold(0.0, f64::max) * 100.0;
    page.say(&format!(
        "Instructions that Linux {kernel} executes to receive a packet from one end of a veth pair, decide, \
         and transmit it, in a virtual machine whose clock is its count of instructions: the figures \
         are the same however busy the machine below is (rounds differ by {spread:.2} % at most). What it takes \
         to make a packet and to bring it to the node, {taken_off_instructions_per_packet:.0}, is taken off. The \
         floors do to a packet what the balancer does and decide nothing. IPVS has its Maglev scheduler, a large \
         table of connections and no connection tracking, and transmits into a dummy interface, so less \
         is charged to it."
    ));
    let floors = cases.iter().filter(|case| case.kind == "floor");
    let floor = floors.map(|case| case.instructions_per_packet).fold(f64::MAX, f64::min);
    let mut table = Table::new(["packets", "instructions", "over the floor"]);
    for case in &cases {
        let cost = case.instructions_per_packet;
        let over = commas((cost - floor).max(0.0).round() as u64);
        table.row([case.name.clone(), commas(cost.round() as u64), over]);
    }
    table.write(&mut page.text);
    page.say(
        "The aim for one flow and for new ones was 500 with `dsr` and 560 with `ipip`, all included; it is missed. \
         ARCHITECTURE.md (\"A packet's way\") tells where the instructions go: the largest part are lookups \
         in maps, six for each packet.",
    );
    page.say(
        "Not shown: what memory costs. A table of flows grows with them and a ring does not, so beyond the \
         caches the distance is larger than the counts tell.",
    );
    Ok(())
}

//! The chapter of `bench datapath`.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Page,
    plot::{self, Bar, Curve},
    table::{Table, commas},
    typed,
};

#[derive(Deserialize)]
struct Report {
    packets: Vec<Packet>,
    rings: Vec<Ring>,
    memory: Vec<Memory>,
}

#[derive(Deserialize)]
struct Packet {
    name: String,
    is_floor: bool,
    median_ns: f64,
    min_ns: f64,
    net_median_ns: f64,
    net_min_ns: f64,
    floor: String,
    ratio_median: Option<f64>,
    ratio_min: Option<f64>,
}

#[derive(Deserialize)]
struct Ring {
    backends: u64,
    build_ms: f64,
    change_ms: f64,
    change_min_ms: f64,
    slots_changed: u64,
}

#[derive(Deserialize)]
struct Memory {
    map: String,
    bytes: u64,
}

/// The cases of this name, by their number of flows.
fn by_flows(cases: &[Packet], name: &str) -> Curve {
    let flows = |case: &Packet| match case.name.strip_prefix(name)?.strip_prefix(", ")? {
        "one flow" => Some(1.0),
        "65,536 flows" => Some(65_536.0),
        "a million flows" => Some(f64::from(1 << 20)),
        "16 million flows" => Some(f64::from(1 << 24)),
        _ => None,
    };
    let points = cases.iter().filter_map(|case| Some((flows(case)?, case.net_min_ns))).collect();
    Curve { name: name.to_owned(), points }
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    page.say(
        "Time of one run of the loaded program on a frame that is restored before each run, and, as *net*, \
         without the restoring, which is what `transmit` takes: the net median is a difference of medians, the \
         net minimum one of minima. The ratios are those of the net times to the net times of the case in \
         *against*. Where that takes few nanoseconds, as `swap` does, a nanosecond makes much of a ratio. `swap` is a program that only rewrites MAC addresses, `encapsulate` one \
         that only puts a fixed outer header before the packet: what dsr and ipip can't go below. Cases \
         alternate in every round; the program's own counters are compared with the number of runs. The last \
         rows are variants of the program over the same maps, against the program itself: without its log \
         calls, and as it is while it captures, asked for packets of another service or for all, of which \
         it saves as many as `lbctl capture` takes if it is not told otherwise.",
    );
    let bar = |case: &Packet| {
        let kind = usize::from(!case.is_floor);
        Bar { name: case.name.clone(), value: case.net_min_ns, kind }
    };
    let bars: Vec<_> =
        report.packets.iter().filter(|case| case.net_min_ns > 0.0).map(bar).collect();
    let svg = plot::bars("cost of a packet, net minimum", "nanoseconds", &bars)?;
    page.plot("datapath", "Cost of a packet by case, beside two floors", svg);
    let curves = ["dsr, IPv4 TCP", "ipip, IPv4 TCP"].map(|name| by_flows(&report.packets, name));
    let svg = plot::curves(
        "cost of a packet by number of flows, net minimum",
        "flows",
        "nanoseconds",
        &curves,
    )?;
    page.plot("flows", "Cost of a packet by number of flows", svg);
    let head = [
        "case",
        "median, ns",
        "minimum, ns",
        "net median, ns",
        "net minimum, ns",
        "against",
        "ratio of net medians",
        "of net minima",
    ];
    let mut table = Table::new(head);
    let ratio =
        |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
    for case in &report.packets {
        table.row([
            case.name.clone(),
            format!("{:.0}", case.median_ns),
            format!("{:.0}", case.min_ns),
            format!("{:.0}", case.net_median_ns),
            format!("{:.0}", case.net_min_ns),
            case.floor.clone(),
            ratio(case.ratio_median),
            ratio(case.ratio_min),
        ]);
    }
    table.write(&mut page.text);
    page.say(
        "A change of a ring of 65,537 slots (a backend drained, or back): the table alone, and all from the \
         wish to the last slot written in the kernel.",
    );
    let mut table =
        Table::new(["backends", "table, ms", "change, ms", "change, minimum, ms", "slots changed"]);
    for ring in &report.rings {
        table.row([
            commas(ring.backends),
            format!("{:.2}", ring.build_ms),
            format!("{:.2}", ring.change_ms),
            format!("{:.2}", ring.change_min_ms),
            commas(ring.slots_changed),
        ]);
    }
    table.write(&mut page.text);
    let mib = |bytes: u64| format!("{:.2}", bytes as f64 / f64::from(1 << 20));
    page.say("Memory of the maps at the default limits, with one service.");
    let mut table = Table::new(["map", "MiB"]);
    for map in &report.memory {
        table.row([map.map.clone(), mib(map.bytes)]);
    }
    table.row(["together".into(), mib(report.memory.iter().map(|map| map.bytes).sum())]);
    table.write(&mut page.text);
    Ok(())
}

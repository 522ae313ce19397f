//! The chapter of `bench datapath`.

use anyhow::Result;
use kit::reports::datapath::{PacketCase, Report};
use minijinja::{Value, context};
use serde_json::Value as Json;

use super::{
    Plots,
    plot::{self, Bar, Curve},
    typed,
};

/// The cases of this name, by their number of flows.
fn by_flows(cases: &[PacketCase], name: &str) -> Curve {
    let flows = |case: &PacketCase| match case.name.strip_prefix(name)?.strip_prefix(", ")? {
        "one flow" => Some(1.0),
        "65,536 flows" => Some(65_536.0),
        "a million flows" => Some(f64::from(1 << 20)),
        "16 million flows" => Some(f64::from(1 << 24)),
        _ => None,
    };
    let points = cases.iter().filter_map(|case| Some((flows(case)?, case.net_min_ns))).collect();
    Curve { name: name.to_owned(), points }
}

/// Two plots, and the memory of all maps.
pub fn prepare(results: &Json, plots: &mut Plots) -> Result<Value> {
    let report: Report = typed(results)?;
    let bar = |case: &PacketCase| {
        let kind = usize::from(!case.is_floor);
        Bar { name: case.name.clone(), value: case.net_min_ns, kind }
    };
    let bars: Vec<_> =
        report.packets.iter().filter(|case| case.net_min_ns > 0.0).map(bar).collect();
    let svg = plot::bars("cost of a packet, net minimum", "nanoseconds", &bars)?;
    plots.insert("datapath".into(), svg);
    let curves = ["dsr, IPv4 TCP", "ipip, IPv4 TCP"].map(|name| by_flows(&report.packets, name));
    let title = "cost of a packet by number of flows, net minimum";
    plots.insert("flows".into(), plot::curves(title, "flows", "nanoseconds", &curves)?);
    let total_bytes: u64 = report.memory.iter().map(|map| map.bytes).sum();
    Ok(context! { total_bytes, report })
}

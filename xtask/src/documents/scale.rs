//! The chapter of `bench scale`.

use anyhow::Result;
use kit::reports::scale::{Packets, Report, Sweep};
use minijinja::{Value, context};
use serde_json::Value as Json;

use super::{
    Plots,
    plot::{self, Curve},
    typed,
};

/// The packets that a sweep sends, in their order, each kind once.
fn kinds(packets: &[Packets], sweep: Sweep) -> Vec<&str> {
    let mut kinds: Vec<&str> = Vec::new();
    for case in packets.iter().filter(|case| case.sweep == sweep) {
        if !kinds.contains(&case.packets.as_str()) {
            kinds.push(&case.packets);
        }
    }
    kinds
}

/// A curve for each kind of packets of a sweep. Zero has no place on a logarithmic axis.
fn curves(packets: &[Packets], sweep: Sweep) -> Vec<Curve> {
    let curve = |kind: &str| {
        let cases = packets.iter().filter(|case| case.sweep == sweep && case.packets == kind);
        let points = cases.filter(|case| case.value > 0);
        let points = points.map(|case| (case.value as f64, case.net_min_ns)).collect();
        Curve { name: kind.to_owned(), points }
    };
    kinds(packets, sweep).into_iter().map(curve).collect()
}

/// A plot and the cases of each sweep, by kind of packets.
pub fn prepare(results: &Json, plots: &mut Plots) -> Result<Value> {
    let report: Report = typed(results)?;
    let mut sweeps = Vec::new();
    for sweep in [Sweep::Services, Sweep::Backends, Sweep::Flows, Sweep::Pins] {
        let name = sweep.name();
        let title = format!("cost of a packet by number of {name}, minimum");
        let svg = plot::curves(&title, name, "nanoseconds", &curves(&report.packets, sweep))?;
        plots.insert(format!("scale-{name}"), svg);
        let of_kind = |kind| {
            let cases = report.packets.iter().filter(move |case| case.sweep == sweep);
            cases.filter(move |case| case.packets == kind)
        };
        let cases: Vec<_> = kinds(&report.packets, sweep).into_iter().flat_map(of_kind).collect();
        sweeps.push((name, Value::from_serialize(cases)));
    }
    // Of the one that does nothing, net is nothing.
    let floors: Vec<_> = report.floors.iter().filter(|floor| floor.net_min_ns > 0.0).collect();
    let limit = |name: &str| report.limits.iter().find(|limit| limit.limit == name);
    let [services, backends] =
        ["services", "backends"].map(|name| limit(name).map(|limit| limit.value));
    Ok(context! { sweeps => Value::from_iter(sweeps), floors, services, backends, report })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_what_one_kind_of_packets_costs() {
        let case = |sweep, packets: &str, value| Packets {
            sweep,
            packets: packets.into(),
            value,
            median_ns: 141.0,
            min_ns: 131.0,
            net_median_ns: 81.0,
            net_min_ns: 71.0,
        };
        let packets = [
            case(Sweep::Services, "to one", 1),
            case(Sweep::Services, "to all", 1),
            case(Sweep::Services, "to one", 512),
            case(Sweep::Services, "to all", 512),
            case(Sweep::Pins, "of all", 0),
            case(Sweep::Pins, "of all", 1_024),
        ];
        let services = curves(&packets, Sweep::Services);
        let names: Vec<_> = services.iter().map(|curve| curve.name.as_str()).collect();
        assert_eq!(names, ["to one", "to all"]);
        assert_eq!(services[0].points, [(1.0, 71.0), (512.0, 71.0)]);
        // Zero pins are in the table alone.
        assert_eq!(curves(&packets, Sweep::Pins)[0].points.len(), 1);
    }
}

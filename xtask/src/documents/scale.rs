//! The chapter of `bench scale`.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Page, health,
    plot::{self, Curve},
    table::{Table, commas},
    typed,
};

#[derive(Deserialize)]
struct Report {
    base: Base,
    floors: Vec<Floor>,
    packets: Vec<Packets>,
    pins_full: PinsFull,
    memory: Vec<Memory>,
    changes: Vec<Change>,
    daemon: Vec<Daemon>,
    limits: Vec<Limit>,
    health: Value,
}

#[derive(Deserialize)]
struct Base {
    services: u64,
    backends: u64,
    flows: u64,
    pins: u64,
    ring_slots: u64,
    mode: String,
}

#[derive(Deserialize)]
struct Floor {
    name: String,
    net_median_ns: f64,
    net_min_ns: f64,
}

#[derive(Deserialize)]
struct Packets {
    sweep: String,
    packets: String,
    value: u64,
    median_ns: f64,
    min_ns: f64,
    net_median_ns: f64,
    net_min_ns: f64,
}

#[derive(Deserialize)]
struct PinsFull {
    room: u64,
    new_flows: u64,
    pinned: u64,
    to_older_backend: u64,
}

#[derive(Deserialize)]
struct Memory {
    services: u64,
    backends: u64,
    pins_limit: u64,
    tables_bytes: u64,
    rings_bytes: u64,
}

#[derive(Deserialize)]
struct Change {
    services: u64,
    backends: u64,
    table_ms: f64,
    change_ms: f64,
    change_min_ms: f64,
    slots_changed: u64,
}

#[derive(Deserialize)]
struct Daemon {
    services: u64,
    backends: u64,
    raised: bool,
    start: Times,
    adopt: Times,
    lbctl: Times,
    resident_bytes: u64,
}

#[derive(Deserialize)]
struct Times {
    median_ms: f64,
    min_ms: f64,
}

#[derive(Deserialize)]
struct Limit {
    limit: String,
    value: u64,
    asked: String,
    exit_status: Option<i64>,
    message: String,
}

/// What varies, as the command names it, and what is said of it.
const SWEEPS: [(&str, &str); 4] = [
    (
        "services",
        "Each service has its ring of half a megabyte. Where all packets go to one of them, the others cost \
         nothing; where every packet goes to another one than the last, what grows is the memory that the \
         packets walk over, and with it the processor's cache misses.",
    ),
    ("backends", "All in one service, and packets to all of them."),
    (
        "flows",
        "A flow in the steady state leaves nothing behind, so their number matters only as far as slots of \
         rings are in the processor's cache or not.",
    ),
    (
        "pins",
        "All backends of a service were replaced, so that all its slots are in flux, and flows that began since \
         are pinned: the one case in which a table is asked for a flow. A service that nobody has changed \
         does not feel the pins of the one beside it.",
    ),
];

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// The packets that a sweep sends, in their order, each kind once.
fn kinds<'a>(packets: &'a [Packets], sweep: &str) -> Vec<&'a str> {
    let mut kinds: Vec<&str> = Vec::new();
    for case in packets.iter().filter(|case| case.sweep == sweep) {
        if !kinds.contains(&case.packets.as_str()) {
            kinds.push(&case.packets);
        }
    }
    kinds
}

/// A curve for each kind of packets of a sweep. What is none of has no place on a logarithmic axis.
fn curves(packets: &[Packets], sweep: &str) -> Vec<Curve> {
    let curve = |kind: &str| {
        let cases = packets.iter().filter(|case| case.sweep == sweep && case.packets == kind);
        let points = cases.filter(|case| case.value > 0);
        let points = points.map(|case| (case.value as f64, case.net_min_ns)).collect();
        Curve { name: kind.to_owned(), points }
    };
    kinds(packets, sweep).into_iter().map(curve).collect()
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    packets(&report, page)?;
    maps(&report, page);
    daemon(&report.daemon, page);
    limits(&report, page);
    page.say("### Health checks of as many backends as there may be");
    health::render(&report.health, page)
}

fn packets(report: &Report, page: &mut Page) -> Result<()> {
    let Base { services, backends, flows, pins, ring_slots, mode } = &report.base;
    let [services, backends, flows, pins, slots] =
        [services, backends, flows, pins, ring_slots].map(|count| commas(*count));
    let floor = |Floor { name, net_median_ns, net_min_ns }: &Floor| {
        format!("`{name}`: {net_median_ns:.0} net in the median, {net_min_ns:.0} at least")
    };
    // Of the one that does nothing, net is nothing.
    let floors = report.floors.iter().filter(|floor| floor.net_min_ns > 0.0).map(floor);
    let floors: Vec<_> = floors.collect();
    page.say(&format!(
        "### A packet\n\nNanoseconds of one run of the program on a restored frame, and, as *net*, without the \
         restoring. One thing varies and the others stay: services {services}, backends of each {backends}, \
         flows {flows}, pins {pins}; {mode}, rings of {slots} slots. The maps are those that `lbd`'s engine \
         writes, one set for each size, and all take their turns in every round. Beside it, a program that only \
         puts a fixed outer header before the packet takes: {}. Packets visit their flows in an order that no \
         cache can foresee: real traffic comes in bursts, and costs less.",
        floors.join("; ")
    ));
    for (sweep, text) in SWEEPS {
        page.say(&format!("*By number of {sweep}.* {text}"));
        let title = format!("cost of a packet by number of {sweep}, minimum");
        let svg = plot::curves(&title, sweep, "nanoseconds", &curves(&report.packets, sweep))?;
        page.plot(
            &format!("scale-{sweep}"),
            &format!("Cost of a packet by number of {sweep}"),
            svg,
        );
        let head =
            [sweep, "packets", "median, ns", "minimum, ns", "net median, ns", "net minimum, ns"];
        let mut table = Table::new(head);
        for kind in kinds(&report.packets, sweep) {
            let is_it = |case: &&Packets| case.sweep == sweep && case.packets == kind;
            for case in report.packets.iter().filter(is_it) {
                table.row([
                    commas(case.value),
                    kind.to_owned(),
                    format!("{:.0}", case.median_ns),
                    format!("{:.0}", case.min_ns),
                    format!("{:.0}", case.net_median_ns),
                    format!("{:.0}", case.net_min_ns),
                ]);
            }
        }
        table.write(&mut page.text);
    }
    Ok(())
}

fn maps(report: &Report, page: &mut Page) {
    page.say(
        "### Memory of the maps\n\nAs the kernel accounts it. Tables have room for as much as `[limits]` says from \
         the start on; a ring comes with its service.",
    );
    let head = ["services", "backends", "room for pins", "tables, MiB", "rings, MiB"];
    let mut table = Table::new(head);
    for memory in &report.memory {
        table.row([
            commas(memory.services),
            commas(memory.backends),
            commas(memory.pins_limit),
            mib(memory.tables_bytes),
            mib(memory.rings_bytes),
        ]);
    }
    table.write(&mut page.text);
    page.say(
        "### A change\n\nOne backend of one service is drained, or back: the ring's table alone, and all from the \
         wish to the last slot written in the kernel.",
    );
    let head =
        ["services", "backends", "table, ms", "change, ms", "change, minimum, ms", "slots changed"];
    let mut table = Table::new(head);
    for change in &report.changes {
        table.row([
            commas(change.services),
            commas(change.backends),
            format!("{:.2}", change.table_ms),
            format!("{:.2}", change.change_ms),
            format!("{:.2}", change.change_min_ms),
            commas(change.slots_changed),
        ]);
    }
    table.write(&mut page.text);
}

fn daemon(sizes: &[Daemon], page: &mut Page) {
    page.say(
        "### `lbd`\n\n*Start*: from the start of the process with nothing there until it says that it is ready, \
         which is when the maps are as they should be and every backend can be sent to. *Adopt*: the same of \
         one that finds what a killed one has left; packets are forwarded all the while. *lbctl*: `lbctl \
         backend disable` and `enable`, from the start of the command to its end. *Resident*: the most of \
         `lbd`'s memory that was in RAM. The kernel lets a new ring be published only when every CPU is done with \
         what it has read before (`synchronize_rcu`), so a start that makes hundreds of services' rings mostly \
         waits; a change of a ring that is there does not, and neither does who adopts it.",
    );
    let head = [
        "services",
        "backends",
        "start, ms",
        "minimum",
        "adopt, ms",
        "minimum",
        "lbctl, ms",
        "resident, MiB",
    ];
    let mut table = Table::new(head);
    for size in sizes {
        let note = if size.raised { " (limit raised)" } else { "" };
        table.row([
            commas(size.services),
            commas(size.backends) + note,
            format!("{:.0}", size.start.median_ms),
            format!("{:.0}", size.start.min_ms),
            format!("{:.0}", size.adopt.median_ms),
            format!("{:.0}", size.adopt.min_ms),
            format!("{:.1}", size.lbctl.median_ms),
            mib(size.resident_bytes),
        ]);
    }
    table.write(&mut page.text);
}

fn limits(report: &Report, page: &mut Page) {
    page.say(
        "### Where it ends\n\nOne more was asked for than there can be, and this was said. `[limits]` and a restart \
         of `lbd` raise the first two, up to what ids can tell; forwarding goes on meanwhile.",
    );
    let mut table = Table::new(["limit", "at", "asked", "exit status", "said"]);
    for limit in &report.limits {
        table.row([
            limit.limit.clone(),
            commas(limit.value),
            format!("`{}`", limit.asked),
            limit.exit_status.map_or_else(|| "-".into(), |status| status.to_string()),
            format!("`{}`", limit.message.replace('`', "'").replace('\n', "` `")),
        ]);
    }
    table.write(&mut page.text);
    let value = |name: &str| {
        report.limits.iter().find(|limit| limit.limit == name).map_or(0, |limit| limit.value)
    };
    let (services, backends) = (value("services"), value("backends"));
    page.say(&format!(
        "With the limits as they come, the first one that a site meets is that of services ({}) if these have \
         fewer than {} backends each, and else that of backends ({}). No table of flows is a limit: those of \
         tracked UDP flows, QUIC connections and fragments forget what was used least recently.",
        commas(services),
        backends / services.max(1),
        commas(backends),
    ));
    let PinsFull { room, new_flows, pinned, to_older_backend } = report.pins_full;
    let [room, flows, pinned, older] = [room, new_flows, pinned, to_older_backend].map(commas);
    page.say(&format!(
        "Pins are not asked for by anybody, so nobody is refused: with all {room} taken, of {flows} new flows in \
         slots in flux {pinned} were pinned and {older} went to their slot's older backend, where their next \
         packets go as well. None breaks, and a drain takes longer. The alert `LbPinsNearCapacity` says so \
         in time, and `lbd`'s log at level `debug` names the clients."
    ));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn results() -> Value {
        let packets = |sweep: &str, kind: &str, value: u64| {
            json!({
                "sweep": sweep, "packets": kind, "value": value, "median_ns": 141.0, "min_ns": 131.0,
                "net_median_ns": 81.0, "net_min_ns": 71.0,
            })
        };
        let times = json!({ "count": 5, "median_ms": 412.0, "min_ms": 400.0, "max_ms": 500.0 });
        json!({
            "base": {
                "services": 1, "backends": 8, "flows": 1 << 20, "pins": 0, "ring_slots": 65_537,
                "mode": "ipip",
            },
            "floors": [{
                "name": "encapsulate", "median_ns": 80.0, "min_ns": 79.0, "net_median_ns": 20.0,
                "net_min_ns": 19.0,
            }],
            "packets": [
                packets("services", "to one", 1), packets("services", "to one", 512),
                packets("services", "to all", 1), packets("services", "to all", 512),
                packets("backends", "to all", 1), packets("backends", "to all", 4_096),
                packets("flows", "to all", 1), packets("flows", "to all", 1 << 24),
                packets("pins", "of all", 0), packets("pins", "of all", 1_024),
                packets("pins", "of all", 1 << 20),
            ],
            "pins_full": {
                "room": 262_144, "new_flows": 65_536, "pinned": 0, "to_older_backend": 65_536,
            },
            "memory": [{
                "services": 512, "backends": 4_096, "pins_limit": 262_144, "tables_bytes": 48 << 20,
                "rings_bytes": 256 << 20,
            }],
            "changes": [{
                "services": 512, "backends": 4_096, "table_ms": 1.5, "change_ms": 4.25,
                "change_min_ms": 4.0, "slots_changed": 8_192,
            }],
            "daemon": [{
                "services": 512, "backends": 16_384, "raised": true, "start": times, "adopt": times,
                "lbctl": times, "resident_bytes": 25 << 20,
            }],
            "limits": [{
                "limit": "services", "value": 512, "asked": "lbd --check, one service more",
                "exit_status": 2, "message": "513 services, but `services` is 512\nraise it",
            }],
            "health": { "floor_us": 12.5, "cases": [] },
        })
    }

    #[test]
    fn everything_is_told() -> Result<()> {
        let mut page = Page::default();
        render(&results(), &mut page)?;
        for part in [
            "`encapsulate`: 20 net in the median, 19 at least",
            "![Cost of a packet by number of pins](plots/scale-pins.svg)",
            "| 512 | to all | 141 | 131 | 81 | 71 |",
            "| 0 | of all | 141 | 131 | 81 | 71 |",
            "| 512 | 4,096 | 262,144 | 48.0 | 256.0 |",
            "| 512 | 4,096 | 1.50 | 4.25 | 4.00 | 8,192 |",
            "| 512 | 16,384 (limit raised) | 412 | 400 | 412 | 400 | 412.0 | 25.0 |",
            "| services | 512 | `lbd --check, one service more` | 2 | \
             `513 services, but 'services' is 512` `raise it` |",
            "that of services (512)",
            "with all 262,144 taken, of 65,536 new flows",
            "costs the kernel 12.5 microseconds",
        ] {
            assert!(page.text.contains(part), "{part} in:\n{}", page.text);
        }
        Ok(())
    }

    #[test]
    fn a_curve_is_what_one_kind_of_packets_costs() -> Result<()> {
        let report: Report = typed(&results())?;
        let services = curves(&report.packets, "services");
        let names: Vec<_> = services.iter().map(|curve| curve.name.as_str()).collect();
        assert_eq!(names, ["to one", "to all"]);
        assert_eq!(services[0].points, [(1.0, 71.0), (512.0, 71.0)]);
        // Zero pins are told in the table alone.
        assert_eq!(curves(&report.packets, "pins")[0].points.len(), 2);
        Ok(())
    }
}

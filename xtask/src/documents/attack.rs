//! The chapter of `bench attack`.

use std::collections::BTreeMap;

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
    flood_seconds: f64,
    request_every_ms: u64,
    pins_in_labs: u64,
    cells: Vec<Cell>,
    tables: Option<Tables>,
    slots: Vec<Spread>,
}

#[derive(Deserialize)]
struct Cell {
    flood: String,
    phase: String,
    frames: u64,
    frames_per_second: u64,
    packets: Packets,
    quiet: Requests,
    flooded: Requests,
    connections: u64,
    connections_broken: u64,
    downloads: u64,
    downloads_broken: u64,
    udp: Datagrams,
    udp_fragmented: Datagrams,
    pins: Pins,
    tracked: Kept,
    backends_went_down: u64,
}

#[derive(Deserialize)]
struct Packets {
    forwarded: u64,
    passed: BTreeMap<String, u64>,
    dropped: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Requests {
    requests: u64,
    failed: u64,
    median_ms: f64,
    p99_ms: f64,
    longest_ms: f64,
}

#[derive(Deserialize)]
struct Datagrams {
    sent: u64,
    lost: u64,
    flows: u64,
    flows_moved: u64,
}

#[derive(Deserialize)]
struct Kept {
    before: u64,
    lost: u64,
}

#[derive(Deserialize)]
struct Pins {
    clients: Kept,
    used_before: u64,
    used_after: u64,
}

#[derive(Deserialize)]
struct Tables {
    runs: Vec<Run>,
    forged: Forged,
}

#[derive(Deserialize)]
struct Run {
    system: String,
    capacity: u64,
    table_bytes: u64,
    flood_frames: u64,
    frames_per_tuple: u64,
    entries_before: u64,
    entries_lost: u64,
    entries_after: u64,
    silent: Moved,
    busy: Moved,
    late: Moved,
}

#[derive(Deserialize)]
struct Moved {
    flows: u64,
    moved: u64,
}

#[derive(Deserialize)]
struct Forged {
    syn_steady: Moved,
    syn_in_flux: Moved,
    syn_pinned: Moved,
    fin_and_syn_pinned: Moved,
}

#[derive(Deserialize)]
struct Spread {
    flood: String,
    frames: u64,
    slots: u64,
    slots_hit: u64,
    mean_frames: f64,
    busiest_slot_frames: u64,
    busiest_slot_frames_by_lot: u64,
    busiest_backend_share: f64,
}

/// What a flood is made of, by the name that the command has for it.
fn flood(name: &str) -> &str {
    match name {
        "nowhere" => "SYNs to nobody's MAC address",
        "syn-new" => "SYNs, new tuples",
        "syn-same" => "one SYN again and again",
        "handshakes" => "SYN and ACK, new tuples",
        "udp" => "UDP, new tuples",
        "fragments" => "fragments",
        "icmp-errors" => "ICMP errors",
        "malformed" => "malformed packets",
        other => other,
    }
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    labs(&report, page);
    if let Some(tables) = &report.tables {
        floods(tables, page);
        forged(&tables.forged, page);
    }
    if !report.slots.is_empty() {
        slots(&report.slots, page);
    }
    Ok(())
}

fn of(some: u64, all: u64) -> String {
    format!("{} of {}", commas(some), commas(all))
}

/// The cells: real connections.
fn labs(report: &Report, page: &mut Page) {
    let Some(first) = report.cells.first() else { return };
    page.say(&format!(
        "**On a network.** An attacker on the switch sends each kind of flood for {:.0} s to a balancer with three \
         web hosts, from spoofed addresses; a client makes a request every {} ms, each on a connection of its \
         own, keeps {} connections and {} downloads open, whose bytes are compared, and sends datagrams to a \
         `tracked` UDP service, some of them in fragments. This is run for real: nginx, the kernel's TCP, the \
         program on a veth pair in native mode. After the flood a backend drains, so that what the flood has \
         left behind meets a change; connections and downloads have to live through that. The web hosts drop the \
         flood's packets before their own stack: what is flooded is the balancer. All hosts share the CPUs of \
         one machine, so times grow with every frame that anybody sends: the flood to nobody's address, which \
         ends at the switch, shows how much of that is the attacker himself. *Before*: the same figure in the \
         seconds before the flood. *Longest*: of the requests that did not fail. One of a second or more had to \
         send its SYN again, since that or its answer was lost (RFC 6298, 2.1). *Clients' pins lost*: \
         of those that were there before the flood, the ones that were gone or named another backend when it \
         ended. *Pins in all*: entries of the table, whoever's, before the flood and after the drain that follows \
         it; in flux, those of the requests during the flood are among the latter.",
        report.flood_seconds, report.request_every_ms, first.connections, first.downloads,
    ));
    for (phase, title) in [
        ("steady", "Steady: no slot is in flux, and no flow needs a pin."),
        ("in-flux", "In flux: one of the three hosts drains since before the flood."),
    ] {
        let cells: Vec<_> = report.cells.iter().filter(|cell| cell.phase == phase).collect();
        if cells.is_empty() {
            continue;
        }
        page.say(title);
        let mut table = Table::new([
            "flood",
            "frames",
            "a second",
            "requests failed",
            "median, ms (before)",
            "p99, ms (before)",
            "longest, ms (before)",
            "connections broken",
            "downloads broken",
        ]);
        for cell in &cells {
            let Cell { quiet, flooded, .. } = cell;
            table.row([
                flood(&cell.flood).into(),
                commas(cell.frames),
                commas(cell.frames_per_second),
                of(flooded.failed, flooded.requests),
                format!("{:.2} ({:.2})", flooded.median_ms, quiet.median_ms),
                format!("{:.2} ({:.2})", flooded.p99_ms, quiet.p99_ms),
                format!("{:.0} ({:.0})", flooded.longest_ms, quiet.longest_ms),
                of(cell.connections_broken, cell.connections),
                of(cell.downloads_broken, cell.downloads),
            ]);
        }
        table.write(&mut page.text);
        let mut table = Table::new([
            "flood",
            "clients' pins lost",
            "pins in all, before the flood and after the drain",
            "datagrams lost",
            "fragmented ones lost",
            "UDP flows moved",
            "forwarded",
            "passed",
            "dropped",
        ]);
        for cell in &cells {
            let Cell { pins, udp, udp_fragmented, packets, .. } = cell;
            let (flows, moved) =
                (udp.flows + udp_fragmented.flows, udp.flows_moved + udp_fragmented.flows_moved);
            table.row([
                flood(&cell.flood).into(),
                of(pins.clients.lost, pins.clients.before),
                format!("{}, {}", commas(pins.used_before), commas(pins.used_after)),
                of(udp.lost, udp.sent),
                of(udp_fragmented.lost, udp_fragmented.sent),
                of(moved, flows),
                commas(packets.forwarded),
                commas(packets.passed.values().sum()),
                commas(packets.dropped.values().sum()),
            ]);
        }
        table.write(&mut page.text);
    }
    let lost: u64 = report.cells.iter().map(|cell| cell.tracked.lost).sum();
    let before: u64 = report.cells.iter().map(|cell| cell.tracked.before).sum();
    let down: u64 = report.cells.iter().map(|cell| cell.backends_went_down).sum();
    page.say(&format!(
        "The table of pins has room for {} in these labs, a quarter of the default, so that a flood of SYNs in \
         flux fills it; who finds no room goes to the slot's older owner, without a pin, and stays there. Of the \
         clients' entries in the table of tracked UDP flows, which lets the least recently used go first, {} \
         were lost in all runs. Checks took a backend for dead {down} times.",
        commas(report.pins_in_labs),
        of(lost, before),
    ));
}

/// The floods through the program alone.
fn floods(tables: &Tables, page: &mut Page) {
    let capacity = tables.runs.iter().map(|run| run.capacity).max().unwrap_or_default();
    page.say(&format!(
        "**Beside a table of all flows.** The same SYNs one by one through the loaded program \
         (`BPF_PROG_TEST_RUN`), without a network: clients open flows before one of three backends drains and \
         after that; then comes the flood; then that backend takes flows again and another one drains; then \
         each flow sends a packet. *Moved* flows come to another backend than the one that they were opened \
         on, and break. Busy flows send a packet now and then during the flood, silent ones do not; late \
         ones begin when it ends. The packets, the program and the kernel's tables are real; the table of all \
         flows is a model of balancers that have one (Katran, Cilium): a map that lets the least recently used \
         go first, {} entries as the pins have, looked up and filled by every packet. The program has such a \
         table for tracked UDP, so it is asked with the same tuples as datagrams. Limits that such a balancer \
         may have on new entries a second are not modelled; they make a flood take longer. Such a map keeps what \
         was looked up since it was put in, so it withstands a flood of single SYNs in part, and one in which \
         each SYN comes twice less. *No SYN budget*: \
         the bound on pins a second is taken away, so that the flood fills the table.",
        commas(capacity)
    ));
    let mut table = Table::new([
        "",
        "table, MiB",
        "SYNs of the flood",
        "clients' entries lost",
        "entries after",
        "silent flows moved",
        "busy flows moved",
        "late flows moved",
    ]);
    for run in &tables.runs {
        table.row([
            run.system.clone(),
            format!("{:.1}", run.table_bytes as f64 / f64::from(1 << 20)),
            match run.frames_per_tuple {
                1 => commas(run.flood_frames),
                _ => commas(run.flood_frames) + ", each twice",
            },
            of(run.entries_lost, run.entries_before),
            commas(run.entries_after),
            of(run.silent.moved, run.silent.flows),
            of(run.busy.moved, run.busy.flows),
            of(run.late.moved, run.late.flows),
        ]);
    }
    table.write(&mut page.text);
}

/// What an attacker can do who knows clients.
fn forged(forged: &Forged, page: &mut Page) {
    page.say(
        "**Who knows addresses and ports of clients** can forge more than a flood of strangers. The balancer \
         does not see the backends' answers, so it has to take a SYN for what it is: in flux it moves an older \
         flow of the same tuple, which has no pin, and after a FIN it renames a pin. Out of flux nothing can be \
         forged that moves a flow. Flows that moved, of those for which segments were forged:",
    );
    let mut table = Table::new(["forged", "moved"]);
    for (what, moved) in [
        ("a SYN, no slot in flux", &forged.syn_steady),
        ("a SYN for an older flow, its slot in flux", &forged.syn_in_flux),
        ("a SYN for a pinned flow, its slot changed again", &forged.syn_pinned),
        ("a FIN and a SYN for a pinned flow, its slot changed again", &forged.fin_and_syn_pinned),
    ] {
        table.row([what.into(), of(moved.moved, moved.flows)]);
    }
    table.write(&mut page.text);
}

/// Where tuples fall.
fn slots(spreads: &[Spread], page: &mut Page) {
    page.say(&format!(
        "**One slot aimed at.** Tuples counted by the slot of {} that they fall into, without a packet being \
         sent. Whoever has the seed finds tuples of one slot; whoever has to guess it finds them for a slot of \
         his guess, and they fall as if drawn by lot (*by lot*: the busiest slot if they were). One tuple is \
         always in one slot, whose packets then all go to one backend; what that costs others is in the row \
         of the one SYN above.",
        commas(spreads[0].slots)
    ));
    let mut table = Table::new([
        "tuples",
        "frames",
        "slots hit",
        "mean of a slot",
        "busiest slot",
        "by lot",
        "busiest of three backends",
    ]);
    for spread in spreads {
        table.row([
            spread.flood.clone(),
            commas(spread.frames),
            commas(spread.slots_hit),
            format!("{:.2}", spread.mean_frames),
            commas(spread.busiest_slot_frames),
            commas(spread.busiest_slot_frames_by_lot),
            format!("{:.1} %", spread.busiest_backend_share * 100.0),
        ]);
    }
    table.write(&mut page.text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_with_what_it_cost() -> Result<()> {
        let requests = |failed: u64| serde_json::json!({ "requests": 1_600, "failed": failed, "median_ms": 0.8, "p99_ms": 4.25, "longest_ms": 1020.82 });
        let datagrams =
            serde_json::json!({ "sent": 900, "lost": 2, "flows": 20, "flows_moved": 1 });
        let results = serde_json::json!({
            "flood_seconds": 8.0, "request_every_ms": 5, "pins_in_labs": 65_536,
            "cells": [{
                "flood": "syn-new", "phase": "in-flux", "frames": 400_000, "frames_per_second": 50_000,
                "packets": { "forwarded": 412_000, "passed": { "malformed": 3 }, "dropped": {} },
                "quiet": requests(0), "flooded": requests(7),
                "connections": 60, "connections_broken": 0, "downloads": 9, "downloads_broken": 0,
                "udp": datagrams, "udp_fragmented": datagrams,
                "pins": { "clients": { "before": 21, "lost": 0 }, "used_before": 30, "used_after": 65_536 },
                "tracked": { "before": 24, "lost": 4 }, "backends_went_down": 0,
            }],
            "tables": null, "slots": [],
        });
        let mut page = Page::default();
        render(&results, &mut page)?;
        for line in [
            "| SYNs, new tuples | 400,000 | 50,000 | 7 of 1,600 | 0.80 (0.80) | 4.25 (4.25) | 1021 (1021) | 0 of 60 | 0 of 9 |",
            "| SYNs, new tuples | 0 of 21 | 30, 65,536 | 2 of 900 | 2 of 900 | 2 of 40 | 412,000 | 3 | 0 |",
            "4 of 24 were lost in all runs",
        ] {
            assert!(page.text.contains(line), "{line}: {}", page.text);
        }
        Ok(())
    }
}

//! The cost of a packet and of a change at every size: all testbeds are there at once, and every case has its
//! turn in every round, so that a noisy moment hits all alike.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use kit::{
    namespace::Namespace,
    progress::Progress,
    reports::scale::{Change, Floor, Memory, Packets, PinsFull},
};
use lb_model::{
    desired::Admin,
    maglev::{self, Member},
    settings::Limits,
};

use super::{
    cases::{self, BASE, Case, FLOWS},
    testbed::{PORT, Size, Testbed, address},
};
use crate::{
    frames::{self, Plan, Shape},
    harness::SLOTS,
    runner::Runner,
};

/// Flows that come when no pin is left.
const MORE: u32 = 65_536;
/// Bits of the addresses of clients that come late.
const LATE: u32 = 0x3000_0000;

/// The results.
pub struct Measured {
    /// Programs that decide nothing.
    pub floors: Vec<Floor>,
    /// Packets by case.
    pub packets: Vec<Packets>,
    /// New flows when there is no room for pins.
    pub pins_full: PinsFull,
    /// The memory of the maps.
    pub memory: Vec<Memory>,
    /// Changes by size.
    pub changes: Vec<Change>,
}

/// Measures in `rounds` rounds; `packets` packets of every case in each.
///
/// # Errors
///
/// If the kernel refuses, or a packet is not forwarded.
pub fn measure(rounds: u32, packets: u32) -> Result<Measured> {
    let namespace = Namespace::new("scale")?;
    namespace.enter(|| measure_in(&namespace, rounds, packets))?
}

fn measure_in(namespace: &Namespace, rounds: u32, packets: u32) -> Result<Measured> {
    kit::datapath::kernel::stay_on_one_cpu()?;
    let mut runner = Runner::load()?;
    let cases = cases::all();
    let mut testbeds = testbeds(namespace, &mut runner, &cases)?;
    let (floors, packets) = in_turns(&mut testbeds, &mut runner, &cases, rounds, packets)?;
    let changes = changes(&mut testbeds, rounds)?;
    let memory = memory(&testbeds)?;
    let pins_full = pins_full(&mut testbeds, &mut runner)?;
    Ok(Measured { floors, packets, pins_full, memory, changes })
}

fn testbeds(namespace: &Namespace, runner: &mut Runner, cases: &[Case]) -> Result<Vec<Testbed>> {
    let sizes = cases::sizes(cases);
    let mut progress = Progress::new(sizes.len());
    let mut testbeds = Vec::new();
    for (n, size) in sizes.into_iter().enumerate() {
        progress.begin(&format!(
            "maps of {} services, {} backends",
            size.services,
            size.backends()
        ));
        let made = Testbed::new(namespace, n, size).and_then(|mut testbed| {
            if let Some(pins) = size.pins.filter(|&pins| pins > 0) {
                pin(&mut testbed, runner, pins)?;
            }
            Ok(testbed)
        });
        testbeds.push(made.with_context(|| size.words())?);
        progress.end(None);
    }
    Ok(testbeds)
}

/// SYNs to the service that is in flux.
fn syns(flows: u32) -> Plan {
    frames::plan(false, Shape::Syn, PORT, flows)
}

/// Has the program pin as many flows: each sends one SYN, and an ACK, the first of which costs more.
fn pin(testbed: &mut Testbed, runner: &mut Runner, flows: u32) -> Result<()> {
    testbed.run(runner, &mut syns(flows), flows)?;
    testbed.run(runner, &mut frames::plan(false, Shape::Tcp, PORT, flows), flows)?;
    let pins = testbed.pins()?;
    ensure!(pins == flows, "{pins} flows of {flows} were pinned");
    Ok(())
}

fn of(testbeds: &mut [Testbed], size: Size) -> Result<&mut Testbed> {
    testbeds.iter_mut().find(|testbed| testbed.size == size).context("every size has a testbed")
}

/// The rig of one case.
struct Turn {
    plan: Plan,
    samples: Vec<f64>,
}

impl Turn {
    const fn new(plan: Plan) -> Self {
        Self { plan, samples: Vec::new() }
    }

    /// Median and minimum.
    fn figures(&mut self) -> (f64, f64) {
        self.samples.sort_by(f64::total_cmp);
        (self.samples[self.samples.len() / 2], self.samples[0])
    }
}

fn in_turns(
    testbeds: &mut [Testbed],
    runner: &mut Runner,
    cases: &[Case],
    rounds: u32,
    packets: u32,
) -> Result<(Vec<Floor>, Vec<Packets>)> {
    let mut floors = ["transmit", "encapsulate"]
        .map(|name| (name, Turn::new(frames::plan(false, Shape::Tcp, PORT, FLOWS))));
    let mut turns: Vec<_> = cases.iter().map(|case| (case, Turn::new(case.plan()))).collect();
    let mut progress = Progress::new(rounds as usize + 1);
    // The first round warms up.
    for round in 0..=rounds {
        progress.begin("a round of all cases");
        for (name, turn) in &mut floors {
            let floor = runner.floor(name)?;
            let nanos = runner.run(&floor, &mut turn.plan, packets)?;
            turn.samples.extend((round > 0).then_some(nanos));
        }
        for (case, turn) in &mut turns {
            let testbed = of(testbeds, case.size)?;
            let nanos = testbed.run(runner, &mut turn.plan, packets);
            let nanos = nanos.with_context(|| case.words())?;
            turn.samples.extend((round > 0).then_some(nanos));
        }
        progress.end(None);
    }
    let (restore, restore_min) = floors[0].1.figures();
    let floors = floors.iter_mut().map(|(name, turn)| {
        let (median_ns, min_ns) = turn.figures();
        Floor {
            name: (*name).into(),
            median_ns,
            min_ns,
            net_median_ns: median_ns - restore,
            net_min_ns: min_ns - restore_min,
        }
    });
    let floors = floors.collect();
    let packets = turns.iter_mut().map(|(case, turn)| {
        let (median_ns, min_ns) = turn.figures();
        Packets {
            sweep: case.sweep,
            packets: case.packets.into(),
            value: case.value,
            median_ns,
            min_ns,
            net_median_ns: median_ns - restore,
            net_min_ns: min_ns - restore_min,
        }
    });
    Ok((floors, packets.collect()))
}

/// Whether a backend can be drained there, and its flows have another.
fn can_change(testbed: &Testbed) -> bool {
    testbed.size.pins.is_none() && testbed.size.each > 1
}

fn changes(testbeds: &mut [Testbed], rounds: u32) -> Result<Vec<Change>> {
    let testbeds = testbeds.iter_mut().filter(|testbed| can_change(testbed));
    let mut testbeds: Vec<_> =
        testbeds.map(|testbed| (testbed, Vec::new(), Vec::new(), 0)).collect();
    let mut progress = Progress::new(rounds as usize);
    for _ in 0..rounds {
        progress.begin("a round of all changes");
        for (testbed, tables, changes, slots) in &mut testbeds {
            tables.push(table(testbed.size.each));
            for admin in [Admin::Draining { deadline: None }, Admin::Enabled] {
                let (took, moved) = testbed.change(admin)?;
                changes.push(took);
                *slots = moved;
            }
        }
        progress.end(None);
    }
    let millis = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        [times[times.len() / 2], times[0]].map(|time| time.as_secs_f64() * 1e3)
    };
    let change =
        |(testbed, mut tables, mut changes, slots_changed): (&mut Testbed, Vec<_>, Vec<_>, _)| {
            let ([table_ms, _], [change_ms, change_min_ms]) =
                (millis(&mut tables), millis(&mut changes));
            let (services, backends) = (testbed.size.services.into(), testbed.size.backends());
            Change { services, backends, table_ms, change_ms, change_min_ms, slots_changed }
        };
    Ok(testbeds.into_iter().map(change).collect())
}

/// How long it takes to compute the ring of a service alone, of which one backend drains.
fn table(each: u16) -> Duration {
    let members: Vec<_> = (1..each).map(|n| Member { address: address(0, n), weight: 1 }).collect();
    let begun = Instant::now();
    black_box(maglev::table(&members, &[0; 16], SLOTS));
    begun.elapsed()
}

/// The least, the most services, and the most pins.
fn memory(testbeds: &[Testbed]) -> Result<Vec<Memory>> {
    let room = Limits::default().pins;
    let is_wanted = |testbed: &&Testbed| {
        testbed.size.each == BASE.each && testbed.size.pins.is_none_or(|pins| pins > room)
    };
    testbeds.iter().filter(is_wanted).map(Testbed::memory).collect()
}

/// The fate of new flows when there is no room for their pins.
fn pins_full(testbeds: &mut [Testbed], runner: &mut Runner) -> Result<PinsFull> {
    let size = Size { pins: Some(Limits::default().pins), ..BASE };
    let testbed = of(testbeds, size)?;
    let room = testbed.pins()?;
    let unpinned = testbed.sum(|totals| totals.unpinned)?;
    let mut plan = Plan { base: LATE, ..syns(MORE) };
    testbed.run(runner, &mut plan, MORE)?;
    let to_older_backend = testbed.sum(|totals| totals.unpinned)? - unpinned;
    let pinned = testbed.pins()? - room;
    Ok(PinsFull { room, new_flows: MORE, pinned, to_older_backend })
}

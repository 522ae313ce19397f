//! Instructions that the machine executes for one packet: the same however busy it is.
//!
//! `cargo xtask bench instructions` runs this in a virtual machine whose clock counts instructions.
//! A test run with live frames makes packets and sends them over a veth pair to the node, which takes
//! them as from a NIC, by the driver's poll. What a packet costs is what the whole costs less what it
//! costs when the node drops each packet: that has the making, the first way and one receipt in it, and
//! what is left is the decision, the transmission, and the receipt at the other end, which is done by
//! the same driver and costs the same. IPVS and the balancer at tc go out by a dummy interface instead, so
//! less is charged to them: they are to be compared with each other. HAProxy is not here, as these packets
//! are of no connections that it could have.

mod ipvs;
mod rig;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use kit::{
    progress::Progress,
    reports::instructions::{Case, FLOOR, Kind, Report},
};
use lb_common::abi::{backend_flags, proto};

use self::{
    ipvs::{ANSWERING, ANSWERS, Method, OUT},
    rig::{Measured, NODE, WIRE, index, measure},
};
use crate::{
    frames::{self, Plan, Shape},
    harness::{Flux, Harness, Setup, address_v4, target_port},
};

/// Options of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// Write JSON into this file, beside the table
    #[arg(long)]
    json_file: Option<PathBuf>,
    /// Compare with the figures in this file, and fail if a packet costs 3 % more
    #[arg(long)]
    against: Option<PathBuf>,
}

/// Clients are in 20.0.0.0/8: a kernel takes nothing from 0.0.0.0/8.
const CLIENTS: u32 = 20 << 24;
/// Flows of the cases with many.
const MANY: u32 = 65_536;
/// Every packet a flow of its own.
const NEW: u32 = 0;
/// Packets before the measurement where there is no flow to be visited first.
const WARM: u32 = 4_096;
/// For few flows in flux, and for many.
const STEADY: [u16; 2] = [80, 81];
const IN_FLUX: [u16; 2] = [90, 91];
const TC: [u16; 2] = [84, 85];
/// In mode `nat`: with XDP, and at tc.
const NAT: [u16; 2] = [86, 87];
/// The first port of a service with a hundred of them, and of one in mode `nat`.
const RANGE: u16 = 8_000;
const NAT_RANGE: u16 = 9_000;

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    kit::datapath::kernel::stay_on_one_cpu()?;
    rig::ensure_counted()?;
    let report = measure_all()?;
    let before = arguments.against.as_ref().map(|file| {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        serde_json::from_str::<Report>(&text).with_context(|| file.display().to_string())
    });
    let before = before.transpose()?;
    print!("{}", report.table(before.as_ref()));
    if let Some(file) = &arguments.json_file {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    before.map_or(Ok(()), |before| report.check(&before))
}

fn measure_all() -> Result<Report> {
    rig::wire()?;
    let node = index(NODE)?;
    let mut harness = Harness::load_for(node, CLIENTS)?;
    for (flux, ports, syn_budget) in
        [(Flux::Steady, STEADY, 0), (Flux::Pinned(MANY), IN_FLUX, u32::MAX)]
    {
        for (port, backend) in ports.into_iter().zip([0, backend_flags::TUNNEL]) {
            harness.add(&Setup { flux, syn_budget, ..steady(port, backend) })?;
        }
    }
    harness.add(&steady(NAT[0], backend_flags::NAT))?;
    let plans = plans();
    let mut progress = Progress::new(plans.len() + 3 + 2 + 4 + 6 * KINDS.len() + 3);
    let mut begun = false;
    let mut step = |name: &str| {
        if begun {
            progress.end(None);
        }
        begun = true;
        progress.begin(name);
    };

    // Each packet taken at the node, and nothing more.
    step("the way to the node");
    let link = harness.attach("sink", node)?;
    let mut any = plan(Shape::Tcp, STEADY[0], 1);
    let taken_off = measure(&mut harness, "taken off", &mut any, WARM, Harness::sunk)?;
    drop(link);

    let mut cases = Vec::new();
    let mut note = |name: &str, kind, measured: &Measured| {
        cases.push(Case {
            name: name.to_owned(),
            kind,
            instructions_per_packet: round(measured.instructions - taken_off.instructions),
            spread: (measured.spread * 1e5).round() / 1e5,
        });
    };
    let sink = harness.attach("sink", index(WIRE)?)?;
    for (name, program) in
        [(FLOOR, "swap"), ("floor: one outer header for all, and transmit", "encapsulate")]
    {
        step(name);
        let link = harness.attach(program, node)?;
        note(name, Kind::Floor, &measure(&mut harness, name, &mut any, WARM, Harness::sunk)?);
        drop(link);
    }
    let link = harness.attach("balance", node)?;
    for (name, mut plan) in plans {
        step(&name);
        note(&name, Kind::Lb, &all_counted(&mut harness, &name, &mut plan, Harness::forwarded)?);
    }
    for (_, flows, flow_words) in &KINDS[..2] {
        let name = format!("nat, answers, {flow_words}");
        step(&name);
        let mut plan = answers(address_v4(0), target_port(NAT[0]), *flows);
        note(&name, Kind::Lb, &all_counted(&mut harness, &name, &mut plan, Harness::returned)?);
    }
    // With such a service, other packets cost more that are for none.
    harness.add(&Setup { more_ports: 99, ..steady(RANGE, 0) })?;
    for (shape, flows, flow_words) in KINDS {
        let name = format!("dsr, a range of ports, {flow_words}");
        step(&name);
        let mut plan = plan(shape, RANGE, flows);
        note(&name, Kind::Lb, &all_counted(&mut harness, &name, &mut plan, Harness::forwarded)?);
    }
    let name = "nat beside a range of ports, answers, one flow";
    step(name);
    let mut from_backend = answers(address_v4(0), target_port(NAT[0]), 1);
    note(name, Kind::Lb, &all_counted(&mut harness, name, &mut from_backend, Harness::returned)?);
    harness.add(&Setup { more_ports: 99, ..steady(NAT_RANGE, backend_flags::NAT) })?;
    let name = "nat, a range of ports, one flow";
    step(name);
    let mut to_vip = plan(Shape::Tcp, NAT_RANGE, 1);
    note(name, Kind::Lb, &all_counted(&mut harness, name, &mut to_vip, Harness::forwarded)?);
    let name = "nat, a range of ports, answers, one flow";
    step(name);
    let mut from_backend = answers(address_v4(0), NAT_RANGE, 1);
    note(name, Kind::Lb, &all_counted(&mut harness, name, &mut from_backend, Harness::returned)?);
    harness.withdraw_wide()?;
    drop(link);
    drop(sink);

    // A veth interface takes frames from programs only while it has one.
    let _link = harness.attach("pass", node)?;
    ipvs::set_up()?;
    let sent = |_: &mut Harness| ipvs::sent();
    harness.send_by(index(OUT)?)?;
    for (port, backend) in TC.into_iter().zip([0, backend_flags::TUNNEL]) {
        harness.add(&steady(port, backend))?;
    }
    harness.add(&steady(NAT[1], backend_flags::NAT))?;
    let tc = harness.attach_tc(NODE)?;
    for (port, mode) in TC.into_iter().chain([NAT[1]]).zip(["dsr", "ipip", "nat"]) {
        for (shape, flows, flow_words) in KINDS {
            let name = format!("{mode} at tc, {flow_words}");
            step(&name);
            let mut plan = plan(shape, port, flows);
            let warm = warm(&plan);
            note(&name, Kind::Tc, &measure(&mut harness, &name, &mut plan, warm, sent)?);
        }
    }
    let name = "nat at tc, answers, one flow";
    step(name);
    let mut from_backend = answers(address_v4(0), target_port(NAT[1]), 1);
    note(name, Kind::Tc, &measure(&mut harness, name, &mut from_backend, WARM, sent)?);
    drop(tc);
    for (method, what) in [
        (Method::Dr, "IPVS DR"),
        (Method::Tunnel, "IPVS tunnel"),
        (Method::Nat, "IPVS masquerading"),
    ] {
        for (shape, flows, flow_words) in KINDS {
            let name = format!("{what}, {flow_words}");
            step(&name);
            let mut plan = plan(shape, method.port(), flows);
            let warm = warm(&plan);
            note(&name, Kind::Ipvs, &measure(&mut harness, &name, &mut plan, warm, sent)?);
        }
    }
    let name = "IPVS masquerading, answers, one flow";
    step(name);
    // The connection of the flow first.
    measure(&mut harness, name, &mut plan(Shape::Tcp, ANSWERS, 1), WARM, sent)?;
    let mut from_backend = answers(ANSWERING, ANSWERS, 1);
    note(name, Kind::Ipvs, &measure(&mut harness, name, &mut from_backend, WARM, sent)?);
    let kernel =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    Ok(Report {
        kernel: kernel.trim().to_owned(),
        taken_off_instructions_per_packet: round(taken_off.instructions),
        cases,
    })
}

/// Measures a plan each of whose packets the program counts.
fn all_counted(
    harness: &mut Harness,
    name: &str,
    plan: &mut Plan,
    count: fn(&mut Harness) -> Result<u64>,
) -> Result<Measured> {
    let before = count(harness)?;
    let measured = measure(harness, name, plan, warm(plan), Harness::sunk)?;
    let counted = count(harness)? - before;
    anyhow::ensure!(counted == plan.runs, "{name}: {counted} of {}", plan.runs);
    Ok(measured)
}

/// Which packets every balancer gets.
const KINDS: [(Shape, u32, &str); 3] = [
    (Shape::Tcp, 1, "one flow"),
    (Shape::Tcp, MANY, "65,536 flows"),
    (Shape::Syn, NEW, "a new flow each"),
];

/// The balancer's cases.
fn plans() -> Vec<(String, Plan)> {
    let mut plans = Vec::new();
    let of_states =
        [(STEADY, ""), (IN_FLUX, ", in flux")].into_iter().flat_map(|(ports, state)| {
            ports.into_iter().zip(["dsr", "ipip"]).map(move |(port, mode)| (port, mode, state))
        });
    for (port, mode, state) in of_states.chain([(NAT[0], "nat", "")]) {
        for (shape, flows, flow_words) in KINDS {
            plans.push((format!("{mode}{state}, {flow_words}"), plan(shape, port, flows)));
        }
    }
    plans
}

fn plan(shape: Shape, port: u16, flows: u32) -> Plan {
    Plan { base: CLIENTS, ..frames::plan(false, shape, port, flows) }
}

fn answers(source: [u8; 4], port: u16, flows: u32) -> Plan {
    Plan { base: CLIENTS, ..frames::answers(source, port, flows) }
}

/// A TCP service without changes, with these flags of its backends.
const fn steady(port: u16, backend: u8) -> Setup {
    let (v6, proto, udp_policy, flux, syn_budget) = (false, proto::TCP, 0, Flux::Steady, 0);
    Setup { v6, port, more_ports: 0, proto, udp_policy, backend, flux, syn_budget }
}

/// So many that each flow was there once, where that makes a difference.
fn warm(plan: &Plan) -> u32 {
    if plan.mask == MANY - 1 { MANY } else { WARM }
}

fn round(instructions: f64) -> f64 {
    (instructions * 10.0).round() / 10.0
}

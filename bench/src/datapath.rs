//! The cost of a packet: every case in every round in turn, so that a noisy moment hits all alike.

use anyhow::{Result, ensure};
use kit::{progress::Progress, reports::datapath::PacketCase};
use lb_common::abi::{backend_flags, proto, udp_policy};

use crate::{
    frames::{self, Plan, Shape},
    harness::{Flux, Harness, Program, Setup},
};

const TUNNEL: u8 = backend_flags::TUNNEL;
const V6: u8 = backend_flags::V6;
const MANY: u32 = 1 << 20;
const ALL: u32 = 1 << 24;
/// Every packet a flow of its own: the address and port have this many values.
const NEW: u32 = 0;

struct Case {
    name: &'static str,
    program: Program,
    /// The case that the ratio is to.
    against: &'static str,
    plan: Plan,
    /// Whether each packet must have been counted for a backend.
    forwards: bool,
    samples: Vec<f64>,
}

fn floor(name: &'static str) -> Case {
    let plan = frames::plan(false, Shape::Tcp, 81, 1);
    let program = Program::Floor(name);
    Case { name, program, against: name, plan, forwards: false, samples: Vec::new() }
}

fn case(name: &'static str, against: &'static str, plan: Plan) -> Case {
    let program = Program::Balancer;
    Case { name, program, against, plan, forwards: true, samples: Vec::new() }
}

/// A variant of the balancer's program beside the program itself.
fn variant(name: &'static str, program: Program, of: &Case) -> Case {
    let Case { name: against, plan, forwards, .. } = *of;
    Case { name, program, against, plan, forwards, samples: Vec::new() }
}

fn services() -> Vec<Setup> {
    let tcp = |v6, port, backend, flux, syn_budget| Setup {
        v6,
        port,
        more_ports: 0,
        proto: proto::TCP,
        udp_policy: 0,
        backend,
        flux,
        syn_budget,
    };
    let udp = |port, udp_policy| Setup {
        v6: false,
        port,
        more_ports: 0,
        proto: proto::UDP,
        udp_policy,
        backend: TUNNEL,
        flux: Flux::Steady,
        syn_budget: 0,
    };
    vec![
        tcp(false, 80, 0, Flux::Steady, 0),
        tcp(false, 81, TUNNEL, Flux::Steady, 0),
        tcp(false, 82, TUNNEL | V6, Flux::Steady, 0),
        tcp(false, 83, TUNNEL, Flux::Unpinned, 0),
        tcp(false, 84, TUNNEL, Flux::Pinned(65_536), 0),
        tcp(false, 85, TUNNEL, Flux::Unpinned, u32::MAX),
        tcp(true, 80, V6, Flux::Steady, 0),
        tcp(true, 81, TUNNEL | V6, Flux::Steady, 0),
        tcp(true, 84, TUNNEL | V6, Flux::Pinned(65_536), 0),
        tcp(false, 86, 0, Flux::Unowned, 0),
        udp(53, udp_policy::ONESHOT),
        udp(54, udp_policy::TRACKED),
        udp(443, udp_policy::QUIC),
    ]
}

fn cases() -> Vec<Case> {
    let v4 = |shape, port, flows| frames::plan(false, shape, port, flows);
    let v6 = |shape, port, flows| frames::plan(true, shape, port, flows);
    let (swap, encapsulate) = ("swap", "encapsulate");
    let mut pass = case("no service, TCP port 22", swap, v4(Shape::Tcp, 22, 65_536));
    pass.forwards = false;
    let mut pass_v6 = case("no service, IPv6", swap, v6(Shape::Tcp, 22, 65_536));
    pass_v6.forwards = false;
    let mut dropped = case("dropped, no backend", swap, v4(Shape::Tcp, 86, 65_536));
    dropped.forwards = false;
    let one = case("ipip, IPv4 TCP, one flow", encapsulate, v4(Shape::Tcp, 81, 1));
    let many = case("ipip, IPv4 TCP, a million flows", encapsulate, v4(Shape::Tcp, 81, MANY));
    let (silent, others, all) = (Program::Silent, Program::CapturesOthers, Program::Captures);
    let variants = [
        variant("one flow, without log calls", silent, &one),
        variant("a million flows, without log calls", silent, &many),
        variant("dropped, without log calls", silent, &dropped),
        variant("no service, without log calls", silent, &pass),
        variant("one flow, others are captured", others, &one),
        variant("a million flows, others are captured", others, &many),
        variant("one flow, captured", all, &one),
        variant("a million flows, captured", all, &many),
        variant("no service, captured", all, &pass),
    ];
    let mut cases = vec![
        floor("transmit"),
        floor(swap),
        floor(encapsulate),
        case("dsr, IPv4 TCP, one flow", swap, v4(Shape::Tcp, 80, 1)),
        case("dsr, IPv4 TCP, 65,536 flows", swap, v4(Shape::Tcp, 80, 65_536)),
        case("dsr, IPv4 TCP, a million flows", swap, v4(Shape::Tcp, 80, MANY)),
        one,
        case("ipip, IPv4 TCP, 65,536 flows", encapsulate, v4(Shape::Tcp, 81, 65_536)),
        many,
        case("ipip, IPv4 TCP, 16 million flows", encapsulate, v4(Shape::Tcp, 81, ALL)),
        case("ipip, IPv4 SYN, a new flow each", encapsulate, v4(Shape::Syn, 81, NEW)),
        // Of a few SYNs without any ACK: all backends are silent, so all slots are tried in vain.
        case("ipip, IPv4 SYN, sent again in vain", encapsulate, v4(Shape::Syn, 81, 2_048)),
        case("ipip, IPv4 in IPv6, a million flows", encapsulate, v4(Shape::Tcp, 82, MANY)),
        case("dsr, IPv6 TCP, one flow", swap, v6(Shape::Tcp, 80, 1)),
        case("dsr, IPv6 TCP, a million flows", swap, v6(Shape::Tcp, 80, MANY)),
        case("ipip, IPv6 TCP, one flow", encapsulate, v6(Shape::Tcp, 81, 1)),
        case("ipip, IPv6 TCP, a million flows", encapsulate, v6(Shape::Tcp, 81, MANY)),
        case("ipip, UDP oneshot, a million flows", encapsulate, v4(Shape::Udp, 53, MANY)),
        case("ipip, UDP tracked, 32,768 flows", encapsulate, v4(Shape::Udp, 54, 32_768)),
        case("ipip, UDP quic, 65,536 flows", encapsulate, v4(Shape::Quic, 443, 65_536)),
        case("ipip, UDP quic Initial, a new flow each", encapsulate, v4(Shape::Initial, 443, NEW)),
        case("in flux, no pins, one flow", encapsulate, v4(Shape::Tcp, 83, 1)),
        case("in flux, no pins, a million flows", encapsulate, v4(Shape::Tcp, 83, MANY)),
        case("in flux, pinned, one flow", encapsulate, v4(Shape::Tcp, 84, 1)),
        case("in flux, pinned, 65,536 flows", encapsulate, v4(Shape::Tcp, 84, 65_536)),
        case("in flux, pinned, IPv6, 65,536 flows", encapsulate, v6(Shape::Tcp, 84, 65_536)),
        case("in flux, SYN flood, budget spent", encapsulate, v4(Shape::Syn, 83, NEW)),
        case("in flux, SYN that is pinned", encapsulate, v4(Shape::Syn, 85, NEW)),
        pass,
        pass_v6,
        dropped,
    ];
    cases.extend(variants);
    cases
}

/// Measures every case in `rounds` rounds of `packets` packets.
pub fn measure(rounds: u32, packets: u32) -> Result<Vec<PacketCase>> {
    let mut harness = Harness::load()?;
    for setup in services() {
        harness.add(&setup)?;
    }
    let mut cases = cases();
    let mut progress = Progress::new(rounds as usize + 1);
    for round in 0..=rounds {
        progress.begin("a round of all cases");
        for case in &mut cases {
            let target = harness.program(case.program)?;
            let before = harness.forwarded()?;
            let nanos = harness.run(&target, &mut case.plan, packets)?;
            if !is_floor(case) {
                let forwarded = harness.forwarded()? - before;
                let expected = if case.forwards { u64::from(packets) } else { 0 };
                ensure!(
                    forwarded == expected,
                    "{}: {forwarded} packets were counted, {expected} were run",
                    case.name
                );
            }
            // The first round warms up.
            if round > 0 {
                case.samples.push(nanos);
            }
        }
        progress.end(None);
    }
    Ok(report(cases))
}

fn is_floor(case: &Case) -> bool {
    matches!(case.program, Program::Floor(_))
}

fn report(mut cases: Vec<Case>) -> Vec<PacketCase> {
    for case in &mut cases {
        case.samples.sort_by(f64::total_cmp);
    }
    let figures = |name: &str| {
        let case = cases.iter().find(|case| case.name == name).expect("a case's name");
        (case.samples[case.samples.len() / 2], case.samples[0])
    };
    let (restore, restore_min) = figures("transmit");
    cases
        .iter()
        .map(|case| {
            let (floor, floor_min) = figures(case.against);
            let (median, min) = (case.samples[case.samples.len() / 2], case.samples[0]);
            let own = (case.name != "transmit").then_some(());
            PacketCase {
                name: case.name.into(),
                is_floor: is_floor(case),
                median_ns: median,
                min_ns: min,
                net_median_ns: median - restore,
                net_min_ns: min - restore_min,
                floor: case.against.into(),
                ratio_median: own.map(|()| (median - restore) / (floor - restore)),
                ratio_min: own.map(|()| (min - restore_min) / (floor_min - restore_min)),
            }
        })
        .collect()
}

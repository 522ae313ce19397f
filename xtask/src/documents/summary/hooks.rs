//! The paragraph on XDP and tc of `docs/BENCHMARKS.md`: how their costs compare, with each other and with other
//! balancers.

use anyhow::Result;
use kit::reports::{http, instructions};
use serde::Serialize;

use super::{Records, report};

/// The part of IPVS's instructions that was aimed at.
const AIM: f64 = 0.6;

/// Packets of which the instructions are compared.
const KINDS: [&str; 3] = ["one flow", "65,536 flows", "a new flow each"];

/// The measurements of both.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Hooks {
    instructions: Option<Instructions>,
    requests: Option<Requests>,
}

/// `dsr` at tc beside others: the least and the largest ratio of their packets.
#[derive(Debug, PartialEq, Serialize)]
struct Instructions {
    xdp: [f64; 2],
    ipvs: [f64; 2],
    masquerading: [f64; 2],
    aim: String,
    is_met: bool,
}

/// The same of the CPU time of a request, of all loads; and the time that each adds at most.
#[derive(Debug, PartialEq, Serialize)]
struct Requests {
    xdp: [f64; 2],
    haproxy: [f64; 2],
    nftables: [f64; 2],
    tc_adds_us: f64,
    xdp_adds_us: f64,
}

/// As far as it was measured.
pub fn ratios(records: &Records) -> Result<Hooks> {
    let instructions = report::<instructions::Report>(records, "instructions")?;
    let requests = report::<http::Report>(records, "http")?;
    Ok(Hooks {
        instructions: instructions.and_then(|report| of_instructions(&report.cases)),
        requests: requests.and_then(|report| of_requests(&report.cases)),
    })
}

fn of_instructions(cases: &[instructions::Case]) -> Option<Instructions> {
    let find = |name: &str, kind: &str| {
        let name = format!("{name}, {kind}");
        let case = cases.iter().find(|case| case.name == name)?;
        Some(case.instructions_per_packet)
    };
    let beside = |other: &str| {
        let ratio = |kind: &&str| Some(find("dsr at tc", kind)? / find(other, kind)?);
        range(KINDS.iter().map(ratio).collect::<Option<Vec<_>>>()?)
    };
    let ipvs = beside("IPVS DR")?;
    Some(Instructions {
        xdp: beside("dsr")?,
        ipvs,
        masquerading: beside("IPVS masquerading")?,
        aim: AIM.to_string(),
        is_met: ipvs[1] < AIM,
    })
}

fn of_requests(cases: &[http::Case]) -> Option<Requests> {
    let cpu = |case: &http::Case| case.median(|run| run.machine_cpu_us_per_request);
    let measured = || cases.iter().filter(|case| !case.runs.is_empty());
    let pairs = |own: http::System, other: http::System| {
        let own = measured().filter(move |case| case.system == own);
        own.filter_map(move |own| {
            let same = |case: &&http::Case| {
                let load = |case: &http::Case| (case.connections, case.keep_alive);
                case.system == other && load(case) == load(own)
            };
            Some((cpu(own), cpu(measured().find(same)?)))
        })
    };
    let beside =
        |other| range(pairs(http::System::DsrTc, other).map(|(own, other)| own / other).collect());
    let adds = |own| {
        let adds = pairs(own, http::System::Direct).map(|(own, direct)| own - direct);
        adds.max_by(f64::total_cmp)
    };
    Some(Requests {
        xdp: beside(http::System::Dsr)?,
        haproxy: beside(http::System::Haproxy)?,
        nftables: beside(http::System::NftablesDnat)?,
        tc_adds_us: adds(http::System::DsrTc)?,
        xdp_adds_us: adds(http::System::Dsr)?,
    })
}

/// None of nothing.
fn range(ratios: Vec<f64>) -> Option<[f64; 2]> {
    let least = ratios.iter().copied().min_by(f64::total_cmp)?;
    Some([least, ratios.into_iter().max_by(f64::total_cmp)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_known_without_records() -> Result<()> {
        assert_eq!(ratios(&Records::new())?, Hooks::default());
        Ok(())
    }

    #[test]
    fn the_aim_is_met_if_every_packet_meets_it() {
        let of = |new: f64| {
            let figures = [
                ("dsr at tc", [50.0, 50.0, new]),
                ("dsr", [10.0; 3]),
                ("IPVS DR", [100.0; 3]),
                ("IPVS masquerading", [125.0; 3]),
            ];
            let cases = figures.iter().flat_map(|(name, counts)| {
                KINDS.iter().zip(counts).map(move |(kind, count)| instructions::Case {
                    name: format!("{name}, {kind}"),
                    kind: instructions::Kind::Tc,
                    instructions_per_packet: *count,
                    spread: 0.0,
                })
            });
            of_instructions(&cases.collect::<Vec<_>>()).expect("all cases are there")
        };
        assert_eq!((of(55.0).ipvs, of(55.0).is_met), ([0.5, 0.55], true));
        assert!(!of(70.0).is_met);
        assert_eq!(of_instructions(&[]), None);
    }
}

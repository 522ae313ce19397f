//! The chapter of `bench http`.

use std::collections::BTreeSet;

use anyhow::Result;
use kit::reports::http::{Case, Profile, Report, System, median};
use minijinja::{Value, context};
use serde::Serialize;
use serde_json::Value as Json;

use super::{
    Plots,
    plot::{self, Bar},
    typed,
};

/// The aim: a share of the requests a second without a balancer, and the additional CPU time for each.
const SHARE: f64 = 0.9;
const MORE_US: f64 = 6.0;

/// The systems that are to be left behind.
const OTHERS: [System; 3] = [System::Haproxy, System::NginxStream, System::NftablesDnat];

/// How many functions of a load are shown.
const SHOWN: usize = 16;

/// Requests a second, in the median.
pub fn rate(case: &Case) -> f64 {
    case.median(|run| run.requests_per_second)
}

fn cpu(case: &Case) -> f64 {
    case.median(|run| run.machine_cpu_us_per_request)
}

/// The case of a system under this load: connections, and whether they are kept.
pub fn find(cases: &[Case], system: System, load: (u16, bool)) -> Option<&Case> {
    let mut measured = cases.iter().filter(|case| !case.runs.is_empty());
    measured.find(|case| case.system == system && (case.connections, case.keep_alive) == load)
}

/// Loads, aims and profiles.
pub fn prepare(results: &Json, plots: &mut Plots) -> Result<Value> {
    let report: Report = typed(results)?;
    let cases = &report.cases;
    let mut loads: Vec<(u16, bool)> = Vec::new();
    for case in cases {
        if !loads.contains(&(case.connections, case.keep_alive)) {
            loads.push((case.connections, case.keep_alive));
        }
    }
    let loads: Vec<_> =
        loads.into_iter().map(|of| load(cases, of, plots)).collect::<Result<_>>()?;
    let streams = report.throughput.iter().map(|stream| {
        context! { system => stream.system, gbits => median(stream.bits_per_second.clone()) / 1e9 }
    });
    let aims = [System::Dsr, System::Ipip, System::Router].map(|system| Aims::of(cases, system));
    Ok(context! {
        rounds => cases.iter().map(|case| case.runs.len()).max(),
        has_errors => cases.iter().flat_map(|case| &case.runs).any(|run| run.errors > 0),
        skipped => &report.skipped,
        has_nat => cases.iter().any(|case| case.system == System::Nat),
        aims => aims.into_iter().flatten().collect::<Vec<_>>(),
        aim_share => SHARE.to_string(),
        aim_more_us => MORE_US.to_string(),
        streams => streams.collect::<Vec<_>>(),
        profiles => profiles(&report.profiles),
        loads,
        report,
    })
}

/// Whether connections are kept, as text.
pub const fn keep(keep_alive: bool) -> &'static str {
    if keep_alive { "keep-alive" } else { "one request per connection" }
}

/// A plot, and a row for each system, beside that without a balancer.
fn load(cases: &[Case], load: (u16, bool), plots: &mut Plots) -> Result<Value> {
    let (connections, keep_alive) = load;
    let title = format!("{connections} connections, {}", keep(keep_alive));
    let plot = format!("http-{connections}-{}", if keep_alive { "keep" } else { "close" });
    let direct = find(cases, System::Direct, load);
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for case in System::ALL.into_iter().filter_map(|system| find(cases, system, load)) {
        let rates = || case.runs.iter().map(|run| run.requests_per_second);
        let spread = rates().fold(0.0, f64::max) - rates().fold(f64::INFINITY, f64::min);
        let (name, rate) = (case.system.name(), rate(case));
        let kind = if name.starts_with("lb-") { 0 } else { 5 };
        bars.push(Bar { name: name.to_owned(), value: rate, kind });
        rows.push(context! {
            system => case.system,
            rate,
            spread => spread / rate * 100.0,
            share => direct.map(|direct| rate / self::rate(direct)),
            p50_us => case.median(|run| run.p50_us as f64),
            p99_us => case.median(|run| run.p99_us as f64),
            p999_us => case.median(|run| run.p999_us as f64),
            cpu_us => cpu(case),
            more_us => direct.map(|direct| cpu(case) - cpu(direct)),
            errors => case.runs.iter().map(|run| run.errors).sum::<u64>(),
        });
    }
    plots.insert(plot.clone(), plot::bars(&title, "requests a second", &bars)?);
    Ok(context! { title, plot, rows })
}

/// Whether a system meets the aims under all loads, and its worst figures.
#[derive(Serialize)]
pub struct Aims {
    system: System,
    is_ahead: bool,
    has_share: bool,
    is_cheap: bool,
    /// Of the requests a second without a balancer.
    pub least_share: f64,
    /// CPU time of a request, beside that without a balancer.
    pub most_more_us: f64,
}

impl Aims {
    /// By the figures; none of a system that was not measured beside the hosts alone.
    pub fn of(cases: &[Case], system: System) -> Option<Self> {
        let own = cases.iter().filter(|case| case.system == system && !case.runs.is_empty());
        let load = |case: &Case| (case.connections, case.keep_alive);
        let beside = |case, system| find(cases, system, load(case));
        let own: Vec<_> =
            own.filter_map(|case| Some((case, beside(case, System::Direct)?))).collect();
        let is_ahead = own.iter().all(|(case, _)| {
            let mut others = OTHERS.into_iter().filter_map(|other| beside(case, other));
            others.all(|other| rate(case) > rate(other))
        });
        let shares = own.iter().map(|(case, direct)| rate(case) / rate(direct));
        let least_share = shares.min_by(f64::total_cmp)?;
        let more = own.iter().map(|(case, direct)| cpu(case) - cpu(direct));
        let most_more_us = more.max_by(f64::total_cmp)?;
        let (has_share, is_cheap) = (least_share >= SHARE, most_more_us < MORE_US);
        Some(Self { system, is_ahead, has_share, is_cheap, least_share, most_more_us })
    }

    /// The aims of the share and of the CPU time, and whether they are missed.
    pub fn missed(&self) -> [(bool, String); 2] {
        let share = format!("aim of {SHARE}");
        let cpu = format!("aim of less than {MORE_US} µs");
        [(!self.has_share, share), (!self.is_cheap, cpu)]
    }
}

/// Where the time of each load goes, by function, the balancer's largest additions first.
fn profiles(profiles: &[Profile]) -> Vec<Value> {
    let mut loads: Vec<_> =
        profiles.iter().map(|profile| (profile.connections, profile.keep_alive)).collect();
    loads.dedup();
    loads.into_iter().filter_map(|load| profile(profiles, load)).collect()
}

/// None of a load under which a system is missing.
fn profile(profiles: &[Profile], load: (u16, bool)) -> Option<Value> {
    let of = |system| {
        let mut same = profiles.iter().filter(|one| (one.connections, one.keep_alive) == load);
        same.find(|profile| profile.system == system)
    };
    let [direct, router, dsr, ipip] =
        [System::Direct, System::Router, System::Dsr, System::Ipip].map(of);
    let all = [direct?, router?, dsr?, ipip?];
    let row = |name: &str, times: [f64; 4]| {
        (context! { name, times, adds => times[2] - times[0] }, times[2] - times[0])
    };
    let names: BTreeSet<_> = all.iter().flat_map(|profile| profile.functions.keys()).collect();
    let times = |name| all.map(|profile| profile.functions.get(name).copied().unwrap_or_default());
    let mut rows: Vec<_> = names.into_iter().map(|name| row(name, times(name))).collect();
    rows.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    rows.truncate(SHOWN);
    rows.insert(0, row("all", all.map(|profile| profile.machine_cpu_us_per_request)));
    let rows: Vec<_> = rows.into_iter().map(|(row, _)| row).collect();
    let (connections, keep_alive) = load;
    Some(context! { connections, keep => keep(keep_alive), rows })
}

#[cfg(test)]
mod tests {
    use kit::reports::http::{Run, Skipped};

    use super::{super::tests, *};

    fn case(system: System, rate: f64, cpu: f64) -> Case {
        let run = Run {
            requests_per_second: rate,
            errors: 0,
            p50_us: 1,
            p99_us: 2,
            p999_us: 3,
            machine_cpu_us_per_request: cpu,
        };
        Case { system, connections: 64, keep_alive: true, runs: vec![run] }
    }

    fn rendered(cases: Vec<Case>, profiles: Vec<Profile>) -> Result<String> {
        let skipped = vec![Skipped { system: System::IpvsMasquerading, reason: "no IPVS".into() }];
        let report = Report { seconds: 3, cases, throughput: Vec::new(), profiles, skipped };
        tests::rendered("http", "cargo xtask bench http", &report)
    }

    #[test]
    fn errors_are_explained_where_there_are_any() -> Result<()> {
        let cases = || vec![case(System::Direct, 100.0, 20.0), case(System::Dsr, 95.0, 25.0)];
        assert!(!rendered(cases(), Vec::new())?.contains("reason=TCP_FLAGS"));
        let mut cases = cases();
        cases[1].runs[0].errors = 1;
        assert!(rendered(cases, Vec::new())?.contains("reason=TCP_FLAGS"));
        Ok(())
    }

    #[test]
    fn aims_are_judged_by_the_figures() -> Result<()> {
        let cases = vec![
            case(System::Direct, 100.0, 20.0),
            case(System::Dsr, 95.0, 25.0),
            case(System::Ipip, 60.0, 27.5),
            case(System::Haproxy, 70.0, 60.0),
        ];
        let text = rendered(cases, Vec::new())?;
        for line in [
            "Not measured: `ipvs-masquerading` (no IPVS).",
            "| lb-dsr | met | 0.95, met | +5.0, met |",
            "| lb-ipip | missed | 0.60, missed | +7.5, missed |",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        Ok(())
    }

    #[test]
    fn a_profile_tells_what_the_balancer_adds_most_first() -> Result<()> {
        let profile = |(system, copied)| Profile {
            system,
            connections: 64,
            keep_alive: true,
            samples: 1,
            machine_cpu_us_per_request: 20.0 + copied,
            functions: [("user".into(), 15.0), ("copy".into(), copied)].into(),
        };
        let systems = [System::Direct, System::Router, System::Dsr, System::Ipip];
        let all = systems.into_iter().zip([0.5, 1.0, 2.0, 3.0]).map(profile).collect();
        let text = rendered(Vec::new(), all)?;
        let rows: Vec<_> =
            text.lines().skip_while(|line| !line.starts_with("| function")).collect();
        assert_eq!(
            rows[..5],
            [
                "| function | direct | ecmp-router | lb-dsr | lb-ipip | lb-dsr adds |",
                "|---|--:|--:|--:|--:|--:|",
                "| all | 20.50 | 21.00 | 22.00 | 23.00 | +1.50 |",
                "| copy | 0.50 | 1.00 | 2.00 | 3.00 | +1.50 |",
                "| user | 15.00 | 15.00 | 15.00 | 15.00 | +0.00 |",
            ]
        );
        Ok(())
    }
}

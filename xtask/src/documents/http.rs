//! The chapter of `bench http`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Page,
    plot::{self, Bar},
    table::{Table, commas},
    typed,
};

#[derive(Deserialize)]
struct Report {
    seconds: u64,
    cases: Vec<Case>,
    throughput: Vec<Throughput>,
    #[serde(default)]
    profiles: Vec<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    system: String,
    connections: u64,
    keep_alive: bool,
    machine_cpu_us_per_request: f64,
    functions: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Case {
    system: String,
    connections: u64,
    keep_alive: bool,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    requests_per_second: f64,
    errors: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    machine_cpu_us_per_request: f64,
}

#[derive(Deserialize)]
struct Throughput {
    system: String,
    bits_per_second: Vec<f64>,
}

impl Case {
    fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(of).collect())
    }
}

/// The median, or the lower of the two in the middle; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(0.0)
}

/// Writes it.
pub fn render(results: &Value, page: &mut Page) -> Result<()> {
    let report: Report = typed(results)?;
    let rounds = report.cases.iter().map(|case| case.runs.len()).max().unwrap_or(0);
    page.say(&format!(
        "A client (wrk) asks three nginx for a small page: without a balancer, through lb, and through what is \
         in use today, each as it comes, on hosts alike. Medians of {rounds} runs of {} s, in turn. *CPU* is \
         busy time of the whole machine for each request, client and web hosts included; *more* is what \
         the balancer adds to direct. *Spread*: between the best and the worst run.",
        report.seconds
    ));
    let mut loads: Vec<(u64, bool)> = Vec::new();
    for case in &report.cases {
        if !loads.contains(&(case.connections, case.keep_alive)) {
            loads.push((case.connections, case.keep_alive));
        }
    }
    for (connections, keep_alive) in loads {
        let keep = if keep_alive { "keep-alive" } else { "a connection for each request" };
        let title = format!("{connections} connections, {keep}");
        page.say(&format!("### {title}"));
        let same = |case: &&Case| (case.connections, case.keep_alive) == (connections, keep_alive);
        let cases: Vec<_> =
            report.cases.iter().filter(same).filter(|case| !case.runs.is_empty()).collect();
        let direct = cases.iter().find(|case| case.system == "direct");
        let head = [
            "",
            "requests/s",
            "spread",
            "of direct",
            "p50, µs",
            "p99, µs",
            "p99.9, µs",
            "CPU, µs",
            "more, µs",
            "errors",
        ];
        let mut table = Table::new(head);
        let mut bars = Vec::new();
        for case in &cases {
            let rates = || case.runs.iter().map(|run| run.requests_per_second);
            let rate = case.median(|run| run.requests_per_second);
            let spread = rates().fold(0.0, f64::max) - rates().fold(f64::INFINITY, f64::min);
            let cpu = case.median(|run| run.machine_cpu_us_per_request);
            let beside =
                |of: &dyn Fn(&Case) -> String| direct.map_or_else(|| "-".into(), |case| of(case));
            let kind = if case.system.starts_with("lb-") { 0 } else { 5 };
            bars.push(Bar { name: case.system.clone(), value: rate, kind });
            table.row([
                case.system.clone(),
                commas(rate.round() as u64),
                format!("{:.0} %", spread / rate * 100.0),
                beside(&|direct| {
                    format!("{:.2}", rate / direct.median(|run| run.requests_per_second))
                }),
                commas(case.median(|run| run.p50_us) as u64),
                commas(case.median(|run| run.p99_us) as u64),
                commas(case.median(|run| run.p999_us) as u64),
                format!("{cpu:.1}"),
                beside(&|direct| {
                    format!("{:+.1}", cpu - direct.median(|run| run.machine_cpu_us_per_request))
                }),
                commas(case.runs.iter().map(|run| run.errors).sum()),
            ]);
        }
        let kept = if keep_alive { "keep" } else { "close" };
        let svg = plot::bars(&title, "requests a second", &bars)?;
        page.plot(
            &format!("http-{connections}-{kept}"),
            &format!("Requests a second, {title}"),
            svg,
        );
        table.write(&mut page.text);
    }
    errors(&report.cases, page);
    page.say(
        "One connection of iperf3, as many bytes as go through. Segmentation offloads are off on all hosts, as \
         native XDP on virtual Ethernet wants it; with them a proxy carries more here.",
    );
    let mut table = Table::new(["", "Gbit/s"]);
    for of in report.throughput {
        table.row([of.system, format!("{:.2}", median(of.bits_per_second) / 1e9)]);
    }
    table.write(&mut page.text);
    aims(&report.cases, page);
    profiles(&report.profiles, page);
    Ok(())
}

/// Why requests fail, if any did: those of runs that were traced had one cause.
fn errors(cases: &[Case], page: &mut Page) {
    if cases.iter().flat_map(|case| &case.runs).all(|run| run.errors == 0) {
        return;
    }
    page.say(
        "*Errors*: each one in runs that were traced was a reset by a web host's kernel, from its listener, as the \
         request came (`tcp:tcp_send_reset` with `state=TCP_LISTEN reason=TCP_FLAGS`). The handshake's last segment \
         and the request were processed by two CPUs at a time: the other CPU made the connection established within \
         the same microseconds (`sock:inet_sock_set_state`), and the request's lookup missed it. Linux has mended such a \
         race (commit 1532ed0d0753, \"inet: Avoid ehash lookup race in inet_ehash_insert()\"). It takes a path on \
         which packets of a flow change CPUs: here ports of the virtual switch that are polled (NAPI), as XDP on \
         their other end wants it. Without a balancer the same reset came when the client's port was polled. A \
         network card keeps a flow on one queue.",
    );
}

/// What share of the requests a second without a balancer was aimed at, and how much more CPU time for each.
const SHARE: f64 = 0.9;
const MORE_US: f64 = 6.0;

/// The systems that are to be left behind.
const OTHERS: [&str; 3] = ["haproxy", "nginx-stream", "nftables-dnat"];

/// Whether the aims are met, by the figures.
fn aims(cases: &[Case], page: &mut Page) {
    let rate = |case: &Case| case.median(|run| run.requests_per_second);
    let cpu = |case: &Case| case.median(|run| run.machine_cpu_us_per_request);
    let beside = |case: &Case, system: &str| {
        let load = (case.connections, case.keep_alive);
        let mut same = cases.iter().filter(|case| (case.connections, case.keep_alive) == load);
        same.find(|case| case.system == system && !case.runs.is_empty())
    };
    let judged = |is_met: bool| if is_met { "met" } else { "missed" };
    let mut told = Vec::new();
    for system in ["lb-dsr", "lb-ipip", "ecmp-router"] {
        let own = cases.iter().filter(|case| case.system == system && !case.runs.is_empty());
        let beside_direct = |case| Some((case, beside(case, "direct")?));
        let own: Vec<_> = own.filter_map(beside_direct).collect();
        let is_ahead = own.iter().all(|(case, _)| {
            let mut others = OTHERS.iter().filter_map(|other| beside(case, other));
            others.all(|other| rate(case) > rate(other))
        });
        let shares = own.iter().map(|(case, direct)| rate(case) / rate(direct));
        let more = own.iter().map(|(case, direct)| cpu(case) - cpu(direct));
        let (least, most) =
            (shares.fold(f64::INFINITY, f64::min), more.fold(f64::NEG_INFINITY, f64::max));
        if own.is_empty() {
            continue;
        }
        told.push(format!(
            "`{system}`: ahead of each {}, share {} with {least:.2} at least, CPU {} with {most:+.1} µs at most",
            judged(is_ahead),
            judged(least >= SHARE),
            judged(most < MORE_US),
        ));
    }
    page.say(&format!(
        "The aims, which are no measurement, were to be ahead of each of the others under every load, to carry {SHARE} \
         of what goes without a balancer, and to take less than {MORE_US} µs of CPU more for a request. {}. What \
         `ecmp-router` misses as well is what a hop costs on this machine, whoever makes it: a packet more to be handed \
         over and a process more to be woken, on cores that client and hosts share. The profiles show it: the \
         balancer's own program (`plain` and `any`) is a small part of what is added.",
        told.join("; ")
    ));
}

/// How many functions are told of a load.
const TOLD: usize = 16;

/// Where the time goes, by function, most of what the balancer adds first.
fn profiles(profiles: &[Profile], page: &mut Page) {
    let mut loads: Vec<_> =
        profiles.iter().map(|profile| (profile.connections, profile.keep_alive)).collect();
    loads.dedup();
    for (connections, keep_alive) in loads {
        let of = |system: &str| {
            profiles.iter().find(|profile| {
                (profile.connections, profile.keep_alive) == (connections, keep_alive)
                    && profile.system == system
            })
        };
        let systems = ["direct", "ecmp-router", "lb-dsr", "lb-ipip"];
        let [Some(direct), Some(router), Some(dsr), Some(ipip)] = systems.map(of) else { continue };
        let all = [direct, router, dsr, ipip];
        let names: BTreeSet<_> = all.iter().flat_map(|profile| profile.functions.keys()).collect();
        let time = |profile: &Profile, name: &str| {
            profile.functions.get(name).copied().unwrap_or_default()
        };
        let mut names: Vec<_> = names.into_iter().collect();
        let added = |name: &str| time(dsr, name) - time(direct, name);
        names.sort_by(|a, b| added(b).total_cmp(&added(a)));
        let keep = if keep_alive { "keep-alive" } else { "a connection for each request" };
        page.say(&format!(
            "### Where the time goes, {connections} connections, {keep}\n\n\
             Microseconds of CPU for a request in functions of the kernel themselves, without what they call, \
             by samples of the whole machine (perf); what `lb-dsr` adds to `direct`, the largest {TOLD} of it. \
             `ecmp-router` is a hop more without a balancer: the kernel routes each flow to a host."
        ));
        let mut table =
            Table::new(["function", "direct", "ecmp-router", "lb-dsr", "lb-ipip", "lb-dsr adds"]);
        let mut row = |name: &str, time: &dyn Fn(&Profile) -> f64| {
            let times = all.map(time);
            let more = format!("{:+.2}", times[2] - times[0]);
            let [direct, router, dsr, ipip] = times.map(|time| format!("{time:.2}"));
            table.row([name.to_owned(), direct, router, dsr, ipip, more]);
        };
        row("all", &|profile| profile.machine_cpu_us_per_request);
        for name in names.into_iter().take(TOLD) {
            row(name, &|profile| time(profile, name));
        }
        table.write(&mut page.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(system: &str, rate: f64, cpu: f64) -> Case {
        let run = Run {
            requests_per_second: rate,
            errors: 0,
            p50_us: 1.0,
            p99_us: 2.0,
            p999_us: 3.0,
            machine_cpu_us_per_request: cpu,
        };
        Case { system: system.into(), connections: 64, keep_alive: true, runs: vec![run] }
    }

    #[test]
    fn errors_are_explained_where_there_are_any() {
        let mut cases = [case("direct", 100.0, 20.0), case("lb-dsr", 95.0, 25.0)];
        let mut page = Page::default();
        errors(&cases, &mut page);
        assert_eq!(page.text, "");
        cases[1].runs[0].errors = 1;
        errors(&cases, &mut page);
        assert!(page.text.contains("reason=TCP_FLAGS"), "{}", page.text);
    }

    #[test]
    fn aims_are_judged_by_the_figures() {
        let cases = [
            case("direct", 100.0, 20.0),
            case("lb-dsr", 95.0, 25.0),
            case("lb-ipip", 60.0, 27.5),
            case("haproxy", 70.0, 60.0),
        ];
        let mut page = Page::default();
        aims(&cases, &mut page);
        for told in [
            "`lb-dsr`: ahead of each met, share met with 0.95 at least, CPU met with +5.0 µs at most",
            "`lb-ipip`: ahead of each missed, share missed with 0.60 at least, CPU missed with +7.5 µs at most",
        ] {
            assert!(page.text.contains(told), "{told} in {}", page.text);
        }
    }

    #[test]
    fn a_profile_tells_what_the_balancer_adds_most_first() {
        let profile = |system: &str, copied: f64| Profile {
            system: system.into(),
            connections: 64,
            keep_alive: true,
            machine_cpu_us_per_request: 20.0 + copied,
            functions: [("user".into(), 15.0), ("copy".into(), copied)].into(),
        };
        let all = [
            profile("direct", 0.5),
            profile("ecmp-router", 1.0),
            profile("lb-dsr", 2.0),
            profile("lb-ipip", 3.0),
        ];
        let mut page = Page::default();
        profiles(&all, &mut page);
        let rows: Vec<_> = page.text.lines().filter(|line| line.starts_with("| ")).collect();
        assert_eq!(
            rows,
            [
                "| function | direct | ecmp-router | lb-dsr | lb-ipip | lb-dsr adds |",
                "| all | 20.50 | 21.00 | 22.00 | 23.00 | +1.50 |",
                "| copy | 0.50 | 1.00 | 2.00 | 3.00 | +1.50 |",
                "| user | 15.00 | 15.00 | 15.00 | 15.00 | +0.00 |",
            ]
        );
    }
}

//! The results of `bench http`, as tables for people and as JSON for programs.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// Everything that was measured.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// How long each run took.
    pub seconds: u64,
    /// One system under one load each.
    pub cases: Vec<Case>,
    /// One connection with as many bytes as go through.
    pub throughput: Vec<Throughput>,
    /// Where the time of some of them goes.
    #[serde(default)]
    pub profiles: Vec<Profile>,
    /// The systems that the kernel lacks, and what it lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

/// A system that could not be measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// The system.
    pub system: System,
    /// What is missing.
    pub reason: String,
}

/// A way from the client to the web hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// No balancer: the client knows the hosts.
    Direct,
    /// No balancer, but a hop more: the kernel routes each flow to a host (ECMP), answers go the direct way.
    #[serde(rename = "ecmp-router")]
    Router,
    /// `lbd`, layer 2.
    #[serde(rename = "lb-dsr")]
    Dsr,
    /// The same, at tc in place of XDP.
    #[serde(rename = "lb-dsr-tc")]
    DsrTc,
    /// `lbd`, through tunnels.
    #[serde(rename = "lb-ipip")]
    Ipip,
    /// `lbd` in mode `nat`: answers come back through the balancer.
    #[serde(rename = "lb-nat")]
    Nat,
    /// The same, at tc in place of XDP.
    #[serde(rename = "lb-nat-tc")]
    NatTc,
    /// HAProxy in TCP mode.
    Haproxy,
    /// nginx with its stream module.
    NginxStream,
    /// nftables: the destination is rewritten, and the source, so that answers come back.
    NftablesDnat,
    /// nftables: the destination alone is rewritten; answers come back through the balancer.
    NftablesDnatRouted,
    /// IPVS masquerading: the same by the kernel's balancer.
    IpvsMasquerading,
}

impl System {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Direct,
        Self::Router,
        Self::Dsr,
        Self::DsrTc,
        Self::Ipip,
        Self::Nat,
        Self::NatTc,
        Self::Haproxy,
        Self::NginxStream,
        Self::NftablesDnat,
        Self::NftablesDnatRouted,
        Self::IpvsMasquerading,
    ];

    /// As `--only` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Router => "ecmp-router",
            Self::Dsr => "lb-dsr",
            Self::DsrTc => "lb-dsr-tc",
            Self::Ipip => "lb-ipip",
            Self::Nat => "lb-nat",
            Self::NatTc => "lb-nat-tc",
            Self::Haproxy => "haproxy",
            Self::NginxStream => "nginx-stream",
            Self::NftablesDnat => "nftables-dnat",
            Self::NftablesDnatRouted => "nftables-dnat-routed",
            Self::IpvsMasquerading => "ipvs-masquerading",
        }
    }
}

/// A system under a load.
#[derive(Serialize, Deserialize)]
pub struct Case {
    /// The system.
    pub system: System,
    /// Connections of the client at a time.
    pub connections: u16,
    /// Whether they are kept, or closed after each request.
    pub keep_alive: bool,
    /// The runs.
    pub runs: Vec<Run>,
}

/// A run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// Requests that were answered.
    pub requests_per_second: f64,
    /// Requests that failed.
    pub errors: u64,
    /// How long the answer took, in the median.
    pub p50_us: u64,
    /// The same, of 99 in 100.
    pub p99_us: u64,
    /// The same, of 999 in 1,000.
    pub p999_us: u64,
    /// Busy time of all CPUs: client, balancer, web hosts and kernel.
    pub machine_cpu_us_per_request: f64,
}

/// The throughput of one connection.
#[derive(Serialize, Deserialize)]
pub struct Throughput {
    /// The system.
    pub system: System,
    /// The bytes that came to the server in each run.
    pub bits_per_second: Vec<f64>,
}

/// A system's time under a load.
#[derive(Debug, Serialize, Deserialize)]
pub struct Profile {
    /// The system.
    pub system: System,
    /// Connections of the client at a time.
    pub connections: u16,
    /// Whether they are kept.
    pub keep_alive: bool,
    /// How many samples there were, but for idle ones.
    pub samples: u64,
    /// Busy time of the whole machine for a request, in this run.
    pub machine_cpu_us_per_request: f64,
    /// The functions' own part of it, without those that they call.
    pub functions: BTreeMap<String, f64>,
}

impl Case {
    /// The median of a figure of its runs.
    pub fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(of).collect())
    }
}

impl Throughput {
    /// Without runs.
    pub const fn new(system: System) -> Self {
        Self { system, bits_per_second: Vec::new() }
    }
}

/// The median, or the lower of the two in the middle; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(0.0)
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} requests/s, p50 {} us, p99 {} us, p99.9 {} us, {:.1} us of CPU each, {} errors",
            self.requests_per_second,
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.machine_cpu_us_per_request,
            self.errors
        )
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} us of CPU each, {} samples", self.machine_cpu_us_per_request, self.samples)
    }
}

/// The width of the column of names.
const NAME: usize = 21;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "medians of {} runs of {} s. Of direct: requests/s beside those without a balancer; CPU: busy\n\
             time of the whole machine for each request, and how much of it is more than without one",
            self.cases.iter().map(|case| case.runs.len()).max().unwrap_or(0),
            self.seconds
        )?;
        let mut load = None;
        for case in self.cases.iter().filter(|case| !case.runs.is_empty()) {
            let direct = self.cases.iter().find(|direct| {
                let same = direct.connections == case.connections;
                same && direct.keep_alive == case.keep_alive && direct.system == System::Direct
            });
            if load != Some((case.connections, case.keep_alive)) {
                load = Some((case.connections, case.keep_alive));
                let keep = if case.keep_alive { "keep-alive" } else { "a connection each" };
                writeln!(f, "\n{} connections, {keep}", case.connections)?;
                writeln!(
                    f,
                    "{:<NAME$}{:>11}{:>8}{:>15}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}",
                    "",
                    "requests/s",
                    "spread",
                    "of direct",
                    "p50, us",
                    "p99",
                    "p99.9",
                    "CPU, us",
                    "more",
                    "errors"
                )?;
            }
            let rates: Vec<_> = case.runs.iter().map(|run| run.requests_per_second).collect();
            let rate = median(rates.clone());
            let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
            let most = rates.iter().copied().fold(0.0, f64::max);
            let cpu = case.median(|run| run.machine_cpu_us_per_request);
            let direct = direct.filter(|direct| !direct.runs.is_empty());
            let of_direct = direct.map_or_else(
                || "-".into(),
                |direct| format!("{:.2}", rate / direct.median(|run| run.requests_per_second)),
            );
            let more = direct.map_or_else(
                || "-".into(),
                |direct| {
                    format!("{:+.1}", cpu - direct.median(|run| run.machine_cpu_us_per_request))
                },
            );
            writeln!(
                f,
                "{:<NAME$}{rate:>11.0}{:>7.0}%{of_direct:>15}{:>9.0}{:>9.0}{:>9.0}{cpu:>9.1}{more:>9}{:>8}",
                case.system.name(),
                (most - least) / rate * 100.0,
                case.median(|run| run.p50_us as f64),
                case.median(|run| run.p99_us as f64),
                case.median(|run| run.p999_us as f64),
                case.runs.iter().map(|run| run.errors).sum::<u64>(),
            )?;
        }
        writeln!(
            f,
            "\none connection, as many bytes as go through (offloads are off on all hosts)"
        )?;
        for of in self.throughput.iter().filter(|of| !of.bits_per_second.is_empty()) {
            let gbits = median(of.bits_per_second.clone()) / 1e9;
            writeln!(f, "{:<NAME$}{gbits:>11.2} Gbit/s", of.system.name())?;
        }
        for Skipped { system, reason } in &self.skipped {
            writeln!(f, "{} is skipped: {reason}", system.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(system: System, rate: f64, cpu: f64) -> Case {
        let run = |rate| Run {
            requests_per_second: rate,
            errors: 0,
            p50_us: 1,
            p99_us: 2,
            p999_us: 3,
            machine_cpu_us_per_request: cpu,
        };
        let runs = vec![run(rate * 0.5), run(rate), run(rate * 1.5)];
        Case { system, connections: 64, keep_alive: false, runs }
    }

    #[test]
    fn a_system_is_told_beside_none() {
        let cases = vec![case(System::Direct, 20_000.0, 74.0), case(System::Dsr, 19_000.0, 78.5)];
        let report = Report {
            seconds: 3,
            cases,
            throughput: Vec::new(),
            profiles: Vec::new(),
            skipped: Vec::new(),
        };
        let text = report.to_string();
        let line = text.lines().find(|line| line.starts_with("lb-dsr")).unwrap_or_default();
        let words: Vec<_> = line.split_whitespace().collect();
        let expected = ["lb-dsr", "19000", "100%", "0.95", "1", "2", "3", "78.5", "+4.5", "0"];
        assert_eq!(words, expected, "{text}");
    }
}

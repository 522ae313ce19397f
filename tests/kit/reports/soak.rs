//! The results of `soak`, as tables for people and as JSON for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// The result of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The seed, which replays it.
    pub seed: u64,
    /// The services' names; none in older results: modes `dsr` and `ipip`, IPv4 and IPv6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// How long operations were carried out.
    pub duration_seconds: f64,
    /// How many, by kind.
    pub operations: BTreeMap<String, u64>,
    /// Connections that were begun.
    pub connections: u64,
    /// Requests that were answered, with the compared answer.
    pub requests: u64,
    /// Long downloads that came whole.
    pub downloads: u64,
    /// Bytes of bodies that were as they should be.
    pub bytes_verified: u64,
    /// Connections that broke and may have, by the reason.
    pub broken_allowed: BTreeMap<String, u64>,
    /// Connections that broke and may not.
    pub broken_not_allowed: u64,
    /// New connections that a backend without new flows took, since a flow could not be pinned.
    pub answers_of_base_owners: u64,
    /// Takeovers, planned or not.
    pub takeovers: u64,
    /// Times that a node moved the flows of a backend.
    pub flows_moved: u64,
    /// The resources of both `lbd`.
    pub nodes: Vec<Node>,
    /// How that has grown where no operation touched the process.
    pub growth: Vec<Growth>,
    /// The longest time that this program wanted to run and could not.
    pub longest_stall_ns: u64,
    /// The highest load average of a minute.
    pub load_average: f64,
    /// All that must not have been.
    pub violations: Vec<Violation>,
}

/// The resources of one node's `lbd`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Node {
    /// The node.
    pub name: String,
    /// How many processes there were of it.
    pub processes: usize,
    /// Memory in use.
    pub rss_bytes: Course,
    /// Descriptors.
    pub fds: Course,
    /// Of these, maps.
    pub bpf_maps: Course,
    /// And programs.
    pub bpf_programs: Course,
}

/// Something that must not have been.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Violation {
    /// When, since the start.
    pub at_seconds: f64,
    /// Its kind.
    pub kind: String,
    /// The description.
    pub what: String,
}

/// The first, the median and the last of a figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// The first one.
    pub first: u64,
    /// The median.
    pub median: u64,
    /// The last one.
    pub last: u64,
}

/// How a figure has grown in a node's spared time: the medians of its middle and last third.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// The node.
    pub node: String,
    /// The number of that time.
    pub turn: usize,
    /// The figure.
    pub what: String,
    /// The median of the middle third.
    pub middle: u64,
    /// That of the last third.
    pub last: u64,
    /// The bound of that.
    pub bound: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operations = self.operations.values().sum::<u64>();
        let allowed = self.broken_allowed.values().sum::<u64>();
        writeln!(
            f,
            "seed {}, {}",
            self.seed,
            time(Duration::from_secs_f64(self.duration_seconds))
        )?;
        writeln!(f)?;
        for (what, count) in [
            ("operations", operations),
            ("connections", self.connections),
            ("requests answered and compared", self.requests),
            ("long downloads, whole", self.downloads),
            ("bytes compared", self.bytes_verified),
            ("takeovers", self.takeovers),
            ("flows of a backend moved", self.flows_moved),
            ("new connections by base owners", self.answers_of_base_owners),
            ("broken, as they may", allowed),
            ("broken, as they may not", self.broken_not_allowed),
        ] {
            writeln!(f, "{what:<34} {count:>14}")?;
        }
        table(
            f,
            "operations",
            self.operations.iter().map(|(kind, count)| (kind.as_str(), *count)),
        )?;
        let reasons = self.broken_allowed.iter();
        table(f, "broken, as they may", reasons.map(|(why, count)| (why.as_str(), *count)))?;
        writeln!(f, "\n{:<6} {:<14} {:>12} {:>12} {:>12}", "", "", "first", "median", "last")?;
        for Node { name, processes, rss_bytes, fds, bpf_maps, bpf_programs } in &self.nodes {
            for (what, course) in [
                ("memory, KiB", rss_bytes.kib()),
                ("descriptors", *fds),
                ("BPF maps", *bpf_maps),
                ("BPF programs", *bpf_programs),
            ] {
                let Course { first, median, last } = course;
                writeln!(f, "{name:<6} {what:<14} {first:>12} {median:>12} {last:>12}")?;
            }
            writeln!(f, "{name:<6} {:<14} {processes:>12}", "processes")?;
        }
        writeln!(
            f,
            "\nwhere nobody touched the process, medians of its middle and its last third"
        )?;
        for Growth { node, what, middle, last, bound, .. } in &self.growth {
            writeln!(f, "{node:<6} {what:<14} {middle:>12} {last:>12}   at most {bound}")?;
        }
        let stall = self.longest_stall_ns / 1_000_000;
        writeln!(f, "\nlongest stall of the machine {stall} ms, load {:.1}", self.load_average)?;
        for Violation { at_seconds, kind, what } in &self.violations {
            writeln!(f, "VIOLATION at {at_seconds:.3} s, {kind}: {what}")?;
        }
        Ok(())
    }
}

fn table<'a>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    rows: impl Iterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    writeln!(f, "\n{title}")?;
    for (what, count) in rows {
        writeln!(f, "  {what:<32} {count:>14}")?;
    }
    Ok(())
}

/// `3 min 20 s`.
#[must_use]
pub fn time(time: Duration) -> String {
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

impl Course {
    /// Of these.
    #[must_use]
    pub fn of(values: &[u64]) -> Self {
        let ends = values.first().zip(values.last());
        let (first, last) = ends.map_or((0, 0), |(first, last)| (*first, *last));
        Self { first, median: median(values), last }
    }

    fn kib(self) -> Self {
        Self { first: self.first >> 10, median: self.median >> 10, last: self.last >> 10 }
    }
}

impl Growth {
    /// Whether it does not flatten.
    #[must_use]
    pub const fn goes_on(&self) -> bool {
        self.last > self.bound
    }
}

/// The median, or the upper of the two in the middle; 0 of none.
#[must_use]
pub fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

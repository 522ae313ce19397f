//! A line each second: the Active node, and the clients' errors.

use std::fmt;

use kit::{downloads::Download, ha_pair::HaPair, probes, status::PairExt as _};

use super::{ADVERTISEMENTS, EACH, WAYS, operations::OPERATIONS};

/// One second.
pub struct Line {
    /// The nodes.
    pub nodes: [Node; 2],
    /// The results of the probes.
    pub probes: probes::Tally,
    /// Downloads that run.
    pub running: usize,
    /// Those of them that got nothing for a while.
    pub silent: usize,
    /// Downloads that have ended.
    pub tally: Tally,
}

/// A node.
pub struct Node {
    /// `active`, `backup`, `fault`; `-` if it does not answer.
    pub state: String,
    /// Whether it has the other node's flows, and the other one its.
    pub synced: bool,
}

/// Downloads that have ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Those that came whole.
    pub whole: usize,
    /// Those that broke.
    pub broken: usize,
}

impl Tally {
    /// Adds some.
    pub fn add(&mut self, ended: &[Download]) {
        let whole = ended.iter().filter(|download| download.end.is_ok()).count();
        self.whole += whole;
        self.broken += ended.len() - whole;
    }
}

impl Node {
    /// How it stands.
    pub fn of(ha_pair: &HaPair, n: usize) -> Self {
        let Ok(pair) = ha_pair.pair(n) else {
            return Self { state: "-".to_owned(), synced: false };
        };
        let mut states: Vec<_> = pair.routers.iter().map(|router| router.state.name()).collect();
        states.dedup();
        Self { state: states.join("/"), synced: pair.synced() }
    }
}

/// The columns' names, and the keys.
pub fn header(keys: bool) -> String {
    let downloads = WAYS.len() * EACH * 3;
    let mut text = format!(
        "\nVIPs {} and {}, an advertisement every {ADVERTISEMENTS:?}; a probe every 2 ms, {downloads} \
         downloads\n",
        WAYS[0].vip(),
        WAYS[1].vip()
    );
    if keys {
        let keys = OPERATIONS.iter().map(|(key, _, what)| format!("{key}: {what}"));
        text += &(keys.collect::<Vec<_>>().join("   ") + "   q: end\n");
    } else {
        text += "cargo xtask lab exec lb1 -- lbctl vrrp status\n";
    }
    text += &format!(
        "{:<10}{:<10}{:<9}{:>10}{:>8}{:>14}   downloads:{:>8}{:>8}{:>8}{:>8}\n",
        "lb1",
        "lb2",
        "flows",
        "answers/s",
        "failed",
        "longest gap",
        "running",
        "silent",
        "whole",
        "broken"
    );
    text
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [one, other] = &self.nodes;
        let flows = if one.synced && other.synced { "synced" } else { "-" };
        let Self { probes, running, silent, tally, .. } = self;
        let gap = format!("{:.1} ms", probes.gap.as_secs_f64() * 1e3);
        write!(
            f,
            "{:<10}{:<10}{flows:<9}{:>10}{:>8}{gap:>14}   {:10}{running:>8}{silent:>8}{:>8}{:>8}",
            one.state, other.state, probes.answered, probes.failed, "", tally.whole, tally.broken
        )
    }
}

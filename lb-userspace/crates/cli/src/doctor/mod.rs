//! `lbctl doctor`: the faults of a machine that keep the balancer, or a backend, from working, and the
//! commands that fix them.
//!
//! The probes ([`probes`]) take a snapshot, and each check is a function of that alone. It needs no running
//! `lbd`, and changes nothing.

pub mod backend;
mod bypass;
mod first_buffer;
mod kernel;
mod links;
mod nat;
mod node;
pub mod probes;
mod process;
pub mod snapshot;

use serde::{Deserialize, Serialize};

use self::snapshot::NodeSnapshot;

/// How a check has come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or the check can't determine it.
    Warning,
    /// It does not work, or will not.
    Error,
}

impl Grade {
    /// Its name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check's name.
    pub check: String,
    /// How it has come out.
    pub grade: Grade,
    /// The fact that it found.
    pub found: String,
    /// Why that matters; empty if it is as it should be.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The command that fixes it, for a shell of root; none if no command does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn new(check: &str, grade: Grade, found: impl Into<String>, why: &str) -> Self {
        Self { check: check.into(), grade, found: found.into(), why: why.into(), fix: None }
    }

    /// It is as it should be.
    fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, Grade::Ok, found, "")
    }

    fn warning(check: &str, found: impl Into<String>, why: &str) -> Self {
        Self::new(check, Grade::Warning, found, why)
    }

    fn error(check: &str, found: impl Into<String>, why: &str) -> Self {
        Self::new(check, Grade::Error, found, why)
    }

    fn fixed_by(self, command: impl Into<String>) -> Self {
        Self { fix: Some(command.into()), ..self }
    }
}

/// The results of all checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In the order of the checks.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many findings have this grade.
    #[must_use]
    pub fn count(&self, grade: Grade) -> usize {
        self.findings.iter().filter(|finding| finding.grade == grade).count()
    }
}

/// The checks of a node with the balancer.
#[must_use]
pub(crate) fn examine(snapshot: &NodeSnapshot) -> Report {
    let checks: [fn(&NodeSnapshot) -> Vec<Finding>; _] = [
        kernel::release,
        kernel::features,
        kernel::settings,
        kernel::bpffs,
        node::configuration,
        links::there,
        links::program,
        links::driver,
        links::channels,
        links::offloads,
        first_buffer::of_node,
        node::vips,
        node::arp,
        node::rp_filter,
        node::gateway,
        node::next_hops,
        node::exits,
        nat::forwarding,
        nat::answers,
        nat::local_clients,
        node::tunnel_mtu,
        node::firewall,
        bypass::bypassed,
        process::clock,
        process::daemon,
        process::capabilities,
        process::limits,
        process::socket,
    ];
    Report { findings: checks.iter().flat_map(|check| check(snapshot)).collect() }
}

#[cfg(test)]
mod tests;

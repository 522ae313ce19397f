//! The requests to `lbd`, and its answers.

use std::path::PathBuf;

use lb_model::{diff::Difference, overrides::Conflict, plan::Plan};
use serde::{Deserialize, Serialize};

use crate::event::Event;

/// The result of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// In one line.
    pub message: String,
    /// Notes on it.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The plan of a dry run; then nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
}

/// The terms of a requested change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Only report the changes, and make none.
    #[serde(default)]
    pub dry_run: bool,
    /// Do it even if it takes a service from its clients.
    #[serde(default)]
    pub yes: bool,
}

/// The changes of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeChange {
    /// Whether it is draining.
    pub draining: bool,
}

/// Which virtual routers are to be Active on another node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    /// Their names; none: all that are Active here.
    #[serde(default)]
    pub routers: Vec<String>,
}

/// A line of what follows the events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// An event.
    Event(Event),
    /// The follower was too slow for the events before the next line.
    Missed {
        /// So many events.
        missed: u64,
    },
}

/// The changes of a reload, or of its dry run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// As text; the notes, or the plan of a dry run, have the differences and the conflicts, too.
    #[serde(flatten)]
    pub done: Done,
    /// The changes of the state in force.
    pub differences: Vec<Difference>,
    /// The changes of virtual routers.
    #[serde(default)]
    pub routers: Vec<String>,
    /// The changes of `[http]` and `[log]`, as text.
    #[serde(default)]
    pub tables: Vec<String>,
    /// The changes by `lbctl` that it overruled.
    pub conflicts: Vec<Conflict>,
}

/// How the file, the configuration in force and what is in force differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDiff {
    /// The configuration's file.
    pub file: PathBuf,
    /// The changes by `lbctl` against the configuration in force.
    pub runtime: Vec<Difference>,
    /// The changes that a reload of the file would make.
    pub reload: Pending,
}

impl ConfigDiff {
    /// Whether nothing differs.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        let Pending { error, differences, routers, tables, conflicts, restart } = &self.reload;
        self.runtime.is_empty()
            && error.is_none()
            && differences.is_empty()
            && routers.is_empty()
            && tables.is_empty()
            && conflicts.is_empty()
            && restart.is_empty()
    }
}

/// The changes that a reload of the file would make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Why it can't be loaded: every mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Those of the state in force.
    pub differences: Vec<Difference>,
    /// Those of virtual routers.
    #[serde(default)]
    pub routers: Vec<String>,
    /// The changes of `[http]` and `[log]` that it would make, as text.
    #[serde(default)]
    pub tables: Vec<String>,
    /// The changes by `lbctl` that it would overrule.
    pub conflicts: Vec<Conflict>,
    /// The keys whose change takes a restart of `lbd`.
    pub restart: Vec<String>,
}

/// The configuration in force, as a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The configuration's file.
    pub file: PathBuf,
    /// The text of such a file, without passwords and seeds.
    pub toml: String,
}

/// The changes that were written into the file, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// As text.
    #[serde(flatten)]
    pub done: Done,
    /// The changes of the file.
    pub differences: Vec<Difference>,
    /// The file's lines that differ, as `diff -u` prints them.
    pub diff: String,
    /// The parts that a file can't express, which are kept in the state file.
    pub left: Vec<String>,
}

//! What `lbctl` says to `lbd`: HTTP and JSON over a Unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`crate::status::Status`] |
//! | `GET /v1/events?since=SEQ&limit=N` | | [`crate::events::Page`] |
//! | `GET /v1/events?follow=true&since=SEQ` | | a line of JSON for each event, see [`Line`]; ends with `lbd` |
//! | `GET /v1/samples?service=NAME&last=SECONDS&totals=true` | | [`crate::samples::Page`]: figures per second |
//! | `GET /v1/flows?service=NAME&backend=ADDRESS&client=PREFIX&kind=KIND&limit=N` | | [`crate::flows::Found`] |
//! | `GET /v1/flows?stream=true&…` | | a line of JSON for each flow, see [`crate::flows::Line`] |
//! | `GET /v1/node` | | [`crate::status::Node`] |
//! | `PATCH /v1/node` | [`NodeChange`] | [`Done`] |
//! | `GET /v1/services` | | its services by name |
//! | `GET /v1/services/NAME` | | [`crate::status::Service`] |
//! | `POST /v1/services/NAME` | [`crate::spec::ServiceSpec`] | [`Done`] |
//! | `DELETE /v1/services/NAME` | | [`Done`] |
//! | `GET /v1/services/NAME/backends` | | its backends by address |
//! | `GET /v1/services/NAME/backends/ADDRESS` | | [`crate::status::Backend`], which tells how far a drain is |
//! | `POST /v1/services/NAME/backends/ADDRESS` | [`crate::spec::BackendSpec`] | [`Done`] |
//! | `PATCH /v1/services/NAME/backends/ADDRESS` | [`crate::edit::BackendChange`] | [`Done`] |
//! | `DELETE /v1/services/NAME/backends/ADDRESS?force=true` | | [`Done`] |
//! | `POST /v1/reload` | | [`Reloaded`] |
//! | `GET /v1/config` | | [`Shown`] |
//! | `GET /v1/config/diff` | | [`ConfigDiff`] |
//! | `POST /v1/config/save?dry_run=true` | | [`Saved`] |
//! | `GET /v1/vrrp` | | [`crate::status::Pair`]: the virtual routers, and the peers |
//! | `POST /v1/vrrp/failover` | [`Failover`] | [`Done`]; when the addresses are on the other node |
//! | `GET /v1/peers` | | a list of [`crate::status::Peer`] |
//! | `POST /v1/explain` | [`crate::explain::Questions`] | a list of [`crate::explain::Explained`]; nothing is written |
//! | `POST /v1/capture` | [`crate::capture::Spec`] | pcapng, as long as it runs |
//! | `DELETE /v1/capture` | | [`Done`]; the capture that runs ends |
//! | `GET /v1/log` | | [`crate::logs::Current`] |
//! | `PUT /v1/log` | [`crate::logs::Change`] | [`crate::logs::Current`] |
//! | `POST /v1/detach` | | [`Done`]; `lbd` ends |
//!
//! `/healthz` and `/readyz` answer in plain text: see [`crate::web`], which serves these two and what
//! only tells over TCP as well, all but the configuration, the log and the flows.
//!
//! What changes something takes `dry_run=true`, which changes nothing and answers with a plan, and
//! `yes=true`, without which a service or the last backend of one is not taken away. Whatever fails
//! answers with an [`Error`].

mod ask;
mod capture;
pub mod client;
mod events;
mod flows;
mod log;
mod peer;
pub mod server;
pub mod socket;

use std::path::PathBuf;

pub use lb_model::{plan::Plan, refusal::Error};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{
    capture::{Spec, book::Book},
    datapath::capture::{Capturer, Loader, Tap},
    diff::Difference,
    edit::Edit,
    events::Event,
    explain::{Answers, Questions},
    overrides::Conflict,
    refusal::Refusal,
    status::{Pair, Status},
};

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// In one line.
    pub message: String,
    /// What else there is to know of it.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What would change; then nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
}

/// On what terms a change is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Only tell what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Do it even if it takes a service from its clients.
    #[serde(default)]
    pub yes: bool,
}

/// What changes of the node.
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
    /// What has happened.
    Event(Event),
    /// Who follows was too slow for what has happened before the next line.
    Missed {
        /// So many events.
        missed: u64,
    },
}

/// What a reload did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// In words; the notes, or the plan of a dry run, tell the differences and the conflicts, too.
    #[serde(flatten)]
    pub done: Done,
    /// What it changed of what is in force.
    pub differences: Vec<Difference>,
    /// What it changed of virtual routers.
    #[serde(default)]
    pub routers: Vec<String>,
    /// What it changed of `[http]` and `[log]`, in words.
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
    /// What `lbctl` changed against the configuration in force.
    pub runtime: Vec<Difference>,
    /// What a reload of the file would do.
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

/// What a reload of the file would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Why it can't be loaded: every mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it would change of what is in force.
    pub differences: Vec<Difference>,
    /// What it would change of virtual routers.
    #[serde(default)]
    pub routers: Vec<String>,
    /// What it would change of `[http]` and `[log]`, in words.
    #[serde(default)]
    pub tables: Vec<String>,
    /// The changes by `lbctl` that it would overrule.
    pub conflicts: Vec<Conflict>,
    /// The keys whose change takes a restart of `lbd`.
    pub restart: Vec<String>,
}

/// What is in force, as a configuration's file would say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The configuration's file.
    pub file: PathBuf,
    /// The text of such a file, without passwords and seeds.
    pub toml: String,
}

/// What was written into the file, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// In words.
    #[serde(flatten)]
    pub done: Done,
    /// What the file says that it did not say before.
    pub differences: Vec<Difference>,
    /// The file's lines that differ, as `diff -u` tells them.
    pub diff: String,
    /// What a file can't say, which is kept in the state file.
    pub left: Vec<String>,
}

/// What the server asks of the daemon.
#[derive(Debug)]
pub enum Request {
    /// The state of everything.
    Status(oneshot::Sender<Result<Status, Refusal>>),
    /// A change; answered when the maps are written.
    Edit(Edit, Terms, oneshot::Sender<Result<Done, Refusal>>),
    /// A change of the node.
    Node(NodeChange, Terms, oneshot::Sender<Result<Done, Refusal>>),
    /// The configuration's difference to what is in force.
    Reload(Terms, oneshot::Sender<Result<Reloaded, Refusal>>),
    /// How the file, the configuration in force and what is in force differ.
    ConfigDiff(oneshot::Sender<Result<ConfigDiff, Refusal>>),
    /// What is in force, as a file would say it.
    ConfigShow(oneshot::Sender<Result<Shown, Refusal>>),
    /// What is in force, to be written into the configuration's file.
    ConfigSave {
        /// Whether it is only to be told.
        dry_run: bool,
        /// Who asks.
        tell: oneshot::Sender<Result<Saved, Refusal>>,
    },
    /// The virtual routers and the peers.
    Pair(oneshot::Sender<Result<Pair, Refusal>>),
    /// Virtual routers that are to be Active elsewhere; answered when they are.
    Failover(Failover, Terms, oneshot::Sender<Result<Done, Refusal>>),
    /// What loads the program that captures, and the names of what it finds.
    PrepareCapture(Box<Spec>, oneshot::Sender<Result<(Loader, Book), Refusal>>),
    /// A capture begins.
    BeginCapture(Box<Capturer>, oneshot::Sender<Result<Tap, Refusal>>),
    /// It ends; answered when the normal program is back.
    EndCapture(oneshot::Sender<Result<(), Refusal>>),
    /// What would happen to packets.
    Explain(Box<Questions>, oneshot::Sender<Result<Answers, Refusal>>),
    /// The end of forwarding and of the daemon.
    Detach(Terms, oneshot::Sender<Result<Done, Refusal>>),
}

//! What `lbctl` says to `lbd`: HTTP and JSON over a Unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`crate::status::Status`] |
//! | `GET /v1/services` | | its services by name |
//! | `GET /v1/services/NAME` | | [`crate::status::Service`] |
//! | `POST /v1/services/NAME` | [`crate::spec::ServiceSpec`] | [`Done`] |
//! | `DELETE /v1/services/NAME?force=true` | | [`Done`] |
//! | `GET /v1/services/NAME/backends` | | its backends by address |
//! | `GET /v1/services/NAME/backends/ADDRESS` | | [`crate::status::Backend`], which tells how far a drain is |
//! | `POST /v1/services/NAME/backends/ADDRESS` | [`crate::spec::BackendSpec`] | [`Done`] |
//! | `PATCH /v1/services/NAME/backends/ADDRESS` | [`crate::edit::BackendChange`] | [`Done`] |
//! | `DELETE /v1/services/NAME/backends/ADDRESS?force=true` | | [`Done`] |
//! | `POST /v1/reload` | | [`Reloaded`] |
//! | `POST /v1/detach` | | [`Done`]; `lbd` ends |
//!
//! Whatever fails answers with an [`Error`].

pub mod client;
pub mod server;
pub mod socket;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{
    diff::Difference,
    edit::{Edit, Refusal},
    overrides::Conflict,
    status::Status,
};

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// In one line.
    pub message: String,
    /// What else there is to know of it.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// In words; the notes tell the differences and the conflicts, too.
    #[serde(flatten)]
    pub done: Done,
    /// What it changed of what is in force.
    pub differences: Vec<Difference>,
    /// The changes by `lbctl` that it overruled.
    pub conflicts: Vec<Conflict>,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What is wrong.
    pub error: String,
    /// What would be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What the server asks of the daemon.
#[derive(Debug)]
pub enum Request {
    /// The state of everything.
    Status(oneshot::Sender<Result<Status, Refusal>>),
    /// A change; answered when the maps are written.
    Edit(Edit, oneshot::Sender<Result<Done, Refusal>>),
    /// The configuration's difference to what is in force.
    Reload(oneshot::Sender<Result<Reloaded, Refusal>>),
    /// The end of forwarding and of the daemon.
    Detach(oneshot::Sender<Result<Done, Refusal>>),
}

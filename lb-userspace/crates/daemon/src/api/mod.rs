//! The API between `lbctl` and `lbd`: HTTP and JSON over a Unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`lb_api::status::Status`] |
//! | `GET /v1/events?since=SEQ&limit=N` | | [`lb_api::event::Page`] |
//! | `GET /v1/events?follow=true&since=SEQ` | | a line of JSON for each event, see [`lb_api::requests::Line`]; ends with `lbd` |
//! | `GET /v1/samples?service=NAME&last=SECONDS&totals=true` | | [`lb_observe::samples::Page`]: figures per second |
//! | `GET /v1/flows?service=NAME&backend=ADDRESS&client=PREFIX&kind=KIND&limit=N` | | [`lb_inspect::flows::Found`] |
//! | `GET /v1/flows?stream=true&…` | | a line of JSON for each flow, see [`lb_inspect::flows::Line`] |
//! | `GET /v1/node` | | [`lb_api::status::Node`] |
//! | `PATCH /v1/node` | [`NodeChange`] | [`Done`] |
//! | `GET /v1/services` | | its services by name |
//! | `GET /v1/services/NAME` | | [`lb_api::status::Service`] |
//! | `POST /v1/services/NAME` | [`lb_model::desired::Service`] | [`Done`] |
//! | `DELETE /v1/services/NAME` | | [`Done`] |
//! | `GET /v1/services/NAME/backends` | | its backends by address |
//! | `GET /v1/services/NAME/backends/ADDRESS` | | [`lb_api::status::Backend`], with the progress of a drain |
//! | `POST /v1/services/NAME/backends/ADDRESS` | [`lb_model::desired::Backend`] | [`Done`] |
//! | `PATCH /v1/services/NAME/backends/ADDRESS` | [`lb_model::edit::BackendChange`] | [`Done`] |
//! | `DELETE /v1/services/NAME/backends/ADDRESS?force=true` | | [`Done`] |
//! | `POST /v1/reload` | | [`Reloaded`] |
//! | `GET /v1/config` | | [`Shown`] |
//! | `GET /v1/config/diff` | | [`ConfigDiff`] |
//! | `POST /v1/config/save?dry_run=true` | | [`Saved`] |
//! | `GET /v1/vrrp` | | [`lb_api::status::Pair`]: the virtual routers, and the peers |
//! | `POST /v1/vrrp/failover` | [`Failover`] | [`Done`]; when the addresses are on the other node |
//! | `GET /v1/peers` | | a list of [`lb_api::status::Peer`] |
//! | `POST /v1/explain` | [`lb_inspect::explain::Questions`] | a list of [`lb_inspect::explain::Explained`]; nothing is written |
//! | `POST /v1/capture` | [`lb_inspect::capture::Spec`] | pcapng, as long as it runs |
//! | `DELETE /v1/capture` | | [`Done`]; the capture that runs ends |
//! | `GET /v1/log` | | [`lb_api::log::Current`] |
//! | `PUT /v1/log` | [`lb_api::log::Change`] | [`lb_api::log::Current`] |
//! | `POST /v1/detach` | | [`Done`]; `lbd` ends |
//!
//! `/healthz` and `/readyz` answer in plain text: see [`crate::web`], which serves these two and the
//! reading routes over TCP as well, all but the configuration, the log and the flows.
//!
//! Requests for changes take `dry_run=true`, which changes nothing and answers with a plan, and
//! `yes=true`, without which a service or the last backend of one is not taken away. A request that fails
//! has an [`Error`](lb_model::refusal::Error) as its answer.

mod capture;
mod events;
mod flows;
mod log;
mod peer;
pub(crate) mod ready;
mod request;
pub mod server;
pub mod socket;

use lb_api::{
    requests::{ConfigDiff, Done, Failover, NodeChange, Reloaded, Saved, Shown, Terms},
    status::Pair,
};
use lb_inspect::{
    capture::{Spec, annotator::PacketAnnotator},
    explain::{Answers, Questions},
};
use lb_model::{edit::Edit, refusal::Refusal};
use lb_observe::StatusReply;
use lb_plane::{CaptureLoader, LoadedCapture, Tap};
use tokio::sync::oneshot;

impl From<StatusReply> for Request {
    fn from(reply: StatusReply) -> Self {
        Self::Status(reply)
    }
}

/// Where the answer to a request goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// A request of the server to the daemon.
#[derive(Debug)]
pub enum Request {
    /// The state of everything.
    Status(StatusReply),
    /// A change; answered when the maps are written.
    Edit(Edit, Terms, Reply<Done>),
    /// A change of the node.
    Node(NodeChange, Terms, Reply<Done>),
    /// The configuration's difference to the state in force.
    Reload(Terms, Reply<Reloaded>),
    /// The differences of the file, the loaded configuration and the state in force.
    ConfigDiff(Reply<ConfigDiff>),
    /// The configuration in force, as the text of a file.
    ConfigShow(Reply<Shown>),
    /// The state in force, to be written into the configuration's file.
    ConfigSave {
        /// Whether it is only to be shown.
        dry_run: bool,
        /// The sender of the answer.
        reply: Reply<Saved>,
    },
    /// The virtual routers and the peers.
    Pair(Reply<Pair>),
    /// Virtual routers that are to be Active elsewhere; answered when they are.
    Failover(Failover, Terms, Reply<Done>),
    /// The loader of the capturing program, and the names for its frames.
    PrepareCapture(Box<Spec>, Reply<(Box<dyn CaptureLoader>, PacketAnnotator)>),
    /// A capture begins.
    BeginCapture(LoadedCapture, Reply<Box<dyn Tap>>),
    /// It ends; answered when the normal program is back.
    EndCapture(Reply<()>),
    /// The program's decisions about given packets.
    Explain(Box<Questions>, Reply<Answers>),
    /// The end of forwarding and of the daemon.
    Detach(Terms, Reply<Done>),
}

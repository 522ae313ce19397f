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
//!
//! [`ConfigDiff`]: lb_api::requests::ConfigDiff
//! [`Done`]: lb_api::requests::Done
//! [`Failover`]: lb_api::requests::Failover
//! [`NodeChange`]: lb_api::requests::NodeChange
//! [`Reloaded`]: lb_api::requests::Reloaded
//! [`Saved`]: lb_api::requests::Saved
//! [`Shown`]: lb_api::requests::Shown

mod capture;
mod events;
mod flows;
mod log;
mod peer;
pub(crate) mod ready;
mod request;
pub mod server;
pub mod socket;

pub use self::request::{Reply, Request};

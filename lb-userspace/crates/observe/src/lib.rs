//! What is seen of a node: its events, figures per second, metrics, the dashboard.
//!
//! [`events`] keeps what has happened. [`samples`] asks for the status once a second, for all who look, and keeps what
//! happened in each second. [`metrics`] is what Prometheus reads, [`dashboard`] the page and the stream that keeps it up
//! to date.
//!
//! It reads [`Status`] and changes nothing. It knows of the daemon that it can be asked for that, and nothing of its
//! other requests, of who may look (the listeners guard that) or of the maps.

pub mod dashboard;
pub mod events;
pub mod metrics;
pub mod samples;

use lb_api::status::Status;
use lb_model::refusal::Refusal;
use tokio::sync::oneshot;

/// Where the daemon puts the status that it was asked for.
pub type StatusReply = oneshot::Sender<Result<Status, Refusal>>;

/// What the daemon hears, among which is the question for its status.
pub trait Question: From<StatusReply> + Send + 'static {}

impl<Q: From<StatusReply> + Send + 'static> Question for Q {}

//! The observation of a node: its events, figures per second, metrics, the dashboard.
//!
//! [`events`] keeps the last events. [`samples`] requests the status once a second, for all viewers, and keeps the
//! figures of each second. [`metrics`] exports to Prometheus, [`dashboard`] has the page and the stream that keeps it
//! up to date.
//!
//! It reads [`Status`] and changes nothing. It knows of the daemon only this request, and nothing of its
//! other requests, of access (the listeners check that) or of the maps.

pub mod dashboard;
pub mod events;
pub mod metrics;
pub mod samples;

use lb_api::status::Status;
use lb_model::refusal::Refusal;
use tokio::sync::oneshot;

/// Where the daemon puts the requested status.
pub type StatusReply = oneshot::Sender<Result<Status, Refusal>>;

/// A daemon's input that can be a request for its status.
pub trait StatusRequest: From<StatusReply> + Send + 'static {}

impl<Q: From<StatusReply> + Send + 'static> StatusRequest for Q {}

//! The requests of the server to the daemon, and how a handler awaits their answers.

use axum::body::Bytes;
use lb_api::{
    requests::{ConfigDiff, Done, Failover, NodeChange, Reloaded, Saved, Shown, Terms},
    status::Pair,
};
use lb_inspect::{
    capture::{Spec, annotator::PacketAnnotator},
    explain::{Answers, Questions},
};
use lb_model::{
    edit::Edit,
    refusal::{Refusal, RefusalKind},
};
use lb_observe::StatusReply;
use lb_plane::{CaptureLoader, LoadedCapture, Tap};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

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

impl From<StatusReply> for Request {
    fn from(reply: StatusReply) -> Self {
        Self::Status(reply)
    }
}

/// Hands a request to the daemon, and waits for its answer.
pub(super) async fn request<T>(
    daemon: &mpsc::Sender<Request>,
    make: impl FnOnce(Reply<T>) -> Request,
) -> Result<T, Refusal> {
    let stopping = |_| Refusal::new(RefusalKind::Stopping, "lbd is stopping");
    let (reply, answer) = oneshot::channel();
    daemon.send(make(reply)).await.map_err(|_| stopping(()))?;
    answer.await.map_err(|_| stopping(()))?
}

/// The parsed body of a request.
pub(super) fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::new(RefusalKind::Invalid, error))
}

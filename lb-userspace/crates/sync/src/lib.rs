//! The protocol by which nodes of a group share history, so that a failover breaks no connection.
//!
//! Nodes compute equal rings; what differs is history: the base owners of slots, and pins. The node
//! that is Active for a service's VIP sends these to its peers, over UDP, authenticated and
//! encrypted by a shared key: all of it when one joins, then what changes, within 10 ms. Nodes also
//! send each other the state of their virtual routers.
//!
//! [`record`] is the unit of that, in terms that do not depend on a node's own ids. The daemon gives and
//! takes it by [`Peers`] and [`Report`]. [`session`] decides what is sent when, as a pure function of
//! (event, now); [`wire`] makes messages bytes and [`seal`] encrypts them; [`thread`] has the sockets
//! and is what the daemon starts.
//!
//! It knows services, backends and virtual routers by their names on the wire, and nothing of maps, of VRRP or of the
//! daemon.

pub mod id;
pub mod record;
pub mod seal;
pub mod session;
pub mod thread;
pub mod wire;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use lb_api::peers::PeerStatus;
use lb_model::{
    desired::ServiceKey,
    router::{RouterKey, State},
};
use serde::{Deserialize, Serialize};

pub use self::{record::Record, thread::SyncThread};

/// Bytes of the shared key.
pub(crate) const KEY_BYTES: usize = 32;

/// The key that the nodes of a group share.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; KEY_BYTES]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The settings of a node's sessions with its peers.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What the node calls itself.
    pub node: String,
    /// The address and port that it sends from and listens at.
    pub listen: SocketAddr,
    /// Its peers, at most 15.
    pub peers: Vec<SocketAddr>,
    /// A multicast group that increments go to once for all peers, and the interface; none: to each.
    pub multicast: Option<(SocketAddr, String)>,
    /// The shared key.
    pub key: Key,
    /// Most bytes of UDP payload in a second, to all peers together.
    pub rate: NonZeroU32,
    /// A peer that sends nothing for so long is gone.
    pub timeout: Duration,
}

/// Names a peer: its place in [`Config::peers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(pub u8);

/// A node's state; lbd sends it to a peer within 10 ms of a change, and every 100 ms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// What it makes rings of: see [`Fingerprint`].
    pub fingerprint: Fingerprint,
    /// The state of its virtual routers.
    pub routers: BTreeMap<RouterKey, RouterState>,
    /// Whether it is draining.
    pub draining: bool,
}

/// What should be equal on both nodes, as keyed hashes that reveal nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// The seed.
    pub seed: u64,
    /// Each service.
    pub services: BTreeMap<ServiceKey, ServiceFingerprint>,
}

/// The parts of a [`Fingerprint`] about one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceFingerprint {
    /// Its ring's size, mode, idle timeout and UDP policy, without which flows mean nothing.
    pub settings: u64,
    /// The addresses of its backends. They differ for a while whenever one comes or goes, and flows
    /// on those that both nodes have are sent all the same.
    pub backends: u64,
    /// The backends that get new flows while they are healthy, with their weights.
    pub shares: u64,
}

/// The state of a virtual router on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterState {
    /// Its state.
    pub state: State,
    /// Its priority as it is.
    pub priority: u8,
    /// Whether it would preempt, and waits for the Active router to hand over.
    pub wants: bool,
    /// Whether something that it tracks has lowered its priority.
    pub lowered: bool,
    /// The source of its advertisements.
    pub source: Option<IpAddr>,
    /// A keyed hash of what must be equal for advertisements to be taken: version, authentication,
    /// and for version 2 the interval.
    pub fingerprint: u64,
    /// The interval in centiseconds.
    pub interval_centis: u16,
    /// A keyed hash of its advertised addresses.
    pub addresses: u64,
}

/// How far a peer's history is, in [`Report::Records`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(u64);

/// The reports about peers.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// A peer is there, and fresh: its packets from now on are no repetition. Nothing is known of its
    /// history.
    Joined(PeerId),
    /// A peer is gone, and why.
    Lost(PeerId, String),
    /// A peer's state has changed.
    NodeState(PeerId, NodeState),
    /// A peer has no history of this node's, or has fallen behind: the daemon is to send it all of it by
    /// [`Peers::send_transfer`]. Reported after its first [`Self::NodeState`], and at most once in a second.
    TransferRequested(PeerId),
    /// A peer begins a transfer of all of its history: what this node has imported from it is void.
    TransferBegins(PeerId),
    /// Records of a peer's history, in the order in which they were published, perhaps none. When they
    /// are imported, the mark is for [`Peers::acknowledge`].
    Records(PeerId, Vec<Record>, Mark),
    /// Everything that the peer had published until now was reported in [`Self::Records`]; or something has
    /// been missing for 30 ms, or all is about to be sent anew. False after [`Self::Joined`], unreported.
    Complete(PeerId, bool),
    /// A peer requests this node to become Active for these routers, and has sent everything before.
    TakeOver(PeerId, Vec<RouterKey>),
    /// The answer to [`Peers::request_takeover`]: the peer takes over, or why it does not.
    Answer(PeerId, Result<(), String>),
    /// Packets come from a peer's address that can't be taken, and why: another key, another version,
    /// a clock of another session. At most once in ten seconds and peer.
    Unreadable(PeerId, String),
}

/// What the daemon needs of the peers; tests have their own.
pub trait Peers: Send {
    /// Sets the state of this node that is sent to the peers from now on.
    fn set_state(&self, node_state: NodeState);
    /// What has changed of this node's history, to all peers that have all that was before. The number
    /// does not fall; see [`Self::acknowledged`].
    fn publish(&self, number: u64, records: Vec<Record>);
    /// The highest number up to which every peer that gets updates has acknowledged all that was published. A peer
    /// acknowledges when its daemon has imported the records; one that gets no updates, or has not had a whole
    /// transfer, is not waited for.
    fn acknowledged(&self) -> u64;
    /// The daemon has imported a peer's history up to this mark.
    fn acknowledge(&self, peer: PeerId, mark: Mark);
    /// All of this node's history, to one peer: the answer to [`Report::TransferRequested`]. It includes what
    /// was published before. The pins of a record may arrive in another order; no flow is in it twice.
    fn send_transfer(&self, peer: PeerId, records: Vec<Record>);
    /// Requests a transfer from a peer again, as a node does that has none of its history: records of it were not
    /// imported, since it was not known yet that they count.
    fn request_transfer(&self, peer: PeerId);
    /// Whether this node lacks flows of a peer although all of them have arrived: some could not be taken.
    /// The peer is to know.
    fn lack(&self, peer: PeerId, lacks: bool);
    /// Requests a peer to become Active for these routers, when it has all that was published before.
    fn request_takeover(&self, peer: PeerId, routers: Vec<RouterKey>);
    /// Takes [`Self::request_takeover`] back: this node goes on. A peer that has not received the
    /// request yet never does.
    fn withdraw(&self, peer: PeerId);
    /// Answers [`Report::TakeOver`].
    fn answer(&self, peer: PeerId, answer: Result<(), String>);
    /// The status of each peer.
    fn status(&self) -> Vec<PeerStatus>;
}

//! The flows that tables have, for queries by operators: which client is on which backend,
//! whatever the ring has.
//!
//! A flow that goes by the ring alone is in no table, and so it is not here: [`Flow`]s are pins,
//! flows of `tracked` UDP services, and QUIC connections.

mod search;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
};

use anyhow::Result;
use lb_common::abi::{self, FlowValue};
use lb_model::{
    backend_address::BackendAddress,
    desired::ServiceKey,
    flow::{FlowRef, FlowTable},
    prefix::Prefix,
};
use serde::{Deserialize, Serialize};

pub use self::search::{Names, Search};

/// Flows in one answer, unless another number is requested.
pub const LIMIT: usize = 100;
/// Flows in one answer at most; more of them come as lines.
pub const MOST: usize = 10_000;

/// Where flows are read, beside the engine that writes them.
pub trait Source: Send + Sync {
    /// All services.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    fn services(&self) -> Result<BTreeMap<ServiceKey, abi::Service>>;

    /// All backends, by id.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    fn backends(&self) -> Result<BTreeMap<u16, abi::Backend>>;

    /// Visits the entries of a table until the visitor has seen enough. It may be met twice by an entry
    /// that moves meanwhile.
    ///
    /// # Errors
    ///
    /// The map can't be read.
    fn walk(
        &self,
        table: FlowTable,
        visit: &mut dyn FnMut(FlowRef, FlowValue) -> ControlFlow<()>,
    ) -> Result<()>;
}

/// The kind of entry that holds a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A pin: a change of the ring would otherwise move the flow.
    Pin,
    /// A flow of a `tracked` UDP service.
    Tracked,
    /// A connection of a `quic` service, by the id that its server chose.
    Quic,
}

impl Kind {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pin => "pin",
            Self::Tracked => "tracked",
            Self::Quic => "quic",
        }
    }

    const fn table(self) -> FlowTable {
        match self {
            Self::Pin => FlowTable::Pins,
            Self::Tracked => FlowTable::Tracked,
            Self::Quic => FlowTable::Connections,
        }
    }
}

/// Which flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Of this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// On this backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendAddress>,
    /// Of these clients. A QUIC connection is known by its id alone, and is not found so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Prefix>,
    /// In entries of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// As many at most, those with the latest packet; 0 for their number alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// All of them, or as many as `limit` has, one to a line as they are met: see [`Line`].
    #[serde(default)]
    pub stream: bool,
}

/// A flow at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The kind of entry that holds it.
    pub kind: Kind,
    /// The service; by protocol, VIP and port if it has lost its name, or nothing if it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The client's address; none for QUIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// The client's port; none for QUIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Which VIP and port the client has connected to, where the service has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<SocketAddr>,
    /// For QUIC: the first eight bytes of the connection's id, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// The backend; nothing if it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendAddress>,
    /// The backend's id in the maps.
    pub backend_id: u16,
    /// The slot of the ring that the flow falls into; none for QUIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// Whether a packet came other than the one that opened it.
    pub established: bool,
    /// Whether the client sent FIN or RST.
    pub closing: bool,
    /// Seconds since its last packet.
    pub idle_secs: u32,
}

impl Flow {
    /// How far it is: `opening`, `established` or `closing`.
    #[must_use]
    pub const fn state(&self) -> &'static str {
        match (self.closing, self.established) {
            (true, _) => "closing",
            (false, true) => "established",
            (false, false) => "opening",
        }
    }
}

/// How many flows a backend has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The service, as in [`Flow::service`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendAddress>,
    /// Pins.
    pub pins: u64,
    /// Flows of `tracked` UDP services.
    pub tracked: u64,
    /// QUIC connections.
    pub quic: u64,
    /// Those of all whose client has sent FIN or RST, and nothing for five seconds.
    #[serde(default)]
    pub closing: u64,
}

impl Count {
    /// All of them.
    #[must_use]
    pub const fn all(&self) -> u64 {
        self.pins + self.tracked + self.quic
    }
}

/// The requested flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// How many there are.
    pub matched: u64,
    /// How many each backend has of them.
    pub backends: Vec<Count>,
    /// Those in this answer: the ones with the latest packets.
    pub flows: Vec<Flow>,
}

/// A line of flows as they are met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// One of them.
    Flow(Flow),
    /// The last line.
    End {
        /// How many have been sent.
        #[serde(rename = "told")]
        sent: u64,
    },
    /// The last line, if not all could be sent.
    Broken {
        /// Why.
        error: String,
    },
}

//! What `lbctl -o json vrrp status` tells, as far as tests and the live view read it: who holds the
//! addresses, and whether the nodes know each other's flows.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// The node's virtual routers, and its peers.
#[derive(Clone, Debug, Deserialize)]
pub struct Pair {
    /// The virtual routers.
    pub routers: Vec<Router>,
    /// The other nodes.
    #[serde(default)]
    pub peers: Vec<Peer>,
}

/// A virtual router.
#[derive(Clone, Debug, Deserialize)]
pub struct Router {
    /// Its name.
    pub name: String,
    /// `initialize`, `fault`, `backup`, `active`.
    pub state: String,
    /// Why it is in this state.
    pub cause: String,
    /// The priority as it is.
    pub priority: u8,
    /// The Active router, if it is another one that was heard.
    pub active: Option<Active>,
    /// What is wrong.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Why it keeps from preempting, if it does.
    pub holds_back: Option<String>,
    /// What was counted.
    pub counters: Counters,
}

/// Another router that is Active.
#[derive(Clone, Debug, Deserialize)]
pub struct Active {
    /// Its address.
    pub address: IpAddr,
    /// Its priority.
    pub priority: u8,
}

/// What a router has counted.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Counters {
    /// Advertisements sent.
    pub sent: u64,
    /// Advertisements taken.
    pub received: u64,
    /// Times that it became Active.
    pub became_active: u64,
    /// Transitions of any kind.
    pub transitions: u64,
    /// Advertisements of another router while this one was Active.
    pub two_active: u64,
    /// Advertisements not taken: wrong or missing authentication.
    pub auth_errors: u64,
    /// Advertisements whose interval or addresses are not this node's.
    pub mismatches: u64,
}

/// Another node.
#[derive(Clone, Debug, Deserialize)]
pub struct Peer {
    /// What it calls itself.
    pub node: Option<String>,
    /// Whether it is there.
    pub connected: bool,
    /// Whether this node has all of its history.
    pub complete_here: bool,
    /// Whether it says that it has all of this node's.
    pub complete_there: bool,
    /// Why nothing is told to it or taken from it.
    pub refused: Option<String>,
    /// In what it differs from this node, where it must not.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl Pair {
    /// Reads what `lbctl -o json vrrp status` printed.
    ///
    /// # Errors
    ///
    /// If it is not that.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json).context("output of lbctl -o json vrrp status")
    }

    /// The virtual router with this name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn router(&self, name: &str) -> Result<&Router> {
        let found = self.routers.iter().find(|router| router.name == name);
        found.with_context(|| format!("no virtual router {name}"))
    }

    /// Whether every peer is there and has all flows, and this node has all of each of theirs.
    #[must_use]
    pub fn synced(&self) -> bool {
        let knows = |peer: &Peer| peer.connected && peer.complete_here && peer.complete_there;
        !self.peers.is_empty() && self.peers.iter().all(knows)
    }

    /// Whether every virtual router is Active.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.routers.is_empty() && self.routers.iter().all(Router::is_active)
    }
}

impl Router {
    /// Whether it holds the addresses.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state == "active"
    }
}

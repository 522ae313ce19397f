//! Lookups in the status of `lbd` ([`lb_api::status`]) that fail with the missing name.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use lb_api::{
    routers::RouterStatus,
    status::{Backend, Pair, Peer, Service, Status},
};
use lb_model::{backend_address::BackendAddress, router::State, seen::Condition};

/// Lookups in the status of a node.
pub trait StatusExt {
    /// The service with this name.
    ///
    /// # Errors
    ///
    /// If there is none.
    fn service(&self, name: &str) -> Result<&Service>;

    /// Packets dropped for a reason.
    fn dropped(&self, reason: &str) -> u64;
}

impl StatusExt for Status {
    fn service(&self, name: &str) -> Result<&Service> {
        self.services.get(name).with_context(|| format!("no service {name}"))
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.dropped.get(reason).map_or(0, |count| count.packets)
    }
}

/// Lookups in the status of a service.
pub trait ServiceExt {
    /// The backend at this address.
    ///
    /// # Errors
    ///
    /// If there is none.
    fn backend(&self, address: impl Into<BackendAddress>) -> Result<&Backend>;

    /// `10.0.0.100:80`, `[fd00::100]:80`.
    fn address(&self) -> SocketAddr;
}

impl ServiceExt for Service {
    fn backend(&self, address: impl Into<BackendAddress>) -> Result<&Backend> {
        let address = address.into();
        self.backends.get(&address).with_context(|| format!("no backend {address}"))
    }

    fn address(&self) -> SocketAddr {
        (self.key.vip, self.key.port).into()
    }
}

/// Getters on the status of a backend.
pub trait BackendExt {
    /// Whether its checks succeed.
    fn is_up(&self) -> bool;
}

impl BackendExt for Backend {
    fn is_up(&self) -> bool {
        self.condition == Condition::Up
    }
}

/// Lookups in the status of the virtual routers and peers of a node.
pub trait PairExt {
    /// The virtual router with this name.
    ///
    /// # Errors
    ///
    /// If there is none.
    fn router(&self, name: &str) -> Result<&RouterStatus>;

    /// Whether every peer is connected and has all flows, and this node has all of each of theirs.
    fn synced(&self) -> bool;

    /// Whether every virtual router is Active.
    fn is_active(&self) -> bool;
}

impl PairExt for Pair {
    fn router(&self, name: &str) -> Result<&RouterStatus> {
        let found = self.routers.iter().find(|router| router.name == name);
        found.with_context(|| format!("no virtual router {name}"))
    }

    fn synced(&self) -> bool {
        let all = |Peer { session, .. }: &Peer| {
            session.connected && session.complete_here && session.complete_there
        };
        !self.peers.is_empty() && self.peers.iter().all(all)
    }

    fn is_active(&self) -> bool {
        !self.routers.is_empty() && self.routers.iter().all(|router| router.state == State::Active)
    }
}

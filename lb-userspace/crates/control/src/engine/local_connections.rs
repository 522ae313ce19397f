//! TCP connections of the node's own processes to backends in mode `nat` that drain.
//!
//! Hooks of the control group give such a socket the backend's address, so its packets are the node's own, and no program
//! counts them. What is connected is read from the kernel's table of sockets, each second while a backend drains.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{abi::proto, nat};
use lb_model::time::Now;
use lb_plane::DataPlane;
use tracing::warn;

use super::{maps::AppliedMaps, wanted::Wanted};
use crate::reconcile::flows_are_moved;

/// The counts of the last sweep.
#[derive(Debug, Default)]
pub(super) struct LocalConnections {
    /// By the backend's id.
    counts: BTreeMap<u16, u64>,
    /// Whether the last count has failed, and was logged.
    has_failed: bool,
}

impl LocalConnections {
    /// Counts them. What can't be counted stays as it was.
    pub(super) fn count<D: DataPlane>(&mut self, maps: &AppliedMaps<D>, wanted: &Wanted, now: Now) {
        let draining = draining(maps, wanted, now);
        if draining.is_empty() {
            self.counts.clear();
            return;
        }
        match maps.plane.local_connections(&draining) {
            Ok(counts) => {
                self.counts = counts;
                self.has_failed = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    warn!(
                        "connections of this node's processes can't be counted, and drains go by the last count, which may \
                         lack some: {error:#}"
                    );
                }
            }
        }
    }

    /// Those of a backend.
    pub(super) fn of(&self, backend: u16) -> u64 {
        self.counts.get(&backend).copied().unwrap_or_default()
    }
}

/// The backends whose drain waits for connections: not past its deadline.
fn draining<D: DataPlane>(maps: &AppliedMaps<D>, wanted: &Wanted, now: Now) -> BTreeSet<u16> {
    let ids = maps.ids();
    let mut draining = BTreeSet::new();
    for service in wanted.desired().services.values() {
        let Some(value) = maps.applied.services.get(&service.key) else { continue };
        let of_service = service
            .backends
            .iter()
            .filter(|(_, backend)| backend.admin.drains() && !flows_are_moved(backend, now));
        let of_service = of_service.filter_map(|(address, _)| ids.of(value.id, *address));
        draining.extend(of_service.filter(|id| {
            let backend = maps.applied.backends.get(id);
            backend.is_some_and(|backend| nat::is_nat(backend) && backend.proto == proto::TCP)
        }));
    }
    draining
}

//! The TCP connections to backends in mode `nat`, as the program notes them by the packets of both directions: how many
//! each backend has, and whether it has none any more.
//!
//! That a backend has no connection is certain once this node has seen all packets of the service for the idle timeout,
//! as the program notes a connection by its next answer whatever came before. It is not certain where the table was full
//! within that time, nor after a start of lbd, which does not know since when the table has been filled. Where it is
//! certain, a drain ends: what a base owner or a pin would be kept for is closed.
//!
//! An end is a FIN in both directions, an RST of the backend, or one of the client with the number that the backend
//! expects next. Someone who does not see the connection can forge none of these but the client's FIN, and that ends
//! nothing before the backend's own.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use lb_common::abi::{self, backend_flags, nat_connection::Stage};
use lb_model::time::Now;
use lb_plane::DataPlane;
use tracing::warn;

use super::{
    history::{History, Role},
    maps::AppliedMaps,
    wanted::Wanted,
};

/// Seconds between counts while no backend in mode `nat` drains.
const COUNT_SECS: u32 = 10;
/// Seconds for which a closed connection is kept, as packets of it may follow: Linux's TIME-WAIT.
const CLOSED_SECS: u32 = 60;
/// Seconds after which the last packets of a connection that is closed have come, and the answer to a SYN.
const LAST_PACKETS_SECS: u32 = 2;
/// Entries of the kernel's LRU map that each CPU may keep unused (`LOCAL_FREE_TARGET` of kernel/bpf/bpf_lru_list.c).
const UNUSED_PER_CPU: u32 = 128;

/// The connections as of the last count.
#[derive(Debug, Default)]
pub(super) struct NatConnections {
    /// Since when the table has had all connections that had an answer; none while nothing is counted.
    since: Option<u32>,
    /// Second of the last count.
    counted: u32,
    /// By the backend's id.
    per_backend: BTreeMap<u16, Tally>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    open: u64,
    /// Those that are being opened, or were closed a moment ago.
    passing: u64,
}

/// The backends that have no connection any more.
#[derive(Debug, Default)]
pub(super) struct Ended {
    backends: BTreeSet<u16>,
    /// Seconds without a packet after which that holds for a flow: what came later is not counted.
    quiet: u32,
}

impl Ended {
    /// Whether a flow to a backend that had its last packet so many seconds ago has ended.
    pub(super) fn has(&self, backend: u16, idle: u32) -> bool {
        idle > self.quiet && self.backends.contains(&backend)
    }
}

impl NatConnections {
    /// Connections that a backend has open; none if they are not counted.
    pub(super) fn open(&self, backend: &abi::Backend, id: u16) -> Option<u64> {
        let counts = self.since.is_some() && is_counted(backend);
        counts.then(|| self.per_backend.get(&id).map_or(0, |tally| tally.open))
    }

    /// Counts the connections if it is time to, and forgets those that are over.
    ///
    /// # Errors
    ///
    /// If the table can't be read or written.
    pub(super) fn count<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        wanted: &Wanted,
        now: Now,
    ) -> Result<()> {
        let now = now.mono_secs();
        let idle: BTreeMap<u16, u32> = maps
            .applied
            .services
            .values()
            .map(|service| (service.id, service.idle_timeout))
            .collect();
        let backends = maps.applied.backends.iter().filter(|(_, backend)| is_counted(backend));
        let backends: BTreeMap<u16, u32> = backends
            .filter_map(|(&id, backend)| Some((id, *idle.get(&backend.service)?)))
            .collect();
        if backends.is_empty() {
            *self = Self::default();
            return Ok(());
        }
        let drains = wanted
            .desired()
            .services
            .values()
            .flat_map(|service| service.backends.values())
            .any(|backend| backend.admin.drains());
        if self.since.is_some() && !drains && now.saturating_sub(self.counted) < COUNT_SECS {
            return Ok(());
        }
        let mut per_backend = BTreeMap::<u16, Tally>::new();
        let (mut entries, mut over) = (0_u32, Vec::new());
        maps.plane
            .nat_connections(&mut |key, value| {
                entries += 1;
                let Some(idle) = backends.get(&key.backend) else {
                    over.push((key, value));
                    return;
                };
                let age = now.saturating_sub(value.seen);
                let tally = per_backend.entry(key.backend).or_default();
                match value.stage(now) {
                    Stage::Open if age <= *idle => tally.open += 1,
                    Stage::Opening => tally.passing += 1,
                    Stage::Closed if age <= CLOSED_SECS => {
                        tally.passing += u64::from(age <= LAST_PACKETS_SECS);
                    }
                    Stage::Open | Stage::Closed | Stage::Abandoned => over.push((key, value)),
                }
            })
            .context("walk the connections in mode nat")?;
        let capacity = maps.plane.limits().nat_connections;
        let unused = UNUSED_PER_CPU.saturating_mul(maps.plane.online_cpus());
        if entries >= capacity.saturating_sub(unused).max(capacity / 2) {
            if self.since.is_none_or(|since| since < self.counted) {
                warn!(
                    entries,
                    nat_connections = capacity,
                    "the table of connections in mode nat is full, so not all are counted; raise \
                     nat_connections under [limits]"
                );
            }
            self.since = Some(now);
        }
        self.since.get_or_insert(now);
        self.counted = now;
        self.per_backend = per_backend;
        for (key, value) in over {
            maps.plane.forget_nat_connection(&key, value).context("forget a connection")?;
        }
        Ok(())
    }

    /// The backends that have no connection any more, where that is certain.
    pub(super) fn ended<D: DataPlane>(
        &self,
        maps: &AppliedMaps<D>,
        history: &History,
        now: Now,
    ) -> Ended {
        let secs = now.mono_secs();
        let Some(since) = self.since else { return Ended::default() };
        let certain = maps.applied.services.iter().filter(|(key, service)| {
            let since = since.max(history.floor(key, service.idle_timeout, now));
            let seen_for = secs.saturating_sub(since);
            history.role(key) == Role::Own && seen_for > service.idle_timeout
        });
        let certain: BTreeSet<u16> = certain.map(|(_, service)| service.id).collect();
        let has_none = |id: &u16| {
            let tally = self.per_backend.get(id).copied().unwrap_or_default();
            tally.open + tally.passing == 0
        };
        let backends = maps.applied.backends.iter().filter(|(id, backend)| {
            is_counted(backend) && certain.contains(&backend.service) && has_none(id)
        });
        Ended {
            backends: backends.map(|(id, _)| *id).collect(),
            quiet: secs.saturating_sub(self.counted).saturating_add(LAST_PACKETS_SECS),
        }
    }
}

/// Whether the program notes the connections of a backend.
const fn is_counted(backend: &abi::Backend) -> bool {
    backend.flags & backend_flags::NAT != 0 && backend.proto == abi::proto::TCP
}

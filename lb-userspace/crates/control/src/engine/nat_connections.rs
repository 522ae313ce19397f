//! The TCP connections to backends in mode `nat`, as the program notes them by the packets of both directions: how many
//! each backend has, and whether it has none any more.
//!
//! That a backend has none is known once this node has seen all packets of the service for the idle timeout, as the program
//! notes a connection by its next answer whatever came before. It is not known where the table was full within that time,
//! nor after a start of lbd, which does not know since when the table has been filled. Nor where answers take another way:
//! any node translates them, so the gateway of the backends may be another node than the one that has the VIP, for some
//! clients or all. Then SYNs go to the backend by this node, and no answers come back: one such SYN within the idle timeout
//! is enough ([`Balance`]). But a connection that was opened before that, and whose answers take another way, is not seen.
//! So the counts end a drain by estimate, and move no flow.
//!
//! An end is a FIN in both directions, an RST of the backend, or one of the client with the number that the backend
//! expects next. Someone who does not see the connection can forge none of these but the client's FIN, and that ends
//! nothing before the backend's own.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use lb_common::abi::{self, backend_flags, nat_connection::Stage};
use lb_model::time::Now;
use lb_plane::{BackendTotals, DataPlane};
use tracing::warn;

use super::{maps::AppliedMaps, wanted::Wanted};

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
    /// Likewise.
    balances: BTreeMap<u16, Balance>,
}

/// Whether the answers to a backend's SYNs come back through this node.
#[derive(Clone, Copy, Debug, Default)]
struct Balance {
    /// SYNs that went to it, without those sent again, and what it accepted and refused, at the last count; none before
    /// the first.
    last: Option<(u64, u64)>,
    /// SYNs without an answer so far.
    missing: u64,
    /// When there were any other than those of the last moment.
    unanswered: Option<u32>,
}

impl Balance {
    /// The part of a count's SYNs that may still be answered.
    const ON_THEIR_WAY: u64 = 100;

    fn update(&mut self, totals: &BackendTotals, now: u32) {
        let asked = totals.new_flows.saturating_sub(totals.syn_retransmissions);
        let answered = totals.accepted + totals.refused;
        let (asked_before, answered_before) = self.last.unwrap_or((asked, answered));
        self.last = Some((asked, answered));
        let syns = asked.saturating_sub(asked_before);
        self.missing =
            (self.missing + syns).saturating_sub(answered.saturating_sub(answered_before));
        if self.missing > syns / Self::ON_THEIR_WAY {
            self.missing = 0;
            self.unanswered = Some(now);
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    open: u64,
    /// Those that are being opened, or were closed a moment ago.
    passing: u64,
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
        let ids: Vec<u16> = backends.into_keys().collect();
        let totals = maps.plane.totals_of(&ids).context("read the backends' counters")?;
        self.balances.retain(|id, _| ids.binary_search(id).is_ok());
        for (id, totals) in ids.iter().zip(&totals) {
            self.balances.entry(*id).or_default().update(totals, now);
        }
        self.since.get_or_insert(now);
        self.counted = now;
        self.per_backend = per_backend;
        for (key, value) in over {
            maps.plane.forget_nat_connection(&key, value).context("forget a connection")?;
        }
        Ok(())
    }

    /// Whether a backend, whose last packet came at that second, has no connection any more. `since` is the second before which
    /// this node has not seen its packets.
    pub(super) fn has_none(
        &self,
        id: u16,
        (since, idle_timeout): (u32, u32),
        last_packet: Option<u32>,
        now: Now,
    ) -> bool {
        let secs = now.mono_secs();
        let is_past = |then: u32| secs.saturating_sub(then) > idle_timeout;
        // What came after the count, or a moment before it, is not counted.
        let is_counted =
            last_packet.is_none_or(|then| then.saturating_add(LAST_PACKETS_SECS) < self.counted);
        let tally = self.per_backend.get(&id).copied().unwrap_or_default();
        let answers_come_back =
            self.balances.get(&id).is_some_and(|balance| balance.unanswered.is_none_or(is_past));
        self.since.is_some_and(|first| is_past(first.max(since)))
            && is_counted
            && answers_come_back
            && tally.open + tally.passing == 0
    }
}

/// Whether the program notes the connections of a backend: answers of one on this node come by no interface.
const fn is_counted(backend: &abi::Backend) -> bool {
    let is_translated = backend.flags & backend_flags::NAT != 0 && !backend.is_local();
    is_translated && backend.proto == abi::proto::TCP
}

//! The nodes that serve a VIP together with this one, as behind ECMP: which of them are missed, and which
//! backends get new flows there.

use std::collections::BTreeMap;

use lb_control::engine::Sharers;
use lb_sync::{PeerId, Record};

use super::PeerGroup;

/// Which peers are missed.
#[derive(Debug, Default)]
pub(super) struct Attendance {
    /// Since when, in seconds of CLOCK_MONOTONIC.
    away: BTreeMap<PeerId, u32>,
    /// When the last one was connected again.
    joined: u32,
}

impl PeerGroup {
    /// Takes the backends that get new flows of services on a peer.
    pub(super) fn take_members(&mut self, id: PeerId, records: &[Record]) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        for record in records {
            if let Record::Ring { service, members, .. } = record {
                peer.members.insert(*service, members.clone());
            }
        }
    }

    /// The state of the peers at this second.
    pub(in crate::daemon) fn sharers(&mut self, now: u32) -> Sharers {
        for id in (0..self.count()).map(PeerId) {
            let peer = self.peers.get(&id);
            // Records of a peer that is configured otherwise can't be taken: it is not waited for.
            let is_there =
                peer.is_some_and(|peer| peer.has_sent_all() || peer.mismatch.whole.is_some());
            let Attendance { away, joined } = &mut self.attendance;
            if !is_there {
                away.entry(id).or_insert(now);
            } else if away.remove(&id).is_some() {
                *joined = now;
            }
        }
        let mut members = BTreeMap::<_, Vec<_>>::new();
        let compatible = self.peers.values().filter(|peer| peer.mismatch.whole.is_none());
        for (service, theirs) in compatible.flat_map(|peer| &peer.members) {
            members.entry(*service).or_default().push(theirs.clone());
        }
        let Attendance { away, joined } = &self.attendance;
        let timeout = self.config.timeout.as_millis().div_ceil(1_000);
        Sharers {
            away: away.values().copied().collect(),
            joined: *joined,
            timeout: u32::try_from(timeout).unwrap_or(u32::MAX),
            members,
        }
    }
}

//! The state of the peers: their roles, which of their flows are known here, and which peer can take over.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_model::{
    desired::ServiceKey,
    router::{RouterKey, State},
};
use lb_sync::{PeerId, RouterState};

use super::{Peer, PeerGroup};
use crate::daemon::roles::{ActiveClaim, Known, PeerRole, SyncStatus, is_unsynced};

impl PeerGroup {
    /// The peers whose flows may count here.
    pub(in crate::daemon) fn candidates(&self) -> Vec<PeerRole> {
        let compatible = self.peers.iter().filter(|(_, peer)| peer.mismatch.whole.is_none());
        let candidate = |(id, peer): (&PeerId, &Peer)| PeerRole {
            peer: *id,
            active: peer
                .node_state
                .iter()
                .flat_map(|node_state| &node_state.routers)
                .filter(|(_, router)| router.state == State::Active)
                .map(|(key, router)| {
                    let (source, priority) = (router.source, router.priority);
                    let turn = peer.turns.get(key).copied().unwrap_or(0);
                    (*key, ActiveClaim { source, turn, priority })
                })
                .collect(),
            refused: peer.mismatch.services.keys().copied().collect(),
        };
        compatible.map(candidate).collect()
    }

    /// Whether this node lacks flows of a router that a connected peer has.
    pub(in crate::daemon) fn lacks_flows_of(
        &self,
        router: RouterKey,
        services: &BTreeSet<ServiceKey>,
    ) -> bool {
        self.known_of(router, services).any(|known| match known.sync {
            SyncStatus::Nothing => true,
            SyncStatus::Active { all } => !all,
            SyncStatus::NotActive => false,
        })
    }

    /// Whether a router that takes over from the node that advertises it may break flows.
    pub(in crate::daemon) fn is_unsynced(
        &self,
        router: RouterKey,
        services: &BTreeSet<ServiceKey>,
        advertiser: Option<IpAddr>,
    ) -> bool {
        let known: Vec<_> = self.known_of(router, services).collect();
        is_unsynced(advertiser, &known, self.misses_some())
    }

    /// Routers that peers are Active for whose flows count here.
    pub(in crate::daemon) fn active_for(&self) -> BTreeSet<RouterKey> {
        let compatible = self.peers.values().filter(|peer| peer.mismatch.whole.is_none());
        compatible.flat_map(|peer| peer.turns.keys()).copied().collect()
    }

    /// Routers that peers are Active for which drain.
    pub(in crate::daemon) fn draining_for(&self) -> BTreeSet<RouterKey> {
        let drains =
            |peer: &&Peer| peer.node_state.as_ref().is_some_and(|node_state| node_state.draining);
        self.peers.values().filter(drains).flat_map(|peer| peer.turns.keys()).copied().collect()
    }

    /// Routers that peers are Active for, and something that they track has lowered their priority.
    pub(in crate::daemon) fn lowered_for(&self) -> BTreeSet<RouterKey> {
        let routers = self.peers.values().filter_map(|peer| peer.node_state.as_ref());
        let routers = routers.flat_map(|node_state| &node_state.routers);
        let lowered = |router: &RouterState| router.state == State::Active && router.lowered;
        routers.filter(|(_, router)| lowered(router)).map(|(key, _)| *key).collect()
    }

    /// Routers that a peer would preempt, and waits with for this node to hand them over.
    pub(in crate::daemon) fn wanted(&self) -> BTreeMap<RouterKey, (PeerId, u8)> {
        let mut wanted = BTreeMap::new();
        for (id, peer) in &self.peers {
            let routers = peer.node_state.iter().flat_map(|node_state| &node_state.routers);
            for (key, router) in routers.filter(|(_, router)| router.wants) {
                let best = wanted.entry(*key).or_insert((*id, router.priority));
                if router.priority > best.1 {
                    *best = (*id, router.priority);
                }
            }
        }
        wanted
    }

    /// The state of a router's flows here, by peer. A peer whose records can't be taken counts as complete:
    /// nothing of it is waited for.
    fn known_of(
        &self,
        router: RouterKey,
        services: &BTreeSet<ServiceKey>,
    ) -> impl Iterator<Item = Known> {
        self.peers.values().map(move |peer| {
            let known =
                peer.node_state.as_ref().and_then(|node_state| node_state.routers.get(&router));
            let mut compatible =
                services.iter().filter(|key| !peer.mismatch.services.contains_key(key));
            let incompatible = peer.mismatch.whole.is_some();
            let all = incompatible
                || (peer.complete && compatible.all(|key| peer.followed.contains(key)));
            let sync = match (&peer.node_state, known.map(|router| router.state)) {
                (None, _) => SyncStatus::Nothing,
                (_, Some(State::Active)) => SyncStatus::Active { all },
                _ => SyncStatus::NotActive,
            };
            Known { source: known.and_then(|router| router.source), sync }
        })
    }

    /// The problems of a router that its configuration on peers causes.
    pub(in crate::daemon) fn problems_of(&self, router: RouterKey) -> Vec<(PeerId, String)> {
        let mut found = Vec::new();
        for (id, Peer { mismatch, .. }) in &self.peers {
            let unreachable = mismatch.unreachable.get(&router).map(|(_, text)| text);
            let texts = unreachable.into_iter().chain(mismatch.addresses.get(&router));
            found.extend(texts.map(|text| (*id, text.clone())));
        }
        found
    }

    /// The peer that can take these routers over: it is Backup for all of them and does not drain. It has all
    /// flows but those that it [refuses](Self::refused_by), or receives them now and takes over afterwards.
    pub(in crate::daemon) fn successor(
        &self,
        routers: &BTreeSet<RouterKey>,
        services: &BTreeSet<ServiceKey>,
    ) -> Option<PeerId> {
        let status = self.sessions.status();
        let fits = |(id, peer): &(&PeerId, &Peer)| {
            let known = status.get(usize::from(id.0));
            peer.mismatch.whole.is_none()
                && peer.node_state.as_ref().is_some_and(|node_state| !node_state.draining)
                && routers.iter().all(|key| peer.state(*key) == Some(State::Backup))
                && known.is_some_and(|status| status.connected)
        };
        let priority = |peer: &Peer| {
            let known = peer.node_state.iter().flat_map(|node_state| &node_state.routers);
            known.filter(|(key, _)| routers.contains(key)).map(|(_, router)| router.priority).max()
        };
        // The peer that can take most of the flows.
        let lost = |id: PeerId| std::cmp::Reverse(self.refused_by(id, services).len());
        let fit = self.peers.iter().filter(fits);
        let rank = |(id, peer): &(&PeerId, &Peer)| (self.follows(**id), lost(**id), priority(peer));
        fit.max_by_key(rank).map(|(id, _)| *id)
    }

    /// Whether a peer has all flows of this node, but for the last records.
    pub(in crate::daemon) fn follows(&self, peer: PeerId) -> bool {
        let status = self.sessions.status().into_iter().nth(usize::from(peer.0));
        status.is_some_and(|status| status.follows)
    }

    /// The services of these whose flows a peer can't take, since it has them otherwise.
    pub(in crate::daemon) fn refused_by(
        &self,
        peer: PeerId,
        services: &BTreeSet<ServiceKey>,
    ) -> BTreeSet<ServiceKey> {
        let mismatch = self.peers.get(&peer).map(|peer| &peer.mismatch.services);
        let refused = mismatch.into_iter().flat_map(BTreeMap::keys);
        refused.filter(|key| services.contains(key)).copied().collect()
    }

    /// Peers whose advertisements count though they are configured otherwise.
    pub(in crate::daemon) fn mismatched(&self) -> BTreeSet<(RouterKey, IpAddr)> {
        let peers = self.peers.values();
        let unreachable = peers.flat_map(|peer| &peer.mismatch.unreachable);
        unreachable.filter_map(|(key, (source, _))| Some((*key, (*source)?))).collect()
    }

    /// Peers that report that they are Active, by router and source of their advertisements.
    pub(in crate::daemon) fn active_peers(&self) -> BTreeSet<(RouterKey, IpAddr)> {
        let peers = self.peers.values();
        let routers = peers
            .filter_map(|peer| peer.node_state.as_ref())
            .flat_map(|node_state| &node_state.routers);
        let active = routers.filter(|(_, router)| router.state == State::Active);
        active.filter_map(|(key, router)| Some((*key, router.source?))).collect()
    }
}

//! The history of flows, on its way to the peers and from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Balancer, Daemon, likeness::Unlike, roles::Whose};
use crate::{
    desired::ServiceKey,
    events::{Kind, News},
    sync::{PeerId, Piece},
};

/// How long a new pin may be made without the daemon; it says so again every ten milliseconds.
const LEASE: Duration = Duration::from_millis(100);
/// Different things that could not be learnt of a peer, which are told.
const TOLD: usize = 100;

impl<B: Balancer> Daemon<B> {
    /// Tells a peer all of this node's history.
    pub(super) fn send_all(&mut self, id: PeerId) {
        // What the others have not been told yet is not to be told to this one twice.
        self.tell_news();
        let now = self.now();
        match self.balancer.history(now) {
            Ok(pieces) => {
                if let Some(group) = &self.group {
                    group.rim.send_all(id, pieces);
                }
            }
            Err(error) => self.history_fails(&error),
        }
    }

    /// Learns what a peer tells, as far as it counts.
    pub(super) fn learn(&mut self, id: PeerId, pieces: Vec<Piece>) {
        let Some(peer) = self.group.as_mut().and_then(|group| group.peers.get_mut(&id)) else {
            return;
        };
        let counted = counted(&self.whose, id, &peer.unlike);
        let (taken, left): (Vec<_>, Vec<_>) =
            pieces.into_iter().partition(|piece| counted.contains(&piece.service()));
        for piece in left {
            peer.followed.remove(&piece.service());
        }
        if taken.is_empty() {
            return;
        }
        let now = self.now();
        match self.balancer.learn(taken, now) {
            Ok(unlearnt) => self.tell_unlearnt(id, unlearnt),
            Err(error) => self.history_fails(&error),
        }
    }

    fn tell_unlearnt(&mut self, id: PeerId, unlearnt: Vec<String>) {
        let Some(group) = &mut self.group else { return };
        let name = if unlearnt.is_empty() { String::new() } else { group.name(id) };
        let Some(peer) = group.peers.get_mut(&id) else { return };
        let mut news = Vec::new();
        for text in unlearnt {
            if peer.unlearnt.len() < TOLD && peer.unlearnt.insert(text.clone()) {
                let message = format!("{name}: {text}");
                news.push(News::new(Kind::PeerRefused, message, "its flows can't be taken over"));
            }
        }
        news.into_iter().for_each(|news| self.tell(news));
    }

    fn history_fails(&mut self, error: &anyhow::Error) {
        // The sweep meets with the same, and tells of it.
        tracing::debug!("the history of flows: {error:#}");
    }

    /// Tells the peers what has changed, and lets the program make pins for a while.
    pub(super) fn tell_news(&mut self) {
        let now = self.now();
        match self.balancer.news(now) {
            Ok(pieces) if pieces.is_empty() => {}
            Ok(pieces) => {
                if let Some(group) = &self.group {
                    group.rim.publish(pieces);
                }
            }
            Err(error) => return self.history_fails(&error),
        }
        self.balancer.lease_pins(Some(now.mono + LEASE));
    }
}

/// The services whose pieces count when this peer tells them.
pub(super) fn counted(
    whose: &BTreeMap<ServiceKey, Whose>,
    peer: PeerId,
    unlike: &Unlike,
) -> BTreeSet<ServiceKey> {
    if unlike.altogether.is_some() {
        return BTreeSet::new();
    }
    let theirs = whose.iter().filter(|(key, whose)| {
        (**whose == Whose::Peers(peer) || **whose == Whose::Shared)
            && !unlike.services.contains_key(key)
    });
    theirs.map(|(key, _)| *key).collect()
}

//! The history of flows, on its way to the peers and from them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use lb_api::event::{Kind, News};
use lb_control::engine::LATE;
use lb_datapath::DataPlane;
use lb_model::desired::ServiceKey;
use lb_sync::{Mark, PeerId, Piece};

use super::{BEAT, Daemon, likeness::Unlike, peers::Group, roles::Whose};

/// How long new pins may be made of which no peer knows: without the daemon, which allows it again with
/// each beat, or with news that a peer has not taken yet. No longer than it takes to see that a peer is
/// late, and to tell what follows from that: nobody else knows of a pin that is made when the daemon is
/// dead.
const LEASE: Duration = LATE.saturating_add(BEAT);
/// When a peer is asked again for what could not be taken.
const FIRST_AGAIN: Duration = Duration::from_secs(1);
const LONGEST_AGAIN: Duration = Duration::from_secs(60);
/// Different things that could not be learnt of a peer, which are told.
const TOLD: usize = 100;

impl<D: DataPlane> Daemon<D> {
    /// Tells a peer all of this node's history.
    pub(super) fn send_all(&mut self, id: PeerId) {
        // What the others have not been told yet is not to be told to this one twice.
        self.tell_news();
        let now = self.now();
        match self.engine.history(now) {
            Ok(mut pieces) => {
                if let Some(group) = &self.group {
                    pieces.extend(group.legacy_of(&self.whose));
                    group.rim.send_all(id, pieces);
                }
            }
            Err(error) => {
                // The session asks once.
                if let Some(group) = &mut self.group {
                    group.owed.insert(id);
                }
                self.history_fails(&error);
            }
        }
    }

    /// Tells what was not told yet of services that are about to be another node's: afterwards nothing
    /// of them is told from here.
    ///
    /// While two nodes are Active for them, neither knows what the other one has pinned, and the one
    /// that stays learns it here. A peer that is not there gets it when it comes, if that is soon.
    pub(super) fn tell_last(&mut self, services: &BTreeSet<ServiceKey>) {
        self.tell_news_if_connected();
        let Some(group) = &self.group else { return };
        let is_apart = group.misses_some();
        let both: BTreeSet<_> = group.both_active.keys().map(|(router, _)| *router).collect();
        let both = self.services_of(both);
        if !is_apart && both.is_disjoint(services) {
            return;
        }
        let now = self.now();
        let mut pieces = match self.engine.history(now) {
            Ok(pieces) => pieces,
            Err(error) => return self.history_fails(&error),
        };
        pieces.retain(|piece| {
            matches!(piece, Piece::Pins { .. }) && services.contains(&piece.service())
        });
        let Some(group) = &mut self.group else { return };
        if is_apart {
            group.legacy = Some((Instant::now(), pieces.clone()));
        }
        pieces.retain(|piece| both.contains(&piece.service()));
        if !pieces.is_empty() {
            group.publish(pieces);
        }
    }

    /// Learns what a peer tells, as far as it counts.
    pub(super) fn learn(&mut self, id: PeerId, pieces: Vec<Piece>, mark: Mark) {
        self.learn_pieces(id, pieces);
        if let Some(group) = &self.group {
            group.rim.took(id, mark);
        }
    }

    fn learn_pieces(&mut self, id: PeerId, pieces: Vec<Piece>) {
        if let Some(group) = &mut self.group {
            group.take_members(id, &pieces);
        }
        let Some(peer) = self.group.as_mut().and_then(|group| group.peers.get_mut(&id)) else {
            return;
        };
        let counted = counted(&self.whose, id, &peer.unlike);
        let alike = |key: &ServiceKey| {
            peer.unlike.altogether.is_none() && !peer.unlike.services.contains_key(key)
        };
        // Who tells pins of a service is Active for it, or was until now: beside this node, or before
        // it. It is where their flows were; what is not pinned here is taken.
        let late = |piece: &Piece| {
            matches!(piece, Piece::Pins { .. })
                && self.whose.get(&piece.service()) == Some(&Whose::Own)
                && alike(&piece.service())
        };
        let (taken, left): (Vec<_>, Vec<_>) =
            pieces.into_iter().partition(|piece| counted.contains(&piece.service()) || late(piece));
        for piece in left {
            peer.followed.remove(&piece.service());
        }
        if taken.is_empty() {
            return;
        }
        let now = self.now();
        match self.engine.learn(taken, now) {
            Ok(unlearnt) => self.tell_unlearnt(id, unlearnt),
            Err(error) => self.history_fails(&error),
        }
        self.miss(id);
    }

    /// What could not be taken is missing here until all is told again: soon, and then less and less
    /// often, since what has no room is not likely to have it a moment later.
    fn miss(&mut self, id: PeerId) {
        let mut missed = self.engine.take_unlearnt();
        let Some(peer) = self.peer(id) else { return };
        missed.retain(|key| peer.followed.remove(key));
        if missed.is_empty() {
            return;
        }
        let now = Instant::now();
        let wait = match peer.again {
            None => Some(FIRST_AGAIN),
            Some((at, wait)) => (at <= now).then(|| (wait * 2).min(LONGEST_AGAIN)),
        };
        if let Some(wait) = wait {
            peer.again = Some((now + wait, wait));
        }
        self.tell_of_missing(id, &missed, "they could not be written; it is asked for them again");
    }

    /// Flows on a backend that peers knew before this node did are missing here: an operator adds it to
    /// one node after the other. All is asked for again, at once.
    pub(super) fn meet_backends(&mut self) {
        let known = self.engine.take_newly_known();
        if known.is_empty() {
            return;
        }
        let peers = self.group.iter_mut().flat_map(|group| &mut group.peers);
        let missed = peers.map(|(id, peer)| {
            let missed = known.iter().filter(|key| peer.followed.remove(key));
            (*id, missed.copied().collect::<BTreeSet<_>>())
        });
        for (id, missed) in missed.collect::<Vec<_>>() {
            if !missed.is_empty() {
                let cause = "their backend was not known here; it is asked for them again";
                self.tell_of_missing(id, &missed, cause);
            }
        }
    }

    fn tell_of_missing(&self, id: PeerId, missed: &BTreeSet<ServiceKey>, cause: &str) {
        let services = self.store.desired().services.iter();
        let names = services.filter(|(_, service)| missed.contains(&service.key));
        let names: Vec<_> = names.map(|(name, _)| name.as_str()).collect();
        let name = self.group.as_ref().map(|group| group.name(id)).unwrap_or_default();
        let message =
            format!("flows of {} that {name} tells of are missing here", names.join(", "));
        self.tell(News::new(Kind::PeerUnsynced, message, cause));
    }

    /// Tells those peers everything to whom it could not be told.
    pub(super) fn send_owed(&mut self) {
        let owed = self.group.as_mut().map(|group| std::mem::take(&mut group.owed));
        owed.into_iter().flatten().for_each(|id| self.send_all(id));
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

    pub(super) fn history_fails(&self, error: &anyhow::Error) {
        // The sweep meets with the same, and tells of it.
        tracing::debug!("the history of flows: {error:#}");
    }

    /// Tells the peers what has changed, and lets the program make pins for a while.
    pub(super) fn tell_news(&mut self) {
        let now = self.now();
        let Some(group) = &mut self.group else { return };
        self.engine.news_are_taken(group.untaken.taken(group.rim.taken(), now.mono));
        match self.engine.news(now) {
            Ok(pieces) if pieces.is_empty() => {}
            Ok(pieces) => {
                group.untaken.told(self.engine.news_number(), now.mono);
                group.publish(pieces);
            }
            Err(error) => return self.history_fails(&error),
        }
        self.engine.lease_pins(Some(group.untaken.since().unwrap_or(now.mono) + LEASE));
    }

    /// The same, if anybody is there. Without, pins need no lease.
    pub(super) fn tell_news_if_connected(&mut self) {
        if self.group.as_ref().is_some_and(Group::is_connected) {
            self.tell_news();
        }
    }
}

/// News that peers have not taken yet.
///
/// As long as there are some from longer ago than the lease, no pin is made, and no slot settles before
/// peers know. So what dies with a node is what it has done within that time, however late peers are. A
/// peer that stays behind for long is not waited for: then drains would never end.
#[derive(Debug, Default)]
pub(super) struct Untaken {
    /// Their numbers, and when they were told, on CLOCK_MONOTONIC.
    news: VecDeque<(u64, Duration)>,
    last: u64,
    taken: u64,
}

impl Untaken {
    /// How long peers are waited for.
    const PATIENCE: Duration = Duration::from_secs(2);

    /// News with this number are told.
    fn told(&mut self, number: u64, now: Duration) {
        self.last = number;
        self.news.push_back((number, now));
    }

    /// Peers have taken all up to a number; the last one that they are not waited for any more.
    fn taken(&mut self, taken: u64, now: Duration) -> u64 {
        let over = |(number, told): &mut (u64, Duration)| {
            *number <= taken || now.saturating_sub(*told) > Self::PATIENCE
        };
        while let Some((number, _)) = self.news.pop_front_if(over) {
            self.taken = number;
        }
        self.taken
    }

    /// When the first of them were told.
    fn since(&self) -> Option<Duration> {
        self.news.front().map(|(_, told)| *told)
    }

    /// The number of the last ones.
    pub(super) const fn last(&self) -> u64 {
        self.last
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

//! What the daemon says to its peers, and what it makes of what they say.
//!
//! A node follows the history of the peer that is Active. When it is learnt that a peer is Active
//! after pieces of its history have come, these were not taken, and all of it is asked for again. So
//! it matters in no way in which order the two arrive.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    Balancer, Daemon,
    likeness::{Hasher, Unlike, compare},
    roles::{Candidate, Scene, Whose, services_of},
};
use crate::{
    desired::ServiceKey,
    events::{Kind, News},
    sync::{Config, Facts, Fingerprint, PeerId, Peers, Piece, Report},
    vrrp::{RouterKey, State},
};

/// How long a new pin may be made without the daemon; it says so again every ten milliseconds.
const LEASE: Duration = Duration::from_millis(100);
/// How long peers may take to be there, after a start, before a router preempts without their flows.
const GATHERING: Duration = Duration::from_secs(10);
/// How long two nodes may both be Active for a router before that is told: a handover takes less.
const BOTH_ACTIVE: Duration = Duration::from_secs(1);
/// Different things that could not be learnt of a peer, which are told.
const TOLD: usize = 100;

/// The peers.
pub(super) struct Group {
    pub(super) rim: Box<dyn Peers>,
    config: Config,
    hasher: Hasher,
    seed: [u8; 16],
    started: Instant,
    peers: BTreeMap<PeerId, Peer>,
    fingerprint: Fingerprint,
    /// What was told last.
    told: Option<Facts>,
    /// Since when this node and a peer are both Active, and whether that was told.
    both_active: BTreeMap<(RouterKey, PeerId), (Instant, bool)>,
}

/// What is known of a peer that is there.
#[derive(Default)]
struct Peer {
    facts: Option<Facts>,
    unlike: Unlike,
    /// Whether all of its history was told.
    complete: bool,
    /// The services of which nothing was left out since it began.
    followed: BTreeSet<ServiceKey>,
    /// Whether all of its history was asked for again, and has not begun.
    wanted: bool,
    /// What could not be learnt.
    unlearnt: BTreeSet<String>,
}

impl Peer {
    fn state(&self, router: RouterKey) -> Option<State> {
        self.facts.as_ref()?.routers.get(&router).map(|facts| facts.state)
    }
}

impl Group {
    pub(super) fn new(rim: Box<dyn Peers>, config: Config, seed: [u8; 16]) -> Self {
        Self {
            rim,
            hasher: Hasher::new(&config.key),
            config,
            seed,
            started: Instant::now(),
            peers: BTreeMap::new(),
            fingerprint: Fingerprint::default(),
            told: None,
            both_active: BTreeMap::new(),
        }
    }

    /// What a peer is called.
    pub(super) fn name(&self, peer: PeerId) -> String {
        let at = usize::from(peer.0);
        let said = self.rim.status().into_iter().nth(at).and_then(|status| status.node);
        let address = || self.config.peers.get(at).map(ToString::to_string);
        said.or_else(address).unwrap_or_else(|| format!("peer {}", peer.0))
    }

    /// Whether anybody is there.
    pub(super) fn is_connected(&self) -> bool {
        !self.peers.is_empty()
    }

    fn candidates(&self) -> Vec<Candidate> {
        let kin = self.peers.iter().filter(|(_, peer)| peer.unlike.altogether.is_none());
        let candidate = |(id, peer): (&PeerId, &Peer)| Candidate {
            peer: *id,
            active: peer
                .facts
                .iter()
                .flat_map(|facts| &facts.routers)
                .filter(|(_, router)| router.state == State::Active)
                .map(|(key, router)| (*key, router.priority))
                .collect(),
            refused: peer.unlike.services.keys().copied().collect(),
        };
        kin.map(candidate).collect()
    }

    /// Whether flows of a router are known to a peer that is there, or may come to be, and not here.
    pub(super) fn lacks_flows_of(
        &self,
        router: RouterKey,
        services: &BTreeSet<ServiceKey>,
    ) -> bool {
        let gathers = self.peers.len() < self.config.peers.len();
        (gathers && self.started.elapsed() < GATHERING)
            || self.peers.values().any(|peer| match peer.state(router) {
                // It has not said yet.
                None => peer.facts.is_none(),
                Some(State::Active) => {
                    let all = services.iter();
                    let mut kin = all.filter(|key| !peer.unlike.services.contains_key(key));
                    peer.unlike.altogether.is_none()
                        && (!peer.complete || kin.any(|key| !peer.followed.contains(key)))
                }
                Some(_) => false,
            })
    }

    /// What is wrong with a router, by what peers say of it.
    pub(super) fn problems_of(&self, router: RouterKey) -> Vec<(PeerId, String)> {
        let mut found = Vec::new();
        for (id, Peer { unlike, .. }) in &self.peers {
            let deaf = unlike.deaf.get(&router).map(|(_, text)| text);
            let texts = deaf.into_iter().chain(unlike.addresses.get(&router));
            found.extend(texts.map(|text| (*id, text.clone())));
        }
        found
    }

    /// Who could take these routers over: it is Backup for all of them, has all flows, and stays.
    pub(super) fn successor(&self, routers: &BTreeSet<RouterKey>) -> Option<PeerId> {
        let status = self.rim.status();
        let fits = |(id, peer): &(&PeerId, &Peer)| {
            let known = status.get(usize::from(id.0));
            peer.unlike.altogether.is_none()
                && peer.facts.as_ref().is_some_and(|facts| !facts.draining)
                && routers.iter().all(|key| peer.state(*key) == Some(State::Backup))
                && known.is_some_and(|status| status.connected && status.complete_there)
        };
        let priority = |peer: &Peer| {
            let facts = peer.facts.iter().flat_map(|facts| &facts.routers);
            facts.filter(|(key, _)| routers.contains(key)).map(|(_, facts)| facts.priority).max()
        };
        let best = self.peers.iter().filter(fits).max_by_key(|(_, peer)| priority(peer));
        best.map(|(id, _)| *id)
    }
}

impl<B: Balancer> Daemon<B> {
    pub(super) fn services_of(
        &self,
        routers: impl IntoIterator<Item = RouterKey>,
    ) -> BTreeSet<ServiceKey> {
        services_of(&self.desired, self.routers(), &routers.into_iter().collect())
    }

    /// Peers whose advertisements are to be heard though they are made otherwise.
    pub(super) fn mismatched(&self) -> BTreeSet<(RouterKey, IpAddr)> {
        let peers = self.group.iter().flat_map(|group| group.peers.values());
        let deaf = peers.flat_map(|peer| &peer.unlike.deaf);
        deaf.filter_map(|(key, (source, _))| Some((*key, (*source)?))).collect()
    }

    /// Peers that say that they are Active, by router and source of their advertisements.
    pub(super) fn active_peers(&self) -> BTreeSet<(RouterKey, IpAddr)> {
        let peers = self.group.iter().flat_map(|group| group.peers.values());
        let routers = peers.filter_map(|peer| peer.facts.as_ref()).flat_map(|facts| &facts.routers);
        let active = routers.filter(|(_, router)| router.state == State::Active);
        active.filter_map(|(key, router)| Some((*key, router.source?))).collect()
    }

    /// Takes note of another desired state: what it makes of the node is told.
    pub(super) fn take_fingerprint(&mut self) {
        if let Some(group) = &mut self.group {
            group.fingerprint = group.hasher.fingerprint(&group.seed, &self.desired);
        }
    }

    /// Brings everything in line with who is Active and what is known: whose history counts, what is
    /// told to the peers, what the virtual routers are told.
    pub(super) fn settle(&mut self) {
        self.tell_peers();
        self.compare_peers();
        self.assign_roles();
        self.update_routers();
    }

    /// Says what this node is, where that has changed.
    fn tell_peers(&mut self) {
        let Some(group) = &self.group else { return };
        let status: BTreeMap<_, _> =
            self.vrrp.rim.status().into_iter().map(|status| (status.key, status)).collect();
        let routers = self.routers().iter().map(|router| {
            let state = self.vrrp.state(router.key);
            (router.key, group.hasher.router(router, state, status.get(&router.key)))
        });
        let facts = Facts {
            fingerprint: group.fingerprint.clone(),
            routers: routers.collect(),
            draining: self.node.draining_since.is_some(),
        };
        if let Some(group) = &mut self.group
            && group.told.as_ref() != Some(&facts)
        {
            group.rim.tell(facts.clone());
            group.told = Some(facts);
        }
    }

    /// Looks in what peers are unlike this node, and tells what is new of it.
    fn compare_peers(&mut self) {
        let Some(group) = &mut self.group else { return };
        let Some(own) = &group.told else { return };
        let mut news = Vec::new();
        let mut changed = Vec::new();
        for (id, peer) in &group.peers {
            let Some(theirs) = &peer.facts else { continue };
            let unlike = compare(own, theirs, &self.desired, &self.config.routers.routers);
            if unlike != peer.unlike {
                changed.push((*id, unlike));
            }
        }
        for (id, unlike) in changed {
            let name = group.name(id);
            let Some(peer) = group.peers.get_mut(&id) else { continue };
            let before: BTreeSet<String> = peer.unlike.problems().map(str::to_owned).collect();
            for (kind, text) in unlike.told() {
                if !before.contains(text) {
                    let cause = "the nodes are configured otherwise";
                    news.push(News::new(kind, format!("{name}: {text}"), cause));
                }
            }
            // What was not taken meanwhile is missing.
            peer.followed.retain(|key| !unlike.services.contains_key(key));
            if unlike.altogether.is_some() {
                peer.followed.clear();
            }
            if unlike == Unlike::default() {
                let message = format!("{name} is configured like this node again");
                news.push(News::new(Kind::PeerJoined, message, "its configuration, or this one's"));
            }
            peer.unlike = unlike;
        }
        news.into_iter().for_each(|news| self.tell(news));
    }

    /// Says whose history counts, and asks for what of it was not taken.
    pub(super) fn assign_roles(&mut self) {
        let candidates = self.group.as_ref().map(Group::candidates).unwrap_or_default();
        let scene = Scene {
            desired: &self.desired,
            routers: &self.config.routers.routers,
            states: &self.vrrp.states,
            has_peers: self.group.is_some(),
            candidates: &candidates,
        };
        let whose = scene.whose();
        if whose != self.whose {
            let roles = whose.iter().map(|(key, whose)| (*key, whose.role())).collect();
            let set = self.balancer.set_roles(roles, self.now());
            self.whose = whose;
            if let Err(error) = set {
                self.note(Some(format!("{error:#}")));
            }
        }
        let Some(group) = &mut self.group else { return };
        for (id, peer) in &mut group.peers {
            let followed = counted(&self.whose, *id, &peer.unlike);
            if !peer.wanted && followed.iter().any(|key| !peer.followed.contains(key)) {
                peer.wanted = true;
                peer.complete = false;
                group.rim.want_all(*id);
            }
        }
    }

    /// Takes in what peers tell.
    pub(super) fn hear_peers(&mut self, report: Report) {
        match report {
            Report::Joined(id) => {
                let Some(group) = &mut self.group else { return };
                // What is wanted of it comes by itself.
                group.peers.insert(id, Peer { wanted: true, ..Peer::default() });
                let message = format!("peer {} is there", group.name(id));
                self.tell(News::new(Kind::PeerJoined, message, "it answers"));
            }
            Report::Lost(id, why) => {
                let Some(group) = &mut self.group else { return };
                group.peers.remove(&id);
                group.both_active.retain(|(_, peer), _| *peer != id);
                let (name, last) = (group.name(id), !group.is_connected());
                self.tell(News::new(Kind::PeerLost, format!("peer {name} is gone"), why));
                self.answered(id, &Err("it is gone".into()));
                if last {
                    // Nobody else knows this node's flows, so none can be missed.
                    self.balancer.lease_pins(None);
                }
            }
            Report::Facts(id, facts) => {
                if let Some(peer) = self.peer(id) {
                    peer.facts = Some(facts);
                }
            }
            Report::WantsAll(id) => self.send_all(id),
            Report::Begins(id) => {
                let Some(peer) = self.group.as_mut().and_then(|group| group.peers.get_mut(&id))
                else {
                    return;
                };
                peer.followed = counted(&self.whose, id, &peer.unlike);
                (peer.wanted, peer.complete) = (false, false);
                // Of what all nodes share, others have told a part.
                let theirs = |key: &&ServiceKey| self.whose.get(key) == Some(&Whose::Peers(id));
                let services = peer.followed.iter().filter(theirs).copied().collect();
                self.balancer.forget(&services);
            }
            Report::Pieces(id, pieces) => self.learn(id, pieces),
            Report::Complete(id, complete) => {
                let Some(peer) = self.peer(id) else { return };
                let before = std::mem::replace(&mut peer.complete, complete && !peer.wanted);
                let after = peer.complete;
                if before != after {
                    self.tell_of_completeness(id, after);
                }
            }
            Report::TakeOver(id, routers) => self.take_over(id, &routers),
            Report::Answer(id, answer) => self.answered(id, &answer),
            Report::Unreadable(id, why) => {
                let Some(group) = &self.group else { return };
                let message = format!("what comes from {} can't be taken", group.name(id));
                self.tell(News::new(Kind::PeerRefused, message, why));
            }
        }
    }

    fn peer(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.group.as_mut()?.peers.get_mut(&id)
    }

    fn tell_of_completeness(&self, id: PeerId, complete: bool) {
        let Some(group) = &self.group else { return };
        let name = group.name(id);
        self.tell(match complete {
            true => News::new(
                Kind::PeerSynced,
                format!("all flows that {name} tells of are known here"),
                "all of its history has come",
            ),
            false => News::new(
                Kind::PeerUnsynced,
                format!("flows of {name} are missing here; it is asked for them"),
                "something was lost on the way",
            ),
        });
    }

    /// Tells a peer all of this node's history.
    fn send_all(&mut self, id: PeerId) {
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
    fn learn(&mut self, id: PeerId, pieces: Vec<Piece>) {
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

    /// Tells of routers that this node and a peer both hold, for longer than a handover takes.
    pub(super) fn look_for_two(&mut self, now: Instant) {
        let Some(group) = &mut self.group else { return };
        let active = self.vrrp.states.iter().filter(|(_, state)| **state == State::Active);
        let active = active.map(|(key, _)| *key);
        let both: BTreeSet<(RouterKey, PeerId)> = active
            .flat_map(|key| group.peers.iter().map(move |(id, peer)| (key, *id, peer)))
            .filter(|(key, _, peer)| peer.state(*key) == Some(State::Active))
            .map(|(key, id, _)| (key, id))
            .collect();
        group.both_active.retain(|pair, _| both.contains(pair));
        let mut long = Vec::new();
        for pair in both {
            let (since, told) = group.both_active.entry(pair).or_insert((now, false));
            if !*told && now.saturating_duration_since(*since) >= BOTH_ACTIVE {
                *told = true;
                long.push(pair);
            }
        }
        for (key, id) in long {
            let router = self.router_name(key);
            let peer = self.group.as_ref().map(|group| group.name(id)).unwrap_or_default();
            self.tell(News::new(
                Kind::VrrpTwoActive,
                format!("{router} is active here and on {peer}: both hold its addresses"),
                "advertisements don't arrive, where what peers tell each other does",
            ));
        }
    }

    /// How the peers stand.
    pub(super) fn status_of_peers(&self) -> Vec<crate::status::Peer> {
        let Some(group) = &self.group else { return Vec::new() };
        let ids = (0..=u8::MAX).map(PeerId);
        let all = group.rim.status().into_iter().zip(ids).map(|(mut session, id)| {
            let peer = group.peers.get(&id);
            let facts = peer.and_then(|peer| peer.facts.as_ref());
            let unlike = peer.map(|peer| &peer.unlike);
            session.complete_here = peer.is_some_and(|peer| peer.complete);
            let altogether = unlike.and_then(|unlike| unlike.altogether.clone());
            session.refused = session.refused.or(altogether);
            let routers = facts.iter().flat_map(|facts| &facts.routers);
            crate::status::Peer {
                session,
                routers: routers
                    .map(|(key, router)| crate::status::PeerRouter {
                        name: self.router(*key).map(|router| router.name.clone()),
                        key: *key,
                        state: router.state,
                        priority: router.priority,
                    })
                    .collect(),
                draining: facts.is_some_and(|facts| facts.draining),
                problems: unlike
                    .into_iter()
                    .flat_map(Unlike::problems)
                    .map(str::to_owned)
                    .collect(),
            }
        });
        all.collect()
    }
}

/// The services whose pieces count when this peer tells them.
fn counted(
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

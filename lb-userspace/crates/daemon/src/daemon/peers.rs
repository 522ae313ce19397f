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

use lb_api::event::{Kind, News};
use lb_control::engine::Members;
use lb_datapath::DataPlane;
use lb_model::{
    desired::ServiceKey,
    router::{RouterKey, State},
};
use lb_sync::{Config, Facts, Fingerprint, PeerId, Peers, Piece, Report, RouterFacts};

use super::{
    Daemon,
    flows::{Untaken, counted},
    likeness::{Apart, Hasher, Unlike, compare},
    roles::{Candidate, Known, Scene, Tells, Tenure, Whose, is_unsynced, services_of},
    sharers::Attendance,
};

/// How long two nodes may both be Active for a router before that is told: a handover takes less.
const BOTH_ACTIVE: Duration = Duration::from_secs(1);
/// How long a peer that comes back is told what was pinned here until another node took over.
const LEGACY: Duration = Duration::from_secs(10);

/// The peers.
pub(super) struct Group {
    pub(super) rim: Box<dyn Peers>,
    pub(super) config: Config,
    hasher: Hasher,
    seed: [u8; 16],
    pub(super) peers: BTreeMap<PeerId, Peer>,
    fingerprint: Fingerprint,
    /// How often a peer was learnt to be Active for a router.
    turns: u64,
    /// What was told last.
    told: Option<Facts>,
    /// Peers that are to be told everything, which has not worked yet.
    pub(super) owed: BTreeSet<PeerId>,
    /// What was pinned here when services ceased to be this node's own and a peer was not there.
    pub(super) legacy: Option<(Instant, Vec<Piece>)>,
    /// Since when this node and a peer are both Active, and whether that was told.
    pub(super) both_active: BTreeMap<(RouterKey, PeerId), (Instant, bool)>,
    /// News that are on their way.
    pub(super) untaken: Untaken,
    pub(super) attendance: Attendance,
}

/// What is known of a peer that is there.
#[derive(Default)]
pub(super) struct Peer {
    facts: Option<Facts>,
    /// Routers that it is Active for, in the order in which that was learnt.
    turns: BTreeMap<RouterKey, u64>,
    pub(super) unlike: Unlike,
    apart: Apart,
    /// Whether all of its history was told.
    complete: bool,
    /// The services of which nothing was left out since it began.
    pub(super) followed: BTreeSet<ServiceKey>,
    /// When it may be asked again for what could not be taken, and how long that was waited for.
    pub(super) again: Option<(Instant, Duration)>,
    /// Whether it was told that some of it is lacking here.
    lacks: Option<bool>,
    /// Whether all of its history was asked for again, and has not begun.
    wanted: bool,
    /// What could not be learnt.
    pub(super) unlearnt: BTreeSet<String>,
    /// Who gets the new flows of services there.
    pub(super) members: BTreeMap<ServiceKey, Members>,
}

impl Peer {
    /// Whether all that it has told is known here.
    pub(super) const fn is_complete(&self) -> bool {
        self.complete
    }

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
            peers: BTreeMap::new(),
            fingerprint: Fingerprint::default(),
            turns: 0,
            told: None,
            owed: BTreeSet::new(),
            legacy: None,
            both_active: BTreeMap::new(),
            untaken: Untaken::default(),
            attendance: Attendance::default(),
        }
    }

    /// What a peer is called.
    pub(super) fn name(&self, peer: PeerId) -> String {
        let at = usize::from(peer.0);
        let said = self.rim.status().into_iter().nth(at).and_then(|status| status.node);
        let address = || self.config.peers.get(at).map(ToString::to_string);
        said.or_else(address).unwrap_or_else(|| format!("peer {}", peer.0))
    }

    /// That a peer calls itself as this node does, in words.
    fn same_name(&self, peer: PeerId) -> Option<String> {
        let status = self.rim.status().into_iter().nth(usize::from(peer.0))?;
        let same = status.node.filter(|node| *node == self.config.node)?;
        Some(format!(
            "peer {} calls itself {same}, as this node does: set `node` under [sync]",
            status.address
        ))
    }

    /// Tells all peers.
    pub(super) fn publish(&self, pieces: Vec<Piece>) {
        self.rim.publish(self.untaken.last(), pieces);
    }

    /// Whether anybody is there.
    pub(super) fn is_connected(&self) -> bool {
        !self.peers.is_empty()
    }

    /// A peer says this of itself from now on.
    fn take_facts(&mut self, id: PeerId, facts: Facts) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.turns.retain(|key, _| is_active(&facts, *key));
        for key in facts.routers.keys().filter(|key| is_active(&facts, **key)) {
            peer.turns.entry(*key).or_insert_with(|| {
                self.turns += 1;
                self.turns
            });
        }
        peer.facts = Some(facts);
    }

    /// How many peers are configured.
    pub(super) fn count(&self) -> u8 {
        u8::try_from(self.config.peers.len()).unwrap_or(u8::MAX)
    }

    /// Whether one of the configured peers is not there.
    pub(super) fn misses_some(&self) -> bool {
        self.peers.len() < self.config.peers.len()
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
                .map(|(key, router)| {
                    let (source, priority) = (router.source, router.priority);
                    let turn = peer.turns.get(key).copied().unwrap_or(0);
                    (*key, Tenure { source, turn, priority })
                })
                .collect(),
            refused: peer.unlike.services.keys().copied().collect(),
        };
        kin.map(candidate).collect()
    }

    /// Whether this node has yet to learn flows of a router that a peer has which is there.
    pub(super) fn lacks_flows_of(
        &self,
        router: RouterKey,
        services: &BTreeSet<ServiceKey>,
    ) -> bool {
        self.known_of(router, services).any(|known| match known.tells {
            Tells::Nothing => true,
            Tells::Active { all } => !all,
            Tells::NotActive => false,
        })
    }

    /// Whether a router that takes over from who was heard may break flows.
    pub(super) fn is_unsynced(
        &self,
        router: RouterKey,
        services: &BTreeSet<ServiceKey>,
        heard: Option<IpAddr>,
    ) -> bool {
        let known: Vec<_> = self.known_of(router, services).collect();
        is_unsynced(heard, &known, self.misses_some())
    }

    /// Routers that peers are Active for whose flows count here.
    pub(super) fn active_for(&self) -> BTreeSet<RouterKey> {
        let kin = self.peers.values().filter(|peer| peer.unlike.altogether.is_none());
        kin.flat_map(|peer| peer.turns.keys()).copied().collect()
    }

    /// Routers that peers are Active for which drain.
    pub(super) fn draining_for(&self) -> BTreeSet<RouterKey> {
        let drains = |peer: &&Peer| peer.facts.as_ref().is_some_and(|facts| facts.draining);
        self.peers.values().filter(drains).flat_map(|peer| peer.turns.keys()).copied().collect()
    }

    /// Routers that peers are Active for, and something that they track has lowered their priority.
    pub(super) fn lowered_for(&self) -> BTreeSet<RouterKey> {
        let routers = self.peers.values().filter_map(|peer| peer.facts.as_ref());
        let routers = routers.flat_map(|facts| &facts.routers);
        let lowered = |router: &RouterFacts| router.state == State::Active && router.lowered;
        routers.filter(|(_, router)| lowered(router)).map(|(key, _)| *key).collect()
    }

    /// Routers that a peer would preempt, and waits with for this node to hand them over.
    pub(super) fn wanted(&self) -> BTreeMap<RouterKey, (PeerId, u8)> {
        let mut wanted = BTreeMap::new();
        for (id, peer) in &self.peers {
            let routers = peer.facts.iter().flat_map(|facts| &facts.routers);
            for (key, router) in routers.filter(|(_, router)| router.wants) {
                let best = wanted.entry(*key).or_insert((*id, router.priority));
                if router.priority > best.1 {
                    *best = (*id, router.priority);
                }
            }
        }
        wanted
    }

    /// What is known of a router's flows, by peer. Those of whom nothing can be taken tell nothing that
    /// could be waited for.
    fn known_of(
        &self,
        router: RouterKey,
        services: &BTreeSet<ServiceKey>,
    ) -> impl Iterator<Item = Known> {
        self.peers.values().map(move |peer| {
            let facts = peer.facts.as_ref().and_then(|facts| facts.routers.get(&router));
            let mut kin = services.iter().filter(|key| !peer.unlike.services.contains_key(key));
            let stranger = peer.unlike.altogether.is_some();
            let all = stranger || (peer.complete && kin.all(|key| peer.followed.contains(key)));
            let tells = match (&peer.facts, facts.map(|facts| facts.state)) {
                (None, _) => Tells::Nothing,
                (_, Some(State::Active)) => Tells::Active { all },
                _ => Tells::NotActive,
            };
            Known { source: facts.and_then(|facts| facts.source), tells }
        })
    }

    /// What is left of this node's own history, of services that are not its own any more.
    pub(super) fn legacy_of(&self, whose: &BTreeMap<ServiceKey, Whose>) -> Vec<Piece> {
        let fresh = self.legacy.as_ref().filter(|(at, _)| at.elapsed() < LEGACY);
        let others = |piece: &&Piece| {
            matches!(whose.get(&piece.service()), Some(Whose::Peers(_) | Whose::Kept))
        };
        fresh.into_iter().flat_map(|(_, pieces)| pieces).filter(others).cloned().collect()
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

    /// Who could take these routers over: it is Backup for all of them and stays. It has all flows but those
    /// that it [refuses](Self::refused_by), or gets them now; then it takes over when it has.
    pub(super) fn successor(
        &self,
        routers: &BTreeSet<RouterKey>,
        services: &BTreeSet<ServiceKey>,
    ) -> Option<PeerId> {
        let status = self.rim.status();
        let fits = |(id, peer): &(&PeerId, &Peer)| {
            let known = status.get(usize::from(id.0));
            peer.unlike.altogether.is_none()
                && peer.facts.as_ref().is_some_and(|facts| !facts.draining)
                && routers.iter().all(|key| peer.state(*key) == Some(State::Backup))
                && known.is_some_and(|status| status.connected)
        };
        let priority = |peer: &Peer| {
            let facts = peer.facts.iter().flat_map(|facts| &facts.routers);
            facts.filter(|(key, _)| routers.contains(key)).map(|(_, facts)| facts.priority).max()
        };
        // Who can take most of the flows.
        let lost = |id: PeerId| std::cmp::Reverse(self.refused_by(id, services).len());
        let fit = self.peers.iter().filter(fits);
        let rank = |(id, peer): &(&PeerId, &Peer)| (self.follows(**id), lost(**id), priority(peer));
        fit.max_by_key(rank).map(|(id, _)| *id)
    }

    /// Whether a peer has all flows of this node, but for the last news.
    pub(super) fn follows(&self, peer: PeerId) -> bool {
        let status = self.rim.status().into_iter().nth(usize::from(peer.0));
        status.is_some_and(|status| status.follows)
    }

    /// The services of these whose flows a peer can't take, since it has them otherwise.
    pub(super) fn refused_by(
        &self,
        peer: PeerId,
        services: &BTreeSet<ServiceKey>,
    ) -> BTreeSet<ServiceKey> {
        let unlike = self.peers.get(&peer).map(|peer| &peer.unlike.services);
        let refused = unlike.into_iter().flat_map(BTreeMap::keys);
        refused.filter(|key| services.contains(key)).copied().collect()
    }
}

impl<D: DataPlane> Daemon<D> {
    pub(super) fn services_of(
        &self,
        routers: impl IntoIterator<Item = RouterKey>,
    ) -> BTreeSet<ServiceKey> {
        services_of(self.store.desired(), self.routers(), &routers.into_iter().collect())
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
            group.fingerprint = group.hasher.fingerprint(&group.seed, self.store.desired());
        }
    }

    /// Brings everything in line with who is Active and what is known: whose history counts, what is
    /// told to the peers, what the virtual routers are told.
    pub(super) fn settle(&mut self) {
        self.tell_peers();
        self.compare_peers();
        self.assign_roles();
        self.update_routers();
        self.give_way(Instant::now());
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
            draining: self.store.node().draining_since.is_some(),
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
        for (id, peer) in &mut group.peers {
            let Some(theirs) = &peer.facts else { continue };
            let mut unlike =
                compare(own, theirs, self.store.desired(), &self.store.config().routers.routers);
            peer.apart.lasting(&mut unlike.backends, Instant::now());
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

    /// Whether a peer is followed: what it tells of flows counts while it is.
    pub(super) fn follows(&self) -> bool {
        self.whose.values().any(|whose| matches!(whose, Whose::Peers(_) | Whose::Kept))
    }

    /// Says whose history counts, and asks for what of it was not taken.
    pub(super) fn assign_roles(&mut self) {
        let candidates = self.group.as_ref().map(Group::candidates).unwrap_or_default();
        let scene = Scene {
            desired: self.store.desired(),
            routers: &self.store.config().routers.routers,
            states: &self.vrrp.states,
            heard: &self.vrrp.heard(),
            has_peers: self.group.is_some(),
            candidates: &candidates,
        };
        let whose = scene.whose();
        let unsynced = scene.unsynced(&whose);
        if unsynced != self.unsynced {
            self.unsynced.clone_from(&unsynced);
            self.engine.set_unsynced(unsynced, self.now());
        }
        if whose != self.whose {
            let was_own = |key: &&ServiceKey| self.whose.get(key) == Some(&Whose::Own);
            let left = whose.iter().filter(|(_, whose)| **whose != Whose::Own).map(|(key, _)| key);
            let left: BTreeSet<_> = left.filter(was_own).copied().collect();
            if !left.is_empty() {
                self.tell_last(&left);
            }
            let roles = whose.iter().map(|(key, whose)| (*key, whose.role())).collect();
            let set = self.engine.set_roles(roles, self.now());
            self.whose = whose;
            if let Err(error) = set {
                self.note(Some(format!("{error:#}")));
            }
        }
        let Some(group) = &mut self.group else { return };
        for (id, peer) in &mut group.peers {
            let followed = counted(&self.whose, *id, &peer.unlike);
            let lacks = !followed.is_subset(&peer.followed);
            if peer.lacks.replace(lacks) != Some(lacks) {
                group.rim.lack(*id, lacks);
            }
            if followed.is_subset(&peer.followed) {
                if peer.complete {
                    peer.again = None;
                }
                continue;
            }
            let waits = peer.again.is_some_and(|(at, _)| Instant::now() < at);
            if !peer.wanted && !waits {
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
                let same = group.same_name(id);
                self.tell(News::new(Kind::PeerJoined, message, "it answers"));
                if let Some(text) = same {
                    self.tell(News::new(
                        Kind::VrrpMismatch,
                        text,
                        "both nodes have this host name",
                    ));
                }
            }
            Report::Lost(id, why) => {
                let Some(group) = &mut self.group else { return };
                group.peers.remove(&id);
                group.owed.remove(&id);
                group.both_active.retain(|(_, peer), _| *peer != id);
                let (name, last) = (group.name(id), !group.is_connected());
                self.tell(News::new(Kind::PeerLost, format!("peer {name} is gone"), why));
                self.answered(id, &Err("it is gone".into()));
                if last {
                    // Nobody else knows this node's flows, so none can be missed.
                    self.engine.lease_pins(None);
                }
            }
            Report::Facts(id, facts) => {
                if let Some(group) = &mut self.group {
                    group.take_facts(id, facts);
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
                self.engine.forget(&services);
            }
            Report::Pieces(id, pieces, mark) => self.learn(id, pieces, mark),
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

    pub(super) fn peer(&mut self, id: PeerId) -> Option<&mut Peer> {
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
    pub(super) fn status_of_peers(&self) -> Vec<lb_api::status::Peer> {
        let Some(group) = &self.group else { return Vec::new() };
        let ids = (0..=u8::MAX).map(PeerId);
        let all = group.rim.status().into_iter().zip(ids).map(|(mut session, id)| {
            let peer = group.peers.get(&id);
            let facts = peer.and_then(|peer| peer.facts.as_ref());
            let unlike = peer.map(|peer| &peer.unlike);
            session.complete_here = peer.is_some_and(|peer| {
                let counted = counted(&self.whose, id, &peer.unlike);
                peer.complete && counted.is_subset(&peer.followed)
            });
            let altogether = unlike.and_then(|unlike| unlike.altogether.clone());
            session.refused = session.refused.or(altogether);
            let routers = facts.iter().flat_map(|facts| &facts.routers);
            lb_api::status::Peer {
                session,
                routers: routers
                    .map(|(key, router)| lb_api::status::PeerRouter {
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
                    .chain(group.same_name(id))
                    .collect(),
            }
        });
        all.collect()
    }
}

fn is_active(facts: &Facts, router: RouterKey) -> bool {
    facts.routers.get(&router).is_some_and(|facts| facts.state == State::Active)
}

//! The peers: the node state and records that this node sends them, and what it stores of each.
//!
//! A node imports the flow records of the peer that is Active. Records that arrive before the peer's
//! state reports it as Active are not imported; this node then requests all records again. So the
//! order in which the two arrive does not matter.

mod known;
mod sharers;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lb_api::{
    event::{EventBody, Kind},
    routers::RouterStatus,
};
use lb_control::engine::Members;
use lb_model::{
    desired::{Desired, ServiceKey},
    router::{Router, RouterKey, State},
};
use lb_sync::{Config, Fingerprint, NodeState, PeerId, Peers, Record};

use self::sharers::Attendance;
use super::{
    compatibility::{Hasher, Mismatch, MismatchTimer, compare},
    roles::FlowStateSource,
    unacked::Unacked,
};

/// How long two nodes may both be Active for a router before lbd records an event: a handover takes less.
const BOTH_ACTIVE: Duration = Duration::from_secs(1);
/// How long a peer that comes back is sent the pins that were made here until another node took over.
const RETAINED_FOR: Duration = Duration::from_secs(10);

/// When records that could not be taken are requested again.
const FIRST_AGAIN: Duration = Duration::from_secs(1);
const LONGEST_AGAIN: Duration = Duration::from_secs(60);
/// How many different reasons of rejected records are recorded as events, for each peer.
const MAX_REJECTED_REASONS: usize = 100;

/// All peers: the sessions with them, and the state of each that is connected.
pub(super) struct PeerGroup {
    pub(super) sessions: Box<dyn Peers>,
    pub(super) config: Config,
    hasher: Hasher,
    seed: [u8; 16],
    pub(super) peers: BTreeMap<PeerId, Peer>,
    fingerprint: Fingerprint,
    /// How often a peer has become Active for a router.
    turns: u64,
    /// The state that was sent last.
    sent_state: Option<NodeState>,
    /// Peers to which a transfer is to be sent, since the export for it has failed.
    pub(super) pending_transfers: BTreeSet<PeerId>,
    /// Pins that were made here when services ceased to be this node's own while a peer was not connected.
    pub(super) retained: Option<(Instant, Vec<Record>)>,
    /// Since when this node and a peer are both Active, and whether an event was recorded.
    pub(super) both_active: BTreeMap<(RouterKey, PeerId), (Instant, bool)>,
    /// Exports that peers have not acknowledged.
    pub(super) unacked: Unacked,
    attendance: Attendance,
    /// Whether reports of the sessions wait: the state of the peers is out of date then.
    pub(super) has_backlog: bool,
}

/// The state of a connected peer.
#[derive(Default)]
pub(super) struct Peer {
    node_state: Option<NodeState>,
    /// Routers that it is Active for, in the order in which it reported them.
    turns: BTreeMap<RouterKey, u64>,
    pub(super) mismatch: Mismatch,
    timer: MismatchTimer,
    /// Whether all of its records have come.
    complete: bool,
    /// The services of which nothing was left out since it began.
    pub(super) followed: BTreeSet<ServiceKey>,
    /// When its records may be requested again, and the delay until then.
    pub(super) again: Option<(Instant, Duration)>,
    /// Whether this node has reported to it that some of its records are missing here.
    lacks: Option<bool>,
    /// Whether a transfer of all its records was requested and has not begun.
    transfer_requested: bool,
    /// The reasons why its records were rejected.
    pub(super) rejected_reasons: BTreeSet<String>,
    /// The backends that get new flows of services there.
    pub(super) members: BTreeMap<ServiceKey, Members>,
}

impl Peer {
    /// Whether all of its records have come, imported or not.
    pub(super) const fn has_sent_all(&self) -> bool {
        self.complete
    }

    pub(super) fn state(&self, router: RouterKey) -> Option<State> {
        self.node_state.as_ref()?.routers.get(&router).map(|router| router.state)
    }
}

impl PeerGroup {
    pub(super) fn new(peers: Box<dyn Peers>, config: Config, seed: [u8; 16]) -> Self {
        Self {
            sessions: peers,
            hasher: Hasher::new(&config.key),
            config,
            seed,
            peers: BTreeMap::new(),
            fingerprint: Fingerprint::default(),
            turns: 0,
            sent_state: None,
            pending_transfers: BTreeSet::new(),
            retained: None,
            both_active: BTreeMap::new(),
            unacked: Unacked::default(),
            attendance: Attendance::default(),
            has_backlog: false,
        }
    }

    /// A peer's name.
    pub(super) fn name(&self, peer: PeerId) -> String {
        let at = usize::from(peer.0);
        let reported = self.sessions.status().into_iter().nth(at).and_then(|status| status.node);
        let address = || self.config.peers.get(at).map(ToString::to_string);
        reported.or_else(address).unwrap_or_else(|| format!("peer {}", peer.0))
    }

    /// The text of the problem that a peer has this node's name.
    fn same_name(&self, peer: PeerId) -> Option<String> {
        let status = self.sessions.status().into_iter().nth(usize::from(peer.0))?;
        let same = status.node.filter(|node| *node == self.config.node)?;
        Some(format!(
            "peer {} calls itself {same}, as this node does: set `node` under [sync]",
            status.address
        ))
    }

    /// Sends records to all peers.
    pub(super) fn publish(&self, records: Vec<Record>) {
        self.sessions.publish(self.unacked.last(), records);
    }

    /// Whether a peer is connected.
    pub(super) fn is_connected(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Takes a peer's new state.
    pub(super) fn take_state(&mut self, id: PeerId, node_state: NodeState) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.turns.retain(|key, _| is_active(&node_state, *key));
        for key in node_state.routers.keys().filter(|key| is_active(&node_state, **key)) {
            peer.turns.entry(*key).or_insert_with(|| {
                self.turns += 1;
                self.turns
            });
        }
        peer.node_state = Some(node_state);
    }

    /// How many peers are configured.
    pub(super) fn count(&self) -> u8 {
        u8::try_from(self.config.peers.len()).unwrap_or(u8::MAX)
    }

    /// Whether one of the configured peers is not connected.
    pub(super) fn misses_some(&self) -> bool {
        self.peers.len() < self.config.peers.len()
    }

    /// The retained records of services that are not this node's own any more.
    pub(super) fn retained_of(
        &self,
        flow_sources: &BTreeMap<ServiceKey, FlowStateSource>,
    ) -> Vec<Record> {
        let fresh = self.retained.as_ref().filter(|(at, _)| at.elapsed() < RETAINED_FOR);
        let others = |record: &&Record| {
            matches!(
                flow_sources.get(&record.service()),
                Some(FlowStateSource::Peer(_) | FlowStateSource::Kept)
            )
        };
        fresh.into_iter().flat_map(|(_, records)| records).filter(others).cloned().collect()
    }

    /// Another desired state is in force: its fingerprint is part of this node's state.
    pub(super) fn set_desired(&mut self, desired: &Desired) {
        self.fingerprint = self.hasher.fingerprint(&self.seed, desired);
    }

    /// Sends this node's state to the peers, if it has changed.
    pub(super) fn send_state(
        &mut self,
        routers: &[Router],
        states: &BTreeMap<RouterKey, State>,
        status: Vec<RouterStatus>,
        draining: bool,
    ) {
        let status: BTreeMap<_, _> =
            status.into_iter().map(|status| (status.key, status)).collect();
        let routers = routers.iter().map(|router| {
            let state = states.get(&router.key).copied().unwrap_or_default();
            (router.key, self.hasher.router(router, state, status.get(&router.key)))
        });
        let routers = routers.collect();
        let node_state = NodeState { fingerprint: self.fingerprint.clone(), routers, draining };
        if self.sent_state.as_ref() != Some(&node_state) {
            self.sessions.set_state(node_state.clone());
            self.sent_state = Some(node_state);
        }
    }

    /// Compares the configurations of the peers with that of this node; the events of differences that are new or gone.
    pub(super) fn compare(
        &mut self,
        desired: &Desired,
        routers: &[Router],
        now: Instant,
    ) -> Vec<EventBody> {
        let Some(own) = &self.sent_state else { return Vec::new() };
        let mut events = Vec::new();
        let mut changed = Vec::new();
        for (id, peer) in &mut self.peers {
            let Some(theirs) = &peer.node_state else { continue };
            let mut mismatch = compare(own, theirs, desired, routers);
            peer.timer.lasting(&mut mismatch.backends, now);
            if mismatch != peer.mismatch {
                changed.push((*id, mismatch));
            }
        }
        for (id, mismatch) in changed {
            let name = self.name(id);
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let before: BTreeSet<String> = peer.mismatch.problems().map(str::to_owned).collect();
            for (kind, text) in mismatch.by_kind() {
                if !before.contains(text) {
                    let cause = "the nodes are configured otherwise";
                    events.push(EventBody::new(kind, format!("{name}: {text}"), cause));
                }
            }
            // Records that were not taken meanwhile are missing.
            peer.followed.retain(|key| !mismatch.services.contains_key(key));
            if mismatch.whole.is_some() {
                peer.followed.clear();
            }
            if mismatch == Mismatch::default() {
                let message = format!("{name} is configured like this node again");
                events.push(EventBody::new(
                    Kind::PeerJoined,
                    message,
                    "its configuration, or this one's",
                ));
            }
            peer.mismatch = mismatch;
        }
        events
    }

    /// Requests all records of peers that are followed and of which some were not taken.
    pub(super) fn request_missing(
        &mut self,
        flow_sources: &BTreeMap<ServiceKey, FlowStateSource>,
        now: Instant,
    ) {
        for (id, peer) in &mut self.peers {
            let followed = counted(flow_sources, *id, &peer.mismatch);
            let lacks = !followed.is_subset(&peer.followed);
            if peer.lacks.replace(lacks) != Some(lacks) {
                self.sessions.lack(*id, lacks);
            }
            if !lacks {
                if peer.complete {
                    peer.again = None;
                }
                continue;
            }
            let waits = peer.again.is_some_and(|(at, _)| now < at);
            if !peer.transfer_requested && !waits {
                peer.transfer_requested = true;
                peer.complete = false;
                self.sessions.request_transfer(*id);
            }
        }
    }

    /// A peer is connected.
    pub(super) fn joined(&mut self, id: PeerId) -> Vec<EventBody> {
        // It sends all records by itself.
        self.peers.insert(id, Peer { transfer_requested: true, ..Peer::default() });
        let message = format!("peer {} is there", self.name(id));
        let mut events = vec![EventBody::new(Kind::PeerJoined, message, "it answers")];
        events.extend(self.same_name(id).map(|text| {
            EventBody::new(Kind::VrrpMismatch, text, "both nodes have this host name")
        }));
        events
    }

    /// A peer is connected no more.
    pub(super) fn lost(&mut self, id: PeerId, why: String) -> EventBody {
        self.peers.remove(&id);
        self.pending_transfers.remove(&id);
        self.both_active.retain(|(_, peer), _| *peer != id);
        EventBody::new(Kind::PeerLost, format!("peer {} is gone", self.name(id)), why)
    }

    /// A peer begins a transfer of all its records; the services whose flows are its own.
    pub(super) fn transfer_begins(
        &mut self,
        id: PeerId,
        flow_sources: &BTreeMap<ServiceKey, FlowStateSource>,
    ) -> BTreeSet<ServiceKey> {
        let Some(peer) = self.peers.get_mut(&id) else { return BTreeSet::new() };
        peer.followed = counted(flow_sources, id, &peer.mismatch);
        (peer.transfer_requested, peer.complete) = (false, false);
        // Other nodes have sent a part of the flows of a service that all nodes share.
        let theirs = |key: &&ServiceKey| flow_sources.get(key) == Some(&FlowStateSource::Peer(id));
        peer.followed.iter().filter(theirs).copied().collect()
    }

    /// All records of a peer have come, or some were lost; the event, if that is new.
    pub(super) fn set_complete(&mut self, id: PeerId, complete: bool) -> Option<EventBody> {
        let peer = self.peers.get_mut(&id)?;
        let before = std::mem::replace(&mut peer.complete, complete && !peer.transfer_requested);
        let after = peer.complete;
        if before == after {
            return None;
        }
        let name = self.name(id);
        Some(match after {
            true => EventBody::new(
                Kind::PeerSynced,
                format!("all flows that {name} has are known here"),
                "all of its history has come",
            ),
            false => EventBody::new(
                Kind::PeerUnsynced,
                format!("flows of {name} are missing here; they are requested"),
                "something was lost on the way",
            ),
        })
    }

    /// The routers that this node and a peer have both been Active for, longer than a handover takes; each once.
    pub(super) fn both_active_for_long(
        &mut self,
        states: &BTreeMap<RouterKey, State>,
        now: Instant,
    ) -> Vec<(RouterKey, PeerId)> {
        let active = states.iter().filter(|(_, state)| **state == State::Active);
        let both: BTreeSet<(RouterKey, PeerId)> = active
            .flat_map(|(key, _)| self.peers.iter().map(move |(id, peer)| (*key, *id, peer)))
            .filter(|(key, _, peer)| peer.state(*key) == Some(State::Active))
            .map(|(key, id, _)| (key, id))
            .collect();
        self.both_active.retain(|pair, _| both.contains(pair));
        let mut long = Vec::new();
        for pair in both {
            let (since, recorded) = self.both_active.entry(pair).or_insert((now, false));
            if !*recorded && now.saturating_duration_since(*since) >= BOTH_ACTIVE {
                *recorded = true;
                long.push(pair);
            }
        }
        long
    }

    /// The state of the peers.
    pub(super) fn status(
        &self,
        flow_sources: &BTreeMap<ServiceKey, FlowStateSource>,
        name_of: impl Fn(RouterKey) -> Option<String>,
    ) -> Vec<lb_api::status::Peer> {
        let all = self.sessions.status().into_iter().zip((0..=u8::MAX).map(PeerId));
        let all = all.map(|(mut session, id)| {
            let peer = self.peers.get(&id);
            let node_state = peer.and_then(|peer| peer.node_state.as_ref());
            let mismatch = peer.map(|peer| &peer.mismatch);
            session.complete_here = peer.is_some_and(|peer| {
                peer.complete && counted(flow_sources, id, &peer.mismatch).is_subset(&peer.followed)
            });
            let whole = mismatch.and_then(|mismatch| mismatch.whole.clone());
            session.refused = session.refused.or(whole);
            let routers = node_state.iter().flat_map(|node_state| &node_state.routers);
            let routers = routers.map(|(key, router)| lb_api::status::PeerRouter {
                name: name_of(*key),
                key: *key,
                state: router.state,
                priority: router.priority,
            });
            let problems = mismatch.into_iter().flat_map(Mismatch::problems).map(str::to_owned);
            lb_api::status::Peer {
                session,
                routers: routers.collect(),
                draining: node_state.is_some_and(|node_state| node_state.draining),
                problems: problems.chain(self.same_name(id)).collect(),
            }
        });
        all.collect()
    }

    /// The records of a peer that count here; services of which others came are not followed any more.
    pub(super) fn accepted(
        &mut self,
        id: PeerId,
        records: Vec<Record>,
        flow_sources: &BTreeMap<ServiceKey, FlowStateSource>,
    ) -> Vec<Record> {
        self.take_members(id, &records);
        let Some(peer) = self.peers.get_mut(&id) else { return Vec::new() };
        let counted = counted(flow_sources, id, &peer.mismatch);
        let alike = |key: &ServiceKey| {
            peer.mismatch.whole.is_none() && !peer.mismatch.services.contains_key(key)
        };
        // A peer that sends pins of a service is Active for it, or was until now: beside this node, or before it. Their
        // flows were there; those that are not pinned here are taken.
        let late = |record: &Record| {
            matches!(record, Record::Pins { .. })
                && flow_sources.get(&record.service()) == Some(&FlowStateSource::Own)
                && alike(&record.service())
        };
        let (taken, left): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|record| counted.contains(&record.service()) || late(record));
        for record in left {
            peer.followed.remove(&record.service());
        }
        taken
    }

    /// Records of these services could not be written: they are missing until all are sent again; soon, and then less and
    /// less often, since a table that is full is not likely to have room a moment later. Those that were followed.
    pub(super) fn miss(
        &mut self,
        id: PeerId,
        mut missed: BTreeSet<ServiceKey>,
        now: Instant,
    ) -> BTreeSet<ServiceKey> {
        let Some(peer) = self.peers.get_mut(&id) else { return BTreeSet::new() };
        missed.retain(|key| peer.followed.remove(key));
        if missed.is_empty() {
            return missed;
        }
        let wait = match peer.again {
            None => Some(FIRST_AGAIN),
            Some((at, wait)) => (at <= now).then(|| (wait * 2).min(LONGEST_AGAIN)),
        };
        if let Some(wait) = wait {
            peer.again = Some((now + wait, wait));
        }
        missed
    }

    /// Backends of these services are known from now on: the services that were followed, by peer.
    pub(super) fn miss_flows_of(
        &mut self,
        known: &BTreeSet<ServiceKey>,
    ) -> Vec<(PeerId, BTreeSet<ServiceKey>)> {
        let missed = self.peers.iter_mut().map(|(id, peer)| {
            let missed = known.iter().filter(|key| peer.followed.remove(key));
            (*id, missed.copied().collect::<BTreeSet<_>>())
        });
        missed.filter(|(_, missed)| !missed.is_empty()).collect()
    }

    /// Records of a peer were rejected for these reasons; the events of those that are new.
    pub(super) fn rejected(&mut self, id: PeerId, reasons: Vec<String>) -> Vec<EventBody> {
        if reasons.is_empty() {
            return Vec::new();
        }
        let name = self.name(id);
        let Some(peer) = self.peers.get_mut(&id) else { return Vec::new() };
        let mut events = Vec::new();
        for text in reasons {
            if peer.rejected_reasons.len() < MAX_REJECTED_REASONS
                && peer.rejected_reasons.insert(text.clone())
            {
                let message = format!("{name}: {text}");
                events.push(EventBody::new(
                    Kind::PeerRefused,
                    message,
                    "its flows can't be taken over",
                ));
            }
        }
        events
    }
}

/// The services whose records count when this peer sends them.
pub(super) fn counted(
    flow_sources: &BTreeMap<ServiceKey, FlowStateSource>,
    peer: PeerId,
    mismatch: &Mismatch,
) -> BTreeSet<ServiceKey> {
    if mismatch.whole.is_some() {
        return BTreeSet::new();
    }
    let theirs = flow_sources.iter().filter(|(key, source)| {
        (**source == FlowStateSource::Peer(peer) || **source == FlowStateSource::Shared)
            && !mismatch.services.contains_key(key)
    });
    theirs.map(|(key, _)| *key).collect()
}

fn is_active(node_state: &NodeState, router: RouterKey) -> bool {
    node_state.routers.get(&router).is_some_and(|router| router.state == State::Active)
}

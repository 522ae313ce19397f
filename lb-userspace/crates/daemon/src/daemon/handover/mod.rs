//! Handovers that this node begins or takes part in. [`outcome`] holds the outcomes that are waited for.
//!
//! So that no flow is lost, lbd does this in this order: it stops pinning flows; it exports the last
//! records; it orders the virtual routers to yield, so that they don't assert themselves against the peer;
//! it sends the peer the request. The peer answers when it has all flows, and becomes Active; this node
//! receives its advertisement, and takes its addresses off.

mod outcome;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use lb_api::{
    event::{EventBody, Kind},
    requests::{Done, Failover, Terms},
};
use lb_model::{
    desired::ServiceKey,
    plan::Plan,
    refusal::{Refusal, RefusalKind},
    router::{RouterKey, State},
    units::nearest,
};
use lb_plane::DataPlane;
use lb_sync::PeerId;
use lb_vrrp::{Order, Yield};

pub(super) use self::outcome::HandoverMethod;
use self::outcome::{Ending, Handover};
use super::{Daemon, Reply};

/// How long a packet can be on its way through the program, with much to spare.
const UNDERWAY: Duration = Duration::from_millis(1);

/// When the request to a peer that has not taken over the routers that it waits for is repeated.
const GIVE_WAY_AGAIN: Duration = Duration::from_secs(10);

/// The cause of a handover, with the reply that waits for its end.
pub(super) enum Initiator {
    /// `lbctl vrrp failover`.
    Operator(Reply<Done>),
    /// `lbctl node drain`, with the answer to which the outcomes are added.
    Drain(Reply<Done>, Done),
    /// The end of the daemon.
    End,
    /// A peer with a higher priority.
    Higher(String),
}

impl Initiator {
    fn name(&self) -> &str {
        match self {
            Self::Operator(_) => "lbctl vrrp failover",
            Self::Drain(..) => "lbctl node drain",
            Self::End => "lbd ends",
            Self::Higher(why) => why,
        }
    }
}

/// The handover that is under way, the times of earlier ones, and the services with paused pinning.
#[derive(Default)]
pub(super) struct Handovers {
    current: Option<(Handover, Initiator)>,
    /// When routers were handed over, or should have been, to a peer with a higher priority.
    gave_way: BTreeMap<RouterKey, Instant>,
    /// The services of which no flow is pinned, since they are handed over.
    pinning_paused: BTreeSet<ServiceKey>,
}

impl Handovers {
    pub(super) const fn is_under_way(&self) -> bool {
        self.current.is_some()
    }

    /// When the handover that is under way is to be looked at again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Some(self.current.as_ref()?.0.deadline())
    }

    fn current(&mut self) -> Option<&mut Handover> {
        Some(&mut self.current.as_mut()?.0)
    }

    /// Takes the handover that is over, with the outcomes of its routers.
    fn take_ended(&mut self, now: Instant) -> Option<(Vec<Ending>, Initiator)> {
        let endings = self.current()?.ended(now)?;
        Some((endings, self.current.take()?.1))
    }

    /// Leaves the wanted routers that may be handed over now: a request to a peer is repeated after a while only.
    fn may_give_way(&mut self, wanted: &mut BTreeMap<RouterKey, (PeerId, u8)>, now: Instant) {
        self.gave_way.retain(|key, _| wanted.contains_key(key));
        wanted.retain(|key, _| self.gave_way.get(key).is_none_or(|at| *at + GIVE_WAY_AGAIN <= now));
    }
}

/// Routers that go together, and how: those of a sync group, or one.
pub(super) type Unit = (BTreeSet<RouterKey>, HandoverMethod);

impl<D: DataPlane> Daemon<D> {
    /// Hands virtual routers over, and answers when they are with another node.
    pub(super) fn failover(&mut self, which: &Failover, terms: Terms, reply: Reply<Done>) {
        let units = match self.plan_failover(which) {
            Ok(units) => units,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        let lost = self.lost_by(&units);
        if !terms.dry_run && (terms.yes || lost.is_empty()) {
            return self.hand_over(units, Initiator::Operator(reply));
        }
        let keys: Vec<_> = units.iter().flat_map(|(keys, _)| keys).copied().collect();
        let message = format!("{} handed over", self.names(keys));
        let changes = units.iter().map(|unit| self.destination(unit));
        let changes = changes.chain(lost.iter().cloned()).collect();
        let plan = Plan { changes, ..Plan::default() };
        // The client may be gone.
        let _ = reply.send(match terms.dry_run {
            false => Err(Refusal::unconfirmed(lost.join("; "), plan)),
            true => {
                let yes = (!lost.is_empty()).then(|| "it takes --yes".to_owned());
                Ok(Done { message, notes: yes.into_iter().collect(), plan: Some(plan) })
            }
        });
    }

    /// The text of the destination of routers that are handed over.
    pub(super) fn destination(&self, unit: &Unit) -> String {
        let (keys, method) = unit;
        let names = self.names(keys.iter().copied());
        let follows = |id| self.group.as_ref().is_some_and(|group| group.follows(id));
        match method {
            HandoverMethod::Requested(id, peer) if !follows(*id) => {
                format!("{names} goes to {peer}, when it has all flows")
            }
            HandoverMethod::Requested(_, peer) if self.lost_by([unit]).is_empty() => {
                format!("{names} goes to {peer}, which has all flows")
            }
            HandoverMethod::Requested(_, peer) => format!("{names} goes to {peer}"),
            HandoverMethod::Advertised => format!(
                "{names} is given up by an advertisement, to any node that receives it; no peer is \
                 there that could have all flows, so some may break"
            ),
        }
    }

    fn plan_failover(&self, which: &Failover) -> Result<Vec<Unit>, Refusal> {
        if self.handovers.is_under_way() || self.leaving.is_some() {
            let error = "a handover is under way";
            return Err(Refusal::new(RefusalKind::Conflict, error).hint("wait for its end"));
        }
        let mut keys = BTreeSet::new();
        for name in &which.routers {
            let router = self.routers().iter().find(|router| router.name == *name);
            let Some(router) = router else {
                let known = self.routers().iter().map(|router| router.name.as_str());
                let error = match nearest(name, known) {
                    Some(near) => format!("no virtual router {name}; did you mean {near}?"),
                    None => format!("no virtual router {name}"),
                };
                return Err(Refusal::new(RefusalKind::NotFound, error));
            };
            let state = self.vrrp.state(router.key);
            if state != State::Active {
                let error = format!("{name} is not active here: it is in state {state}");
                return Err(Refusal::new(RefusalKind::Conflict, error)
                    .hint("run this on the node that is active; see 'lbctl vrrp status'"));
            }
            keys.insert(router.key);
        }
        if keys.is_empty() {
            keys = self.active_routers();
        }
        if keys.is_empty() {
            let error = "no virtual router is active here";
            return Err(Refusal::new(RefusalKind::Conflict, error)
                .hint("run this on the node that is active; see 'lbctl vrrp status'"));
        }
        Ok(self.units(&keys))
    }

    pub(super) fn active_routers(&self) -> BTreeSet<RouterKey> {
        let all = self.routers().iter().map(|router| router.key);
        all.filter(|key| self.vrrp.state(*key) == State::Active).collect()
    }

    /// The routers with those of their groups, as they go together, and the method of each handover.
    pub(super) fn units(&self, keys: &BTreeSet<RouterKey>) -> Vec<Unit> {
        let mut units: Vec<Unit> = Vec::new();
        for key in keys {
            if units.iter().any(|(unit, _)| unit.contains(key)) {
                continue;
            }
            let unit = self.with_mates(*key);
            let group = self.group.as_ref();
            let services = self.services_of(unit.iter().copied());
            let successor =
                group.and_then(|group| Some((group, group.successor(&unit, &services)?)));
            let method = successor.map_or(HandoverMethod::Advertised, |(group, id)| {
                HandoverMethod::Requested(id, group.name(id))
            });
            units.push((unit, method));
        }
        units
    }

    /// The texts of the flows that break when these are handed over.
    pub(super) fn lost_by<'u>(&self, units: impl IntoIterator<Item = &'u Unit>) -> Vec<String> {
        let Some(group) = &self.group else { return Vec::new() };
        let mut all = Vec::new();
        for (keys, method) in units {
            let HandoverMethod::Requested(id, peer) = method else { continue };
            let services = self.services_of(keys.iter().copied());
            let lost = group.refused_by(*id, &services);
            let named = self.store.desired().services.iter();
            let named = named.filter(|(_, service)| lost.contains(&service.key));
            all.extend(named.map(|(name, _)| {
                format!("the flows of {name} break: {peer} has the service otherwise")
            }));
        }
        all
    }

    /// A router with the others of its sync group.
    fn with_mates(&self, key: RouterKey) -> BTreeSet<RouterKey> {
        let mut unit = BTreeSet::from([key]);
        let Some(router) = self.router(key) else { return unit };
        let groups = &self.store.config().routers.groups;
        let group = groups.iter().find(|group| group.routers.contains(&router.name));
        let mates = group.into_iter().flat_map(|group| &group.routers);
        let mates = mates.filter_map(|name| self.routers().iter().find(|r| r.name == *name));
        unit.extend(mates.map(|router| router.key));
        unit
    }

    /// Their names, for people.
    fn names(&self, keys: impl IntoIterator<Item = RouterKey>) -> String {
        let names: Vec<_> = keys.into_iter().map(|key| self.router_name(key)).collect();
        names.join(", ")
    }

    /// Begins a handover.
    pub(super) fn hand_over(&mut self, units: Vec<Unit>, initiator: Initiator) {
        let requested =
            units.iter().filter(|(_, method)| matches!(method, HandoverMethod::Requested(..)));
        let requested: BTreeSet<RouterKey> =
            requested.flat_map(|(keys, _)| keys).copied().collect();
        if !requested.is_empty() {
            let services = self.services_of(requested);
            self.pause_pinning(services);
        }
        // Flows of UDP services are exported when a sweep finds them, which is each second.
        if let Err(error) = self.engine.survey(self.now()) {
            self.log_failed_exchange(&error);
        }
        self.flush_if_connected();
        for lost in self.lost_by(&units) {
            self.record_event(EventBody::new(Kind::VrrpHandover, lost, initiator.name()));
        }
        for (keys, method) in &units {
            let how = match method {
                HandoverMethod::Requested(..) if matches!(initiator, Initiator::Higher(_)) => {
                    Yield::Outranked
                }
                HandoverMethod::Requested(..) => Yield::Requested,
                HandoverMethod::Advertised => Yield::Advertised,
            };
            // The others of its group go along.
            if let Some(first) = keys.first() {
                self.vrrp.driver.order(Order::Yield(*first, how));
            }
        }
        let routers = units.into_iter().flat_map(|(keys, method)| {
            keys.into_iter().map(move |key| (key, method.clone())).collect::<Vec<_>>()
        });
        let routers = routers.map(|(key, method)| (key, self.router_name(key), method));
        let handover = Handover::new(routers.collect::<Vec<_>>(), Instant::now());
        if let Some(group) = &self.group {
            for (peer, keys) in handover.requests() {
                group.sessions.request_takeover(peer, keys.into_iter().collect());
            }
        }
        self.handovers.current = Some((handover, initiator));
        self.look_at_handover();
    }

    /// Hands over the routers that a peer with a higher priority waits for, so that it takes over when it has all
    /// flows: if it preempted, those would be lost that have begun in the last moment.
    pub(super) fn give_way(&mut self, now: Instant) {
        if self.handovers.is_under_way() || self.leaving.is_some() {
            return;
        }
        let Some(group) = &self.group else { return };
        let mut wanted = group.wanted();
        wanted.retain(|key, _| self.vrrp.state(*key) == State::Active);
        self.handovers.may_give_way(&mut wanted, now);
        if wanted.is_empty() {
            return;
        }
        for status in self.vrrp.driver.status() {
            wanted.retain(|key, (_, theirs)| *key != status.key || *theirs > status.priority);
        }
        let (keys, peers): (BTreeSet<_>, BTreeSet<_>) =
            wanted.into_iter().map(|(key, (peer, _))| (key, peer)).unzip();
        let mut units = self.units(&keys);
        units.retain(|(_, method)| matches!(method, HandoverMethod::Requested(peer, _) if peers.contains(peer)));
        let Some((_, HandoverMethod::Requested(_, peer))) = units.first() else { return };
        let why = format!("{peer} has the higher priority");
        self.handovers
            .gave_way
            .extend(units.iter().flat_map(|(keys, _)| keys).map(|key| (*key, now)));
        self.hand_over(units, Initiator::Higher(why));
    }

    /// Has no flow of these services pinned.
    fn pause_pinning(&mut self, services: BTreeSet<ServiceKey>) {
        if services == self.handovers.pinning_paused {
            return;
        }
        if let Err(error) = self.engine.pause_pinning(&services) {
            // Flows that are pinned now may be lost to the other node; nothing else is.
            tracing::warn!("pins are made during a handover: {error:#}");
        }
        if !services.is_subset(&self.handovers.pinning_paused) {
            // Packets that have met the service as it was are still on their way through the program.
            thread::sleep(UNDERWAY);
        }
        self.handovers.pinning_paused = services;
    }

    /// The yield of a router has ended.
    pub(super) fn yielded(&mut self, router: RouterKey, by: Result<IpAddr, String>) {
        if let Some(handover) = self.handovers.current() {
            handover.yielded(router, by, Instant::now());
        }
        self.look_at_handover();
    }

    /// A router has another state.
    pub(super) fn moved(&mut self, router: RouterKey, to: State) {
        if let Some(handover) = self.handovers.current() {
            handover.moved(router, to, Instant::now());
        }
        let awaited = self.handovers.current().is_some_and(|handover| handover.awaits(router));
        if to == State::Active && !awaited {
            self.resume_pinning([router]);
        }
        self.look_at_handover();
    }

    /// Flows of services that no router holds any more are pinned again: no later event would resume that.
    pub(super) fn resume_stray_pinning(&mut self) {
        let theirs = self.services_of(self.routers().iter().map(|router| router.key));
        self.pause_pinning(self.handovers.pinning_paused.intersection(&theirs).copied().collect());
    }

    /// Flows of these routers' services may be pinned again.
    fn resume_pinning(&mut self, routers: impl IntoIterator<Item = RouterKey>) {
        let theirs = self.services_of(routers);
        let paused = self.handovers.pinning_paused.difference(&theirs).copied().collect();
        self.pause_pinning(paused);
    }

    /// A peer has answered whether it takes over.
    pub(super) fn answered(&mut self, peer: PeerId, answer: &Result<(), String>) {
        if let Some(handover) = self.handovers.current() {
            handover.answered(peer, answer, Instant::now());
        }
    }

    /// Ends the handover when it is over.
    pub(super) fn look_at_handover(&mut self) {
        let Some((endings, initiator)) = self.handovers.take_ended(Instant::now()) else { return };
        // A peer that still works on the request must not take over when this node has dropped it.
        let stay = endings.iter().filter(|ending| ending.outcome.is_err());
        let peers: BTreeSet<PeerId> = stay.filter_map(|ending| ending.peer).collect();
        if let Some(group) = &self.group {
            peers.into_iter().for_each(|peer| group.sessions.withdraw(peer));
        }
        for Ending { name, outcome, .. } in &endings {
            let text = match outcome {
                Ok(text) => format!("{name} is handed over: {text}"),
                Err(text) => format!("{name} is not handed over, and stays: {text}"),
            };
            self.record_event(EventBody::new(Kind::VrrpHandover, text, initiator.name()));
        }
        // One that is with another node gets no new flows here, and is not pinned before it is back.
        let stay = endings.iter().filter(|ending| ending.outcome.is_err());
        self.resume_pinning(stay.map(|ending| ending.router).collect::<Vec<_>>());
        let ends = matches!(initiator, Initiator::End);
        answer(&endings, initiator);
        self.sync_roles();
        if ends {
            self.go_on_leaving();
        } else if self.leaving.is_some() {
            self.hand_all_over();
        }
    }

    /// A peer requests this node to be Active.
    pub(super) fn take_over(&mut self, peer: PeerId, routers: &[RouterKey]) {
        let refusals = routers.iter().filter_map(|key| self.why_not(*key).err());
        let refusals: BTreeMap<String, ()> = refusals.map(|why| (why, ())).collect();
        let answer = match refusals.is_empty() {
            true => Ok(()),
            false => Err(refusals.into_keys().collect::<Vec<_>>().join("; ")),
        };
        let Some(group) = &self.group else { return };
        let (peer_name, names) = (group.name(peer), self.names(routers.iter().copied()));
        let event = match &answer {
            Ok(()) => EventBody::new(
                Kind::VrrpHandover,
                format!("this node takes {names} over from {peer_name}"),
                format!("{peer_name} has requested it"),
            ),
            Err(why) => EventBody::new(
                Kind::VrrpHandover,
                format!("this node does not take {names} over from {peer_name}"),
                why.as_str(),
            ),
        };
        if answer.is_ok() {
            let mut taken = BTreeSet::new();
            for key in routers {
                if !taken.contains(key) {
                    self.vrrp.driver.order(Order::Take(*key));
                    taken.extend(self.with_mates(*key));
                }
            }
        }
        group.sessions.answer(peer, answer);
        self.record_event(event);
    }

    /// Why this node can't take a router over.
    fn why_not(&self, key: RouterKey) -> Result<(), String> {
        let Some(router) = self.router(key) else {
            return Err(format!("{key} is no virtual router there"));
        };
        let name = &router.name;
        if self.leaving.is_some() || self.store.node().draining_since.is_some() {
            return Err("the node is draining itself".into());
        }
        match self.vrrp.state(key) {
            State::Fault => return Err(format!("{name} is in fault there")),
            State::Initialize => return Err(format!("{name} does not take part there yet")),
            State::Backup | State::Active => {}
        }
        let services = self.services_of([key]);
        let lacks = self.group.as_ref().is_some_and(|group| group.lacks_flows_of(key, &services));
        match lacks {
            true => Err(format!("not all flows of {name} are known there")),
            false => Ok(()),
        }
    }
}

/// Sends the outcome of a handover to the client that has requested it.
fn answer(endings: &[Ending], initiator: Initiator) {
    let mut gone = Vec::new();
    let mut stay = Vec::new();
    for Ending { name, outcome, .. } in endings {
        match outcome {
            Ok(text) => gone.push((name.as_str(), format!("{name}: {text}"))),
            Err(text) => stay.push(format!("{name} stays here: {text}")),
        }
    }
    let notes = gone.iter().map(|(_, text)| text.clone());
    // The client may be gone.
    match initiator {
        Initiator::Operator(reply) if stay.is_empty() => {
            let names: Vec<_> = gone.iter().map(|(name, _)| *name).collect();
            let message = format!("{} handed over", names.join(", "));
            let _ = reply.send(Ok(Done { message, notes: notes.collect(), plan: None }));
        }
        Initiator::Operator(reply) => {
            let all: Vec<_> = stay.into_iter().chain(notes).collect();
            let refusal = Refusal::new(RefusalKind::Failed, all.join("; "));
            let _ =
                reply
                    .send(Err(refusal
                        .hint("nothing was interrupted; see 'lbctl vrrp status' on both nodes")));
        }
        Initiator::Drain(reply, mut done) => {
            done.notes.splice(0..0, notes.chain(stay));
            let _ = reply.send(Ok(done));
        }
        Initiator::End | Initiator::Higher(_) => {}
    }
}

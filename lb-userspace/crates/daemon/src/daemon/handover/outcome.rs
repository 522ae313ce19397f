//! A handover: the requests to peers, their outcomes, and the routers that are waited for.
//!
//! lbd requests a peer that has all flows to take over; until an advertisement of that peer arrives, this
//! node goes on as before. A node without such a peer sends an advertisement that it leaves, and goes on as
//! well until another router advertises. So a node holds the addresses even if a step fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_model::{
    router::{RouterKey, State},
    units::format_duration,
};
use lb_sync::PeerId;

/// How long a handover may take: a yield lasts 5 s at most.
pub(in crate::daemon) const PATIENCE: Duration = Duration::from_secs(6);
/// How long the end of a yield is waited for once the router has left its state.
const TAIL: Duration = Duration::from_millis(200);

/// How a router is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum HandoverMethod {
    /// This peer, of this name, is requested to take it.
    Requested(PeerId, String),
    /// By an advertisement, to any node that receives it.
    Advertised,
}

/// A router whose end of the handover is awaited.
#[derive(Clone, Debug)]
struct Wait {
    name: String,
    method: HandoverMethod,
    /// The peer's answer.
    answer: Option<Result<(), String>>,
    /// Whether it has left its state already.
    left: bool,
}

impl Wait {
    fn ends(self, router: RouterKey, outcome: Result<String, String>) -> Ending {
        let peer = match self.method {
            HandoverMethod::Requested(peer, _) => Some(peer),
            HandoverMethod::Advertised => None,
        };
        Ending { router, name: self.name, peer, outcome }
    }
}

/// The outcome of a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Ending {
    pub(in crate::daemon) router: RouterKey,
    pub(in crate::daemon) name: String,
    /// The peer that was requested to take it.
    pub(in crate::daemon) peer: Option<PeerId>,
    /// A text: the node that has it, or why it stays.
    pub(in crate::daemon) outcome: Result<String, String>,
}

/// Routers on their way to another node.
#[derive(Debug)]
pub(in crate::daemon) struct Handover {
    started: Instant,
    deadline: Instant,
    waits: BTreeMap<RouterKey, Wait>,
    endings: Vec<Ending>,
}

impl Handover {
    pub(in crate::daemon) fn new(
        routers: impl IntoIterator<Item = (RouterKey, String, HandoverMethod)>,
        now: Instant,
    ) -> Self {
        let wait = |(key, name, method)| (key, Wait { name, method, answer: None, left: false });
        Self {
            started: now,
            deadline: now + PATIENCE,
            waits: routers.into_iter().map(wait).collect(),
            endings: Vec::new(),
        }
    }

    /// Until when the remaining routers are waited for.
    pub(in crate::daemon) const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The peers that are requested to take over, with the routers.
    pub(in crate::daemon) fn requests(&self) -> BTreeMap<PeerId, BTreeSet<RouterKey>> {
        let mut requests: BTreeMap<PeerId, BTreeSet<RouterKey>> = BTreeMap::new();
        for (key, wait) in &self.waits {
            if let HandoverMethod::Requested(peer, _) = &wait.method {
                requests.entry(*peer).or_default().insert(*key);
            }
        }
        requests
    }

    /// Whether this router is on its way.
    pub(in crate::daemon) fn awaits(&self, router: RouterKey) -> bool {
        self.waits.contains_key(&router)
    }

    /// A peer has answered, or is gone.
    ///
    /// A peer that refuses won't advertise, even if the yield still waits.
    pub(in crate::daemon) fn answered(
        &mut self,
        peer: PeerId,
        answer: &Result<(), String>,
        now: Instant,
    ) {
        for wait in self.waits.values_mut() {
            if matches!(&wait.method, HandoverMethod::Requested(requested, _) if *requested == peer)
            {
                wait.answer.get_or_insert_with(|| answer.clone());
            }
        }
        if self.waits.values().all(|wait| matches!(wait.answer, Some(Err(_)))) {
            self.deadline = self.deadline.min(now + TAIL);
        }
    }

    /// The yield of a router has ended.
    pub(in crate::daemon) fn yielded(
        &mut self,
        router: RouterKey,
        by: Result<IpAddr, String>,
        now: Instant,
    ) {
        let Some(wait) = self.waits.remove(&router) else { return };
        let after = format_duration(now.saturating_duration_since(self.started));
        let outcome = match (by, &wait.method, &wait.answer) {
            (Ok(by), HandoverMethod::Requested(_, peer), _) => {
                Ok(format!("{peer} ({by}) has it, after {after}"))
            }
            (Ok(by), HandoverMethod::Advertised, _) => Ok(format!("{by} has it, after {after}")),
            (Err(_), HandoverMethod::Requested(_, peer), Some(Err(why))) => {
                Err(format!("{peer} does not take it: {why}"))
            }
            (Err(why), HandoverMethod::Requested(_, peer), Some(Ok(()))) => {
                Err(format!("{peer} takes it, but its advertisement was not received: {why}"))
            }
            (Err(why), HandoverMethod::Requested(_, peer), None) => {
                Err(format!("{peer} has not answered: {why}"))
            }
            (Err(why), HandoverMethod::Advertised, _) => Err(why),
        };
        self.endings.push(wait.ends(router, outcome));
    }

    /// A router has another state.
    pub(in crate::daemon) fn moved(&mut self, router: RouterKey, to: State, now: Instant) {
        if let Some(wait) = self.waits.get_mut(&router)
            && to != State::Active
        {
            wait.left = true;
        }
        if self.waits.values().all(|wait| wait.left) {
            self.deadline = self.deadline.min(now + TAIL);
        }
    }

    /// The outcomes of all, when nothing is awaited any more, or for too long.
    pub(in crate::daemon) fn ended(&mut self, now: Instant) -> Option<Vec<Ending>> {
        if !self.waits.is_empty() && now < self.deadline {
            return None;
        }
        for (router, wait) in std::mem::take(&mut self.waits) {
            let outcome = match (wait.left, &wait.method, &wait.answer) {
                (true, ..) => Ok("another node has it".into()),
                (false, HandoverMethod::Requested(_, peer), Some(Err(why))) => {
                    Err(format!("{peer} does not take it: {why}"))
                }
                (false, ..) => {
                    Err(format!("nothing was reported for {}", format_duration(PATIENCE)))
                }
            };
            self.endings.push(wait.ends(router, outcome));
        }
        Some(std::mem::take(&mut self.endings))
    }
}

#[cfg(test)]
mod tests {
    use lb_model::router::Family;

    use super::*;

    const PEER: PeerId = PeerId(0);
    const BY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));

    fn key(vrid: u8) -> RouterKey {
        RouterKey { family: Family::V4, vrid: vrid.try_into().expect("not zero") }
    }

    fn outcomes(endings: Option<Vec<Ending>>) -> Vec<Result<String, String>> {
        endings.expect("it has ended").into_iter().map(|ending| ending.outcome).collect()
    }

    fn one(method: HandoverMethod, now: Instant) -> Handover {
        Handover::new([(key(1), "main".into(), method)], now)
    }

    #[test]
    fn what_comes_of_a_router_is_told_in_words() {
        let requested = || HandoverMethod::Requested(PEER, "lb2".into());
        let nobody = || Err("nobody advertised".to_owned());
        let table = [
            (requested(), Some(Ok(())), Ok(BY), Ok("lb2 (10.0.0.3) has it, after 3ms")),
            // The advertisement may be here before the answer.
            (requested(), None, Ok(BY), Ok("lb2 (10.0.0.3) has it, after 3ms")),
            (
                requested(),
                Some(Err("it drains".to_owned())),
                nobody(),
                Err("lb2 does not take it: it drains"),
            ),
            (
                requested(),
                Some(Ok(())),
                nobody(),
                Err("lb2 takes it, but its advertisement was not received: nobody advertised"),
            ),
            (requested(), None, nobody(), Err("lb2 has not answered: nobody advertised")),
            (HandoverMethod::Advertised, None, Ok(BY), Ok("10.0.0.3 has it, after 3ms")),
            (HandoverMethod::Advertised, None, nobody(), Err("nobody advertised")),
        ];
        for (method, answer, by, expected) in table {
            let start = Instant::now();
            let mut handover = one(method, start);
            if let Some(answer) = &answer {
                handover.answered(PEER, answer, start);
                handover.answered(PEER, &Err("too late".into()), start);
            }
            assert_eq!(handover.ended(start), None);
            handover.yielded(key(1), by, start + Duration::from_millis(3));
            let outcomes = outcomes(handover.ended(start));
            assert_eq!(outcomes, [expected.map(str::to_owned).map_err(str::to_owned)]);
        }
    }

    #[test]
    fn it_ends_with_its_last_router() {
        let start = Instant::now();
        let routers = [
            (key(1), "main".to_owned(), HandoverMethod::Advertised),
            (key(2), "other".to_owned(), HandoverMethod::Requested(PEER, "lb2".into())),
        ];
        let mut handover = Handover::new(routers, start);
        assert_eq!(handover.requests(), [(PEER, [key(2)].into())].into());
        handover.yielded(key(1), Ok(BY), start);
        // Of one that it knows nothing of.
        handover.yielded(key(3), Ok(BY), start);
        assert_eq!(handover.ended(start), None);
        assert!(handover.awaits(key(2)) && !handover.awaits(key(1)));
        handover.yielded(key(2), Ok(BY), start);
        assert_eq!(handover.ended(start).map(|endings| endings.len()), Some(2));
    }

    #[test]
    fn a_router_that_is_heard_no_more_of_stays_after_a_while() {
        let start = Instant::now();
        let mut handover = one(HandoverMethod::Advertised, start);
        assert_eq!(handover.ended(start + PATIENCE - Duration::from_millis(1)), None);
        let outcomes = outcomes(handover.ended(start + PATIENCE));
        assert_eq!(outcomes, [Err("nothing was reported for 6s".to_owned())]);
    }

    #[test]
    fn a_refusal_is_not_waited_upon() {
        let start = Instant::now();
        let mut handover = one(HandoverMethod::Requested(PEER, "lb2".into()), start);
        handover.answered(PEER, &Err("it drains".into()), start);
        assert_eq!(handover.deadline(), start + TAIL);
        let endings = handover.ended(start + TAIL).expect("it has ended");
        assert_eq!(endings[0].peer, Some(PEER));
        assert_eq!(endings[0].outcome, Err("lb2 does not take it: it drains".into()));
    }

    #[test]
    fn a_router_that_has_left_is_not_awaited_for_long() {
        let start = Instant::now();
        let mut handover = one(HandoverMethod::Advertised, start);
        handover.moved(key(1), State::Active, start);
        assert_eq!(handover.deadline(), start + PATIENCE);
        handover.moved(key(1), State::Backup, start);
        assert_eq!(handover.deadline(), start + TAIL);
        let outcomes = outcomes(handover.ended(start + TAIL));
        assert_eq!(outcomes, [Ok("another node has it".to_owned())]);
    }
}

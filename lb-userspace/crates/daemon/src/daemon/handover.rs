//! A handover: what was asked of whom, what has come of it, and what remains to be waited for.
//!
//! A peer that has all flows is asked to take over; until it is heard to be Active, this node goes on
//! as before. Who has no such peer tells by an advertisement that it leaves, and goes on as well until
//! another router is heard. So whatever goes wrong, somebody holds the addresses.

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
pub(super) const PATIENCE: Duration = Duration::from_secs(6);
/// How long the end of a yield is waited for once the router has left its state.
const TAIL: Duration = Duration::from_millis(200);

/// How a router is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// This peer is asked to take it, which is called so.
    Asked(PeerId, String),
    /// By an advertisement, to whoever hears it.
    Told,
}

/// A router whose end of the handover is awaited.
#[derive(Clone, Debug)]
struct Wait {
    name: String,
    way: Way,
    /// What the peer has answered.
    answer: Option<Result<(), String>>,
    /// Whether it has left its state already.
    left: bool,
}

impl Wait {
    fn ends(self, router: RouterKey, outcome: Result<String, String>) -> Ending {
        let asked = match self.way {
            Way::Asked(peer, _) => Some(peer),
            Way::Told => None,
        };
        Ending { router, name: self.name, asked, outcome }
    }
}

/// What came of a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) router: RouterKey,
    /// Its name.
    pub(super) name: String,
    /// Who was asked to take it.
    pub(super) asked: Option<PeerId>,
    /// In words: who has it, or why it stays.
    pub(super) outcome: Result<String, String>,
}

/// Routers on their way to another node.
#[derive(Debug)]
pub(super) struct Handover {
    started: Instant,
    deadline: Instant,
    waits: BTreeMap<RouterKey, Wait>,
    endings: Vec<Ending>,
}

impl Handover {
    pub(super) fn new(
        routers: impl IntoIterator<Item = (RouterKey, String, Way)>,
        now: Instant,
    ) -> Self {
        let wait = |(key, name, way)| (key, Wait { name, way, answer: None, left: false });
        Self {
            started: now,
            deadline: now + PATIENCE,
            waits: routers.into_iter().map(wait).collect(),
            endings: Vec::new(),
        }
    }

    /// Until when it is waited for what remains.
    pub(super) const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The peers that are asked, with the routers.
    pub(super) fn asked(&self) -> BTreeMap<PeerId, BTreeSet<RouterKey>> {
        let mut asked: BTreeMap<PeerId, BTreeSet<RouterKey>> = BTreeMap::new();
        for (key, wait) in &self.waits {
            if let Way::Asked(peer, _) = &wait.way {
                asked.entry(*peer).or_default().insert(*key);
            }
        }
        asked
    }

    /// Whether this router is on its way.
    pub(super) fn awaits(&self, router: RouterKey) -> bool {
        self.waits.contains_key(&router)
    }

    /// A peer has answered, or is gone.
    ///
    /// One that refuses won't be heard, whatever the yield still waits for.
    pub(super) fn answered(&mut self, peer: PeerId, answer: &Result<(), String>, now: Instant) {
        for wait in self.waits.values_mut() {
            if matches!(&wait.way, Way::Asked(asked, _) if *asked == peer) {
                wait.answer.get_or_insert_with(|| answer.clone());
            }
        }
        if self.waits.values().all(|wait| matches!(wait.answer, Some(Err(_)))) {
            self.deadline = self.deadline.min(now + TAIL);
        }
    }

    /// The yield of a router has ended.
    pub(super) fn yielded(&mut self, router: RouterKey, by: Result<IpAddr, String>, now: Instant) {
        let Some(wait) = self.waits.remove(&router) else { return };
        let after = format_duration(now.saturating_duration_since(self.started));
        let outcome = match (by, &wait.way, &wait.answer) {
            (Ok(by), Way::Asked(_, peer), _) => Ok(format!("{peer} ({by}) has it, after {after}")),
            (Ok(by), Way::Told, _) => Ok(format!("{by} has it, after {after}")),
            (Err(_), Way::Asked(_, peer), Some(Err(why))) => {
                Err(format!("{peer} does not take it: {why}"))
            }
            (Err(why), Way::Asked(_, peer), Some(Ok(()))) => {
                Err(format!("{peer} takes it, and is not heard: {why}"))
            }
            (Err(why), Way::Asked(_, peer), None) => Err(format!("{peer} has not answered: {why}")),
            (Err(why), Way::Told, _) => Err(why),
        };
        self.endings.push(wait.ends(router, outcome));
    }

    /// A router has another state.
    pub(super) fn moved(&mut self, router: RouterKey, to: State, now: Instant) {
        if let Some(wait) = self.waits.get_mut(&router)
            && to != State::Active
        {
            wait.left = true;
        }
        if self.waits.values().all(|wait| wait.left) {
            self.deadline = self.deadline.min(now + TAIL);
        }
    }

    /// What came of all, when nothing is awaited any more, or for too long.
    pub(super) fn ended(&mut self, now: Instant) -> Option<Vec<Ending>> {
        if !self.waits.is_empty() && now < self.deadline {
            return None;
        }
        for (router, wait) in std::mem::take(&mut self.waits) {
            let outcome = match (wait.left, &wait.way, &wait.answer) {
                (true, ..) => Ok("another node has it".into()),
                (false, Way::Asked(_, peer), Some(Err(why))) => {
                    Err(format!("{peer} does not take it: {why}"))
                }
                (false, ..) => Err(format!("nothing was heard for {}", format_duration(PATIENCE))),
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

    fn one(way: Way, now: Instant) -> Handover {
        Handover::new([(key(1), "main".into(), way)], now)
    }

    #[test]
    fn what_comes_of_a_router_is_told_in_words() {
        let asked = || Way::Asked(PEER, "lb2".into());
        let nobody = || Err("nobody was heard".to_owned());
        let table = [
            (asked(), Some(Ok(())), Ok(BY), Ok("lb2 (10.0.0.3) has it, after 3ms")),
            // The advertisement may be here before the answer.
            (asked(), None, Ok(BY), Ok("lb2 (10.0.0.3) has it, after 3ms")),
            (
                asked(),
                Some(Err("it drains".to_owned())),
                nobody(),
                Err("lb2 does not take it: it drains"),
            ),
            (
                asked(),
                Some(Ok(())),
                nobody(),
                Err("lb2 takes it, and is not heard: nobody was heard"),
            ),
            (asked(), None, nobody(), Err("lb2 has not answered: nobody was heard")),
            (Way::Told, None, Ok(BY), Ok("10.0.0.3 has it, after 3ms")),
            (Way::Told, None, nobody(), Err("nobody was heard")),
        ];
        for (way, answer, by, expected) in table {
            let start = Instant::now();
            let mut handover = one(way, start);
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
            (key(1), "main".to_owned(), Way::Told),
            (key(2), "other".to_owned(), Way::Asked(PEER, "lb2".into())),
        ];
        let mut handover = Handover::new(routers, start);
        assert_eq!(handover.asked(), [(PEER, [key(2)].into())].into());
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
        let mut handover = one(Way::Told, start);
        assert_eq!(handover.ended(start + PATIENCE - Duration::from_millis(1)), None);
        let outcomes = outcomes(handover.ended(start + PATIENCE));
        assert_eq!(outcomes, [Err("nothing was heard for 6s".to_owned())]);
    }

    #[test]
    fn a_refusal_is_not_waited_upon() {
        let start = Instant::now();
        let mut handover = one(Way::Asked(PEER, "lb2".into()), start);
        handover.answered(PEER, &Err("it drains".into()), start);
        assert_eq!(handover.deadline(), start + TAIL);
        let endings = handover.ended(start + TAIL).expect("it has ended");
        assert_eq!(endings[0].asked, Some(PEER));
        assert_eq!(endings[0].outcome, Err("lb2 does not take it: it drains".into()));
    }

    #[test]
    fn a_router_that_has_left_is_not_awaited_for_long() {
        let start = Instant::now();
        let mut handover = one(Way::Told, start);
        handover.moved(key(1), State::Active, start);
        assert_eq!(handover.deadline(), start + PATIENCE);
        handover.moved(key(1), State::Backup, start);
        assert_eq!(handover.deadline(), start + TAIL);
        let outcomes = outcomes(handover.ended(start + TAIL));
        assert_eq!(outcomes, [Ok("another node has it".to_owned())]);
    }
}

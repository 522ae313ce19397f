//! Whose history of each service counts, as a pure function of who is Active.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_control::engine::Role;
use lb_model::{
    desired::{Desired, ServiceKey},
    router::{Router, RouterKey, State},
};
use lb_sync::PeerId;

/// Whose history of a service counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// This node's.
    Own,
    /// This peer's, which is Active.
    Peers(PeerId),
    /// That of whoever was Active last, as it was learnt: nobody is known who is now. Nothing of it
    /// ends by this node's own silence, since it sees none of the packets.
    Kept,
    /// Every node's.
    Shared,
}

impl Whose {
    pub(super) const fn role(self) -> Role {
        match self {
            Self::Own => Role::Own,
            Self::Peers(_) | Self::Kept => Role::Follows,
            Self::Shared => Role::Shared,
        }
    }
}

/// Whose history of each service counts, as it was assigned last.
#[derive(Debug, Default)]
pub(super) struct Roles {
    whose: BTreeMap<ServiceKey, Whose>,
    /// The services whose packets go to another node, which sends none of their flows.
    unsynced: BTreeSet<ServiceKey>,
}

impl Roles {
    pub(super) const fn whose(&self) -> &BTreeMap<ServiceKey, Whose> {
        &self.whose
    }

    /// Whether a peer is followed: its flow records count while it is.
    pub(super) fn follows(&self) -> bool {
        self.whose.values().any(|whose| matches!(whose, Whose::Peers(_) | Whose::Kept))
    }

    /// The services that are this node's own now and not any more with these roles.
    pub(super) fn left_with(&self, whose: &BTreeMap<ServiceKey, Whose>) -> BTreeSet<ServiceKey> {
        let left = whose.iter().filter(|(_, whose)| **whose != Whose::Own).map(|(key, _)| *key);
        left.filter(|key| self.whose.get(key) == Some(&Whose::Own)).collect()
    }

    pub(super) fn set_whose(&mut self, whose: BTreeMap<ServiceKey, Whose>) {
        self.whose = whose;
    }

    /// Whether that changes anything.
    pub(super) fn set_unsynced(&mut self, unsynced: &BTreeSet<ServiceKey>) -> bool {
        let changes = self.unsynced != *unsynced;
        if changes {
            self.unsynced.clone_from(unsynced);
        }
        changes
    }
}

/// A peer that is there, as far as it matters here.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) peer: PeerId,
    /// Routers that it is Active for, and how it came to be.
    pub(super) active: BTreeMap<RouterKey, Tenure>,
    /// Services that it can't be followed in, since it has them otherwise.
    pub(super) refused: BTreeSet<ServiceKey>,
}

/// How a peer is Active, as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tenure {
    /// Where its advertisements come from.
    pub(super) source: Option<IpAddr>,
    /// It was learnt as the so many-th: of two, the later one has taken over.
    pub(super) turn: u64,
    pub(super) priority: u8,
}

/// Who is Active for what.
pub(super) struct Scene<'a> {
    pub(super) desired: &'a Desired,
    pub(super) routers: &'a [Router],
    /// How this node's routers stand.
    pub(super) states: &'a BTreeMap<RouterKey, State>,
    /// Who was heard to be Active for a router.
    pub(super) heard: &'a BTreeMap<RouterKey, IpAddr>,
    /// Whether it has peers at all.
    pub(super) has_peers: bool,
    /// The peers that are there, and are no strangers.
    pub(super) candidates: &'a [Candidate],
}

impl Scene<'_> {
    /// Whose history counts, for each service.
    ///
    /// A service without a virtual router is served by all nodes at once, as behind ECMP. A service
    /// with one follows the Active node. While that is nobody who is known, what was learnt so far is
    /// kept. A node without peers goes by what it sees, and so does one whose Active peer has the
    /// service otherwise: nobody would ever tell it what ends.
    pub(super) fn whose(&self) -> BTreeMap<ServiceKey, Whose> {
        let holders = holders(self.routers);
        let keys = self.desired.services.values().map(|service| service.key);
        keys.map(|key| (key, self.whose_is(key, holders.get(&key.vip).copied()))).collect()
    }

    /// The services whose packets go to another node, as far as this one knows, and of whose flows it
    /// learns nothing: it goes by what it sees, and sees none.
    pub(super) fn unsynced(&self, whose: &BTreeMap<ServiceKey, Whose>) -> BTreeSet<ServiceKey> {
        let holders = holders(self.routers);
        let is_active = |router| self.states.get(router) == Some(&State::Active);
        let is_elsewhere =
            |key: &ServiceKey| holders.get(&key.vip).is_some_and(|router| !is_active(router));
        let own = whose.iter().filter(|(_, whose)| **whose == Whose::Own).map(|(key, _)| *key);
        own.filter(is_elsewhere).collect()
    }

    fn whose_is(&self, service: ServiceKey, router: Option<RouterKey>) -> Whose {
        let Some(router) = router else {
            return if self.has_peers { Whose::Shared } else { Whose::Own };
        };
        if self.states.get(&router) == Some(&State::Active) {
            return Whose::Own;
        }
        if !self.has_peers {
            return Whose::Own;
        }
        let active = self.candidates.iter().filter(|peer| peer.active.contains_key(&router));
        let (refused, active): (Vec<_>, Vec<_>) =
            active.partition(|peer| peer.refused.contains(&service));
        let heard = self.heard.get(&router);
        // There may be two for a moment, or one that is dead and not missed yet: it is the one whose
        // advertisements come, or else the one that has taken over from the other.
        let leader = active.into_iter().max_by_key(|peer| {
            let tenure = peer.active.get(&router);
            let is_heard = heard.is_some() && tenure.and_then(|t| t.source).as_ref() == heard;
            let (turn, priority) = tenure.map_or((0, 0), |t| (t.turn, t.priority));
            (is_heard, turn, priority, std::cmp::Reverse(peer.peer))
        });
        match leader {
            Some(leader) => Whose::Peers(leader.peer),
            None if refused.is_empty() => Whose::Kept,
            None => Whose::Own,
        }
    }
}

/// What a peer that is there tells of a router.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Where its advertisements come from.
    pub(super) source: Option<IpAddr>,
    pub(super) tells: Tells,
}

/// Whether a peer is Active for a router, and what of its flows is known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tells {
    /// It has said nothing of itself yet.
    Nothing,
    /// It is not.
    NotActive,
    /// It is, and all of its flows that can be taken are known, or not.
    Active { all: bool },
}

/// Whether a router that takes over from `heard` may break flows, since those of the Active node are
/// not known here. It is asked before anybody is heard, too, and the answer must hold when somebody
/// is: then there is no time to ask again. It keeps a router from nothing while nobody is heard.
pub(super) fn is_unsynced(heard: Option<IpAddr>, known: &[Known], misses_some: bool) -> bool {
    let lacks =
        |known: &Known| matches!(known.tells, Tells::Nothing | Tells::Active { all: false });
    if known.iter().any(lacks) {
        return true;
    }
    let has = |known: &Known| matches!(known.tells, Tells::Active { all: true });
    match heard {
        None => !known.iter().any(has),
        Some(heard) => match known.iter().find(|known| known.source == Some(heard)) {
            // One that does not say yet that it is Active has not told of its flows.
            Some(known) => !has(known),
            // It is none of the peers that are there: one that is not, or one that tells nothing ever.
            None => misses_some,
        },
    }
}

/// The router of each virtual address.
pub(super) fn holders(routers: &[Router]) -> BTreeMap<IpAddr, RouterKey> {
    let pairs = routers
        .iter()
        .flat_map(|router| router.addresses.iter().map(|vip| (vip.address, router.key)));
    pairs.collect()
}

/// The services of some routers.
pub(super) fn services_of(
    desired: &Desired,
    routers: &[Router],
    these: &BTreeSet<RouterKey>,
) -> BTreeSet<ServiceKey> {
    let holders = holders(routers);
    let keys = desired.services.values().map(|service| service.key);
    keys.filter(|key| holders.get(&key.vip).is_some_and(|router| these.contains(router))).collect()
}

#[cfg(test)]
mod tests {
    use lb_model::desired::{Mode, Service};

    use super::*;

    const A: PeerId = PeerId(0);
    const B: PeerId = PeerId(1);

    fn routers() -> Vec<Router> {
        let text = "interfaces = [\"eth0\"]\n[[virtual_router]]\nname = \"main\"\ninterface = \"eth0\"\nvrid = 51\naddresses = [\"10.0.0.100\"]";
        lb_config::Config::parse(text).expect("it is valid").routers.routers
    }

    fn peer(peer: PeerId, priority: Option<u8>, refused: bool) -> Candidate {
        let router = routers()[0].key;
        let source = Some(address(peer));
        let tenure = |priority| Tenure { source, turn: 1, priority };
        let active = priority.map(|priority| (router, tenure(priority))).into_iter().collect();
        let refused = if refused { [web().key].into() } else { BTreeSet::new() };
        Candidate { peer, active, refused }
    }

    fn address(peer: PeerId) -> IpAddr {
        IpAddr::from([10, 0, 0, 3 + peer.0])
    }

    fn web() -> lb_model::desired::Service {
        Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr)
    }

    #[test]
    fn history_is_the_active_node_s() {
        use State::{Active, Backup, Fault, Initialize};
        let table = [
            // This node, its peers, and whose history counts.
            (Some(Active), vec![], Whose::Own),
            (Some(Backup), vec![], Whose::Kept),
            (Some(Fault), vec![], Whose::Kept),
            (None, vec![], Whose::Kept),
            (Some(Backup), vec![peer(A, None, false)], Whose::Kept),
            (Some(Backup), vec![peer(A, Some(100), false)], Whose::Peers(A)),
            (Some(Fault), vec![peer(A, Some(100), false)], Whose::Peers(A)),
            (Some(Initialize), vec![peer(A, Some(100), false)], Whose::Peers(A)),
            (None, vec![peer(A, Some(100), false)], Whose::Peers(A)),
            // Both say that they are Active, as for a moment in a takeover.
            (Some(Active), vec![peer(A, Some(100), false)], Whose::Own),
            (
                Some(Backup),
                vec![peer(A, Some(100), false), peer(B, Some(101), false)],
                Whose::Peers(B),
            ),
            (
                Some(Backup),
                vec![peer(A, Some(100), false), peer(B, Some(100), false)],
                Whose::Peers(A),
            ),
            // Who has the service otherwise is not followed.
            (Some(Backup), vec![peer(A, Some(200), true)], Whose::Own),
            (
                Some(Backup),
                vec![peer(A, Some(200), true), peer(B, Some(1), false)],
                Whose::Peers(B),
            ),
        ];
        let (routers, desired) = (routers(), Desired { services: [("web".into(), web())].into() });
        for (state, candidates, expected) in table {
            let states = state.map(|state| (routers[0].key, state)).into_iter().collect();
            let scene = Scene {
                desired: &desired,
                routers: &routers,
                states: &states,
                heard: &BTreeMap::new(),
                has_peers: true,
                candidates: &candidates,
            };
            let whose = scene.whose();
            assert_eq!(whose[&web().key], expected, "{state:?} {candidates:?}");
            // One that follows is told what ends; one that goes by itself sees the packets, or knows nothing.
            let is_unsynced = expected == Whose::Own && state != Some(Active);
            assert_eq!(!scene.unsynced(&whose).is_empty(), is_unsynced, "{state:?} {candidates:?}");
        }
    }

    #[test]
    fn of_two_the_one_is_followed_that_is_heard_or_has_taken_over() {
        let (routers, desired) = (routers(), Desired { services: [("web".into(), web())].into() });
        let key = routers[0].key;
        // B has taken over from A, which has the higher priority, is dead, and not missed yet.
        let mut candidates = [peer(A, Some(200), false), peer(B, Some(100), false)];
        candidates[1].active.get_mut(&key).expect("it is active").turn = 2;
        for (heard, expected) in [
            (None, B),
            (Some(address(B)), B),
            (Some(address(A)), A),
            (Some(IpAddr::from([10, 0, 0, 99])), B),
        ] {
            let scene = Scene {
                desired: &desired,
                routers: &routers,
                states: &[(key, State::Backup)].into(),
                heard: &heard.map(|heard| (key, heard)).into_iter().collect(),
                has_peers: true,
                candidates: &candidates,
            };
            assert_eq!(scene.whose()[&web().key], Whose::Peers(expected), "{heard:?}");
        }
    }

    #[test]
    fn without_peers_a_node_goes_by_what_it_sees() {
        let (routers, desired) = (routers(), Desired { services: [("web".into(), web())].into() });
        for state in State::ALL {
            let scene = Scene {
                desired: &desired,
                routers: &routers,
                states: &[(routers[0].key, state)].into(),
                heard: &BTreeMap::new(),
                has_peers: false,
                candidates: &[],
            };
            let whose = scene.whose();
            assert_eq!(whose[&web().key], Whose::Own, "{state}");
            let unsynced = if state == State::Active { vec![] } else { vec![web().key] };
            assert!(scene.unsynced(&whose).into_iter().eq(unsynced), "{state}");
            let scene = Scene { routers: &[], ..scene };
            assert!(scene.unsynced(&scene.whose()).is_empty(), "no router, no Active");
        }
    }

    #[test]
    fn a_service_of_no_router_is_everybody_s_if_there_is_anybody() {
        let desired = Desired { services: [("web".into(), web())].into() };
        for (has_peers, expected) in [(true, Whose::Shared), (false, Whose::Own)] {
            let scene = Scene {
                desired: &desired,
                routers: &[],
                states: &BTreeMap::new(),
                heard: &BTreeMap::new(),
                has_peers,
                candidates: &[],
            };
            assert_eq!(scene.whose()[&web().key], expected);
        }
    }

    #[test]
    fn nobody_preempts_without_the_flows_of_the_active_node() {
        let known = |peer, tells| Known { source: Some(address(peer)), tells };
        let (all, part) = (Tells::Active { all: true }, Tells::Active { all: false });
        let stranger = Some(IpAddr::from([10, 0, 0, 99]));
        let (a, b) = (Some(address(A)), Some(address(B)));
        let table = [
            // Who was heard, what is known of peers, whether some are missing; whether flows may be.
            (None, vec![], true, true),
            (a, vec![], true, true),
            (a, vec![known(A, Tells::Nothing)], false, true),
            (a, vec![known(A, part)], false, true),
            (a, vec![known(A, all)], false, false),
            (None, vec![known(A, all)], false, false),
            // It has become Active just now, and has not said so, or was not heard yet.
            (a, vec![known(A, Tells::NotActive)], false, true),
            (None, vec![known(A, Tells::NotActive)], false, true),
            // Three nodes.
            (a, vec![known(A, all)], true, false),
            (b, vec![known(A, Tells::NotActive)], true, true),
            (b, vec![known(A, all), known(B, Tells::NotActive)], false, true),
            (b, vec![known(A, Tells::NotActive), known(B, all)], false, false),
            // A router that is no peer will never tell anything.
            (stranger, vec![known(A, Tells::NotActive)], false, false),
        ];
        for (heard, known, misses_some, expected) in table {
            let unsynced = is_unsynced(heard, &known, misses_some);
            assert_eq!(unsynced, expected, "{heard:?} {known:?} {misses_some}");
        }
    }

    #[test]
    fn services_belong_to_the_router_of_their_vip() {
        let routers = routers();
        let mut other = web();
        other.key.vip = IpAddr::from([10, 0, 0, 101]);
        let desired = Desired { services: [("web".into(), web()), ("other".into(), other)].into() };
        let all = services_of(&desired, &routers, &[routers[0].key].into());
        assert_eq!(all, [web().key].into());
        assert_eq!(services_of(&desired, &routers, &BTreeSet::new()), BTreeSet::new());
    }
}

//! The source of the flow records of each service, as a pure function of which nodes are Active.

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

/// The source of the flow records of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowStateSource {
    /// This node's.
    Own,
    /// This peer's, which is Active.
    Peer(PeerId),
    /// The node that was Active last, as far as its records were imported: no Active node is known now.
    /// None of them ends by this node's own silence, since it sees none of the packets.
    Kept,
    /// Every node's.
    Shared,
}

impl FlowStateSource {
    pub(super) const fn role(self) -> Role {
        match self {
            Self::Own => Role::Own,
            Self::Peer(_) | Self::Kept => Role::Follows,
            Self::Shared => Role::Shared,
        }
    }
}

/// The source of the flow records of each service, as it was assigned last.
#[derive(Debug, Default)]
pub(super) struct Roles {
    flow_sources: BTreeMap<ServiceKey, FlowStateSource>,
    /// The services whose packets go to another node, and of whose flows this node imports none.
    unsynced: BTreeSet<ServiceKey>,
}

impl Roles {
    pub(super) const fn flow_sources(&self) -> &BTreeMap<ServiceKey, FlowStateSource> {
        &self.flow_sources
    }

    /// Whether some service goes by another node's flow records, new or kept.
    pub(super) fn follows(&self) -> bool {
        self.flow_sources
            .values()
            .any(|source| matches!(source, FlowStateSource::Peer(_) | FlowStateSource::Kept))
    }

    /// The services that are this node's own now and not any more with these roles.
    pub(super) fn left_with(
        &self,
        flow_sources: &BTreeMap<ServiceKey, FlowStateSource>,
    ) -> BTreeSet<ServiceKey> {
        let left = flow_sources
            .iter()
            .filter(|(_, source)| **source != FlowStateSource::Own)
            .map(|(key, _)| *key);
        left.filter(|key| self.flow_sources.get(key) == Some(&FlowStateSource::Own)).collect()
    }

    pub(super) fn set_flow_sources(&mut self, flow_sources: BTreeMap<ServiceKey, FlowStateSource>) {
        self.flow_sources = flow_sources;
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

/// The inputs of [`RoleInputs::flow_sources`] that come from one connected peer.
#[derive(Clone, Debug)]
pub(super) struct PeerRole {
    pub(super) peer: PeerId,
    /// Routers that the peer reports to be Active for.
    pub(super) active: BTreeMap<RouterKey, ActiveClaim>,
    /// Services whose flow records this node does not import from the peer, since their settings differ there.
    pub(super) refused: BTreeSet<ServiceKey>,
}

/// A peer's report that it is Active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ActiveClaim {
    /// The source address of its advertisements.
    pub(super) source: Option<IpAddr>,
    /// The place of the report in the order of all peers' reports: of two peers that report to be Active, the one whose
    /// report came later has taken over.
    pub(super) turn: u64,
    pub(super) priority: u8,
}

/// Which nodes are Active for which routers.
pub(super) struct RoleInputs<'a> {
    pub(super) desired: &'a Desired,
    pub(super) routers: &'a [Router],
    /// The states of this node's routers.
    pub(super) states: &'a BTreeMap<RouterKey, State>,
    /// The node whose advertisements of a router this node receives.
    pub(super) advertisers: &'a BTreeMap<RouterKey, IpAddr>,
    /// Whether it has peers at all.
    pub(super) has_peers: bool,
    /// The peers that are connected and compatible.
    pub(super) candidates: &'a [PeerRole],
}

impl RoleInputs<'_> {
    /// The source of the flow records, for each service.
    ///
    /// A service without a virtual router is served by all nodes at once, as behind ECMP. A service
    /// with one follows the Active node. While no Active node is known, the records so far are kept.
    /// A node without peers goes by the packets that it sees, and so does one whose Active peer has
    /// the service otherwise: no peer would ever report to it which flows end.
    pub(super) fn flow_sources(&self) -> BTreeMap<ServiceKey, FlowStateSource> {
        let holders = holders(self.routers);
        let keys = self.desired.services.values().map(|service| service.key);
        keys.map(|key| (key, self.source_of(key, holder_of(&holders, &key)))).collect()
    }

    /// The services whose packets go to another node, as far as this one knows, and of whose flows it
    /// imports none: it goes by the packets that it sees, and sees none.
    pub(super) fn unsynced(
        &self,
        flow_sources: &BTreeMap<ServiceKey, FlowStateSource>,
    ) -> BTreeSet<ServiceKey> {
        let holders = holders(self.routers);
        let is_active = |router: RouterKey| self.states.get(&router) == Some(&State::Active);
        let is_elsewhere =
            |key: &ServiceKey| holder_of(&holders, key).is_some_and(|router| !is_active(router));
        let own = flow_sources
            .iter()
            .filter(|(_, source)| **source == FlowStateSource::Own)
            .map(|(key, _)| *key);
        own.filter(is_elsewhere).collect()
    }

    fn source_of(&self, service: ServiceKey, router: Option<RouterKey>) -> FlowStateSource {
        let Some(router) = router else {
            return if self.has_peers { FlowStateSource::Shared } else { FlowStateSource::Own };
        };
        if self.states.get(&router) == Some(&State::Active) {
            return FlowStateSource::Own;
        }
        if !self.has_peers {
            return FlowStateSource::Own;
        }
        let active = self.candidates.iter().filter(|peer| peer.active.contains_key(&router));
        let (refused, active): (Vec<_>, Vec<_>) =
            active.partition(|peer| peer.refused.contains(&service));
        let advertiser = self.advertisers.get(&router);
        // There may be two for a moment, or one that is dead and not missed yet: it is the one whose
        // advertisements come, or else the one that has taken over from the other.
        let leader = active.into_iter().max_by_key(|peer| {
            let claim = peer.active.get(&router);
            let advertises =
                advertiser.is_some() && claim.and_then(|t| t.source).as_ref() == advertiser;
            let (turn, priority) = claim.map_or((0, 0), |t| (t.turn, t.priority));
            (advertises, turn, priority, std::cmp::Reverse(peer.peer))
        });
        match leader {
            Some(leader) => FlowStateSource::Peer(leader.peer),
            None if refused.is_empty() => FlowStateSource::Kept,
            None => FlowStateSource::Own,
        }
    }
}

/// The state of a router's flow sync with a connected peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Where its advertisements come from.
    pub(super) source: Option<IpAddr>,
    pub(super) sync: SyncStatus,
}

/// Whether a peer is Active for a router, and whether its flows are known.
#[derive(Clone, Copy, Debug)]
pub(super) enum SyncStatus {
    /// It has sent no state yet.
    Nothing,
    /// It is not.
    NotActive,
    /// It is, and all of its flows that can be taken are known, or not.
    Active { all: bool },
}

/// Whether a router that takes over from `advertiser` may break flows, since those of the Active node are
/// not known here. It is computed without an advertiser, too, and must hold when one appears: then there
/// is no time to compute it again. It keeps a router from nothing while no node advertises.
pub(super) fn is_unsynced(advertiser: Option<IpAddr>, known: &[Known], misses_some: bool) -> bool {
    let lacks = |known: &Known| {
        matches!(known.sync, SyncStatus::Nothing | SyncStatus::Active { all: false })
    };
    if known.iter().any(lacks) {
        return true;
    }
    let has = |known: &Known| matches!(known.sync, SyncStatus::Active { all: true });
    match advertiser {
        None => !known.iter().any(has),
        Some(address) => match known.iter().find(|known| known.source == Some(address)) {
            // A peer that does not report yet that it is Active has not sent its flows.
            Some(known) => !has(known),
            // It is none of the connected peers: another peer, or a router that never sends its state.
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

/// The router that has a service's VIP, or one of them: they move together.
pub(super) fn holder_of(
    holders: &BTreeMap<IpAddr, RouterKey>,
    service: &ServiceKey,
) -> Option<RouterKey> {
    let vips = service.vips();
    holders.range(vips.first()..=vips.last()).next().map(|(_, router)| *router)
}

/// The services of some routers.
pub(super) fn services_of(
    desired: &Desired,
    routers: &[Router],
    these: &BTreeSet<RouterKey>,
) -> BTreeSet<ServiceKey> {
    let holders = holders(routers);
    let keys = desired.services.values().map(|service| service.key);
    let is_of =
        |key: &ServiceKey| holder_of(&holders, key).is_some_and(|router| these.contains(&router));
    keys.filter(is_of).collect()
}

#[cfg(test)]
mod tests {
    use lb_model::desired::{Mode, Ports, Protocol, Service};

    use super::*;

    const A: PeerId = PeerId(0);
    const B: PeerId = PeerId(1);

    fn routers() -> Vec<Router> {
        let text = "interfaces = [\"eth0\"]\n[[virtual_router]]\nname = \"main\"\ninterface = \"eth0\"\nvrid = 51\naddresses = [\"10.0.0.100\"]";
        lb_config::Config::parse(text).expect("it is valid").routers.routers
    }

    fn peer(peer: PeerId, priority: Option<u8>, refused: bool) -> PeerRole {
        let router = routers()[0].key;
        let source = Some(address(peer));
        let claim = |priority| ActiveClaim { source, turn: 1, priority };
        let active = priority.map(|priority| (router, claim(priority))).into_iter().collect();
        let refused = if refused { [web().key].into() } else { BTreeSet::new() };
        PeerRole { peer, active, refused }
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
            // This node, its peers, and the source of the records.
            (Some(Active), vec![], FlowStateSource::Own),
            (Some(Backup), vec![], FlowStateSource::Kept),
            (Some(Fault), vec![], FlowStateSource::Kept),
            (None, vec![], FlowStateSource::Kept),
            (Some(Backup), vec![peer(A, None, false)], FlowStateSource::Kept),
            (Some(Backup), vec![peer(A, Some(100), false)], FlowStateSource::Peer(A)),
            (Some(Fault), vec![peer(A, Some(100), false)], FlowStateSource::Peer(A)),
            (Some(Initialize), vec![peer(A, Some(100), false)], FlowStateSource::Peer(A)),
            (None, vec![peer(A, Some(100), false)], FlowStateSource::Peer(A)),
            // Both report that they are Active, as for a moment in a takeover.
            (Some(Active), vec![peer(A, Some(100), false)], FlowStateSource::Own),
            (
                Some(Backup),
                vec![peer(A, Some(100), false), peer(B, Some(101), false)],
                FlowStateSource::Peer(B),
            ),
            (
                Some(Backup),
                vec![peer(A, Some(100), false), peer(B, Some(100), false)],
                FlowStateSource::Peer(A),
            ),
            // A peer that has the service otherwise is not followed.
            (Some(Backup), vec![peer(A, Some(200), true)], FlowStateSource::Own),
            (
                Some(Backup),
                vec![peer(A, Some(200), true), peer(B, Some(1), false)],
                FlowStateSource::Peer(B),
            ),
        ];
        let (routers, desired) = (routers(), Desired { services: [("web".into(), web())].into() });
        for (state, candidates, expected) in table {
            let states = state.map(|state| (routers[0].key, state)).into_iter().collect();
            let inputs = RoleInputs {
                desired: &desired,
                routers: &routers,
                states: &states,
                advertisers: &BTreeMap::new(),
                has_peers: true,
                candidates: &candidates,
            };
            let flow_sources = inputs.flow_sources();
            assert_eq!(flow_sources[&web().key], expected, "{state:?} {candidates:?}");
            // A node that follows receives which flows end; one that goes by itself sees the packets, or knows nothing.
            let is_unsynced = expected == FlowStateSource::Own && state != Some(Active);
            assert_eq!(
                !inputs.unsynced(&flow_sources).is_empty(),
                is_unsynced,
                "{state:?} {candidates:?}"
            );
        }
    }

    #[test]
    fn of_two_the_one_is_followed_that_is_heard_or_has_taken_over() {
        let (routers, desired) = (routers(), Desired { services: [("web".into(), web())].into() });
        let key = routers[0].key;
        // B has taken over from A, which has the higher priority, is dead, and not missed yet.
        let mut candidates = [peer(A, Some(200), false), peer(B, Some(100), false)];
        candidates[1].active.get_mut(&key).expect("it is active").turn = 2;
        for (advertiser, expected) in [
            (None, B),
            (Some(address(B)), B),
            (Some(address(A)), A),
            (Some(IpAddr::from([10, 0, 0, 99])), B),
        ] {
            let inputs = RoleInputs {
                desired: &desired,
                routers: &routers,
                states: &[(key, State::Backup)].into(),
                advertisers: &advertiser.map(|address| (key, address)).into_iter().collect(),
                has_peers: true,
                candidates: &candidates,
            };
            assert_eq!(
                inputs.flow_sources()[&web().key],
                FlowStateSource::Peer(expected),
                "{advertiser:?}"
            );
        }
    }

    #[test]
    fn without_peers_a_node_goes_by_what_it_sees() {
        let (routers, desired) = (routers(), Desired { services: [("web".into(), web())].into() });
        for state in State::ALL {
            let inputs = RoleInputs {
                desired: &desired,
                routers: &routers,
                states: &[(routers[0].key, state)].into(),
                advertisers: &BTreeMap::new(),
                has_peers: false,
                candidates: &[],
            };
            let flow_sources = inputs.flow_sources();
            assert_eq!(flow_sources[&web().key], FlowStateSource::Own, "{state}");
            let unsynced = if state == State::Active { vec![] } else { vec![web().key] };
            assert!(inputs.unsynced(&flow_sources).into_iter().eq(unsynced), "{state}");
            let inputs = RoleInputs { routers: &[], ..inputs };
            assert!(inputs.unsynced(&inputs.flow_sources()).is_empty(), "no router, no Active");
        }
    }

    #[test]
    fn a_service_of_no_router_is_everybody_s_if_there_is_anybody() {
        let desired = Desired { services: [("web".into(), web())].into() };
        for (has_peers, expected) in
            [(true, FlowStateSource::Shared), (false, FlowStateSource::Own)]
        {
            let inputs = RoleInputs {
                desired: &desired,
                routers: &[],
                states: &BTreeMap::new(),
                advertisers: &BTreeMap::new(),
                has_peers,
                candidates: &[],
            };
            assert_eq!(inputs.flow_sources()[&web().key], expected);
        }
    }

    #[test]
    fn nobody_preempts_without_the_flows_of_the_active_node() {
        let known = |peer, sync| Known { source: Some(address(peer)), sync };
        let (all, part) = (SyncStatus::Active { all: true }, SyncStatus::Active { all: false });
        let incompatible = Some(IpAddr::from([10, 0, 0, 99]));
        let (a, b) = (Some(address(A)), Some(address(B)));
        let table = [
            // The advertiser, the state of peers, whether some are missing; whether flows may be.
            (None, vec![], true, true),
            (a, vec![], true, true),
            (a, vec![known(A, SyncStatus::Nothing)], false, true),
            (a, vec![known(A, part)], false, true),
            (a, vec![known(A, all)], false, false),
            (None, vec![known(A, all)], false, false),
            // It has become Active just now, and has not reported it, or has not advertised yet.
            (a, vec![known(A, SyncStatus::NotActive)], false, true),
            (None, vec![known(A, SyncStatus::NotActive)], false, true),
            // Three nodes.
            (a, vec![known(A, all)], true, false),
            (b, vec![known(A, SyncStatus::NotActive)], true, true),
            (b, vec![known(A, all), known(B, SyncStatus::NotActive)], false, true),
            (b, vec![known(A, SyncStatus::NotActive), known(B, all)], false, false),
            // A router that is no peer never sends its state.
            (incompatible, vec![known(A, SyncStatus::NotActive)], false, false),
        ];
        for (advertiser, known, misses_some, expected) in table {
            let unsynced = is_unsynced(advertiser, &known, misses_some);
            assert_eq!(unsynced, expected, "{advertiser:?} {known:?} {misses_some}");
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

    #[test]
    fn a_service_of_a_prefix_belongs_to_the_router_of_one_of_its_vips() {
        let routers = routers();
        let of = |vips: &str| {
            let key = ServiceKey::of(vips.parse().unwrap(), Ports::one(80), Protocol::Tcp);
            holder_of(&holders(&routers), &key)
        };
        let vip = web().key.vip;
        assert_eq!(of(&format!("{vip}")), Some(routers[0].key));
        let IpAddr::V4(v4) = vip else { panic!("{vip}") };
        let first = std::net::Ipv4Addr::from(u32::from(v4) & !0xf);
        assert_eq!(of(&format!("{first}/28")), Some(routers[0].key));
        let next = std::net::Ipv4Addr::from((u32::from(v4) & !0xf) + 16);
        assert_eq!(of(&format!("{next}/28")), None);
    }
}

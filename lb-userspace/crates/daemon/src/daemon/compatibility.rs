//! The settings in which two nodes must be equal, as keyed hashes: the nodes, and no other host, see whether
//! they differ, and not in which values.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_api::{event::Kind, routers::RouterStatus};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Desired, Service, ServiceKey, UdpPolicy},
    router::{Auth, Router, State, Version},
};
use lb_sync::{Fingerprint, Key, NodeState, RouterState, ServiceFingerprint};
use ring::hmac;

/// How long services may have other backends on two nodes before lbd reports it.
const LASTING: Duration = Duration::from_secs(10);

/// Makes keyed hashes.
pub(super) struct Hasher(hmac::Key);

impl Hasher {
    pub(super) fn new(key: &Key) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key.0))
    }

    /// A hash of some parts; `of` names their kind, so that no two kinds have equal hashes.
    fn hash<'p>(&self, of: &str, parts: impl IntoIterator<Item = &'p [u8]>) -> u64 {
        let mut context = hmac::Context::with_key(&self.0);
        // Nodes of other versions hash with these words.
        context.update(b"lb likeness ");
        context.update(of.as_bytes());
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let tag = context.sign();
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&tag.as_ref()[..8]);
        u64::from_be_bytes(bytes)
    }

    /// The hashes of the settings that make rings equal.
    pub(super) fn fingerprint(&self, seed: &[u8; 16], desired: &Desired) -> Fingerprint {
        let services = desired.services.values();
        Fingerprint {
            seed: self.hash("seed", [&seed[..]]),
            services: services.map(|service| (service.key, self.service(service))).collect(),
        }
    }

    fn service(&self, service: &Service) -> ServiceFingerprint {
        let udp: &[u8] = match service.udp_policy {
            UdpPolicy::Oneshot => b"oneshot",
            UdpPolicy::Tracked => b"tracked",
            UdpPolicy::Quic => b"quic",
        };
        let (mode, slots) = (service.mode.to_string(), service.ring_slots.to_be_bytes());
        let idle = service.idle_timeout.as_millis().to_be_bytes();
        let backends: Vec<Vec<u8>> = service.backends.keys().map(octets_of_backend).collect();
        let settings = [mode.as_bytes(), &slots, &idle, udp];
        // Drained, disabled and leaving backends are alike: a drain ends on each node by its own flows.
        let enabled = service.backends.iter().filter(|(_, one)| one.admin == Admin::Enabled);
        let shares: Vec<Vec<u8>> = enabled
            .map(|(address, one)| {
                let weight = one.weight.0.get().to_be_bytes();
                [&octets_of_backend(address)[..], &weight, &[u8::from(one.backup)]].concat()
            })
            .collect();
        ServiceFingerprint {
            settings: self.hash("service", settings),
            backends: self.hash("backends", backends.iter().map(Vec::as_slice)),
            shares: self.hash("shares", shares.iter().map(Vec::as_slice)),
        }
    }

    /// The state of a virtual router of this node, with hashes of its advertisements' settings.
    pub(super) fn router(
        &self,
        router: &Router,
        state: State,
        status: Option<&RouterStatus>,
    ) -> RouterState {
        let mut addresses: Vec<Vec<u8>> = router
            .addresses
            .iter()
            .filter(|vip| vip.advertised)
            .map(|vip| octets(&vip.address))
            .collect();
        addresses.sort();
        let centis = router.interval.as_millis() / 10;
        RouterState {
            state,
            priority: status.map_or(router.priority.get(), |status| status.priority),
            wants: status.is_some_and(|status| status.wants),
            lowered: status.is_some_and(|status| status.lowered),
            source: status.and_then(|status| status.source).or(router.source),
            fingerprint: self.advertisements(router),
            interval_centis: u16::try_from(centis).unwrap_or(u16::MAX),
            addresses: self.hash("addresses", addresses.iter().map(Vec::as_slice)),
        }
    }

    /// The hash of the settings that must be equal for advertisements to be taken.
    fn advertisements(&self, router: &Router) -> u64 {
        // Version 3 learns the interval of the Active router.
        let (version, interval) = match router.version {
            Version::V2 => (2, router.interval.as_millis().to_be_bytes()),
            Version::V3 => (3, [0; 16]),
        };
        let (kind, id, secret): (_, _, &[u8]) = match &router.auth {
            Auth::None => (0, 0, &[]),
            Auth::Pass(password) => (1, 0, password),
            Auth::Hmac { id, secret } => (2, *id, secret),
        };
        self.hash("advertisements", [&[version, kind, id][..], &interval, secret])
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

fn octets_of_backend(backend: &BackendAddress) -> Vec<u8> {
    let port = backend.port.map(|port| port.get().to_be_bytes());
    [octets(&backend.ip), port.map_or_else(Vec::new, Vec::from)].concat()
}

/// The differences of a peer from this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mismatch {
    /// Why none of its records can be taken.
    pub(super) whole: Option<String>,
    /// Services whose flows can't be taken, and why.
    pub(super) services: BTreeMap<ServiceKey, String>,
    /// Services that have other backends there, or other weights or states of them, as texts. Flows on
    /// backends that one node does not have can't be taken.
    pub(super) backends: BTreeMap<ServiceKey, String>,
    /// Routers whose advertisements can't be taken by this node, with the peer's source of them, and
    /// a text.
    pub(super) unreachable: BTreeMap<lb_model::router::RouterKey, (Option<IpAddr>, String)>,
    /// Routers that advertise other addresses, as texts.
    pub(super) addresses: BTreeMap<lb_model::router::RouterKey, String>,
}

impl Mismatch {
    /// The texts of all.
    pub(super) fn problems(&self) -> impl Iterator<Item = &str> {
        self.by_kind().map(|(_, text)| text)
    }

    /// The texts of all, with the kind of the event of each.
    pub(super) fn by_kind(&self) -> impl Iterator<Item = (Kind, &str)> {
        let flows = self.whole.iter().chain(self.services.values());
        let routers =
            self.unreachable.values().map(|(_, text)| text).chain(self.addresses.values());
        let flows = flows.map(|text| (Kind::PeerRefused, text.as_str()));
        let backends = self.backends.values().map(|text| (Kind::PeerDiffers, text.as_str()));
        let flows = flows.chain(backends);
        flows.chain(routers.map(|text| (Kind::VrrpMismatch, text.as_str())))
    }
}

/// Since when services have had other backends on a peer.
#[derive(Debug, Default)]
pub(super) struct MismatchTimer(BTreeMap<ServiceKey, Instant>);

impl MismatchTimer {
    /// Leaves those that have differed for long: a change of both nodes needs a moment, and a
    /// backend that leaves does so when its last flow on that node has ended.
    pub(super) fn lasting(&mut self, mismatched: &mut BTreeMap<ServiceKey, String>, now: Instant) {
        self.0.retain(|key, _| mismatched.contains_key(key));
        mismatched.retain(|key, _| {
            let since = *self.0.entry(*key).or_insert(now);
            now.saturating_duration_since(since) >= LASTING
        });
    }
}

/// Compares this node's state with a peer's.
pub(super) fn compare(
    own: &NodeState,
    theirs: &NodeState,
    desired: &Desired,
    routers: &[Router],
) -> Mismatch {
    let mut mismatch = Mismatch::default();
    if own.fingerprint.seed != theirs.fingerprint.seed {
        let text =
            "its seed is another one, so its rings are, too; give both nodes the same `seed`";
        mismatch.whole = Some(text.into());
    }
    for (name, service) in &desired.services {
        let key = service.key;
        let theirs = theirs.fingerprint.services.get(&key);
        let ours = own.fingerprint.services.get(&key);
        let text = match theirs {
            None => format!("{name}: {key} is no service there"),
            Some(theirs) if ours.map(|ours| ours.settings) != Some(theirs.settings) => {
                format!("{name}: mode, ring_slots, idle_timeout or udp are others there")
            }
            Some(theirs) => {
                let text = if ours.map(|ours| ours.backends) != Some(theirs.backends) {
                    format!(
                        "{name}: the backends' addresses are others there; flows on those that one node lacks are not taken over"
                    )
                } else if ours.map(|ours| ours.shares) != Some(theirs.shares) {
                    format!(
                        "{name}: weights or states of backends are others there; a failover changes who gets new flows: compare 'lbctl backend list {name}' on both nodes"
                    )
                } else {
                    continue;
                };
                mismatch.backends.insert(key, text);
                continue;
            }
        };
        mismatch.services.insert(key, text);
    }
    for key in theirs.fingerprint.services.keys() {
        if !own.fingerprint.services.contains_key(key) {
            mismatch.services.insert(*key, format!("{key} is a service there, and none here"));
        }
    }
    for router in routers {
        let (Some(here), Some(there)) =
            (own.routers.get(&router.key), theirs.routers.get(&router.key))
        else {
            continue;
        };
        let RouterState { fingerprint, addresses, source, .. } = there;
        if here.fingerprint != *fingerprint {
            let text = format!(
                "virtual router {}: version, password, key{} are others there, so that no advertisement can be taken",
                router.name,
                if router.version == Version::V2 { " or interval" } else { "" },
            );
            mismatch.unreachable.insert(router.key, (*source, text));
        }
        if here.addresses != *addresses {
            let text = format!("virtual router {}: its addresses are others there", router.name);
            mismatch.addresses.insert(router.key, text);
        }
    }
    mismatch
}

#[cfg(test)]
mod tests {
    use lb_config::Config;

    use super::*;

    const NODE: &str = r#"
        interfaces = ["eth0"]
        [[virtual_router]]
        name = "main"
        interface = "eth0"
        vrid = 51
        version = 2
        priority = 150
        password = "secret"
        addresses = ["10.0.0.100", "10.0.0.101"]
        [[service]]
        name = "web"
        vip = "10.0.0.100"
        port = 80
        protocol = "tcp"
        mode = "dsr"
        idle_timeout = "10m"
        ring_slots = 1009
        backend = [{ address = "10.0.0.11" }, { address = "10.0.0.12", weight = 3 }]
    "#;

    /// Calculated by another implementation of HMAC-SHA-256. Nodes of other versions compare with it.
    #[test]
    fn hashes_are_those_that_other_versions_make() {
        let hasher = Hasher::new(&Key([7; 32]));
        assert_eq!(hasher.hash("seed", [&b"abc"[..]]), 0x1f27_be08_b759_1d07);
    }

    /// The state of a node of this configuration.
    fn node_state(config: &Config, key: u8, seed: u8) -> NodeState {
        let hasher = Hasher::new(&Key([key; 32]));
        let routers = config.routers.routers.iter();
        NodeState {
            fingerprint: hasher.fingerprint(&[seed; 16], &config.desired),
            routers: routers
                .map(|router| (router.key, hasher.router(router, State::Backup, None)))
                .collect(),
            draining: false,
        }
    }

    /// The problems that a node finds of a peer whose configuration has `to` where its own has `from`.
    fn found(from: &str, to: &str) -> Vec<String> {
        let parse = |text: &str| Config::parse(text).unwrap_or_else(|p| panic!("{p:?}"));
        assert!(NODE.contains(from), "{from}");
        let (here, there) = (parse(NODE), parse(&NODE.replace(from, to)));
        let mismatch = compare(
            &node_state(&here, 1, 1),
            &node_state(&there, 1, 1),
            &here.desired,
            &here.routers.routers,
        );
        mismatch.problems().map(str::to_owned).collect()
    }

    #[test]
    fn nodes_may_differ_in_what_is_their_own() {
        for (from, to) in [
            ("main", "other"),
            ("150", "100"),
            ("\"web\"", "\"www\""),
            ("\"10.0.0.100\", \"10.0.0.101\"", "\"10.0.0.101\", \"10.0.0.100\""),
            ("ring_slots", "syn_budget = 5\nring_slots"),
        ] {
            assert_eq!(found(from, to), [""; 0], "{to}");
        }
    }

    #[test]
    fn what_makes_flows_go_elsewhere_is_found() {
        let others = "web: mode, ring_slots, idle_timeout or udp are others there";
        let backends = "web: the backends' addresses are others there; flows on those that one node lacks are not taken over";
        let shares = "web: weights or states of backends are others there; a failover changes who gets new flows: compare 'lbctl backend list web' on both nodes";
        for (from, to, expected) in [
            ("dsr", "ipip", vec![others]),
            ("1009", "1013", vec![others]),
            ("10m", "11m", vec![others]),
            ("10.0.0.12", "10.0.0.13", vec![backends]),
            ("weight = 3", "weight = 7", vec![shares]),
            ("weight = 3", "weight = 3, backup = true", vec![shares]),
            (
                "port = 80",
                "port = 81",
                vec![
                    "web: tcp 10.0.0.100:80 is no service there",
                    "tcp 10.0.0.100:81 is a service there, and none here",
                ],
            ),
            (
                "secret",
                "other",
                vec![
                    "virtual router main: version, password, key or interval are others there, so that no advertisement can be taken",
                ],
            ),
            (
                "version = 2",
                "version = 2\ninterval = \"2s\"",
                vec![
                    "virtual router main: version, password, key or interval are others there, so that no advertisement can be taken",
                ],
            ),
            (
                "version = 2\n        priority = 150\n        password = \"secret\"\n",
                "",
                vec![
                    "virtual router main: version, password, key or interval are others there, so that no advertisement can be taken",
                ],
            ),
            (", \"10.0.0.101\"", "", vec!["virtual router main: its addresses are others there"]),
        ] {
            assert_eq!(found(from, to), expected, "{to}");
        }
    }

    #[test]
    fn a_drain_on_one_node_is_found_and_one_that_ends_earlier_there_is_not() {
        let here = Config::parse(NODE).expect("it is valid");
        let with = |admin: Admin| {
            let mut config = here.clone();
            let web = config.desired.services.get_mut("web").expect("it is there");
            web.backends.values_mut().next().expect("one").admin = admin;
            config
        };
        let found = |here: &Config, there: &Config| {
            let (own, theirs) = (node_state(here, 1, 1), node_state(there, 1, 1));
            let mismatch = compare(&own, &theirs, &here.desired, &here.routers.routers);
            mismatch.problems().count()
        };
        let (draining, down) = (with(Admin::Draining { deadline: None }), with(Admin::Down));
        assert_eq!(found(&here, &draining), 1);
        assert_eq!(found(&draining, &here), 1);
        assert_eq!(found(&draining, &with(Admin::Disabled)), 0);
        assert_eq!(found(&down, &draining), 0);
    }

    #[test]
    fn flows_are_taken_while_backends_differ_and_that_is_told_when_it_lasts() {
        let parse = |text: &str| Config::parse(text).expect("it is valid");
        let (here, there) = (parse(NODE), parse(&NODE.replace("10.0.0.12", "10.0.0.13")));
        let (own, theirs) = (node_state(&here, 1, 1), node_state(&there, 1, 1));
        let mismatch = || compare(&own, &theirs, &here.desired, &here.routers.routers).backends;
        assert_eq!(
            compare(&own, &theirs, &here.desired, &here.routers.routers).services,
            BTreeMap::new()
        );
        let (mut timer, start) = (MismatchTimer::default(), Instant::now());
        let lasting = |timer: &mut MismatchTimer, mut mismatch: BTreeMap<_, _>, after| {
            timer.lasting(&mut mismatch, start + after);
            mismatch.len()
        };
        assert_eq!(lasting(&mut timer, mismatch(), Duration::ZERO), 0);
        assert_eq!(lasting(&mut timer, mismatch(), LASTING - Duration::from_millis(1)), 0);
        assert_eq!(lasting(&mut timer, mismatch(), LASTING), 1);
        assert_eq!(lasting(&mut timer, BTreeMap::new(), LASTING), 0);
        assert_eq!(lasting(&mut timer, mismatch(), LASTING), 0, "it begins anew");
    }

    #[test]
    fn another_seed_makes_a_stranger() {
        let config = Config::parse(NODE).expect("it is valid");
        let routers = &config.routers.routers;
        let mismatch = compare(
            &node_state(&config, 1, 1),
            &node_state(&config, 1, 2),
            &config.desired,
            routers,
        );
        assert!(mismatch.whole.is_some_and(|text| text.contains("give both nodes the same")));
        assert_eq!(mismatch.services, BTreeMap::new());
    }

    #[test]
    fn without_the_key_hashes_tell_nothing() {
        let config = Config::parse(NODE).expect("it is valid");
        let (one, other) = (node_state(&config, 1, 1), node_state(&config, 2, 1));
        assert_ne!(one.fingerprint.seed, other.fingerprint.seed);
        let key = config.routers.routers[0].key;
        assert_ne!(one.routers[&key].fingerprint, other.routers[&key].fingerprint);
        assert_ne!(one.routers[&key].addresses, other.routers[&key].addresses);
        let service = config.desired.services["web"].key;
        assert_ne!(one.fingerprint.services[&service], other.fingerprint.services[&service]);
    }
}

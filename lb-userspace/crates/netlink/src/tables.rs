//! The kernel's links, routes and neighbours as plain data, and how an event changes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_model::hop::{self, Station};

use super::{generic::xdp_act, link::Link, path_mtu::PathMtus};

/// How many requests a neighbour may leave unanswered whose MAC address is doubted, before it
/// counts as silent: as long as the kernel takes by itself to give one up.
const PATIENCE: u8 = 4;

/// How long an interface that has ceased to take frames from XDP counts as one that does. A driver that
/// resets its link reports that for a moment, which must not move a flow. One that takes none for good is
/// asked for again at the next refresh, and the frames that it loses meanwhile are counted.
const RESET: Duration = Duration::from_secs(5);

/// A neighbour's key: the interface and the address on it.
pub(crate) type NeighbourKey = (u32, IpAddr);

/// What the kernel was last known to have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tables {
    /// The interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// The kernel's answer for each wanted address.
    pub routes: BTreeMap<IpAddr, Route>,
    /// The neighbours. One that the kernel has forgotten while it had a MAC address is kept until
    /// it answers or fails: `ip neigh flush` must not move a flow.
    pub neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// Neighbours that did not answer, until they do. The kernel forgets that they failed as soon
    /// as it is to try again.
    silent: BTreeSet<NeighbourKey>,
    /// Neighbours whose MAC address is doubted: how many requests they may yet leave unanswered.
    doubted: BTreeMap<NeighbourKey, u8>,
    /// Neighbours that the kernel has no room for.
    homeless: BTreeSet<NeighbourKey>,
    /// Interfaces that have got a carrier lately, and when.
    pub restored: BTreeMap<u32, Instant>,
    /// Interfaces that have taken frames from XDP and don't any more, and since when.
    lost_xmit: BTreeMap<u32, Instant>,
    /// The ports behind which bridges have learnt MAC addresses.
    pub fdb: BTreeMap<FdbKey, u32>,
    /// The names of the balancer's own interfaces.
    pub interfaces: Vec<String>,
    /// Those of them whose program is at tc. An XDP program there is not lbd's.
    pub at_tc: BTreeSet<String>,
    /// The routers' reports about paths to tunnelled backends.
    pub path_mtus: PathMtus,
}

/// A key of a bridge's forwarding database: the bridge and a MAC address.
pub(crate) type FdbKey = (u32, [u8; 6]);

/// Whether by these features frames of XDP programs of other interfaces are taken.
fn takes_frames(xdp_features: Option<u64>) -> bool {
    xdp_features.is_some_and(|features| features & xdp_act::NDO_XMIT != 0)
}

/// The kernel's answer to a lookup of a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// By an interface.
    Via {
        /// The interface.
        oif: u32,
        /// The router; none if the destination is on the link.
        gateway: Option<IpAddr>,
        /// The route's own MTU, or the one that was learnt for the destination.
        mtu: Option<u32>,
    },
    /// The address is this node's own.
    Own,
    /// No packet gets there; the reason reads on after the address.
    None(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    /// The kernel's state of it.
    pub state: NeighbourState,
    /// Its MAC address, if it is known and six bytes long.
    pub mac: Option<[u8; 6]>,
}

/// The states of a neighbour that make a difference here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NeighbourState {
    /// Asked for, not answered.
    Incomplete,
    /// The MAC address is used: reachable, stale or delay.
    Valid,
    /// The MAC address is used while the kernel asks whether it still holds.
    Probed,
    /// It did not answer.
    Failed,
    /// The interface resolves none.
    NoArp,
    /// Set by hand; the kernel never probes it.
    Permanent,
    /// The kernel has forgotten it.
    Forgotten,
}

impl Tables {
    /// Empty ones, on a node whose balancer has these interfaces.
    #[must_use]
    pub fn new(interfaces: Vec<String>) -> Self {
        Self { interfaces, ..Self::default() }
    }

    /// Takes over the kernel's state of one neighbour.
    pub(crate) fn update_neighbour(&mut self, key: NeighbourKey, mut new: Neighbour) {
        let old = self.neighbours.get(&key).copied();
        if new.state == NeighbourState::Failed
            && let Some(left) = self.doubted.get_mut(&key).filter(|left| **left > 0)
        {
            *left -= 1;
            return self.forget_neighbour(key);
        }
        match (new.state, old.map(|old| old.state)) {
            // The kernel gives a neighbour up only after it was probed. Without that someone takes
            // it away (`ip neigh del`), which goes by way of the same state.
            (
                NeighbourState::Failed,
                Some(
                    NeighbourState::Valid
                    | NeighbourState::Forgotten
                    | NeighbourState::Permanent
                    | NeighbourState::NoArp,
                ),
            ) => return self.forget_neighbour(key),
            // The balancer has sent no request yet: others' missing answers, however long
            // ago, show nothing of a backend that gets packets at this moment.
            (NeighbourState::Failed, None) => return,
            (NeighbourState::Failed, Some(_)) => {
                new.mac = None;
                self.silent.insert(key);
                self.doubted.remove(&key);
            }
            (NeighbourState::Incomplete | NeighbourState::Forgotten, _) => {
                new.mac = old.and_then(|old| old.mac);
            }
            (NeighbourState::Probed, _) => {}
            (NeighbourState::Valid | NeighbourState::NoArp | NeighbourState::Permanent, _) => {
                self.silent.remove(&key);
                self.doubted.remove(&key);
            }
        }
        if new.state == NeighbourState::Forgotten && new.mac.is_none() {
            self.neighbours.remove(&key);
        } else {
            self.neighbours.insert(key, new);
        }
    }

    /// Takes over all neighbours; those that the kernel does not name count as forgotten.
    pub(crate) fn replace_neighbours(&mut self, new: BTreeMap<NeighbourKey, Neighbour>) {
        let gone: Vec<_> =
            self.neighbours.keys().filter(|key| !new.contains_key(key)).copied().collect();
        for key in gone {
            self.forget_neighbour(key);
        }
        for (key, neighbour) in new {
            self.update_neighbour(key, neighbour);
        }
    }

    /// Takes over that the kernel has forgotten a neighbour. One set by hand was taken away by
    /// hand, so its MAC address is not kept.
    pub(crate) fn forget_neighbour(&mut self, key: NeighbourKey) {
        match self.neighbours.get(&key) {
            Some(Neighbour {
                state: NeighbourState::Permanent | NeighbourState::NoArp, ..
            }) => {
                self.neighbours.remove(&key);
            }
            _ => self
                .update_neighbour(key, Neighbour { state: NeighbourState::Forgotten, mac: None }),
        }
    }

    /// A backend behind this neighbour is silent, maybe since its MAC address is another: that holds
    /// until the neighbour has announced it again. Whether the kernel is to forget it, and then be asked.
    ///
    /// The kernel would go on for a minute before it asked by itself, and then give a neighbour up
    /// that does not answer at the old address, with all of its flows.
    pub fn doubt(&mut self, key: NeighbourKey) -> bool {
        let known = self.neighbours.get(&key).map(|known| known.state);
        if !matches!(known, Some(NeighbourState::Valid | NeighbourState::Probed)) {
            return false;
        }
        self.doubted.insert(key, PATIENCE);
        self.forget_neighbour(key);
        true
    }

    /// Takes over all interfaces as they are at `now`; what is known of neighbours on the ones that are gone
    /// goes too. One that takes no frames from XDP any more counts as before until [`RESET`] is over.
    pub(crate) fn replace_links(&mut self, links: BTreeMap<u32, Link>, now: Instant) {
        // At the start each is new, and none has lost a request.
        if !self.links.is_empty() {
            let carries =
                |links: &BTreeMap<u32, Link>, at| links.get(at).is_some_and(|at| at.carrier);
            let restored =
                links.keys().filter(|at| carries(&links, at) && !carries(&self.links, at));
            self.restored.extend(restored.map(|at| (*at, now)));
        }
        let old = std::mem::replace(&mut self.links, links);
        self.lost_xmit.retain(|ifindex, _| self.links.contains_key(ifindex));
        for (ifindex, link) in &mut self.links {
            let before = old.get(ifindex).and_then(|link| link.xdp_features);
            if takes_frames(link.xdp_features) || !takes_frames(before) {
                self.lost_xmit.remove(ifindex);
                continue;
            }
            let since = self.lost_xmit.entry(*ifindex).or_insert(now);
            if now.duration_since(*since) < RESET {
                link.xdp_features = before;
            }
        }
        let links = &self.links;
        self.neighbours.retain(|(ifindex, _), _| links.contains_key(ifindex));
        self.silent.retain(|(ifindex, _)| links.contains_key(ifindex));
        self.doubted.retain(|(ifindex, _), _| links.contains_key(ifindex));
    }

    /// Takes over what bridges have learnt. A MAC address that is forgotten keeps its port while a
    /// neighbour has it and the port is the bridge's: entries age, which must not move a flow.
    pub(crate) fn replace_fdb(&mut self, new: BTreeMap<FdbKey, u32>) {
        let old = std::mem::replace(&mut self.fdb, new);
        let in_use: BTreeSet<[u8; 6]> =
            self.neighbours.values().filter_map(|neighbour| neighbour.mac).collect();
        for (key, port) in old {
            let is_port = self.links.get(&port).is_some_and(|at| at.port_of == Some(key.0));
            if is_port && in_use.contains(&key.1) {
                self.fdb.entry(key).or_insert(port);
            }
        }
    }

    /// Takes over that a bridge has learnt a MAC address; whether a neighbour has it and it was not known to
    /// be behind this port.
    pub(crate) fn update_fdb(&mut self, key: FdbKey, port: u32) -> bool {
        self.fdb.insert(key, port) != Some(port)
            && self.neighbours.values().any(|neighbour| neighbour.mac == Some(key.1))
    }

    /// The balancer's interfaces on which the program runs in the driver.
    pub(crate) fn native(&self) -> impl Iterator<Item = u32> {
        let runs = |link: &Link| {
            link.xdp_prog_id.is_some()
                && !link.xdp_generic
                && self.interfaces.contains(&link.name)
                && !self.at_tc.contains(&link.name)
        };
        self.links.iter().filter(move |(_, link)| runs(link)).map(|(ifindex, _)| *ifindex)
    }

    /// Drops what is not wanted: routes to other addresses, neighbours that only memory holds.
    pub(crate) fn retain(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        next_hops: &BTreeSet<NeighbourKey>,
    ) {
        self.routes.retain(|address, _| addresses.contains(address));
        self.neighbours.retain(|key, neighbour| {
            neighbour.state != NeighbourState::Forgotten || next_hops.contains(key)
        });
        self.silent.retain(|key| next_hops.contains(key));
        self.doubted.retain(|key, _| next_hops.contains(key));
        self.homeless.retain(|key| next_hops.contains(key));
    }

    /// The neighbours at these MAC addresses which the kernel has asked for by itself.
    #[must_use]
    pub(crate) fn at_stations(&self, stations: &BTreeSet<Station>) -> Vec<NeighbourKey> {
        let is_at = |(key, known): &(&NeighbourKey, &Neighbour)| {
            known.state == NeighbourState::Valid
                && known.mac.is_some_and(|mac| stations.contains(&(key.0, mac)))
        };
        self.neighbours.iter().filter(is_at).map(|(key, _)| *key).collect()
    }

    /// Notes whether the kernel has room for a neighbour; true if it is the first for which it has
    /// none.
    pub(crate) fn note_room(&mut self, key: NeighbourKey, room: bool) -> bool {
        if room {
            self.homeless.remove(&key);
            return false;
        }
        self.homeless.insert(key) && self.homeless.len() == 1
    }

    /// Whether the kernel has room for a neighbour.
    #[must_use]
    pub(crate) fn has_room(&self, key: NeighbourKey) -> bool {
        !self.homeless.contains(&key)
    }

    /// What a next hop with this neighbour depends on: an event that leaves it as it is changes
    /// nothing.
    #[must_use]
    pub(crate) fn outlook(&self, key: NeighbourKey) -> impl PartialEq + use<> {
        let known = self.neighbours.get(&key).map(|known| match known.state {
            NeighbourState::Probed => (NeighbourState::Valid, known.mac),
            state => (state, known.mac),
        });
        (known, self.is_silent(key))
    }

    /// Whether the neighbour was asked in vain since it last answered.
    #[must_use]
    pub(crate) fn is_silent(&self, key: NeighbourKey) -> bool {
        self.silent.contains(&key)
    }

    /// The MAC addresses that `interfaces` answer to: their own first, then those of the VLAN and
    /// macvlan links on them and of the bridges and bonds above them.
    #[must_use]
    pub(crate) fn own_macs(&self, interfaces: &[String]) -> Vec<[u8; 6]> {
        let mut members: Vec<u32> = interfaces
            .iter()
            .filter_map(|name| {
                self.links.iter().find(|(_, link)| link.name == *name).map(|(i, _)| *i)
            })
            .collect();
        let mut next = 0;
        while let Some(below) = members.get(next).copied() {
            next += 1;
            let above_it = self.links.get(&below).and_then(|link| link.port_of);
            for (&ifindex, link) in &self.links {
                let above = link.parent() == Some(below) || above_it == Some(ifindex);
                if above && !members.contains(&ifindex) {
                    members.push(ifindex);
                }
            }
        }
        let mut macs = Vec::new();
        for mac in members.iter().filter_map(|i| self.links.get(i)).map(|link| link.mac) {
            if mac != [0; 6] && !macs.contains(&mac) {
                macs.push(mac);
            }
        }
        macs
    }

    /// The interfaces as they are published.
    #[must_use]
    pub(crate) fn published_links(&self) -> BTreeMap<String, hop::Link> {
        self.links
            .iter()
            .map(|(&ifindex, link)| {
                let published = hop::Link {
                    ifindex,
                    up: link.up && link.carrier,
                    xdp_prog_id: link.xdp_prog_id,
                    mac: link.mac,
                    mtu: link.mtu,
                };
                (link.name.clone(), published)
            })
            .collect()
    }
}

//! The thread's receiving sockets: for advertisements on the routers' interfaces, and for claims of the addresses
//! that are assigned.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU8,
};

use lb_model::router::Family;
use lb_netlink::interfaces::Interfaces;

use super::{claims::Claims, member::Member};
use crate::{
    machine::Name,
    packet::Path,
    sockets::{BUFFER, Receiver, SocketInterface, Watch},
};

/// An interface's name and a family.
type Place = (String, Family);

/// VRIDs, each with the least TTL of an advertisement.
type Vrids = BTreeMap<NonZeroU8, u8>;

/// All sockets that receive something.
pub(crate) struct Receivers {
    /// For advertisements, with the index of the interface that each was opened for.
    pub receivers: BTreeMap<Place, (u32, Receiver)>,
    /// For claims, with the same.
    pub watches: BTreeMap<Place, (u32, Watch)>,
    /// Whose an advertisement is, by the interface's index.
    pub whose: BTreeMap<(u32, Family, NonZeroU8), (Name, Path)>,
    /// Which of the receivers is the first to be read, by its order.
    pub next: usize,
    vrids: BTreeMap<Place, Vrids>,
    claimed: BTreeMap<Place, BTreeSet<IpAddr>>,
    /// Room for a datagram.
    pub buffer: Vec<u8>,
}

impl Default for Receivers {
    fn default() -> Self {
        Self {
            receivers: BTreeMap::new(),
            watches: BTreeMap::new(),
            whose: BTreeMap::new(),
            next: 0,
            vrids: BTreeMap::new(),
            claimed: BTreeMap::new(),
            buffer: vec![0; BUFFER],
        }
    }
}

impl Receivers {
    /// Listens for these routers' advertisements; what does not work.
    pub(crate) fn listen(
        &mut self,
        members: &BTreeMap<Name, Member>,
        interfaces: &Interfaces,
    ) -> Vec<(Name, String)> {
        self.whose.clear();
        let mut wanted: BTreeMap<Place, Vrids> = BTreeMap::new();
        let mut users: BTreeMap<Place, Name> = BTreeMap::new();
        for (name, member) in members {
            let key = member.router.key;
            let second = member.router.second_path.as_ref().map(|path| &path.interface);
            // The first path last: should both be one interface, it is the first.
            let paths = second.map(|second| (Path::Second, second));
            for (path, interface) in
                paths.into_iter().chain([(Path::First, &member.router.interface)])
            {
                let place = (interface.clone(), key.family);
                users.entry(place.clone()).or_insert_with(|| Name::clone(name));
                let least = member.codec.least_ttl(path);
                let known = wanted.entry(place).or_default().entry(key.vrid).or_insert(least);
                *known = least.min(*known);
                if let Some(index) = interfaces.index(interface) {
                    self.whose.insert((index, key.family, key.vrid), (Name::clone(name), path));
                }
            }
        }
        self.receivers.retain(|place, (index, _)| {
            wanted.contains_key(place) && interfaces.index(&place.0) == Some(*index)
        });
        let mut problems = Vec::new();
        for (place, vrids) in wanted {
            let Some(index) = interfaces.index(&place.0) else { continue };
            if self.receivers.contains_key(&place) && self.vrids.get(&place) == Some(&vrids) {
                continue;
            }
            let opened = match self.receivers.remove(&place) {
                Some((_, receiver)) => Ok(receiver),
                None => Receiver::open(&SocketInterface { name: place.0.clone(), index }, place.1),
            };
            let opened = opened.and_then(|receiver| {
                receiver.set_vrids(vrids.iter().map(|(vrid, least)| (*vrid, *least)))?;
                Ok(receiver)
            });
            match opened {
                Ok(receiver) => {
                    self.vrids.insert(place.clone(), vrids);
                    self.receivers.insert(place, (index, receiver));
                }
                Err(error) => {
                    let who = users.get(&place).map_or_else(|| Name::from(""), Name::clone);
                    problems.push((who, format!("listen on {}: {error}", place.0)));
                }
            }
        }
        problems
    }

    /// Looks for claims of the addresses that these routers hold, and for the owners of the peers' addresses that
    /// are requested; returns what does not work.
    ///
    /// Addresses on a device with a virtual MAC address are looked for on the interface below it.
    pub fn watch(
        &mut self,
        members: &BTreeMap<Name, Member>,
        claims: &Claims,
        interfaces: &Interfaces,
    ) -> Vec<String> {
        let mut wanted: BTreeMap<Place, BTreeSet<IpAddr>> = BTreeMap::new();
        for member in members.values().filter(|member| member.holding) {
            for one in &member.router.addresses {
                let interface = one.interface.as_ref().unwrap_or(&member.router.interface);
                let place = (interface.clone(), Family::of(one.address));
                wanted.entry(place).or_default().insert(one.address);
            }
        }
        self.watches.retain(|place, (index, _)| {
            wanted.contains_key(place) && interfaces.index(&place.0) == Some(*index)
        });
        let mut problems = Vec::new();
        for (place, mut addresses) in wanted {
            let Some(index) = interfaces.index(&place.0) else { continue };
            addresses
                .extend(claims.requested(index).into_iter().filter(|a| Family::of(*a) == place.1));
            if self.watches.contains_key(&place) && self.claimed.get(&place) == Some(&addresses) {
                continue;
            }
            let opened = match self.watches.remove(&place) {
                Some((_, watch)) => Ok(watch),
                None => Watch::open(index, place.1),
            };
            let opened = opened.and_then(|watch| {
                watch.set_addresses(addresses.iter().copied())?;
                Ok(watch)
            });
            match opened {
                Ok(watch) => {
                    self.claimed.insert(place.clone(), addresses);
                    self.watches.insert(place, (index, watch));
                }
                Err(error) => problems.push(format!("watch {}: {error}", place.0)),
            }
        }
        problems
    }
}

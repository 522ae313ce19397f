//! From the kernel's tables to the next hop of a backend. No I/O: the same tables give the same
//! answer.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    NextHop, Resolution, Want,
    tables::{Device, DeviceKind, Neighbour, NeighbourKey, NeighbourState, Route, Tables},
};
use crate::desired::Mode;

/// EtherType of IPv4.
const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// VLAN tags that fit the link-layer header of a backend.
const MAX_TAGS: usize = 2;

/// Where frames for `want` go by these tables.
#[must_use]
pub fn resolve(want: &Want, tables: &Tables) -> Resolution {
    match try_resolve(want, tables) {
        Ok(hop) => Resolution::Resolved(hop),
        Err(Obstacle::Awaited(reason)) => Resolution::Pending { reason },
        Err(Obstacle::Fatal(reason)) => Resolution::Unreachable { reason },
    }
}

/// The neighbour whose MAC address `want` needs; none if its route leads to no Ethernet link that
/// is up and resolves neighbours.
#[must_use]
pub fn next_hop_of(want: &Want, tables: &Tables) -> Option<NeighbourKey> {
    let way = way_of(want, tables).ok()?;
    Some((way.oif, way.next_hop))
}

/// Which of the wanted neighbours the kernel should be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Those that were never asked, or that the kernel has forgotten.
    Missing,
    /// Also those that have not answered.
    Unanswered,
    /// Also those that have, so that the kernel probes them: packets sent by XDP don't tell it
    /// that a neighbour is in use.
    All,
}

impl Ask {
    /// The neighbours to ask for. One set by hand never is: asking would make the kernel probe it.
    #[must_use]
    pub fn select(self, next_hops: &BTreeSet<NeighbourKey>, tables: &Tables) -> Vec<NeighbourKey> {
        let asked = |key: &&NeighbourKey| match tables.neighbours.get(key).map(|n| n.state) {
            None | Some(NeighbourState::Forgotten) => true,
            Some(NeighbourState::Incomplete | NeighbourState::Failed) => self != Self::Missing,
            Some(NeighbourState::Valid) => self == Self::All,
            Some(NeighbourState::NoArp | NeighbourState::Permanent) => false,
        };
        next_hops.iter().filter(asked).copied().collect()
    }
}

/// Why there is no next hop.
enum Obstacle {
    /// It will be known soon.
    Awaited(String),
    /// Something has to change first.
    Fatal(String),
}

/// The way to a backend without the MAC address of its next hop.
struct Way<'a> {
    /// The interface of the route, on which the neighbour is resolved.
    oif: u32,
    /// Its device.
    device: &'a Device,
    /// The router or the backend itself.
    next_hop: IpAddr,
    /// The interface that frames leave by.
    lowest: (u32, &'a Device),
    /// Type and VLAN of each tag, the outermost first.
    tags: Vec<[u16; 2]>,
    /// The smallest MTU on the way.
    mtu: u32,
}

fn try_resolve(want: &Want, tables: &Tables) -> Result<NextHop, Obstacle> {
    let way = way_of(want, tables)?;
    let mac = mac_of(&way, tables)?;
    let (ifindex, lowest) = way.lowest;
    let ethertype = if want.address.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let mut l2 = Vec::with_capacity(14 + 4 * way.tags.len());
    l2.extend(mac);
    l2.extend(way.device.mac);
    for word in way.tags.iter().flatten() {
        l2.extend(word.to_be_bytes());
    }
    l2.extend(ethertype.to_be_bytes());
    Ok(NextHop {
        ifindex,
        interface: lowest.name.clone(),
        mac,
        l2,
        mtu: u16::try_from(way.mtu).unwrap_or(u16::MAX),
    })
}

fn way_of<'a>(want: &Want, tables: &'a Tables) -> Result<Way<'a>, Obstacle> {
    let Want { address, mode } = *want;
    let fatal = |reason: String| Err(Obstacle::Fatal(reason));
    let (oif, gateway, route_mtu) = match tables.routes.get(&address) {
        None => return Err(Obstacle::Awaited(format!("the route to {address} is looked up"))),
        Some(Route::Own) => {
            return fatal(format!(
                "{address} is this node's own address; a backend is another host"
            ));
        }
        Some(Route::None(why)) => return fatal(format!("{address} {why}")),
        Some(&Route::Via { oif, gateway, mtu }) => (oif, gateway, mtu),
    };
    if let (Mode::Dsr, Some(router)) = (mode, gateway) {
        return fatal(format!(
            "is behind router {router}: dsr needs it on the link; use mode ipip"
        ));
    }
    let Some(device) = tables.devices.get(&oif) else {
        return fatal(format!("its interface (index {oif}) is gone"));
    };
    if !device.ethernet {
        return fatal(format!("leaves by {}, which is no Ethernet interface", device.name));
    }
    let mut lowest = (oif, device);
    let mut tags = Vec::new();
    let mut mtu = device.mtu.min(route_mtu.unwrap_or(u32::MAX));
    loop {
        let (_, below) = lowest;
        if !below.admin_up {
            return fatal(format!("interface {0} is down: ip link set {0} up", below.name));
        }
        if !below.carrier {
            return fatal(format!("interface {} has no carrier", below.name));
        }
        let parent = match below.kind {
            DeviceKind::Own => break,
            DeviceKind::Vlan { parent, tpid, id } => {
                tags.insert(0, [tpid, id]);
                parent
            }
            DeviceKind::Macvlan { parent } => parent,
        };
        let Some((ifindex, parent)) = parent.and_then(|i| Some((i, tables.devices.get(&i)?)))
        else {
            return fatal(format!("{} is on an interface of another namespace", below.name));
        };
        mtu = mtu.min(parent.mtu);
        lowest = (ifindex, parent);
    }
    if tags.len() > MAX_TAGS {
        return fatal(format!(
            "interface {} has {} VLAN tags; at most {MAX_TAGS} can be sent",
            device.name,
            tags.len()
        ));
    }
    Ok(Way { oif, device, next_hop: gateway.unwrap_or(address), lowest, tags, mtu })
}

fn mac_of(way: &Way<'_>, tables: &Tables) -> Result<[u8; 6], Obstacle> {
    let key = (way.oif, way.next_hop);
    let (next_hop, name) = (way.next_hop, &way.device.name);
    let no_arp = way.device.no_arp;
    match tables.neighbours.get(&key) {
        // The kernel fills in the interface's own address where it is told to resolve none.
        Some(Neighbour { state: NeighbourState::NoArp, .. }) if no_arp => {
            Err(Obstacle::Fatal(format!(
                "interface {name} resolves no neighbours; give it one by hand: \
                 ip neigh replace {next_hop} lladdr MAC dev {name}"
            )))
        }
        Some(Neighbour { mac: Some(mac), .. }) => Ok(*mac),
        Some(Neighbour { state: NeighbourState::Failed, .. }) => {
            Err(Obstacle::Fatal(format!("neighbour {next_hop} on {name} does not answer")))
        }
        _ if tables.is_silent(key) => {
            Err(Obstacle::Fatal(format!("neighbour {next_hop} on {name} does not answer")))
        }
        _ => Err(Obstacle::Awaited(format!("neighbour {next_hop} on {name} was asked"))),
    }
}

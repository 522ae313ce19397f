//! From the kernel's tables to the next hop of a backend. No I/O: the same tables give the same
//! answer.

use std::{collections::BTreeSet, net::IpAddr};

use lb_model::{
    desired::Mode,
    hop::{LOOPBACK, NextHop, Resolution, Want},
};

use super::{
    egress::{self, Egress, Obstacle},
    link::{Link, LinkLayer},
    tables::{Neighbour, NeighbourKey, NeighbourState, Route, Tables},
};

/// In the header of a frame that leaves without one.
const NO_MAC: [u8; 6] = [0; 6];

/// EtherType of IPv4.
const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Where frames for `want` go by these tables.
#[must_use]
pub(crate) fn resolve(want: &Want, tables: &Tables) -> Resolution {
    match try_resolve(want, tables) {
        Ok(hop) => Resolution::Resolved(hop),
        Err(Obstacle::Awaited(reason)) => Resolution::Pending { reason },
        Err(Obstacle::Fatal(reason)) => Resolution::Unreachable { reason },
    }
}

/// The neighbour whose MAC address `want` needs; none if its route leads to no Ethernet link that
/// is up and resolves neighbours.
#[must_use]
pub(crate) fn next_hop_of(want: &Want, tables: &Tables) -> Option<NeighbourKey> {
    let route = route_to(want, tables).ok()?;
    if route.link.layer == LinkLayer::RawIp {
        return None;
    }
    egress::above_bridges((route.oif, route.link), tables).ok()?;
    Some((route.oif, route.next_hop))
}

/// Which of the wanted neighbours are requested of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NeighbourRequest {
    /// Those that were never requested, or that the kernel has forgotten.
    Missing,
    /// Also those that have not answered, of interfaces that have got a carrier lately.
    Restored,
    /// Also those that have not answered.
    Unanswered,
    /// Also those that have, so that the kernel probes them: packets sent by XDP don't show it
    /// that a neighbour is in use.
    All,
}

impl NeighbourRequest {
    /// The neighbours to request. One set by hand never is: that would make the kernel probe it.
    #[must_use]
    pub(crate) fn select(
        self,
        next_hops: &BTreeSet<NeighbourKey>,
        tables: &Tables,
    ) -> Vec<NeighbourKey> {
        let selected = |key: &&NeighbourKey| match tables.neighbours.get(key).map(|n| n.state) {
            None | Some(NeighbourState::Forgotten) => true,
            Some(NeighbourState::Incomplete | NeighbourState::Failed) => match self {
                Self::Missing => false,
                Self::Restored => tables.restored.contains_key(&key.0),
                Self::Unanswered | Self::All => true,
            },
            Some(NeighbourState::Valid | NeighbourState::Probed) => self == Self::All,
            Some(NeighbourState::NoArp | NeighbourState::Permanent) => false,
        };
        next_hops.iter().filter(selected).copied().collect()
    }
}

/// The route to a backend, with its link, before the MAC address of the next hop is known.
struct ResolvedRoute<'a> {
    /// The interface of the route, on which the neighbour is resolved.
    oif: u32,
    link: &'a Link,
    /// The router or the backend itself.
    next_hop: IpAddr,
    /// The route's own MTU.
    mtu: Option<u32>,
}

fn try_resolve(want: &Want, tables: &Tables) -> Result<NextHop, Obstacle> {
    if tables.routes.get(&want.address) == Some(&Route::Own) {
        if want.mode == Mode::Nat {
            let why =
                "is this node's own address, whose answers nat does not translate; use mode dsr";
            return Err(Obstacle::Fatal(why.into()));
        }
        return Ok(NextHop::local());
    }
    let route = route_to(want, tables)?;
    let top = (route.oif, route.link);
    let egress = egress::above_bridges(top, tables)?;
    let is_raw_ip = route.link.layer == LinkLayer::RawIp;
    let (mac, egress) = if is_raw_ip {
        (NO_MAC, egress)
    } else {
        let mac = mac_of(&route, tables)?;
        (mac, egress::of(top, mac, tables)?)
    };
    let Egress { ifindex, link: lowest, tags, mtu } = egress;
    let mtu = mtu.min(route.mtu.unwrap_or(u32::MAX));
    let narrow = tables.path_mtus.get(want.address).filter(|_| want.mode == Mode::Ipip);
    let mtu = mtu.min(narrow.map_or(u32::MAX, u32::from));
    let ethertype = if want.address.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let mut l2 = Vec::with_capacity(14 + 4 * tags.len());
    l2.extend(mac);
    l2.extend(if is_raw_ip { NO_MAC } else { route.link.mac });
    for word in tags.iter().flatten() {
        l2.extend(word.to_be_bytes());
    }
    l2.extend(ethertype.to_be_bytes());
    Ok(NextHop {
        ifindex,
        interface: lowest.name.clone(),
        mac,
        l2,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
    })
}

fn route_to<'a>(want: &Want, tables: &'a Tables) -> Result<ResolvedRoute<'a>, Obstacle> {
    let Want { address, mode } = *want;
    let fatal = |reason: String| Err(Obstacle::Fatal(reason));
    let (oif, gateway, route_mtu) = match tables.routes.get(&address) {
        None => return Err(Obstacle::Awaited(format!("the route to {address} is looked up"))),
        Some(Route::Own) => return fatal(format!("{address} is this node's own address")),
        Some(Route::None(why)) => return fatal(format!("{address} {why}")),
        Some(&Route::Via { oif, gateway, mtu }) => (oif, gateway, mtu),
    };
    if let (Mode::Dsr, Some(router)) = (mode, gateway) {
        return fatal(format!(
            "is behind router {router}: dsr needs it on the link; use mode ipip"
        ));
    }
    let Some(link) = tables.links.get(&oif) else {
        return fatal(format!("its interface (index {oif}) is gone"));
    };
    let name = &link.name;
    match (link.layer, mode) {
        (LinkLayer::Ethernet, _) if name != LOOPBACK => {}
        (LinkLayer::RawIp, Mode::Ipip | Mode::Nat) => {}
        (LinkLayer::RawIp, Mode::Dsr) => return fatal(without_ethernet(name)),
        (LinkLayer::Ethernet | LinkLayer::Other, _) => {
            return fatal(format!("leaves by {name}, which is no Ethernet interface"));
        }
    }
    Ok(ResolvedRoute { oif, link, next_hop: gateway.unwrap_or(address), mtu: route_mtu })
}

fn mac_of(route: &ResolvedRoute<'_>, tables: &Tables) -> Result<[u8; 6], Obstacle> {
    let key = (route.oif, route.next_hop);
    let (next_hop, name) = (route.next_hop, &route.link.name);
    let no_arp = route.link.no_arp;
    match tables.neighbours.get(&key) {
        // The kernel fills in the interface's own address where it is set to resolve none.
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
        _ if !tables.has_room(key) => Err(Obstacle::Awaited(no_room(next_hop))),
        _ => {
            let how = if next_hop.is_ipv4() { "ARP" } else { "NDP" };
            Err(Obstacle::Awaited(format!("{how} for {next_hop} on {name} awaits an answer")))
        }
    }
}

/// Why no backend of a service in mode `dsr` is reached by an interface without Ethernet header.
pub(crate) fn without_ethernet(interface: &str) -> String {
    format!(
        "leaves by {interface}, which has no Ethernet header: dsr needs the backend's MAC address; use mode ipip or nat"
    )
}

/// What to do where the kernel's table of neighbours is full.
pub(crate) fn no_room(next_hop: IpAddr) -> String {
    let family = if next_hop.is_ipv4() { "ipv4" } else { "ipv6" };
    format!(
        "the kernel's table of neighbours has no room for {next_hop}: raise \
         net.{family}.neigh.default.gc_thresh3 above the number of all neighbours"
    )
}

#[cfg(test)]
mod tests;

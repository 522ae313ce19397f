//! The requests to the kernel about the ways to backends, and the content of the kernel's events.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage, neighbour::NeighbourMessage};
use rtnetlink::{MulticastGroup, packet_core::NLM_F_CREATE};

use super::{
    client::{Client, Failure},
    generic,
    link::Link,
    messages,
    tables::{FdbKey, Neighbour, NeighbourKey, Route},
};

/// Groups of events. Nexthop objects are missing: their changes are seen at the next refresh.
pub const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// The content of an event.
#[derive(Debug)]
pub enum Event {
    /// A neighbour has changed.
    Neighbour(NeighbourKey, Neighbour),
    /// The kernel has forgotten a neighbour.
    NeighbourGone(NeighbourKey),
    /// A bridge has learnt that a MAC address is behind this port.
    Fdb(FdbKey, u32),
    /// Links have changed, and with them, maybe, routes.
    Links,
    /// Routes, rules or addresses have changed.
    Routes,
}

impl Event {
    /// The content of a message; none if it is of no interest.
    pub fn of(message: &RouteNetlinkMessage) -> Option<Self> {
        match message {
            RouteNetlinkMessage::NewNeighbour(message) => messages::neighbour(message)
                .map(|(key, neighbour)| Self::Neighbour(key, neighbour))
                .or_else(|| messages::fdb(message).map(|(key, port)| Self::Fdb(key, port))),
            RouteNetlinkMessage::DelNeighbour(message) => {
                messages::neighbour(message).map(|(key, _)| Self::NeighbourGone(key))
            }
            RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => Some(Self::Links),
            _ => Some(Self::Routes),
        }
    }
}

/// The index of the interface on whose link an address is; none if a router is on the way to it, or if no way
/// leads there. In the network namespace of the calling thread.
///
/// # Errors
///
/// If netlink can't be used.
pub fn link_of(address: IpAddr) -> Result<Option<u32>> {
    Ok(match Client::open()?.route(address)? {
        Route::Via { oif, gateway: None, .. } => Some(oif),
        _ => None,
    })
}

impl Client {
    /// All interfaces by index, with what they can do for XDP.
    pub(super) fn links(&mut self) -> Result<BTreeMap<u32, Link>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let answers = answers.context("read the interfaces by netlink")?;
        // Before Linux 6.3 it does not report them.
        let features = generic::xdp_features().unwrap_or_default();
        let links = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(Link::of(link)),
            _ => None,
        });
        Ok(links
            .map(|(ifindex, link)| {
                let xdp_features = features.get(&ifindex).copied();
                (ifindex, Link { xdp_features, ..link })
            })
            .collect())
    }

    /// What all bridges have learnt.
    pub(super) fn fdb(&mut self) -> Result<BTreeMap<FdbKey, u32>> {
        let answers = self.dump(RouteNetlinkMessage::GetNeighbour(messages::all_fdb()));
        let answers = answers.context("read by netlink what bridges have learnt")?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(entry) => messages::fdb(entry),
                _ => None,
            })
            .collect())
    }

    pub(super) fn neighbours(&mut self) -> Result<BTreeMap<NeighbourKey, Neighbour>> {
        let answers = self.dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()));
        let answers = answers.context("read the neighbours by netlink")?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(neighbour) => messages::neighbour(neighbour),
                _ => None,
            })
            .collect())
    }

    /// The kernel's route to `address`, by its rules and metrics.
    pub(super) fn route(&mut self, address: IpAddr) -> Result<Route> {
        match self.request(RouteNetlinkMessage::GetRoute(messages::route_to(address)), 0) {
            Ok(answers) => answers
                .iter()
                .find_map(|answer| match answer {
                    RouteNetlinkMessage::NewRoute(route) => Some(messages::route(route)),
                    _ => None,
                })
                .with_context(|| format!("look up the route to {address}: no answer")),
            Err(Failure::Refused(errno)) => Ok(messages::route_error(errno)),
            Err(Failure::Socket(error)) => {
                Err(error).with_context(|| format!("look up the route to {address}"))
            }
        }
    }

    /// Makes the kernel resolve or probe a neighbour, as a packet to it would.
    pub(super) fn use_neighbour(&mut self, key: NeighbourKey) -> Result<(), Failure> {
        let request = RouteNetlinkMessage::NewNeighbour(messages::use_neighbour(key));
        self.request(request, NLM_F_CREATE).map(drop)
    }

    /// Makes the kernel forget a neighbour, so that it asks all when it is used next.
    pub(super) fn forget_neighbour(&mut self, key: NeighbourKey) -> Result<(), Failure> {
        let request = RouteNetlinkMessage::DelNeighbour(messages::one_neighbour(key));
        self.request(request, 0).map(drop)
    }
}

//! Interfaces, addresses and default routes, by netlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Result;
use lb_model::prefix::Prefix;
use lb_netlink::{client::Client, interfaces::Interfaces, link::Link};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType},
};
use rtnetlink::RouteMessageBuilder;

use crate::doctor::snapshot::InterfaceSnapshot;

/// The parts of the snapshot that netlink reports.
pub(super) struct Links {
    pub(super) interfaces: BTreeMap<String, InterfaceSnapshot>,
    /// What is this host's by a route, beside its addresses.
    pub(super) local_prefixes: Vec<Prefix>,
    /// The segment size that default routes have TCP announce.
    pub(super) announced_segment: Option<u32>,
    /// The gateways of default routes.
    pub(super) gateways: BTreeSet<IpAddr>,
    /// The interface of the default route.
    pub(super) uplink: Option<String>,
}

pub(super) fn read() -> Result<Links> {
    let mut client = Client::open()?;
    let read = Interfaces::read(&mut client)?;
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut routes = Vec::new();
    for family in [v4, v6] {
        // A kernel without IPv6 has no routes of it.
        routes.extend(client.dump(RouteNetlinkMessage::GetRoute(family)).unwrap_or_default());
    }
    let routes = routes.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    let is_default = |route: &&RouteMessage| {
        route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
    };
    let defaults: Vec<_> = routes.clone().filter(is_default).collect();
    let uplink = defaults.iter().find_map(|route| oif(route));
    Ok(Links {
        interfaces: interfaces(&read),
        local_prefixes: routes.filter_map(local).collect(),
        gateways: defaults.iter().flat_map(|route| &route.attributes).filter_map(gateway).collect(),
        announced_segment: defaults.iter().find_map(|route| segment(route)),
        uplink: uplink.and_then(|index| Some(read.links.get(&index)?.name.clone())),
    })
}

fn interfaces(read: &Interfaces) -> BTreeMap<String, InterfaceSnapshot> {
    let interface = |(&ifindex, link): (&u32, &Link)| {
        let addresses = read.addresses_of(ifindex).into_iter();
        let interface = InterfaceSnapshot {
            ifindex,
            loopback: link.loopback,
            up: link.up && link.carrier,
            kind: link.kind_name.clone(),
            layer: link.layer,
            mtu: link.mtu,
            mac: Some(link.mac).filter(|mac| !link.loopback && *mac != [0; 6]),
            addresses: addresses.map(|((_, address, prefix), _)| (*address, *prefix)).collect(),
            ..InterfaceSnapshot::default()
        };
        (link.name.clone(), interface)
    };
    read.links.iter().map(interface).collect()
}

/// What an operator has made this host's own (`ip route add local`); the kernel has such a route for each address, too.
fn local(route: &RouteMessage) -> Option<Prefix> {
    let is_own =
        route.header.kind == RouteType::Local && route.header.protocol != RouteProtocol::Kernel;
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    let to = to.filter(|to| is_own && !to.is_loopback())?;
    format!("{to}/{}", route.header.destination_prefix_length).parse().ok()
}

const fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn oif(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn segment(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
            RouteMetric::Advmss(bytes) => Some(*bytes),
            _ => None,
        }),
        _ => None,
    })
}

//! Interfaces, addresses and default routes, by netlink.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use futures_util::{Stream, StreamExt as _};
use rtnetlink::{
    RouteMessageBuilder, new_connection,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAttribute, RouteMessage, RouteMetric},
    },
};

use crate::{doctor::facts::Interface, netlink::LinkLayer};

/// What netlink tells.
pub(super) struct Links {
    pub(super) interfaces: BTreeMap<String, Interface>,
    /// The segment size that default routes have TCP announce.
    pub(super) announced_segment: Option<u32>,
    /// The interface of the default route.
    pub(super) uplink: Option<String>,
}

pub(super) async fn read() -> Result<Links> {
    let (connection, handle, _) = new_connection().context("open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let links = collect(handle.link().get().execute()).await.context("read the interfaces")?;
    let addresses =
        collect(handle.address().get().execute()).await.context("read the addresses")?;
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    let mut routes = Vec::new();
    for family in [v4, v6] {
        // A kernel without IPv6 has no routes of it.
        routes.extend(collect(handle.route().get(family).execute()).await.unwrap_or_default());
    }
    connection.abort();
    let mut interfaces: BTreeMap<String, Interface> = links.iter().map(interface_of).collect();
    for message in &addresses {
        let owner = interfaces.values_mut().find(|one| one.ifindex == message.header.index);
        if let (Some(interface), Some(address)) = (owner, address_of(message)) {
            interface.addresses.push((address, message.header.prefix_len));
        }
    }
    let defaults: Vec<_> =
        routes.iter().filter(|route| route.header.destination_prefix_length == 0).collect();
    let uplink = defaults.iter().find_map(|route| oif(route)).and_then(|index| {
        let found = interfaces.iter().find(|(_, one)| one.ifindex == index);
        found.map(|(name, _)| name.clone())
    });
    let announced_segment = defaults.iter().find_map(|route| segment(route));
    Ok(Links { announced_segment, uplink, interfaces })
}

async fn collect<T>(stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>> {
    let answers: Vec<_> = stream.collect().await;
    Ok(answers.into_iter().collect::<Result<_, _>>()?)
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

fn interface_of(message: &LinkMessage) -> (String, Interface) {
    let mut name = String::new();
    let flags = message.header.flags;
    let mut interface = Interface {
        ifindex: message.header.index,
        loopback: flags.contains(LinkFlags::Loopback),
        up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
        layer: LinkLayer::of(message.header.link_layer_type),
        ..Interface::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(mac) if !interface.loopback => {
                interface.mac = mac.as_slice().try_into().ok();
            }
            LinkAttribute::LinkInfo(infos) => {
                interface.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (name, interface)
}

fn address_of(message: &AddressMessage) -> Option<std::net::IpAddr> {
    // On a point-to-point link `Address` is the peer's, and `Local` this node's.
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}

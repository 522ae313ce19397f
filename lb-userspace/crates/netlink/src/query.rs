//! One look at the interfaces, for commands that run without the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use netlink_packet_route::address::AddressScope;

use super::{
    client::Client,
    interfaces::Interfaces,
    link::{Link, LinkKind, LinkLayer},
    resolve::without_ethernet,
    tables::Route,
};

/// An interface at one moment: its link and its addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceSnapshot {
    /// Its index.
    pub ifindex: u32,
    /// Its MTU.
    pub mtu: u32,
    /// Id of the XDP program on it.
    pub xdp_prog_id: Option<u32>,
    /// Whether that program runs in the network stack instead of the driver.
    pub xdp_generic: bool,
    /// Index of the bridge or bond that it is a port of.
    pub port_of: Option<u32>,
    /// Of a VLAN: index of the interface below.
    pub vlan_on: Option<u32>,
    /// Its addresses of global scope, or of the host's, but for those of the loopback network.
    pub addresses: Vec<IpAddr>,
}

/// The interfaces of the calling thread's network namespace by name.
///
/// # Errors
///
/// If netlink can't be used.
pub fn interfaces() -> Result<BTreeMap<String, InterfaceSnapshot>> {
    let read = Client::open().and_then(|mut client| Interfaces::read(&mut client));
    let read = read.context("read the interfaces by netlink")?;
    let with_addresses = |(&ifindex, link): (&u32, &Link)| {
        let mut addresses = read.addresses_of(ifindex);
        // A VIP on the loopback may be of the host's scope, as the loopback's own addresses are.
        addresses.retain(|((_, address, _), seen)| {
            matches!(seen.scope, AddressScope::Universe | AddressScope::Host)
                && !address.is_loopback()
        });
        let interface = InterfaceSnapshot {
            ifindex,
            mtu: link.mtu,
            xdp_prog_id: link.xdp_prog_id,
            xdp_generic: link.xdp_generic,
            port_of: link.port_of,
            vlan_on: link.parent().filter(|_| matches!(link.kind, LinkKind::Vlan { .. })),
            addresses: addresses.iter().map(|((_, address, _), _)| *address).collect(),
        };
        (link.name.clone(), interface)
    };
    Ok(read.links.iter().map(with_addresses).collect())
}

/// Why those of these addresses that can't be backends in mode `dsr` are none: their routes lead to an interface without
/// Ethernet header.
///
/// # Errors
///
/// If netlink can't be used.
pub fn not_for_dsr(addresses: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, String>> {
    let mut client = Client::open()?;
    let links = client.links()?;
    let mut refused = BTreeMap::new();
    for &address in addresses {
        if let Route::Via { oif, .. } = client.route(address)?
            && let Some(link) = links.get(&oif)
            && link.layer == LinkLayer::RawIp
        {
            refused.insert(address, without_ethernet(&link.name));
        }
    }
    Ok(refused)
}

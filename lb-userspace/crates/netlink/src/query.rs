//! One look at the interfaces, for commands that run without the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use futures_util::{Stream, StreamExt as _};
use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
};
use rtnetlink::new_connection;

use super::{resolve::dsr_without_ethernet, socket::raw_ip_ways};

/// An interface as it is at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
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
/// If netlink can't be spoken to.
pub fn interfaces() -> Result<BTreeMap<String, Interface>> {
    wait_for(read()).context("read the interfaces by netlink")
}

/// Why those of these addresses that can't be backends in mode `dsr` are none: their routes lead to an interface without
/// Ethernet header.
///
/// # Errors
///
/// If netlink can't be spoken to.
pub fn not_for_dsr(addresses: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, String>> {
    let ways = wait_for(raw_ip_ways(addresses)).context("look up the routes to backends")?;
    Ok(ways.into_iter().map(|(to, interface)| (to, dsr_without_ethernet(&interface))).collect())
}

fn wait_for<T: Send>(question: impl Future<Output = Result<T>> + Send) -> Result<T> {
    // A thread of its own: the caller may be inside a runtime, where one can't block on another.
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(question)
        });
        reader.join().map_err(|_| anyhow!("the thread that asks netlink has panicked"))?
    })
}

async fn read() -> Result<BTreeMap<String, Interface>> {
    let (connection, handle, _) = new_connection()?;
    let connection = tokio::spawn(connection);
    let links = collect(handle.link().get().execute()).await?;
    let addresses = collect(handle.address().get().execute()).await?;
    connection.abort();

    let mut interfaces: BTreeMap<String, Interface> = links.iter().map(interface_of).collect();
    for message in &addresses {
        let owner = interfaces.values_mut().find(|one| one.ifindex == message.header.index);
        if let (Some(interface), Some(address)) = (owner, global_address_of(message)) {
            interface.addresses.push(address);
        }
    }
    Ok(interfaces)
}

async fn collect<T>(stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>> {
    let answers: Vec<_> = stream.collect().await;
    Ok(answers.into_iter().collect::<Result<_, _>>()?)
}

fn interface_of(message: &LinkMessage) -> (String, Interface) {
    let mut name = String::new();
    let mut interface = Interface { ifindex: message.header.index, ..Interface::default() };
    let (mut below, mut is_vlan) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Link(ifindex) => below = Some(*ifindex),
            LinkAttribute::Controller(ifindex) => interface.port_of = Some(*ifindex),
            LinkAttribute::LinkInfo(info) => {
                is_vlan = info.contains(&LinkInfo::Kind(InfoKind::Vlan));
            }
            LinkAttribute::Xdp(all) => {
                for attribute in all {
                    match attribute {
                        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) => {
                            interface.xdp_prog_id = Some(*id);
                        }
                        LinkXdp::Attached(mode) => {
                            interface.xdp_generic = *mode == XdpAttached::SocketBuffer;
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    interface.vlan_on = below.filter(|_| is_vlan);
    (name, interface)
}

fn global_address_of(message: &AddressMessage) -> Option<IpAddr> {
    // A VIP on the loopback may be of the host's scope, as the loopback's own addresses are.
    if !matches!(message.header.scope, AddressScope::Universe | AddressScope::Host) {
        return None;
    }
    // On a point-to-point link `Address` is the peer's, and `Local` this node's.
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    find(true).or_else(|| find(false)).filter(|address| !address.is_loopback())
}

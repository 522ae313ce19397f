//! Where packets for backends go: the results of the resolver of next hops, for the parts that plan and write by them.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::abi;

use crate::desired::Mode;

/// A backend to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Want {
    /// Its address.
    pub address: IpAddr,
    /// How packets travel to it: `dsr` needs it on the link, a tunnel does not.
    pub mode: Mode,
}

/// A host on a link: the index of the interface, and its MAC address.
pub type Station = (u32, [u8; 6]);

/// Name of the loopback, in every network namespace.
pub const LOOPBACK: &str = "lo";

/// Where a frame for a backend goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the interface that the frame leaves by; for a VLAN device the one below it.
    pub ifindex: u32,
    /// That interface's name.
    pub interface: String,
    /// MAC address of the backend, or of the router to it; all zero where frames leave without an Ethernet header.
    pub mac: [u8; 6],
    /// The link-layer header: destination, source, up to two VLAN tags, EtherType of the backend's
    /// family; 14, 18 or 22 bytes. Empty where the backend's address is this node's own. Where frames leave without one,
    /// the kernel takes it off again.
    pub l2: Vec<u8>,
    /// Largest IP packet, in bytes, that the link and the route take.
    pub mtu: u16,
}

impl NextHop {
    /// Of an address of this node: its packets pass to the node's own stack as they came.
    #[must_use]
    pub fn local() -> Self {
        Self {
            ifindex: abi::LOOPBACK,
            interface: LOOPBACK.into(),
            mac: [0; 6],
            l2: Vec::new(),
            mtu: u16::MAX,
        }
    }

    /// Whether the backend's address is this node's own.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.l2.is_empty()
    }

    /// Whether frames leave without an Ethernet header (WireGuard, tun).
    #[must_use]
    pub fn is_raw_ip(&self) -> bool {
        !self.is_local() && self.mac == [0; 6]
    }
}

/// Whether a backend can be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It can.
    Resolved(NextHop),
    /// The neighbour has not answered the request for its MAC address yet.
    Pending {
        /// The awaited answer, for people.
        reason: String,
    },
    /// It can't, until the network or the configuration changes.
    Unreachable {
        /// Why, and where possible what to do.
        reason: String,
    },
}

/// An interface of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub ifindex: u32,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Id of the XDP program on it.
    pub xdp_prog_id: Option<u32>,
    /// Its MAC address; all zero if it has none.
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u32,
}

/// Everything that the resolver knows at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Neighbourhood {
    /// Each wanted backend.
    pub hops: BTreeMap<Want, Resolution>,
    /// The MAC addresses that the balancer's interfaces answer to, VLAN and macvlan devices on
    /// them included.
    pub own_macs: Vec<[u8; 6]>,
    /// The interfaces by name.
    pub links: BTreeMap<String, Link>,
    /// The path MTUs to tunnelled backends, in bytes, where routers have reported them; the hops' MTUs are no
    /// larger.
    pub path_mtus: BTreeMap<IpAddr, u16>,
}

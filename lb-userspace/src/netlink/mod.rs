//! How each backend is reached: the interface, the next hop and its MAC address, from the kernel's
//! own routes, neighbours and links, and what becomes of them.
//!
//! [`Resolver`] is told which backends are wanted and publishes a [`Neighbourhood`] whenever it
//! differs from the one before. The reconciler writes it to the map of the backends.
//!
//! Packets that the program forwards don't refresh the kernel's neighbour entries, so the resolver probes the
//! neighbours in use. [`resolve`] decides without I/O; [`task`] has the sockets.
//!
//! A backend that the kernel can't reach leaves the ring, and its flows move. If no enabled backend of a service
//! can be reached, the ring stays as it is and packets are dropped as `no_backend` until one can be: a flap of the
//! node's own link loses no history.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::Result;
use lb_common::abi;
use tokio::sync::{mpsc, watch};

use crate::desired::Mode;

pub mod changes;
pub mod drops;
mod egress;
pub(crate) mod generic;
pub mod gro;
mod messages;
pub mod query;
mod resolve;
mod socket;
pub mod striding;
mod tables;
mod task;
pub mod trunks;

pub use socket::link_of;
pub use tables::LinkLayer;
use task::Task;

/// A backend to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Want {
    /// Its address.
    pub address: IpAddr,
    /// How packets travel to it: `dsr` needs it on the link, a tunnel does not.
    pub mode: Mode,
}

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
    /// The neighbour was asked for its MAC address and has not answered yet.
    Pending {
        /// What is awaited, for people.
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
    /// What paths to tunnelled backends take, in bytes, where routers have said so; the hops' MTUs are no
    /// larger.
    pub path_mtus: BTreeMap<IpAddr, u16>,
}

/// Follows the kernel's links, routes and neighbours for the wanted backends; dropping it ends it.
pub struct Resolver {
    wants: watch::Sender<BTreeSet<Want>>,
    at_tc: watch::Sender<BTreeSet<String>>,
    doubts: mpsc::UnboundedSender<Want>,
    narrow: mpsc::UnboundedSender<(IpAddr, u16)>,
}

impl Resolver {
    /// Reads the kernel's tables, and follows them from then on in a task of the current runtime,
    /// in the network namespace of the calling thread. `interfaces` are the balancer's own.
    ///
    /// # Errors
    ///
    /// If netlink can't be spoken to.
    pub async fn start(interfaces: Vec<String>) -> Result<(Self, watch::Receiver<Neighbourhood>)> {
        let (wants, wanted) = watch::channel(BTreeSet::new());
        let (at_tc, those_at_tc) = watch::channel(BTreeSet::new());
        let (doubts, doubted) = mpsc::unbounded_channel();
        let (narrow, narrowed) = mpsc::unbounded_channel();
        let (task, neighbourhood) =
            Task::start(interfaces, wanted, those_at_tc, doubted, narrowed).await?;
        tokio::spawn(task.run());
        Ok((Self { wants, at_tc, doubts, narrow }, neighbourhood))
    }

    /// Replaces the set of the balancer's interfaces whose program is at tc: from there frames leave by any interface,
    /// whatever XDP program of somebody else the interface has. Wants that follow are resolved by it.
    pub fn set_at_tc(&self, interfaces: BTreeSet<String>) {
        self.at_tc.send_if_modified(|old| {
            let differs = *old != interfaces;
            *old = interfaces;
            differs
        });
    }

    /// Replaces the set of the wanted backends.
    pub fn want(&self, wants: BTreeSet<Want>) {
        self.wants.send_replace(wants);
    }

    /// A backend is silent: its neighbour is asked whether its MAC address still holds, which goes on
    /// being used meanwhile.
    pub fn doubt(&self, backend: Want) {
        // The task ends only with this, or the process with it.
        let _ = self.doubts.send(backend);
    }

    /// A router has said that the path to a tunnelled backend takes so many bytes; it counts for ten minutes.
    pub fn narrow(&self, backend: IpAddr, mtu: u16) {
        // As above.
        let _ = self.narrow.send((backend, mtu));
    }
}

/// What there is to say of an interface that the program can't be on.
#[must_use]
pub(crate) fn of_other_layer(interface: &str) -> String {
    format!(
        "{interface} is neither an Ethernet interface nor one whose packets begin with their IP header (WireGuard, tun); \
         name an interface of these kinds, by which packets for the VIPs come in"
    )
}

/// What there is to say of one whose packets begin with their IP header, and which is to have XDP.
#[must_use]
pub(crate) fn xdp_without_ethernet(interface: &str) -> String {
    format!(
        "{interface} has no Ethernet header, which XDP needs; with `attach = \"auto\"` or `\"tc\"` it gets the tc program"
    )
}

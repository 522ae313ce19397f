//! How each backend is reached: the interface, the next hop and its MAC address, from the kernel's
//! own routes, neighbours and links, and what becomes of them.
//!
//! [`Resolver`] takes the wanted backends and publishes a [`Neighbourhood`] whenever it
//! differs from the one before. The reconciler writes it to the map of the backends.
//!
//! Packets that the program forwards don't refresh the kernel's neighbour entries, so the resolver probes the
//! neighbours in use. [`resolve`] decides without I/O; [`task`] has the sockets.
//!
//! A backend that the kernel can't reach leaves the ring, and its flows move. If no enabled backend of a service
//! can be reached, the ring stays as it is and packets are dropped as `no_backend` until one can be: a flap of the
//! node's own link loses no history.
//!
//! It knows the kernel's tables and nothing of the balancer's maps, services' state or the daemon: what it is to
//! resolve is given to it, and what it finds are the types of [`lb_model::hop`].

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::Result;
use lb_model::hop::{Neighbourhood, Station, Want};
use tokio::sync::{mpsc, watch};

pub mod changes;
pub mod client;
pub mod drops;
mod egress;
pub mod generic;
pub mod gro;
pub mod interfaces;
pub mod link;
mod messages;
pub mod path_mtu;
pub mod query;
mod requests;
mod resolve;
pub mod sockets;
pub mod striding;
mod tables;
mod task;
pub mod trunks;

pub use link::LinkLayer;
pub use requests::link_of;
use task::{Inputs, Task};

/// Follows the kernel's links, routes and neighbours for the wanted backends; dropping it ends it.
pub struct Resolver {
    wants: watch::Sender<BTreeSet<Want>>,
    at_tc: watch::Sender<BTreeSet<String>>,
    doubts: mpsc::UnboundedSender<Want>,
    narrow: mpsc::UnboundedSender<(IpAddr, u16)>,
    probes: mpsc::UnboundedSender<BTreeSet<Station>>,
}

impl Resolver {
    /// Reads the kernel's tables, and follows them from then on in a task of the current runtime,
    /// in the network namespace of the calling thread. `interfaces` are the balancer's own.
    ///
    /// # Errors
    ///
    /// If netlink can't be used.
    pub async fn start(interfaces: Vec<String>) -> Result<(Self, watch::Receiver<Neighbourhood>)> {
        let (wants, wanted) = watch::channel(BTreeSet::new());
        let (at_tc, those_at_tc) = watch::channel(BTreeSet::new());
        let (doubts, doubted) = mpsc::unbounded_channel();
        let (narrow, narrowed) = mpsc::unbounded_channel();
        let (probes, probed) = mpsc::unbounded_channel();
        let inputs =
            Inputs { wants: wanted, at_tc: those_at_tc, doubts: doubted, narrowed, probed };
        let (task, neighbourhood) = Task::start(interfaces, inputs).await?;
        tokio::spawn(task.run());
        Ok((Self { wants, at_tc, doubts, narrow, probes }, neighbourhood))
    }

    /// Replaces the set of the balancer's interfaces whose program is at tc: from there frames leave by any interface,
    /// whatever other XDP program the interface has. Wants that follow are resolved by it.
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

    /// The program sends to these hosts by routes of the kernel's: it is to ask whether their MAC addresses still hold.
    pub fn probe(&self, stations: BTreeSet<Station>) {
        // As above.
        let _ = self.probes.send(stations);
    }

    /// A router has reported that the path to a tunnelled backend takes so many bytes; it counts for ten minutes.
    pub fn narrow(&self, backend: IpAddr, mtu: u16) {
        // As above.
        let _ = self.narrow.send((backend, mtu));
    }
}

/// The diagnosis of an interface that the program can't be on.
#[must_use]
pub fn of_other_layer(interface: &str) -> String {
    format!(
        "{interface} is neither an Ethernet interface nor one whose packets begin with their IP header (WireGuard, tun); \
         name an interface of these kinds, by which packets for the VIPs come in"
    )
}

/// The diagnosis of one whose packets begin with their IP header, and which is to have XDP.
#[must_use]
pub fn xdp_without_ethernet(interface: &str) -> String {
    format!(
        "{interface} has no Ethernet header, which XDP needs; with `attach = \"auto\"` or `\"tc\"` it gets the tc program"
    )
}

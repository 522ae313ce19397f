//! VRRP (RFC 9568, and RFC 3768 for old peers): which node of a group holds the virtual addresses.
//!
//! [`fsm`] is one virtual router as a pure function of (state, event, now); [`packet`] turns
//! advertisements into bytes and back, [`auth`] verifies their senders, [`announce`] makes the frames
//! that announce addresses, and [`sockets`] carries all that. [`thread`] drives both in a thread of its own that nothing
//! else makes late; sockets, netlink and timers are there. The daemon gives [`ExternalState`] and orders
//! through [`Vrrp`], and receives [`Report`]s.

pub mod addresses;
pub mod announce;
pub mod auth;
pub mod fsm;
pub mod leftovers;
pub mod machine;
pub mod macvlan;
pub mod notify_program;
pub mod observe;
pub mod observed;
pub mod packet;
pub mod realtime;
pub mod release;
pub mod scripts;
pub mod sockets;
pub mod thread;
pub mod track;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_api::routers::RouterStatus;
use lb_model::router::{RouterKey, Routers, State};

/// What the daemon knows that virtual routers depend on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExternalState {
    /// The interfaces whose packets the XDP program forwards.
    pub forwarding: BTreeSet<String>,
    /// How many backends of each service serve, or would if it came to that.
    pub healthy: BTreeMap<String, u32>,
    /// The services that a backend serves, with their VIPs.
    pub served: BTreeSet<(IpAddr, String)>,
    /// Whether the node is draining: it is Active only while no other node can be.
    pub draining: bool,
    /// Routers of which this node has not imported all flows of the Active node, though a peer could send them: such a
    /// router does not preempt for a while, or until the Active router lowers its priority.
    pub unsynced: BTreeSet<RouterKey>,
    /// How many transitions each router, by its name, had made when the daemon computed `unsynced`. After another
    /// transition, `unsynced` is out of date for that router: it does not preempt until the daemon sends a state that
    /// counts this transition. Empty if the node has no peers.
    pub transitions: BTreeMap<String, u64>,
    /// Routers that a peer is Active for, and that this peer hands over as soon as this node's state reports that
    /// it would preempt: so this node does not preempt by itself.
    pub handed_over: BTreeSet<RouterKey>,
    /// Routers that a peer is Active for whose node drains: its priority is low for no fault.
    pub draining_peers: BTreeSet<RouterKey>,
    /// Routers that a peer is Active for, which reports that something that it tracks has lowered its
    /// priority.
    pub lowered_peers: BTreeSet<RouterKey>,
    /// Peers that are authenticated by the sync key and report that their advertisements are not made as
    /// this node's are (password, interval, version): they are taken all the same, so that there are
    /// not two owners.
    pub mismatched: BTreeSet<(RouterKey, IpAddr)>,
    /// Peers that are connected and authenticated by the sync key, and report that they are Active: what
    /// they sign is taken even if the clocks are far apart. A repetition adds nothing to that.
    pub active: BTreeSet<(RouterKey, IpAddr)>,
}

impl ExternalState {
    /// Whether an advertisement that was refused is taken all the same, as its sender is known.
    #[must_use]
    pub(crate) fn accepts_refused(
        &self,
        router: RouterKey,
        from: IpAddr,
        why: packet::Refusal,
    ) -> bool {
        let known = (router, from);
        match why.is_stale() {
            true => self.mismatched.contains(&known) || self.active.contains(&known),
            false => why.is_mismatch() && self.mismatched.contains(&known),
        }
    }
}

/// How a router's addresses are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yield {
    /// A peer was requested by the sync session to take over, and is about to.
    Requested,
    /// The same, of a peer with a higher priority that has reported that it would preempt: this node takes
    /// over again when its own is the higher one.
    Outranked,
    /// By an advertisement with priority 0, for peers that receive nothing else.
    Advertised,
}

/// What is wanted of the virtual routers.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Be these from now on. Routers of the same name, interface and key go on where they are.
    Configure(Routers),
    /// The external state has changed.
    ExternalState(ExternalState),
    /// Give up being Active. The addresses stay until another router advertises as Active; if none is
    /// within the time that it takes a peer to notice, this one goes on. It does not preempt until it
    /// was Active again.
    Yield(RouterKey, Yield),
    /// Become Active at once, whatever the priority: the Active one yields.
    Take(RouterKey),
    /// End: give up being Active as by [`Yield`]; if no router takes over, leave the addresses, unless
    /// `release` is set.
    Stop {
        /// Whether the addresses go in any case.
        release: bool,
    },
}

/// The reports of the virtual routers.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// A router has changed its state; reported after what the state takes was done.
    Transition(Transition),
    /// Something that is to be an event.
    Notice(Notice),
    /// A yield has ended.
    Yielded {
        /// The router.
        router: RouterKey,
        /// The router that has taken over, by its address; or why none has.
        by: Result<IpAddr, String>,
    },
    /// The addresses are this node's in a moment: frames to this MAC address are to be taken from now
    /// on, or no more. The thread waits until that was answered, for 20 ms at most.
    TakeMac {
        /// The virtual MAC address.
        mac: [u8; 6],
        /// Whether frames to it are this node's.
        take: bool,
        /// The channel for the answer.
        done: Done,
    },
    /// It is over, as by [`Order::Stop`].
    Stopped,
}

/// The channel that reports that something was done.
#[derive(Clone, Debug)]
pub struct Done(pub std::sync::mpsc::SyncSender<()>);

impl PartialEq for Done {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A change of a router's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The router's name.
    pub router: String,
    /// Family and VRID.
    pub key: RouterKey,
    /// The state before.
    pub from: State,
    /// The state from now on.
    pub to: State,
    /// Why, for people.
    pub cause: String,
}

/// A notice for the operator about a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The router's name; empty if it is about none, or more than one.
    pub router: String,
    /// What it is about.
    pub kind: NoticeKind,
    /// What has happened, for people; without the router's name.
    pub message: String,
    /// Why.
    pub cause: String,
}

/// What a [`Notice`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// Another router was Active at the same time.
    TwoActive,
    /// Advertisements are made otherwise than here, and can't be taken.
    Mismatch,
    /// Another host has one of the addresses.
    AddressElsewhere,
    /// Addresses of a predecessor were found, or ones that were set by hand are gone.
    Leftover,
    /// Something does not work: a socket, netlink, a notify program.
    Trouble,
    /// A tracked thing has failed, or is well again.
    Track,
    /// The thread did not run for longer than the other routers wait.
    Stalled,
}

/// What the daemon needs of the virtual routers; tests have their own.
pub trait Vrrp: Send {
    /// Gives an order.
    fn order(&self, order: Order);
    /// The status of each router.
    fn status(&self) -> Vec<RouterStatus>;
}

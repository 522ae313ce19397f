//! The inputs and the outputs of a virtual router.

use std::{net::IpAddr, time::Duration};

use lb_model::router::{Announce, Router, State, Version, VirtualAddress};

use crate::{Notice, Yield};

/// What happens to a virtual router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It begins.
    Startup {
        /// Whether its addresses are on their interfaces, left by a predecessor that was Active here.
        inherited: bool,
    },
    /// Its deadline has come.
    Timer,
    /// An advertisement that was taken.
    Received(ReceivedAdvertisement),
    /// It is to give up being Active.
    Yield(Yield),
    /// It is to become Active.
    Take,
    /// It is to end.
    Stop {
        /// Whether its addresses go in any case.
        release: bool,
    },
    /// Another router of its sync group has become Active here, by this name.
    MateActive(String),
    /// Another router of its sync group is not Active here any more, by this name.
    MateBackup(String),
}

/// An advertisement that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedAdvertisement {
    /// Its sender.
    pub from: IpAddr,
    /// This node's address on the path that it came by: equal priorities are decided by addresses
    /// (RFC 9568, 6.4.3), and those of one path only can be compared.
    pub own: IpAddr,
    /// Whether it came by the second path.
    pub second_path: bool,
    /// Its priority; 0: it ceases to be Active.
    pub priority: u8,
    /// Its interval.
    pub interval: Duration,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send an advertisement.
    Advertise {
        /// With this priority.
        priority: u8,
    },
    /// Put the addresses on their interfaces.
    Hold,
    /// Take them off.
    Release,
    /// Announce them on the link, as often as is configured.
    Announce,
    /// Announce them on the link once: another router advertises too, and does so
    /// again if it goes on.
    AnnounceOnce,
    /// Report a new state.
    Transition {
        /// The state before.
        from: State,
        /// The state from now on.
        to: State,
        /// Why.
        cause: String,
    },
    /// Report something else.
    Notice(Notice),
    /// A yield has ended.
    Yielded(Result<IpAddr, String>),
    /// It has ended.
    Stopped,
}

/// The settings of a virtual router, by its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// The version of the protocol.
    pub version: Version,
    /// Between advertisements.
    pub interval: Duration,
    /// Whether it takes over from a lower one.
    pub preempt: bool,
    /// How long it waits with that.
    pub preempt_delay: Duration,
    /// Its addresses: only whether they change matters here.
    pub addresses: Vec<VirtualAddress>,
    /// When they are announced.
    pub announce: Announce,
    /// Whether it leaves it to another router of its sync group to decide between equal priorities,
    /// for as long as that needs: addresses of different families can order nodes differently.
    pub defers: bool,
}

impl From<&Router> for Settings {
    fn from(router: &Router) -> Self {
        Self {
            name: router.name.clone(),
            version: router.version,
            interval: router.interval,
            preempt: router.preempt,
            preempt_delay: router.preempt_delay,
            addresses: router.addresses.clone(),
            announce: router.announce,
            defers: false,
        }
    }
}

/// The inputs of a virtual router's decisions at the moment, by its tracks and by the external state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assessment {
    /// Its priority.
    pub priority: u8,
    /// Whether something that is tracked has lowered it.
    pub lowered: bool,
    /// Why it can't be Active, if so.
    pub fault: Option<String>,
    /// What of the Active router's flows is not known here, if so: it does not take over from a lower one
    /// until it is, or that has lasted too long.
    pub holds_back: Option<String>,
    /// Which other router of its sync group has given way by an order, in words.
    pub abstains: Option<String>,
    /// The number of the router's transitions when `holds_back` was determined; after another transition
    /// it holds back until that is determined again. None: it does not depend on transitions.
    pub known_after: Option<u64>,
    /// Whether its node is draining: it is the last choice of all.
    pub draining: bool,
    /// Whether the Active router's node is draining, so that its priority is low, and the sync session reports it,
    /// not an advertisement.
    pub drains_there: bool,
    /// Whether something that the Active router tracks has lowered its priority, as the sync session
    /// reports. Advertisements carry nothing of what has happened before the first one.
    pub lowered_there: bool,
    /// Whether the Active router hands over when it learns by another way that this one would preempt,
    /// so that no preemption is needed.
    pub handed_over: bool,
}

/// What a virtual router counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Advertisements taken.
    pub received: u64,
    /// Times that it became Active.
    pub became_active: u64,
    /// Transitions of any kind.
    pub transitions: u64,
    /// Advertisements with priority 0 taken.
    pub priority_zero_received: u64,
    /// Advertisements of another router while this one was Active, and that it did not replace just
    /// before.
    pub two_active: u64,
}

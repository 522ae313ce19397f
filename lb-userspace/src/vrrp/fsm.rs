//! One virtual router: what it hears and what it does about it.

use std::{net::IpAddr, time::Duration};

use super::{Notice, State, Yield};

/// What happens to a virtual router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It begins.
    Startup {
        /// Whether its addresses are on their interfaces, left by a predecessor that was Active here.
        held: bool,
    },
    /// Its deadline has come.
    Timer,
    /// An advertisement that was taken.
    Heard(Heard),
    /// It did not run for longer than the other routers wait, and has handled what came meanwhile.
    Stalled,
    /// It is to give up being Active.
    Yield(Yield),
    /// It is to become Active.
    Take,
    /// It is to end.
    Stop {
        /// Whether its addresses go in any case.
        release: bool,
    },
}

/// An advertisement that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Who has sent it.
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
    /// Announce them on the link.
    Announce,
    /// Tell of a new state.
    Transition {
        /// The state before.
        from: State,
        /// The state from now on.
        to: State,
        /// Why.
        cause: String,
    },
    /// Tell of something else.
    Notice(Notice),
    /// A yield has ended.
    Yielded(Result<IpAddr, String>),
    /// It has ended.
    Stopped,
}

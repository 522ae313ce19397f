//! All virtual routers of this node and their sync groups, as one pure machine.
//!
//! The thread at the rim owns a [`Machine`] and does nothing but this:
//!
//! ```text
//!  new ──► retire, configure ──► set_facts, observe, script_ended ──► loop:
//!    wait until deadline(), a socket, an order, an observation
//!    read every socket empty:        heard(name, advertisement, now, &mut out)
//!    what else has come:             order(..) set_facts(..) observe(..) script_ended(..)
//!    always, and last:               tick(now, &mut out)
//!    perform `out` in order
//! ```
//!
//! - Sockets are read empty before [`Machine::tick`], in each round. A thread that was not run for
//!   a while thereby learns that another router has taken over before it says that it is Active;
//!   nothing else is to be done about a stall.
//! - A router of a new configuration takes part as soon as what could be a fault of it is known: the
//!   daemon's facts, its interface, the first result of its scripts. Until then it is in
//!   `Initialize`, and addresses that a predecessor left (`held`) stay, unless another Active router
//!   is heard.
//! - [`Machine::retire`] ends the routers that a new configuration does not have any more; what it
//!   puts out is performed with what belongs to the earlier configuration. Then
//!   [`Machine::configure`] is called with the same routers. A router goes on if its name, interface
//!   and key are the same.
//! - After a change of addresses an Active router gets [`Action::Hold`] again: hold what is
//!   configured by then, and take off what is not any more.
//! - [`Action::Transition`] comes after what the state takes.
//! - Every [`Action::Stopped`] is of one router; [`Machine::is_stopped`] says when all have ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{
    Facts, Order, RouterStatus, Routers,
    fsm::{Action, Heard},
};

/// A router's name.
pub type Name = Arc<str>;

/// What is to be done, in order, and for which router.
pub type Out = Vec<(Name, Action)>;

/// What the rim sees of the system; always all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Interfaces by name; one that is missing does not exist.
    pub links: BTreeMap<String, Link>,
    /// The address that a router's advertisements are sent from, by the router's name. A router
    /// without one can't advertise, which is a fault.
    pub sources: BTreeMap<String, IpAddr>,
    /// The numbers in tracked files; a file that can't be read counts as 0 and tells why.
    pub files: BTreeMap<PathBuf, Result<i64, String>>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether it is up, and has a carrier.
    pub up: bool,
    /// The interface below, of a VLAN device or a macvlan.
    pub below: Option<String>,
}

/// All virtual routers of this node.
#[derive(Debug, Default)]
pub struct Machine {}

impl Machine {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the routers that are not in `routers` any more, at once.
    pub fn retire(&mut self, routers: &Routers, now: Instant, out: &mut Out) {
        let _ = (routers, now, out);
    }

    /// From now on the routers are these. `held` names the new ones whose addresses are on their
    /// interfaces, left by a predecessor that was Active.
    pub fn configure(
        &mut self,
        routers: &Routers,
        held: &BTreeSet<String>,
        now: Instant,
        out: &mut Out,
    ) {
        let _ = (routers, held, now, out);
    }

    /// What the daemon knows.
    pub fn set_facts(&mut self, facts: &Facts, now: Instant, out: &mut Out) {
        let _ = (facts, now, out);
    }

    /// What the rim sees.
    pub fn observe(&mut self, observed: &Observed, now: Instant, out: &mut Out) {
        let _ = (observed, now, out);
    }

    /// A run of a router's tracked script has ended, well or not (a run that takes longer than its
    /// timeout has failed). How many make a difference is counted here.
    pub fn script_ended(
        &mut self,
        router: &str,
        command: &[String],
        result: Result<(), String>,
        now: Instant,
        out: &mut Out,
    ) {
        let _ = (router, command, result, now, out);
    }

    /// An advertisement for a router was taken.
    pub fn heard(&mut self, router: &str, heard: Heard, now: Instant, out: &mut Out) {
        let _ = (router, heard, now, out);
    }

    /// An order: [`Order::Yield`], [`Order::Take`] and [`Order::Stop`]; and [`Order::Facts`], as
    /// [`Self::set_facts`]. [`Order::Configure`] is not one for this: it needs what is held.
    pub fn order(&mut self, order: &Order, now: Instant, out: &mut Out) {
        let _ = (order, now, out);
    }

    /// When [`Self::tick`] is to be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, out: &mut Out) {
        let _ = (now, out);
    }

    /// Whether all routers have ended, as by [`Order::Stop`].
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        true
    }

    /// How they stand. Of the counters, these are counted here: received, became_active,
    /// transitions, priority_zero_received and two_active; the rest is the rim's and 0.
    #[must_use]
    pub fn status(&self, now: Instant, wall: SystemTime) -> Vec<RouterStatus> {
        let _ = (now, wall);
        Vec::new()
    }
}

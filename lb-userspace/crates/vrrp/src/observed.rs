//! What the virtual routers depend on, as the machine is given it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

/// What the thread of the virtual routers knows of links, sources and files; always all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Interfaces by name; one that is missing does not exist.
    pub links: BTreeMap<String, ObservedLink>,
    /// The address that a router's advertisements are sent from, by the router's name. A router
    /// without one can't advertise, which is a fault.
    pub sources: BTreeMap<String, IpAddr>,
    /// What else a router without a source lacks than an address of its interface, by its name.
    pub lacks: BTreeMap<String, String>,
    /// The numbers in tracked files; one that can't be read counts as 0, with the reason.
    pub files: BTreeMap<PathBuf, Result<i64, String>>,
}

/// The state of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedLink {
    /// Whether it is up, and has a carrier.
    pub up: bool,
    /// The interfaces below: what a VLAN device or a macvlan is on, the ports of a bridge, and those below these.
    pub below: BTreeSet<String>,
}

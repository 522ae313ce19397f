//! Virtual routers at one moment.

use std::{net::IpAddr, time::SystemTime};

use lb_model::{
    router::{RouterKey, State},
    units::rfc3339,
};
use serde::{Deserialize, Serialize};

/// A virtual router at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterStatus {
    /// Its name on this node.
    pub name: String,
    /// Family and VRID.
    #[serde(flatten)]
    pub key: RouterKey,
    /// The interface.
    pub interface: String,
    /// The address that its advertisements are sent from, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The sync group that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its state.
    pub state: State,
    /// Since when.
    #[serde(with = "rfc3339")]
    pub since: SystemTime,
    /// Why it is in this state.
    pub cause: String,
    /// The priority as configured.
    pub base_priority: u8,
    /// The priority as it is, with what is tracked.
    pub priority: u8,
    /// The interval in milliseconds: its own, or the Active router's.
    pub interval_millis: u64,
    /// The Active router, if advertisements of another one are received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveRouter>,
    /// The virtual addresses, as `10.0.0.100/32`.
    pub addresses: Vec<String>,
    /// Its problems: a fault, a tracked object that fails.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Whether it keeps from preempting, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_back: Option<String>,
    /// Whether it would preempt, and waits for the Active peer to hand over.
    #[serde(default)]
    pub wants: bool,
    /// Whether something that it tracks has lowered its priority.
    #[serde(default)]
    pub lowered: bool,
    /// The counters since `lbd` started.
    pub counters: Counters,
}

/// Another router that is Active.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveRouter {
    /// Its address.
    pub address: IpAddr,
    /// Its priority.
    pub priority: u8,
}

/// The counters of a router (after RFC 8347, vrrp-statistics).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Advertisements sent.
    pub sent: u64,
    /// Advertisements taken.
    pub received: u64,
    /// Times that it became Active.
    pub became_active: u64,
    /// Transitions of any kind.
    pub transitions: u64,
    /// Advertisements with priority 0 sent.
    pub priority_zero_sent: u64,
    /// Advertisements with priority 0 taken.
    pub priority_zero_received: u64,
    /// Advertisements of another router while this one was Active.
    pub two_active: u64,
    /// Not taken: TTL or hop limit.
    pub ttl_errors: u64,
    /// Not taken: checksum.
    pub checksum_errors: u64,
    /// Not taken: length or form.
    pub malformed: u64,
    /// Not taken: another version.
    pub version_errors: u64,
    /// Not taken: wrong or missing authentication, or a repetition of an old one.
    pub auth_errors: u64,
    /// Interval (version 2) or addresses that are not this node's.
    pub mismatches: u64,
    /// Not taken: from a node that is no peer.
    pub foreign: u64,
    /// Gratuitous ARP requests and unsolicited neighbour advertisements sent.
    pub announcements: u64,
}

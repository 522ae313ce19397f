//! The desired state: the services, their backends and each backend's administrative state.
//!
//! These types can't hold nonsense (a weight is not zero, a backend is in its service's family
//! where the mode requires it), so nothing after the configuration checks again.

mod service_json;
mod service_key;

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    num::NonZeroU16,
    str::FromStr,
    time::{Duration, SystemTime},
};

use lb_common::abi::DEFAULT_RING_SLOTS;
use serde::{Deserialize, Serialize};

use self::service_json::ServiceJson;
pub use self::service_key::{Extent, Ports, ServiceKey, Vips};
use crate::{
    backend_address::{BackendAddress, BackendRef},
    check::Check,
    policy::Policy,
};

/// Everything that the operator wants of this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The services by name.
    pub services: BTreeMap<String, Service>,
}

/// The transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => lb_common::abi::proto::TCP,
            Self::Udp => lb_common::abi::proto::UDP,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// How packets reach the backends of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Layer-2 direct server return: the MAC addresses are rewritten.
    Dsr,
    /// IP in IP: IPIP (RFC 2003), IP6IP6 and IPv4 in IPv6 (RFC 2473).
    Ipip,
    /// Destination NAT: packets get the backend's address and port, and its answers come back through the node.
    Nat,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dsr => "dsr",
            Self::Ipip => "ipip",
            Self::Nat => "nat",
        })
    }
}

/// How the flow of a UDP packet is tracked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UdpPolicy {
    /// Every packet goes to the current owner of its slot.
    Oneshot,
    /// A flow keeps its backend until it is idle.
    #[default]
    Tracked,
    /// An Initial packet opens a flow; a short header follows its connection.
    Quic,
}

/// How long a silent TCP flow is kept, unless the service says otherwise.
pub(crate) const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(900);
/// How long no packet comes for a backend when its drain is over by estimate, unless the service says
/// otherwise: longer than the pings of WebSocket, MQTT, SSH and pools of database connections are apart.
pub(crate) const DEFAULT_DRAIN_SILENCE: Duration = Duration::from_secs(90);
/// Flows per second that may be pinned, unless the service says otherwise.
pub(crate) const DEFAULT_SYN_BUDGET: u32 = 20_000;

/// A service: VIP, port, protocol, how its packets travel, and its backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "ServiceJson", into = "ServiceJson")]
pub struct Service {
    /// VIP, port and protocol.
    pub key: ServiceKey,
    /// The forwarding mode.
    pub mode: Mode,
    /// For UDP: how flows are tracked.
    pub udp_policy: UdpPolicy,
    /// Slots of the ring; a prime of at most 1,048,573.
    pub ring_slots: u32,
    /// How long a silent flow is kept.
    pub idle_timeout: Duration,
    /// Flows per second, over all CPUs, that may be pinned while slots are in flux.
    pub syn_budget: u32,
    /// How long a backend may drain, unless the command gives another limit; none: as long as it takes.
    pub drain_deadline: Option<Duration>,
    /// How long flows of a backend have no packet at least when its drain is over by estimate.
    pub drain_silence: Duration,
    /// How its backends are checked, and the policy for the results.
    pub policy: Policy,
    /// The port that backends listen at which give none of their own; none: `key.port`.
    pub target_port: Option<NonZeroU16>,
    /// The backends by address; a port that the service gives them is in it.
    pub backends: BTreeMap<BackendAddress, Backend>,
}

/// One backend of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// A name that stands for its address, in commands and filters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its share of the ring, against the other backends' weights.
    #[serde(default)]
    pub weight: Weight,
    /// Its administrative state.
    #[serde(default)]
    pub admin: Admin,
    /// Whether it serves only when no backend that is no backup can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
    /// How it is checked, if not by the service's check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Box<Check>>,
}

impl Service {
    /// A TCP service without backends, everything else by default.
    #[must_use]
    pub fn new(vip: IpAddr, port: u16, mode: Mode) -> Self {
        Self {
            key: ServiceKey::new(vip, port, Protocol::Tcp),
            mode,
            udp_policy: UdpPolicy::default(),
            ring_slots: DEFAULT_RING_SLOTS,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            syn_budget: DEFAULT_SYN_BUDGET,
            drain_deadline: None,
            drain_silence: DEFAULT_DRAIN_SILENCE,
            policy: Policy::default(),
            target_port: None,
            backends: BTreeMap::new(),
        }
    }

    /// Whether two services differ in their backends alone, or not at all.
    #[must_use]
    pub fn is_same_but_for_backends(&self, other: &Self) -> bool {
        let without = |service: &Self| Self { backends: BTreeMap::new(), ..service.clone() };
        without(self) == without(other)
    }

    /// The backend that a person names.
    ///
    /// # Errors
    ///
    /// All that it could mean: none, or several.
    pub fn find(&self, backend: &BackendRef) -> Result<BackendAddress, Vec<BackendAddress>> {
        let names = self.backends.iter().map(|(at, backend)| (*at, backend.name.as_deref()));
        backend.find(self.key.port, names)
    }

    /// How a backend is checked.
    #[must_use]
    pub fn check_of<'a>(&'a self, backend: &'a Backend) -> &'a Check {
        backend.check.as_deref().unwrap_or(&self.policy.check)
    }
}

/// The administrative state of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Admin {
    /// It takes new flows.
    #[default]
    Enabled,
    /// It gets no new flows and keeps the ones it has, at most until the deadline.
    Draining {
        /// When flows that are left are moved; none: they may stay.
        deadline: Option<SystemTime>,
    },
    /// It gets no new flows and keeps the ones it has; unlike draining, nothing waits for it.
    Disabled,
    /// It gets nothing; its flows move at once.
    Down,
    /// It drains, and leaves the service when its last flow has ended.
    Removing {
        /// When flows that are left are moved; none: they may stay.
        deadline: Option<SystemTime>,
    },
}

impl Admin {
    /// Whether it drains, to be removed then or not.
    #[must_use]
    pub const fn drains(self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Removing { .. })
    }
}

/// A backend's weight: 1 to 65,535, relative to the others of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Weight(pub NonZeroU16);

impl Default for Weight {
    fn default() -> Self {
        Self(NonZeroU16::MIN)
    }
}

impl FromStr for Weight {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.parse::<u16>().map(NonZeroU16::new) {
            Ok(Some(weight)) => Ok(Self(weight)),
            Ok(None) => Err("weight 0; use 'drain' to take a backend out of service".into()),
            Err(_) => Err(format!("weight `{s}`; a number from 1 to 65535 is expected")),
        }
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

//! What `lbctl -o json status` tells, as far as tests and the live view read it.
//!
//! The types are the kit's own: the kit is built before the BPF linker is there, without which the
//! daemon's crate does not build.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// The whole node.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// Version of `lbd`.
    pub version: String,
    /// Seconds since `lbd` started.
    pub uptime_secs: u64,
    /// The interfaces with the program on them.
    pub interfaces: Vec<Interface>,
    /// The services by name.
    pub services: BTreeMap<String, Service>,
    /// Packets left to the node's own stack, by reason.
    pub passed: BTreeMap<String, Count>,
    /// Packets dropped, by reason.
    pub dropped: BTreeMap<String, Count>,
    /// Pins.
    pub pins: Usage,
    /// What the last write of the maps met with.
    pub last_error: Option<String>,
}

/// An interface with the program on it.
#[derive(Clone, Debug, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: String,
    /// Whether the program is there.
    pub attached: bool,
}

/// How much of a map is used.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Usage {
    /// Entries.
    pub used: u64,
    /// Room for as many.
    pub capacity: u64,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A service.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    /// VIP, port, protocol.
    pub key: Key,
    /// `dsr` or `ipip`.
    pub mode: String,
    /// Slots of the ring.
    pub ring_slots: u32,
    /// Slots in flux.
    pub slots_in_flux: u32,
    /// How it stands.
    pub standing: Standing,
    /// The backends by address.
    pub backends: BTreeMap<IpAddr, Backend>,
}

/// How a service stands.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Standing {
    /// Backends that can take new flows.
    pub up: u16,
    /// Whether checks are ignored for choosing.
    pub panic: bool,
    /// Whether backups serve.
    pub on_backups: bool,
    /// Whether as many are up as the service needs.
    pub ready: bool,
}

/// VIP, port, protocol.
#[derive(Clone, Debug, Deserialize)]
pub struct Key {
    /// The VIP.
    pub vip: IpAddr,
    /// The port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// A backend.
#[derive(Clone, Debug, Deserialize)]
pub struct Backend {
    /// Its weight.
    pub weight: u16,
    /// What the operator said of it.
    pub admin: Admin,
    /// Why it can't be sent to, if so.
    pub unusable: Option<String>,
    /// What the checks found out: `up`, `soft_down`, `hard_down`.
    pub condition: String,
    /// What is known of its checks.
    pub check: Option<Check>,
    /// What the path to it takes, in bytes, where a router has said so.
    pub path_mtu: Option<u16>,
    /// The MAC address of its next hop.
    pub mac: Option<String>,
    /// Its id.
    pub id: u16,
    /// Slots that it owns.
    pub slots: u32,
    /// Slots of which it is the base owner while another has new flows.
    pub base_slots: u32,
    /// Pins to it.
    pub pins: u64,
    /// Those of them whose client has closed its connection.
    pub pins_closing: u64,
    /// Packets and bytes sent to it.
    pub sent: Count,
    /// Packets that opened a flow.
    pub new_flows: u64,
    /// SYNs that went to it as the second choice of their slot.
    pub second_choices: u64,
}

/// What is known of a backend's checks.
#[derive(Clone, Debug, Deserialize)]
pub struct Check {
    /// What the last one found out.
    pub last: Option<String>,
    /// How often it went down.
    pub went_down: u64,
    /// How many there were.
    pub counts: Counts,
}

/// How many checks there were.
#[derive(Clone, Debug, Deserialize)]
pub struct Counts {
    /// That got no good answer.
    pub failed: u64,
}

/// What the operator said of a backend.
#[derive(Clone, Debug, Deserialize)]
pub struct Admin {
    /// `enabled`, `draining` and so on.
    pub state: String,
}

impl Backend {
    /// Whether the checks say that it serves.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.condition == "up"
    }

    /// In a word: `up`, what the operator said, or why it can't be sent to.
    #[must_use]
    pub fn state(&self) -> &str {
        match (&self.unusable, self.admin.state.as_str()) {
            (_, "enabled") if !self.is_up() => {
                self.check.as_ref().and_then(|check| check.last.as_deref()).unwrap_or("down")
            }
            (Some(reason), "enabled") => reason,
            (None, "enabled") => "up",
            (_, said) => said,
        }
    }
}

impl Status {
    /// Reads what `lbctl -o json status` printed.
    ///
    /// # Errors
    ///
    /// If it is not that.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json).context("output of lbctl -o json status")
    }

    /// The service with this name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn service(&self, name: &str) -> Result<&Service> {
        self.services.get(name).with_context(|| format!("no service {name}"))
    }

    /// Packets dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: &str) -> u64 {
        self.dropped.get(reason).map_or(0, |count| count.packets)
    }
}

impl Service {
    /// The backend at this address.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn backend(&self, address: IpAddr) -> Result<&Backend> {
        self.backends.get(&address).with_context(|| format!("no backend {address}"))
    }
}

impl Key {
    /// `10.0.0.100:80`, `[fd00::100]:80`.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        (self.vip, self.port).into()
    }
}

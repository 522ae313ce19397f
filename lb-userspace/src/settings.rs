//! What the data plane is told once, when it is opened: interfaces, places, capacities, secrets.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use lb_common::abi;

/// What the data plane is told when it is opened. A change of any of it needs a new start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The interfaces that the program is attached to.
    pub interfaces: Vec<String>,
    /// Where links and maps are pinned.
    pub pin_dir: PathBuf,
    /// In which modes the program may be attached.
    pub xdp: XdpModes,
    /// Replace a foreign XDP program instead of refusing.
    pub force: bool,
    /// Capacities of the maps.
    pub limits: Limits,
    /// Outer sources of tunnels.
    pub tunnel: Tunnel,
    /// The secret that rings and flow hashes are keyed with; equal on every node.
    pub seed: [u8; 16],
}

/// In which modes the program may be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum XdpModes {
    /// In the driver, or not at all.
    #[default]
    Native,
    /// In the driver where it can, otherwise in the network stack.
    NativeOrGeneric,
    /// In the network stack.
    Generic,
}

/// Capacities of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Services.
    pub services: u32,
    /// Backends of all services together.
    pub backends: u32,
    /// Pinned flows.
    pub pins: u32,
    /// Flows of `tracked` UDP services.
    pub tracked_flows: u32,
    /// QUIC connection ids.
    pub connections: u32,
    /// Fragmented packets of which the rest is awaited.
    pub fragments: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: abi::DEFAULT_SERVICES,
            backends: abi::DEFAULT_BACKENDS,
            pins: abi::DEFAULT_PINS,
            tracked_flows: abi::DEFAULT_TRACKED,
            connections: abi::DEFAULT_CONNECTIONS,
            fragments: abi::DEFAULT_FRAGMENTS,
        }
    }
}

/// Outer sources of tunnels: a prefix each, of which the bits behind its length vary with the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tunnel {
    /// For IPIP.
    pub source_v4: (Ipv4Addr, u8),
    /// For IP6IP6 and IPv4 in IPv6.
    pub source_v6: (Ipv6Addr, u8),
}

impl Default for Tunnel {
    /// Sources that routers take for private, and for discard-only (RFC 6666).
    fn default() -> Self {
        Self {
            source_v4: (Ipv4Addr::new(172, 16, 0, 0), 16),
            source_v6: (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
        }
    }
}

//! The settings of the data plane: the part of the configuration that is no service.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use lb_common::abi;
use serde::{Deserialize, Serialize};

/// Everything that the maps, the program and its links are made with.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The interfaces that the program is attached to.
    pub interfaces: Vec<String>,
    /// Folder in a BPF file system that holds the pinned maps and links.
    pub pin_dir: PathBuf,
    /// Which hook each interface gets.
    pub hooks: Hooks,
    /// Whether tc programs are attached by links where the kernel has them (Linux 6.6); tests try it without.
    pub tc_links: bool,
    /// How the program may be attached to XDP.
    pub xdp: XdpModes,
    /// Whether the program may run in generic mode where GRO merges packets below.
    pub allow_generic_gro: bool,
    /// Whether a foreign XDP program on an interface is replaced.
    pub force: bool,
    /// Whether the program is attached again to an interface that has lost it, by another program or
    /// because the interface was made anew.
    pub reattach: bool,
    /// Which processes of this node reach services in mode `nat`.
    pub local_clients: LocalClients,
    /// How much the maps have room for, and how much the program may do.
    pub limits: Limits,
    /// The outer sources of tunnels.
    pub tunnel: Tunnel,
    /// The secret behind rings and flow hashes; equal on every node of a group.
    pub seed: [u8; 16],
}

/// Which processes of this node reach services in mode `nat` by their VIPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LocalClients {
    /// All in the daemon's network namespace.
    #[default]
    All,
    /// Those in this control group, or below it.
    Below(PathBuf),
    /// None.
    None,
}

/// Which hook an interface gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attach {
    /// XDP in the driver; where it can't, tc, unless [`XdpModes`] allows generic XDP.
    #[default]
    Auto,
    /// XDP, in a mode of [`XdpModes`].
    Xdp,
    /// tc: the ingress of the network stack, of any interface.
    Tc,
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        })
    }
}

/// Where the program runs among other tc programs of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcOrder {
    /// Before those that were there when it was attached.
    #[default]
    First,
    /// After them.
    Last,
}

impl fmt::Display for TcOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first",
            Self::Last => "last",
        })
    }
}

/// Which hook each interface gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Of interfaces that are not named.
    pub attach: Attach,
    /// By interface.
    pub by_interface: BTreeMap<String, Attach>,
    /// For those that get tc.
    pub tc_order: TcOrder,
}

impl Hooks {
    /// The hook of an interface.
    #[must_use]
    pub fn of(&self, interface: &str) -> Attach {
        self.by_interface.get(interface).copied().unwrap_or(self.attach)
    }
}

/// How the program may be attached to XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpModes {
    /// By the driver, or not at all.
    #[default]
    Native,
    /// By the driver; where it can't, by the kernel's network stack.
    NativeOrGeneric,
    /// By the kernel's network stack.
    Generic,
}

/// How much the maps have room for, and how much the program may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Services; at most 65,535.
    pub services: u32,
    /// Backends of all services together; at most 65,534.
    pub backends: u32,
    /// Pinned flows.
    pub pins: u32,
    /// Flows of `tracked` UDP services.
    pub tracked_flows: u32,
    /// TCP connections to backends in mode `nat`.
    pub nat_connections: u32,
    /// QUIC connections.
    pub connections: u32,
    /// Fragmented packets of which the rest is awaited.
    pub fragments: u32,
    /// ICMP errors that each CPU may send in a second; 0 for none.
    pub icmp_errors: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: abi::DEFAULT_SERVICES,
            backends: abi::DEFAULT_BACKENDS,
            pins: abi::DEFAULT_PINS,
            tracked_flows: abi::DEFAULT_TRACKED,
            nat_connections: abi::DEFAULT_NAT_CONNECTIONS,
            connections: abi::DEFAULT_CONNECTIONS,
            fragments: abi::DEFAULT_FRAGMENTS,
            icmp_errors: abi::DEFAULT_ICMP_ERRORS,
        }
    }
}

/// Prefixes of the outer sources of tunnels: address and length. The bits behind the prefix vary
/// with the flow, so that a backend's receive queues share the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// For IPv4 backends.
    pub source_v4: (Ipv4Addr, u8),
    /// For IPv6 backends; only the low 32 bits vary.
    pub source_v6: (Ipv6Addr, u8),
}

impl Default for Tunnel {
    /// 172.16.0.0/16, as Katran has it, and the discard-only prefix 100::/64 (RFC 6666).
    fn default() -> Self {
        Self {
            source_v4: (Ipv4Addr::new(172, 16, 0, 0), 16),
            source_v6: (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            pin_dir: PathBuf::from("/sys/fs/bpf/lb"),
            hooks: Hooks::default(),
            tc_links: true,
            xdp: XdpModes::default(),
            allow_generic_gro: false,
            force: false,
            reattach: true,
            local_clients: LocalClients::default(),
            limits: Limits::default(),
            tunnel: Tunnel::default(),
            seed: [0; 16],
        }
    }
}

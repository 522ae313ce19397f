//! The state of a machine, which the checks examine: plain data.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use lb_api::status::EgressStatus;
use lb_config::{Config, unit::Unit};
use lb_datapath::{kernel::Feature, probe::Found};
use lb_model::{
    backend_address::BackendAddress,
    hop::{Resolution, Want},
};
use lb_netlink::{LinkLayer, striding::EmptyFirstBuffers};

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// The state of a node with the balancer.
#[derive(Clone, Debug)]
pub(crate) struct NodeSnapshot {
    /// The kernel.
    pub kernel: Kernel,
    /// The configuration's file.
    pub file: PathBuf,
    /// The configuration, or its mistakes, a line for each.
    pub config: Result<Config, Vec<Mistake>>,
    /// The unit of `lbd`; none where systemd has none.
    pub unit: Option<Unit>,
    /// Files that the configuration names and that the unit's user may not read.
    pub refused: Vec<Mistake>,
    /// How many CPUs are online.
    pub cpus: u32,
    /// All interfaces by name.
    pub interfaces: BTreeMap<String, InterfaceSnapshot>,
    /// Settings of the kernel's network.
    pub sysctls: Sysctls,
    /// The tables of the firewall.
    pub firewall: Firewall,
    /// How the backends are reached.
    pub hops: BTreeMap<Want, Resolution>,
    /// The egress status of the running `lbd`.
    pub egress: Vec<EgressStatus>,
    /// The backends in mode `nat` of the running `lbd`.
    pub translated: Vec<TranslatedBackend>,
    /// Whether sockets of this node are given backends in mode `nat`.
    pub serves_local_clients: bool,
    /// Other hosts that answer for a VIP on the balancer's links; none if no request could be sent.
    pub claims: Option<BTreeMap<IpAddr, BTreeSet<Mac>>>,
    /// Whether something keeps the clock right; none if the kernel does not report it.
    pub clock_synchronised: Option<bool>,
    /// The `lbd` that runs, if one does.
    pub daemon: Option<Process>,
    /// The socket's file.
    pub socket: SocketFile,
}

/// The traffic of a backend in mode `nat`, in packets.
#[derive(Clone, Debug)]
pub(crate) struct TranslatedBackend {
    /// The service's name.
    pub service: String,
    /// The backend.
    pub backend: BackendAddress,
    /// The interface by which it is reached.
    pub interface: Option<String>,
    /// What this node has sent to it.
    pub sent: u64,
    /// Its answers that came back through this node.
    pub returned: u64,
}

/// A mistake of the configuration, or of a file that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Its text, with its place.
    pub text: String,
    /// The command that fixes it, if one does.
    pub fix: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As `uname -r` has it.
    pub release: String,
    /// Whether it describes its types.
    pub btf: bool,
    /// `net.core.bpf_jit_enable`.
    pub jit: Option<i64>,
    /// The features that the balancer needs of it; none if this user may not look.
    pub features: Option<Vec<Feature>>,
    /// Where BPF file systems are mounted.
    pub bpffs: Vec<PathBuf>,
}

/// The state of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceSnapshot {
    /// Its index.
    pub ifindex: u32,
    /// Whether it was set up and has a carrier.
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Its kind, as `ip -d link` prints it: `veth`, `ipip`; none for hardware.
    pub kind: Option<String>,
    /// The first header of its frames.
    pub layer: LinkLayer,
    /// Its MTU.
    pub mtu: u32,
    /// Its hardware address, if that has six bytes.
    pub mac: Option<Mac>,
    /// Its addresses and the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The XDP program on it.
    pub program: Option<Found>,
    /// Its driver's XDP features, as bits of `enum netdev_xdp_act`; none if the kernel does not
    /// report them (before Linux 6.3).
    pub xdp_features: Option<u64>,
    /// Its offloads that are on, as `ethtool -k` names them.
    pub offloads: Option<BTreeSet<String>>,
    /// The interfaces below it whose GRO is on.
    pub gro_below: Vec<String>,
    /// It and the interfaces below it whose frames come to XDP with an empty first buffer, which no program can fill
    /// on this kernel.
    pub empty_first_buffers: Vec<EmptyFirstBuffers>,
    /// Its queues.
    pub channels: Option<Channels>,
}

impl InterfaceSnapshot {
    /// Whether it has an address.
    #[must_use]
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|(own, _)| *own == address)
    }
}

/// The queues of an interface, each with an interrupt of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// For both directions, in use.
    pub combined: u32,
    /// The most that there could be.
    pub combined_max: u32,
    /// For receiving only, in use.
    pub rx: u32,
    /// The most that there could be.
    pub rx_max: u32,
}

/// Settings of the kernel's network, as `sysctl` names them but with slashes: `net/ipv4/ip_forward`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sysctls(pub BTreeMap<String, i64>);

impl Sysctls {
    /// One of them.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<i64> {
        self.0.get(name).copied()
    }

    /// A setting of IPv4 that counts for an interface: the larger one of its own and that of all
    /// (Documentation/networking/ip-sysctl.rst).
    #[must_use]
    pub(crate) fn of_interface(&self, interface: &str, setting: &str) -> i64 {
        let value = |of: &str| self.get(&conf(of, setting)).unwrap_or(0);
        value("all").max(value(interface))
    }
}

/// The name of a setting of IPv4 of an interface.
#[must_use]
pub(crate) fn conf(interface: &str, setting: &str) -> String {
    format!("net/ipv4/conf/{interface}/{setting}")
}

/// The command that sets these; names of interfaces may have dots, so nothing else separates.
#[must_use]
pub(crate) fn sysctl(settings: &[(String, i64)]) -> String {
    settings.iter().fold("sysctl -w".into(), |line, (name, value)| {
        // The usual way of writing where it is not ambiguous.
        let name = if name.contains('.') { name.clone() } else { name.replace('/', ".") };
        format!("{line} {name}={value}")
    })
}

/// The tables of the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Firewall {
    /// They could not be read; why.
    Unknown(String),
    /// Their rules.
    Known(Rules),
}

/// The rules of the firewall's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Chains of input that drop what they do not accept.
    pub closed: Vec<Chain>,
    /// Whether there are tables of the old kind, which `nft` does not show.
    pub legacy: bool,
    /// Whether some rule lowers the segment size that TCP announces.
    pub clamps: bool,
    /// Rules for packets to certain destinations.
    pub destinations: Vec<Destination>,
}

/// A rule for packets to certain destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// `inet filter input`: family, table and name of its chain.
    pub chain: String,
    /// Its number, as `nft -a` shows it.
    pub handle: u64,
    /// The first of the addresses.
    pub first: IpAddr,
    /// The last one.
    pub last: IpAddr,
    /// The ports that it is for; empty: all, as far as is known.
    pub ports: BTreeSet<u64>,
}

/// A chain of input that drops what it does not accept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `inet filter input`: family, table and name.
    pub name: String,
    /// The numbers that its rules, and those of chains of its table, accept something by: protocols
    /// and ports.
    pub accepts: BTreeSet<u64>,
}

/// A process, as /proc shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its pid.
    pub pid: u32,
    /// The effective user.
    pub uid: u32,
    /// The effective capabilities, as bits.
    pub capabilities: u64,
    /// How many descriptors it may have at most; none: any number.
    pub files: Option<u64>,
    /// How many bytes it may lock in memory; none: any number.
    pub memlock: Option<u64>,
}

/// The socket's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SocketFile {
    /// Its path.
    pub path: PathBuf,
    /// Whether the group of the configuration exists.
    pub group_exists: bool,
    /// Its mode, if it is there.
    pub mode: Option<u32>,
    /// Why no process answers there, if so.
    pub refused: Option<String>,
}

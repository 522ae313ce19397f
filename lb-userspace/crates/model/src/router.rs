//! The settings of a virtual router, in types that can't hold nonsense, and its states.

use std::{
    fmt, iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::desired::ServiceKey;

/// The address family of a virtual router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Where advertisements go unless there are unicast peers (RFC 9568, 5.1.1.2 and 5.1.2.2).
    #[must_use]
    pub const fn group(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(224, 0, 0, 18)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12)),
        }
    }
}

/// The version of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Version {
    /// RFC 3768, IPv4 only, intervals of whole seconds; for peers that know no other.
    #[serde(rename = "2")]
    V2,
    /// RFC 9568.
    #[default]
    #[serde(rename = "3")]
    V3,
}

/// Identifies a virtual router on a link: nodes that share it are its candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouterKey {
    /// IPv4 and IPv6 count VRIDs separately.
    pub family: Family,
    /// The virtual router's identifier (VRID), 1 to 255.
    pub vrid: NonZeroU8,
}

impl fmt::Display for RouterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        write!(f, "{family} VRID {}", self.vrid)
    }
}

/// The priority of the router that owns the addresses (RFC 9568, 5.2.4).
pub const OWNER: u8 = 255;

/// A virtual router, as this node is configured for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Router {
    /// Its name on this node.
    pub name: String,
    /// The interface that advertisements travel on.
    pub interface: String,
    /// Family and VRID.
    pub key: RouterKey,
    /// The version of the protocol that is sent; version 2 only for IPv4.
    pub version: Version,
    /// 1 to 254, or [`OWNER`].
    pub priority: NonZeroU8,
    /// Between advertisements: 10 ms to 40.95 s by centiseconds; for version 2 whole seconds to 255.
    pub interval: Duration,
    /// Whether a node with a higher priority takes over from one that is Active.
    pub preempt: bool,
    /// How long it waits with that, since it could.
    pub preempt_delay: Duration,
    /// Whether the node takes packets to the addresses that are not forwarded (RFC 9568, 6.4.3); if
    /// not, a filter drops those that no service takes.
    pub accept: bool,
    /// The virtual addresses.
    pub addresses: Vec<VirtualAddress>,
    /// The source of advertisements; none: the interface's first address, for IPv6 the link-local one.
    pub source: Option<IpAddr>,
    /// Unicast peers; empty: multicast.
    pub peers: Vec<IpAddr>,
    /// The least TTL (or hop limit) that is taken of unicast: 255 unless peers are behind routers.
    pub min_ttl: u8,
    /// A second way to the same peers.
    pub second_path: Option<SecondPath>,
    /// How advertisements are authenticated.
    pub auth: Auth,
    /// Which checksum advertisements of version 3 over IPv4 carry; both are taken.
    pub checksum: Checksum,
    /// The interface with the virtual MAC address (RFC 9568, 7.3); none: the interface's own is used.
    pub virtual_mac: Option<VirtualMac>,
    /// How the addresses are announced on the link.
    pub announce: Announce,
    /// The tracks that change the priority, or keep the node from being Active.
    pub tracks: Vec<Track>,
    /// A program that runs at each transition, with its arguments.
    pub notify: Option<Vec<String>>,
}

impl Router {
    /// The interfaces that it names: its own, those of its addresses and its second path, and those that it tracks.
    pub fn interface_names(&self) -> impl Iterator<Item = &str> {
        let addresses = self.addresses.iter().filter_map(|address| address.interface.as_deref());
        let second = self.second_path.iter().map(|path| path.interface.as_str());
        let tracked = self.tracks.iter().filter_map(|track| match &track.what {
            Tracked::Interface(name) => Some(name.as_str()),
            _ => None,
        });
        iter::once(self.interface.as_str()).chain(addresses).chain(second).chain(tracked)
    }
}

/// An address that the Active router holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix: 32 or 128 unless the node is to have the link's route by it.
    pub prefix: u8,
    /// The interface that gets it; none: the router's, or the one with its virtual MAC address.
    pub interface: Option<String>,
    /// Its label (IPv4), as `eth0:vip`.
    pub label: Option<String>,
    /// Whether duplicate address detection is left out (IPv6). With it, the address does not answer for
    /// a second or more.
    pub nodad: bool,
    /// Whether advertisements name it. Of another family than the router's, none can.
    pub advertised: bool,
}

/// A second way of advertisements: while either works, no other node takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecondPath {
    /// The interface.
    pub interface: String,
    /// The source; none: the interface's first address of the peers' family.
    pub source: Option<IpAddr>,
    /// The peers' addresses there, of the router's family.
    pub peers: Vec<IpAddr>,
}

/// How advertisements are authenticated.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// They are not.
    None,
    /// A plain password of at most eight bytes (RFC 2338, 5.3.6); version 2 only.
    Pass([u8; 8]),
    /// HMAC-SHA-256 and a time (draft-cassen-vrrp-auth-hmac).
    Hmac {
        /// Number of the key.
        id: u8,
        /// The key.
        secret: Vec<u8>,
    },
}

impl fmt::Debug for Auth {
    /// Prints no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Pass(_) => "Pass(..)",
            Self::Hmac { .. } => "Hmac(..)",
        })
    }
}

/// Which checksum advertisements of version 3 over IPv4 carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checksum {
    /// With the pseudo-header, as RFC 5798 and keepalived have it.
    #[default]
    PseudoHeader,
    /// Of the message alone, as RFC 9568, 5.2.8 requires for IPv4.
    Message,
}

/// The interface with the virtual MAC address: a macvlan device on the router's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualMac {
    /// Its name.
    pub interface: String,
}

/// How the addresses are announced, by gratuitous ARP or unsolicited neighbour advertisements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announce {
    /// How often at once.
    pub repeat: u8,
    /// How long after that once more; zero: never.
    pub delay: Duration,
    /// How often from then on; zero: never.
    pub refresh: Duration,
}

impl Default for Announce {
    fn default() -> Self {
        Self { repeat: 5, delay: Duration::from_secs(5), refresh: Duration::from_secs(60) }
    }
}

/// Something that changes the priority, or keeps the node from being Active.
#[derive(Clone, Debug, PartialEq)]
pub struct Track {
    /// The tracked object.
    pub what: Tracked,
    /// The weight that is added to the priority: while it fails if that is negative, while it is well if it is
    /// positive; 0: a failure is a fault, and the node is not Active while it lasts.
    pub weight: i16,
}

/// A tracked object. The router's own interface always is one.
#[derive(Clone, Debug, PartialEq)]
pub enum Tracked {
    /// An interface: that it is up and has a carrier.
    Interface(String),
    /// That the XDP program is attached to the router's interface, or the one below its VLAN device,
    /// and forwards.
    Forwarding,
    /// A service: that at least so many of its backends are up.
    Service {
        /// Its name.
        name: String,
        /// So many.
        min_healthy: u32,
    },
    /// A program: that it ends with status 0.
    Script {
        /// The program and its arguments.
        command: Vec<String>,
        /// How often it is run.
        interval: Duration,
        /// How long it may take.
        timeout: Duration,
        /// So many successes make it well again.
        rise: u32,
        /// So many failures make it fail.
        fall: u32,
    },
    /// A file with a number, which is multiplied by the weight and added to the priority; with weight 0
    /// any other number than 0 is a fault.
    File(PathBuf),
}

impl fmt::Display for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "interface {name}"),
            Self::Forwarding => f.write_str("forwarding"),
            Self::Service { name, .. } => write!(f, "service {name}"),
            Self::Script { command, .. } => write!(f, "script {}", command.join(" ")),
            Self::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

/// Routers that are Active on one node together, or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncGroup {
    /// Its name.
    pub name: String,
    /// The names of its routers, two or more.
    pub routers: Vec<String>,
}

/// All settings of virtual routers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routers {
    /// The routers; their names and keys are unique.
    pub routers: Vec<Router>,
    /// The groups; a router is in one at most.
    pub groups: Vec<SyncGroup>,
}

/// The state of a virtual router on this node (RFC 9568, 6.4).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does not take part: it was not started, or was stopped.
    #[default]
    Initialize,
    /// It can't take part: its interface is down, or what it tracks has failed.
    Fault,
    /// Another router is Active, or may be.
    Backup,
    /// It holds the addresses.
    Active,
}

impl State {
    /// All states, as metrics export them.
    pub const ALL: [Self; 4] = [Self::Initialize, Self::Fault, Self::Backup, Self::Active];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Fault => "fault",
            Self::Backup => "backup",
            Self::Active => "active",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A service whose VIPs two virtual routers share, though they move together.
#[derive(Clone, Copy, Debug)]
pub struct Split<'a> {
    /// The service's name.
    pub service: &'a str,
    /// The service's key.
    pub key: &'a ServiceKey,
    /// The router that has one of them.
    pub first: &'a Router,
    /// Another one.
    pub second: &'a Router,
    /// The VIP that it has.
    pub vip: IpAddr,
}

impl fmt::Display for Split<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, key, first, vip, .. } = self;
        write!(
            f,
            "{vip} is a VIP of service {service}, as are addresses of virtual router {}: all of {} move together; give \
             them to one router",
            first.name,
            key.vips()
        )
    }
}

/// Whether more than one of these routers has VIPs of a service.
pub fn split<'a>(
    service: &'a str,
    key: &'a ServiceKey,
    routers: impl IntoIterator<Item = &'a Router>,
) -> Option<Split<'a>> {
    let vips = key.vips();
    let mut with_vip = routers.into_iter().filter_map(|router| {
        let mut addresses = router.addresses.iter().map(|at| at.address);
        Some((router, addresses.find(|address| vips.contains(*address))?))
    });
    // A link-local address is another one on each link.
    let is_one = vips.first() == vips.last();
    let (first, _) = with_vip.next().filter(|_| !is_one)?;
    let (second, vip) = with_vip.next()?;
    Some(Split { service, key, first, second, vip })
}

//! The maps' keys and values, as both sides see them.
//!
//! Every type is whole words without hidden padding (`IntoBytes` refuses it at compile time), so
//! that equal keys have equal bytes. What the program in the kernel and the daemon both write is
//! made of [`crate::shared`] integers: there is no lock between them, and no field needs more than one store.
//!
//! A change of any layout here raises [`ABI_VERSION`], which is a part of the path under which the
//! maps are pinned. No change are a map more and a field that was zero, if zero means what it did: a release that
//! does not know them refuses the configuration that makes them other than empty.
//!
//! # Maps
//!
//! `lb-ebpf/src/maps.rs`, and the files that it names, declare the maps. The third column has the entries at the default
//! limits.
//!
//! | map | key and value | entries |
//! |---|---|---|
//! | `SERVICES_V4`, `SERVICES_V6` | VIP, port, protocol: service | 512 each |
//! | `SERVICE_INDEX`, `SERVICE_ENTRIES` | the same, for lookups without a call into the kernel | 2,048 buckets, 512 |
//! | `WIDE_SERVICES` | VIPs, ports, protocol: service with several of them ([`crate::wide`]) | 512 |
//! | `WIDE_VIPS`, `WIDE_PORTS` | tries for their lookups | 512, 32,768 |
//! | `WIDE_GROUPS` | how many prefixes of VIPs they have | 1 |
//! | `RINGS` | service id: ring | 512; a ring of 65,537 slots takes 0.5 MiB |
//! | `BACKENDS` | backend id: destination, headers, egress | 4,096 |
//! | `PINS` | client, port, service, destination: backend, last packet | 262,144 |
//! | `TRACKED`, `CONNECTIONS` | UDP flows, QUIC connection ids: backend | 65,536 each, LRU |
//! | `HANDSHAKES` | marks of the latest QUIC handshakes, of all CPUs | 262,144 |
//! | `FRAGMENTS` | source, destination, id: backend | 16,384, LRU |
//! | `VIPS`, `OWN_MACS` | addresses of services; MAC addresses of this node | |
//! | `PEER_MACS` | service, MAC address of another balancer: this node's backend | 4,096 |
//! | `SYN_BUDGETS` | tokens for pins, by service | for each CPU |
//! | `ICMP_BUDGETS` | tokens for ICMP errors; not pinned | for each CPU |
//! | `TOO_BIG_BUDGETS` | tokens for "packet too big", by a keyed hash of the source; not pinned | 256 for each CPU |
//! | `SYN_MARKS` | marks of the latest SYNs, of all CPUs | 65,536 |
//! | `PIN_LOG`, `PIN_LOG_HEADS` | notes of pins that are new or changed | 4,096 for each CPU |
//! | `PIN_LEASE` | the time until which pins may be made | 1 |
//! | `REVERSE_NAT` | address, port, protocol of a backend in mode `nat`: its id | 4,096 |
//! | `REVERSE_RANGES` | the same of backends that keep the clients' port, with a prefix of ports | 262,144 |
//! | `NAT_BACKENDS` | how many of them there are | 1 |
//! | `LOCAL_PEERS` | sockets of the node that were given a backend ([`local`]) | 16,384 |
//! | `RETURN_EGRESS` | interfaces that answers may be redirected to, and whether by tc alone | 16 |
//! | `RETURN_COUNTERS` | counters of the answers of a backend | for each CPU |
//! | `NAT_CONNECTIONS` | client, backend in mode `nat`: a TCP connection | 65,536, LRU |
//! | `NAT_RECENT` | marks of answers that were noted lately; not pinned | 4,096 for each CPU |
//! | `RETURN_ROUTES` | routes of answers that were found lately; not pinned | 512 for each CPU |
//! | `VERDICTS` | packets and bytes by verdict | for each CPU |
//! | `BACKEND_COUNTERS` | counters of a backend, and its unanswered SYNs | for each CPU |

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, byteorder::network_endian::U16};

mod flow;
mod handshake;
pub mod local;
pub mod nat_connection;
mod pin_log;
mod reverse;
mod slot;

#[cfg(not(target_arch = "bpf"))]
pub use self::slot::SlotSnapshot;
pub use self::{
    flow::{Destination, Flow, FlowKey, FlowValue, flow_flags},
    handshake::{HANDSHAKES, Handshake},
    nat_connection::{
        DEFAULT_NAT_CONNECTIONS, NatConnection, NatConnectionKey, NatConnectionValue,
    },
    pin_log::{PIN_NOTES, PinLease, PinLogHead, PinNote},
    reverse::{ReverseKey, ReversePrefix},
    slot::{Owners, Slot, stamp, stamp_age},
};
use crate::shared::{SharedU32, SharedU64};

/// Number of the layouts in this file; a part of the pin path.
pub const ABI_VERSION: u32 = 3;

/// Services, unless the configuration sets another value.
pub const DEFAULT_SERVICES: u32 = 512;
/// Backends of all services together, unless the configuration sets another value. Id 0 is never a
/// backend, so the maps hold one entry more.
pub const DEFAULT_BACKENDS: u32 = 4_096;
/// Pinned flows, unless the configuration sets another value.
pub const DEFAULT_PINS: u32 = 262_144;
/// Flows of `tracked` UDP services, unless the configuration sets another value.
pub const DEFAULT_TRACKED: u32 = 65_536;
/// QUIC connection ids, unless the configuration sets another value.
pub const DEFAULT_CONNECTIONS: u32 = 65_536;
/// Fragmented packets of which the rest is awaited, unless the configuration sets another value.
pub const DEFAULT_FRAGMENTS: u32 = 16_384;
/// ICMP errors that one CPU may send in a second, unless the configuration sets another value: Linux's
/// `icmp_msgs_per_sec`.
pub const DEFAULT_ICMP_ERRORS: u32 = 1_000;
/// Slots of a ring, unless the configuration sets another value: the prime that Maglev's paper calls
/// large (Eisenbud et al., NSDI 2016, section 5.3).
pub const DEFAULT_RING_SLOTS: u32 = 65_537;

/// Index of the loopback in each network namespace (`LOOPBACK_IFINDEX` of include/net/flow.h): the interface of
/// backends on this node.
pub const LOOPBACK: u32 = 1;

/// Entries of `OWN_MACS`.
pub const OWN_MACS: u32 = 16;
/// Entries of `PEER_MACS`.
pub const PEER_MACS: u32 = 4_096;
/// Entries of `RETURN_EGRESS`.
pub const RETURN_EGRESS: u32 = 16;

/// Of an element of `RETURN_EGRESS`: the interface, with an Ethernet header, takes no frames of XDP, but those of tc.
pub const RETURN_EGRESS_TC: u32 = 1 << 31;
/// Entries of `SYN_MARKS`; a power of two.
pub const SYN_MARKS: u32 = 65_536;

/// Entries of `TOO_BIG_BUDGETS` for each CPU; a power of two.
pub const TOO_BIG_BUDGETS: u32 = 256;

/// IP protocol numbers that a service can have.
pub mod proto {
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
}

/// Key of `SERVICES_V4`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C, align(4))]
pub struct ServiceKeyV4 {
    /// The VIP.
    pub address: [u8; 4],
    /// The port that clients connect to.
    pub port: U16,
    /// [`proto::TCP`] or [`proto::UDP`].
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
}

/// Key of `SERVICES_V6`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C, align(4))]
pub struct ServiceKeyV6 {
    /// The VIP.
    pub address: [u8; 16],
    /// The port that clients connect to.
    pub port: U16,
    /// [`proto::TCP`] or [`proto::UDP`].
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
}

/// How a UDP packet is assigned to the flow that it belongs to. For TCP services the value is unused.
pub mod udp_policy {
    /// Every packet goes to the current owner of its slot: for DNS and the like.
    pub const ONESHOT: u8 = 0;
    /// A flow keeps its backend until it was idle for the service's idle timeout.
    pub const TRACKED: u8 = 1;
    /// An Initial packet opens a flow as a SYN does; a short header follows its connection.
    pub const QUIC: u8 = 2;
}

/// Bits of [`Service::flags`].
pub mod service_flags {
    /// TCP: a SYN that is sent again to a backend that seems silent goes to another one.
    pub const SECOND_CHOICE: u8 = 1;
    /// No pin of the service is made or renamed, as when its SYN budget is spent: another node is
    /// about to take it over, and knows the pins that there are.
    pub const PINNING_PAUSED: u8 = 2;
    /// A backend of the service is on this node and other balancers may forward to it: `PEER_MACS` has them.
    pub const LOCAL: u8 = 4;
    /// The service has several ports, or a prefix of VIPs ([`crate::wide`]).
    pub const WIDE: u8 = 8;
}

/// Value of `SERVICES_V4` and `SERVICES_V6`: one cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Service {
    /// The secret keys of the flow hash ([`crate::hash::FlowKeys`]).
    pub keys: [u64; 6],
    /// Number of slots in the service's ring.
    pub slots: u32,
    /// The service's id: its index in `RINGS` and `SYN_BUDGETS`.
    pub id: u16,
    /// One of [`udp_policy`].
    pub udp_policy: u8,
    /// Bits of [`service_flags`].
    pub flags: u8,
    /// Seconds without a packet after which a flow counts as gone.
    pub idle_timeout: u32,
    /// Pins that one CPU may make for this service in a second, unless its [`TokenBucket::share`] is set.
    pub syn_budget: u32,
}

/// Bits of [`Backend::flags`].
pub mod backend_flags {
    /// The backend can be sent to: it lives and its next hop is resolved.
    pub const USABLE: u8 = 1;
    /// Packets are encapsulated for the backend's address; otherwise only the MACs are rewritten.
    pub const TUNNEL: u8 = 2;
    /// The backend's address is IPv6, and so is the packet that leaves.
    pub const V6: u8 = 4;
    /// The daemon thinks that the backend may be silent. It gets all its packets as before; only a
    /// SYN that is sent again is better off elsewhere.
    pub const SUSPECT: u8 = 8;
    /// Its checks fail while its host answers: it keeps its flows and would refuse a new one. No
    /// current owner has this.
    pub const SOFT_DOWN: u8 = 16;
    /// A packet's destination becomes the backend's address and port, and the source of the backend's answers, which
    /// come back through this node, becomes VIP and port ([`crate::nat`]).
    pub const NAT: u8 = 32;
}

/// Value of `BACKENDS`, indexed by backend id. What every packet needs is in the first cache line,
/// what only IPv6 tunnels need in the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Backend {
    /// The link-layer header that leaves: destination, source, up to two VLAN tags, EtherType.
    pub l2: [u8; 22],
    /// Its length: 14, 18 or 22 bytes; 0 of a backend on this node ([`Self::is_local`]).
    pub l2_len: u8,
    /// Bits of [`backend_flags`].
    pub flags: u8,
    /// Index of the interface that the packet leaves by; the loopback's of a backend on this node.
    pub ifindex: u32,
    /// Largest IP packet of a client, in bytes, that reaches the backend: the path's MTU less what
    /// the tunnel adds.
    pub mtu: u16,
    /// Id of the service that the backend belongs to; the program does not read it.
    pub service: u16,
    /// IPv4 tunnels: sum of the 16-bit words of the outer header that no packet changes, as by
    /// [`crate::rewrite::ipv4_template_sum`].
    pub outer_sum: u32,
    /// Tunnels: which of the low 32 bits of the outer source vary with the flow.
    pub source_mask: u32,
    /// The backend's IPv4 address, or zero.
    pub address_v4: [u8; 4],
    /// IPv4 tunnels: the outer source, its varying bits zero.
    pub source_v4: [u8; 4],
    /// The port that the backend listens at; 0 if that is the port that clients connect to.
    pub port: U16,
    /// Zero.
    pub reserved0: [u8; 14],
    /// The backend's address; IPv4 as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
    pub address: [u8; 16],
    /// IPv6 tunnels: the outer source, its varying bits zero.
    pub source: [u8; 16],
    /// Mode `nat`: the VIP, the source that answers get; IPv4 as an IPv4-mapped IPv6 address. Zero in other modes, as
    /// the next two.
    pub vip: [u8; 16],
    /// Mode `nat`: the port that clients connect to; 0 if they have several, which then stay as they are.
    pub vip_port: U16,
    /// Mode `nat`: [`proto::TCP`] or [`proto::UDP`].
    pub proto: u8,
    /// Zero.
    pub reserved1: u8,
    /// Mode `nat`: the first port that clients connect to, if they have several; else zero.
    pub first_port: U16,
    /// The last one of those.
    pub last_port: U16,
    /// Zero.
    pub reserved2: [u8; 8],
}

impl Backend {
    /// Whether the backend's address is this node's own: its packets pass to the node's own stack as they came.
    #[must_use]
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.l2_len == 0
    }
}

/// Key of `FRAGMENTS`: what all fragments of one packet share (RFC 791, 3.2; RFC 8200, 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct FragmentKey {
    /// The client's address; IPv4 as an IPv4-mapped IPv6 address.
    pub source: [u8; 16],
    /// The VIP; IPv4 as an IPv4-mapped IPv6 address.
    pub destination: [u8; 16],
    /// The packet's identification, as on the wire; IPv4's 16 bits are the first two bytes.
    pub id: [u8; 4],
    /// The protocol of the whole packet for IPv4; 0 for IPv6, where it is no part of the identity.
    pub proto: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Value of `FRAGMENTS`: the decision for the first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Fragment {
    /// Backend id; 0 if the packet is for the node itself.
    pub backend: u16,
    /// 1 if the packet is an answer of the backend; 0 if it goes to the backend.
    pub is_return: u16,
    /// Second at which the first fragment came.
    pub seen: u32,
    /// The bits of the flow's hash that vary the outer source.
    pub entropy: u32,
}

/// Key of `CONNECTIONS`: a QUIC connection by the id that its server chose (RFC 9000, 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct ConnectionKey {
    /// The first eight bytes of the connection id.
    pub id: [u8; 8],
    /// The service's id.
    pub service: u16,
    /// Zero.
    pub reserved: u16,
}

/// Key of `VIPS`: an address of any service; IPv4 as an IPv4-mapped IPv6 address. The value is one
/// word, 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct VipKey {
    /// The VIP.
    pub address: [u8; 16],
}

/// Packets and bytes that ended in one verdict, on one CPU: the element of `VERDICTS`, which has
/// [`crate::verdict::REASONS`] elements for each CPU in turn.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct VerdictCounter {
    /// Packets.
    pub packets: SharedU64,
    /// Bytes, by the length in the IP header; 0 for what has none.
    pub bytes: SharedU64,
}

/// What went to one backend, on one CPU: the element of `BACKEND_COUNTERS`, which has as many
/// elements as `BACKENDS` for each CPU in turn. One cache line.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct BackendCounter {
    /// Packets.
    pub packets: SharedU64,
    /// Bytes, by the length in the IP header, without what a tunnel adds.
    pub bytes: SharedU64,
    /// Packets that open a flow: SYN, QUIC Initial, or the first packet of a tracked flow.
    pub new_flows: SharedU64,
    /// Packets that went to the backend as base owner, without a pin.
    pub unpinned: SharedU64,
    /// SYNs that were recognised as sent again.
    pub syn_retransmissions: SharedU64,
    /// An [`Unanswered`]: this CPU's view, and no total.
    pub unanswered: SharedU64,
    /// SYNs that came here as their slot's second choice.
    pub second_choices: SharedU64,
    /// Zero.
    pub reserved: u64,
}

/// Whether a backend seems to answer: the word [`BackendCounter::unanswered`].
///
/// The low half counts the packets that opened a flow since a client was last seen to acknowledge
/// something ([`crate::verdict::events::BARE_ACK`]); the high half is the tick of the first of them. A
/// client of a UDP service acknowledges nothing that could be seen: there it means nothing, and is not
/// read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unanswered(pub u64);

impl Unanswered {
    /// SYNs without a sign of life after which a backend may be silent. An idle one that lives, and
    /// whose answer to one client gets lost, has one when that client's SYN comes again, and two the
    /// next time.
    pub const SILENT_SYNS: u32 = 3;
    /// Ticks that a silence takes: more than 0.53 seconds, by which an answer has come however far
    /// the client is, and at most 0.81 seconds, so that it is over when a client repeats its SYN
    /// (after one second: RFC 6298, 2.1).
    pub const SILENT_TICKS: u32 = 3;

    /// The tick of a time: 2^28 nanoseconds.
    #[must_use]
    #[inline(always)]
    pub const fn tick(now_nanos: u64) -> u32 {
        (now_nanos >> 28) as u32
    }

    /// Packets that opened a flow since the last sign of life.
    #[must_use]
    #[inline(always)]
    pub const fn syns(self) -> u32 {
        self.0 as u32
    }

    /// The same with one more.
    #[must_use]
    #[inline(always)]
    pub fn with_syn(self, now_nanos: impl FnOnce() -> u64) -> Self {
        if self.syns() != 0 {
            return Self(self.0.wrapping_add(1));
        }
        Self(u64::from(Self::tick(now_nanos())) << 32 | 1)
    }

    /// Whether this is the silence of a backend that does not answer.
    #[must_use]
    #[inline(always)]
    pub const fn is_silence(self, now_nanos: u64) -> bool {
        self.syns() >= Self::SILENT_SYNS
            && Self::tick(now_nanos).wrapping_sub((self.0 >> 32) as u32) >= Self::SILENT_TICKS
    }
}

/// Answers of one backend in mode `nat`, on one CPU: the element of `RETURN_COUNTERS`, which has as many elements as
/// `BACKENDS` for each CPU in turn. One cache line.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct ReturnCounter {
    /// Packets.
    pub packets: SharedU64,
    /// Bytes, by the length in the IP header.
    pub bytes: SharedU64,
    /// SYN-ACKs, without repetitions.
    pub accepted: SharedU64,
    /// RSTs of no connection that the program knows: refusals of a SYN, most of them.
    pub refused: SharedU64,
    /// Sockets of this node that were given the backend for its VIP ([`local`]).
    pub local: SharedU64,
    /// Zero.
    pub reserved: [u64; 3],
}

/// A token bucket of one CPU: how many pins it may still make for one service, as the element of
/// `SYN_BUDGETS`, which has as many elements as there can be services for each CPU in turn; or how
/// many ICMP errors it may still send, as the element of `ICMP_BUDGETS`, which has one for each CPU, and of
/// `TOO_BIG_BUDGETS`, which has [`TOO_BIG_BUDGETS`] for each CPU in turn.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct TokenBucket {
    /// Tokens left. Only the program writes it.
    pub tokens: SharedU32,
    /// Tokens of this CPU in a second; 0 for as many as [`Service::syn_budget`] has. Only the daemon
    /// writes it.
    pub share: SharedU32,
    /// When they were last refilled, in nanoseconds of CLOCK_MONOTONIC.
    pub refilled: SharedU64,
}

impl TokenBucket {
    /// Tokens and share as one word.
    #[must_use]
    pub fn word(&self) -> u64 {
        u64::from(self.tokens.load()) | u64::from(self.share.load()) << 32
    }

    /// The inverse of [`Self::word`].
    pub fn set_word(&self, word: u64) {
        self.tokens.store(word as u32);
        self.share.store((word >> 32) as u32);
    }
}

/// Element of `OWN_MACS`: a MAC address that this node answers to, in the low six bytes as on the
/// wire; all zero ends the list. With an empty list every frame is taken.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct OwnMac {
    /// The address.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// Key of `PEER_MACS`, whose value is the id of the service's backend on this node.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C, align(4))]
pub struct PeerKey {
    /// The MAC address from which another balancer forwards packets of the service.
    pub mac: [u8; 6],
    /// The service's id.
    pub service: u16,
}

/// The IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2) of an IPv4 address.
#[must_use]
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

// The sizes are a promise to the kernel side; a change of any of them is a change of ABI_VERSION.
const _: () = {
    assert!(size_of::<ServiceKeyV4>() == 8);
    assert!(size_of::<ServiceKeyV6>() == 20);
    assert!(size_of::<Service>() == 64);
    assert!(size_of::<Slot>() == 8);
    assert!(size_of::<Backend>() == 128);
    assert!(size_of::<FlowKey>() == 24 && size_of::<Destination>() == 4);
    assert!(size_of::<Flow>() == 8 && size_of::<FlowValue>() == 8);
    assert!(size_of::<FragmentKey>() == 40 && size_of::<Fragment>() == 12);
    assert!(size_of::<ConnectionKey>() == 12);
    assert!(size_of::<VerdictCounter>() == 16 && size_of::<BackendCounter>() == 64);
    assert!(size_of::<TokenBucket>() == 16 && size_of::<OwnMac>() == 8);
    assert!(size_of::<PeerKey>() == 8);
    assert!(size_of::<ReturnCounter>() == 64);
    assert!(size_of::<PinNote>() == 32 && size_of::<PinLogHead>() == 64);
    assert!(size_of::<PinLease>() == 8);
};

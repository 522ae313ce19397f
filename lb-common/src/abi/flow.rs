//! The flows whose backends tables hold.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, byteorder::network_endian::U16};

use super::{Service, ServiceKeyV4, ServiceKeyV6, service_flags};
use crate::shared::{SharedU16, SharedU32};

/// A flow of a service, as the key of `PINS` and `TRACKED`. The service stands for the protocol, and for VIP and port
/// unless it has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct FlowKey {
    /// The client's address; IPv4 as an IPv4-mapped IPv6 address.
    pub source: [u8; 16],
    /// The client's port.
    pub port: U16,
    /// The service's id.
    pub service: u16,
    /// Which of the service's VIPs and ports.
    pub destination: Destination,
}

impl FlowKey {
    /// A flow of a service that has one VIP and one port.
    #[must_use]
    pub const fn new(source: [u8; 16], port: U16, service: u16) -> Self {
        Self { source, port, service, destination: Destination::ONLY }
    }

    /// As three words; the lower half of the last one has the client's port and the service.
    #[must_use]
    #[inline(always)]
    pub const fn to_words(&self) -> [u64; 3] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.source;
        let port = u16::from_ne_bytes(self.port.to_bytes());
        [
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
            port as u64 | (self.service as u64) << 16 | (self.destination.to_word() as u64) << 32,
        ]
    }

    /// The inverse of [`Self::to_words`].
    #[must_use]
    #[inline(always)]
    pub fn from_words(words: [u64; 3]) -> Self {
        let mut source = [0; 16];
        source[..8].copy_from_slice(&words[0].to_ne_bytes());
        source[8..].copy_from_slice(&words[1].to_ne_bytes());
        let port = U16::from_bytes((words[2] as u16).to_ne_bytes());
        let destination = Destination::from_word((words[2] >> 32) as u32);
        Self { source, port, service: (words[2] >> 16) as u16, destination }
    }
}

/// Where a client connects to, among the VIPs and ports of a service that has several ([`service_flags::WIDE`]); all
/// zero of a service that has one of each.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
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
#[repr(C, align(2))]
pub struct Destination {
    /// The port.
    pub port: U16,
    /// The last two bytes of the VIP: a prefix has at most 2^16 addresses.
    pub host: [u8; 2],
}

impl Destination {
    /// The one VIP and port of a service.
    pub const ONLY: Self = Self { port: U16::ZERO, host: [0; 2] };

    /// Of an IPv4 packet of the service that has this destination.
    #[must_use]
    #[inline(always)]
    pub const fn of_v4(service: &Service, to: &ServiceKeyV4) -> Self {
        let [.., c, d] = to.address;
        Self::of(service, to.port, [c, d])
    }

    /// The same of an IPv6 packet.
    #[must_use]
    #[inline(always)]
    pub const fn of_v6(service: &Service, to: &ServiceKeyV6) -> Self {
        let [.., o, p] = to.address;
        Self::of(service, to.port, [o, p])
    }

    /// Of a packet for this port and for an address that ends in these two bytes.
    #[must_use]
    #[inline(always)]
    pub const fn of(service: &Service, port: U16, host: [u8; 2]) -> Self {
        if service.flags & service_flags::WIDE == 0 {
            return Self::ONLY;
        }
        Self { port, host }
    }

    /// As the 32 bits of a word.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        let ([a, b], [c, d]) = (self.port.to_bytes(), self.host);
        u32::from_ne_bytes([a, b, c, d])
    }

    /// The inverse of [`Self::to_word`].
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        let [a, b, c, d] = word.to_ne_bytes();
        Self { port: U16::from_bytes([a, b]), host: [c, d] }
    }
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// A packet other than a SYN came since the flow was opened.
    pub const ESTABLISHED: u16 = 1;
    /// The client sent FIN or RST. The flow stays until it is idle: a bare RST may be forged.
    pub const CLOSING: u16 = 2;
}

/// Value of `PINS`, `TRACKED` and `CONNECTIONS`: where a flow goes regardless of the ring.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct Flow {
    backend: SharedU16,
    flags: SharedU16,
    seen: SharedU32,
}

/// A [`Flow`] at one moment.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct FlowValue {
    /// Id of the backend.
    pub backend: u16,
    /// Bits of [`flow_flags`].
    pub flags: u16,
    /// Second of the last packet, on the clock of [`crate::tables::Tables::now`].
    pub seen: u32,
}

impl Flow {
    /// A flow with this state.
    #[must_use]
    #[inline(always)]
    pub const fn new(value: FlowValue) -> Self {
        Self {
            backend: SharedU16::new(value.backend),
            flags: SharedU16::new(value.flags),
            seen: SharedU32::new(value.seen),
        }
    }

    /// The state as it is.
    #[inline(always)]
    pub fn get(&self) -> FlowValue {
        FlowValue { backend: self.backend.load(), flags: self.flags.load(), seen: self.seen.load() }
    }

    /// Replaces the state.
    #[inline(always)]
    pub fn set(&self, value: FlowValue) {
        self.backend.store(value.backend);
        self.flags.store(value.flags);
        self.seen.store(value.seen);
    }

    /// Notes a packet at second `now`, adding `flags`. Stores only changes.
    #[inline(always)]
    pub fn touch(&self, now: u32, flags: u16) {
        if self.seen.load() != now {
            self.seen.store(now);
        }
        let old = self.flags.load();
        if old | flags != old {
            self.flags.store(old | flags);
        }
    }
}

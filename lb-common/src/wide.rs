//! Services with several ports, or with a prefix of VIPs: which of them a packet is for.
//!
//! The most specific service is first: of the services that a packet's destination and protocol fit, the one with the
//! longest prefix, and of those the one with the fewest ports. A service with one VIP and one port is therefore before
//! all others, and is found without what is here ([`crate::service_index`]).
//!
//! `WIDE_SERVICES` is the truth. Beside it the daemon keeps two longest-prefix tries for the lookups. `WIDE_VIPS` leads
//! from an address to the group of the longest prefix that any service has there. `WIDE_PORTS` leads from group, protocol
//! and port to the id of the service, which is in `SERVICE_ENTRIES`; a range of ports takes several entries. A group has
//! the services of the shorter prefixes around it, too, so that two lookups find any service
//! (`lb_datapath::wide_index`).
//!
//! A port's entry is written before what would otherwise be found there is removed. The number of a group that is gone
//! is at rest, as the id of a service is.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, network_endian::U16};

/// Key of `WIDE_SERVICES`, whose value is the [`Service`](crate::abi::Service).
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
pub struct WideKey {
    /// The prefix's address; IPv4 as an IPv4-mapped IPv6 address.
    pub address: [u8; 16],
    /// The first port.
    pub first: U16,
    /// The last port.
    pub last: U16,
    /// Bits of the prefix, of 128.
    pub bits: u8,
    /// [`proto::TCP`](crate::abi::proto::TCP) or [`proto::UDP`](crate::abi::proto::UDP).
    pub proto: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

impl WideKey {
    /// Whether packets for this address, IPv4 as an IPv4-mapped IPv6 address, can be the service's.
    #[must_use]
    pub fn has_address(&self, address: [u8; 16]) -> bool {
        let differ = u128::from_be_bytes(self.address) ^ u128::from_be_bytes(address);
        differ.leading_zeros() >= u32::from(self.bits)
    }

    /// Whether a packet fits the service.
    #[must_use]
    pub fn fits(&self, address: [u8; 16], port: u16, proto: u8) -> bool {
        let ports = self.first.get()..=self.last.get();
        self.proto == proto && ports.contains(&port) && self.has_address(address)
    }

    /// The lower of two is the more specific one.
    #[must_use]
    pub const fn order(&self) -> (u8, u16) {
        (128 - self.bits, self.last.get() - self.first.get())
    }
}

/// Key of the trie `WIDE_VIPS`, whose value is a group's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VipPrefix {
    /// How many bits of what follows count.
    pub bits: u32,
    /// The address; IPv4 as an IPv4-mapped IPv6 address.
    pub address: [u8; 16],
}

impl VipPrefix {
    /// For the lookup of an address.
    #[must_use]
    #[inline(always)]
    pub const fn of(address: [u8; 16]) -> Self {
        Self { bits: 128, address }
    }
}

/// Key of the trie `WIDE_PORTS`, whose value is a service's id.
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
#[repr(C)]
pub struct PortPrefix {
    /// How many bits of what follows count.
    pub bits: u32,
    /// The group's number.
    pub group: u16,
    /// The protocol's number.
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
    /// The port.
    pub port: U16,
    /// Zero.
    pub padding: u16,
}

impl PortPrefix {
    /// Bits before the port.
    pub const BEFORE_PORT: u32 = 32;
    /// Bits of a lookup.
    pub const BITS: u32 = Self::BEFORE_PORT + 16;

    /// For the lookup of a port.
    #[must_use]
    #[inline(always)]
    pub const fn of(group: u16, proto: u8, port: U16) -> Self {
        Self { bits: Self::BITS, group, proto, reserved: 0, port, padding: 0 }
    }

    /// What follows the number of bits, as a word; the port's bytes are as on the wire.
    #[must_use]
    #[inline(always)]
    pub const fn word(group: u16, proto: u8, port: u16) -> u64 {
        let ([a, b], [c, d]) = (group.to_ne_bytes(), port.to_ne_bytes());
        u64::from_ne_bytes([a, b, proto, 0, c, d, 0, 0])
    }
}

/// Room in `WIDE_PORTS` for each service: a range of ports takes 30 entries at most, in each group that it is in.
pub const PORTS_PER_SERVICE: u32 = 64;

const _: () = {
    assert!(size_of::<WideKey>() == 24);
    assert!(size_of::<VipPrefix>() == 20 && size_of::<PortPrefix>() == 12);
};

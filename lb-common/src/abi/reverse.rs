//! Backends in mode `nat` by the source of their answers: keys of `REVERSE_NAT` and `REVERSE_RANGES`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, network_endian::U16};

/// Key of `REVERSE_NAT`, whose value is the id of the backend: the source of its answers.
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
pub struct ReverseKey {
    /// The backend's address; IPv4 as an IPv4-mapped IPv6 address.
    pub address: [u8; 16],
    /// The port that it listens at.
    pub port: U16,
    /// [`proto::TCP`](super::proto::TCP) or [`proto::UDP`](super::proto::UDP).
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
}

/// Key of the trie `REVERSE_RANGES`, whose value is the id of a backend that keeps the clients' port: the source of its
/// answers. A range of ports takes several entries.
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
pub struct ReversePrefix {
    /// How many bits of what follows count.
    pub bits: u32,
    /// The backend's address; IPv4 as an IPv4-mapped IPv6 address.
    pub address: [u8; 16],
    /// [`proto::TCP`](super::proto::TCP) or [`proto::UDP`](super::proto::UDP).
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
    /// The port.
    pub port: U16,
    /// Zero.
    pub padding: u32,
}

impl ReversePrefix {
    /// Bits before the port.
    pub const BEFORE_PORT: u32 = 144;

    /// For the lookup of a source.
    #[must_use]
    pub const fn of(source: &ReverseKey) -> Self {
        let ReverseKey { address, port, proto, .. } = *source;
        Self { bits: Self::BEFORE_PORT + 16, address, proto, reserved: 0, port, padding: 0 }
    }

    /// The prefix of these bits, [`Self::BEFORE_PORT`] of them or more.
    #[must_use]
    pub const fn shortened(self, bits: u32) -> Self {
        let mask = !(0xffff_u32 >> (bits - Self::BEFORE_PORT)) as u16;
        Self { bits, port: U16::new(self.port.get() & mask), ..self }
    }

    /// What follows the number of bits.
    #[must_use]
    pub fn data(&self) -> [u8; 24] {
        let mut data = [0; 24];
        data.copy_from_slice(&self.as_bytes()[size_of::<u32>()..]);
        data
    }

    /// The last word of that; the port's bytes are as on the wire.
    #[must_use]
    #[inline(always)]
    pub const fn word(proto: u8, port: u16) -> u64 {
        let [a, b] = port.to_ne_bytes();
        u64::from_ne_bytes([proto, 0, a, b, 0, 0, 0, 0])
    }
}

const _: () = assert!(size_of::<ReverseKey>() == 20 && size_of::<ReversePrefix>() == 28);

//! Sockets of the balancer's own node that were given a backend in mode `nat` for a VIP: key and value of `LOCAL_PEERS`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, network_endian::U16};

/// Such sockets that are known at a time.
pub const LOCAL_PEERS: u32 = 16_384;

/// Which end of a socket's packets an address is.
pub mod direction {
    /// The VIP that it sends to, for which the value is the backend.
    pub const TO: u16 = 1;
    /// The backend that answers it, for which the value is the VIP.
    pub const FROM: u16 = 2;
}

/// Key of `LOCAL_PEERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct LocalPeerKey {
    /// The socket's cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// The address; IPv4 as an IPv4-mapped IPv6 address.
    pub address: [u8; 16],
    /// The port.
    pub port: U16,
    /// One of [`direction`].
    pub direction: u16,
    /// Zero.
    pub reserved: u32,
}

/// Value of `LOCAL_PEERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct LocalPeer {
    /// The address; IPv4 as an IPv4-mapped IPv6 address.
    pub address: [u8; 16],
    /// The port.
    pub port: U16,
    /// The backend's id.
    pub backend: u16,
}

const _: () = assert!(size_of::<LocalPeerKey>() == 32 && size_of::<LocalPeer>() == 20);

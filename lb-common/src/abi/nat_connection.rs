//! A TCP connection to a backend in mode `nat`: key and value of `NAT_CONNECTIONS`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, byteorder::network_endian::U16};

use crate::shared::SharedU32;

/// Connections to backends in mode `nat` that are counted, unless the configuration sets another value.
pub const DEFAULT_NAT_CONNECTIONS: u32 = 65_536;

/// Key of `NAT_CONNECTIONS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct NatConnectionKey {
    /// The client's address; IPv4 as an IPv4-mapped IPv6 address.
    pub client: [u8; 16],
    /// The client's port.
    pub port: U16,
    /// The backend's id.
    pub backend: u16,
    /// The port at the backend.
    pub target: U16,
    /// Zero.
    pub reserved: u16,
}

/// Bits of [`NatConnectionValue::client`].
pub mod client_flags {
    /// The client has sent a FIN.
    pub const FIN: u32 = 1;
    /// The client has sent an RST with the sequence number that the backend had acknowledged last, which is the one that it
    /// accepts (RFC 5961, 3.2). Who does not see the connection does not know it.
    pub const RST: u32 = 2;
}

/// Bits of [`NatConnectionValue::backend`].
pub mod backend_flags {
    /// The backend has sent a FIN.
    pub const FIN: u32 = 1;
    /// The backend has sent an RST.
    pub const RST: u32 = 2;
    /// The backend has sent nothing but SYN-ACKs.
    pub const OPENING: u32 = 4;
    /// How often it has, in the bits from here on.
    pub const SYN_ACKS_SHIFT: u32 = 8;
}

/// Value of `NAT_CONNECTIONS`, which is written by what its two ends send.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct NatConnection {
    /// [`NatConnectionValue::seen`].
    pub seen: SharedU32,
    /// [`NatConnectionValue::acknowledged`].
    pub acknowledged: SharedU32,
    /// [`NatConnectionValue::client`].
    pub client: SharedU32,
    /// [`NatConnectionValue::backend`].
    pub backend: SharedU32,
}

/// A [`NatConnection`] at one moment.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct NatConnectionValue {
    /// Second of the backend's last packet, or of the client's FIN or RST if that came later.
    pub seen: u32,
    /// The backend's last acknowledgment number, in the order of bytes of the network.
    pub acknowledged: u32,
    /// Bits of [`client_flags`]: what the client has sent.
    pub client: u32,
    /// Bits of [`backend_flags`]: what the backend has sent.
    pub backend: u32,
}

/// What a connection is, by what its ends have sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The backend has answered a SYN, and whether the client has acknowledged that can't be seen yet.
    Opening,
    /// It is open.
    Open,
    /// It was never completed: the backend has repeated its SYN-ACK as often as it does.
    Abandoned,
    /// It is closed.
    Closed,
}

impl NatConnection {
    /// A connection with this state.
    #[must_use]
    #[inline(always)]
    pub const fn new(value: NatConnectionValue) -> Self {
        Self {
            seen: SharedU32::new(value.seen),
            acknowledged: SharedU32::new(value.acknowledged),
            client: SharedU32::new(value.client),
            backend: SharedU32::new(value.backend),
        }
    }

    /// The state as it is.
    #[must_use]
    #[inline(always)]
    pub fn get(&self) -> NatConnectionValue {
        NatConnectionValue {
            seen: self.seen.load(),
            acknowledged: self.acknowledged.load(),
            client: self.client.load(),
            backend: self.backend.load(),
        }
    }
}

impl NatConnectionValue {
    /// SYN-ACKs after which Linux gives up, one more than `net.ipv4.tcp_synack_retries` by default.
    const SYN_ACKS: u32 = 6;

    /// What the connection is at second `now`.
    ///
    /// A backend repeats a SYN-ACK that no client acknowledges after one second, two, four and so on (RFC 6298, 2.1 and
    /// 5.5). So one that has not done so in time has a client.
    #[must_use]
    pub const fn stage(self, now: u32) -> Stage {
        let fins = self.client & client_flags::FIN != 0 && self.backend & backend_flags::FIN != 0;
        let rst = self.client & client_flags::RST != 0 || self.backend & backend_flags::RST != 0;
        if fins || rst {
            return Stage::Closed;
        }
        if self.backend & backend_flags::OPENING == 0 {
            return Stage::Open;
        }
        let syn_acks = self.backend >> backend_flags::SYN_ACKS_SHIFT;
        let wait = 1 << if syn_acks < Self::SYN_ACKS { syn_acks } else { Self::SYN_ACKS };
        // Both ends of a second may be missing.
        if now.saturating_sub(self.seen) <= wait {
            Stage::Opening
        } else if syn_acks >= Self::SYN_ACKS {
            Stage::Abandoned
        } else {
            Stage::Open
        }
    }
}

const _: () = {
    assert!(size_of::<NatConnectionKey>() == 24);
    assert!(size_of::<NatConnection>() == 16 && size_of::<NatConnectionValue>() == 16);
};

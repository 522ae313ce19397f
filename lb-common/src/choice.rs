//! What the rule of a slot takes and returns: a packet and its flow, and the backend that is chosen.

use zerocopy::network_endian::U16;

use crate::{
    abi::{Destination, FlowKey, Service},
    verdict::{Drop, Pass},
};

/// A backend, by id, and what is to be counted for the choice. Id 0 means that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The backend's id.
    pub id: u16,
    /// Bits of [`events`](crate::verdict::events), which are below 2^8.
    pub events: u32,
}

impl Choice {
    pub(crate) const NONE: Self = Self { id: 0, events: 0 };

    /// That backend, with nothing else to count.
    #[inline(always)]
    pub const fn of(id: u16) -> Self {
        Self { id, events: 0 }
    }

    /// As one word of 24 bits, which is what a function that isn't inlined can return in the
    /// kernel.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.id as u64 | (self.events as u64) << 16
    }

    /// The inverse of [`Self::to_word`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { id: word as u16, events: (word >> 16 & 0xff) as u32 }
    }
}

/// What the functions that aren't inlined find out, as one word: a choice, and the entropy that
/// goes with it; or why there is none.
#[derive(Clone, Copy)]
pub enum Found {
    /// A choice, and the bits of the flow's hash that vary the outer source of a tunnel.
    Choice(Choice, u32),
    /// The packet is not the balancer's.
    Pass(Pass),
    /// The packet can't be sent on.
    Drop(Drop),
}

impl Found {
    const PASS: u64 = 1 << 62;
    const DROP: u64 = 1 << 63;

    /// As one word.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        match self {
            Self::Choice(choice, entropy) => choice.to_word() | (entropy as u64) << 24,
            Self::Pass(reason) => reason.index() as u64 | Self::PASS,
            Self::Drop(reason) => reason.index() as u64 | Self::DROP,
        }
    }

    /// The inverse of [`Self::to_word`].
    #[inline(always)]
    pub fn from_word(word: u64) -> Self {
        if word & Self::PASS != 0 {
            return Self::Pass(Pass::from_index(word as u32).unwrap_or(Pass::NotAService));
        }
        if word & Self::DROP != 0 {
            return Self::Drop(Drop::from_index(word as u32).unwrap_or(Drop::NoBackend));
        }
        Self::Choice(Choice::from_word(word), (word >> 24) as u32)
    }
}

/// What a packet means for its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens it: a SYN.
    Opens {
        /// The initial sequence number, in any byte order.
        sequence: u32,
    },
    /// Belongs to it.
    Continues,
    /// Belongs to it and only acknowledges: an ACK without data.
    Acknowledges,
    /// Belongs to it and ends the client's side: FIN or RST.
    Closes,
}

impl Kind {
    /// As one of [`kind`].
    #[inline(always)]
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Opens { .. } => kind::OPENS,
            Self::Continues | Self::Acknowledges => kind::CONTINUES,
            Self::Closes => kind::CLOSES,
        }
    }

    /// The sequence number, if it opens a flow.
    #[inline(always)]
    pub(crate) const fn sequence(self) -> Option<u32> {
        match self {
            Self::Opens { sequence } => Some(sequence),
            _ => None,
        }
    }
}

/// What [`in_flux`](crate::steer::in_flux) takes.
pub(crate) mod kind {
    pub(crate) const OPENS: u32 = 0;
    pub(crate) const CONTINUES: u32 = 1;
    pub(crate) const CLOSES: u32 = 2;
    /// An ICMP error about the flow: it finds the backend and changes nothing.
    pub(crate) const CONCERNS: u32 = 3;
    /// Another packet of a QUIC handshake whose server was not seen to answer.
    pub(crate) const REPEATS: u32 = 4;
    /// Another packet of a QUIC handshake whose server has answered.
    pub(crate) const PROCEEDS: u32 = 5;
}

/// A flow of a service, as the functions that aren't inlined take it.
pub struct Query<'a> {
    /// The service.
    pub service: &'a Service,
    /// The flow's key.
    pub key: FlowKey,
    /// The flow's hash.
    pub hash: u64,
}

impl<'a> Query<'a> {
    /// The flow of a client's IPv4 address and port to a destination. Its key is made of words: the stack has no room for
    /// an address beside it.
    #[inline(always)]
    pub fn v4(
        service: &'a Service,
        (source, port): ([u8; 4], [u8; 2]),
        destination: Destination,
        hash: u64,
    ) -> Self {
        let [a, b, c, d] = source;
        let lower = u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d]);
        let rest = u64::from(u16::from_ne_bytes(port))
            | u64::from(service.id) << 16
            | u64::from(destination.to_word()) << 32;
        Self { service, key: FlowKey::from_words([0, lower, rest]), hash }
    }

    /// The flow of a client's IPv6 address and port to a destination.
    #[inline(always)]
    pub fn v6(
        service: &'a Service,
        (source, port): ([u8; 16], [u8; 2]),
        destination: Destination,
        hash: u64,
    ) -> Self {
        let key = FlowKey { source, port: U16::from_bytes(port), service: service.id, destination };
        Self { service, key, hash }
    }
}

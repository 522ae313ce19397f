//! Messages between nodes, as bytes.
//!
//! A message is one datagram of at most [`DATAGRAM`] bytes: a header, a body that is encrypted, and
//! the tag that proves both. [`seal`](super::seal) does that; what is here is their content.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |      'l'      |      's'      |    Version    |     Kind      |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |       For: the first bytes of the receiver's session, or 0    |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                                                               |
//! +                                                               +
//! |                                                               |
//! +                 Session of the sender (16 bytes)              +
//! |                                                               |
//! +                                                               +
//! |                                                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |             Counter of the sender's packets (8 bytes)         |
//! +                                                               +
//! |                                                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                             Salt                              |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |  Body, encrypted: one message                               ...
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |  Tag (16 bytes)                                             ...
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! All numbers are in network order, or of variable length ([`bytes::Reader::varint`]). The version
//! is that of everything behind it: nodes of different versions report that and send each other nothing else.
//!
//! Versions do not negotiate. A failover between two versions loses only flows in flux, while two formats in one
//! release would have to be kept and tested for ever.

pub mod bytes;
pub mod node_state;
pub mod parts;

use lb_model::router::RouterKey;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U32, U64},
};

use self::bytes::{Malformed, Read, Reader, Writer};
use super::id::{SessionId, TAG_BYTES};

/// Most bytes of a datagram: no path fragments it, not even with tunnels on it.
pub const DATAGRAM: usize = 1200;

/// Most bytes of a message.
pub const BODY: usize = DATAGRAM - size_of::<Header>() - TAG_BYTES;

/// Most bytes of parts of records in a message: what remains beside its other fields.
pub const PARTS: usize = BODY - 24;

/// Most bytes of a fragment in [`Message::NodeState`].
pub(crate) const FRAGMENT: usize = BODY - 16;

/// Most ranges in one [`Message::Ack`] or [`Message::Nack`].
pub(crate) const RANGES: usize = 64;

/// The version of all that is here.
pub(crate) const VERSION: u8 = 4;

const MAGIC: [u8; 2] = *b"ls";

/// What every datagram begins with.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Header {
    magic: [u8; 2],
    version: u8,
    /// What the body is.
    pub kind: u8,
    /// [`SessionId::tag`] of the receiver; 0: it is for all.
    pub to: U32,
    /// The sender's session.
    pub session: [u8; 16],
    /// Which of the session's packets it is, from 1 on.
    pub counter: U64,
    /// Random: a part of the nonce.
    pub salt: U32,
}

/// Why a datagram has no [`Header`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHeader {
    /// It is something else.
    #[error("they are not of this protocol")]
    Foreign,
    /// It is of another version.
    #[error(
        "they are of version {0} of the protocol, and this node speaks version {VERSION}: run the \
         same release on both nodes"
    )]
    Version(u8),
}

impl Header {
    /// A header of a message from `session`.
    #[must_use]
    pub fn new(kind: u8, to: u32, session: &SessionId, counter: u64, salt: u32) -> Self {
        let (to, counter, salt) = (U32::new(to), U64::new(counter), U32::new(salt));
        Self { magic: MAGIC, version: VERSION, kind, to, session: session.0, counter, salt }
    }

    /// The header of a datagram, and what is behind it.
    ///
    /// # Errors
    ///
    /// It is no datagram of this protocol and version.
    pub fn split(datagram: &mut [u8]) -> Result<(Self, &mut [u8]), NoHeader> {
        match datagram {
            [m0, m1, version, ..] if [*m0, *m1] == MAGIC && *version != VERSION => {
                return Err(NoHeader::Version(*version));
            }
            [m0, m1, ..] if [*m0, *m1] == MAGIC => {}
            _ => return Err(NoHeader::Foreign),
        }
        if datagram.len() > DATAGRAM || datagram.len() < size_of::<Self>() + TAG_BYTES {
            return Err(NoHeader::Foreign);
        }
        let (header, sealed) = datagram.split_at_mut(size_of::<Self>());
        let header = Self::read_from_bytes(header).map_err(|_| NoHeader::Foreign)?;
        Ok((header, sealed))
    }
}

/// The content of [`Message::Hello`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hello<'a> {
    /// What the node calls itself, up to [`NAME`] bytes.
    pub node: &'a str,
    /// What the peer is to repeat, so that the node knows it to be there in this moment.
    pub challenge: u32,
    /// The receiver's session, and the challenge that was last received from it; zeros: none.
    pub echo: (SessionId, u32),
    /// How often the node has lost the receiver.
    pub losses: u32,
    /// The node's clock, in microseconds.
    pub clock: u64,
    /// The last clock of the receiver that was received, and how many microseconds ago; 0: none.
    pub echo_clock: (u64, u64),
    /// The last sequence number that was published.
    pub head: u64,
    /// The first sequence number of the receiver that is missing; 0: everything is.
    pub next: u64,
    /// The first sequence number of the receiver that the node has not made use of yet, of those that
    /// have arrived; 0: of none.
    pub acknowledged: u64,
    /// Whether the node has everything of the receiver's.
    pub complete: bool,
    /// The generations of the node's [`node_state`].
    pub node_state: [u32; node_state::HALVES],
    /// The generations of the receiver's state that have arrived.
    pub has: [u32; node_state::HALVES],
}

/// Most bytes of a node's name.
pub const NAME: u8 = 64;

/// Most bytes of a refusal to take over.
pub(crate) const REFUSAL: u8 = 255;

/// A run of numbers: the first, and how many.
pub(crate) type Range = (u64, u32);

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// That the node is there, and how far it is with the receiver's messages.
    Hello(Hello<'a>),
    /// A fragment of the node's state.
    NodeState {
        /// Which half.
        half: u8,
        /// Its generation.
        generation: u32,
        /// Which fragment, and of how many.
        index: (u16, u16),
        /// The fragment.
        bytes: &'a [u8],
    },
    /// What has changed of the node's history; see [`parts`].
    Changes {
        /// The sequence number, from 1 on.
        sequence: u64,
        /// How many more were published when this was sent.
        ahead: u64,
        /// The parts.
        parts: &'a [u8],
    },
    /// All of the node's history: one packet of a transfer.
    Transfer {
        /// Which transfer; a later one has a higher number.
        transfer: u32,
        /// Which packet of it, from 0 on.
        index: u32,
        /// Whether it is the last one.
        last: bool,
        /// The last sequence number that the transfer includes.
        since: u64,
        /// The parts.
        parts: &'a [u8],
    },
    /// How far a transfer has arrived.
    Ack {
        /// Which transfer.
        transfer: u32,
        /// The first packet that is missing.
        next: u32,
        /// What else is missing below the last one that has arrived.
        missing: Vec<Range>,
    },
    /// Sequence numbers that are missing; the first is the lowest of all.
    Nack {
        /// They.
        missing: Vec<Range>,
    },
    /// The receiver is to become Active for routers, when it has all of the node's history.
    TakeoverRequest {
        /// Which request.
        id: u64,
        /// The last sequence number that it must have.
        head: u64,
        /// The routers.
        routers: Vec<RouterKey>,
    },
    /// [`Message::TakeoverRequest`] is taken back.
    Withdraw {
        /// The request's number.
        id: u64,
    },
    /// The answer to [`Message::TakeoverRequest`].
    Answer {
        /// Which request.
        id: u64,
        /// It does, or why not.
        answer: Result<(), &'a str>,
    },
    /// The node ends.
    Bye,
}

impl<'a> Message<'a> {
    /// The kind of [`Message::Hello`], which alone is taken from sessions that are not known yet.
    pub const HELLO: u8 = 1;
    const NODE_STATE: u8 = 2;
    const NEWS: u8 = 3;
    /// The kind of [`Message::Transfer`].
    pub(crate) const TRANSFER: u8 = 4;
    const ACK: u8 = 5;
    const NACK: u8 = 6;
    const TAKEOVER_REQUEST: u8 = 7;
    const ANSWER: u8 = 8;
    const BYE: u8 = 9;
    const WITHDRAW: u8 = 10;

    /// The kind in the header.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => Self::HELLO,
            Self::NodeState { .. } => Self::NODE_STATE,
            Self::Changes { .. } => Self::NEWS,
            Self::Transfer { .. } => Self::TRANSFER,
            Self::Ack { .. } => Self::ACK,
            Self::Nack { .. } => Self::NACK,
            Self::TakeoverRequest { .. } => Self::TAKEOVER_REQUEST,
            Self::Withdraw { .. } => Self::WITHDRAW,
            Self::Answer { .. } => Self::ANSWER,
            Self::Bye => Self::BYE,
        }
    }

    /// Appends the body.
    pub fn encode(&self, body: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => hello.encode(body),
            Self::NodeState { half, generation, index, bytes } => {
                body.put(&[*half]);
                body.put_varint(u64::from(*generation));
                body.put_varint(u64::from(index.0));
                body.put_varint(u64::from(index.1));
                body.put(bytes);
            }
            Self::Changes { sequence, ahead, parts } => {
                body.put_varint(*sequence);
                body.put_varint(*ahead);
                body.put(parts);
            }
            Self::Transfer { transfer, index, last, since, parts } => {
                body.put_varint(u64::from(*transfer));
                body.put_varint(u64::from(*index));
                body.put(&[u8::from(*last)]);
                body.put_varint(*since);
                body.put(parts);
            }
            Self::Ack { transfer, next, missing } => {
                body.put_varint(u64::from(*transfer));
                body.put_varint(u64::from(*next));
                put_ranges(body, missing);
            }
            Self::Nack { missing } => put_ranges(body, missing),
            Self::TakeoverRequest { id, head, routers } => {
                body.put_varint(*id);
                body.put_varint(*head);
                body.put(&(routers.len() as u16).to_be_bytes());
                for router in routers {
                    node_state::put_router_key(body, router);
                }
            }
            Self::Withdraw { id } => body.put_varint(*id),
            Self::Answer { id, answer } => {
                body.put_varint(*id);
                body.put(&[u8::from(answer.is_ok())]);
                if let Err(refusal) = answer {
                    body.put_text(refusal, REFUSAL);
                }
            }
            Self::Bye => {}
        }
    }

    /// Reads a body of this kind.
    ///
    /// # Errors
    ///
    /// The bytes are no such message.
    pub fn decode(kind: u8, body: &'a [u8]) -> Read<Self> {
        let mut reader = Reader(body);
        let message = match kind {
            Self::HELLO => Self::Hello(Hello::decode(&mut reader)?),
            Self::NODE_STATE => {
                let (half, generation) = (reader.u8()?, reader.varint32()?);
                let small =
                    |number| u16::try_from(number).map_err(|_| Malformed("no such fragment"));
                let index = (small(reader.varint()?)?, small(reader.varint()?)?);
                if usize::from(half) >= node_state::HALVES || index.0 >= index.1 {
                    return Err(Malformed("no such fragment"));
                }
                Self::NodeState { half, generation, index, bytes: reader.rest() }
            }
            Self::NEWS => Self::Changes {
                sequence: reader.varint()?,
                ahead: reader.varint()?,
                parts: reader.rest(),
            },
            Self::TRANSFER => Self::Transfer {
                transfer: reader.varint32()?,
                index: reader.varint32()?,
                last: reader.bool()?,
                since: reader.varint()?,
                parts: reader.rest(),
            },
            Self::ACK => Self::Ack {
                transfer: reader.varint32()?,
                next: reader.varint32()?,
                missing: ranges(&mut reader)?,
            },
            Self::NACK => Self::Nack { missing: ranges(&mut reader)? },
            Self::TAKEOVER_REQUEST => {
                let (id, head) = (reader.varint()?, reader.varint()?);
                let count = usize::from(reader.u16()?);
                if count * 2 > reader.0.len() {
                    return Err(Malformed("it is cut off"));
                }
                let routers = (0..count).map(|_| node_state::router_key(&mut reader));
                Self::TakeoverRequest { id, head, routers: routers.collect::<Read<_>>()? }
            }
            Self::WITHDRAW => Self::Withdraw { id: reader.varint()? },
            Self::ANSWER => {
                let id = reader.varint()?;
                let answer = if reader.bool()? { Ok(()) } else { Err(reader.text()?) };
                Self::Answer { id, answer }
            }
            Self::BYE => Self::Bye,
            _ => return Err(Malformed("a message is of an unknown kind")),
        };
        reader.end()?;
        Ok(message)
    }
}

impl<'a> Hello<'a> {
    fn encode(&self, body: &mut Vec<u8>) {
        body.put_text(self.node, NAME);
        body.put_varint(u64::from(self.challenge));
        body.put(&self.echo.0.0);
        body.put_varint(u64::from(self.echo.1));
        body.put_varint(u64::from(self.losses));
        body.put_varint(self.clock);
        body.put_varint(self.echo_clock.0);
        body.put_varint(self.echo_clock.1);
        body.put_varint(self.head);
        body.put_varint(self.next);
        body.put_varint(self.acknowledged);
        body.put(&[u8::from(self.complete)]);
        for generation in self.node_state.into_iter().chain(self.has) {
            body.put_varint(u64::from(generation));
        }
    }

    fn decode(reader: &mut Reader<'a>) -> Read<Self> {
        Ok(Self {
            node: reader.text()?,
            challenge: reader.varint32()?,
            echo: (SessionId(reader.array()?), reader.varint32()?),
            losses: reader.varint32()?,
            clock: reader.varint()?,
            echo_clock: (reader.varint()?, reader.varint()?),
            head: reader.varint()?,
            next: reader.varint()?,
            acknowledged: reader.varint()?,
            complete: reader.bool()?,
            node_state: [reader.varint32()?, reader.varint32()?],
            has: [reader.varint32()?, reader.varint32()?],
        })
    }
}

fn put_ranges(body: &mut Vec<u8>, ranges: &[Range]) {
    let ranges = &ranges[..ranges.len().min(RANGES)];
    body.put(&[ranges.len() as u8]);
    let mut from = 0;
    for &(first, count) in ranges {
        body.put_varint(first.saturating_sub(from));
        body.put_varint(u64::from(count));
        from = first.saturating_add(u64::from(count));
    }
}

/// Ranges in rising order, none of which is empty.
fn ranges(reader: &mut Reader<'_>) -> Read<Vec<Range>> {
    const MALFORMED: Malformed = Malformed("a range is none");
    let count = usize::from(reader.u8()?);
    if count > RANGES {
        return Err(MALFORMED);
    }
    let mut from = 0_u64;
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let first = from.checked_add(reader.varint()?).ok_or(MALFORMED)?;
        let count = reader.varint32()?;
        from = first.checked_add(u64::from(count)).filter(|end| *end > first).ok_or(MALFORMED)?;
        ranges.push((first, count));
    }
    Ok(ranges)
}

/// Reads any bytes as a message of a kind, with what it carries; for tests with any bytes.
///
/// # Errors
///
/// The bytes are no such message.
pub fn decode(kind: u8, body: &[u8]) -> Read<()> {
    match Message::decode(kind, body)? {
        Message::Changes { parts, .. } | Message::Transfer { parts, .. } => {
            let mut records = Vec::new();
            parts::Assembler::default().take(parts::unpack(parts)?, &mut records)
        }
        Message::NodeState { half, bytes, .. } => {
            node_state::decode(half, bytes, &mut super::NodeState::default())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

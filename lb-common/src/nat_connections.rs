//! Counts TCP connections to backends in mode `nat`, of which both directions pass the node.
//!
//! Each TCP answer of a backend is looked up in `NAT_CONNECTIONS`, and noted where it is not known: so a node that takes
//! over, or whose table was full, knows each connection after its first answer. Of clients' packets, only a FIN or RST is
//! looked up. A connection is closed when both ends have sent a FIN, when the backend has sent an RST, or when the client
//! has sent one that the backend accepts. What is closed stays in the table for a while, as answers may follow. The daemon
//! counts the entries and deletes the old ones.
//!
//! A lookup in the hash map costs some 300 instructions. So each CPU remembers in an array ([`RECENT`]) which connections it
//! has noted within the second, and with which acknowledgment number.
//!
//! The table only counts. Which backend gets a packet, and which packets are answers, never depends on it.

use core::ops::Deref;

use zerocopy::byteorder::network_endian::U16;

use crate::{
    abi::{
        NatConnection, NatConnectionKey, NatConnectionValue,
        nat_connection::{backend_flags, client_flags},
    },
    hash::GOLDEN,
    nat::Part,
    packet::{
        Packet,
        ipv4::Ipv4,
        ipv6::Ipv6,
        number,
        tcp::{ACK, FIN, RST, SYN, Tcp},
    },
    shared::{SharedU32, SharedU64},
    verdict::Noted,
};

/// `NAT_CONNECTIONS`, or a model of it.
pub trait Connections {
    /// A connection.
    fn get(&self, key: &NatConnectionKey) -> Option<impl Deref<Target = NatConnection>>;
    /// Notes a connection, at the expense of the one that was used least recently.
    fn insert(&self, key: &NatConnectionKey, value: NatConnectionValue);
    /// Element `index`, below [`RECENT`], of this CPU's array of what it has noted lately.
    fn recent(&self, index: u32) -> Option<impl Deref<Target = SharedU64>>;
}

/// Answers without SYN, FIN and RST that each CPU remembers having noted; a power of two.
pub const RECENT: u32 = 4_096;

/// The mark of such an answer, and its place in the array. What it depends on is the whole of what is noted of the answer, so
/// one with the same mark is noted already.
#[inline(always)]
fn mark(client: [u64; 2], rest: u64, acknowledged: u32, now: u32) -> (u64, u32) {
    let hash = (client[0] ^ rest).wrapping_mul(GOLDEN);
    let hash = (hash ^ hash >> 32 ^ client[1]).wrapping_mul(GOLDEN);
    let hash = (hash ^ hash >> 32 ^ u64::from(acknowledged)).wrapping_mul(GOLDEN);
    let hash = hash ^ hash >> 32;
    (hash & !0xffff | u64::from(now as u16), hash as u32 & (RECENT - 1))
}

/// An address as two words; IPv4 as an IPv4-mapped IPv6 address.
#[inline(always)]
fn words_v4(address: [u8; 4]) -> [u64; 2] {
    [0, u64::from(u32::from_le_bytes(address)) << 32 | 0xffff_0000]
}

#[inline(always)]
fn words_v6(address: &[u8; 16]) -> Option<[u64; 2]> {
    let (upper, lower) = (address.first_chunk()?, address.last_chunk()?);
    Some([u64::from_le_bytes(*upper), u64::from_le_bytes(*lower)])
}

#[inline(always)]
fn key_of(client: [u64; 2], port: U16, backend: u16, target: U16) -> NatConnectionKey {
    let [upper, lower] = client.map(u64::to_le_bytes);
    let mut client = [0; 16];
    client[..8].copy_from_slice(&upper);
    client[8..].copy_from_slice(&lower);
    NatConnectionKey { client, port, backend, target, reserved: 0 }
}

/// Where the headers of a TCP packet are in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset of the IP header in bytes.
    pub l3: usize,
    /// Whether it is IPv6's.
    pub v6: bool,
    /// Offset of the TCP header in bytes.
    pub tcp: usize,
}

/// Notes the answer of a backend, which is at `l3` and not translated yet, at second `now`.
#[inline(always)]
pub fn note_answer<P, C>(pkt: &P, table: &C, (l3, v6): (usize, bool), id: u16, now: u32) -> Noted
where
    P: Packet + ?Sized,
    C: Connections,
{
    let Some(part) = Part::of(pkt, l3, v6).filter(|part| part.proto() == number::TCP) else {
        return Noted::Other;
    };
    let Some(tcp) = pkt.load::<Tcp>(l3 + part.offset()) else { return Noted::Other };
    let (flags, acknowledged) = (tcp.flags, u32::from_ne_bytes(tcp.acknowledgment));
    let (target, port) = (U16::from_bytes(tcp.source), tcp.destination);
    let client = match v6 {
        true => pkt.load::<Ipv6>(l3).and_then(|ip| words_v6(&ip.destination)),
        false => pkt.load::<Ipv4>(l3).map(|ip| words_v4(ip.destination)),
    };
    let Some(client) = client else { return Noted::Other };
    if flags & (FIN | RST) == 0 {
        let ports = u64::from(port.get()) << 32 | u64::from(target.get()) << 16;
        let (mark, place) = mark(client, ports | u64::from(id), acknowledged, now);
        let Some(recent) = table.recent(place) else { return Noted::Other };
        if flags & SYN != 0 {
            // The first answer of a new connection has the same number.
            recent.store(0);
        } else if recent.load() == mark {
            return Noted::Other;
        } else {
            recent.store(mark);
        }
    }
    let key = key_of(client, port, id, target);
    let Some(known) = table.get(&key) else {
        let noted = match flags & (SYN | RST | ACK) {
            0 | ACK => Noted::Other,
            SYN_ACK => Noted::Accepted,
            _ if flags & RST != 0 => return Noted::Refused,
            _ => return Noted::Other,
        };
        let backend = if flags & SYN != 0 { OPENED } else { u32::from(flags & FIN) };
        table.insert(&key, NatConnectionValue { seen: now, acknowledged, client: 0, backend });
        return noted;
    };
    let old = known.backend.load();
    let (backend, noted) = match flags & (SYN | RST | ACK) {
        0 | ACK => {
            let kept = if old & backend_flags::OPENING == 0 { old } else { 0 };
            (kept | u32::from(flags & FIN), Noted::Other)
        }
        SYN_ACK if old & backend_flags::OPENING != 0 => {
            (old.saturating_add(1 << backend_flags::SYN_ACKS_SHIFT), Noted::Other)
        }
        SYN_ACK => {
            known.client.store(0);
            (OPENED, Noted::Accepted)
        }
        _ if flags & RST != 0 => {
            let is_known = old & backend_flags::RST == 0;
            (old | backend_flags::RST, if is_known { Noted::Other } else { Noted::Refused })
        }
        _ => return Noted::Other,
    };
    store(&known.seen, now);
    store(&known.acknowledged, acknowledged);
    store(&known.backend, backend);
    noted
}

const SYN_ACK: u8 = SYN | ACK;
/// [`NatConnectionValue::backend`] after the first SYN-ACK.
const OPENED: u32 = backend_flags::OPENING | 1 << backend_flags::SYN_ACKS_SHIFT;
const _: () = assert!(backend_flags::FIN == FIN as u32);

/// Notes a client's FIN or RST ([`closing`]) to a backend in mode `nat`, translated already.
#[inline(always)]
pub fn note_close<P, C>(pkt: &P, table: &C, at: Place, id: u16, now: u32)
where
    P: Packet + ?Sized,
    C: Connections,
{
    let Some(tcp) = pkt.load::<Tcp>(at.tcp) else { return };
    let (flags, sequence) = (tcp.flags, u32::from_ne_bytes(tcp.sequence));
    let (port, target) = (U16::from_bytes(tcp.source), tcp.destination);
    let client = match at.v6 {
        true => pkt.load::<Ipv6>(at.l3).and_then(|ip| words_v6(&ip.source)),
        false => pkt.load::<Ipv4>(at.l3).map(|ip| words_v4(ip.source)),
    };
    let Some(client) = client else { return };
    let key = key_of(client, port, id, target);
    let Some(known) = table.get(&key) else { return };
    let sent = if flags & RST == 0 {
        client_flags::FIN
    } else if sequence == known.acknowledged.load() {
        client_flags::RST
    } else {
        return;
    };
    store(&known.seen, now);
    store(&known.client, known.client.load() | sent);
}

/// Where the TCP header of a client's packet at `l3` is, if it is one for [`note_close`]; `part` is what follows its IP header.
#[inline(always)]
pub fn closing<P: Packet + ?Sized>(pkt: &P, l3: usize, part: Part) -> Option<usize> {
    if part.proto() != number::TCP {
        return None;
    }
    let tcp = l3 + part.offset();
    pkt.load::<Tcp>(tcp)?.closes().then_some(tcp)
}

/// Stores a change, and nothing else: so CPUs that see a connection's packets do not take its cache line from each other.
#[inline(always)]
fn store(to: &SharedU32, value: u32) {
    if to.load() != value {
        to.store(value);
    }
}

//! The fast path: the decision for most packets, from few loads.
//!
//! TCP over IPv4 in a frame without a tag, whole and without IP options: all headers stand at known
//! offsets, so one check of bounds does for them, two words identify such a packet, and nothing
//! that other packets need is in the registers. [`crate::forward::decide`] decides the same for these
//! packets, and is called for all others; the steps that are the same are the same functions.
//!
//! `lb-ebpf/src/walk.rs` calls this path first and the slow path for other frames, each in a function of its own, so
//! that neither holds registers or stack for the other. A property test compares the two on random frames and
//! states, with all that they write; the test of the loaded program compares it with the slow path.
//!
//! # Instructions
//!
//! The instructions of such a packet, counted one by one on Linux 6.12 (mode `dsr`, slot in the steady state).
//! Driver and kernel execute 271, as they do for the floor, whose own program has 71. This program executes 371:
//!
//! | part | instructions |
//! |---|--:|
//! | calls, registers saved and restored | 31 |
//! | headers: bounds, kind, lengths, flags | 46 |
//! | six array lookups and the values kept over them: a ring (a map in a map) takes 37, others 14 to 23 | 124 |
//! | comparison of the own MAC address | 11 |
//! | service: comparison of its place, tag and key | 51 |
//! | flow hash and slot | 30 |
//! | owners, usability of the backend, MTU, TTL | 28 |
//! | whether the service has a backend on this node, and the backend is one | 6 |
//! | counters of the backend | 14 |
//! | TTL and checksum, link-layer header, egress | 30 |
//!
//! An array lookup is the cheapest access to memory that the daemon sizes at its start and writes while the program
//! runs. Global data is cheaper, but its size is fixed at compile time.

use zerocopy::{
    FromBytes, Immutable, KnownLayout, Unaligned, little_endian::U32, network_endian::U16,
};

use crate::{
    abi::{ServiceKeyV4, service_flags},
    choice::Kind,
    forward::{Envelope, is_own, verdict_of_choice},
    hash::{entropy_of, flow_hash_v4},
    packet::{Packet, ethernet, ipv4, number, tcp::Tcp},
    steer::by_slot_v4,
    tables::Tables,
    verdict::{Pass, Verdict},
};

/// The headers, cut into the words that are looked at.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Headers {
    own: [u8; 6],
    peer: [u8; 6],
    /// EtherType, version and length of the header, type of service.
    begin: U32,
    total_len: U16,
    id: [u8; 2],
    /// Flags and fragment offset, time to live, protocol.
    middle: U32,
    check: U16,
    source: [u8; 4],
    destination: [u8; 4],
    tcp: Tcp,
}

const _: () = assert!(size_of::<Headers>() == ethernet::LEN + ipv4::LEN + size_of::<Tcp>());

/// [`Headers::begin`] of IPv4 without options, and its bits that mark that.
const BEGIN: u32 = u32::from_le_bytes([0x08, 0x00, 0x45, 0]);
const BEGIN_MASK: u32 = u32::from_le_bytes([0xff, 0xff, 0xff, 0]);
/// [`Headers::middle`] of TCP that is no fragment.
const MIDDLE: u32 = u32::from_le_bytes([0, 0, 0, number::TCP]);
const MIDDLE_MASK: u32 = u32::from_le_bytes([0x3f, 0xff, 0, 0xff]);

/// Bits of [`Service::flags`](crate::abi::Service::flags) of services whose packets take the slow path.
const SLOW_PATH: u8 = service_flags::LOCAL | service_flags::WIDE;

/// Bytes of the shortest such packet.
const SHORTEST: u16 = (ipv4::LEN + size_of::<Tcp>()) as u16;

/// Decides what happens to a frame, as [`crate::forward::decide`] does, but for [`events::BARE_ACK`],
/// which [`is_bare_ack`] returns; `None` if the frame is not one for the fast path, and then nothing was written.
///
/// [`events::BARE_ACK`]: crate::verdict::events::BARE_ACK
#[inline(always)]
pub fn try_decide<'t, P, T>(pkt: &P, tables: &'t T) -> Option<Verdict<T::Backend<'t>>>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let headers = pkt.load::<Headers>(0)?;
    if headers.begin.get() & BEGIN_MASK != BEGIN {
        return None;
    }
    let middle = headers.middle.get();
    if middle & MIDDLE_MASK != MIDDLE {
        return None;
    }
    let len = headers.total_len.get();
    if len < SHORTEST || !pkt.holds(ethernet::LEN + len as usize) {
        return None;
    }
    let tcp = &headers.tcp;
    if tcp.data_offset < 0x50 {
        return None;
    }
    if !is_own(headers.own, tables) {
        return Some(Verdict::Pass(Pass::OtherHost));
    }
    let key = ServiceKeyV4 {
        address: headers.destination,
        port: tcp.destination,
        proto: number::TCP,
        reserved: 0,
    };
    let Some(service) = tables.exact_service_v4(&key) else {
        return (!tables.has_wide()).then_some(Verdict::Pass(Pass::NotAService));
    };
    if service.flags & SLOW_PATH != 0 {
        return None;
    }
    let hash = flow_hash_v4(&service.keys, headers.source, tcp.source, [0; 2]);
    // Whether it only acknowledges is read by the counter, and only if that makes a difference.
    let what = if tcp.opens() {
        Kind::Opens { sequence: u32::from_le_bytes(tcp.sequence) }
    } else if tcp.closes() {
        Kind::Closes
    } else {
        Kind::Continues
    };
    let client = u64::from(u32::from_le_bytes(headers.source))
        | u64::from(u16::from_le_bytes(tcp.source)) << 32;
    let choice = by_slot_v4(tables, &service, client, hash, what);
    let ttl = (middle >> 16) as u8;
    let headers = ipv4::LEN as u16 + u16::from(tcp.data_offset >> 4) * 4;
    let envelope = Envelope { l3: ethernet::LEN, v6: false, len, headers, ttl, may_reply: true };
    Some(verdict_of_choice(pkt, tables, &envelope, choice, entropy_of(hash)))
}

/// Whether a frame for which there was a decision only acknowledges:
/// [`events::BARE_ACK`](crate::verdict::events::BARE_ACK).
#[inline(always)]
pub fn is_bare_ack<P: Packet + ?Sized>(pkt: &P) -> bool {
    match pkt.load::<Headers>(0) {
        Some(headers) => {
            let len = headers.total_len.get() as usize - ipv4::LEN;
            headers.tcp.is_bare_ack(len)
        }
        None => false,
    }
}

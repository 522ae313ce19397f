//! Records of history as packets: as many as fit, a large record in several parts.
//!
//! ```text
//! +-----------+---------------------------+-----------------------------------+
//! | addresses | each: kind, address, port | parts, until the end               |
//! +-----------+---------------------------+-----------------------------------+
//! ```
//!
//! The backends of a packet stand once at its front, and parts name them by a byte: their
//! place, counted from 1. A part is a byte for its kind, its service, and a number of items.
//! Only a ring means something as a whole: it begins with how many members there are, [`Part::Members`]
//! bring those that did not fit, and [`Assembler`] holds it until all are there.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use lb_common::abi::Destination;
use lb_model::{backend_address::BackendAddress, desired::ServiceKey};

use super::bytes::{Malformed, Read, Reader, Writer};
use crate::record::{Base, Flow, Pin, Record};

/// Most members of a ring: backends have ids of 16 bits.
pub(crate) const MEMBERS: u32 = 1 << 16;

/// Most addresses in a packet: their places are bytes, and 0 is none.
const ADDRESSES: usize = 255;

const RING: u8 = 1;
const MORE_MEMBERS: u8 = 2;
const BASES: u8 = 3;
const PINS: u8 = 4;
const ENDED: u8 = 5;

/// In the byte before a flow: what it is.
const FLOW_KIND: u8 = 3;
const PINNED: u8 = 0;
const TRACKED: u8 = 1;
const CONNECTION: u8 = 2;
/// In the byte before a flow: the client's address is of IPv6.
const FLOW_V6: u8 = 4;
/// In the byte before a pin: its flags, if they fit, from this bit on.
const FLAGS_SHIFT: u8 = 3;
const FLAGS: u8 = 3 << FLAGS_SHIFT;
/// In the byte before a pin: its flags follow in two bytes.
const WIDE_FLAGS: u8 = 1 << 5;
/// In the byte before a flow: which of the service's VIPs and ports it is for follows in four bytes. A node of a release
/// whose services have one of each refuses it.
const DESTINATION: u8 = 1 << 6;

/// What of a record is in one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A whole record, or an independent part of it.
    Whole(Record),
    /// A ring that has more members than are in this packet, and how many in all.
    Begun(Record, u32),
    /// More members of the ring that was begun.
    Members(Vec<(BackendAddress, u32)>),
}

/// The content of a packet, as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Parts in it.
    pub parts: u32,
}

/// Turns records into packets, one at a time.
#[derive(Debug)]
pub struct Packer {
    records: VecDeque<Record>,
    /// Items of the first record that were packed; none: it was not begun.
    begun: Option<usize>,
    limit: usize,
    places: HashMap<BackendAddress, u8>,
    /// Pins of the first record up to this one are in the order in which they are packed; none: they
    /// are packed as they come.
    sorted: Option<usize>,
}

/// Pins that are sorted at once: so many that few backends are in a packet, and so few that sorting
/// takes no more than a moment.
const SORTED: usize = 8192;
/// More pins than a packet has.
const PACKET: usize = 512;

impl Packer {
    /// Packets have at most `limit` bytes, at least 128.
    #[must_use]
    pub fn new(records: Vec<Record>, limit: usize) -> Self {
        let (records, places) = (records.into(), HashMap::new());
        Self { records, begun: None, limit: limit.max(128), places, sorted: None }
    }

    /// The same, but the pins of a record may be packed in another order, by which they take less
    /// room: no flow is there twice.
    #[must_use]
    pub(crate) fn reordering(records: Vec<Record>, limit: usize) -> Self {
        Self { sorted: Some(0), ..Self::new(records, limit) }
    }

    /// Puts pins to the same backend together, from the first one that was not packed on.
    fn sort(&mut self) {
        let Some(sorted) = &mut self.sorted else { return };
        let from = self.begun.unwrap_or(0);
        if let Some(Record::Pins { pins, .. }) = self.records.front_mut()
            && from + PACKET > *sorted
            && *sorted < pins.len()
        {
            *sorted = (from + SORTED).min(pins.len());
            pins[from..*sorted].sort_unstable_by_key(|pin| pin.backend);
        }
    }

    /// Whether all was packed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The next packet; without parts when there is nothing left.
    pub fn next_packet(&mut self) -> Packed {
        self.sort();
        self.places.clear();
        let mut packet = Packet {
            limit: self.limit,
            places: &mut self.places,
            addresses: vec![0],
            body: Vec::with_capacity(self.limit),
            item: Vec::new(),
            parts: 0,
        };
        while let Some(record) = self.records.front() {
            match packet.record(record, self.begun) {
                Taken::Nothing => break,
                Taken::Until(at) => {
                    self.begun = Some(at);
                    break;
                }
                Taken::All => {
                    self.records.pop_front();
                    self.begun = None;
                    self.sorted = self.sorted.map(|_| 0);
                }
            }
        }
        let Packet { addresses: mut bytes, mut body, parts, .. } = packet;
        bytes[0] = self.places.len() as u8;
        bytes.append(&mut body);
        Packed { bytes, parts }
    }
}

/// How much of a record found room.
enum Taken {
    Nothing,
    /// Items up to this one.
    Until(usize),
    All,
}

/// A packet that is being filled.
struct Packet<'a> {
    limit: usize,
    places: &'a mut HashMap<BackendAddress, u8>,
    /// Their number, to be filled in, and the addresses.
    addresses: Vec<u8>,
    body: Vec<u8>,
    /// The item that is to find room.
    item: Vec<u8>,
    parts: u32,
}

impl Packet<'_> {
    /// Packs items of a record from `begun` on; none: the record from its start.
    fn record(&mut self, record: &Record, begun: Option<usize>) -> Taken {
        let start = self.body.len();
        let from = begun.unwrap_or(0);
        let items = match record {
            Record::Ring { slots, members, digest, service } => {
                if begun.is_none() {
                    self.body.put(&[RING]);
                    self.body.put_service(service);
                    self.body.put_varint(u64::from(*slots));
                    self.body.put(&digest.to_be_bytes());
                    self.body.put_varint(members.len() as u64);
                } else {
                    self.body.put(&[MORE_MEMBERS]);
                }
                members.len()
            }
            Record::Bases { service, bases } => self.head(BASES, service, bases.len()),
            Record::Pins { service, pins } => self.head(PINS, service, pins.len()),
            Record::Ended { service, flows } => self.head(ENDED, service, flows.len()),
        };
        let count = self.body.len();
        self.body.put(&[0, 0]);
        let mut at = from;
        let mut slot = 0;
        while at < items && at - from < usize::from(u16::MAX) && self.push(record, at, &mut slot) {
            at += 1;
        }
        let full = self.addresses.len() + self.body.len() > self.limit;
        if full || (at == from && at < items) {
            self.body.truncate(start);
            return Taken::Nothing;
        }
        self.body[count..count + 2].copy_from_slice(&((at - from) as u16).to_be_bytes());
        self.parts += 1;
        if at == items { Taken::All } else { Taken::Until(at) }
    }

    fn head(&mut self, kind: u8, service: &ServiceKey, items: usize) -> usize {
        self.body.put(&[kind]);
        self.body.put_service(service);
        items
    }

    /// Packs one item, if there is room; `slot` is that of the one before.
    fn push(&mut self, record: &Record, at: usize, slot: &mut u32) -> bool {
        self.item.clear();
        match record {
            Record::Ring { members, .. } => {
                let (member, weight) = members[at];
                self.item.put_varint(u64::from(weight));
                self.push_item(Some(member))
            }
            Record::Bases { bases, .. } => {
                let base = bases[at];
                let step = i64::from(base.slot) - i64::from(*slot);
                // Small steps in either direction are small numbers.
                self.item.put_varint((step << 1 ^ step >> 63).cast_unsigned());
                let packed = self.push_item(base.backend);
                *slot = base.slot;
                packed
            }
            Record::Pins { pins, .. } => {
                let pin = pins[at];
                put_flow(&mut self.item, &pin.flow);
                let fits = pin.flags <= u16::from(FLAGS >> FLAGS_SHIFT);
                if fits {
                    self.item[0] |= (pin.flags as u8) << FLAGS_SHIFT;
                } else {
                    self.item[0] |= WIDE_FLAGS;
                    self.item.put(&pin.flags.to_be_bytes());
                }
                self.item.put_varint(pin.idle.as_secs().min(u64::from(u32::MAX)));
                self.push_item(Some(pin.backend))
            }
            Record::Ended { flows, .. } => {
                put_flow(&mut self.item, &flows[at]);
                let room = self.addresses.len() + self.body.len() + self.item.len() <= self.limit;
                if room {
                    self.body.append(&mut self.item);
                }
                room
            }
        }
    }

    /// Packs the item with the place of its backend, if there is room for both.
    fn push_item(&mut self, backend: Option<BackendAddress>) -> bool {
        let known = backend.map_or(Some(0), |backend| self.places.get(&backend).copied());
        let address = match backend {
            Some(backend) if known.is_none() => {
                1 + if backend.ip.is_ipv6() { 16 } else { 4 }
                    + if backend.port.is_some() { 2 } else { 0 }
            }
            _ => 0,
        };
        let used = self.addresses.len() + self.body.len();
        if used + self.item.len() + 1 + address > self.limit {
            return false;
        }
        let place = match (known, backend) {
            (Some(place), _) => place,
            (None, Some(backend)) => {
                if self.places.len() == ADDRESSES {
                    return false;
                }
                let place = self.places.len() as u8 + 1;
                self.places.insert(backend, place);
                self.addresses.put_backend(&backend);
                place
            }
            (None, None) => 0,
        };
        self.body.append(&mut self.item);
        self.body.put(&[place]);
        true
    }
}

fn put_flow(bytes: &mut Vec<u8>, flow: &Flow) {
    let (kind, client, port, destination) = match flow {
        Flow::Pinned(client, port, destination) => (PINNED, client, port, destination),
        Flow::Tracked(client, port, destination) => (TRACKED, client, port, destination),
        Flow::Connection(id) => {
            bytes.put(&[CONNECTION]);
            bytes.put(id);
            return;
        }
    };
    let is_only = *destination == Destination::ONLY;
    let family = if client.is_ipv6() { FLOW_V6 } else { 0 };
    bytes.put(&[kind | family | if is_only { 0 } else { DESTINATION }]);
    bytes.put_address(*client);
    bytes.put(&port.to_be_bytes());
    if !is_only {
        bytes.put(&destination.port.to_bytes());
        bytes.put(&destination.host);
    }
}

/// Reads a packet that [`Packer`] has made.
///
/// # Errors
///
/// They are no such packet; nothing of it may be taken.
pub fn unpack(bytes: &[u8]) -> Read<Vec<Part>> {
    let mut reader = Reader(bytes);
    let count = reader.u8()?;
    let mut addresses = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        addresses.push(reader.backend()?);
    }
    let mut parts = Vec::new();
    while !reader.0.is_empty() {
        parts.push(part(&mut reader, &addresses)?);
    }
    Ok(parts)
}

fn part(reader: &mut Reader<'_>, addresses: &[BackendAddress]) -> Read<Part> {
    let kind = reader.u8()?;
    if kind == MORE_MEMBERS {
        return items(reader, 2, |reader| member(reader, addresses)).map(Part::Members);
    }
    let service = reader.service()?;
    let record = match kind {
        RING => {
            let slots = reader.varint32()?;
            let digest = reader.u64()?;
            let total = reader.varint32()?;
            let members = items(reader, 2, |reader| member(reader, addresses))?;
            let count = members.len();
            let ring = Record::Ring { service, slots, members, digest };
            return match count.cmp(&(total as usize)) {
                std::cmp::Ordering::Equal => Ok(Part::Whole(ring)),
                std::cmp::Ordering::Less if total <= MEMBERS => Ok(Part::Begun(ring, total)),
                _ => Err(Malformed("a ring has more members than it may")),
            };
        }
        BASES => {
            let mut slot = 0;
            let bases = items(reader, 2, |reader| base(reader, addresses, &mut slot))?;
            Record::Bases { service, bases }
        }
        PINS => Record::Pins { service, pins: items(reader, 9, |reader| pin(reader, addresses))? },
        ENDED => {
            let flows = items(reader, 7, |reader| {
                let head = reader.u8()?;
                if head & !(FLOW_KIND | FLOW_V6 | DESTINATION) != 0 {
                    return Err(UNKNOWN_FLOW);
                }
                flow(reader, head)
            })?;
            Record::Ended { service, flows }
        }
        _ => return Err(Malformed("a part is of an unknown kind")),
    };
    Ok(Part::Whole(record))
}

const UNKNOWN_FLOW: Malformed = Malformed("a flow is of an unknown kind");

/// Reads items behind their number; each has `least` bytes or more, which bounds the memory.
fn items<'a, T>(
    reader: &mut Reader<'a>,
    least: usize,
    mut one: impl FnMut(&mut Reader<'a>) -> Read<T>,
) -> Read<Vec<T>> {
    let count = usize::from(reader.u16()?);
    if count * least > reader.0.len() {
        return Err(Malformed("it is cut off"));
    }
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(one(reader)?);
    }
    Ok(items)
}

/// The address at a place; none: place 0.
fn at_place(reader: &mut Reader<'_>, addresses: &[BackendAddress]) -> Read<Option<BackendAddress>> {
    match usize::from(reader.u8()?).checked_sub(1) {
        None => Ok(None),
        Some(at) => addresses.get(at).copied().map(Some).ok_or(Malformed("an address is missing")),
    }
}

fn backend(reader: &mut Reader<'_>, addresses: &[BackendAddress]) -> Read<BackendAddress> {
    at_place(reader, addresses)?.ok_or(Malformed("a backend is missing"))
}

fn member(reader: &mut Reader<'_>, addresses: &[BackendAddress]) -> Read<(BackendAddress, u32)> {
    let weight = reader.varint32()?;
    Ok((backend(reader, addresses)?, weight))
}

fn base(reader: &mut Reader<'_>, addresses: &[BackendAddress], slot: &mut u32) -> Read<Base> {
    let step = reader.varint()?;
    let step = (step >> 1).cast_signed() ^ -(step & 1).cast_signed();
    *slot = i64::from(*slot)
        .checked_add(step)
        .and_then(|slot| u32::try_from(slot).ok())
        .ok_or(Malformed("a slot has no such number"))?;
    Ok(Base { slot: *slot, backend: at_place(reader, addresses)? })
}

fn flow(reader: &mut Reader<'_>, head: u8) -> Read<Flow> {
    let of = match head & FLOW_KIND {
        PINNED => Flow::Pinned,
        TRACKED => Flow::Tracked,
        CONNECTION if head & (FLOW_V6 | DESTINATION) == 0 => {
            return reader.array().map(Flow::Connection);
        }
        _ => return Err(UNKNOWN_FLOW),
    };
    let (client, port) = (reader.address(head & FLOW_V6 != 0)?, reader.u16()?);
    if head & DESTINATION == 0 {
        return Ok(of(client, port, Destination::ONLY));
    }
    let destination = Destination { port: reader.u16()?.into(), host: reader.array()? };
    Ok(of(client, port, destination))
}

fn pin(reader: &mut Reader<'_>, addresses: &[BackendAddress]) -> Read<Pin> {
    let head = reader.u8()?;
    let (narrow, wide) = (u16::from((head & FLAGS) >> FLAGS_SHIFT), head & WIDE_FLAGS != 0);
    if head & !(FLOW_KIND | FLOW_V6 | FLAGS | WIDE_FLAGS | DESTINATION) != 0
        || (wide && narrow != 0)
    {
        return Err(UNKNOWN_FLOW);
    }
    let flow = flow(reader, head)?;
    let flags = if wide { reader.u16()? } else { narrow };
    let idle = Duration::from_secs(u64::from(reader.varint32()?));
    Ok(Pin { flow, backend: backend(reader, addresses)?, flags, idle })
}

/// Makes records of parts, in the order in which they were packed.
#[derive(Debug, Default)]
pub struct Assembler {
    /// A ring that lacks members, and how many it is to have.
    ring: Option<(Record, u32)>,
}

impl Assembler {
    /// Takes the parts of the next packet; the records that are whole are appended to `out`.
    ///
    /// # Errors
    ///
    /// The parts do not belong together.
    pub fn take(&mut self, parts: Vec<Part>, out: &mut Vec<Record>) -> Read<()> {
        for part in parts {
            match (part, self.ring.take()) {
                (Part::Whole(record), None) => out.push(record),
                (Part::Begun(record, total), None) => self.ring = Some((record, total)),
                (Part::Members(mut more), Some((mut ring, total))) => {
                    let Record::Ring { members, .. } = &mut ring else { continue };
                    members.append(&mut more);
                    let count = members.len();
                    match count.cmp(&(total as usize)) {
                        std::cmp::Ordering::Less => self.ring = Some((ring, total)),
                        std::cmp::Ordering::Equal => out.push(ring),
                        std::cmp::Ordering::Greater => {
                            return Err(Malformed("a ring has more members than it may"));
                        }
                    }
                }
                (Part::Members(_), None) => {
                    return Err(Malformed("members of a ring that was not begun"));
                }
                (Part::Whole(_) | Part::Begun(..), Some(_)) => {
                    return Err(Malformed("a ring lacks members"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

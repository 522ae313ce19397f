//! A capture from its beginning to its end: frames out of the ring, into blocks of pcapng.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use lb_common::capture::{FORWARDED, Head, RETURNED, flags};

use super::{
    Counts, Spec,
    annotator::PacketAnnotator,
    pcapng::{self, Packet, Statistics},
};

/// Turns the saved packets into a file.
#[derive(Debug)]
pub struct Writer {
    annotator: PacketAnnotator,
    snaplen: u32,
    /// Packets that may still be written.
    left: u64,
    written: u64,
    /// From the program's clock to the time of day, in nanoseconds.
    offset: u64,
    from: u64,
    /// Numbers of the interfaces that were described: index, and whether after.
    interfaces: BTreeMap<(u32, bool), u32>,
    /// The first packet's number of each CPU that is not written.
    stops: BTreeMap<u32, u64>,
}

impl Writer {
    /// Begins a file; `mono` and `wall` are the same moment.
    pub fn begin(
        spec: &Spec,
        annotator: PacketAnnotator,
        mono: Duration,
        wall: SystemTime,
    ) -> (Self, Vec<u8>) {
        let wall = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let offset = (wall.as_nanos() as u64).wrapping_sub(mono.as_nanos() as u64);
        let mut out = Vec::new();
        let version = concat!("lbd ", env!("CARGO_PKG_VERSION"));
        pcapng::section(&mut out, version, "packets before and after the balancer's decision");
        let known: Vec<u32> = annotator.interfaces.keys().copied().collect();
        let mut writer = Self {
            annotator,
            snaplen: spec.snaplen,
            left: spec.count,
            written: 0,
            offset,
            from: wall.as_nanos() as u64,
            interfaces: BTreeMap::new(),
            stops: BTreeMap::new(),
        };
        for index in known {
            writer.interface(&mut out, index, false);
            writer.interface(&mut out, index, true);
        }
        (writer, out)
    }

    /// Whether as many packets were written as were requested.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Writes a frame. A frame after the last packet is left out; the last one's frame as it
    /// leaves is not.
    pub fn write(&mut self, out: &mut Vec<u8>, head: &Head, bytes: &[u8]) {
        let after = head.flags & flags::AFTER != 0;
        if self.stops.get(&head.cpu).is_some_and(|stop| head.number >= *stop) {
            return;
        }
        if !after {
            if self.left == 0 {
                self.stops.insert(head.cpu, head.number);
                return;
            }
            self.left -= 1;
            self.written += 1;
        }
        // A frame that stays unchanged and goes nowhere is in the file once.
        let changed = [FORWARDED, RETURNED].contains(&head.reason.into());
        let unchanged = !changed && head.egress == 0;
        if after && unchanged {
            return;
        }
        let index = if after && head.egress != 0 { head.egress } else { head.ingress };
        let interface = self.interface(out, index, after);
        let packet = Packet {
            interface,
            nanos: head.nanos.wrapping_add(self.offset),
            length: head.length,
            bytes,
            comment: &self.annotator.comment(head),
            inbound: !after,
            id: u64::from(head.cpu) << 48 | head.number,
            action: after.then_some(head.action.into()),
        };
        pcapng::packet(out, &packet);
    }

    /// Writes the end.
    pub fn end(&self, out: &mut Vec<u8>, counts: &Counts, mono: Duration) {
        let comment = counts.to_string();
        let sum = Statistics {
            interface: 0,
            from: self.from,
            to: (mono.as_nanos() as u64).wrapping_add(self.offset),
            received: counts.seen,
            dropped: counts.limited + counts.lost,
            accepted: counts.matched,
            delivered: self.written,
            comment: &comment,
        };
        if !self.interfaces.is_empty() {
            pcapng::statistics(out, &sum);
        }
    }

    fn interface(&mut self, out: &mut Vec<u8>, index: u32, after: bool) -> u32 {
        if let Some(number) = self.interfaces.get(&(index, after)) {
            return *number;
        }
        let number = self.interfaces.len() as u32;
        self.interfaces.insert((index, after), number);
        let name = self.annotator.interface(index);
        let (word, description) = match after {
            false => ("before", "as they come in"),
            true => ("after", "as they leave"),
        };
        pcapng::interface(out, &format!("{name} {word}"), description, self.snaplen);
        number
    }
}

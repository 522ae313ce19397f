//! The messages to a peer: updates by a log that all peers share, and all of the history by a transfer
//! of its own.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    Record,
    wire::{
        self, Message, Range,
        parts::{Packed, Packer},
    },
};

/// Packets of updates that are kept for peers that have missed some.
pub(super) const LOG: usize = 4096;

/// Packets of a transfer that are on their way.
const WINDOW: usize = 512;

/// Updates that are sent during a transfer: the receiver holds no more until it has the transfer.
const UPDATES_DURING_TRANSFER: u64 = 1000;

/// How long after one [`Report::TransferRequested`](crate::Report::TransferRequested) the next one comes, if
/// the peer has fallen behind again.
pub(super) const WANTS_AGAIN: Duration = Duration::from_secs(1);

const FIRST_TIMEOUT: Duration = Duration::from_millis(30);
const LONGEST_TIMEOUT: Duration = Duration::from_millis(500);
/// A packet that was sent less than this ago is not sent again because it is reported missing.
const LEAST_FLIGHT: Duration = Duration::from_millis(5);

/// The last packets of updates.
#[derive(Debug, Default)]
pub(super) struct Log {
    packets: VecDeque<Packed>,
    /// The last sequence number.
    pub(super) head: u64,
}

impl Log {
    pub(super) fn push(&mut self, packet: Packed) {
        if self.packets.len() == LOG {
            self.packets.pop_front();
        }
        self.packets.push_back(packet);
        self.head += 1;
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.packets.len()
    }

    /// The lowest sequence number that is still here.
    pub(super) fn oldest(&self) -> u64 {
        self.head + 1 - self.packets.len() as u64
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&Packed> {
        let at = sequence.checked_sub(self.oldest())?;
        self.packets.get(usize::try_from(at).ok()?)
    }
}

/// How far this node has exported its history to a peer.
#[derive(Debug)]
enum ExportPhase {
    /// The peer has none, or has fallen behind; the records were not requested from the daemon.
    Behind,
    /// The records were requested from the daemon.
    Wanting,
    /// A transfer of all of it is being sent.
    Transferring(Box<Transfer>),
    /// The peer has the transfer, and gets updates.
    Following,
}

/// What one peer is to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    phase: ExportPhase,
    /// The first sequence number that was not sent to it.
    cursor: u64,
    /// The last sequence number before its last transfer.
    since: u64,
    /// The updates that it has reported missing.
    repairs: BTreeSet<u64>,
    /// The first sequence number that it lacks, by its own report.
    acked: u64,
    /// The counter of its last acknowledgement of a transfer.
    last_ack: u64,
    /// Not before this it is requested from the daemon again.
    wants_at: Instant,
}

/// What to send next.
pub(super) enum Next<'a> {
    /// An update with this sequence number; whether again.
    Update(u64, &'a Packed, bool),
    /// A packet of the transfer; parts in it; whether again.
    Transfer(&'a [u8], u32, bool),
}

impl Outgoing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            phase: ExportPhase::Behind,
            cursor: 0,
            since: 0,
            repairs: BTreeSet::new(),
            acked: 0,
            last_ack: 0,
            wants_at: now,
        }
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let window = match &self.phase {
            ExportPhase::Transferring(transfer) => transfer.window.len() + transfer.again.len(),
            _ => 0,
        };
        self.repairs.len() + window
    }

    /// Whether all of the history is to be requested from the daemon; it counts as requested then.
    pub(super) fn wants_all(&mut self, now: Instant) -> bool {
        let wants = self.wants_by().is_some_and(|at| at <= now);
        if wants {
            self.phase = ExportPhase::Wanting;
            self.wants_at = now + WANTS_AGAIN;
        }
        wants
    }

    /// When that is to be requested, if it is.
    pub(super) fn wants_by(&self) -> Option<Instant> {
        matches!(self.phase, ExportPhase::Behind).then_some(self.wants_at)
    }

    /// Begins to send all of the history as it is after the update with number `since`.
    pub(super) fn send_transfer(&mut self, id: u32, records: Vec<Record>, since: u64) {
        self.phase = ExportPhase::Transferring(Box::new(Transfer::new(id, records, since)));
        self.since = since;
        self.cursor = since + 1;
        self.repairs.clear();
    }

    /// Whether it gets updates.
    pub(super) fn is_subscribed(&self) -> bool {
        matches!(self.phase, ExportPhase::Transferring(_) | ExportPhase::Following)
    }

    /// Whether it has had all, and gets what is new.
    pub(super) const fn is_followed(&self) -> bool {
        matches!(self.phase, ExportPhase::Following)
    }

    /// Whether it has reported to have everything up to `head`.
    pub(super) fn has_all(&self, head: u64) -> bool {
        matches!(self.phase, ExportPhase::Following) && self.acked > head
    }

    /// It has missed what is no more here.
    fn fall_behind(&mut self) {
        self.phase = ExportPhase::Behind;
        self.repairs.clear();
    }

    /// Takes its acknowledgement, in a heartbeat with this counter.
    pub(super) fn acknowledged(&mut self, next: u64, counter: u64) {
        if next == 0 && counter > self.last_ack && matches!(self.phase, ExportPhase::Following) {
            // It had all of a transfer, and has begun anew since.
            self.fall_behind();
        }
        self.acked = self.acked.max(next);
    }

    /// It lacks updates; `sent` is the first sequence number that was not sent to it.
    pub(super) fn missing(&mut self, missing: &[Range], log: &Log, sent: u64) {
        let Some(&(first, _)) = missing.first() else { return };
        // An update that it lacked then may have arrived since, or come with a transfer.
        if !self.is_subscribed() || first <= self.since || first < self.acked {
            return;
        }
        self.acked = first;
        if first < log.oldest() && first < sent {
            self.fall_behind();
            return;
        }
        let kept = log.oldest()..sent.min(log.head + 1);
        for &(first, count) in missing {
            let range = first.max(kept.start)..(first + u64::from(count)).min(kept.end);
            self.repairs.extend(range);
        }
    }

    /// It has a transfer up to a packet, and lacks some above; `counter` is that of the message.
    pub(super) fn acked_transfer(
        &mut self,
        transfer: u32,
        (next, missing): (u32, &[Range]),
        counter: u64,
        flight: Duration,
        now: Instant,
    ) {
        // An older message adds nothing.
        if counter <= self.last_ack {
            return;
        }
        self.last_ack = counter;
        let ExportPhase::Transferring(sending) = &mut self.phase else { return };
        if sending.id != transfer {
            return;
        }
        if next < sending.base {
            // It has begun anew, and what it lacks is no more here.
            self.fall_behind();
            return;
        }
        sending.acked(next, missing, flight, now);
        if sending.is_done() {
            self.phase = ExportPhase::Following;
        }
    }

    /// When something is to be sent again without a request.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            ExportPhase::Transferring(transfer) => transfer.timeout_at,
            _ => None,
        }
    }

    pub(super) fn tick(&mut self, now: Instant) {
        if let ExportPhase::Transferring(transfer) = &mut self.phase {
            transfer.tick(now);
        }
    }

    /// The first sequence number that was not sent to it alone.
    pub(super) const fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Whether [`Self::next`] has something. With a `group`, updates go to all at once elsewhere.
    pub(super) fn has_more(&self, log: &Log, group: bool) -> bool {
        match &self.phase {
            ExportPhase::Behind | ExportPhase::Wanting => false,
            ExportPhase::Following => self.has_updates(log, group),
            ExportPhase::Transferring(transfer) => {
                transfer.has_more() || self.has_updates(log, group)
            }
        }
    }

    fn has_updates(&self, log: &Log, group: bool) -> bool {
        !self.repairs.is_empty() || (!group && self.cursor <= self.last_update(log))
    }

    fn last_update(&self, log: &Log) -> u64 {
        match self.phase {
            ExportPhase::Transferring(_) => log.head.min(self.since + UPDATES_DURING_TRANSFER),
            _ => log.head,
        }
    }

    /// What to send next, if there is something.
    pub(super) fn next<'a>(
        &'a mut self,
        log: &'a Log,
        group: bool,
        now: Instant,
    ) -> Option<Next<'a>> {
        if !self.is_subscribed() {
            return None;
        }
        // Without the transfer the updates are of no use.
        if matches!(&self.phase, ExportPhase::Transferring(transfer) if transfer.has_more()) {
            let ExportPhase::Transferring(transfer) = &mut self.phase else { return None };
            return transfer.next(now);
        }
        while let Some(sequence) = self.repairs.pop_first() {
            if let Some(packet) = log.get(sequence) {
                return Some(Next::Update(sequence, packet, true));
            }
        }
        if group || self.cursor > self.last_update(log) {
            return None;
        }
        let Some(packet) = log.get(self.cursor) else {
            self.fall_behind();
            return None;
        };
        self.cursor += 1;
        Some(Next::Update(self.cursor - 1, packet, false))
    }
}

/// All of the history on its way to a peer. Packets are made as there is room for them.
#[derive(Debug)]
struct Transfer {
    id: u32,
    since: u64,
    packer: Packer,
    /// What was sent and has not arrived for sure.
    window: VecDeque<Sent>,
    /// The number of the first one in the window.
    base: u32,
    /// Whether the last one was sent.
    ended: bool,
    again: BTreeSet<u32>,
    timeout: Duration,
    timeout_at: Option<Instant>,
}

#[derive(Debug)]
struct Sent {
    body: Vec<u8>,
    parts: u32,
    at: Instant,
}

impl Transfer {
    fn new(id: u32, records: Vec<Record>, since: u64) -> Self {
        Self {
            id,
            since,
            packer: Packer::reordering(records, wire::PARTS),
            window: VecDeque::new(),
            base: 0,
            ended: false,
            again: BTreeSet::new(),
            timeout: FIRST_TIMEOUT,
            timeout_at: None,
        }
    }

    fn is_done(&self) -> bool {
        self.ended && self.window.is_empty()
    }

    fn has_more(&self) -> bool {
        !self.again.is_empty() || (!self.ended && self.window.len() < WINDOW)
    }

    fn next(&mut self, now: Instant) -> Option<Next<'_>> {
        while let Some(index) = self.again.pop_first() {
            let Some(at) = index.checked_sub(self.base) else { continue };
            if (at as usize) < self.window.len() {
                let sent = &mut self.window[at as usize];
                sent.at = now;
                return Some(Next::Transfer(&sent.body, sent.parts, true));
            }
        }
        if self.ended || self.window.len() >= WINDOW {
            return None;
        }
        let packet = self.packer.next_packet();
        self.ended = self.packer.is_empty();
        let mut body = Vec::with_capacity(wire::BODY);
        let message = Message::Transfer {
            transfer: self.id,
            index: self.base + self.window.len() as u32,
            last: self.ended,
            since: self.since,
            parts: &packet.bytes,
        };
        message.encode(&mut body);
        self.timeout_at.get_or_insert(now + self.timeout);
        self.window.push_back(Sent { body, parts: packet.parts, at: now });
        self.window.back().map(|sent| Next::Transfer(&sent.body, sent.parts, false))
    }

    fn acked(&mut self, next: u32, missing: &[Range], flight: Duration, now: Instant) {
        let arrived = next.saturating_sub(self.base).min(self.window.len() as u32);
        if arrived > 0 {
            self.window.drain(..arrived as usize);
            self.base += arrived;
            self.again = self.again.split_off(&self.base);
            self.timeout = (flight * 4).clamp(FIRST_TIMEOUT, LONGEST_TIMEOUT);
            self.timeout_at = (!self.window.is_empty()).then(|| now + self.timeout);
        }
        let flight = LEAST_FLIGHT.max(flight * 3 / 2);
        for &(first, count) in missing {
            let end = (first + u64::from(count)).min(u64::from(self.base) + WINDOW as u64);
            for index in first.max(u64::from(self.base))..end {
                let at = index as u32 - self.base;
                if self.window.get(at as usize).is_some_and(|sent| sent.at + flight <= now) {
                    self.again.insert(index as u32);
                }
            }
        }
    }

    /// Nothing that was sent is acknowledged: the first is needed, the last shows what else is.
    fn tick(&mut self, now: Instant) {
        if self.timeout_at.is_none_or(|at| at > now) {
            return;
        }
        if let Some(last) = self.window.len().checked_sub(1) {
            self.again.extend([self.base, self.base + last as u32]);
        }
        self.timeout = (self.timeout * 2).min(LONGEST_TIMEOUT);
        self.timeout_at = Some(now + self.timeout);
    }
}

//! A peer's updates and transfers: put in order, with what is missing requested again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lb_api::peers::PeerCounters;

use super::Action;
use crate::{
    Mark, PeerId, Record, Report,
    wire::{
        Message, RANGES, Range,
        bytes::Read,
        parts::{Assembler, unpack},
    },
};

/// Updates that wait until those before them are there.
const MAX_EARLY: usize = 1024;
/// Packets of a transfer that wait until those before them are there: the sender's window.
const MAX_EARLY_OF_TRANSFER: u32 = 512;
/// Most packets that are requested at once.
const MAX_REQUESTED: u64 = 256;

/// How long after a gap appears a packet counts as reordered, not lost.
const REORDERED: Duration = Duration::from_millis(2);
/// After this time a missing update makes the history incomplete.
const GRACE: Duration = Duration::from_millis(30);
const FIRST_REPAIR: Duration = Duration::from_millis(10);
const LONGEST_REPAIR: Duration = Duration::from_millis(200);
/// Packets of a transfer are acknowledged after this time, or after `ACK_PACKETS` of them.
const ACK_AFTER: Duration = Duration::from_millis(2);
const ACK_PACKETS: u32 = 32;

/// How far this node has imported a peer's history.
#[derive(Debug)]
enum ImportPhase {
    /// None of it counts, and no transfer has begun.
    Nothing,
    /// A transfer of all of it is arriving.
    Transferring,
    /// The transfer has arrived, and updates arrive.
    Following,
}

/// What has arrived from one peer.
#[derive(Debug)]
pub(super) struct Incoming {
    peer: PeerId,
    phase: ImportPhase,
    /// The last sequence number that the peer has published, as far as it was received.
    head: u64,
    /// The first sequence number that is missing.
    next: u64,
    /// The first one that the daemon has not acknowledged; 0: it has acknowledged nothing since the transfer began.
    acknowledged: u64,
    /// Updates that have arrived before an earlier one.
    early: BTreeMap<u64, Vec<u8>>,
    update_records: Assembler,
    /// The last transfer that was begun.
    transfer: u32,
    /// The first packet of it that is missing.
    next_of_transfer: u32,
    /// Packets of it that have arrived before an earlier one.
    early_of_transfer: BTreeMap<u32, (bool, Vec<u8>)>,
    transfer_records: Assembler,
    ack_at: Option<Instant>,
    unacked: u32,
    /// When missing updates are requested again, unless they have arrived by then.
    repair_at: Option<Instant>,
    repair_after: Duration,
    /// The first missing sequence number at the last request for missing updates.
    repaired: u64,
    /// The first missing sequence number when `repair_at` was set.
    checked: u64,
    complete: bool,
    missing_since: Option<Instant>,
    /// Whether another transfer is requested when the one that is arriving has ended.
    again: bool,
}

impl Incoming {
    pub(super) fn new(peer: PeerId) -> Self {
        Self {
            peer,
            phase: ImportPhase::Nothing,
            head: 0,
            next: 0,
            acknowledged: 0,
            early: BTreeMap::new(),
            update_records: Assembler::default(),
            transfer: 0,
            next_of_transfer: 0,
            early_of_transfer: BTreeMap::new(),
            transfer_records: Assembler::default(),
            ack_at: None,
            unacked: 0,
            repair_at: None,
            repair_after: FIRST_REPAIR,
            repaired: 0,
            checked: 0,
            complete: false,
            missing_since: None,
            again: false,
        }
    }

    /// The daemon has not imported all that was reported, and needs another transfer. The peer sees that by
    /// [`Self::next`], which is 0 then.
    pub(super) fn request_transfer(&mut self, out: &mut Vec<Action>) {
        match self.phase {
            ImportPhase::Nothing => {}
            // The peer repeats packets of a transfer until all of them are acknowledged, so this one goes on to its end.
            ImportPhase::Transferring => self.again = true,
            ImportPhase::Following => {
                self.again = false;
                self.phase = ImportPhase::Nothing;
                self.early.clear();
                self.acknowledged = 0;
                self.repair_at = None;
                self.set_complete(false, out);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.early.len() + self.early_of_transfer.len()
    }

    /// Whether everything that the peer is known to have published has arrived.
    pub(super) const fn is_complete(&self) -> bool {
        self.complete
    }

    /// The first sequence number that is missing; 0: everything is.
    pub(super) const fn next(&self) -> u64 {
        match self.phase {
            ImportPhase::Following => self.next,
            _ => 0,
        }
    }

    /// The daemon has imported everything before this sequence number.
    pub(super) fn acknowledge(&mut self, next: u64) {
        if matches!(self.phase, ImportPhase::Following) {
            self.acknowledged = self.acknowledged.max(next.min(self.next));
        }
    }

    /// The first sequence number that the daemon has not acknowledged; 0: it has acknowledged none.
    pub(super) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether all has arrived that had been published up to this sequence number.
    pub(super) const fn has(&self, head: u64) -> bool {
        matches!(self.phase, ImportPhase::Following) && self.next > head
    }

    /// The peer has published up to this sequence number.
    pub(super) fn published(&mut self, head: u64, now: Instant, out: &mut Vec<Action>) {
        self.head = self.head.max(head);
        self.update_completeness(now, out);
    }

    /// An update has come, when the peer had published up to `head`.
    pub(super) fn update(
        &mut self,
        sequence: u64,
        head: u64,
        parts: &[u8],
        now: Instant,
        counters: &mut PeerCounters,
        out: &mut Vec<Action>,
    ) -> Read<()> {
        self.head = self.head.max(head);
        if matches!(self.phase, ImportPhase::Nothing) || sequence < self.next {
            return Ok(());
        }
        self.early.entry(sequence).or_insert_with(|| parts.to_vec());
        if self.early.len() > MAX_EARLY {
            self.early.pop_last();
        }
        let result = self.report_updates_in_order(counters, out);
        self.update_completeness(now, out);
        result
    }

    /// Reports the updates that are in order now. What can't be read stays missing.
    fn report_updates_in_order(
        &mut self,
        counters: &mut PeerCounters,
        out: &mut Vec<Action>,
    ) -> Read<()> {
        if !matches!(self.phase, ImportPhase::Following) {
            return Ok(());
        }
        while let Some(parts) = self.early.remove(&self.next) {
            report_parts(self.peer, &mut self.update_records, &parts, counters, out)?;
            self.next += 1;
            mark(self.peer, self.next, out);
        }
        Ok(())
    }

    /// A packet of a transfer has come.
    pub(super) fn transfer_packet(
        &mut self,
        (transfer, index, last, since): (u32, u32, bool, u64),
        parts: &[u8],
        now: Instant,
        counters: &mut PeerCounters,
        out: &mut Vec<Action>,
    ) -> Read<()> {
        if transfer < self.transfer {
            return Ok(());
        }
        if transfer > self.transfer {
            self.begin_transfer(transfer, since, out);
            counters.full_syncs += 1;
        }
        self.ack_at.get_or_insert(now + ACK_AFTER);
        self.unacked += 1;
        let transferring = matches!(self.phase, ImportPhase::Transferring);
        let ahead = index.wrapping_sub(self.next_of_transfer);
        if !transferring || index < self.next_of_transfer || ahead >= MAX_EARLY_OF_TRANSFER {
            return Ok(());
        }
        self.early_of_transfer.entry(index).or_insert_with(|| (last, parts.to_vec()));
        let result = self.report_transfer_in_order(now, counters, out);
        self.update_completeness(now, out);
        result
    }

    /// Reports the packets of the transfer that are in order now.
    fn report_transfer_in_order(
        &mut self,
        now: Instant,
        counters: &mut PeerCounters,
        out: &mut Vec<Action>,
    ) -> Read<()> {
        while let Some((last, parts)) = self.early_of_transfer.remove(&self.next_of_transfer) {
            report_parts(self.peer, &mut self.transfer_records, &parts, counters, out)?;
            self.next_of_transfer += 1;
            if last {
                self.phase = ImportPhase::Following;
                self.early_of_transfer.clear();
                self.ack_at = Some(now);
                if self.again {
                    self.request_transfer(out);
                } else {
                    mark(self.peer, self.next, out);
                }
                return self.report_updates_in_order(counters, out);
            }
        }
        Ok(())
    }

    fn begin_transfer(&mut self, transfer: u32, since: u64, out: &mut Vec<Action>) {
        self.phase = ImportPhase::Transferring;
        self.again = false;
        self.transfer = transfer;
        self.next_of_transfer = 0;
        self.early_of_transfer.clear();
        self.transfer_records = Assembler::default();
        self.unacked = 0;
        self.next = since.saturating_add(1);
        self.acknowledged = 0;
        self.head = self.head.max(since);
        self.early = self.early.split_off(&self.next);
        self.update_records = Assembler::default();
        self.repair_at = None;
        self.set_complete(false, out);
        out.push(Action::Report(Report::TransferBegins(self.peer)));
    }

    fn set_complete(&mut self, complete: bool, out: &mut Vec<Action>) {
        self.missing_since = None;
        if self.complete != complete {
            self.complete = complete;
            out.push(Action::Report(Report::Complete(self.peer, complete)));
        }
    }

    /// Reports the history as complete if nothing is missing, or schedules a repair.
    fn update_completeness(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !matches!(self.phase, ImportPhase::Following) {
            return;
        }
        if self.next > self.head {
            self.repair_at = None;
            self.repair_after = FIRST_REPAIR;
            self.set_complete(true, out);
        } else {
            if self.repair_at.is_none() {
                self.repair_at = Some(now + REORDERED);
                self.checked = self.next;
            }
            if self.complete {
                self.missing_since.get_or_insert(now);
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let incomplete_at = self.missing_since.map(|since| since + GRACE);
        [self.ack_at, self.repair_at, incomplete_at].into_iter().flatten().min()
    }

    /// The acknowledgement and the request for missing updates, if they are due; `flight` is a round trip.
    pub(super) fn tick(
        &mut self,
        now: Instant,
        flight: Duration,
        counters: &mut PeerCounters,
        out: &mut Vec<Action>,
    ) -> [Option<Message<'static>>; 2] {
        if self.missing_since.is_some_and(|since| since + GRACE <= now) {
            self.set_complete(false, out);
        }
        let ack = self.unacked >= ACK_PACKETS || self.ack_at.is_some_and(|at| at <= now);
        let mut repair = self.repair_at.is_some_and(|at| at <= now);
        if repair && self.early.is_empty() && self.checked != self.next {
            // No gap: the peer sends what it has published as fast as it may.
            self.repair_at = Some(now + FIRST_REPAIR);
            self.checked = self.next;
            repair = false;
        }
        [ack.then(|| self.ack()), repair.then(|| self.nack(now, flight, counters))]
    }

    fn ack(&mut self) -> Message<'static> {
        self.ack_at = None;
        self.unacked = 0;
        let arrived = self.early_of_transfer.keys().map(|index| u64::from(*index));
        let missing =
            gaps(u64::from(self.next_of_transfer), arrived, u64::from(MAX_EARLY_OF_TRANSFER));
        Message::Ack { transfer: self.transfer, next: self.next_of_transfer, missing }
    }

    fn nack(
        &mut self,
        now: Instant,
        flight: Duration,
        counters: &mut PeerCounters,
    ) -> Message<'static> {
        if self.repaired == self.next {
            self.repair_after = (self.repair_after * 2).min(LONGEST_REPAIR);
        } else {
            counters.gaps += 1;
            self.repair_after = FIRST_REPAIR;
        }
        (self.repaired, self.checked) = (self.next, self.next);
        self.repair_at = Some(now + self.repair_after.max(flight * 2));
        let ends = self.early.keys().copied().chain([self.head.saturating_add(1)]);
        Message::Nack { missing: gaps(self.next, ends, MAX_REQUESTED) }
    }
}

/// The runs of numbers from `next` on that are not in `arrived`, below its last; `most` numbers in all.
fn gaps(mut next: u64, arrived: impl Iterator<Item = u64>, mut most: u64) -> Vec<Range> {
    let mut gaps = Vec::new();
    for arrived in arrived {
        let count = arrived.saturating_sub(next).min(most);
        if count > 0 {
            gaps.push((next, count as u32));
            most -= count;
        }
        if most == 0 || gaps.len() == RANGES {
            break;
        }
        next = arrived.saturating_add(1);
    }
    gaps
}

fn report_parts(
    peer: PeerId,
    assembler: &mut Assembler,
    parts: &[u8],
    counters: &mut PeerCounters,
    out: &mut Vec<Action>,
) -> Read<()> {
    let mut records: Vec<Record> = Vec::new();
    let parts = unpack(parts)?;
    counters.pieces_received += parts.len() as u64;
    let result = assembler.take(parts, &mut records);
    if !records.is_empty() {
        let (reported, _) = pending_report(peer, out);
        reported.append(&mut records);
    }
    result
}

/// Sets the mark of the pending report: everything before this sequence number has been reported.
fn mark(peer: PeerId, next: u64, out: &mut Vec<Action>) {
    *pending_report(peer, out).1 = Mark(next);
}

/// The report of records at the end of `out`, which further records are added to; it is pushed if there is none.
fn pending_report(peer: PeerId, out: &mut Vec<Action>) -> (&mut Vec<Record>, &mut Mark) {
    let goes_on =
        matches!(out.last(), Some(Action::Report(Report::Records(last, ..))) if *last == peer);
    if !goes_on {
        out.push(Action::Report(Report::Records(peer, Vec::new(), Mark::default())));
    }
    match out.last_mut() {
        Some(Action::Report(Report::Records(_, reported, mark))) => (reported, mark),
        _ => unreachable!("it was pushed above"),
    }
}

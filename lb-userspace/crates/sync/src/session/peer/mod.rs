//! One peer: its messages, and those to it. Whether it is there is in [`presence`], and requests to
//! take over, with their answers, in [`takeover`].

mod presence;
mod takeover;

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use lb_api::peers::{PeerCounters, PeerStatus};

use super::{
    Action, Common, Recipient,
    outgoing::{Log, Next},
    trust::Trust,
};
use crate::{
    PeerId, Record, Report,
    id::SessionId,
    seal::{Opener, Refused},
    wire::{Header, Message, bytes::Malformed},
};

/// An unreadable packet is reported once in this time.
const UNREADABLE_APART: Duration = Duration::from_secs(10);
/// A peer, there or not.
pub(super) struct Peer {
    id: PeerId,
    address: SocketAddr,
    /// Opens the session that was trusted last, trusted or not: what it has taken is not taken again.
    opener: Option<Opener>,
    /// The session that has sent its goodbye.
    ended: Option<SessionId>,
    /// The challenge that a peer has to repeat to be trusted.
    challenge: u32,
    /// How often this node has lost it.
    losses: u32,
    trust: Option<Trust>,
    /// While no session is trusted: the session that was received last, and its challenge.
    candidate: Option<(SessionId, u32)>,
    /// While another one is trusted: a session that is to have an answer.
    stranger: Option<(SessionId, u32)>,
    hello_at: Instant,
    probe_at: Option<Instant>,
    hello_sent: Option<Instant>,
    node: Option<String>,
    changed: Option<Instant>,
    unreadable: Option<(Instant, String)>,
    counters: PeerCounters,
}

impl Peer {
    pub(super) const fn new(id: PeerId, address: SocketAddr, now: Instant) -> Self {
        Self {
            id,
            address,
            opener: None,
            ended: None,
            challenge: 1,
            losses: 0,
            trust: None,
            candidate: None,
            stranger: None,
            hello_at: now,
            probe_at: None,
            hello_sent: None,
            node: None,
            changed: None,
            unreadable: None,
            counters: PeerCounters {
                packets_sent: 0,
                bytes_sent: 0,
                packets_received: 0,
                pieces_sent: 0,
                pieces_received: 0,
                gaps: 0,
                retransmissions: 0,
                full_syncs: 0,
                unauthentic: 0,
                replayed: 0,
            },
        }
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The session that is trusted.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.trust.as_ref().map(|trust| trust.session)
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.trust.is_some()
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.trust.as_ref().map_or(0, |trust| trust.outgoing.kept() + trust.incoming.kept())
    }

    /// Whether it gets updates.
    pub(super) fn is_subscribed(&self) -> bool {
        self.trust.as_ref().is_some_and(|trust| trust.outgoing.is_subscribed())
    }

    pub(super) const fn count_sent(&mut self, bytes: usize, parts: u64) {
        self.counters.packets_sent += 1;
        self.counters.bytes_sent += bytes as u64;
        self.counters.pieces_sent += parts;
    }

    pub(super) fn status(&self, log: &Log, now: Instant, wall: SystemTime) -> PeerStatus {
        let trust = self.trust.as_ref();
        let has_all = |trust: &Trust| trust.complete_there && trust.outgoing.has_all(log.head);
        let follows = |trust: &Trust| trust.complete_there && trust.outgoing.is_followed();
        let since = self.changed.map(|at| wall - now.saturating_duration_since(at));
        let refused = self.unreadable.as_ref().filter(|_| trust.is_none());
        PeerStatus {
            address: self.address,
            node: self.node.clone(),
            connected: trust.is_some(),
            since,
            complete_here: trust.is_some_and(|trust| trust.incoming.is_complete()),
            complete_there: trust.is_some_and(has_all),
            follows: trust.is_some_and(follows),
            refused: refused.map(|(_, why)| why.clone()),
            round_trip_micros: trust
                .and_then(|trust| trust.round_trip)
                .map(|round_trip| round_trip.as_micros() as u64),
            counters: self.counters,
        }
    }

    /// Requests a transfer of all of the peer's history again.
    pub(super) fn request_transfer(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(trust) = &mut self.trust else { return };
        trust.incoming.request_transfer(out);
        self.prompt(now);
    }

    /// The daemon lacks what has arrived, or has it.
    pub(super) fn lack(&mut self, lacks: bool, now: Instant) {
        let Some(trust) = &mut self.trust else { return };
        if std::mem::replace(&mut trust.lacks, lacks) != lacks {
            self.prompt(now);
        }
    }

    /// The daemon has taken everything before this sequence number, and the peer is to know.
    pub(super) fn acknowledge(&mut self, next: u64, now: Instant) {
        let Some(trust) = &mut self.trust else { return };
        let before = trust.incoming.acknowledged();
        trust.incoming.acknowledge(next);
        if trust.incoming.acknowledged() != before {
            self.prompt(now);
        }
    }

    /// Whether its daemon has imported everything up to this sequence number, or is not waited for: it gets no
    /// updates, or has not had a whole transfer.
    pub(super) fn has_acknowledged(&self, head: u64) -> bool {
        let lacks =
            |trust: &Trust| trust.outgoing.is_followed() && trust.acknowledged_there <= head;
        !self.trust.as_ref().is_some_and(lacks)
    }

    pub(super) fn received(
        &mut self,
        datagram: &mut [u8],
        others: &[SessionId],
        group_cursor: Option<u64>,
        now: Instant,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) {
        let (header, sealed) = match Header::split(datagram) {
            Ok(split) => split,
            Err(error) => {
                let from = self.address.ip();
                return self.unreadable(now, out, || format!("packets from {from}: {error}"));
            }
        };
        let session = SessionId(header.session);
        // One's own come back only from an attacker.
        if session == common.own() || self.ended == Some(session) {
            return;
        }
        let own = common.own();
        let is_hello = header.kind == Message::HELLO;
        let trusted = self.session() == Some(session);
        if !trusted && !is_hello {
            return;
        }
        // A session that was lost begins anew, as one that is not known: if its node has gone on from a
        // snapshot, its counters begin with those of then. The challenge is another one since it was lost.
        let known = self.opener.as_mut().filter(|opener| trusted && opener.session() == session);
        let mut unknown = None;
        let opener = match known {
            Some(opener) => opener,
            None => unknown.insert(Opener::new(&common.key, session)),
        };
        let body = match opener.open(&header, &own, sealed) {
            Ok(body) => body,
            Err(refused) => return self.refused(refused, now, out),
        };
        self.counters.packets_received += 1;
        let message = match Message::decode(header.kind, body) {
            Ok(message) => message,
            Err(error) => return self.malformed(error, now, out),
        };
        if let Message::Hello(hello) = message {
            let taken = others.contains(&session);
            self.hello(&hello, &header, unknown, taken, now, common, out);
        } else if let Err(error) =
            self.message(message, header.counter.get(), group_cursor, now, common, out)
        {
            self.malformed(error, now, out);
        }
    }

    fn refused(&mut self, refused: Refused, now: Instant, out: &mut Vec<Action>) {
        match refused {
            Refused::Replayed => self.counters.replayed += 1,
            Refused::ElseWhere => {}
            Refused::NotAuthentic => {
                self.counters.unauthentic += 1;
                let (from, connected) = (self.address.ip(), self.is_connected());
                self.unreadable(now, out, || {
                    if connected {
                        format!(
                            "some packets from {from} are not authentic, though others are: \
                             somebody damages or forges them"
                        )
                    } else {
                        format!(
                            "packets from {from} are not authentic: is the key the same on both \
                             nodes?"
                        )
                    }
                });
            }
        }
    }

    fn malformed(&mut self, error: Malformed, now: Instant, out: &mut Vec<Action>) {
        let from = self.address.ip();
        self.unreadable(now, out, || {
            format!(
                "a message from {from} makes no sense, {error}: run the same release on both nodes"
            )
        });
    }

    fn unreadable(&mut self, now: Instant, out: &mut Vec<Action>, why: impl FnOnce() -> String) {
        if self.unreadable.as_ref().is_some_and(|(at, _)| now < *at + UNREADABLE_APART) {
            return;
        }
        let why = why();
        self.unreadable = Some((now, why.clone()));
        out.push(Action::Report(Report::Unreadable(self.id, why)));
    }

    /// A message of the trusted session, other than Hello.
    fn message(
        &mut self,
        message: Message<'_>,
        counter: u64,
        group_cursor: Option<u64>,
        now: Instant,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) -> Result<(), Malformed> {
        let Some(trust) = &mut self.trust else { return Ok(()) };
        trust.last_received = now;
        let was_complete = trust.incoming.is_complete();
        let mut prompt = false;
        let result = match message {
            Message::Hello(_) => Ok(()),
            Message::NodeState { half, generation, index, bytes } => {
                let receiver = &mut trust.receivers[usize::from(half)];
                let whole = receiver.take(half, generation, index, bytes, &trust.node_state);
                // The peer is to know what need not be sent again.
                prompt = receiver.generation >= generation;
                let known = trust.receivers.iter().all(|receiver| receiver.generation > 0);
                whole.map(|node_state| {
                    let Some(node_state) = node_state else { return };
                    let changed = !trust.state_reported || node_state != trust.node_state;
                    trust.node_state = node_state;
                    if known && changed {
                        trust.state_reported = true;
                        let node_state = Report::NodeState(self.id, trust.node_state.clone());
                        out.push(Action::Report(node_state));
                    }
                })
            }
            Message::Changes { sequence, ahead, parts } => {
                let head = sequence.saturating_add(ahead);
                trust.incoming.update(sequence, head, parts, now, &mut self.counters, out)
            }
            Message::Transfer { transfer, index, last, since, parts } => {
                let packet = (transfer, index, last, since);
                trust.incoming.transfer_packet(packet, parts, now, &mut self.counters, out)
            }
            Message::Ack { transfer, next, missing } => {
                let flight = trust.flight();
                let arrived = (next, missing.as_slice());
                trust.outgoing.acked_transfer(transfer, arrived, counter, flight, now);
                Ok(())
            }
            Message::Nack { missing } => {
                let sent = group_cursor.unwrap_or_else(|| trust.outgoing.cursor());
                trust.outgoing.missing(&missing, &common.log, sent);
                Ok(())
            }
            Message::TakeoverRequest { id, head, routers } => {
                self.request_received(id, head, routers, now, common, out);
                Ok(())
            }
            Message::Withdraw { id } => {
                trust.request_withdrawn(id, now);
                Ok(())
            }
            Message::Answer { id, answer } => {
                if trust.sent_request.take_if(|request| request.id == id).is_some() {
                    let answer = answer.map_err(str::to_owned);
                    out.push(Action::Report(Report::Answer(self.id, answer)));
                }
                Ok(())
            }
            Message::Bye => {
                self.ended = Some(trust.session);
                self.lose("it has ended".into(), now, out);
                self.candidate = None;
                Ok(())
            }
        };
        let complete = self.trust.as_ref().is_some_and(|trust| trust.incoming.is_complete());
        if prompt || complete != was_complete {
            self.prompt(now);
        }
        result
    }

    pub(super) fn send_transfer(&mut self, id: u32, records: Vec<Record>, since: u64) {
        if let Some(trust) = &mut self.trust {
            trust.outgoing.send_transfer(id, records, since);
            self.counters.full_syncs += 1;
        }
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant, common: &mut Common, out: &mut Vec<Action>) {
        if let Some(trust) = &mut self.trust {
            let was_complete = trust.incoming.is_complete();
            trust.tick(self.id, self.address, now, &mut self.counters, common, out);
            if trust.incoming.is_complete() != was_complete {
                self.prompt(now);
            }
        }
        if self.hello_at() <= now {
            self.send_hellos(now, common, out);
        }
    }

    pub(super) fn deadline(&self, common: &Common) -> Instant {
        let Some(trust) = &self.trust else { return self.hello_at() };
        let generations = common.sent_state.generations();
        let senders = trust.senders.iter().zip(generations);
        let resends = senders.filter_map(|(sender, generation)| sender.deadline(generation));
        let wants = trust.outgoing.wants_by().filter(|_| trust.state_reported);
        let repeats = trust.sent_request.as_ref().map(|request| request.again_at);
        let others = [wants, repeats, trust.outgoing.deadline(), trust.incoming.deadline()];
        let all = others.into_iter().flatten().chain(resends);
        all.fold(self.hello_at().min(trust.last_received + common.timeout), Instant::min)
    }

    /// Whether something waits for the pace.
    pub(super) fn has_more(&self, common: &Common) -> bool {
        let more = |trust: &Trust| trust.outgoing.has_more(&common.log, common.group);
        self.trust.as_ref().is_some_and(more)
    }

    /// Sends the next packet of history; false: there is none.
    pub(super) fn send_next(
        &mut self,
        now: Instant,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(trust) = &mut self.trust else { return false };
        let Common { log, sealer, pace, group, .. } = common;
        let Some(next) = trust.outgoing.next(log, *group, now) else { return false };
        let to = Some(&trust.session);
        let (datagram, parts, again) = match next {
            Next::Update(sequence, packet, again) => {
                let ahead = log.head - sequence;
                let message = Message::Changes { sequence, ahead, parts: &packet.bytes };
                let datagram = sealer.seal(message.kind(), to, |body| message.encode(body));
                (datagram, packet.parts, again)
            }
            Next::Transfer(encoded, parts, again) => {
                let seal = |body: &mut Vec<u8>| body.extend_from_slice(encoded);
                (sealer.seal(Message::TRANSFER, to, seal), parts, again)
            }
        };
        pace.take(datagram.len());
        self.counters.retransmissions += u64::from(again);
        self.count_sent(datagram.len(), if again { 0 } else { u64::from(parts) });
        out.push(Action::Send(Recipient::Peer(self.address), datagram));
        true
    }
}

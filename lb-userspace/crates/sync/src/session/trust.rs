//! A session of a peer that is there: how far each side is with the other's messages.

use std::{
    mem,
    net::SocketAddr,
    time::{Duration, Instant},
};

use lb_api::peers::PeerCounters;

use super::{
    Action, Common, Recipient,
    incoming::Incoming,
    node_state::{NodeStateReceiver, NodeStateSender},
    outgoing::Outgoing,
    takeover_request::{ReceivedRequest, SentRequest},
};
use crate::{
    NodeState, PeerId, Report,
    id::SessionId,
    wire::{Hello, Message, node_state::HALVES},
};

/// A round trip that was measured longer comes from a node that stood still, not from the network: what waits for one to
/// pass is sent again after so long all the same.
const LONGEST_FLIGHT: Duration = Duration::from_millis(500);

/// A session of a peer that is there.
pub(super) struct Trust {
    pub(super) session: SessionId,
    pub(super) challenge: u32,
    pub(super) losses: u32,
    pub(super) last_received: Instant,
    /// The counter of the last Hello.
    pub(super) last_hello: u64,
    pub(super) clock: (u64, Instant),
    pub(super) round_trip: Option<Duration>,
    pub(super) node_state: NodeState,
    pub(super) state_reported: bool,
    pub(super) receivers: [NodeStateReceiver; HALVES],
    pub(super) senders: [NodeStateSender; HALVES],
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    /// Whether the daemon could not take what has arrived.
    pub(super) lacks: bool,
    pub(super) complete_there: bool,
    /// The first sequence number that its daemon has not taken.
    pub(super) acknowledged_there: u64,
    pub(super) sent_request: Option<SentRequest>,
    pub(super) received_request: Option<ReceivedRequest>,
}

impl Trust {
    pub(super) fn new(session: SessionId, peer: PeerId, hello: &Hello<'_>, now: Instant) -> Self {
        Self {
            session,
            challenge: hello.challenge,
            losses: hello.losses,
            last_received: now,
            last_hello: 0,
            clock: (0, now),
            round_trip: None,
            node_state: NodeState::default(),
            state_reported: false,
            receivers: Default::default(),
            senders: Default::default(),
            outgoing: Outgoing::new(now),
            incoming: Incoming::new(peer),
            lacks: false,
            complete_there: false,
            acknowledged_there: 0,
            sent_request: None,
            received_request: None,
        }
    }

    /// How long a packet and its answer take; a guess before the first was measured.
    pub(super) fn flight(&self) -> Duration {
        self.round_trip.unwrap_or(Duration::from_millis(5)).min(LONGEST_FLIGHT)
    }

    /// Takes the last Hello.
    pub(super) fn hello(
        &mut self,
        hello: &Hello<'_>,
        counter: u64,
        now: Instant,
        common: &Common,
        out: &mut Vec<Action>,
    ) {
        self.challenge = hello.challenge;
        self.clock = (hello.clock, now);
        if let (1.., delay) = hello.echo_clock {
            let sent = Duration::from_micros(hello.echo_clock.0 - 1);
            let passed = (now - common.started).checked_sub(sent);
            self.round_trip = passed
                .and_then(|passed| passed.checked_sub(Duration::from_micros(delay)))
                .or(self.round_trip);
        }
        for (sender, has) in self.senders.iter_mut().zip(hello.has) {
            sender.acknowledged(has);
        }
        self.complete_there = hello.complete;
        self.acknowledged_there = hello.acknowledged;
        self.outgoing.acknowledged(hello.next, counter);
        self.incoming.published(hello.head, now, out);
    }

    pub(super) fn tick(
        &mut self,
        id: PeerId,
        address: SocketAddr,
        now: Instant,
        counters: &mut PeerCounters,
        common: &mut Common,
        out: &mut Vec<Action>,
    ) {
        for half in 0..HALVES {
            let generation = common.sent_state.halves[half].generation;
            if self.senders[half].is_due(generation, now) {
                let node_state = mem::take(&mut common.sent_state);
                for (index, bytes) in node_state.fragments(half) {
                    let message = Message::NodeState { half: half as u8, generation, index, bytes };
                    send(address, self.session, &message, counters, common, out);
                }
                common.sent_state = node_state;
            }
        }
        let flight = self.flight();
        let messages = self.incoming.tick(now, flight, counters, out);
        for message in messages.iter().flatten() {
            send(address, self.session, message, counters, common, out);
        }
        self.outgoing.tick(now);
        if self.state_reported && self.outgoing.wants_all(now) {
            out.push(Action::Report(Report::TransferRequested(id)));
        }
        self.tick_takeover_requests(id, address, now, counters, common, out);
    }
}

/// Sends a message that does not wait for the pace.
pub(super) fn send(
    address: SocketAddr,
    session: SessionId,
    message: &Message<'_>,
    counters: &mut PeerCounters,
    common: &mut Common,
    out: &mut Vec<Action>,
) {
    let datagram = common.seal(message.kind(), Some(&session), |body| message.encode(body));
    counters.packets_sent += 1;
    counters.bytes_sent += datagram.len() as u64;
    out.push(Action::Send(Recipient::Peer(address), datagram));
}

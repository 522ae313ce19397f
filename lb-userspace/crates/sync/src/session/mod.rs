//! The messages of a node to its peers and their times, as a pure function of (event, now).
//!
//! **Joining.** Each node sends [`Hello`](wire::Hello) to each peer, every 100 ms. It has a session and, for each
//! peer, a challenge; a peer's session is trusted when one of its Hellos has repeated both. So a
//! recorded session can't be played again: no attacker could know the challenge, and it changes with
//! each session that is trusted. A peer that sends nothing for the timeout is lost, and so is one that
//! reports that it had lost this node: both begin anew.
//!
//! **Updates** ([`Message::Changes`]) have sequence numbers. They are kept in a log of 4,096 packets, the same for all
//! peers; a peer that sees a gap requests the missing ones. A peer that misses some that are no more in the log, or could not
//! be sent them in time, gets all of the history again.
//!
//! **A transfer** ([`Message::Transfer`]) is all of the history, to one peer: packets with numbers of their own, a window,
//! acknowledgements. It names the updates that it includes; those after it follow from the log.
//!
//! A peer is **complete** when it has a transfer and all updates up to the highest number that was sent.
//!
//! **Taking over** is a request with the last sequence number: it is reported to the daemon only when
//! everything up to there has arrived, and repeated until it is answered or withdrawn.
//!
//! Nothing grows with what a peer does or fails to do: the log, windows and what arrives early are
//! bounded, and the rest are single values.

mod incoming;
mod node_state;
mod outgoing;
mod pace;
mod peer;
mod takeover_request;
mod trust;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use lb_api::peers::PeerStatus;
use lb_model::router::RouterKey;

use self::{node_state::SentState, outgoing::Log, pace::Pace, peer::Peer};
use super::{
    Config, Key, Mark, NodeState, PeerId, Record, Report,
    id::SessionId,
    seal::Sealer,
    wire::{self, Message, parts::Packer},
};

/// A node sends a heartbeat at least so often.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// The last update may have been lost, and nothing that follows shows it; a heartbeat does. Updates come every
/// 10 ms while there are some.
const PROBE_AFTER: Duration = Duration::from_millis(15);

/// Updates that are known one by one until all have taken them: more than the log has.
const UNACKNOWLEDGED: usize = 2 * outgoing::LOG;

/// What happens to a session.
#[derive(Debug)]
pub enum Event<'a> {
    /// See [`Peers::set_state`](super::Peers::set_state).
    SetState(NodeState),
    /// See [`Peers::publish`](super::Peers::publish).
    Publish(u64, Vec<Record>),
    /// See [`Peers::acknowledge`](super::Peers::acknowledge).
    Acknowledge(PeerId, Mark),
    /// See [`Peers::send_transfer`](super::Peers::send_transfer).
    SendTransfer(PeerId, Vec<Record>),
    /// [`Peers::request_transfer`](super::Peers::request_transfer).
    RequestTransfer(PeerId),
    /// [`Peers::lack`](super::Peers::lack).
    Lack(PeerId, bool),
    /// See [`Peers::request_takeover`](super::Peers::request_takeover).
    RequestTakeover(PeerId, Vec<RouterKey>),
    /// See [`Peers::withdraw`](super::Peers::withdraw).
    Withdraw(PeerId),
    /// See [`Peers::answer`](super::Peers::answer).
    Answer(PeerId, Result<(), String>),
    /// A datagram has come; it is decrypted where it stands.
    Received(SocketAddr, &'a mut [u8]),
    /// [`Session::deadline`] has passed, and every datagram that has come was handled.
    Tick,
    /// The node ends.
    Bye,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// To a peer.
    Peer(SocketAddr),
    /// To the multicast group.
    Group,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A datagram is to be sent.
    Send(Recipient, Vec<u8>),
    /// A report for the daemon.
    Report(Report),
}

/// What all peers have in common.
struct Common {
    key: Key,
    node: String,
    group: bool,
    timeout: Duration,
    started: Instant,
    sealer: Sealer,
    pace: Pace,
    log: Log,
    sent_state: SentState,
}

impl Common {
    fn own(&self) -> SessionId {
        self.sealer.session()
    }

    /// Seals a message; it counts for the pace, though it does not wait for it.
    fn seal(
        &mut self,
        kind: u8,
        to: Option<&SessionId>,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Vec<u8> {
        let datagram = self.sealer.seal(kind, to, body);
        debug_assert!(datagram.len() <= wire::DATAGRAM, "{}", datagram.len());
        self.pace.take(datagram.len());
        datagram
    }
}

/// The session of this node: one run of it.
pub struct Session {
    common: Common,
    peers: Vec<Peer>,
    /// The first sequence number that was not sent to the group.
    group_cursor: u64,
    /// The last transfer's number.
    transfers: u32,
    /// The last takeover request's number.
    requests: u64,
    /// The peer that may send first.
    turn: usize,
    /// Whether something waits for the pace.
    waits: bool,
    /// The publications that some peer has not acknowledged: each one's number, and its last sequence number.
    unacknowledged: VecDeque<(u64, u64)>,
    /// The number of the last publication that all peers have acknowledged.
    acknowledged: u64,
}

impl Session {
    /// A session that no peer knows; `id` is random.
    #[must_use]
    pub fn new(config: &Config, id: SessionId, now: Instant) -> Self {
        let peer = |(at, address): (usize, &SocketAddr)| Peer::new(PeerId(at as u8), *address, now);
        Self {
            common: Common {
                key: config.key.clone(),
                node: config.node.clone(),
                group: config.multicast.is_some(),
                timeout: config.timeout,
                started: now,
                sealer: Sealer::new(&config.key, id),
                pace: Pace::new(config.rate.get(), now),
                log: Log::default(),
                sent_state: SentState::default(),
            },
            peers: config.peers.iter().enumerate().map(peer).collect(),
            group_cursor: 1,
            transfers: 0,
            requests: 0,
            turn: 0,
            waits: false,
            unacknowledged: VecDeque::new(),
            acknowledged: 0,
        }
    }

    /// Takes one event at `now`; the caller performs `out` in order.
    pub fn handle(&mut self, event: Event<'_>, now: Instant, out: &mut Vec<Action>) {
        self.common.pace.fill(now);
        for peer in &mut self.peers {
            peer.see_own_silence(now, &self.common, out);
        }
        match event {
            Event::SetState(node_state) => {
                self.common.sent_state.set(&node_state);
            }
            Event::Publish(number, records) => self.publish(number, records, now),
            Event::Acknowledge(peer, mark) => {
                if let Some(peer) = self.peers.get_mut(usize::from(peer.0)) {
                    peer.acknowledge(mark.0, now);
                }
            }
            Event::SendTransfer(peer, records) => self.send_transfer(peer, records),
            Event::RequestTransfer(peer) => {
                if let Some(peer) = self.peers.get_mut(usize::from(peer.0)) {
                    peer.request_transfer(now, out);
                }
            }
            Event::Lack(peer, lacks) => {
                if let Some(peer) = self.peers.get_mut(usize::from(peer.0)) {
                    peer.lack(lacks, now);
                }
            }
            Event::RequestTakeover(peer, routers) => {
                self.requests += 1;
                let (id, head) = (self.requests, self.common.log.head);
                if let Some(peer) = self.peers.get_mut(usize::from(peer.0)) {
                    peer.request_takeover(id, head, routers, now, out);
                }
            }
            Event::Withdraw(peer) => {
                if let Some(peer) = self.peers.get_mut(usize::from(peer.0)) {
                    peer.withdraw(&mut self.common, out);
                }
            }
            Event::Answer(peer, answer) => {
                if let Some(peer) = self.peers.get_mut(usize::from(peer.0)) {
                    peer.answer(answer, &mut self.common, out);
                }
            }
            Event::Received(from, datagram) => self.received(from, datagram, now, out),
            Event::Tick => {
                for peer in &mut self.peers {
                    peer.expire(now, &self.common, out);
                }
            }
            Event::Bye => {
                for peer in &mut self.peers {
                    peer.bye(&mut self.common, out);
                }
                return;
            }
        }
        for peer in &mut self.peers {
            peer.tick(now, &mut self.common, out);
        }
        self.pump(now, out);
    }

    /// When [`Event::Tick`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let waits = self.waits.then(|| self.common.pace.ready_at());
        self.peers.iter().map(|peer| peer.deadline(&self.common)).chain(waits).min()
    }

    /// The status of each peer; `wall` is the time of day at `now`.
    #[must_use]
    pub fn status(&self, now: Instant, wall: SystemTime) -> Vec<PeerStatus> {
        self.peers.iter().map(|peer| peer.status(&self.common.log, now, wall)).collect()
    }

    /// See [`Peers::acknowledged`](super::Peers::acknowledged).
    pub fn acknowledged(&mut self) -> u64 {
        let has = |head: u64| self.peers.iter().all(|peer| peer.has_acknowledged(head));
        while let Some((number, _)) = self.unacknowledged.pop_front_if(|(_, head)| has(*head)) {
            self.acknowledged = number;
        }
        self.acknowledged
    }

    fn publish(&mut self, number: u64, records: Vec<Record>, now: Instant) {
        // A peer that joins later gets all of the history, which includes these.
        if !self.peers.iter().any(Peer::is_connected) {
            self.unacknowledged.clear();
            self.acknowledged = number;
            return;
        }
        let mut packer = Packer::new(records, wire::PARTS);
        while !packer.is_empty() {
            self.common.log.push(packer.next_packet());
        }
        if self.unacknowledged.len() == UNACKNOWLEDGED {
            self.unacknowledged.pop_front();
        }
        self.unacknowledged.push_back((number, self.common.log.head));
        for peer in &mut self.peers {
            peer.probe(now + PROBE_AFTER);
        }
    }

    /// Names this run of the node.
    #[cfg(test)]
    fn id(&self) -> SessionId {
        self.common.own()
    }

    /// Packets that are kept, in the log and for each peer.
    #[cfg(test)]
    fn kept(&self) -> (usize, Vec<usize>) {
        (self.common.log.len(), self.peers.iter().map(Peer::kept).collect())
    }

    fn send_transfer(&mut self, peer: PeerId, records: Vec<Record>) {
        if let Some(peer) = self.peers.get_mut(usize::from(peer.0)) {
            self.transfers += 1;
            peer.send_transfer(self.transfers, records, self.common.log.head);
        }
    }

    fn received(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let is_from = |peer: &Peer| is_same(peer.address(), from);
        let Some(at) = self.peers.iter().position(is_from) else { return };
        let others: Vec<SessionId> = self
            .peers
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != at)
            .filter_map(|(_, peer)| peer.session())
            .collect();
        let sent = self.common.group.then_some(self.group_cursor);
        self.peers[at].received(datagram, &others, sent, now, &mut self.common, out);
    }

    /// Sends what may be sent: updates to the group first, then to each peer in turn its transfer before its updates.
    fn pump(&mut self, now: Instant, out: &mut Vec<Action>) {
        loop {
            self.waits = false;
            if !self.common.pace.is_ready() {
                self.waits = self.has_group_updates()
                    || self.peers.iter().any(|peer| peer.has_more(&self.common));
                return;
            }
            if self.common.group && self.send_group_updates(out) {
                continue;
            }
            let count = self.peers.len();
            let sends = (0..count).map(|step| (self.turn + step) % count).find(|at| {
                let peer = &mut self.peers[*at];
                peer.send_next(now, &mut self.common, out)
            });
            match sends {
                Some(at) => self.turn = at + 1,
                None => return,
            }
        }
    }

    fn has_group_updates(&self) -> bool {
        self.common.group
            && self.group_cursor <= self.common.log.head
            && self.peers.iter().any(Peer::is_subscribed)
    }

    /// Sends the next update to the group; false: there are none.
    fn send_group_updates(&mut self, out: &mut Vec<Action>) -> bool {
        if !self.has_group_updates() {
            self.group_cursor = self.common.log.head + 1;
            return false;
        }
        // Peers that wait for what is no more there will report that.
        let sequence = self.group_cursor.max(self.common.log.oldest());
        self.group_cursor = sequence + 1;
        let Some(packet) = self.common.log.get(sequence) else { return false };
        let ahead = self.common.log.head - sequence;
        let message = Message::Changes { sequence, ahead, parts: &packet.bytes };
        let parts = u64::from(packet.parts);
        let datagram = self.common.sealer.seal(message.kind(), None, |body| message.encode(body));
        self.common.pace.take(datagram.len());
        for peer in self.peers.iter_mut().filter(|peer| peer.is_subscribed()) {
            peer.count_sent(datagram.len(), parts);
        }
        out.push(Action::Send(Recipient::Group, datagram));
        true
    }
}

/// Whether two addresses are one, whatever the scope is.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

#[cfg(test)]
mod tests;

//! One probe and its packets: a flow of its own, which ends when it is dropped.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::packet::tcp;
use tokio::time::timeout;

use super::{
    Error, Inner,
    demux::Inbox,
    frame::{self, Content, Flow, Framing, Segment},
    ports::Lease,
};

/// How long until a SYN is sent again for the first time (RFC 6298, 2.1); twice as long each time.
const RETRY: Duration = Duration::from_secs(1);

/// An open flow of a probe. Nothing is left of it when it is dropped.
#[derive(Debug)]
pub(super) struct ProbeFlow {
    pub(super) inner: Arc<Inner>,
    pub(super) sender: Arc<super::sockets::Sender>,
    pub(super) framing: Framing,
    pub(super) flow: Flow,
    pub(super) lease: Lease,
    pub(super) inbox: Arc<Inbox>,
    /// What the data plane would make of the flow's hash.
    pub(super) entropy: u32,
    pub(super) interface: String,
}

impl Drop for ProbeFlow {
    fn drop(&mut self) {
        self.inner.table.close(&self.flow);
        self.inner.release(&self.flow, self.lease, Instant::now());
    }
}

impl ProbeFlow {
    /// Sends an IP packet.
    pub(super) fn send(&self, packet: &[u8]) -> Result<(), Error> {
        let frame = self.framing.frame(packet, self.entropy);
        let sent = self.sender.send(self.framing.ifindex(), &frame);
        sent.map_err(|error| Error::Local(format!("send on {}: {error}", self.interface)))
    }

    fn segment(&self, sequence: u32, flags: u8, mss: Option<u16>) -> Result<(), Error> {
        let segment = Segment { sequence, acknowledgment: 0, flags, mss };
        self.send(&segment.packet(&self.flow))
    }

    /// SYN, SYN-ACK, RST.
    pub(super) async fn handshake(&self) -> Result<(), Error> {
        let initial = self.inner.random() as u32;
        let mss = frame::mss(&self.flow, self.framing.mtu());
        let opening = Opening { probe_flow: self, next: initial.wrapping_add(1), open: true };
        self.segment(initial, tcp::SYN, Some(mss))?;
        let mut retry = RETRY;
        let mut stale = false;
        loop {
            let Ok(message) = timeout(retry, self.inbox.next()).await else {
                self.segment(initial, tcp::SYN, Some(mss))?;
                retry *= 2;
                continue;
            };
            match opening.judge(&message?.content) {
                Answer::Open => return Ok(()),
                Answer::Refused => {
                    opening.close_without_reset();
                    return Err(Error::Refused);
                }
                // It remembers an earlier connection: RFC 9293, 3.5.2. Once is enough for one
                // that is honest.
                Answer::Stale { sequence } if !stale => {
                    stale = true;
                    self.segment(sequence, tcp::RST, None)?;
                    self.segment(initial, tcp::SYN, Some(mss))?;
                }
                Answer::Stale { .. } | Answer::Nothing => {}
            }
        }
    }

    /// Sends a datagram; the first answer's payload.
    pub(super) async fn exchange(&self, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let largest = frame::largest_datagram(&self.flow, self.framing.mtu());
        if payload.len() > largest {
            let length = payload.len();
            return Err(Error::Local(format!(
                "{length} bytes are too long for a datagram on this way; at most {largest} fit"
            )));
        }
        self.send(&frame::datagram(&self.flow, payload))?;
        loop {
            let message = self.inbox.next().await?;
            match message.content {
                Content::Datagram(payload) => {
                    let mut packet = message.packet;
                    packet.truncate(payload.end);
                    packet.drain(..payload.start);
                    return Ok(packet);
                }
                Content::Unreachable => return Err(Error::Refused),
                Content::Segment { .. } => {}
            }
        }
    }
}

/// A connection that the backend may hold for open; it receives a reset when that is over, even if no task
/// waits for its answer any more.
struct Opening<'a> {
    probe_flow: &'a ProbeFlow,
    /// The sequence number behind the SYN.
    next: u32,
    open: bool,
}

/// The answer of a packet to a request for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Open,
    Refused,
    /// It acknowledges something else; an RST with this sequence number will do away with it.
    Stale {
        sequence: u32,
    },
    Nothing,
}

/// Reads an answer in the state SYN-SENT (RFC 9293, 3.10.7.3); `next` follows the SYN.
fn judge(content: &Content, next: u32) -> Answer {
    match *content {
        Content::Segment { acknowledgment, flags, .. } => {
            let acknowledges = flags & tcp::ACK != 0;
            match (acknowledges && acknowledgment == next, flags & tcp::RST != 0) {
                (true, true) => Answer::Refused,
                (true, false) if flags & tcp::SYN != 0 => Answer::Open,
                (false, false) if acknowledges => Answer::Stale { sequence: acknowledgment },
                _ => Answer::Nothing,
            }
        }
        Content::Unreachable => Answer::Refused,
        Content::Datagram(_) => Answer::Nothing,
    }
}

impl Opening<'_> {
    fn judge(&self, content: &Content) -> Answer {
        judge(content, self.next)
    }

    /// Closes it without a reset: the backend holds no connection.
    fn close_without_reset(mut self) {
        self.open = false;
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if self.open {
            // If it can't be sent, the backend's own timers will do.
            let _ = self.probe_flow.segment(self.next, tcp::RST, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_if_it_acknowledges_the_syn() {
        let next = 0x8000_0001;
        let segment =
            |flags, acknowledgment| Content::Segment { sequence: 7, acknowledgment, flags };
        let cases = [
            (segment(tcp::SYN | tcp::ACK, next), Answer::Open),
            (segment(tcp::RST | tcp::ACK, next), Answer::Refused),
            (segment(tcp::SYN | tcp::RST | tcp::ACK, next), Answer::Refused),
            (segment(tcp::SYN | tcp::ACK, 9), Answer::Stale { sequence: 9 }),
            (segment(tcp::ACK, 9), Answer::Stale { sequence: 9 }),
            // An RST could be anyone's, and so could the rest.
            (segment(tcp::RST | tcp::ACK, 9), Answer::Nothing),
            (segment(tcp::RST, next), Answer::Nothing),
            (segment(tcp::SYN, next), Answer::Nothing),
            (segment(tcp::ACK, next), Answer::Nothing),
            (Content::Unreachable, Answer::Refused),
            (Content::Datagram(0..0), Answer::Nothing),
        ];
        for (content, answer) in cases {
            assert_eq!(judge(&content, next), answer, "{content:?}");
        }
    }
}

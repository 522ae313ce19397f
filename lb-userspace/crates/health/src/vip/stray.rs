//! A segment that belongs to no connection: a bare ACK, which every host answers with an RST (RFC 9293, 3.10.7.1
//! and 3.10.7.2).
//!
//! So it finds out whether a packet arrives, without a connection at the backend. In the data plane it counts as
//! a packet of a client, and opens no flow: no pin is made for it.

use std::net::{IpAddr, SocketAddr};

use lb_common::packet::tcp;
use lb_model::desired::Protocol;

use super::{
    Arc, Error, Inner, Network, ProbePath,
    demux::Inbox,
    frame::{Content, Flow, Framing, Segment},
    sockets::Sender,
};

/// A stray segment. When it is dropped, no task waits for its answer.
#[derive(Debug)]
pub struct Stray {
    inner: Arc<Inner>,
    sender: Arc<Sender>,
    framing: Framing,
    flow: Flow,
    acknowledgment: u32,
    packet: Vec<u8>,
    inbox: Arc<Inbox>,
    interface: String,
}

impl Network {
    /// The address of this node from which probes take this path.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`].
    pub async fn source(&self, path: &ProbePath) -> Result<IpAddr, Error> {
        let vips = self.0.vips();
        self.0.source(path, &vips).await
    }

    /// A number to choose a port by, that no attacker can guess.
    #[must_use]
    pub fn draw(&self) -> u64 {
        self.0.random()
    }

    /// A stray segment from `own` to a port of the VIP. No socket is at `own`: the kernel drops an RST for
    /// it silently.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`].
    pub fn stray(&self, path: &ProbePath, own: SocketAddr, port: u16) -> Result<Stray, Error> {
        let inner = &self.0;
        let framing = Framing::of(path)?;
        let sender = inner.open()?;
        let flow = Flow { protocol: Protocol::Tcp, own, peer: SocketAddr::new(path.vip, port) };
        let (sequence, acknowledgment) = (inner.random() as u32, inner.random() as u32);
        let segment = Segment { sequence, acknowledgment, flags: tcp::ACK, mss: None };
        let packet = segment.packet(&flow);
        let inbox = inner.table.open(flow);
        let interface = path.hop.interface.clone();
        Ok(Stray {
            inner: Arc::clone(inner),
            sender,
            framing,
            flow,
            acknowledgment,
            packet,
            inbox,
            interface,
        })
    }
}

impl Stray {
    /// The IP packet.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        &self.packet
    }

    /// Sends it to the backend by a packet socket.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`].
    pub fn send(&self) -> Result<(), Error> {
        let frame = self.framing.frame(&self.packet, self.inner.random() as u32);
        let sent = self.sender.send(self.framing.ifindex(), &frame);
        sent.map_err(|error| Error::Local(format!("send on {}: {error}", self.interface)))
    }

    /// Waits for its answer, however long that takes.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`].
    pub async fn answer(&self) -> Result<(), Error> {
        loop {
            match self.inbox.next().await?.content {
                Content::Segment { sequence, flags, .. }
                    if flags & tcp::RST != 0 && sequence == self.acknowledgment =>
                {
                    return Ok(());
                }
                // A firewall that rejects it has received it.
                Content::Unreachable => return Ok(()),
                Content::Segment { .. } | Content::Datagram(_) => {}
            }
        }
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        self.inner.table.close(&self.flow);
    }
}

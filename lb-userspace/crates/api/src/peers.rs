//! Peers at one moment.

use std::{net::SocketAddr, time::SystemTime};

use lb_model::units::rfc3339;
use serde::{Deserialize, Serialize};

/// A peer at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its address.
    pub address: SocketAddr,
    /// Its name, once a packet of it was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether it is there.
    pub connected: bool,
    /// Since when it is there, or gone; none: it never was.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339::option")]
    pub since: Option<SystemTime>,
    /// Whether this node has all of the peer's history.
    pub complete_here: bool,
    /// Whether the peer reports that it has all of this node's.
    pub complete_there: bool,
    /// Whether it has had all of this node's history once, and has got what was new ever since; the
    /// last of that may be on its way. A question for a takeover waits for it.
    #[serde(default)]
    pub follows: bool,
    /// Why nothing is sent to it or taken from it, if that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Round trip of the last message, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_micros: Option<u64>,
    /// Packets and pieces, since `lbd` started.
    pub counters: PeerCounters,
}

impl PeerStatus {
    /// Whether the peer has all of this node's history, but for the last of it, which may be on its way:
    /// while flows begin, something always is.
    #[must_use]
    pub const fn is_known_there(&self) -> bool {
        self.complete_there || self.follows
    }
}

/// The counters of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCounters {
    /// Packets sent to it.
    pub packets_sent: u64,
    /// Bytes sent to it.
    pub bytes_sent: u64,
    /// Packets taken from it.
    pub packets_received: u64,
    /// Pieces sent to it.
    pub pieces_sent: u64,
    /// Pieces taken from it.
    pub pieces_received: u64,
    /// Gaps seen in what came from it.
    pub gaps: u64,
    /// Packets sent to it again.
    pub retransmissions: u64,
    /// Times that all of the history was sent, in either direction.
    pub full_syncs: u64,
    /// Packets not taken: not authentic.
    pub unauthentic: u64,
    /// Packets not taken: repeated.
    pub replayed: u64,
}

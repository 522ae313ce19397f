//! The peers: whether they are there, and know this node's flows.

use std::fmt;

use lb_api::{
    peers::PeerCounters,
    status::{Peer, Status},
};

use super::page::{Family, Labels, Page, seconds, truth};

pub(super) fn write(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    // By address: a peer's name is known only from its packets.
    let peers: Vec<_> =
        status.peers.iter().map(|peer| (peer.session.address.to_string(), peer)).collect();
    let all = |value: fn(&Peer) -> bool| {
        peers.iter().map(move |(address, peer)| ([("peer", address.as_str())], truth(value(peer))))
    };
    page.infos(
        Family::new("lb_sync_peer", "A peer, and the name that it gives itself"),
        peers.iter().map(|(address, peer)| {
            [("peer", address.as_str()), ("node", peer.session.node.as_deref().unwrap_or_default())]
        }),
    )?;
    page.gauges(
        Family::new("lb_sync_connected", "Whether the session with a peer is established"),
        all(|peer| peer.session.connected),
    )?;
    page.gauges(
        Family::new(
            "lb_sync_complete",
            "Whether all flow records but the most recent are synced: the peer's here, this node's there",
        ),
        peers.iter().flat_map(|(address, peer)| {
            let at = |at: &'static str| -> Labels<'_, 2> { [("peer", address), ("at", at)] };
            let session = &peer.session;
            [
                (at("here"), truth(session.complete_here)),
                // While flows begin all the time, the last of them are on their way at most moments.
                (at("there"), truth(session.is_known_there())),
            ]
        }),
    )?;
    page.gauges(
        Family::new(
            "lb_sync_refused",
            "Whether the sync with a peer is off, since it differs too much from this node",
        ),
        all(|peer| peer.session.refused.is_some()),
    )?;
    page.gauges(
        Family::new("lb_sync_peer_draining", "Whether a peer is draining"),
        all(|peer| peer.draining),
    )?;
    page.gauges(
        Family::new("lb_sync_differences", "Differences of a peer from this node that must not be"),
        peers
            .iter()
            .map(|(address, peer)| ([("peer", address.as_str())], peer.problems.len() as u64)),
    )?;
    page.gauges(
        Family::seconds("lb_sync_round_trip", "Round trip of the last message to a peer"),
        peers.iter().filter_map(|(address, peer)| {
            Some(([("peer", address.as_str())], seconds(peer.session.round_trip_micros?)))
        }),
    )?;
    counters(page, &peers)
}

fn counters(page: &mut Page<'_>, peers: &[(String, &Peer)]) -> fmt::Result {
    let all = |value: fn(&PeerCounters) -> u64| {
        peers.iter().map(move |(address, peer)| {
            ([("peer", address.as_str())], value(&peer.session.counters))
        })
    };
    page.counters(
        Family::new("lb_sync_packets_sent", "Packets sent to a peer"),
        all(|counters| counters.packets_sent),
    )?;
    page.counters(
        Family::new("lb_sync_packets_received", "Packets accepted from a peer"),
        all(|counters| counters.packets_received),
    )?;
    page.counters(
        Family::bytes("lb_sync_sent", "Bytes sent to a peer"),
        all(|counters| counters.bytes_sent),
    )?;
    page.counters(
        Family::new("lb_sync_pieces_sent", "Pieces of flow history sent to a peer"),
        all(|counters| counters.pieces_sent),
    )?;
    page.counters(
        Family::new("lb_sync_pieces_received", "Pieces of flow history accepted from a peer"),
        all(|counters| counters.pieces_received),
    )?;
    page.counters(
        Family::new("lb_sync_gaps", "Gaps in the messages received from a peer"),
        all(|counters| counters.gaps),
    )?;
    page.counters(
        Family::new("lb_sync_retransmissions", "Packets retransmitted to a peer"),
        all(|counters| counters.retransmissions),
    )?;
    page.counters(
        Family::new("lb_sync_full", "Full syncs of the flow history, in either direction"),
        all(|counters| counters.full_syncs),
    )?;
    page.counters(
        Family::new(
            "lb_sync_rejected_packets",
            "Packets from a peer's address that were rejected, by reason",
        ),
        peers.iter().flat_map(|(address, peer)| {
            let counters = peer.session.counters;
            [("unauthentic", counters.unauthentic), ("replayed", counters.replayed)]
                .map(|(reason, count)| ([("peer", address.as_str()), ("reason", reason)], count))
        }),
    )
}

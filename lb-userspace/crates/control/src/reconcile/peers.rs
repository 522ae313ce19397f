//! Other balancers that may forward packets of a service to a backend on this node: see
//! [`lb_common::deliver`].

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::abi::{self, PeerKey};
use lb_model::{
    desired::{Mode, Service},
    hop::{Resolution, Want},
};

use super::{Applied, PlanInputs, place::Placed};

/// The MAC addresses from which packets of this service are delivered to its backend on this node: of the balancers
/// that are known, and of the service's other backends, any of which may be a balancer. None in tunnels, and where no
/// backend is on this node. While an address awaits its answer, as after a start, those that were known stay.
pub(super) fn deliveries(
    inputs: &PlanInputs<'_>,
    applied: &Applied,
    id: u16,
    service: &Service,
    placed: &[Placed],
) -> BTreeMap<PeerKey, u16> {
    let mut peers = BTreeMap::new();
    let local = placed.iter().find(|backend| backend.value.is_local());
    let (Mode::Dsr, Some(local)) = (service.mode, local) else { return peers };
    let hop = |address: &IpAddr| {
        let want = Want { address: *address, mode: Mode::Dsr };
        inputs.neighbourhood.and_then(|known| known.hops.get(&want))
    };
    for address in inputs.peers.iter().chain(service.backends.keys().map(|at| &at.ip)) {
        match hop(address) {
            Some(Resolution::Resolved(hop)) if !hop.is_local() => {
                peers.insert(PeerKey { mac: hop.mac, service: id }, local.id);
            }
            Some(Resolution::Resolved(_) | Resolution::Unreachable { .. }) => {}
            Some(Resolution::Pending { .. }) | None => {
                let known = applied.peer_macs.keys().filter(|key| key.service == id);
                peers.extend(known.map(|key| (*key, local.id)));
            }
        }
    }
    peers
}

/// Leaves as many as the map has room for; returns a message if that is not all.
pub(super) fn without_room(peers: &mut BTreeMap<PeerKey, u16>) -> Option<String> {
    let (had, room) = (peers.len(), abi::PEER_MACS as usize);
    while peers.len() > room {
        peers.pop_last();
    }
    (had > room).then(|| {
        format!("{had} MAC addresses of other balancers, over all services; {room} are used")
    })
}

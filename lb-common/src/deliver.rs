//! Backends on the balancer's own node, beside other balancers.
//!
//! A packet for a backend whose address is this node's own passes to the node's stack as it came
//! ([`Backend::is_local`](crate::abi::Backend::is_local)): the node has the VIP, as every backend in mode `dsr` has.
//!
//! Two nodes that are balancer and backend at once may for a while disagree on the owner of a slot: a check has failed
//! on one of them, a drain has begun on one. Each would forward the packet to the other, to and fro until its TTL is
//! spent. So what another balancer has forwarded is delivered here, regardless of the ring. In mode `dsr` such a
//! packet is recognised by its source MAC address: that of a balancer, or of another backend of the same service. The
//! latter has the VIP itself, so it sends nothing of its own there. In a tunnel it comes to the node's address, and the
//! kernel's tunnel device delivers it.

use crate::{
    abi::{PeerKey, Service, service_flags},
    choice::{Choice, Kind},
    packet::{Packet, ethernet::Ethernet},
    tables::Tables,
    verdict::events,
};

/// Whether packets of a service may have been forwarded by another balancer.
#[inline(always)]
const fn is_possible(service: &Service) -> bool {
    service.flags & service_flags::LOCAL != 0
}

/// The choice for a packet that another balancer has forwarded to this node, `None` for others. `kind` is what a TCP
/// packet means for its flow.
#[inline(always)]
pub fn choice<P, T>(pkt: &P, tables: &T, service: &Service, kind: Kind) -> Option<Choice>
where
    P: Packet + ?Sized,
    T: Tables,
{
    if !is_possible(service) || pkt.is_raw_ip() {
        return None;
    }
    let key = PeerKey { mac: pkt.load::<Ethernet>(0)?.source, service: service.id };
    let id = tables.delivered_to(&key)?;
    let event = match kind {
        Kind::Opens { .. } => events::NEW_FLOW,
        Kind::Acknowledges => events::BARE_ACK,
        Kind::Continues | Kind::Closes => 0,
    };
    Some(Choice { id, events: events::DELIVERED | event })
}

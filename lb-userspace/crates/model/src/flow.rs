//! The flows that tables hold, and for how long one counts.

use std::net::IpAddr;

use lb_common::{
    abi::{ConnectionKey, FlowKey, FlowValue, Service, flow_flags},
    hash::{flow_hash_v4, flow_hash_v6, slot_of},
};

use crate::{entry, time::Now};

/// The tables of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowTable {
    /// Flows that a change of the ring would otherwise move.
    Pins,
    /// Flows of `tracked` UDP services.
    Tracked,
    /// QUIC connections.
    Connections,
}

impl FlowTable {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pins, Self::Tracked, Self::Connections];
}

/// An entry of a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowRef {
    /// In [`FlowTable::Pins`].
    Pin(FlowKey),
    /// In [`FlowTable::Tracked`].
    Tracked(FlowKey),
    /// In [`FlowTable::Connections`].
    Connection(ConnectionKey),
}

impl FlowRef {
    /// Id of the service that the flow belongs to.
    #[must_use]
    pub const fn service(&self) -> u16 {
        match self {
            Self::Pin(key) | Self::Tracked(key) => key.service,
            Self::Connection(key) => key.service,
        }
    }
}

/// Seconds without a packet after which a flow that has only sent SYNs is gone: as long as Linux
/// waits for the third packet of a handshake by default.
pub const EMBRYONIC_SECS: u32 = 75;
/// Seconds without a packet after a FIN or RST of the client: an end of the other direction, or what
/// is sent again, would have come by then.
const CLOSED_SECS: u32 = 5;

/// Whether a flow that has been idle for so many seconds is closed: the client has sent FIN or RST, and
/// nothing since. One that it has closed in one direction only goes on to acknowledge.
#[must_use]
#[inline]
pub const fn is_closed(value: FlowValue, idle_secs: u32) -> bool {
    value.flags & flow_flags::CLOSING != 0 && idle_secs >= CLOSED_SECS
}

/// Whether a flow has only sent SYNs.
#[must_use]
#[inline]
pub const fn is_embryonic(value: FlowValue) -> bool {
    value.flags & flow_flags::ESTABLISHED == 0
}

/// For how many seconds a flow has been idle; not for longer than since `floor`, in seconds of CLOCK_MONOTONIC.
#[must_use]
#[inline]
pub fn idle_secs(value: FlowValue, floor: u32, now: Now) -> u32 {
    now.mono_secs().saturating_sub(value.seen.max(floor))
}

/// How many seconds a flow may be idle before it counts as gone; `embryonic_secs` is how many one may that has only
/// sent SYNs.
#[must_use]
#[inline]
pub fn kept_secs(flow: &FlowRef, value: FlowValue, service: &Service, embryonic_secs: u32) -> u32 {
    // A flow whose client has sent FIN or RST is kept as long as any other: a sender that knows its tuple
    // can forge either, and a pin that went would take the flow with it.
    match flow {
        FlowRef::Pin(_) if is_embryonic(value) => service.idle_timeout.min(embryonic_secs),
        _ => service.idle_timeout,
    }
}

/// The slot of a client's flow in its service's ring.
#[must_use]
#[inline]
pub fn slot_of_flow(service: &Service, key: &FlowKey) -> u32 {
    slot_of(hash_of_flow(service, key), service.slots)
}

/// The hash of a client's flow.
#[must_use]
#[inline]
pub fn hash_of_flow(service: &Service, key: &FlowKey) -> u64 {
    let port = key.port.to_bytes();
    match entry::ip_of(key.source) {
        IpAddr::V4(source) => {
            flow_hash_v4(&service.keys, source.octets(), port, key.destination.port.to_bytes())
        }
        IpAddr::V6(source) => {
            flow_hash_v6(&service.keys, &source.octets(), port, key.destination.port.to_bytes())
        }
    }
}

//! The maps, entry by entry, as the program would read them.

use std::io;

use lb_common::abi::{
    Backend, FlowValue, Fragment, FragmentKey, Handshake, OwnMac, PeerKey, ReverseKey, Service,
    ServiceKeyV4, ServiceKeyV6, Slot, VipKey,
};
use lb_model::flow::FlowRef;

/// Reads single entries of the maps, and writes none.
///
/// # Errors
///
/// Each method fails if its map can't be read.
#[allow(clippy::missing_errors_doc, reason = "documented once, above")]
pub trait View {
    /// The service of an IPv4 packet, by the way that the program takes.
    fn service_v4(&self, key: &ServiceKeyV4) -> io::Result<Option<Service>>;
    /// The service of an IPv6 packet.
    fn service_v6(&self, key: &ServiceKeyV6) -> io::Result<Option<Service>>;
    /// A copy of slot `index` of a service's ring.
    fn slot(&self, service: u16, index: u32) -> io::Result<Option<Slot>>;
    /// Backend `id`; a free entry is all zero.
    fn backend(&self, id: u16) -> io::Result<Option<Backend>>;
    /// An entry of a table of flows.
    fn flow(&self, flow: &FlowRef) -> io::Result<Option<FlowValue>>;
    /// Until when pins may be made, in nanoseconds of CLOCK_MONOTONIC; 0 for always.
    fn pin_lease(&self) -> u64;
    /// The mark of the QUIC handshake of a flow with this hash, or of another one.
    fn handshake(&self, hash: u64) -> io::Result<Option<Handshake>>;
    /// The decision for the first fragment of a packet.
    fn fragment(&self, key: &FragmentKey) -> io::Result<Option<Fragment>>;
    /// Whether any service has this address.
    fn is_vip(&self, key: &VipKey) -> io::Result<bool>;
    /// Entry `index` of the list of MAC addresses that this node answers to.
    fn own_mac(&self, index: u32) -> io::Result<Option<OwnMac>>;
    /// The backend on this node of packets that another balancer forwards to it.
    fn delivered_to(&self, key: &PeerKey) -> io::Result<Option<u16>>;
    /// Whether there is any backend in mode `nat`.
    fn has_nat(&self) -> io::Result<bool>;
    /// The backend in mode `nat` whose answers have this source.
    fn reverse_nat(&self, key: &ReverseKey) -> io::Result<Option<u16>>;
    /// A CPU's budget of pins for a service: tokens, and when they were refilled.
    fn syn_budget(&self, cpu: u32, service: u16) -> io::Result<Option<(u64, u64)>>;
    /// ICMP errors that a CPU may send in a second, as an explanation takes it: without end, or none
    /// at all. Errors sent before do not count.
    fn icmp_rate(&self) -> u32;
    /// Entry `index` of the marks of SYNs.
    fn syn_mark(&self, index: u32) -> io::Result<Option<u32>>;
    /// The map's value for whether a backend seems to answer a CPU's clients.
    fn unanswered(&self, cpu: u32, id: u16) -> io::Result<u64>;
}

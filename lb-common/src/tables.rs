//! What the decision reads, and the little that it writes.

use core::ops::Deref;

use crate::{
    abi::{
        Backend, ConnectionKey, Flow, FlowKey, FlowValue, Fragment, FragmentKey, OwnMac, PeerKey,
        ReverseKey, Service, ServiceKeyV4, ServiceKeyV6, Slot, TokenBucket, Unanswered, VipKey,
    },
    shared::{SharedU32, SharedU64},
};

/// The maps, or a model of them.
pub trait Tables {
    /// How a backend is handed out.
    type Backend<'a>: Deref<Target = Backend>
    where
        Self: 'a;

    /// The service of an IPv4 packet that has exactly this VIP and port. Tables that have no other way to it may find one
    /// with several, too, and then have none by [`Self::has_wide`].
    fn exact_service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>>;
    /// Whether any service has several ports, or a prefix of VIPs.
    fn has_wide(&self) -> bool;
    /// The service of an IPv4 packet.
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>>;
    /// The service of an IPv6 packet.
    fn service_v6(&self, key: &ServiceKeyV6) -> Option<impl Deref<Target = Service>>;
    /// The service with this id, if there was one just before.
    fn service(&self, id: u16) -> Option<impl Deref<Target = Service>>;
    /// Slot `index` of the ring of service `service`.
    fn slot(&self, service: u16, index: u32) -> Option<impl Deref<Target = Slot>>;
    /// Backend `id`.
    fn backend(&self, id: u16) -> Option<Self::Backend<'_>>;
    /// The pin of a flow.
    fn pin(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>>;
    /// Pins a flow; false if there is no room.
    fn insert_pin(&self, key: &FlowKey, value: FlowValue) -> bool;
    /// Notes for the daemon that a flow's pin is new or different.
    fn note_pin(&self, key: &FlowKey);
    /// Until when pins may be made, in nanoseconds of CLOCK_MONOTONIC; 0 for always.
    fn pin_lease(&self) -> u64;
    /// A flow of a `tracked` UDP service.
    fn tracked(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>>;
    /// Tracks a flow, at the expense of the one that was used least recently.
    fn insert_tracked(&self, key: &FlowKey, value: FlowValue);
    /// A QUIC connection by its server's id.
    fn connection(&self, key: &ConnectionKey) -> Option<impl Deref<Target = Flow>>;
    /// Notes a QUIC connection unless its id is known.
    fn insert_connection(&self, key: &ConnectionKey, value: FlowValue);
    /// The mark of the QUIC handshake of a flow with this hash, or of another one: a
    /// [`Handshake`](crate::abi::Handshake).
    fn handshake(&self, hash: u64) -> Option<impl Deref<Target = SharedU64>>;
    /// The decision for the first fragment of a packet.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Stores the decision for the first fragment of a packet.
    fn insert_fragment(&self, key: &FragmentKey, value: Fragment);
    /// Whether any service has this address, or a prefix that it is in.
    fn is_vip(&self, key: &VipKey) -> bool;
    /// Entry `index` of the list of MAC addresses that this node answers to.
    fn own_mac(&self, index: u32) -> Option<OwnMac>;
    /// The backend on this node of a packet that another balancer has forwarded to it.
    fn delivered_to(&self, key: &PeerKey) -> Option<u16>;
    /// Whether there is any backend in mode `nat`.
    fn has_nat(&self) -> bool;
    /// The backend whose answers have this source.
    fn reverse_nat(&self, key: &ReverseKey) -> Option<u16>;
    /// This CPU's budget of pins for a service.
    fn syn_budget(&self, service: u16) -> Option<impl Deref<Target = TokenBucket>>;
    /// This CPU's budget of ICMP errors, but for those of [`Self::too_big_budget`].
    fn icmp_budget(&self) -> Option<impl Deref<Target = TokenBucket>>;
    /// This CPU's budget of ICMP errors that a packet was too big, to the sources that share a
    /// bucket with this one ([`crate::icmp_error::bucket_of_source`]).
    fn too_big_budget(&self, source: u64) -> Option<impl Deref<Target = TokenBucket>>;
    /// ICMP errors that one CPU may send in a second.
    fn icmp_rate(&self) -> u32;
    /// Entry `index` of the marks of SYNs.
    fn syn_seen(&self, index: u32) -> Option<impl Deref<Target = SharedU32>>;
    /// Whether a backend seems to answer this CPU's clients.
    fn unanswered(&self, id: u16) -> Unanswered;
    /// `steer::in_flux` over these tables.
    ///
    /// Here for the kernel, where it is a global function (Linux 5.6): the verifier walks such a one once, by itself,
    /// and all others once for each state in which they are called.
    fn in_flux(&self, service: &Service, key: &FlowKey, slot: &Slot, what: u64) -> u64;
    /// `second_choice::search` over these tables, likewise: of a service's id and slots, a flow's hash, the backend
    /// that is silent, and the time.
    fn second_choice(&self, service: u64, slots: u64, hash: u64, first: u64, nanos: u64) -> u64;
    /// Nanoseconds of CLOCK_MONOTONIC, coarse.
    fn now_nanos(&self) -> u64;
    /// Seconds of the same clock.
    #[inline(always)]
    fn now(&self) -> u32 {
        (self.now_nanos() / 1_000_000_000) as u32
    }
}

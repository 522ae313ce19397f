//! The maps: services, backends and rings, flows, counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Deref,
};

use anyhow::{Context as _, Result};
use lb_api::status::Count;
use lb_common::abi::{
    self, FlowKey, FlowValue, NatConnectionKey, NatConnectionValue, Owners, PeerKey, Slot,
    SlotSnapshot,
};
use lb_model::{
    desired::ServiceKey,
    flow::{FlowRef, FlowTable},
    settings::Limits,
};

/// What has come of adding a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is there, as it was given.
    Yes,
    /// It was there already, and is as it was.
    Known,
    /// Its table has no room.
    NoRoom,
}

/// A change of a slot's owners: its index, the slot as it was read, and the owners that it gets.
pub type OwnerChange = (u32, SlotSnapshot, Owners);

/// Makes changes in a ring, each only if its slot is still as it was read; whether each was made.
pub fn replace_owners(ring: &[Slot], changes: &[OwnerChange]) -> Result<Vec<bool>> {
    let replace = |&(slot, seen, owners): &OwnerChange| {
        let slot = ring.get(slot as usize).context("the ring has no such slot")?;
        Ok(slot.replace_owners(seen, owners))
    };
    changes.iter().map(replace).collect()
}

/// What decides about new packets: services with their rings, backends, MAC addresses.
pub trait Maps {
    /// A ring in memory, shared with the program.
    type Ring: Deref<Target = [Slot]>;

    /// How much the maps have room for, whatever the settings ask.
    fn limits(&self) -> Limits;

    /// All services.
    fn services(&self) -> Result<BTreeMap<ServiceKey, abi::Service>>;

    /// Adds or replaces a service by one store.
    fn put_service(&mut self, key: &ServiceKey, value: &abi::Service) -> Result<()>;

    /// Removes a service.
    fn delete_service(&mut self, key: &ServiceKey) -> Result<()>;

    /// The addresses of all services.
    fn vips(&self) -> Result<BTreeSet<IpAddr>>;

    /// Adds the address of a service.
    fn put_vip(&mut self, vip: IpAddr) -> Result<()>;

    /// Removes the address of a service.
    fn delete_vip(&mut self, vip: IpAddr) -> Result<()>;

    /// All backends that are not all zero, by id.
    fn backends(&self) -> Result<BTreeMap<u16, abi::Backend>>;

    /// Writes a backend's entry; all zero frees it.
    fn put_backend(&mut self, id: u16, value: &abi::Backend) -> Result<()>;

    /// Ids of the services that have a ring.
    fn rings(&self) -> Result<BTreeSet<u16>>;

    /// The ring of a service. It stays mapped until it is dropped, so don't keep it: a ring of 65,537
    /// slots is half a megabyte of the daemon's resident memory.
    fn ring(&self, service: u16) -> Result<Self::Ring>;

    /// Builds a ring aside for each of these services, then publishes each by one store. After an error,
    /// some may have been published.
    fn publish_rings(&mut self, rings: &[(u16, Vec<Owners>)]) -> Result<()>;

    /// Writes the owners of these slots in place, one store each; the stamps stay.
    fn set_owners(&mut self, service: u16, slots: &[(u32, Owners)]) -> Result<()>;

    /// The same where a slot is still as it was seen; which ones were. `ring` is from [`Self::ring`].
    fn replace_owners(&mut self, ring: &Self::Ring, changes: &[OwnerChange]) -> Result<Vec<bool>>;

    /// Removes the ring of a service.
    fn delete_ring(&mut self, service: u16) -> Result<()>;

    /// The MAC addresses that this node answers to, in any order.
    fn own_macs(&self) -> Result<Vec<[u8; 6]>>;

    /// Replaces the MAC addresses that this node answers to. One that stays is found all the while.
    fn set_own_macs(&mut self, macs: &[[u8; 6]]) -> Result<()>;

    /// The MAC addresses of other balancers, by service, and the service's backend on this node.
    fn peer_macs(&self) -> Result<BTreeMap<PeerKey, u16>>;

    /// Replaces the MAC addresses of other balancers. One that stays is found all the while.
    fn set_peer_macs(&mut self, peers: &BTreeMap<PeerKey, u16>) -> Result<()>;
}

/// The flows that the program and the daemon have recorded.
pub trait Flows {
    /// Visits every entry of a flow table.
    fn flows(&self, table: FlowTable, visit: &mut dyn FnMut(FlowRef, FlowValue)) -> Result<()>;

    /// Removes a flow unless it has changed since it was `seen`; true if it was removed.
    fn delete_flow(&mut self, flow: &FlowRef, seen: FlowValue) -> Result<bool>;

    /// A flow as it is at this moment.
    fn flow_value(&self, flow: &FlowRef) -> Result<Option<FlowValue>>;

    /// Adds or replaces a flow; false if its table has no room. Of a flow that the program touches
    /// meanwhile, what it writes may be lost.
    fn put_flow(&mut self, flow: &FlowRef, value: FlowValue) -> Result<bool>;

    /// Adds a flow unless it is known by then, even if the program adds it at this moment.
    fn put_new_flow(&mut self, flow: &FlowRef, value: FlowValue) -> Result<Added>;

    /// Visits the flows whose pins the program has made, renamed, or seen become established since
    /// the last call, or since the maps were opened; a flow may be visited several times. False if
    /// there were more than it could note: any pin may then be new.
    fn noted_pins(&mut self, visit: &mut dyn FnMut(FlowKey)) -> Result<bool>;

    /// Lets the program make pins until this time, in nanoseconds of CLOCK_MONOTONIC; 0 for always. A pin in place of a
    /// base owner that is soft down needs no lease.
    fn lease_pins(&mut self, until: u64);

    /// Visits the TCP connections to backends in mode `nat`.
    fn nat_connections(
        &self,
        visit: &mut dyn FnMut(NatConnectionKey, NatConnectionValue),
    ) -> Result<()>;

    /// Removes one unless it has changed since it was `seen`.
    fn forget_nat_connection(
        &mut self,
        key: &NatConnectionKey,
        seen: NatConnectionValue,
    ) -> Result<()>;

    /// TCP connections of this node's own processes to these backends in mode `nat`, by the backend's id.
    fn local_connections(&self, backends: &BTreeSet<u16>) -> Result<BTreeMap<u16, u64>>;

    /// Removes the marks of fragmented packets that went to any of these backends.
    fn forget_fragments(&mut self, backends: &BTreeSet<u16>) -> Result<()>;
}

/// What the program counts on each CPU, and the SYN budgets that it spends.
pub trait Counters {
    /// Packets and bytes by verdict, over all CPUs.
    fn verdicts(&self) -> Result<Vec<Count>>;

    /// What went to each backend, over all CPUs; the index is the backend's id.
    fn backend_totals(&self) -> Result<Vec<BackendTotals>>;

    /// What went to these backends, over all CPUs, in their order: cheap enough for several times a
    /// second.
    fn totals_of(&self, ids: &[u16]) -> Result<Vec<BackendTotals>>;

    /// Starts a backend's counters from zero.
    fn reset_backend_totals(&mut self, id: u16) -> Result<()>;

    /// Visits the SYN budgets of services: the buckets of all CPUs that are online.
    fn visit_syn_budgets(
        &self,
        services: &BTreeSet<u16>,
        visit: &mut dyn FnMut(u16, &[&abi::TokenBucket]),
    ) -> Result<()>;

    /// Gives a service its full SYN budget, with an even share for each CPU.
    fn reset_syn_budget(&mut self, service: u16) -> Result<()>;

    /// CPUs that packets may be taken on at this moment.
    fn online_cpus(&self) -> u32;
}

/// What went to one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendTotals {
    /// Packets and bytes.
    pub sent: Count,
    /// Packets that opened a flow.
    pub new_flows: u64,
    /// Packets to it as base owner, without a pin.
    pub unpinned: u64,
    /// SYNs seen again.
    pub syn_retransmissions: u64,
    /// SYNs that came to it as their slot's second choice.
    pub second_choices: u64,
    /// Mode `nat`: its answers, which this node has translated.
    pub returned: Count,
    /// Its SYN-ACKs among them, without repetitions.
    pub accepted: u64,
    /// Its refusals among them.
    pub refused: u64,
    /// Mode `nat`: sockets of this node that were given it for its VIP.
    pub local: u64,
}

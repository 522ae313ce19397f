//! The maps entry by entry, for explanations of the program's decisions.

use std::io;

use lb_common::{
    abi::{
        Backend, BackendCounter, FlowValue, Fragment, FragmentKey, Handshake, OwnMac, Owners,
        PeerKey, ReverseKey, ReversePrefix, Service, ServiceKeyV4, ServiceKeyV6, Slot, TokenBucket,
        VipKey, mapped,
    },
    wide::{PortPrefix, VipPrefix},
};
use lb_inspect::explain::View;
use lb_model::flow::FlowRef;
use zerocopy::network_endian::U16;

use super::{mmap::Mapped, sys::Table, xdp::Xdp};

/// The slot that a ring's element of eight bytes is.
pub(crate) fn slot_of_word(word: u64) -> Slot {
    let slot = Slot::new(Owners::from_word(word as u32));
    slot.set_stamps((word >> 32) as u16, (word >> 48) as u16);
    slot
}

impl Xdp {
    /// The group of the longest prefix of VIPs around an address.
    fn wide_group(&self, address: [u8; 16]) -> io::Result<Option<u32>> {
        self.maps.wide_vips.as_ref().map_or(Ok(None), |vips| vips.get(&VipPrefix::of(address)))
    }

    /// The most specific service with several ports or VIPs that a packet fits.
    fn wide_service(&self, address: [u8; 16], port: U16, proto: u8) -> io::Result<Option<Service>> {
        let Some(group) = self.wide_group(address)? else { return Ok(None) };
        let Some(ports) = &self.maps.wide_ports else { return Ok(None) };
        match ports.get(&PortPrefix::of(group as u16, proto, port))? {
            Some(id) => self.index.service(id),
            None => Ok(None),
        }
    }
}

impl View for Xdp {
    fn service_v4(&self, key: &ServiceKeyV4) -> io::Result<Option<Service>> {
        let found = match self.index.find_v4(key)? {
            Some(found) => found,
            None => self.maps.services_v4.get(key)?,
        };
        match found {
            Some(found) => Ok(Some(found)),
            None => self.wide_service(mapped(key.address), key.port, key.proto),
        }
    }

    fn service_v6(&self, key: &ServiceKeyV6) -> io::Result<Option<Service>> {
        let found = match self.index.find_v6(key)? {
            Some(found) => found,
            None => self.maps.services_v6.get(key)?,
        };
        match found {
            Some(found) => Ok(Some(found)),
            None => self.wide_service(key.address, key.port, key.proto),
        }
    }

    fn slot(&self, service: u16, index: u32) -> io::Result<Option<Slot>> {
        let ring = self.maps.rings.get(service).map_err(io::Error::other)?;
        let Some(ring) = ring else { return Ok(None) };
        Ok(Table::<u32, u64>::new(ring)?.get(&index)?.map(slot_of_word))
    }

    fn backend(&self, id: u16) -> io::Result<Option<Backend>> {
        self.maps.backends.get(&id.into())
    }

    fn flow(&self, flow: &FlowRef) -> io::Result<Option<FlowValue>> {
        match flow {
            FlowRef::Pin(key) => self.maps.pins.get(key),
            FlowRef::Tracked(key) => self.maps.tracked.get(key),
            FlowRef::Connection(key) => self.maps.connections.get(key),
        }
    }

    fn pin_lease(&self) -> u64 {
        self.pin_log.leased_until()
    }

    fn handshake(&self, hash: u64) -> io::Result<Option<Handshake>> {
        let Some(handshakes) = &self.maps.handshakes else { return Ok(None) };
        Ok(handshakes.get(&Handshake::place(hash))?.map(Handshake))
    }

    fn fragment(&self, key: &FragmentKey) -> io::Result<Option<Fragment>> {
        self.maps.fragments.get(key)
    }

    fn is_vip(&self, key: &VipKey) -> io::Result<bool> {
        Ok(self.maps.vips.get(key)?.is_some() || self.wide_group(key.address)?.is_some())
    }

    fn own_mac(&self, index: u32) -> io::Result<Option<OwnMac>> {
        self.maps.own_macs.get(&index)
    }

    fn delivered_to(&self, key: &PeerKey) -> io::Result<Option<u16>> {
        let Some(peers) = &self.maps.peer_macs else { return Ok(None) };
        Ok(peers.get(key)?.map(|id| id as u16))
    }

    fn has_nat(&self) -> io::Result<bool> {
        let Some(count) = &self.maps.nat_backends else { return Ok(false) };
        Ok(count.get(&0)?.is_some_and(|count| count > 0))
    }

    fn reverse_nat(&self, key: &ReverseKey) -> io::Result<Option<u16>> {
        let Some(reverse) = &self.maps.reverse_nat else { return Ok(None) };
        let mut found = reverse.get(key)?;
        if let (None, Some(ranges)) = (found, &self.maps.reverse_ranges) {
            found = ranges.get(&ReversePrefix::of(key))?;
        }
        Ok(found.map(|id| id as u16))
    }

    fn syn_budget(&self, cpu: u32, service: u16) -> io::Result<Option<(u64, u64)>> {
        let budgets = Mapped::<TokenBucket>::new(&self.maps.syn_budgets)?;
        let at = (cpu * self.limits.services + u32::from(service)) as usize;
        Ok(budgets.get(at).map(|budget| (budget.word(), budget.refilled.load())))
    }

    fn icmp_rate(&self) -> u32 {
        if self.limits.icmp_errors == 0 { 0 } else { u32::MAX }
    }

    fn syn_mark(&self, index: u32) -> io::Result<Option<u32>> {
        self.maps.syn_marks.as_ref().map_or(Ok(None), |marks| marks.get(&index))
    }

    fn unanswered(&self, cpu: u32, id: u16) -> io::Result<u64> {
        let counters = Mapped::<BackendCounter>::new(&self.maps.backend_counters)?;
        let at = (cpu * (self.limits.backends + 1) + u32::from(id)) as usize;
        Ok(counters.get(at).map_or(0, |counter| counter.unanswered.load()))
    }
}

//! The program's part: [`lb_common::returns::decide`] runs over a [`Fake`], at a time that the test
//! sets.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::IpAddr,
    ops::Deref,
    sync::{Arc, LazyLock, atomic::Ordering},
    time::Duration,
};

use lb_common::{
    abi::ReverseKey,
    abi::{
        self, Backend, ConnectionKey, Flow, FlowKey, FlowValue, Fragment, FragmentKey, Handshake,
        OwnMac, PIN_NOTES, PeerKey, Service, ServiceKeyV4, ServiceKeyV6, Slot, TokenBucket,
        Unanswered, VipKey,
    },
    nat,
    second_choice::search,
    shared::{SharedU32, SharedU64},
    steer::in_flux,
    tables::Tables,
};

use lb_inspect::explain::View;
use lb_model::{
    desired::{Protocol, ServiceKey},
    entry,
    flow::FlowRef,
};
use zerocopy::FromZeros as _;

use super::Fake;

/// What the program keeps beside the flows and the rings. It has one CPU.
#[derive(Debug, Default)]
pub(super) struct Program {
    now: Cell<Duration>,
    notes: RefCell<Vec<FlowKey>>,
    budgets: RefCell<HashMap<u16, Arc<TokenBucket>>>,
    marks: RefCell<HashMap<u32, Arc<SharedU32>>>,
    handshakes: RefCell<HashMap<u32, Arc<SharedU64>>>,
    fragments: RefCell<HashMap<FragmentKey, Fragment>>,
}

impl Program {
    /// Visits what was noted; false if some of it was written over.
    pub(super) fn read_notes(&self, visit: &mut dyn FnMut(FlowKey)) -> bool {
        let notes = std::mem::take(&mut *self.notes.borrow_mut());
        let all = notes.len() <= PIN_NOTES as usize;
        if all {
            notes.into_iter().for_each(visit);
        }
        all
    }

    /// Notes a pin that was made.
    pub(super) fn note(&self, key: FlowKey) {
        self.notes.borrow_mut().push(key);
    }

    /// A service's budget, of the one CPU that there is.
    pub(super) fn budget(&self, service: u16) -> Arc<TokenBucket> {
        self.budgets.borrow_mut().entry(service).or_default().clone()
    }

    /// Lets a service's budget be full.
    pub(super) fn fill_budget(&self, service: u16) {
        self.budgets.borrow_mut().remove(&service);
    }
}

impl Fake {
    /// Sets the program's clock.
    pub fn set_time(&self, now: Duration) {
        self.program.now.set(now);
    }

    /// Until when pins may be made, in nanoseconds of CLOCK_MONOTONIC; 0 for always.
    #[must_use]
    pub fn leased_until(&self) -> u64 {
        self.remote.leased_until.load(Ordering::SeqCst)
    }

    fn service_at(&self, vip: IpAddr, port: u16, proto: u8) -> Option<&Service> {
        let protocol = match proto {
            abi::proto::TCP => Protocol::Tcp,
            abi::proto::UDP => Protocol::Udp,
            _ => return None,
        };
        let exact = self.services.get(&ServiceKey::new(vip, port, protocol));
        exact.or_else(|| {
            let wide = |key: &ServiceKey| {
                entry::wide_key(key).filter(|key| key.fits(entry::address(vip), port, proto))
            };
            let fits =
                self.services.iter().filter_map(|(key, service)| Some((wide(key)?, service)));
            fits.min_by_key(|(key, _)| key.order()).map(|(_, service)| service)
        })
    }

    fn live(&self, flow: &FlowRef) -> Option<Arc<Flow>> {
        self.flows.borrow().get(flow).cloned()
    }
}

impl Tables for Fake {
    type Backend<'a> = &'a Backend;

    fn exact_service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        self.service_at(key.address.into(), key.port.get(), key.proto)
    }

    fn has_wide(&self) -> bool {
        false
    }

    fn service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        self.service_at(key.address.into(), key.port.get(), key.proto)
    }

    fn service_v6(&self, key: &ServiceKeyV6) -> Option<impl Deref<Target = Service>> {
        self.service_at(key.address.into(), key.port.get(), key.proto)
    }

    fn service(&self, id: u16) -> Option<impl Deref<Target = Service>> {
        self.services.values().find(|service| service.id == id)
    }

    fn slot(&self, service: u16, index: u32) -> Option<impl Deref<Target = Slot>> {
        self.rings.get(&service)?.get(index as usize)
    }

    /// An array has an entry for every id: an unused one is zero.
    fn backend(&self, id: u16) -> Option<&Backend> {
        static NOBODY: LazyLock<Backend> = LazyLock::new(Backend::new_zeroed);
        let is_id = u32::from(id) <= self.limits.backends;
        is_id.then(|| self.backends.get(&id).unwrap_or(&NOBODY))
    }

    fn pin(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        self.live(&FlowRef::Pin(*key))
    }

    fn insert_pin(&self, key: &FlowKey, value: FlowValue) -> bool {
        let flow = FlowRef::Pin(*key);
        let room = self.has_room(&flow);
        if room {
            self.flows.borrow_mut().insert(flow, Arc::new(Flow::new(value)));
        }
        room
    }

    fn note_pin(&self, key: &FlowKey) {
        self.program.note(*key);
    }

    fn pin_lease(&self) -> u64 {
        self.leased_until()
    }

    fn tracked(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        self.live(&FlowRef::Tracked(*key))
    }

    fn insert_tracked(&self, key: &FlowKey, value: FlowValue) {
        self.flows.borrow_mut().insert(FlowRef::Tracked(*key), Arc::new(Flow::new(value)));
    }

    fn connection(&self, key: &ConnectionKey) -> Option<impl Deref<Target = Flow>> {
        self.live(&FlowRef::Connection(*key))
    }

    fn insert_connection(&self, key: &ConnectionKey, value: FlowValue) {
        let mut flows = self.flows.borrow_mut();
        flows.entry(FlowRef::Connection(*key)).or_insert_with(|| Arc::new(Flow::new(value)));
    }

    fn handshake(&self, hash: u64) -> Option<impl Deref<Target = SharedU64>> {
        let place = Handshake::place(hash);
        Some(self.program.handshakes.borrow_mut().entry(place).or_default().clone())
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.program.fragments.borrow().get(key).copied()
    }

    fn insert_fragment(&self, key: &FragmentKey, value: Fragment) {
        self.program.fragments.borrow_mut().insert(*key, value);
    }

    fn is_vip(&self, key: &VipKey) -> bool {
        let wide =
            |of: &ServiceKey| entry::wide_key(of).is_some_and(|wide| wide.has_address(key.address));
        self.vips.contains(&entry::ip_of(key.address)) || self.services.keys().any(wide)
    }

    fn own_mac(&self, index: u32) -> Option<OwnMac> {
        let mac = self.own_macs.get(index as usize).copied().unwrap_or_default();
        (index < abi::OWN_MACS).then_some(OwnMac { mac, reserved: [0; 2] })
    }

    fn delivered_to(&self, key: &PeerKey) -> Option<u16> {
        self.peer_macs.get(key).copied()
    }

    fn has_nat(&self) -> bool {
        self.backends.values().any(nat::is_nat)
    }

    fn reverse_nat(&self, key: &ReverseKey) -> Option<u16> {
        let range = |(id, backend): (&u16, &abi::Backend)| {
            let range = entry::reverse_range(backend).filter(|range| range.has(key))?;
            Some((range.last - range.first, *id))
        };
        let mut all = self.backends.iter();
        let one = all.find(|(_, backend)| entry::reverse_key(backend) == Some(*key));
        one.map(|(id, _)| *id)
            .or_else(|| self.backends.iter().filter_map(range).min().map(|(_, id)| id))
    }

    fn syn_budget(&self, service: u16) -> Option<impl Deref<Target = TokenBucket>> {
        Some(self.program.budgets.borrow_mut().entry(service).or_default().clone())
    }

    fn icmp_budget(&self) -> Option<impl Deref<Target = TokenBucket>> {
        Some(Arc::new(TokenBucket::default()))
    }

    fn too_big_budget(&self, _source: u64) -> Option<impl Deref<Target = TokenBucket>> {
        Tables::icmp_budget(self)
    }

    fn icmp_rate(&self) -> u32 {
        if self.limits.icmp_errors == 0 { 0 } else { u32::MAX }
    }

    fn syn_seen(&self, index: u32) -> Option<impl Deref<Target = SharedU32>> {
        Some(self.program.marks.borrow_mut().entry(index).or_default().clone())
    }

    fn unanswered(&self, _id: u16) -> Unanswered {
        Unanswered::default()
    }

    fn in_flux(&self, service: &Service, key: &FlowKey, slot: &Slot, what: u64) -> u64 {
        in_flux(self, service, key, slot, what as u32)
    }

    fn second_choice(&self, service: u64, slots: u64, hash: u64, first: u64, nanos: u64) -> u64 {
        search(self, service as u16, slots as u32, hash, first as u16, nanos).into()
    }

    fn now_nanos(&self) -> u64 {
        self.program.now.get().as_nanos() as u64
    }
}

impl View for Fake {
    fn service_v4(&self, key: &ServiceKeyV4) -> io::Result<Option<Service>> {
        Ok(Tables::service_v4(self, key).map(|service| *service))
    }

    fn service_v6(&self, key: &ServiceKeyV6) -> io::Result<Option<Service>> {
        Ok(Tables::service_v6(self, key).map(|service| *service))
    }

    fn slot(&self, service: u16, index: u32) -> io::Result<Option<Slot>> {
        Ok(Tables::slot(self, service, index).map(|slot| {
            let copy = Slot::new(slot.owners());
            copy.set_stamps(slot.unpinned(), slot.pinned());
            copy
        }))
    }

    fn backend(&self, id: u16) -> io::Result<Option<Backend>> {
        Ok(Tables::backend(self, id).copied())
    }

    fn flow(&self, flow: &FlowRef) -> io::Result<Option<FlowValue>> {
        Ok(Self::flow(self, flow))
    }

    fn pin_lease(&self) -> u64 {
        self.leased_until()
    }

    fn handshake(&self, hash: u64) -> io::Result<Option<Handshake>> {
        Ok(Tables::handshake(self, hash).map(|word| Handshake(word.load())))
    }

    fn fragment(&self, key: &FragmentKey) -> io::Result<Option<Fragment>> {
        Ok(Tables::fragment(self, key))
    }

    fn is_vip(&self, key: &VipKey) -> io::Result<bool> {
        Ok(Tables::is_vip(self, key))
    }

    fn own_mac(&self, index: u32) -> io::Result<Option<OwnMac>> {
        Ok(Tables::own_mac(self, index))
    }

    fn delivered_to(&self, key: &PeerKey) -> io::Result<Option<u16>> {
        Ok(Tables::delivered_to(self, key))
    }

    fn has_nat(&self) -> io::Result<bool> {
        Ok(Tables::has_nat(self))
    }

    fn reverse_nat(&self, key: &ReverseKey) -> io::Result<Option<u16>> {
        Ok(Tables::reverse_nat(self, key))
    }

    fn syn_budget(&self, _cpu: u32, service: u16) -> io::Result<Option<(u64, u64)>> {
        let budget = Tables::syn_budget(self, service);
        Ok(budget.map(|budget| (budget.word(), budget.refilled.load())))
    }

    fn icmp_rate(&self) -> u32 {
        Tables::icmp_rate(self)
    }

    fn syn_mark(&self, index: u32) -> io::Result<Option<u32>> {
        Ok(Tables::syn_seen(self, index).map(|mark| mark.load()))
    }

    fn unanswered(&self, _cpu: u32, _id: u16) -> io::Result<u64> {
        Ok(0)
    }
}

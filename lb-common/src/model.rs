//! The tables as a few hash maps, naive on purpose: for tests of the core's decisions, and for those that compare the
//! core with the program in the kernel.

extern crate std;

use core::{
    cell::{Cell, Ref, RefCell},
    ops::Deref,
};
use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
    vec::Vec,
};

use crate::{
    abi::{
        self, Backend, BackendCounter, ConnectionKey, Flow, FlowKey, FlowValue, Fragment,
        FragmentKey, Handshake, NatConnection, NatConnectionKey, NatConnectionValue, OwnMac,
        Owners, PeerKey, ReverseKey, ReversePrefix, Service, ServiceKeyV4, ServiceKeyV6, Slot,
        TokenBucket, Unanswered, VipKey, mapped,
    },
    nat_connections::Connections,
    second_choice::search,
    shared::{SharedU32, SharedU64},
    steer::in_flux,
    tables::Tables,
    wide::WideKey,
};

/// The tables, and the clock; empty by default, with room for no pin.
#[derive(Debug, Default)]
pub struct ModelTables {
    /// The services of IPv4.
    pub services_v4: HashMap<ServiceKeyV4, Service>,
    /// The services of IPv6.
    pub services_v6: HashMap<ServiceKeyV6, Service>,
    /// The rings, by service.
    pub rings: HashMap<u16, Vec<Rc<Slot>>>,
    /// The backends, by id.
    pub backends: RefCell<Vec<Backend>>,
    /// The counters of the backends, by id. Whoever decides counts; the decision reads what is unanswered.
    pub counters: Vec<BackendCounter>,
    /// The pins.
    pub pins: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    /// How many pins there may be.
    pub pin_capacity: Cell<usize>,
    /// The flows whose pins were noted, in order.
    pub notes: RefCell<Vec<FlowKey>>,
    /// Until when pins may be made; 0: always.
    pub lease: Cell<u64>,
    /// The tracked flows.
    pub tracked: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    /// The connections.
    pub connections: RefCell<HashMap<ConnectionKey, Rc<Flow>>>,
    /// The clients that have begun to open a QUIC connection.
    pub handshakes: RefCell<HashMap<u32, Rc<SharedU64>>>,
    /// Fragmented packets.
    pub fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    /// The VIPs.
    pub vips: HashSet<VipKey>,
    /// The services with several ports, or a prefix of VIPs.
    pub wide: Vec<(WideKey, Service)>,
    /// The MAC addresses that the node answers to.
    pub own_macs: Vec<[u8; 6]>,
    /// The MAC addresses of other balancers, by service, and the backend on this node.
    pub peer_macs: HashMap<PeerKey, u16>,
    /// The backends in mode `nat`, by the source of their answers.
    pub reverse_nat: HashMap<ReverseKey, u16>,
    /// Those that keep the clients' port: the entries of the trie.
    pub reverse_ranges: HashMap<ReversePrefix, u16>,
    /// TCP connections to them.
    pub nat_connections: RefCell<HashMap<NatConnectionKey, Rc<NatConnection>>>,
    /// Which of them were noted lately.
    pub nat_recent: RefCell<HashMap<u32, Rc<SharedU64>>>,
    /// How many pins each service may make.
    pub budgets: HashMap<u16, Rc<TokenBucket>>,
    /// How many ICMP errors may be sent.
    pub icmp_budget: Rc<TokenBucket>,
    /// How many of them about packets that are too big, by source.
    pub too_big_budgets: RefCell<HashMap<u64, Rc<TokenBucket>>>,
    /// ICMP errors that may be sent in a second.
    pub icmp_rate: u32,
    /// Marks of SYNs.
    pub seen: RefCell<HashMap<u32, Rc<SharedU32>>>,
    /// The time.
    pub nanos: Cell<u64>,
    /// The owners that the daemon gives the first slot of a service when a backend is looked up next.
    pub settles: Cell<Option<(u16, Owners)>>,
}

impl ModelTables {
    /// The most specific service with several ports or VIPs that a packet fits.
    fn wide_service(&self, address: [u8; 16], port: u16, proto: u8) -> Option<&Service> {
        let fits = self.wide.iter().filter(|(key, _)| key.fits(address, port, proto));
        fits.min_by_key(|(key, _)| key.order()).map(|(_, service)| service)
    }
}

impl Tables for ModelTables {
    type Backend<'a> = Ref<'a, Backend>;

    fn exact_service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        self.services_v4.get(key)
    }

    fn has_wide(&self) -> bool {
        !self.wide.is_empty()
    }

    fn service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        let wide = || self.wide_service(mapped(key.address), key.port.get(), key.proto);
        self.services_v4.get(key).or_else(wide)
    }

    fn service_v6(&self, key: &ServiceKeyV6) -> Option<impl Deref<Target = Service>> {
        let wide = || self.wide_service(key.address, key.port.get(), key.proto);
        self.services_v6.get(key).or_else(wide)
    }

    fn service(&self, id: u16) -> Option<impl Deref<Target = Service>> {
        let wide = self.wide.iter().map(|(_, service)| service);
        let mut all = self.services_v4.values().chain(self.services_v6.values()).chain(wide);
        all.find(|service| service.id == id)
    }

    fn slot(&self, service: u16, index: u32) -> Option<impl Deref<Target = Slot>> {
        self.rings.get(&service)?.get(index as usize).cloned()
    }

    fn backend(&self, id: u16) -> Option<Ref<'_, Backend>> {
        if let Some((service, owners)) = self.settles.take() {
            self.rings[&service][0].set_owners(owners);
        }
        Ref::filter_map(self.backends.borrow(), |all| all.get(usize::from(id))).ok()
    }

    fn pin(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        self.pins.borrow().get(key).cloned()
    }

    fn insert_pin(&self, key: &FlowKey, value: FlowValue) -> bool {
        let mut pins = self.pins.borrow_mut();
        if !pins.contains_key(key) && pins.len() >= self.pin_capacity.get() {
            return false;
        }
        pins.insert(*key, Rc::new(Flow::new(value)));
        true
    }

    fn note_pin(&self, key: &FlowKey) {
        self.notes.borrow_mut().push(*key);
    }

    fn pin_lease(&self) -> u64 {
        self.lease.get()
    }

    fn tracked(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        self.tracked.borrow().get(key).cloned()
    }

    fn insert_tracked(&self, key: &FlowKey, value: FlowValue) {
        self.tracked.borrow_mut().insert(*key, Rc::new(Flow::new(value)));
    }

    fn connection(&self, key: &ConnectionKey) -> Option<impl Deref<Target = Flow>> {
        self.connections.borrow().get(key).cloned()
    }

    fn insert_connection(&self, key: &ConnectionKey, value: FlowValue) {
        self.connections.borrow_mut().entry(*key).or_insert_with(|| Rc::new(Flow::new(value)));
    }

    fn handshake(&self, hash: u64) -> Option<impl Deref<Target = SharedU64>> {
        Some(self.handshakes.borrow_mut().entry(Handshake::place(hash)).or_default().clone())
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn insert_fragment(&self, key: &FragmentKey, value: Fragment) {
        self.fragments.borrow_mut().insert(*key, value);
    }

    fn is_vip(&self, key: &VipKey) -> bool {
        self.vips.contains(key) || self.wide.iter().any(|(wide, _)| wide.has_address(key.address))
    }

    fn own_mac(&self, index: u32) -> Option<OwnMac> {
        let mac = self.own_macs.get(index as usize).copied().unwrap_or_default();
        (index < abi::OWN_MACS).then_some(OwnMac { mac, reserved: [0; 2] })
    }

    fn delivered_to(&self, key: &PeerKey) -> Option<u16> {
        self.peer_macs.get(key).copied()
    }

    fn has_nat(&self) -> bool {
        !self.reverse_nat.is_empty() || !self.reverse_ranges.is_empty()
    }

    fn reverse_nat(&self, key: &ReverseKey) -> Option<u16> {
        let in_range = || {
            let bits = ReversePrefix::BEFORE_PORT..=ReversePrefix::BEFORE_PORT + 16;
            let mut prefixes = bits.rev().map(|bits| ReversePrefix::of(key).shortened(bits));
            prefixes.find_map(|prefix| self.reverse_ranges.get(&prefix))
        };
        self.reverse_nat.get(key).or_else(in_range).copied()
    }

    fn syn_budget(&self, service: u16) -> Option<impl Deref<Target = TokenBucket>> {
        self.budgets.get(&service).cloned()
    }

    fn icmp_budget(&self) -> Option<impl Deref<Target = TokenBucket>> {
        Some(Rc::clone(&self.icmp_budget))
    }

    fn too_big_budget(&self, source: u64) -> Option<impl Deref<Target = TokenBucket>> {
        Some(Rc::clone(self.too_big_budgets.borrow_mut().entry(source).or_default()))
    }

    fn icmp_rate(&self) -> u32 {
        self.icmp_rate
    }

    fn syn_seen(&self, index: u32) -> Option<impl Deref<Target = SharedU32>> {
        assert!(index < abi::SYN_MARKS);
        Some(self.seen.borrow_mut().entry(index).or_default().clone())
    }

    fn unanswered(&self, id: u16) -> Unanswered {
        let counter = self.counters.get(usize::from(id));
        Unanswered(counter.map_or(0, |counter| counter.unanswered.load()))
    }

    fn in_flux(&self, service: &Service, key: &FlowKey, slot: &Slot, what: u64) -> u64 {
        in_flux(self, service, key, slot, what as u32)
    }

    fn second_choice(&self, service: u64, slots: u64, hash: u64, first: u64, nanos: u64) -> u64 {
        search(self, service as u16, slots as u32, hash, first as u16, nanos).into()
    }

    fn now_nanos(&self) -> u64 {
        self.nanos.get()
    }
}

impl Connections for ModelTables {
    fn get(&self, key: &NatConnectionKey) -> Option<impl Deref<Target = NatConnection>> {
        self.nat_connections.borrow().get(key).cloned()
    }

    fn insert(&self, key: &NatConnectionKey, value: NatConnectionValue) {
        self.nat_connections.borrow_mut().insert(*key, Rc::new(NatConnection::new(value)));
    }

    fn recent(&self, index: u32) -> Option<impl Deref<Target = SharedU64>> {
        Some(self.nat_recent.borrow_mut().entry(index).or_default().clone())
    }
}

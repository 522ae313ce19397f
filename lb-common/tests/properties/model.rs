//! The tables of the core as a few hash maps, naive on purpose, and a world of eight services.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ops::Deref,
    rc::Rc,
};

use lb_common::{
    abi::{
        self, Backend, BackendCounter, ConnectionKey, Flow, FlowKey, FlowValue, Fragment,
        FragmentKey, Handshake, OwnMac, Owners, PeerKey, Service, ServiceKeyV4, ServiceKeyV6, Slot,
        SynBudget, Unanswered, VipKey, backend_flags, mapped, service_flags, udp_policy,
    },
    forward::decide,
    hash::{FlowKeys, flow_hash_v4, flow_hash_v6, slot_of},
    packet::number,
    plain,
    second_choice::search,
    shared::{SharedU32, SharedU64},
    steer::in_flux,
    tables::Tables,
    verdict::{Forward, Verdict, events},
};

use crate::frames::{Client, Family};

pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub const VIP_V4: [u8; 4] = [10, 0, 0, 100];
pub const VIP_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x64];
pub const WEB: u16 = 80;
pub const DNS: u16 = 53;
pub const GAME: u16 = 54;
pub const QUIC: u16 = 443;
/// Backends 1 to 8 can be sent to.
pub const BACKENDS: u16 = 8;
pub const IDLE: u32 = 60;
/// Where the clock stands at first, in seconds.
pub const START: u32 = 100_000;

/// Port, protocol, policy; the ids of the services are 1 to 4 for IPv4 and 5 to 8 for IPv6.
const SERVICES: [(u16, u8, u8); 4] = [
    (WEB, number::TCP, 0),
    (DNS, number::UDP, udp_policy::ONESHOT),
    (GAME, number::UDP, udp_policy::TRACKED),
    (QUIC, number::UDP, udp_policy::QUIC),
];

/// A verdict that owns its backend.
pub type Decided = Verdict<Backend>;

pub struct Model {
    pub services_v4: HashMap<ServiceKeyV4, Service>,
    pub services_v6: HashMap<ServiceKeyV6, Service>,
    pub rings: HashMap<u16, Vec<Rc<Slot>>>,
    pub backends: RefCell<Vec<Backend>>,
    pub pins: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    pub pin_capacity: Cell<usize>,
    pub tracked: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    pub connections: RefCell<HashMap<ConnectionKey, Rc<Flow>>>,
    pub handshakes: RefCell<HashMap<u32, Rc<SharedU64>>>,
    pub fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    pub vips: Vec<VipKey>,
    pub own_macs: Vec<[u8; 6]>,
    pub peer_macs: HashMap<PeerKey, u16>,
    pub budgets: HashMap<u16, Rc<SynBudget>>,
    pub icmp_budget: Rc<SynBudget>,
    /// By source.
    pub too_big_budgets: RefCell<HashMap<u64, Rc<SynBudget>>>,
    pub icmp_rate: u32,
    pub seen: RefCell<HashMap<u32, Rc<SharedU32>>>,
    pub counters: Vec<BackendCounter>,
    pub nanos: Cell<u64>,
    /// The flows whose pins were noted, in order.
    pub notes: RefCell<Vec<FlowKey>>,
    pub lease: Cell<u64>,
    /// The owners that the daemon gives the only slot of a service when a backend is looked up next.
    pub settles: Cell<Option<(u16, Owners)>>,
}

impl Model {
    /// The world with rings of `slots` slots, all owned by backend 1.
    pub fn new(slots: u32) -> Self {
        let mut model = Self {
            services_v4: HashMap::new(),
            services_v6: HashMap::new(),
            rings: HashMap::new(),
            backends: RefCell::new((0..=BACKENDS).map(backend).collect()),
            pins: RefCell::default(),
            pin_capacity: Cell::new(usize::MAX),
            tracked: RefCell::default(),
            connections: RefCell::default(),
            handshakes: RefCell::default(),
            fragments: RefCell::default(),
            vips: vec![VipKey { address: mapped(VIP_V4) }, VipKey { address: VIP_V6 }],
            own_macs: vec![OWN],
            peer_macs: HashMap::new(),
            budgets: HashMap::new(),
            icmp_budget: Rc::default(),
            too_big_budgets: RefCell::default(),
            icmp_rate: u32::MAX,
            seen: RefCell::default(),
            counters: (0..=BACKENDS).map(|_| BackendCounter::default()).collect(),
            nanos: Cell::new(u64::from(START) * 1_000_000_000),
            notes: RefCell::default(),
            lease: Cell::new(0),
            settles: Cell::new(None),
        };
        for (index, (port, proto, policy)) in SERVICES.into_iter().enumerate() {
            for id in [index as u16 + 1, index as u16 + 5] {
                let service = Service {
                    keys: FlowKeys::derive(&[7; 16], &id.to_be_bytes()).0,
                    slots,
                    id,
                    udp_policy: policy,
                    flags: service_flags::SECOND_CHOICE,
                    idle_timeout: IDLE,
                    syn_budget: 1000,
                };
                let port = port.into();
                if id < 5 {
                    let key = ServiceKeyV4 { address: VIP_V4, port, proto, reserved: 0 };
                    model.services_v4.insert(key, service);
                } else {
                    let key = ServiceKeyV6 { address: VIP_V6, port, proto, reserved: 0 };
                    model.services_v6.insert(key, service);
                }
                let slot = || Rc::new(Slot::new(Owners { current: 1, base: 0 }));
                model.rings.insert(id, (0..slots).map(|_| slot()).collect());
                model.budgets.insert(id, Rc::default());
            }
        }
        model
    }

    /// Changes a service, which all have.
    pub fn change_service(&mut self, id: u16, change: impl Fn(&mut Service)) {
        let all = self.services_v4.values_mut().chain(self.services_v6.values_mut());
        all.filter(|service| service.id == id).for_each(change);
    }

    /// The rule for a change of the ring: every slot of every ring gets a new current owner.
    pub fn move_rings_to(&self, owner: u16) {
        for slot in self.rings.values().flatten() {
            let Owners { current, base } = slot.owners();
            let base = if base == 0 { current } else { base };
            let base = if base == owner { 0 } else { base };
            slot.set_owners(Owners { current: owner, base });
        }
    }

    /// Slots that belong to backends 1 to `owners` in turn, in every ring.
    pub fn share_rings(&self, owners: u16) {
        for ring in self.rings.values() {
            for (slot, owner) in ring.iter().zip((1..=owners).cycle()) {
                slot.set_owners(Owners { current: owner, base: 0 });
            }
        }
    }

    /// The slot of a client of the service at port [`WEB`].
    pub fn slot_of(&self, family: Family, client: &Client) -> &Slot {
        let id = family.service(1);
        let mut all = self.services_v4.values().chain(self.services_v6.values());
        let keys = all.find(|service| service.id == id).expect("all are there").keys;
        let port = client.port.to_be_bytes();
        let hash = match family {
            Family::V4 => flow_hash_v4(&keys, client.v4, port),
            Family::V6 => flow_hash_v6(&keys, &client.v6, port),
        };
        let ring = &self.rings[&id];
        &ring[slot_of(hash, ring.len() as u32) as usize]
    }

    /// The clients whose slots have this current owner.
    pub fn clients_of(&self, family: Family, owner: u16) -> impl Iterator<Item = Client> {
        let owns = move |client: &Client| self.slot_of(family, client).owners().current == owner;
        (0..10_000).map(Client::new).filter(owns)
    }

    /// One of them; another one for every `number`.
    pub fn client_of(&self, family: Family, owner: u16, number: usize) -> Client {
        self.clients_of(family, owner).nth(number).expect("the owner has slots")
    }

    /// The only slot of a ring of one.
    pub fn only_slot(&self, service: u16) -> &Slot {
        let ring = &self.rings[&service];
        assert_eq!(ring.len(), 1);
        &ring[0]
    }

    pub fn set_flags(&self, backend: u16, flags: u8) {
        self.backends.borrow_mut()[usize::from(backend)].flags = flags;
    }

    pub fn set_mtu(&self, mtu: u16) {
        self.backends.borrow_mut().iter_mut().for_each(|backend| backend.mtu = mtu);
    }

    pub fn pass_seconds(&self, seconds: u32) {
        self.nanos.set(self.nanos.get() + u64::from(seconds) * 1_000_000_000);
    }

    pub fn decide(&self, frame: &[u8]) -> Decided {
        self.settle(decide(frame, self))
    }

    /// The same by the short way; `None` if that is not for this frame.
    pub fn decide_plain(&self, frame: &[u8]) -> Option<Decided> {
        let mut verdict = plain::decide(frame, self)?;
        if let Verdict::Forward(to) = &mut verdict
            && plain::is_heard(frame)
        {
            to.events |= events::HEARD;
        }
        Some(self.settle(verdict))
    }

    fn settle(&self, verdict: Verdict<impl Deref<Target = Backend>>) -> Decided {
        if let Verdict::Forward(to) = &verdict {
            let is_heard = || to.events & events::HEARD != 0;
            self.counters[usize::from(to.id)].count(to, is_heard, || self.nanos.get());
        }
        verdict.owned()
    }

    /// What a frame that must be forwarded is.
    #[track_caller]
    pub fn forwarded(&self, frame: &[u8]) -> Forward<Backend> {
        match self.decide(frame) {
            Verdict::Forward(to) => to,
            other => panic!("not forwarded: {other:?}"),
        }
    }
}

fn backend(id: u16) -> Backend {
    Backend {
        l2: [0; 22],
        l2_len: 14,
        flags: if id == 0 { 0 } else { backend_flags::USABLE },
        ifindex: 1,
        mtu: 1500,
        service: 0,
        outer_sum: 0,
        source_mask: 0,
        address_v4: [192, 0, 2, id as u8],
        source_v4: [0; 4],
        reserved0: [0; 16],
        address: mapped([192, 0, 2, id as u8]),
        source: [0; 16],
        reserved1: [0; 32],
    }
}

/// A value that is handed out by reference.
pub struct Owned<T>(T);

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl Tables for Model {
    type Backend<'a> = Owned<Backend>;

    fn service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        self.services_v4.get(key)
    }

    fn service_v6(&self, key: &ServiceKeyV6) -> Option<impl Deref<Target = Service>> {
        self.services_v6.get(key)
    }

    fn slot(&self, service: u16, index: u32) -> Option<impl Deref<Target = Slot>> {
        self.rings.get(&service)?.get(index as usize).cloned()
    }

    fn backend(&self, id: u16) -> Option<Owned<Backend>> {
        if let Some((service, owners)) = self.settles.take() {
            self.only_slot(service).set_owners(owners);
        }
        self.backends.borrow().get(usize::from(id)).copied().map(Owned)
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
        self.vips.contains(key)
    }

    fn own_mac(&self, index: u32) -> Option<OwnMac> {
        let mac = self.own_macs.get(index as usize).copied().unwrap_or_default();
        (index < abi::OWN_MACS).then_some(OwnMac { mac, reserved: [0; 2] })
    }

    fn delivered_to(&self, key: &PeerKey) -> Option<u16> {
        self.peer_macs.get(key).copied()
    }

    fn syn_budget(&self, service: u16) -> Option<impl Deref<Target = SynBudget>> {
        self.budgets.get(&service).cloned()
    }

    fn icmp_budget(&self) -> Option<impl Deref<Target = SynBudget>> {
        Some(Rc::clone(&self.icmp_budget))
    }

    fn too_big_budget(&self, source: u64) -> Option<impl Deref<Target = SynBudget>> {
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

//! A world of eight services in the model of the tables.

use std::{
    cell::{Cell, RefCell},
    ops::{Deref, DerefMut},
    rc::Rc,
};

use lb_common::{
    abi::{
        Backend, BackendCounter, Owners, Service, ServiceKeyV4, ServiceKeyV6, Slot, VipKey,
        backend_flags, mapped, service_flags, udp_policy,
    },
    fast_path,
    hash::{FlowKeys, flow_hash_v4, flow_hash_v6, slot_of},
    model::ModelTables,
    packet::number,
    returns::decide,
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

/// The tables of the world.
pub struct Model(ModelTables);

impl Deref for Model {
    type Target = ModelTables;

    fn deref(&self) -> &ModelTables {
        &self.0
    }
}

impl DerefMut for Model {
    fn deref_mut(&mut self) -> &mut ModelTables {
        &mut self.0
    }
}

impl Model {
    /// The world with rings of `slots` slots, all owned by backend 1.
    pub fn new(slots: u32) -> Self {
        let mut model = Self(ModelTables {
            backends: RefCell::new((0..=BACKENDS).map(backend).collect()),
            counters: (0..=BACKENDS).map(|_| BackendCounter::default()).collect(),
            pin_capacity: Cell::new(usize::MAX),
            vips: [VipKey { address: mapped(VIP_V4) }, VipKey { address: VIP_V6 }].into(),
            own_macs: vec![OWN],
            icmp_rate: u32::MAX,
            nanos: Cell::new(u64::from(START) * 1_000_000_000),
            ..ModelTables::default()
        });
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
        let tables = &mut self.0;
        let all = tables.services_v4.values_mut().chain(tables.services_v6.values_mut());
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
            Family::V4 => flow_hash_v4(&keys, client.v4, port, [0; 2]),
            Family::V6 => flow_hash_v6(&keys, &client.v6, port, [0; 2]),
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
        self.count_forward(decide(frame, &self.0))
    }

    /// The same by the fast path; `None` if that is not for this frame.
    pub fn try_decide(&self, frame: &[u8]) -> Option<Decided> {
        let mut verdict = fast_path::try_decide(frame, &self.0)?;
        if let Verdict::Forward(to) = &mut verdict
            && fast_path::is_bare_ack(frame)
        {
            to.events |= events::BARE_ACK;
        }
        Some(self.count_forward(verdict))
    }

    fn count_forward(&self, verdict: Verdict<impl Deref<Target = Backend>>) -> Decided {
        if let Verdict::Forward(to) = &verdict {
            let is_bare_ack = || to.events & events::BARE_ACK != 0;
            self.counters[usize::from(to.id)].count(to, is_bare_ack, || self.nanos.get());
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
        port: 0.into(),
        reserved0: [0; 14],
        address: mapped([192, 0, 2, id as u8]),
        source: [0; 16],
        vip: [0; 16],
        vip_port: 0.into(),
        proto: 0,
        reserved1: 0,
        first_port: 0.into(),
        last_port: 0.into(),
        reserved2: [0; 8],
    }
}

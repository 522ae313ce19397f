//! The tables as one packet would find them: reads go through to the maps, writes stay here, and
//! each lookup is noted.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map},
    io,
    net::IpAddr,
    ops::Deref,
    rc::Rc,
};

use anyhow::{Context as _, Result};
use lb_common::{
    abi::{
        Backend, BackendCounter, ConnectionKey, Flow, FlowKey, FlowValue, Fragment, FragmentKey,
        Handshake, OwnMac, Owners, PeerKey, ReverseKey, Service, ServiceKeyV4, ServiceKeyV6, Slot,
        TokenBucket, Unanswered, VipKey,
    },
    second_choice::search,
    shared::{SharedU32, SharedU64},
    steer::in_flux,
    tables::Tables,
    verdict::{Verdict, events},
};
use lb_model::{
    desired::{Protocol, ServiceKey},
    flow::FlowRef,
};

use super::View;

/// A lookup, and its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// A service was looked for; the key is none for a protocol that no service can have.
    Service(Option<ServiceKey>, Option<Service>),
    /// A slot of a service's ring.
    Slot {
        /// The service's id.
        service: u16,
        /// Its number.
        index: u32,
        owners: Owners,
        /// The stamp of the last packet that went to the base owner without a pin.
        unpinned: u16,
        /// The stamp of the last use of a pin.
        pinned: u16,
    },
    /// A service without a ring, or a ring without the slot.
    NoSlot,
    /// A backend.
    Backend(u16, Option<Backend>),
    /// An entry of a table of flows.
    Flow(FlowRef, Option<FlowValue>),
    /// A flow was to be added; whether there was room.
    Insert(FlowRef, FlowValue, bool),
    /// A pin is new or different.
    PinNoted,
    /// The lease of pins.
    Lease(u64),
    /// A budget: its word ([`TokenBucket::word`]), and when it was refilled.
    Budget(u64, u64),
    /// How many seconds ago the client began to open a QUIC connection, if it is known.
    Handshake(Option<u16>),
    /// The decision for the first fragment.
    Fragment(Option<Fragment>),
    /// Where the first fragment went is kept.
    InsertFragment(u16),
    /// Whether an address is a VIP.
    Vip(bool),
    /// Whether this MAC address is another balancer's, and to which backend on this node its packets are delivered.
    Peer([u8; 6], Option<u16>),
    /// Whether this source is that of a backend in mode `nat`, and of which.
    Reverse(ReverseKey, Option<u16>),
    /// The place of a SYN's mark is looked at.
    SynMark,
    /// Whether a backend answers.
    Unanswered(u16, Unanswered),
}

/// A write that the program would make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// A flow is added, replaced, or refreshed.
    Flow(FlowRef, Option<FlowValue>, FlowValue),
    /// A slot's stamp of unpinned packets.
    Unpinned(u32),
    /// A slot's stamp of pins.
    Pinned(u32),
    /// A token of the budget is taken.
    Token(u64),
    /// The SYN is marked as seen.
    Mark,
    /// A client's QUIC handshake is marked as begun.
    Handshake,
    /// Where the first fragment went is kept.
    Fragment(u16),
    /// The daemon gets a note of a pin.
    Noted,
}

/// An entry as the maps had it when it was first read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A slot: service, number, owners, both stamps.
    Slot(u16, u32, Owners, (u16, u16)),
    /// An entry of a table of flows, or that there is none.
    Flow(FlowRef, Option<FlowValue>),
    /// The mark of a QUIC handshake at a place.
    Handshake(u32, Handshake),
    /// The decision for the first fragment of a packet, if it was seen.
    Fragment(FragmentKey, Option<Fragment>),
    /// The budget of a service: its word, and when it was refilled.
    Budget(u16, u64, u64),
    /// The mark at a place.
    Mark(u32, u32),
    /// The packets that a backend has not answered.
    Unanswered(u16, u64),
}

/// A value that is copied on its first use, and its original.
#[derive(Debug)]
struct Copied<T, P> {
    now: Rc<T>,
    before: P,
}

/// Of a slot: the last unpinned packet, and the last use of a pin.
type Stamps = (u16, u16);

/// The tables of one packet, and of those that follow it.
#[derive(Debug)]
pub(crate) struct Overlay<'a, V: ?Sized> {
    view: &'a V,
    cpu: u32,
    nanos: u64,
    room_for_pins: bool,
    notes: RefCell<Vec<Note>>,
    /// The service that was found last.
    service: Cell<Option<Service>>,
    slots: RefCell<HashMap<(u16, u32), Copied<Slot, Stamps>>>,
    flows: RefCell<HashMap<FlowRef, Copied<Flow, Option<FlowValue>>>>,
    handshakes: RefCell<HashMap<u32, Copied<SharedU64, u64>>>,
    fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    budgets: RefCell<HashMap<u16, Copied<TokenBucket, u64>>>,
    marks: RefCell<HashMap<u32, Copied<SharedU32, u32>>>,
    counters: RefCell<HashMap<u16, Rc<BackendCounter>>>,
    reads: RefCell<Vec<Entry>>,
    failed: RefCell<Option<io::Error>>,
}

/// Entries that are handed out by value.
#[derive(Debug)]
pub(crate) struct Owned<T>(T);

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<'a, V: View + ?Sized> Overlay<'a, V> {
    /// The tables at one moment, for packets that come in on this CPU.
    pub fn new(view: &'a V, cpu: u32, nanos: u64, room_for_pins: bool) -> Self {
        Self {
            view,
            cpu,
            nanos,
            room_for_pins,
            notes: RefCell::default(),
            service: Cell::default(),
            slots: RefCell::default(),
            flows: RefCell::default(),
            handshakes: RefCell::default(),
            fragments: RefCell::default(),
            budgets: RefCell::default(),
            marks: RefCell::default(),
            counters: RefCell::default(),
            reads: RefCell::default(),
            failed: RefCell::default(),
        }
    }

    /// Forgets the notes; the writes stay as the state from here on.
    pub fn begin(&self) {
        self.notes.borrow_mut().clear();
        for slot in self.slots.borrow_mut().values_mut() {
            slot.before = (slot.now.unpinned(), slot.now.pinned());
        }
        for flow in self.flows.borrow_mut().values_mut() {
            flow.before = Some(flow.now.get());
        }
        for budget in self.budgets.borrow_mut().values_mut() {
            budget.before = budget.now.word();
        }
        for mark in self.marks.borrow_mut().values_mut() {
            mark.before = mark.now.load();
        }
    }

    /// The lookups since [`Self::begin`], in order.
    pub(crate) fn notes(&self) -> Vec<Note> {
        self.notes.borrow().clone()
    }

    /// The entries of the maps that were read, from the beginning on.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.reads.borrow().clone()
    }

    /// Why a map could not be read, if one could not.
    ///
    /// # Errors
    ///
    /// That.
    pub fn check(&self) -> Result<()> {
        match self.failed.borrow_mut().take() {
            Some(error) => Err(error).context("read the maps"),
            None => Ok(()),
        }
    }

    /// Counts a verdict as the program does: what follows depends on it.
    pub fn count<B>(&self, verdict: &Verdict<B>) {
        if let Verdict::Forward(to) = verdict {
            let is_received = || to.events & events::BARE_ACK != 0;
            self.counter(to.id).count(to, is_received, || self.nanos);
        }
    }

    /// The writes since [`Self::begin`].
    pub(crate) fn writes(&self) -> Vec<Write> {
        let mut writes = Vec::new();
        for note in self.notes.borrow().iter() {
            match note {
                Note::PinNoted => writes.push(Write::Noted),
                Note::InsertFragment(backend) => writes.push(Write::Fragment(*backend)),
                _ => {}
            }
        }
        for (flow, Copied { now, before }) in self.flows.borrow().iter() {
            if *before != Some(now.get()) {
                writes.push(Write::Flow(*flow, *before, now.get()));
            }
        }
        for ((_, index), Copied { now, before }) in self.slots.borrow().iter() {
            if now.unpinned() != before.0 {
                writes.push(Write::Unpinned(*index));
            }
            if now.pinned() != before.1 {
                writes.push(Write::Pinned(*index));
            }
        }
        for Copied { now, .. } in self.budgets.borrow().values() {
            writes.push(Write::Token(now.tokens.load().into()));
        }
        for Copied { now, before } in self.marks.borrow().values() {
            if now.load() != *before {
                writes.push(Write::Mark);
            }
        }
        for Copied { now, before } in self.handshakes.borrow().values() {
            if now.load() != *before {
                writes.push(Write::Handshake);
            }
        }
        writes
    }

    fn note(&self, note: Note) {
        self.notes.borrow_mut().push(note);
    }

    /// The result of a read; a map that can't be read is remembered, and counts as empty.
    fn read<T: Default>(&self, read: io::Result<T>) -> T {
        read.unwrap_or_else(|error| {
            *self.failed.borrow_mut() = Some(error);
            T::default()
        })
    }

    fn counter(&self, id: u16) -> Rc<BackendCounter> {
        let mut counters = self.counters.borrow_mut();
        let counter = counters.entry(id).or_insert_with(|| {
            let counter = BackendCounter::default();
            let word = self.read(self.view.unanswered(self.cpu, id));
            self.reads.borrow_mut().push(Entry::Unanswered(id, word));
            counter.unanswered.store(word);
            Rc::new(counter)
        });
        Rc::clone(counter)
    }

    fn flow_of(&self, flow: FlowRef) -> Option<FlowValue> {
        let found = self.read(self.view.flow(&flow));
        self.reads.borrow_mut().push(Entry::Flow(flow, found));
        found
    }

    fn fragment_of(&self, key: &FragmentKey) -> Option<Fragment> {
        let found = self.read(self.view.fragment(key));
        self.reads.borrow_mut().push(Entry::Fragment(*key, found));
        found
    }

    fn live(&self, flow: FlowRef) -> Option<Rc<Flow>> {
        let mut flows = self.flows.borrow_mut();
        let found = match flows.get(&flow) {
            Some(known) => Some(Rc::clone(&known.now)),
            None => self.flow_of(flow).map(|value| {
                let now = Rc::new(Flow::new(value));
                flows.insert(flow, Copied { now: Rc::clone(&now), before: Some(value) });
                now
            }),
        };
        self.note(Note::Flow(flow, found.as_ref().map(|flow| flow.get())));
        found
    }

    fn insert(&self, flow: FlowRef, value: FlowValue, replaces: bool) -> bool {
        let mut flows = self.flows.borrow_mut();
        let known = flows.contains_key(&flow)
            || matches!(self.flow_of(flow), Some(known) if {
                let now = Rc::new(Flow::new(known));
                flows.insert(flow, Copied { now, before: Some(known) });
                true
            });
        let room = known || !matches!(flow, FlowRef::Pin(_)) || self.room_for_pins;
        self.note(Note::Insert(flow, value, room));
        if let Some(known) = flows.get(&flow) {
            if replaces {
                known.now.set(value);
            }
        } else if room {
            flows.insert(flow, Copied { now: Rc::new(Flow::new(value)), before: None });
        }
        room
    }
}

fn key_of(vip: IpAddr, port: u16, proto: u8) -> Option<ServiceKey> {
    let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|p| p.number() == proto)?;
    Some(ServiceKey::new(vip, port, protocol))
}

impl<V: View + ?Sized> Tables for Overlay<'_, V> {
    type Backend<'a>
        = Owned<Backend>
    where
        Self: 'a;

    fn exact_service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        self.service_v4(key)
    }

    fn has_wide(&self) -> bool {
        false
    }

    fn service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        let found = self.read(self.view.service_v4(key));
        let at = key_of(key.address.into(), key.port.get(), key.proto);
        self.note(Note::Service(at, found));
        self.service.set(found);
        found.map(Owned)
    }

    fn service_v6(&self, key: &ServiceKeyV6) -> Option<impl Deref<Target = Service>> {
        let found = self.read(self.view.service_v6(key));
        let at = key_of(key.address.into(), key.port.get(), key.proto);
        self.note(Note::Service(at, found));
        self.service.set(found);
        found.map(Owned)
    }

    fn service(&self, id: u16) -> Option<impl Deref<Target = Service>> {
        let found = self.service.get().filter(|service| service.id == id);
        found.map(Owned)
    }

    fn slot(&self, service: u16, index: u32) -> Option<impl Deref<Target = Slot>> {
        let slot = match self.slots.borrow_mut().entry((service, index)) {
            hash_map::Entry::Occupied(known) => Rc::clone(&known.get().now),
            hash_map::Entry::Vacant(place) => {
                let Some(slot) = self.read(self.view.slot(service, index)) else {
                    self.note(Note::NoSlot);
                    return None;
                };
                let before = (slot.unpinned(), slot.pinned());
                let entry = Entry::Slot(service, index, slot.owners(), before);
                self.reads.borrow_mut().push(entry);
                Rc::clone(&place.insert(Copied { now: Rc::new(slot), before }).now)
            }
        };
        let (unpinned, pinned) = (slot.unpinned(), slot.pinned());
        self.note(Note::Slot { service, index, owners: slot.owners(), unpinned, pinned });
        Some(slot)
    }

    fn backend(&self, id: u16) -> Option<Owned<Backend>> {
        let found = self.read(self.view.backend(id));
        self.note(Note::Backend(id, found));
        found.map(Owned)
    }

    fn pin(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        self.live(FlowRef::Pin(*key))
    }

    fn insert_pin(&self, key: &FlowKey, value: FlowValue) -> bool {
        self.insert(FlowRef::Pin(*key), value, true)
    }

    fn note_pin(&self, _key: &FlowKey) {
        self.note(Note::PinNoted);
    }

    fn pin_lease(&self) -> u64 {
        let lease = self.view.pin_lease();
        self.note(Note::Lease(lease));
        lease
    }

    fn tracked(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        self.live(FlowRef::Tracked(*key))
    }

    fn insert_tracked(&self, key: &FlowKey, value: FlowValue) {
        self.insert(FlowRef::Tracked(*key), value, true);
    }

    fn connection(&self, key: &ConnectionKey) -> Option<impl Deref<Target = Flow>> {
        self.live(FlowRef::Connection(*key))
    }

    fn insert_connection(&self, key: &ConnectionKey, value: FlowValue) {
        self.insert(FlowRef::Connection(*key), value, false);
    }

    fn handshake(&self, hash: u64) -> Option<impl Deref<Target = SharedU64>> {
        let mark = match self.handshakes.borrow_mut().entry(Handshake::place(hash)) {
            hash_map::Entry::Occupied(known) => Rc::clone(&known.get().now),
            hash_map::Entry::Vacant(place) => {
                let before = self.read(self.view.handshake(hash)).unwrap_or_default();
                self.reads.borrow_mut().push(Entry::Handshake(*place.key(), before));
                let now = Rc::new(SharedU64::new(before.0));
                Rc::clone(&place.insert(Copied { now, before: before.0 }).now)
            }
        };
        self.note(Note::Handshake(Handshake(mark.load()).age(hash, self.now())));
        Some(mark)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        let here = self.fragments.borrow().get(key).copied();
        let found = here.or_else(|| self.fragment_of(key));
        self.note(Note::Fragment(found));
        found
    }

    fn insert_fragment(&self, key: &FragmentKey, value: Fragment) {
        self.note(Note::InsertFragment(value.backend));
        self.fragments.borrow_mut().insert(*key, value);
    }

    fn is_vip(&self, key: &VipKey) -> bool {
        let is = self.read(self.view.is_vip(key));
        self.note(Note::Vip(is));
        is
    }

    fn own_mac(&self, index: u32) -> Option<OwnMac> {
        self.read(self.view.own_mac(index))
    }

    fn delivered_to(&self, key: &PeerKey) -> Option<u16> {
        let found = self.read(self.view.delivered_to(key));
        self.note(Note::Peer(key.mac, found));
        found
    }

    fn has_nat(&self) -> bool {
        self.read(self.view.has_nat())
    }

    fn reverse_nat(&self, key: &ReverseKey) -> Option<u16> {
        let found = self.read(self.view.reverse_nat(key));
        self.note(Note::Reverse(*key, found));
        found
    }

    fn syn_budget(&self, service: u16) -> Option<impl Deref<Target = TokenBucket>> {
        let budget = match self.budgets.borrow_mut().entry(service) {
            hash_map::Entry::Occupied(known) => Rc::clone(&known.get().now),
            hash_map::Entry::Vacant(place) => {
                let (tokens, refilled) = self.read(self.view.syn_budget(self.cpu, service))?;
                self.reads.borrow_mut().push(Entry::Budget(service, tokens, refilled));
                let budget = TokenBucket::default();
                budget.set_word(tokens);
                budget.refilled.store(refilled);
                Rc::clone(&place.insert(Copied { now: Rc::new(budget), before: tokens }).now)
            }
        };
        self.note(Note::Budget(budget.word(), budget.refilled.load()));
        Some(budget)
    }

    fn icmp_budget(&self) -> Option<impl Deref<Target = TokenBucket>> {
        Some(Rc::new(TokenBucket::default()))
    }

    fn too_big_budget(&self, _source: u64) -> Option<impl Deref<Target = TokenBucket>> {
        self.icmp_budget()
    }

    fn icmp_rate(&self) -> u32 {
        self.view.icmp_rate()
    }

    fn syn_seen(&self, index: u32) -> Option<impl Deref<Target = SharedU32>> {
        let mark = match self.marks.borrow_mut().entry(index) {
            hash_map::Entry::Occupied(known) => Rc::clone(&known.get().now),
            hash_map::Entry::Vacant(place) => {
                let before = self.read(self.view.syn_mark(index))?;
                self.reads.borrow_mut().push(Entry::Mark(index, before));
                let now = Rc::new(SharedU32::new(before));
                Rc::clone(&place.insert(Copied { now, before }).now)
            }
        };
        self.note(Note::SynMark);
        Some(mark)
    }

    fn unanswered(&self, id: u16) -> Unanswered {
        let word = Unanswered(self.counter(id).unanswered.load());
        self.note(Note::Unanswered(id, word));
        word
    }

    fn in_flux(&self, service: &Service, key: &FlowKey, slot: &Slot, what: u64) -> u64 {
        in_flux(self, service, key, slot, what as u32)
    }

    fn second_choice(&self, service: u64, slots: u64, hash: u64, first: u64, nanos: u64) -> u64 {
        search(self, service as u16, slots as u32, hash, first as u16, nanos).into()
    }

    fn now_nanos(&self) -> u64 {
        self.nanos
    }
}

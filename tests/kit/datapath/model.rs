//! The tables of the balancer as a few hash maps, and the XDP program's effect on a frame, byte
//! by byte on a `Vec`: naive on purpose.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ops::Deref,
    rc::Rc,
};

use lb_common::{
    abi::{
        self, Backend, ConnectionKey, Flow, FlowKey, FlowValue, Fragment, FragmentKey, Handshake,
        OwnMac, PeerKey, Service, ServiceKeyV4, ServiceKeyV6, Slot, SynBudget, Unanswered, VipKey,
        backend_flags,
    },
    forward::decide,
    packet::{Packet, ipv4, ipv6, number},
    rewrite,
    second_choice::search,
    shared::{SharedU32, SharedU64},
    steer::in_flux,
    tables::Tables,
    verdict::{Drop, Forward, Reply, ReplyKind, Verdict, events},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::hook::Hook;

/// The actions of XDP on a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// XDP_DROP
    Drop = 1,
    /// XDP_PASS
    Pass = 2,
    /// XDP_TX
    Tx = 3,
    /// XDP_REDIRECT
    Redirect = 4,
}

/// Counters of one backend: packets, bytes, new flows, unpinned, SYN retransmissions, the word of what
/// is unanswered, second choices.
pub type BackendCount = [u64; 7];

/// The tables, and the counters that the program would keep.
#[derive(Debug)]
pub struct Model {
    /// The services of IPv4.
    pub services_v4: HashMap<ServiceKeyV4, Service>,
    /// The services of IPv6.
    pub services_v6: HashMap<ServiceKeyV6, Service>,
    /// The rings, by service.
    pub rings: HashMap<u16, Vec<Rc<Slot>>>,
    /// The backends, by id.
    pub backends: Vec<Backend>,
    /// The pins.
    pub pins: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    /// How many pins there may be.
    pub pin_capacity: usize,
    /// The tracked flows.
    pub tracked: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    /// The connections.
    pub connections: RefCell<HashMap<ConnectionKey, Rc<Flow>>>,
    /// The clients that have begun to open a QUIC connection.
    pub handshakes: RefCell<HashMap<u32, Rc<SharedU64>>>,
    /// Fragmented packets.
    pub fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    /// The VIPs.
    pub vips: HashMap<VipKey, u32>,
    /// The MAC addresses that the node answers to.
    pub own_macs: Vec<OwnMac>,
    /// The MAC addresses of other balancers, by service, and the backend on this node.
    pub peer_macs: HashMap<PeerKey, u16>,
    /// How many pins each service may make.
    pub budgets: HashMap<u16, Rc<SynBudget>>,
    /// How many ICMP errors may be sent.
    pub icmp_budget: Rc<SynBudget>,
    /// By source.
    pub too_big_budgets: RefCell<HashMap<u64, Rc<SynBudget>>>,
    /// ICMP errors that may be sent in a second.
    pub icmp_rate: u32,
    /// Marks of SYNs.
    pub seen: RefCell<HashMap<u32, Rc<SharedU32>>>,
    /// The time.
    pub nanos: Cell<u64>,
    /// The flows whose pins were noted, in order.
    pub notes: RefCell<Vec<FlowKey>>,
    /// Until when pins may be made; 0: always.
    pub lease: Cell<u64>,
    /// Packets and bytes by verdict.
    pub verdicts: HashMap<u32, [u64; 2]>,
    /// The counts of each backend.
    pub counts: HashMap<u16, BackendCount>,
    /// Bytes of the next frame that are in its first buffer.
    pub first_buffer: usize,
    /// How often a bare ACK had something to do.
    pub silences_ended: u64,
    /// Where the program is.
    pub hook: Hook,
    /// [`Packet::segment`] of the next frame.
    pub segment: u32,
}

/// A frame that is to leave in segments with so many bytes of payload.
struct Segmented<'a>(&'a [u8], u32);

impl Packet for Segmented<'_> {
    fn load<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, off: usize) -> Option<&T> {
        self.0.load(off)
    }

    fn holds(&self, len: usize) -> bool {
        self.0.holds(len)
    }

    fn segment(&self) -> u32 {
        self.1
    }
}

impl Model {
    /// Empty tables with room for so many pins.
    #[must_use]
    pub fn new(pin_capacity: usize) -> Self {
        Self {
            services_v4: HashMap::new(),
            services_v6: HashMap::new(),
            rings: HashMap::new(),
            backends: Vec::new(),
            pins: RefCell::default(),
            pin_capacity,
            tracked: RefCell::default(),
            connections: RefCell::default(),
            handshakes: RefCell::default(),
            fragments: RefCell::default(),
            vips: HashMap::new(),
            own_macs: vec![OwnMac::default(); abi::OWN_MACS as usize],
            peer_macs: HashMap::new(),
            budgets: HashMap::new(),
            icmp_budget: Rc::default(),
            too_big_budgets: RefCell::default(),
            icmp_rate: u32::MAX,
            seen: RefCell::default(),
            nanos: Cell::new(0),
            notes: RefCell::default(),
            lease: Cell::new(0),
            verdicts: HashMap::new(),
            counts: HashMap::new(),
            first_buffer: usize::MAX,
            silences_ended: 0,
            hook: Hook::Xdp,
            segment: 0,
        }
    }

    /// Runs a frame that came in on interface `ingress`; returns the program's expected action and the
    /// frame that it must leave.
    pub fn run(&mut self, frame: &[u8], ingress: u32) -> (Action, Vec<u8>) {
        let mut out = frame.to_vec();
        let (reason, action) = match decide(&Segmented(frame, self.segment), self).owned() {
            Verdict::Pass(reason) => (reason.index(), Action::Pass),
            Verdict::Drop(reason) => (reason.index(), Action::Drop),
            Verdict::Forward(to) => {
                let l2 = usize::from(to.backend.l2_len);
                let is_local = to.backend.is_local();
                let same = to.backend.ifindex == ingress;
                if !is_local {
                    out = self.hook.shown(forward(frame, &to), l2, same);
                }
                let count = self.counts.entry(to.id).or_default();
                count[0] += u64::from(to.packets);
                count[1] += u64::from(to.bytes);
                count[2] += u64::from(to.events & events::NEW_FLOW != 0);
                count[3] += u64::from(to.events & events::UNPINNED != 0);
                count[4] += u64::from(to.events & events::SYN_RETRANSMISSION != 0);
                if to.events & events::HEARD != 0 {
                    self.silences_ended += u64::from(count[5] != 0);
                    count[5] = 0;
                }
                if to.events & events::NEW_FLOW != 0 {
                    if count[5] == 0 {
                        count[5] = self.nanos.get() >> 28 << 32;
                    }
                    count[5] += 1;
                }
                count[6] += u64::from(to.events & events::SECOND_CHOICE != 0);
                if is_local {
                    return (Action::Pass, out);
                }
                return (if same { Action::Tx } else { Action::Redirect }, out);
            }
            Verdict::Reply(to) => match reply(frame, &to, self.first_buffer, self.hook) {
                Some(frame) => {
                    out = self.hook.shown(frame, to.l3, true);
                    let reason = match to.kind {
                        ReplyKind::TooBig => Drop::TooBigReplied,
                        ReplyKind::TtlExceeded => Drop::TtlExceededReplied,
                    };
                    (reason.index(), Action::Tx)
                }
                None => (Drop::NoHeadroom.index(), Action::Drop),
            },
        };
        let count = self.verdicts.entry(reason).or_default();
        count[0] += 1;
        count[1] += (frame.len() - self.hook.unseen()) as u64;
        (action, out)
    }
}

/// The frame that leaves for a backend.
fn forward(frame: &[u8], to: &Forward<Backend>) -> Vec<u8> {
    let mut inner = frame[to.l3..].to_vec();
    let (class, next) = if to.v6 {
        let ip = ipv6::Ipv6::mut_from_prefix(&mut inner).expect("decided on it").0;
        ip.hop_limit -= 1;
        (ip.class(), number::IPV6)
    } else {
        let ip = ipv4::Ipv4::mut_from_prefix(&mut inner).expect("decided on it").0;
        ip.ttl -= 1;
        ip.check.set(rewrite::check_after_ttl(ip.check.get()));
        (ip.tos, number::IPV4)
    };
    let mut out = to.backend.l2[..usize::from(to.backend.l2_len)].to_vec();
    if to.backend.flags & backend_flags::TUNNEL != 0 {
        if to.backend.flags & backend_flags::V6 != 0 {
            let outer = rewrite::outer_v6(&to.backend, class, to.len, next, to.entropy);
            out.extend_from_slice(outer.as_bytes());
        } else {
            let outer = rewrite::outer_v4(&to.backend, class, to.len, to.entropy);
            out.extend_from_slice(outer.as_bytes());
        }
    }
    out.extend_from_slice(&inner);
    out
}

/// The ICMP error that goes back to the sender; the long quote is one of the first buffer.
fn reply(frame: &[u8], to: &Reply, first_buffer: usize, hook: Hook) -> Option<Vec<u8>> {
    let mut out = frame[..to.l3].to_vec();
    out[..6].copy_from_slice(&frame[6..12]);
    out[6..12].copy_from_slice(&frame[..6]);
    let packet = &frame[to.l3..];
    let mut quote_len = rewrite::quote_len(to.kind, to.v6, to.len);
    if to.l3 + quote_len > first_buffer {
        quote_len = if to.v6 { rewrite::QUOTE_SHORT_V6 } else { rewrite::QUOTE_SHORT_V4 };
    }
    let quote_len = hook.quote_len(packet, to.v6, quote_len);
    let quote = hook.quote(packet.get(..quote_len)?.to_vec(), to.v6);
    let sum = rewrite::sum(&quote);
    if to.v6 {
        let ip = ipv6::Ipv6::read_from_prefix(packet).ok()?.0;
        let (outer, message) = rewrite::reply_v6(&ip, to.kind, to.mtu, quote_len, sum);
        out.extend_from_slice(outer.as_bytes());
        out.extend_from_slice(message.as_bytes());
    } else {
        let ip = ipv4::Ipv4::read_from_prefix(packet).ok()?.0;
        let (outer, message) = rewrite::reply_v4(&ip, to.kind, to.mtu, quote_len, sum);
        out.extend_from_slice(outer.as_bytes());
        out.extend_from_slice(message.as_bytes());
    }
    out.extend_from_slice(&quote);
    Some(out)
}

/// A value that is handed out by reference.
#[derive(Debug)]
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
        self.backends.get(usize::from(id)).copied().map(Owned)
    }

    fn pin(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        self.pins.borrow().get(key).cloned()
    }

    fn insert_pin(&self, key: &FlowKey, value: FlowValue) -> bool {
        let mut pins = self.pins.borrow_mut();
        if !pins.contains_key(key) && pins.len() >= self.pin_capacity {
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
        self.vips.contains_key(key)
    }

    fn own_mac(&self, index: u32) -> Option<OwnMac> {
        self.own_macs.get(index as usize).copied()
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
        Unanswered(self.counts.get(&id).map_or(0, |count| count[5]))
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

//! Every map of the balancer, but for those of [`crate::service_maps`], [`crate::wide`] and [`crate::reverse_nat`].
//!
//! Capacities here are the defaults; the daemon sets the ones of the configuration when
//! it loads the object. Counters and budgets are plain arrays with a stretch for each CPU, not
//! per-CPU maps: they can be mapped into the daemon's memory, which reads them without a system
//! call, and a lookup is inlined on every kernel.
//!
//! The verifier walks a function once for each state in which it is called, and a global one (`no_mangle`) once in
//! all. Functions that are called in many states and do much are global, behind `Tables` where they are generic:
//! `in_flux`, `second_choice`, the notes of pins, and messages for the log. So the verifier walks 188,000
//! instructions in 0.27 s instead of 589,000 in 0.92 s.

use core::ops::Deref;

use aya_ebpf::{
    Global,
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LruHashMap},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns},
    macros::btf_map,
};
use lb_common::{
    abi::{
        self, Backend, BackendCounter, ConnectionKey, DEFAULT_BACKENDS, DEFAULT_CONNECTIONS,
        DEFAULT_FRAGMENTS, DEFAULT_ICMP_ERRORS, DEFAULT_NAT_CONNECTIONS, DEFAULT_PINS,
        DEFAULT_SERVICES, DEFAULT_TRACKED, Flow, FlowKey, FlowValue, Fragment, FragmentKey,
        Handshake, NatConnection, NatConnectionKey, NatConnectionValue, OwnMac, PIN_NOTES, PeerKey,
        PinLease, PinLogHead, PinNote, ReverseKey, Service, ServiceKeyV4, ServiceKeyV6, Slot,
        TokenBucket, Unanswered, VerdictCounter, VipKey,
    },
    hash::GOLDEN,
    icmp_error, nat_connections,
    return_route::{self, ReturnRoute, Wanted},
    second_choice::search,
    service_index::{self, Bucket, OVERFLOW, Place, WAYS},
    shared::{SharedU32, SharedU64},
    tables::Tables,
    verdict::{Forward, REASONS, Return},
};
use zerocopy::network_endian::U16;

use crate::{
    reverse_nat,
    service_maps::{
        BACKENDS, BACKENDS_PER_CPU, MMAPABLE, RETURN_COUNTERS, RINGS, SERVICE_ENTRIES, SERVICES_V4,
        SERVICES_V6,
    },
    trie_key, wide,
};

/// Entries for each CPU in `SYN_BUDGETS`.
#[unsafe(no_mangle)]
static SERVICES_PER_CPU: Global<u32> = Global::new(DEFAULT_SERVICES);

/// ICMP errors that each CPU may send in a second.
#[unsafe(no_mangle)]
static ICMP_RATE: Global<u32> = Global::new(DEFAULT_ICMP_ERRORS);

/// The key by which sources share the buckets of `TOO_BIG_BUDGETS`: odd, and secret.
#[unsafe(no_mangle)]
static SOURCE_KEY: Global<u64> = Global::new(GOLDEN);

/// Buckets in `SERVICE_INDEX`, less one.
#[unsafe(no_mangle)]
static SERVICE_INDEX_MASK: Global<u32> = Global::new(service_index::buckets(DEFAULT_SERVICES) - 1);

/// Where the services are; see [`service_index`].
#[btf_map]
static SERVICE_INDEX: Array<
    Bucket,
    { service_index::buckets(DEFAULT_SERVICES) as usize },
    MMAPABLE,
> = Array::new();

/// Flows that a change of the ring would otherwise move.
#[btf_map]
static PINS: HashMap<FlowKey, Flow, { DEFAULT_PINS as usize }> = HashMap::new();

/// The flows of `tracked` UDP services.
#[btf_map]
static TRACKED: LruHashMap<FlowKey, Flow, { DEFAULT_TRACKED as usize }> = LruHashMap::new();

/// The QUIC connections that have sent the id which their server chose.
#[btf_map]
static CONNECTIONS: LruHashMap<ConnectionKey, Flow, { DEFAULT_CONNECTIONS as usize }> =
    LruHashMap::new();

/// Marks of the QUIC handshakes that have begun, of all CPUs.
#[btf_map]
static HANDSHAKES: Array<SharedU64, { abi::HANDSHAKES as usize }> = Array::new();

/// Fragmented packets whose first fragment was seen.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment, { DEFAULT_FRAGMENTS as usize }> =
    LruHashMap::new();

/// The addresses of all services.
#[btf_map]
static VIPS: HashMap<VipKey, u32, { DEFAULT_SERVICES as usize }> = HashMap::new();

/// The MAC addresses that this node answers to.
#[btf_map]
static OWN_MACS: Array<OwnMac, { abi::OWN_MACS as usize }, MMAPABLE> = Array::new();

/// The MAC addresses of other balancers, by service, and which backend is this node.
#[btf_map]
static PEER_MACS: HashMap<PeerKey, u32, { abi::PEER_MACS as usize }> = HashMap::new();

/// The interfaces that answers may be redirected to, by their indexes, and flags; 0 ends the list.
#[btf_map]
static RETURN_EGRESS: Array<u32, { abi::RETURN_EGRESS as usize }> = Array::new();

/// TCP connections to backends in mode `nat`.
#[btf_map]
static NAT_CONNECTIONS: LruHashMap<
    NatConnectionKey,
    NatConnection,
    { DEFAULT_NAT_CONNECTIONS as usize },
> = LruHashMap::new();

/// The connections in mode `nat` that each CPU has noted lately, [`nat_connections::RECENT`] for each. As `TOO_BIG_BUDGETS`.
#[btf_map]
static NAT_RECENT: Array<SharedU64, { nat_connections::RECENT as usize }> = Array::new();

/// Routes of answers that were found lately, [`return_route::SLOTS`] for each CPU. As `TOO_BIG_BUDGETS`.
#[btf_map]
static RETURN_ROUTES: Array<ReturnRoute, { return_route::SLOTS as usize }> = Array::new();

/// Packets and bytes by verdict, [`REASONS`] for each CPU. The daemon sizes it.
#[btf_map]
static VERDICTS: Array<VerdictCounter, { REASONS as usize }, MMAPABLE> = Array::new();

/// What went to each backend, for each CPU. The daemon sizes it.
#[btf_map]
static BACKEND_COUNTERS: Array<BackendCounter, { DEFAULT_BACKENDS as usize + 1 }, MMAPABLE> =
    Array::new();

/// How many pins each CPU may make for each service. The daemon sizes it.
#[btf_map]
static SYN_BUDGETS: Array<TokenBucket, { DEFAULT_SERVICES as usize }, MMAPABLE> = Array::new();

/// How many ICMP errors each CPU may send. The daemon sizes it; no other program needs it, so it has no
/// pin, and begins full with each program.
#[btf_map]
static ICMP_BUDGETS: Array<TokenBucket, 1> = Array::new();

/// How many ICMP errors that a packet was too big each CPU may send, by source: as many buckets as
/// [`abi::TOO_BIG_BUDGETS`] for each CPU. As the above.
#[btf_map]
static TOO_BIG_BUDGETS: Array<TokenBucket, { abi::TOO_BIG_BUDGETS as usize }> = Array::new();

/// Marks of the SYNs seen last, to recognise one that is sent again, on whatever CPU it comes.
#[btf_map]
static SYN_MARKS: Array<SharedU32, { abi::SYN_MARKS as usize }> = Array::new();

/// Notes of pins that are new or different, [`PIN_NOTES`] for each CPU. The daemon sizes it.
#[btf_map]
static PIN_LOG: Array<PinNote, { PIN_NOTES as usize }, MMAPABLE> = Array::new();

/// How many notes each CPU has written. The daemon sizes it.
#[btf_map]
static PIN_LOG_HEADS: Array<PinLogHead, 1, MMAPABLE> = Array::new();

/// Until when pins may be made.
#[btf_map]
static PIN_LEASE: Array<PinLease, 1, MMAPABLE> = Array::new();

/// The maps as the core sees them.
pub struct Maps;

impl Maps {
    /// Counts a packet of `bytes` bytes that ended for the reason with index `reason`.
    #[inline(always)]
    pub fn count(&self, reason: u32, bytes: usize) {
        // SAFETY: the helper has no precondition.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        if let Some(counter) = VERDICTS.get(cpu * REASONS + reason) {
            counter.packets.bump(1);
            counter.bytes.bump(bytes as u64);
        }
    }

    /// Counts a packet that goes to a backend.
    #[inline(always)]
    pub fn count_forward(&self, forward: &Forward<&Backend>, is_bare_ack: impl FnOnce() -> bool) {
        if let Some(counter) = backend_counter(forward.id) {
            counter.count(forward, is_bare_ack, || self.now_nanos());
        }
    }

    /// Counts the answer of a backend in mode `nat`, which was `noted` as a [`Noted`].
    ///
    /// [`Noted`]: lb_common::verdict::Noted
    #[inline(always)]
    pub fn count_return(&self, answer: &Return<&Backend>, noted: u64) {
        // SAFETY: the helper has no precondition.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        let at = cpu * BACKENDS_PER_CPU.load() + u32::from(answer.id);
        if let Some(counter) = RETURN_COUNTERS.get(at) {
            counter.count(answer, noted);
        }
    }

    /// The slot of this CPU that the route of an answer has.
    #[inline(always)]
    pub fn return_route(&self, wanted: &Wanted) -> Option<&'static ReturnRoute> {
        // SAFETY: the helper has no precondition.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        RETURN_ROUTES.get(cpu * return_route::SLOTS + wanted.slot())
    }

    /// Whether answers may be redirected to an interface; `flags` are those of its entry that are no hindrance.
    #[inline(always)]
    pub fn is_return_egress(&self, ifindex: u32, flags: u32) -> bool {
        for index in 0..abi::RETURN_EGRESS {
            match RETURN_EGRESS.get(index) {
                Some(egress) if *egress & !flags == ifindex => return true,
                Some(egress) if *egress != 0 => {}
                _ => return false,
            }
        }
        false
    }

    /// Takes that back.
    #[inline(always)]
    pub fn take_back(&self, forward: &Forward<&Backend>) {
        if let Some(counter) = backend_counter(forward.id) {
            counter.take_back(forward);
        }
    }
}

/// This CPU's counters of a backend.
#[inline(always)]
fn backend_counter(id: u16) -> Option<&'static BackendCounter> {
    // SAFETY: the helper has no precondition.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    BACKEND_COUNTERS.get(cpu * BACKENDS_PER_CPU.load() + u32::from(id))
}

/// Writes a note into this CPU's stretch of the log, then counts it. Not inlined: it is called from
/// several places, none of them on the path of many packets. It takes the key's words, not a pointer
/// to it: Linux 7.2's verifier loses what is read in a stack several calls up.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note(upper: u64, lower: u64, rest: u64) -> u64 {
    let key = FlowKey::from_words([upper, lower, rest]);
    // SAFETY: the helper has no precondition.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(head) = PIN_LOG_HEADS.get(cpu) else { return 0 };
    let number = head.notes.load();
    let place = cpu * PIN_NOTES + (number as u32 & (PIN_NOTES - 1));
    let Some(note) = PIN_LOG.get(place) else { return 0 };
    note.write(&key, number);
    head.notes.store(number + 1);
    1
}

/// `$name` is [`lb_common::steer::in_flux`] over tables, by the function `$global`, which the verifier walks once.
///
/// What a pointer may point to the verifier takes from the pointed type's size, and it might be null (Linux 5.12); both point
/// to values of maps. The key goes as the words of [`FlowKey::to_words`], with `what` in the place of the service's id: Linux
/// 6.1 looks nothing up by a key to which such a pointer points.
macro_rules! global_in_flux {
    ($name:ident, $global:ident, $tables:expr) => {
        #[inline(always)]
        fn $name(service: &Service, key: &FlowKey, slot: &Slot, what: u64) -> u64 {
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $global(
                service: *const Service,
                slot: *const Slot,
                upper: u64,
                lower: u64,
                rest: u64,
            ) -> u64 {
                // SAFETY: it is called below alone, with references.
                let Some(service) = (unsafe { service.as_ref() }) else { return 0 };
                // SAFETY: as above.
                let Some(slot) = (unsafe { slot.as_ref() }) else { return 0 };
                let (what, id) = (rest as u32 >> 16, u64::from(service.id) << 16);
                let key = FlowKey::from_words([upper, lower, rest & !IN_PLACE_OF_ID | id]);
                lb_common::steer::in_flux($tables, service, &key, slot, what)
            }
            /// Where the last word of a key has the service's id.
            const IN_PLACE_OF_ID: u64 = 0xffff << 16;
            let [upper, lower, rest] = key.to_words();
            $global(service, slot, upper, lower, rest & !IN_PLACE_OF_ID | what << 16)
        }
    };
}
#[allow(unused_imports, reason = "only the program that captures has other tables than these")]
pub(crate) use global_in_flux;

global_in_flux!(in_flux, in_flux_global, &Maps);

/// [`search`] as a function that the verifier walks once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn second_choice(service: u64, slots: u64, hash: u64, first: u64, nanos: u64) -> u64 {
    search(&Maps, service as u16, slots as u32, hash, first as u16, nanos).into()
}

/// Wraps a hash map's lookup: its entries may be reused while the program looks at them, which is
/// why every value that changes is made of shared integers.
macro_rules! get {
    ($map:ident, $key:expr) => {
        // SAFETY: the entry's memory stays mapped while the program runs, and its fields are plain
        // or shared integers, for which any bytes will do.
        unsafe { $map.get($key) }
    };
}

/// The service that a word of a bucket names, if its tag is the key's.
#[inline(always)]
fn candidate(bucket: &Bucket, way: usize, place: Place) -> Option<&'static service_index::Entry> {
    let word = bucket.words[way].load();
    if word & 0xffff_0000 != place.tag {
        return None;
    }
    SERVICE_ENTRIES.get(word & 0xffff)
}

/// The service of a packet for which there is none with exactly its VIP and port.
#[inline(always)]
fn find_wide(address: [u64; 2], port: U16, proto: u8) -> Option<&'static Service> {
    let id = wide::find(address, port, proto)?;
    SERVICE_ENTRIES.get(id).map(|entry| &entry.service)
}

impl Maps {
    /// The service that has exactly this VIP and port.
    #[inline(always)]
    fn exact_v4(&self, key: &ServiceKeyV4) -> Option<&'static Service> {
        let place = Place::of_v4(key, SERVICE_INDEX_MASK.load());
        let bucket = SERVICE_INDEX.get(place.bucket)?;
        for way in 0..WAYS {
            if let Some(entry) = candidate(bucket, way, place)
                && entry.is_v4(key)
            {
                return Some(&entry.service);
            }
        }
        if bucket.words[WAYS - 1].load() != OVERFLOW {
            return None;
        }
        get!(SERVICES_V4, key)
    }

    /// The same of IPv6.
    #[inline(always)]
    fn exact_v6(&self, key: &ServiceKeyV6) -> Option<&'static Service> {
        let place = Place::of_v6(key, SERVICE_INDEX_MASK.load());
        let bucket = SERVICE_INDEX.get(place.bucket)?;
        for way in 0..WAYS {
            if let Some(entry) = candidate(bucket, way, place)
                && entry.is_v6(key)
            {
                return Some(&entry.service);
            }
        }
        if bucket.words[WAYS - 1].load() != OVERFLOW {
            return None;
        }
        get!(SERVICES_V6, key)
    }
}

impl Tables for Maps {
    type Backend<'a> = &'a Backend;

    #[inline(always)]
    fn exact_service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        self.exact_v4(key)
    }

    #[inline(always)]
    fn has_wide(&self) -> bool {
        wide::has_groups()
    }

    #[inline(always)]
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>> {
        match self.exact_v4(key) {
            Some(service) => Some(service),
            None => {
                let [a, b, c, d] = key.address;
                let mapped = [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])];
                find_wide(mapped, key.port, key.proto)
            }
        }
    }

    #[inline(always)]
    fn service_v6(&self, key: &ServiceKeyV6) -> Option<impl Deref<Target = Service>> {
        match self.exact_v6(key) {
            Some(service) => Some(service),
            None => find_wide(trie_key::halves(&key.address), key.port, key.proto),
        }
    }

    #[inline(always)]
    fn service(&self, id: u16) -> Option<impl Deref<Target = Service>> {
        SERVICE_ENTRIES.get(u32::from(id)).map(|entry| &entry.service)
    }

    #[inline(always)]
    fn slot(&self, service: u16, index: u32) -> Option<impl Deref<Target = Slot>> {
        RINGS.get_value(u32::from(service), &index)
    }

    #[inline(always)]
    fn backend(&self, id: u16) -> Option<&Backend> {
        BACKENDS.get(u32::from(id))
    }

    #[inline(always)]
    fn pin(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        get!(PINS, key)
    }

    #[inline(always)]
    fn insert_pin(&self, key: &FlowKey, value: FlowValue) -> bool {
        let inserted = PINS.insert(key, Flow::new(value), u64::from(BPF_ANY)).is_ok();
        if !inserted {
            let [upper, lower, rest] = key.to_words();
            crate::log::no_room_for_pin(upper, lower, rest);
        }
        inserted
    }

    #[inline(always)]
    fn note_pin(&self, key: &FlowKey) {
        let [upper, lower, rest] = key.to_words();
        note(upper, lower, rest);
    }

    #[inline(always)]
    fn pin_lease(&self) -> u64 {
        match PIN_LEASE.get(0) {
            Some(lease) => lease.until.load(),
            None => 0,
        }
    }

    #[inline(always)]
    fn tracked(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>> {
        get!(TRACKED, key)
    }

    #[inline(always)]
    fn insert_tracked(&self, key: &FlowKey, value: FlowValue) {
        // An LRU map makes room by itself; when it can't, the ring alone answers.
        let _ = TRACKED.insert(key, Flow::new(value), u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn connection(&self, key: &ConnectionKey) -> Option<impl Deref<Target = Flow>> {
        get!(CONNECTIONS, key)
    }

    #[inline(always)]
    fn insert_connection(&self, key: &ConnectionKey, value: FlowValue) {
        let _ = CONNECTIONS.insert(key, Flow::new(value), u64::from(BPF_NOEXIST));
    }

    #[inline(always)]
    fn handshake(&self, hash: u64) -> Option<impl Deref<Target = SharedU64>> {
        HANDSHAKES.get(Handshake::place(hash))
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        get!(FRAGMENTS, key).copied()
    }

    #[inline(always)]
    fn insert_fragment(&self, key: &FragmentKey, value: Fragment) {
        let _ = FRAGMENTS.insert(key, value, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn is_vip(&self, key: &VipKey) -> bool {
        if get!(VIPS, key).is_some() {
            return true;
        }
        wide::has_vip(trie_key::halves(&key.address))
    }

    #[inline(always)]
    fn own_mac(&self, index: u32) -> Option<OwnMac> {
        OWN_MACS.get(index).copied()
    }

    #[inline(always)]
    fn delivered_to(&self, key: &PeerKey) -> Option<u16> {
        get!(PEER_MACS, key).map(|id| *id as u16)
    }

    #[inline(always)]
    fn has_nat(&self) -> bool {
        reverse_nat::has_backends()
    }

    #[inline(always)]
    fn reverse_nat(&self, key: &ReverseKey) -> Option<u16> {
        reverse_nat::find(key)
    }

    #[inline(always)]
    fn syn_budget(&self, service: u16) -> Option<impl Deref<Target = TokenBucket>> {
        // SAFETY: the helper has no precondition.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        SYN_BUDGETS.get(cpu * SERVICES_PER_CPU.load() + u32::from(service))
    }

    #[inline(always)]
    fn icmp_budget(&self) -> Option<impl Deref<Target = TokenBucket>> {
        // SAFETY: the helper has no precondition.
        ICMP_BUDGETS.get(unsafe { bpf_get_smp_processor_id() })
    }

    #[inline(always)]
    fn too_big_budget(&self, source: u64) -> Option<impl Deref<Target = TokenBucket>> {
        // SAFETY: the helper has no precondition.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        let bucket = icmp_error::bucket_of_source(source, SOURCE_KEY.load());
        TOO_BIG_BUDGETS.get(cpu * abi::TOO_BIG_BUDGETS + bucket)
    }

    #[inline(always)]
    fn icmp_rate(&self) -> u32 {
        ICMP_RATE.load()
    }

    #[inline(always)]
    fn syn_seen(&self, index: u32) -> Option<impl Deref<Target = SharedU32>> {
        SYN_MARKS.get(index)
    }

    #[inline(always)]
    fn unanswered(&self, id: u16) -> Unanswered {
        match backend_counter(id) {
            Some(counter) => Unanswered(counter.unanswered.load()),
            None => Unanswered::default(),
        }
    }

    #[inline(always)]
    fn in_flux(&self, service: &Service, key: &FlowKey, slot: &Slot, what: u64) -> u64 {
        in_flux(service, key, slot, what)
    }

    #[inline(always)]
    fn second_choice(&self, service: u64, slots: u64, hash: u64, first: u64, nanos: u64) -> u64 {
        second_choice(service, slots, hash, first, nanos)
    }

    #[inline(always)]
    fn now_nanos(&self) -> u64 {
        // SAFETY: the helper has no precondition.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}

impl nat_connections::Connections for Maps {
    #[inline(always)]
    fn get(&self, key: &NatConnectionKey) -> Option<impl Deref<Target = NatConnection>> {
        get!(NAT_CONNECTIONS, key)
    }

    #[inline(always)]
    fn insert(&self, key: &NatConnectionKey, value: NatConnectionValue) {
        let _ = NAT_CONNECTIONS.insert(key, NatConnection::new(value), u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn recent(&self, index: u32) -> Option<impl Deref<Target = SharedU64>> {
        // SAFETY: the helper has no precondition.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        NAT_RECENT.get(cpu * nat_connections::RECENT + index)
    }
}

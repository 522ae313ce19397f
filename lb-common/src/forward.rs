//! The decision: what happens to one packet. [`decide`] is the whole story; the rule by which a
//! flow finds its backend is in [`crate::steer`].

use core::ops::Deref;

use zerocopy::network_endian::U16;

use crate::{
    abi::{
        Backend, ConnectionKey, Flow, FlowKey, FlowValue, Fragment, FragmentKey, OWN_MACS, OwnMac,
        Service, ServiceKeyV4, ServiceKeyV6, Slot, SynBudget, VipKey, backend_flags, mapped,
        udp_policy,
    },
    hash::{entropy_of, flow_hash_v4, flow_hash_v6},
    packet::{
        MAX_OFFSET, Packet, ethernet,
        icmp::{self, Icmp, QuotedPorts},
        ipv4::{self, Ipv4},
        ipv6::{self, Fragmentation, Ipv6},
        number,
        tcp::Tcp,
        udp::{self, Udp},
    },
    shared::SharedU32,
    steer::{self, Choice, Kind, Query},
    verdict::{Drop, Forward, Pass, Reply, ReplyKind, Verdict},
};

/// What the decision reads and the little that it writes: the maps, or a model of them.
pub trait Tables {
    /// How a backend is handed out.
    type Backend<'a>: Deref<Target = Backend>
    where
        Self: 'a;

    /// The service of an IPv4 packet.
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<impl Deref<Target = Service>>;
    /// The service of an IPv6 packet.
    fn service_v6(&self, key: &ServiceKeyV6) -> Option<impl Deref<Target = Service>>;
    /// Slot `index` of the ring of service `service`.
    fn slot(&self, service: u16, index: u32) -> Option<impl Deref<Target = Slot>>;
    /// Backend `id`.
    fn backend(&self, id: u16) -> Option<Self::Backend<'_>>;
    /// The pin of a flow.
    fn pin(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>>;
    /// Pins a flow; false if there is no room.
    fn insert_pin(&self, key: &FlowKey, value: FlowValue) -> bool;
    /// A flow of a `tracked` UDP service.
    fn tracked(&self, key: &FlowKey) -> Option<impl Deref<Target = Flow>>;
    /// Tracks a flow, at the expense of the one that was used least recently.
    fn insert_tracked(&self, key: &FlowKey, value: FlowValue);
    /// A QUIC connection by its server's id.
    fn connection(&self, key: &ConnectionKey) -> Option<impl Deref<Target = Flow>>;
    /// Notes a QUIC connection unless its id is known.
    fn insert_connection(&self, key: &ConnectionKey, value: FlowValue);
    /// What the first fragment of a packet was told.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Notes what the first fragment of a packet was told.
    fn insert_fragment(&self, key: &FragmentKey, value: Fragment);
    /// Whether any service has this address.
    fn is_vip(&self, key: &VipKey) -> bool;
    /// Entry `index` of the list of MAC addresses that this node answers to.
    fn own_mac(&self, index: u32) -> Option<OwnMac>;
    /// This CPU's budget of pins for a service.
    fn syn_budget(&self, service: u16) -> Option<impl Deref<Target = SynBudget>>;
    /// Entry `index` of this CPU's marks of SYNs.
    fn syn_seen(&self, index: u32) -> Option<impl Deref<Target = SharedU32>>;
    /// Nanoseconds of CLOCK_MONOTONIC, coarse.
    fn now_nanos(&self) -> u64;
    /// Seconds of the same clock.
    #[inline(always)]
    fn now(&self) -> u32 {
        (self.now_nanos() / 1_000_000_000) as u32
    }
}

/// Seconds for which the rest of a fragmented packet is awaited (Linux's `ipfrag_time`).
pub const FRAGMENT_TIMEOUT: u32 = 30;

/// Decides what happens to a frame. It changes no byte of it.
#[inline(always)]
pub fn decide<'t, P, T>(pkt: &P, tables: &'t T) -> Verdict<T::Backend<'t>>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let link = match ethernet::parse(pkt) {
        Ok(link) => link,
        Err(pass) => return Verdict::Pass(pass),
    };
    if !is_own(link.destination, tables) {
        return Verdict::Pass(Pass::OtherHost);
    }
    let decided = match link.ethertype {
        ethernet::IPV4 => decide_v4(pkt, link.l3, tables),
        ethernet::IPV6 => decide_v6(pkt, link.l3, tables),
        _ => Err(Pass::NotIp),
    };
    match decided {
        Ok(verdict) => verdict,
        Err(pass) => Verdict::Pass(pass),
    }
}

/// Whether a frame is addressed to this node. A NIC in promiscuous mode, or a switch that floods,
/// shows frames of others: forwarding them would double every packet of a pair.
#[inline(always)]
fn is_own<T: Tables>(destination: [u8; 6], tables: &T) -> bool {
    for index in 0..OWN_MACS {
        let Some(own) = tables.own_mac(index) else { return false };
        if own.mac == destination {
            return true;
        }
        if own.mac == [0; 6] {
            return index == 0;
        }
    }
    false
}

/// What the transport header says.
#[derive(Clone, Copy)]
struct Segment {
    source: [u8; 2],
    destination: U16,
    proto: u8,
    kind: Kind,
    payload: usize,
}

/// Reads a TCP or UDP header of a packet whose payload ends at `end`.
#[inline(always)]
fn segment<P: Packet + ?Sized>(
    pkt: &P,
    proto: u8,
    offset: usize,
    end: usize,
) -> Result<Segment, Pass> {
    if proto == number::TCP {
        let tcp = pkt.load::<Tcp>(offset).ok_or(Pass::Truncated)?;
        if offset + size_of::<Tcp>() > end {
            return Err(Pass::Truncated);
        }
        if tcp.data_offset < 0x50 {
            return Err(Pass::Malformed);
        }
        let kind = if tcp.opens() {
            Kind::Opens { sequence: u32::from_le_bytes(tcp.sequence) }
        } else if tcp.closes() {
            Kind::Closes
        } else {
            Kind::Continues
        };
        return Ok(Segment {
            source: tcp.source,
            destination: tcp.destination,
            proto,
            kind,
            payload: 0,
        });
    }
    if proto != number::UDP {
        return Err(Pass::Protocol);
    }
    let udp = pkt.load::<Udp>(offset).ok_or(Pass::Truncated)?;
    if offset + udp::LEN > end {
        return Err(Pass::Truncated);
    }
    if (udp.len.get() as usize) < udp::LEN {
        return Err(Pass::Malformed);
    }
    Ok(Segment {
        source: udp.source,
        destination: udp.destination,
        proto,
        kind: Kind::Continues,
        payload: offset + udp::LEN,
    })
}

/// What the rest of the decision needs of an IP header.
#[derive(Clone, Copy)]
struct Envelope {
    l3: usize,
    v6: bool,
    /// Bytes of the IP packet.
    len: u16,
    ttl: u8,
    /// Whether an ICMP error may be sent for the packet: not for an ICMP error, nor for a fragment
    /// but the first (RFC 1122, 3.2.2; RFC 4443, 2.4 (e)).
    may_reply: bool,
}

/// An IPv4 packet at `l3`.
#[inline(always)]
fn decide_v4<'t, P, T>(pkt: &P, l3: usize, tables: &'t T) -> Result<Verdict<T::Backend<'t>>, Pass>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let ip = pkt.load::<Ipv4>(l3).ok_or(Pass::Truncated)?;
    let header_len = ip.header_len().ok_or(Pass::Malformed)?;
    let len = ip.total_len.get();
    if (len as usize) < header_len {
        return Err(Pass::Malformed);
    }
    let end = l3 + len as usize;
    if !pkt.holds(end) {
        return Err(Pass::Truncated);
    }
    let fragment = ip.fragment.get();
    let mut envelope = Envelope { l3, v6: false, len, ttl: ip.ttl, may_reply: true };
    if fragment & ipv4::OFFSET_MASK != 0 {
        envelope.may_reply = false;
        return settle(tables, &envelope, later_fragment_v4(pkt, tables, l3));
    }
    if ip.proto == number::ICMP {
        envelope.may_reply = false;
        return settle(tables, &envelope, quoted_v4(pkt, tables, l3));
    }
    let segment = segment(pkt, ip.proto, l3 + header_len, end)?;
    let key = ServiceKeyV4 {
        address: ip.destination,
        port: segment.destination,
        proto: segment.proto,
        reserved: 0,
    };
    let Some(service) = tables.service_v4(&key) else {
        if fragment & ipv4::MORE_FRAGMENTS != 0 {
            remember_v4(pkt, tables, l3, 0);
        }
        return Err(Pass::NotAService);
    };
    let hash = flow_hash_v4(&service.keys, ip.source, segment.source);
    let query = || Query::new(&service, mapped(ip.source), segment.source, hash);
    let choice = choose(pkt, tables, &service, &segment, hash, query);
    if fragment & ipv4::MORE_FRAGMENTS != 0 {
        remember_v4(pkt, tables, l3, told(choice.id, entropy_of(hash)));
    }
    Ok(forward(tables, &envelope, choice, entropy_of(hash)))
}

/// An IPv6 packet at `l3`.
#[inline(always)]
fn decide_v6<'t, P, T>(pkt: &P, l3: usize, tables: &'t T) -> Result<Verdict<T::Backend<'t>>, Pass>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let ip = pkt.load::<Ipv6>(l3).ok_or(Pass::Truncated)?;
    if ip.version_class_label[0] >> 4 != 6 {
        return Err(Pass::Malformed);
    }
    let payload = ip.payload_len.get();
    // Nothing that crosses a link of Ethernet is longer; a jumbogram (RFC 2675) says 0 here.
    if payload > u16::MAX - ipv6::LEN as u16 {
        return Err(Pass::Malformed);
    }
    let len = payload + ipv6::LEN as u16;
    let end = l3 + len as usize;
    if !pkt.holds(end) {
        return Err(Pass::Truncated);
    }
    let mut envelope = Envelope { l3, v6: true, len, ttl: ip.hop_limit, may_reply: true };
    let transport = if matches!(ip.next, number::TCP | number::UDP) {
        ipv6::Transport {
            proto: ip.next,
            offset: l3 + ipv6::LEN,
            fragmentation: Fragmentation::Whole,
        }
    } else {
        ipv6::Transport::from_word(ipv6::transport_word(pkt, ip.next, l3 + ipv6::LEN))?
    };
    if let Fragmentation::Later(_) = transport.fragmentation {
        envelope.may_reply = false;
        return settle(tables, &envelope, later_fragment_v6(pkt, tables, l3));
    }
    if transport.proto == number::ICMPV6 {
        envelope.may_reply = false;
        return settle(tables, &envelope, quoted_v6(pkt, tables, l3, transport.offset));
    }
    let segment = segment(pkt, transport.proto, transport.offset, end)?;
    let key = ServiceKeyV6 {
        address: ip.destination,
        port: segment.destination,
        proto: segment.proto,
        reserved: 0,
    };
    let Some(service) = tables.service_v6(&key) else {
        if let Fragmentation::First(_) = transport.fragmentation {
            remember_v6(pkt, tables, l3, 0);
        }
        return Err(Pass::NotAService);
    };
    let hash = flow_hash_v6(&service.keys, &ip.source, segment.source);
    let query = || Query::new(&service, ip.source, segment.source, hash);
    let choice = choose(pkt, tables, &service, &segment, hash, query);
    if let Fragmentation::First(_) = transport.fragmentation {
        remember_v6(pkt, tables, l3, told(choice.id, entropy_of(hash)));
    }
    Ok(forward(tables, &envelope, choice, entropy_of(hash)))
}

/// The backend of a packet that carries a transport header.
#[inline(always)]
fn choose<'a, P, T>(
    pkt: &P,
    tables: &T,
    service: &Service,
    segment: &Segment,
    hash: u64,
    query: impl FnOnce() -> Query<'a>,
) -> Choice
where
    P: Packet + ?Sized,
    T: Tables,
{
    if segment.proto == number::TCP {
        return steer::by_slot(tables, service, hash, segment.kind, query);
    }
    if service.udp_policy == udp_policy::ONESHOT {
        return steer::oneshot(tables, service, hash);
    }
    Choice::from_word(steer::udp(pkt, tables, &query(), segment.payload))
}

/// The last step for every packet of a service: the backend must be there, and the packet must
/// still be allowed a hop and fit the way.
#[inline(always)]
fn forward<'t, T: Tables>(
    tables: &'t T,
    envelope: &Envelope,
    choice: Choice,
    entropy: u32,
) -> Verdict<T::Backend<'t>> {
    let Some(backend) = tables.backend(choice.id) else {
        return Verdict::Drop(Drop::NoBackend);
    };
    if backend.flags & backend_flags::USABLE == 0 {
        return Verdict::Drop(Drop::NoBackend);
    }
    let Envelope { l3, v6, len, .. } = *envelope;
    if envelope.ttl <= 1 {
        return if envelope.may_reply {
            Verdict::Reply(Reply { kind: ReplyKind::TtlExceeded, l3, v6, mtu: 0 })
        } else {
            Verdict::Drop(Drop::TtlExceeded)
        };
    }
    if len > backend.mtu {
        let mtu = backend.mtu;
        // Also without DF: XDP can't fragment, and silence would be a black hole.
        return if envelope.may_reply {
            Verdict::Reply(Reply { kind: ReplyKind::TooBig, l3, v6, mtu })
        } else {
            Verdict::Drop(Drop::TooBig)
        };
    }
    Verdict::Forward(Forward {
        id: choice.id,
        backend,
        l3,
        v6,
        len,
        entropy,
        events: choice.events,
    })
}

/// What the functions that aren't inlined find out, as one word: a choice, and the entropy that
/// goes with it; or why there is none.
#[derive(Clone, Copy)]
enum Found {
    Choice(Choice, u32),
    Pass(Pass),
    Drop(Drop),
}

impl Found {
    const PASS: u64 = 1 << 62;
    const DROP: u64 = 1 << 63;

    #[inline(always)]
    const fn to_word(self) -> u64 {
        match self {
            Self::Choice(choice, entropy) => choice.to_word() | (entropy as u64) << 24,
            Self::Pass(reason) => reason.index() as u64 | Self::PASS,
            Self::Drop(reason) => reason.index() as u64 | Self::DROP,
        }
    }
}

/// Ends the walk of a packet with what [`Found::to_word`] says.
#[inline(always)]
fn settle<'t, T: Tables>(
    tables: &'t T,
    envelope: &Envelope,
    word: u64,
) -> Result<Verdict<T::Backend<'t>>, Pass> {
    if word & Found::PASS != 0 {
        return Err(Pass::from_index(word as u32).unwrap_or(Pass::NotAService));
    }
    if word & Found::DROP != 0 {
        let reason = Drop::from_index(word as u32).unwrap_or(Drop::NoBackend);
        return Ok(Verdict::Drop(reason));
    }
    Ok(forward(tables, envelope, Choice::from_word(word), (word >> 24) as u32))
}

/// A fragment without a transport header: it follows its first fragment. Returns a [`Found`] as a
/// word.
#[inline(always)]
fn later_fragment<T: Tables>(tables: &T, key: &FragmentKey) -> u64 {
    if !tables.is_vip(&VipKey { address: key.destination }) {
        return Found::Pass(Pass::Fragment).to_word();
    }
    match tables.fragment(key) {
        Some(first) if tables.now().wrapping_sub(first.seen) <= FRAGMENT_TIMEOUT => {
            if first.backend == 0 {
                return Found::Pass(Pass::Fragment).to_word();
            }
            Found::Choice(Choice::of(first.backend), first.entropy).to_word()
        }
        _ => Found::Drop(Drop::FragmentWithoutFirst).to_word(),
    }
}

#[inline(never)]
fn later_fragment_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    match fragment_key_v4(pkt, l3) {
        Some(key) => later_fragment(tables, &key),
        None => Found::Pass(Pass::Truncated).to_word(),
    }
}

#[inline(never)]
fn later_fragment_v6<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    match fragment_key_v6(pkt, l3) {
        Some(key) => later_fragment(tables, &key),
        None => Found::Pass(Pass::Truncated).to_word(),
    }
}

/// Where the first fragment went, as one word: a backend's id, 0 for the node itself, and the
/// entropy.
#[inline(always)]
const fn told(backend: u16, entropy: u32) -> u64 {
    backend as u64 | (entropy as u64) << 16
}

/// Notes where the first fragment of a packet to a VIP went.
#[inline(always)]
fn remember<T: Tables>(tables: &T, key: &FragmentKey, told: u64) {
    if tables.is_vip(&VipKey { address: key.destination }) {
        let value = Fragment {
            backend: told as u16,
            reserved: 0,
            seen: tables.now(),
            entropy: (told >> 16) as u32,
        };
        tables.insert_fragment(key, value);
    }
}

#[inline(never)]
fn remember_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize, told: u64) {
    if let Some(key) = fragment_key_v4(pkt, l3) {
        remember(tables, &key, told);
    }
}

#[inline(never)]
fn remember_v6<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize, told: u64) {
    if let Some(key) = fragment_key_v6(pkt, l3) {
        remember(tables, &key, told);
    }
}

#[inline(always)]
fn fragment_key_v4<P: Packet + ?Sized>(pkt: &P, l3: usize) -> Option<FragmentKey> {
    let ip = pkt.load::<Ipv4>(l3)?;
    Some(FragmentKey {
        source: mapped(ip.source),
        destination: mapped(ip.destination),
        id: [ip.id[0], ip.id[1], 0, 0],
        proto: ip.proto,
        reserved: [0; 3],
    })
}

#[inline(always)]
fn fragment_key_v6<P: Packet + ?Sized>(pkt: &P, l3: usize) -> Option<FragmentKey> {
    let ip = pkt.load::<Ipv6>(l3)?;
    let id = match ipv6::transport(pkt, ip.next, l3 + ipv6::LEN).ok()?.fragmentation {
        Fragmentation::First(id) | Fragmentation::Later(id) => id,
        Fragmentation::Whole => return None,
    };
    let (source, destination) = (ip.source, ip.destination);
    Some(FragmentKey { source, destination, id, proto: 0, reserved: [0; 3] })
}

/// An ICMP error at `l3`: it goes where the flow goes that it quotes. The quoted packet went from
/// the VIP to the client. Returns a [`Found`] as a word.
#[inline(never)]
fn quoted_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    match find_quoted_v4(pkt, tables, l3) {
        Ok(found) => found.to_word(),
        Err(pass) => Found::Pass(pass).to_word(),
    }
}

#[inline(always)]
fn find_quoted_v4<P, T>(pkt: &P, tables: &T, l3: usize) -> Result<Found, Pass>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let outer = pkt.load::<Ipv4>(l3).ok_or(Pass::Truncated)?;
    let offset = l3 + outer.header_len().ok_or(Pass::Malformed)?;
    if !pkt.load::<Icmp>(offset).ok_or(Pass::Truncated)?.is_error() {
        return Err(Pass::Protocol);
    }
    let offset = offset + icmp::LEN;
    let ip = pkt.load::<Ipv4>(offset).ok_or(Pass::Truncated)?;
    let header_len = ip.header_len().ok_or(Pass::Malformed)?;
    // A router that quotes a later fragment, or someone else's packet, tells of no flow here.
    if ip.fragment.get() & ipv4::OFFSET_MASK != 0 || ip.source != outer.destination {
        return Err(Pass::NotAService);
    }
    let ports = pkt.load::<QuotedPorts>(offset + header_len).ok_or(Pass::Truncated)?;
    let key = ServiceKeyV4 { address: ip.source, port: ports.source, proto: ip.proto, reserved: 0 };
    let service = tables.service_v4(&key).ok_or(Pass::NotAService)?;
    let hash = flow_hash_v4(&service.keys, ip.destination, ports.destination);
    let query = Query::new(&service, mapped(ip.destination), ports.destination, hash);
    Ok(Found::Choice(steer::follow(tables, key.proto, &query), entropy_of(hash)))
}

/// The same for an ICMPv6 error whose message is at `offset`.
#[inline(never)]
fn quoted_v6<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize, offset: usize) -> u64 {
    match find_quoted_v6(pkt, tables, l3, offset & MAX_OFFSET) {
        Ok(found) => found.to_word(),
        Err(pass) => Found::Pass(pass).to_word(),
    }
}

#[inline(always)]
fn find_quoted_v6<P, T>(pkt: &P, tables: &T, l3: usize, offset: usize) -> Result<Found, Pass>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let outer = pkt.load::<Ipv6>(l3).ok_or(Pass::Truncated)?;
    if !pkt.load::<Icmp>(offset).ok_or(Pass::Truncated)?.is_error_v6() {
        return Err(Pass::Protocol);
    }
    let offset = offset + icmp::LEN;
    let ip = pkt.load::<Ipv6>(offset).ok_or(Pass::Truncated)?;
    if ip.source != outer.destination {
        return Err(Pass::NotAService);
    }
    let transport = ipv6::transport(pkt, ip.next, offset + ipv6::LEN)?;
    if let Fragmentation::Later(_) = transport.fragmentation {
        return Err(Pass::NotAService);
    }
    let ports = pkt.load::<QuotedPorts>(transport.offset).ok_or(Pass::Truncated)?;
    let key = ServiceKeyV6 {
        address: ip.source,
        port: ports.source,
        proto: transport.proto,
        reserved: 0,
    };
    let service = tables.service_v6(&key).ok_or(Pass::NotAService)?;
    let hash = flow_hash_v6(&service.keys, &ip.destination, ports.destination);
    let query = Query::new(&service, ip.destination, ports.destination, hash);
    Ok(Found::Choice(steer::follow(tables, key.proto, &query), entropy_of(hash)))
}

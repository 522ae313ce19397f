//! The decision: what happens to one packet. [`decide`] is the whole story; the rule by which a
//! flow finds its backend is in [`crate::steer`].
//!
//! Functions that few packets need are not inlined: fragments ([`crate::fragment`]), ICMP errors
//! ([`crate::quoted`]), slots in flux, QUIC and tracked UDP ([`crate::steer`]), retransmitted SYNs
//! ([`crate::second_choice`]) and the limits of ICMP errors that the balancer sends ([`crate::icmp_error`]). This
//! keeps the program's stack below the kernel's limit of 512 bytes.

use zerocopy::network_endian::U16;

use crate::{
    abi::{
        Backend, Destination, OWN_MACS, Service, ServiceKeyV4, ServiceKeyV6, backend_flags,
        udp_policy,
    },
    choice::{Choice, Found, Kind, Query},
    deliver,
    fragment::{decision_word, later_fragment_v4, later_fragment_v6, remember_v4, remember_v6},
    gso::Wire,
    hash::{entropy_of, flow_hash_v4, flow_hash_v6},
    icmp_error, nat,
    packet::{
        Packet, ethernet,
        ipv4::{self, Ipv4},
        ipv6::{self, Fragmentation, Ipv6},
        number,
        tcp::Tcp,
        udp::{self, Udp},
    },
    quoted::{quoted_v4, quoted_v6},
    steer,
    tables::Tables,
    verdict::{Drop, Forward, Pass, Reply, ReplyKind, Verdict, events},
};

/// Decides what happens to a frame. It changes no byte of it. Answers of backends in mode `nat` pass here: they are for
/// [`crate::returns`].
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
    if !pkt.is_raw_ip() && !is_own(link.destination, tables) {
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
pub(crate) fn is_own<T: Tables>(destination: [u8; 6], tables: &T) -> bool {
    for index in 0..OWN_MACS {
        let Some(own) = tables.own_mac(index) else { return false };
        // The end of the list first: it is no address, though a frame may bear it.
        if own.mac == [0; 6] {
            return index == 0;
        }
        if own.mac == destination {
            return true;
        }
    }
    false
}

/// The fields of the transport header.
#[derive(Clone, Copy)]
struct Segment {
    source: [u8; 2],
    destination: U16,
    proto: u8,
    kind: Kind,
    /// Where the header ends, options included.
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
        return Ok(Segment {
            source: tcp.source,
            destination: tcp.destination,
            proto,
            kind: tcp_kind(tcp, end - offset),
            payload: offset + usize::from(tcp.data_offset >> 4) * 4,
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

/// What a segment of `len` bytes with its header means for its flow.
#[inline(always)]
fn tcp_kind(tcp: &Tcp, len: usize) -> Kind {
    if tcp.opens() {
        Kind::Opens { sequence: u32::from_le_bytes(tcp.sequence) }
    } else if tcp.closes() {
        Kind::Closes
    } else if tcp.is_bare_ack(len) {
        Kind::Acknowledges
    } else {
        Kind::Continues
    }
}

/// What the rest of the decision needs of an IP header.
#[derive(Clone, Copy)]
pub(crate) struct Envelope {
    pub l3: usize,
    pub v6: bool,
    /// Bytes of the IP packet.
    pub len: u16,
    /// Bytes of its headers, to the transport's; 0 of a packet that is never cut into segments.
    pub headers: u16,
    pub ttl: u8,
    /// Whether an ICMP error may be sent for what the packet is: not for an ICMP error, nor for a fragment
    /// but the first (RFC 1122, 3.2.2; RFC 4443, 2.4 (e)).
    pub may_reply: bool,
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
    let mut envelope = Envelope { l3, v6: false, len, headers: 0, ttl: ip.ttl, may_reply: true };
    if fragment & ipv4::OFFSET_MASK != 0 {
        if !matches!(ip.proto, number::TCP | number::UDP) {
            return Err(Pass::Fragment);
        }
        envelope.may_reply = false;
        return verdict_of_found(pkt, tables, &envelope, later_fragment_v4(pkt, tables, l3));
    }
    if ip.proto == number::ICMP {
        envelope.may_reply = false;
        return verdict_of_found(pkt, tables, &envelope, quoted_v4(pkt, tables, l3));
    }
    let segment = segment(pkt, ip.proto, l3 + header_len, end)?;
    envelope.headers = (segment.payload - l3) as u16;
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
    let destination = Destination::of_v4(&service, &key);
    let hash = flow_hash_v4(&service.keys, ip.source, segment.source, destination.port.to_bytes());
    let query = || {
        Query::v4(&service, (ip.source, segment.source), Destination::of_v4(&service, &key), hash)
    };
    let choice = choose(pkt, tables, &service, &segment, hash, query);
    if fragment & ipv4::MORE_FRAGMENTS != 0 && choice.id != 0 {
        remember_v4(pkt, tables, l3, decision_word(choice.id, entropy_of(hash)));
    }
    Ok(verdict_of_choice(pkt, tables, &envelope, choice, entropy_of(hash)))
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
    // Nothing that crosses a link of Ethernet is longer; a jumbogram (RFC 2675) has 0 here.
    if payload > u16::MAX - ipv6::LEN as u16 {
        return Err(Pass::Malformed);
    }
    let len = payload + ipv6::LEN as u16;
    let end = l3 + len as usize;
    if !pkt.holds(end) {
        return Err(Pass::Truncated);
    }
    let mut envelope =
        Envelope { l3, v6: true, len, headers: 0, ttl: ip.hop_limit, may_reply: true };
    let transport = if matches!(ip.next, number::TCP | number::UDP) {
        ipv6::Transport {
            proto: ip.next,
            offset: l3 + ipv6::LEN,
            fragmentation: Fragmentation::Whole,
        }
    } else {
        ipv6::Transport::from_word(ipv6::transport_word(pkt, ip.next, l3 + ipv6::LEN))?
    };
    if let Fragmentation::Later(id) = transport.fragmentation {
        if transport.offset > end {
            return Err(Pass::Truncated);
        }
        if !may_be_of_service(transport.proto) {
            return Err(Pass::Fragment);
        }
        envelope.may_reply = false;
        return verdict_of_found(pkt, tables, &envelope, later_fragment_v6(pkt, tables, l3, id));
    }
    if transport.proto == number::ICMPV6 {
        envelope.may_reply = false;
        return verdict_of_found(
            pkt,
            tables,
            &envelope,
            quoted_v6(pkt, tables, l3, transport.offset),
        );
    }
    let segment = segment(pkt, transport.proto, transport.offset, end)?;
    envelope.headers = (segment.payload - l3) as u16;
    let key = ServiceKeyV6 {
        address: ip.destination,
        port: segment.destination,
        proto: segment.proto,
        reserved: 0,
    };
    let Some(service) = tables.service_v6(&key) else {
        if let Fragmentation::First(id) = transport.fragmentation {
            remember_v6(pkt, tables, l3, 0, id);
        }
        return Err(Pass::NotAService);
    };
    let destination = Destination::of_v6(&service, &key);
    let hash = flow_hash_v6(&service.keys, &ip.source, segment.source, destination.port.to_bytes());
    let query = || {
        Query::v6(&service, (ip.source, segment.source), Destination::of_v6(&service, &key), hash)
    };
    let choice = choose(pkt, tables, &service, &segment, hash, query);
    if let Fragmentation::First(id) = transport.fragmentation
        && choice.id != 0
    {
        remember_v6(pkt, tables, l3, decision_word(choice.id, entropy_of(hash)), id);
    }
    Ok(verdict_of_choice(pkt, tables, &envelope, choice, entropy_of(hash)))
}

/// Whether a fragment whose fragment header names `next` can be of a packet for a service. An
/// extension header may stand before the transport in the first fragment. The others' first
/// fragments pass, so they have to, whatever address they are for: a long ping, an ESP packet.
#[inline(always)]
const fn may_be_of_service(next: u8) -> bool {
    matches!(
        next,
        number::TCP | number::UDP | number::HOP_BY_HOP | number::ROUTING | number::DESTINATION
    )
}

/// The backend of a packet that carries a transport header.
#[inline(always)]
fn choose<'a, P, T>(
    pkt: &P,
    tables: &T,
    service: &Service,
    segment: &Segment,
    hash: u64,
    query: impl Fn() -> Query<'a>,
) -> Choice
where
    P: Packet + ?Sized,
    T: Tables,
{
    if let Some(choice) = deliver::choice(pkt, tables, service, segment.kind) {
        return choice;
    }
    if segment.proto == number::TCP {
        return steer::by_slot(tables, service, hash, segment.kind, query);
    }
    if service.udp_policy == udp_policy::ONESHOT {
        return steer::oneshot(tables, service, hash);
    }
    Choice::from_word(steer::udp(pkt, tables, &query(), segment.payload))
}

/// The last step for every packet of a service: checks that its backend is usable, that the packet has a hop
/// left, and that it fits the MTU of the way.
#[inline(always)]
pub(crate) fn verdict_of_choice<'t, P, T>(
    pkt: &P,
    tables: &'t T,
    envelope: &Envelope,
    choice: Choice,
    entropy: u32,
) -> Verdict<T::Backend<'t>>
where
    P: Packet + ?Sized,
    T: Tables,
{
    // Id 0 means no backend, and `BACKENDS[0]` exists and is all zero: a choice of none usually leaves at the missing
    // USABLE flag below. Here only an id beyond the map does.
    let Some(backend) = tables.backend(choice.id) else {
        return Verdict::Drop(Drop::NoBackend);
    };
    // One comparison for most packets.
    if backend.flags & (backend_flags::USABLE | backend_flags::NAT) != backend_flags::USABLE {
        if backend.flags & backend_flags::USABLE == 0 {
            if choice.events & events::UNPINNABLE != 0 {
                return Verdict::Drop(Drop::Unpinnable);
            }
            // The balancer that has forwarded it knows the backend to be usable, or will soon know that it is not.
            if choice.events & events::DELIVERED == 0 || !backend.is_local() {
                return Verdict::Drop(Drop::NoBackend);
            }
        }
        if nat::is_nat(&backend) && is_from(pkt, envelope, &backend) {
            return Verdict::Drop(Drop::Hairpin);
        }
    }
    let Envelope { l3, v6, len, .. } = *envelope;
    // To this node's own stack it is no hop, and its entry's MTU is that of every packet.
    if envelope.ttl <= 1 && !backend.is_local() {
        if !envelope.may_reply {
            return Verdict::Drop(Drop::TtlExceeded);
        }
        return reply(pkt, tables, Reply { kind: ReplyKind::TtlExceeded, l3, v6, len, mtu: 0 });
    }
    let wire = Wire::new(len, envelope.headers, pkt.segment());
    if wire.longest > backend.mtu {
        let mtu = backend.mtu;
        // Also without DF: XDP can't fragment, and silence would be a black hole.
        if !envelope.may_reply {
            return Verdict::Drop(Drop::TooBig);
        }
        return reply(pkt, tables, Reply { kind: ReplyKind::TooBig, l3, v6, len, mtu });
    }
    Verdict::Forward(Forward {
        id: choice.id,
        backend,
        l3,
        v6,
        len,
        packets: wire.packets,
        bytes: wire.bytes,
        entropy,
        events: choice.events,
    })
}

/// Whether a packet comes from the backend itself.
#[inline(always)]
fn is_from<P: Packet + ?Sized>(pkt: &P, envelope: &Envelope, backend: &Backend) -> bool {
    if envelope.v6 {
        pkt.load::<Ipv6>(envelope.l3).is_some_and(|ip| ip.source == backend.address)
    } else {
        pkt.load::<Ipv4>(envelope.l3).is_some_and(|ip| ip.source == backend.address_v4)
    }
}

/// Replies to the sender, if an ICMP error may be sent to it at this moment. The address is read once more
/// and passed by its value: a packet whose address a function takes costs the path of all others.
#[inline(always)]
fn reply<'t, P, T>(pkt: &P, tables: &'t T, reply: Reply) -> Verdict<T::Backend<'t>>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let too_big = u32::from(reply.kind == ReplyKind::TooBig);
    let refusal = if reply.v6 {
        let Some(ip) = pkt.load::<Ipv6>(reply.l3) else { return Verdict::Pass(Pass::Truncated) };
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = ip.source;
        let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        icmp_error::refusal_v6(tables, high, u64::from_be_bytes([i, j, k, l, m, n, o, p]), too_big)
    } else {
        let Some(ip) = pkt.load::<Ipv4>(reply.l3) else { return Verdict::Pass(Pass::Truncated) };
        icmp_error::refusal_v4(tables, u32::from_be_bytes(ip.source), too_big)
    };
    match icmp_error::refused(refusal) {
        Some(reason) => Verdict::Drop(reason),
        None => Verdict::Reply(reply),
    }
}

/// The verdict of a packet for which a function out of line has returned a [`Found`] as a word.
#[inline(always)]
fn verdict_of_found<'t, P, T>(
    pkt: &P,
    tables: &'t T,
    envelope: &Envelope,
    word: u64,
) -> Result<Verdict<T::Backend<'t>>, Pass>
where
    P: Packet + ?Sized,
    T: Tables,
{
    match Found::from_word(word) {
        Found::Choice(choice, entropy) => {
            Ok(verdict_of_choice(pkt, tables, envelope, choice, entropy))
        }
        Found::Pass(reason) => Err(reason),
        Found::Drop(reason) => Ok(Verdict::Drop(reason)),
    }
}

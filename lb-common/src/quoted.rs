//! ICMP errors: they go where the flow goes that they quote.
//!
//! Each takes two functions, called one after the other, since the stack has no room for both: the first finds the
//! service, the second the backend.

use crate::{
    abi::{Destination, ServiceKeyV4, ServiceKeyV6},
    choice::{Found, Kind, Query},
    deliver,
    hash::{entropy_of, flow_hash_v4, flow_hash_v6},
    packet::{
        MAX_OFFSET, Packet,
        icmp::{self, Icmp, QuotedPorts},
        ipv4::{self, Ipv4},
        ipv6::{self, Fragmentation, Ipv6},
    },
    steer,
    tables::Tables,
    verdict::Pass,
};

/// An ICMP error at `l3`: it goes where the flow goes that it quotes. The quoted packet went from
/// the VIP to the client. Returns a [`Found`] as a word.
#[inline(always)]
pub fn quoted_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    let service = service_v4(pkt, tables, l3);
    if service > MAX_ID { service } else { backend_v4(pkt, tables, l3, service) }
}

/// The largest id of a service; a larger word is a [`Found`].
const MAX_ID: u64 = u16::MAX as u64;

/// The headers of a quoted packet of IPv4: references, as the stack has no room for copies.
#[inline(always)]
fn parse_v4<P>(pkt: &P, l3: usize) -> Result<(&Ipv4, &QuotedPorts), Pass>
where
    P: Packet + ?Sized,
{
    let outer = pkt.load::<Ipv4>(l3).ok_or(Pass::Truncated)?;
    let offset = l3 + outer.header_len().ok_or(Pass::Malformed)?;
    if !pkt.load::<Icmp>(offset).ok_or(Pass::Truncated)?.is_error() {
        return Err(Pass::Protocol);
    }
    let offset = offset + icmp::LEN;
    let ip = pkt.load::<Ipv4>(offset).ok_or(Pass::Truncated)?;
    let header_len = ip.header_len().ok_or(Pass::Malformed)?;
    // An error that quotes a later fragment, or another host's packet, belongs to no flow here.
    if ip.fragment.get() & ipv4::OFFSET_MASK != 0 || ip.source != outer.destination {
        return Err(Pass::NotAService);
    }
    let ports = pkt.load::<QuotedPorts>(offset + header_len).ok_or(Pass::Truncated)?;
    if offset + header_len + size_of::<QuotedPorts>() > l3 + outer.total_len.get() as usize {
        return Err(Pass::Truncated);
    }
    Ok((ip, ports))
}

/// The id of the service that an ICMP error at `l3` is about, or a [`Found`] as a word.
#[inline(never)]
fn service_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
    match parse_v4(pkt, l3) {
        Ok((&Ipv4 { source: address, proto, .. }, ports)) => {
            let key = ServiceKeyV4 { address, port: ports.source, proto, reserved: 0 };
            match tables.service_v4(&key) {
                Some(service) => service.id.into(),
                None => Found::Pass(Pass::NotAService).to_word(),
            }
        }
        Err(pass) => Found::Pass(pass).to_word(),
    }
}

/// Where an ICMP error at `l3` goes that is about the service with this id. Returns a [`Found`] as a word.
#[inline(never)]
fn backend_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize, id: u64) -> u64 {
    match find_v4(pkt, tables, l3, id as u16) {
        Ok(found) => found.to_word(),
        Err(pass) => Found::Pass(pass).to_word(),
    }
}

#[inline(always)]
fn find_v4<P, T>(pkt: &P, tables: &T, l3: usize, id: u16) -> Result<Found, Pass>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let (ip, ports) = parse_v4(pkt, l3)?;
    let service = tables.service(id).ok_or(Pass::NotAService)?;
    // As a packet that follows others: it neither opens its flow nor is a bare ACK. It leaves the node no more, so it needs no entropy.
    if let Some(choice) = deliver::choice(pkt, tables, &service, Kind::Continues) {
        return Ok(Found::Choice(choice, 0));
    }
    let [.., c, d] = ip.source;
    let destination = Destination::of(&service, ports.source, [c, d]);
    let hash =
        flow_hash_v4(&service.keys, ip.destination, ports.destination, destination.port.to_bytes());
    let query = Query::v4(&service, (ip.destination, ports.destination), destination, hash);
    Ok(Found::Choice(steer::backend_of_quoted(tables, ip.proto, &query), entropy_of(hash)))
}

/// The same for an ICMPv6 error whose message is at `offset`.
#[inline(always)]
pub fn quoted_v6<P: Packet + ?Sized, T: Tables>(
    pkt: &P,
    tables: &T,
    l3: usize,
    offset: usize,
) -> u64 {
    let service = service_v6(pkt, tables, l3, offset);
    if service > MAX_ID { service } else { backend_v6(pkt, tables, l3, offset, service) }
}

/// [`parse_v4`] of IPv6, with the transport's protocol.
#[inline(always)]
fn parse_v6<P>(pkt: &P, l3: usize, offset: usize) -> Result<(&Ipv6, u8, &QuotedPorts), Pass>
where
    P: Packet + ?Sized,
{
    let outer = pkt.load::<Ipv6>(l3).ok_or(Pass::Truncated)?;
    if !pkt.load::<Icmp>(offset).ok_or(Pass::Truncated)?.is_error_v6() {
        return Err(Pass::Protocol);
    }
    let offset = offset + icmp::LEN;
    let ip = pkt.load::<Ipv6>(offset).ok_or(Pass::Truncated)?;
    if ip.version_class_label[0] >> 4 != 6 {
        return Err(Pass::Malformed);
    }
    if ip.source != outer.destination {
        return Err(Pass::NotAService);
    }
    let word = ipv6::transport_word(pkt, ip.next, offset + ipv6::LEN);
    let transport = ipv6::Transport::from_word(word)?;
    if let Fragmentation::Later(_) = transport.fragmentation {
        return Err(Pass::NotAService);
    }
    let ports = pkt.load::<QuotedPorts>(transport.offset).ok_or(Pass::Truncated)?;
    let end = l3 + ipv6::LEN + outer.payload_len.get() as usize;
    if transport.offset + size_of::<QuotedPorts>() > end {
        return Err(Pass::Truncated);
    }
    Ok((ip, transport.proto, ports))
}

/// [`service_v4`] of IPv6.
#[inline(never)]
fn service_v6<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize, offset: usize) -> u64 {
    match parse_v6(pkt, l3, offset & MAX_OFFSET) {
        Ok((ip, proto, ports)) => {
            let key = ServiceKeyV6 { address: ip.source, port: ports.source, proto, reserved: 0 };
            match tables.service_v6(&key) {
                Some(service) => service.id.into(),
                None => Found::Pass(Pass::NotAService).to_word(),
            }
        }
        Err(pass) => Found::Pass(pass).to_word(),
    }
}

/// [`backend_v4`] of IPv6.
#[inline(never)]
fn backend_v6<P: Packet + ?Sized, T: Tables>(
    pkt: &P,
    tables: &T,
    l3: usize,
    offset: usize,
    id: u64,
) -> u64 {
    match find_v6(pkt, tables, l3, offset & MAX_OFFSET, id as u16) {
        Ok(found) => found.to_word(),
        Err(pass) => Found::Pass(pass).to_word(),
    }
}

#[inline(always)]
fn find_v6<P, T>(pkt: &P, tables: &T, l3: usize, offset: usize, id: u16) -> Result<Found, Pass>
where
    P: Packet + ?Sized,
    T: Tables,
{
    let (ip, proto, ports) = parse_v6(pkt, l3, offset)?;
    let service = tables.service(id).ok_or(Pass::NotAService)?;
    // As a packet that follows others: it neither opens its flow nor is a bare ACK. It leaves the node no more, so it needs no entropy.
    if let Some(choice) = deliver::choice(pkt, tables, &service, Kind::Continues) {
        return Ok(Found::Choice(choice, 0));
    }
    let [.., o, p] = ip.source;
    let destination = Destination::of(&service, ports.source, [o, p]);
    let hash = flow_hash_v6(
        &service.keys,
        &ip.destination,
        ports.destination,
        destination.port.to_bytes(),
    );
    let query = Query::v6(&service, (ip.destination, ports.destination), destination, hash);
    Ok(Found::Choice(steer::backend_of_quoted(tables, proto, &query), entropy_of(hash)))
}

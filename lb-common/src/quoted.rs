//! ICMP errors: they go where the flow goes that they quote.

use crate::{
    abi::{ServiceKeyV4, ServiceKeyV6, mapped},
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
#[inline(never)]
pub fn quoted_v4<P: Packet + ?Sized, T: Tables>(pkt: &P, tables: &T, l3: usize) -> u64 {
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
    // An error that quotes a later fragment, or another host's packet, belongs to no flow here.
    if ip.fragment.get() & ipv4::OFFSET_MASK != 0 || ip.source != outer.destination {
        return Err(Pass::NotAService);
    }
    let ports = pkt.load::<QuotedPorts>(offset + header_len).ok_or(Pass::Truncated)?;
    if offset + header_len + size_of::<QuotedPorts>() > l3 + outer.total_len.get() as usize {
        return Err(Pass::Truncated);
    }
    let key = ServiceKeyV4 { address: ip.source, port: ports.source, proto: ip.proto, reserved: 0 };
    let service = tables.service_v4(&key).ok_or(Pass::NotAService)?;
    // As a packet that follows others: it neither opens its flow nor is a bare ACK. It leaves the node no more, so it needs no entropy.
    if let Some(choice) = deliver::choice(pkt, tables, &service, Kind::Continues) {
        return Ok(Found::Choice(choice, 0));
    }
    let hash = flow_hash_v4(&service.keys, ip.destination, ports.destination);
    let query = Query::new(&service, mapped(ip.destination), ports.destination, hash);
    Ok(Found::Choice(steer::backend_of_quoted(tables, key.proto, &query), entropy_of(hash)))
}

/// The same for an ICMPv6 error whose message is at `offset`.
#[inline(never)]
pub fn quoted_v6<P: Packet + ?Sized, T: Tables>(
    pkt: &P,
    tables: &T,
    l3: usize,
    offset: usize,
) -> u64 {
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
    let key = ServiceKeyV6 {
        address: ip.source,
        port: ports.source,
        proto: transport.proto,
        reserved: 0,
    };
    let service = tables.service_v6(&key).ok_or(Pass::NotAService)?;
    // As a packet that follows others: it neither opens its flow nor is a bare ACK. It leaves the node no more, so it needs no entropy.
    if let Some(choice) = deliver::choice(pkt, tables, &service, Kind::Continues) {
        return Ok(Found::Choice(choice, 0));
    }
    let hash = flow_hash_v6(&service.keys, &ip.destination, ports.destination);
    let query = Query::new(&service, ip.destination, ports.destination, hash);
    Ok(Found::Choice(steer::backend_of_quoted(tables, key.proto, &query), entropy_of(hash)))
}

//! Frames from a client to the VIP, built by etherparse.

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header,
    Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, PacketBuilder, TcpHeader,
};

use crate::model::{GATEWAY, OWN, VIP_V4, VIP_V6};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// The address family of a test case; most cases run in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// The id of the service that has this number in IPv4.
    pub fn service(self, number: u16) -> u16 {
        match self {
            Self::V4 => number,
            Self::V6 => number + 4,
        }
    }
}

/// A client: its address in both families, and its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    pub v4: [u8; 4],
    pub v6: [u8; 16],
    pub port: u16,
}

impl Client {
    pub fn new(n: u32) -> Self {
        let [a, b, c, d] = n.to_be_bytes();
        let mut v6 = [0; 16];
        v6[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb9]);
        v6[12..].copy_from_slice(&[a, b, c, d]);
        Self { v4: [198, b | 0x10, c, d], v6, port: 40_000 }
    }

    /// The address as it is in a key.
    pub fn key_address(&self, family: Family) -> [u8; 16] {
        match family {
            Family::V4 => lb_common::abi::mapped(self.v4),
            Family::V6 => self.v6,
        }
    }

    pub fn ip(&self, family: Family, ttl: u8) -> IpHeaders {
        ip(family, ttl, (self.v4, self.v6), (VIP_V4, VIP_V6))
    }

    pub fn tcp(&self, family: Family, port: u16, flags: u8) -> Vec<u8> {
        self.tcp_with(family, port, flags, 64, &[0x5a; 40])
    }

    /// An acknowledgment without data.
    pub fn bare_ack(&self, family: Family, port: u16) -> Vec<u8> {
        self.tcp_with(family, port, ACK, 64, &[])
    }

    pub fn tcp_with(
        &self,
        family: Family,
        port: u16,
        flags: u8,
        ttl: u8,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ethernet2(GATEWAY, OWN)
            .ip(self.ip(family, ttl))
            .tcp_header(tcp(self.port, port, flags))
            .write(&mut out, payload)
            .expect("a frame in memory");
        out
    }

    pub fn udp(&self, family: Family, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ethernet2(GATEWAY, OWN)
            .ip(self.ip(family, 64))
            .udp(self.port, port)
            .write(&mut out, payload)
            .expect("a frame in memory");
        out
    }

    /// The fragment at `offset` (in bytes) of packet `id` of protocol `proto` to the VIP.
    pub fn fragment(
        &self,
        family: Family,
        (id, proto): (u16, u8),
        (offset, more): (u16, bool),
        payload: &[u8],
    ) -> Vec<u8> {
        let mut headers = self.ip(family, 64);
        let fragment_offset = IpFragOffset::try_new(offset / 8).expect("below 2^13");
        match &mut headers {
            IpHeaders::Ipv4(ip, _) => {
                ip.identification = id;
                ip.dont_fragment = false;
                ip.more_fragments = more;
                ip.fragment_offset = fragment_offset;
            }
            IpHeaders::Ipv6(_, extensions) => {
                extensions.fragment = Some(Ipv6FragmentHeader {
                    next_header: IpNumber(0),
                    fragment_offset,
                    more_fragments: more,
                    identification: u32::from(id),
                });
            }
        }
        ethernet(headers, proto, payload)
    }
}

/// A packet's headers between two addresses.
pub fn ip(
    family: Family,
    ttl: u8,
    from: ([u8; 4], [u8; 16]),
    to: ([u8; 4], [u8; 16]),
) -> IpHeaders {
    match family {
        Family::V4 => {
            let header = Ipv4Header::new(0, ttl, IpNumber::TCP, from.0, to.0);
            IpHeaders::Ipv4(header.expect("no payload"), Ipv4Extensions::default())
        }
        Family::V6 => {
            let header = Ipv6Header {
                hop_limit: ttl,
                source: from.1,
                destination: to.1,
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
    }
}

pub fn tcp(from: u16, to: u16, flags: u8) -> TcpHeader {
    TcpHeader {
        fin: flags & FIN != 0,
        syn: flags & SYN != 0,
        rst: flags & RST != 0,
        ack: flags & ACK != 0,
        ..TcpHeader::new(from, to, 0x0102_0304, 0xffff)
    }
}

/// The bytes of a TCP segment without payload.
pub fn segment(from: u16, to: u16, flags: u8) -> Vec<u8> {
    tcp(from, to, flags).to_bytes().to_vec()
}

/// Puts the headers before a payload of protocol `proto`; lengths and checksums become right.
pub fn packet(mut headers: IpHeaders, proto: u8, payload: &[u8]) -> Vec<u8> {
    headers.set_next_headers(IpNumber(proto));
    headers.set_payload_len(payload.len()).expect("below 64 KiB");
    let mut out = Vec::new();
    match &headers {
        // The payload may start with extension headers of its own, which etherparse would miss.
        IpHeaders::Ipv6(ip, extensions) if extensions.is_empty() => ip.write(&mut out),
        headers => headers.write(&mut out).map_err(std::io::Error::other),
    }
    .expect("headers in memory");
    out.extend(payload);
    out
}

/// The same in a frame for the node.
pub fn ethernet(headers: IpHeaders, proto: u8, payload: &[u8]) -> Vec<u8> {
    let ether_type = match headers {
        IpHeaders::Ipv4(..) => EtherType::IPV4,
        IpHeaders::Ipv6(..) => EtherType::IPV6,
    };
    let mut out =
        Ethernet2Header { source: GATEWAY, destination: OWN, ether_type }.to_bytes().to_vec();
    out.extend(packet(headers, proto, payload));
    out
}

/// An ICMP error of `kind` from a router to the VIP that quotes `quoted`.
pub fn icmp_error(family: Family, kind: u8, quoted: &[u8]) -> Vec<u8> {
    let router = Client::new(0xfe_fe);
    let mut message = vec![kind, 0, 0, 0, 0, 0, 5, 0];
    message.extend(quoted);
    let proto = if family == Family::V4 { 1 } else { 58 };
    ethernet(router.ip(family, 64), proto, &message)
}

/// What a backend sent from the VIP to the client, as a router would quote it.
pub fn answer(family: Family, client: &Client, proto: u8, segment: &[u8]) -> Vec<u8> {
    packet(ip(family, 50, (VIP_V4, VIP_V6), (client.v4, client.v6)), proto, segment)
}

//! Frames that are made for requests.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use anyhow::{Result, bail, ensure};
use lb_common::{
    packet::{
        ethernet,
        icmp::{self, Icmp},
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
        tcp::{self, Tcp},
        udp,
    },
    rewrite,
};
use lb_model::desired::Protocol;
use serde::{Deserialize, Serialize};
use zerocopy::{IntoBytes as _, network_endian::U16};

use super::Snap;

/// The MAC address that made frames come from: locally administered.
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A packet of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// The protocol.
    pub protocol: Protocol,
    /// The client.
    pub source: SocketAddr,
    /// Its destination.
    pub destination: SocketAddr,
    /// TCP's flags.
    pub flags: Flags,
    /// TCP's sequence number.
    #[serde(default)]
    pub sequence: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Bytes of the IP packet; as few as its headers take unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u16>,
    /// VLAN ids, the outer one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vlans: Vec<u16>,
    /// The content of a datagram.
    #[serde(default)]
    pub payload: Payload,
    /// Not this packet, but an ICMP error about a packet from the flow's destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<(IcmpError, IpAddr)>,
}

/// Flags of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flags(pub u8);

impl Flags {
    /// A packet that opens a connection.
    pub const SYN: Self = Self(tcp::SYN);
    /// A packet of an open one.
    pub const ACK: Self = Self(tcp::ACK);
}

impl FromStr for Flags {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
        let mut flags = 0;
        for word in text.split([',', '+']).filter(|word| !word.is_empty()) {
            let bit = names.iter().position(|name| word.eq_ignore_ascii_case(name));
            let bit = bit.ok_or_else(|| format!("`{word}` is none of {}", names.join(", ")))?;
            flags |= 1 << bit;
        }
        Ok(Self(flags))
    }
}

/// The content of a datagram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Payload {
    /// Zeroes.
    #[default]
    Plain,
    /// A QUIC Initial packet.
    QuicInitial,
    /// A QUIC Handshake packet to this connection id, which the server has chosen.
    QuicHandshake([u8; 8]),
    /// A QUIC packet with a short header, which begins with this connection id.
    QuicShort([u8; 8]),
}

impl FromStr for Payload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, id) = text.split_once(':').unwrap_or((text, ""));
        let id = || -> Result<[u8; 8], String> {
            let bytes = super::packet::unhex(id).ok().and_then(|bytes| bytes.try_into().ok());
            bytes.ok_or_else(|| {
                format!("`{text}`: write the connection id's first eight bytes as {kind}:0123456789abcdef")
            })
        };
        match kind {
            "plain" => Ok(Self::Plain),
            "quic-initial" => Ok(Self::QuicInitial),
            "quic-handshake" => Ok(Self::QuicHandshake(id()?)),
            "quic-short" => Ok(Self::QuicShort(id()?)),
            _ => Err(format!(
                "`{text}` is none of plain, quic-initial, quic-handshake:ID, quic-short:ID"
            )),
        }
    }
}

impl Payload {
    fn bytes(&self) -> Vec<u8> {
        let long = |first: u8, id: &[u8; 8]| {
            let mut bytes = vec![first, 0, 0, 0, 1, 8];
            bytes.extend_from_slice(id);
            bytes.extend_from_slice(&[0; 6]);
            bytes
        };
        match self {
            Self::Plain => Vec::new(),
            Self::QuicInitial => long(0xc0, &[0xa5; 8]),
            Self::QuicHandshake(id) => long(0xe0, id),
            Self::QuicShort(id) => [&[0x40], id.as_slice(), &[0; 16]].concat(),
        }
    }
}

/// An ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum IcmpError {
    /// Destination unreachable.
    Unreachable,
    /// Fragmentation needed, or packet too big.
    TooBig,
    /// Time to live, or hop limit, exceeded.
    TimeExceeded,
}

impl Made {
    /// The frame, addressed to a node with this MAC address.
    ///
    /// # Errors
    ///
    /// If it makes no sense: addresses of both families, a length that its headers don't fit in.
    pub fn frame(&self, own: [u8; 6]) -> Result<Snap> {
        let (source, destination) = (self.source.ip(), self.destination.ip());
        ensure!(
            source.is_ipv4() == destination.is_ipv4(),
            "{source} and {destination} are of different families"
        );
        ensure!(self.vlans.len() <= 4, "more than four VLAN tags");
        let mut frame = [own, CLIENT_MAC].concat();
        for (index, vlan) in self.vlans.iter().enumerate() {
            let outer = index + 1 < self.vlans.len();
            let tpid = if outer { ethernet::QINQ } else { ethernet::VLAN };
            frame.extend(tpid.to_be_bytes());
            frame.extend((vlan & 0xfff).to_be_bytes());
        }
        let kind = if source.is_ipv4() { ethernet::IPV4 } else { ethernet::IPV6 };
        frame.extend(kind.to_be_bytes());
        let packet = match &self.error {
            None => self.packet()?,
            Some((error, from)) => self.error(*error, *from)?,
        };
        frame.extend(packet);
        Ok(Snap { length: frame.len(), bytes: frame })
    }

    fn packet(&self) -> Result<Vec<u8>> {
        let (source, destination) = (self.source.ip(), self.destination.ip());
        let (ip_len, header, proto) = match self.protocol {
            Protocol::Tcp => (ip_len(source), size_of::<Tcp>(), number::TCP),
            Protocol::Udp => (ip_len(source), udp::LEN, number::UDP),
        };
        let mut payload = self.payload.bytes();
        if let Some(length) = self.length {
            let least = ip_len + header + payload.len();
            let Some(more) = usize::from(length).checked_sub(least) else {
                bail!("{length} bytes; the headers alone have {least}");
            };
            payload.resize(payload.len() + more, 0);
        }
        let (from, to) = (self.source.port(), self.destination.port());
        let mut segment = match self.protocol {
            Protocol::Tcp => Tcp {
                source: from.to_be_bytes(),
                destination: to.into(),
                sequence: self.sequence.to_be_bytes(),
                acknowledgment: u32::from(self.flags.0 & tcp::ACK != 0).to_be_bytes(),
                data_offset: 0x50,
                flags: self.flags.0,
                window: U16::new(64_240),
                check: U16::ZERO,
                urgent: U16::ZERO,
            }
            .as_bytes()
            .to_vec(),
            Protocol::Udp => {
                let len = u16::try_from(udp::LEN + payload.len())?;
                [from, to, len, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
            }
        };
        segment.extend(payload);
        let check = checksum(source, destination, proto, &segment);
        let at = if self.protocol == Protocol::Tcp { 16 } else { 6 };
        segment[at..at + 2].copy_from_slice(&check.to_be_bytes());
        ip(source, destination, proto, self.ttl, &segment)
    }

    /// An error from a router or a client about a packet that the destination sent to the client.
    fn error(&self, error: IcmpError, from: IpAddr) -> Result<Vec<u8>> {
        let vip = self.destination.ip();
        ensure!(from.is_ipv4() == vip.is_ipv4(), "{from} and {vip} are of different families");
        let about = Self {
            source: self.destination,
            destination: self.source,
            flags: Flags(tcp::ACK),
            error: None,
            payload: Payload::Plain,
            length: None,
            ..self.clone()
        };
        let mtu = 1_400_u16.to_be_bytes();
        let (kind, code, rest) = match (error, vip.is_ipv4()) {
            (IcmpError::Unreachable, true) => (icmp::UNREACHABLE, 1, [0; 4]),
            (IcmpError::TooBig, true) => {
                (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, [0, 0, mtu[0], mtu[1]])
            }
            (IcmpError::TimeExceeded, true) => (icmp::TIME_EXCEEDED, 0, [0; 4]),
            (IcmpError::Unreachable, false) => (1, 0, [0; 4]),
            (IcmpError::TooBig, false) => (icmp::V6_TOO_BIG, 0, [0, 0, mtu[0], mtu[1]]),
            (IcmpError::TimeExceeded, false) => (icmp::V6_TIME_EXCEEDED, 0, [0; 4]),
        };
        let mut message = Icmp { kind, code, check: U16::ZERO, rest }.as_bytes().to_vec();
        message.extend(about.packet()?);
        let proto = if vip.is_ipv4() { number::ICMP } else { number::ICMPV6 };
        let check = match vip {
            IpAddr::V4(_) => !fold(sum(&message)),
            IpAddr::V6(_) => checksum(from, vip, proto, &message),
        };
        message[2..4].copy_from_slice(&check.to_be_bytes());
        ip(from, vip, proto, self.ttl, &message)
    }
}

const fn ip_len(address: IpAddr) -> usize {
    if address.is_ipv4() { ipv4::LEN } else { ipv6::LEN }
}

/// An IP packet without options.
fn ip(source: IpAddr, destination: IpAddr, proto: u8, ttl: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4 {
                version_ihl: 0x45,
                tos: 0,
                total_len: U16::new(u16::try_from(ipv4::LEN + payload.len())?),
                id: [0; 2],
                fragment: U16::new(ipv4::DONT_FRAGMENT),
                ttl,
                proto,
                check: U16::ZERO,
                source: source.octets(),
                destination: destination.octets(),
            };
            header.check = U16::new(!rewrite::fold(rewrite::sum(header.as_bytes())));
            header.as_bytes().to_vec()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6 {
            version_class_label: [0x60, 0, 0, 0],
            payload_len: U16::new(u16::try_from(payload.len())?),
            next: proto,
            hop_limit: ttl,
            source: source.octets(),
            destination: destination.octets(),
        }
        .as_bytes()
        .to_vec(),
        _ => bail!("{source} and {destination} are of different families"),
    };
    packet.extend_from_slice(payload);
    Ok(packet)
}

/// The checksum of a segment with its pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1).
fn checksum(source: IpAddr, destination: IpAddr, proto: u8, segment: &[u8]) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    let length = segment.len() as u64;
    !fold(octets(source) + octets(destination) + u64::from(proto) + length + sum(segment))
}

/// The sum of the 16-bit words of bytes; an odd last one is padded with zero.
fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

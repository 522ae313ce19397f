//! A frame at hand, which may be only the start of one, and its headers as text.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::packet::{
    Packet, ethernet,
    icmp::Icmp,
    ipv4::{self, Ipv4},
    ipv6::{self, Fragmentation, Ipv6},
    number,
    tcp::{self, Tcp},
    udp::Udp,
};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// A frame, of which a capture may have saved only the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snap {
    /// The bytes that were saved.
    pub bytes: Vec<u8>,
    /// How many it had on the wire.
    pub length: usize,
}

impl Packet for Snap {
    fn load<T: FromBytes + Immutable + KnownLayout + Unaligned>(&self, off: usize) -> Option<&T> {
        self.bytes.as_slice().load(off)
    }

    fn holds(&self, len: usize) -> bool {
        len <= self.length
    }
}

impl Snap {
    /// Whether all of it is known.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.bytes.len() == self.length
    }

    /// The flow's next packet from the client, and its name: after a SYN, the ACK of the
    /// handshake; after a datagram, one like it. None where none follows.
    #[must_use]
    pub fn next(&self) -> Option<(Self, &'static str)> {
        let transport = transport(&self.bytes)?;
        let mut next = self.clone();
        match transport.proto {
            number::TCP => {
                let header = next.bytes.get_mut(transport.offset..)?;
                let tcp = Tcp::mut_from_prefix(header).ok()?.0;
                if !tcp.opens() {
                    return None;
                }
                tcp.flags = tcp::ACK;
                tcp.sequence = u32::from_be_bytes(tcp.sequence).wrapping_add(1).to_be_bytes();
                Some((next, "ACK"))
            }
            number::UDP => Some((next, "datagram")),
            _ => None,
        }
    }
}

/// Where a transport header is.
pub(crate) struct Transport {
    /// Its protocol.
    pub proto: u8,
    /// Its offset in the frame.
    pub offset: usize,
    /// The sender.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
}

/// Where the transport header of a frame is, if it has one.
pub(crate) fn transport(bytes: &[u8]) -> Option<Transport> {
    let link = ethernet::parse(bytes).ok()?;
    match link.ethertype {
        ethernet::IPV4 => {
            let ip = bytes.load::<Ipv4>(link.l3)?;
            let whole = ip.fragment.get() & ipv4::OFFSET_MASK == 0;
            let offset = link.l3 + ip.header_len()?;
            let (source, destination) = (ip.source.into(), ip.destination.into());
            whole.then_some(Transport { proto: ip.proto, offset, source, destination })
        }
        ethernet::IPV6 => {
            let ip = bytes.load::<Ipv6>(link.l3)?;
            let found = ipv6::transport(bytes, ip.next, link.l3 + ipv6::LEN).ok()?;
            let whole = !matches!(found.fragmentation, Fragmentation::Later(_));
            let (source, destination) = (ip.source.into(), ip.destination.into());
            let (proto, offset) = (found.proto, found.offset);
            whole.then_some(Transport { proto, offset, source, destination })
        }
        _ => None,
    }
}

/// The addresses and the ports of the packet that a frame holds, and its transport's name: for
/// a line about it.
#[must_use]
pub fn describe(bytes: &[u8]) -> String {
    let Ok(link) = ethernet::parse(bytes) else {
        return format!("a frame of {} bytes", bytes.len());
    };
    let text = match link.ethertype {
        ethernet::IPV4 | ethernet::IPV6 => packet(bytes, link.l3, link.ethertype == ethernet::IPV6),
        kind => Some(format!("EtherType {kind:#06x}")),
    };
    text.unwrap_or_else(|| format!("a frame of {} bytes", bytes.len()))
}

fn packet(bytes: &[u8], l3: usize, v6: bool) -> Option<String> {
    let (source, destination, proto, offset, later) = if v6 {
        let ip = bytes.load::<Ipv6>(l3)?;
        let addresses = (Ipv6Addr::from(ip.source).into(), Ipv6Addr::from(ip.destination).into());
        match ipv6::transport(bytes, ip.next, l3 + ipv6::LEN) {
            Ok(at) => {
                let later = matches!(at.fragmentation, Fragmentation::Later(_));
                (addresses.0, addresses.1, at.proto, at.offset, later)
            }
            Err(_) => (addresses.0, addresses.1, ip.next, usize::MAX, true),
        }
    } else {
        let ip = bytes.load::<Ipv4>(l3)?;
        let later = ip.fragment.get() & ipv4::OFFSET_MASK != 0;
        let (source, destination) = (Ipv4Addr::from(ip.source), Ipv4Addr::from(ip.destination));
        (IpAddr::V4(source), IpAddr::V4(destination), ip.proto, l3 + ip.header_len()?, later)
    };
    let plain = |what: &str| Some(format!("{what} {source} > {destination}"));
    let ports = |what: &str, from: u16, to: u16, more: String| {
        let (from, to) = (SocketAddr::new(source, from), SocketAddr::new(destination, to));
        Some(format!("{what} {from} > {to}{more}"))
    };
    if later {
        return plain("fragment");
    }
    match proto {
        number::TCP => match bytes.load::<Tcp>(offset) {
            Some(tcp) => {
                let from = u16::from_be_bytes(tcp.source);
                ports("tcp", from, tcp.destination.get(), format!(" [{}]", flags(tcp.flags)))
            }
            None => plain("tcp"),
        },
        number::UDP => match bytes.load::<Udp>(offset) {
            Some(udp) => {
                let from = u16::from_be_bytes(udp.source);
                ports("udp", from, udp.destination.get(), String::new())
            }
            None => plain("udp"),
        },
        number::ICMP | number::ICMPV6 => match bytes.load::<Icmp>(offset) {
            Some(icmp) => {
                Some(format!("icmp {source} > {destination} type {} code {}", icmp.kind, icmp.code))
            }
            None => plain("icmp"),
        },
        number::IPV4 | number::IPV6 => {
            let inner = packet(bytes, offset, proto == number::IPV6)?;
            Some(format!("ip {source} > {destination}: {inner}"))
        }
        other => plain(&format!("protocol {other}")),
    }
}

/// The names of TCP's flags.
fn flags(flags: u8) -> String {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set = names.iter().enumerate().filter(|(bit, _)| flags & 1 << bit != 0);
    let set: Vec<&str> = set.map(|(_, name)| *name).collect();
    if set.is_empty() { "none".into() } else { set.join(" ") }
}

/// Whether a frame is one of an interface without Ethernet header, behind one whose source is zero: no host has that.
pub(crate) fn is_raw_ip(bytes: &[u8]) -> bool {
    bytes.get(6..12) == Some(&[0; 6])
}

/// The headers of a frame, one after the other: a line each.
pub(crate) fn headers(bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(ether) = bytes.load::<ethernet::Ethernet>(0) else { return lines };
    let Ok(link) = ethernet::parse(bytes) else { return lines };
    let mut line = if is_raw_ip(bytes) {
        "no Ethernet header".to_owned()
    } else {
        format!("Ethernet {} > {}", mac(ether.source), mac(ether.destination))
    };
    for at in (ethernet::LEN..link.l3).step_by(ethernet::TAG_LEN) {
        if let Some(tag) = bytes.load::<ethernet::Tag>(at) {
            let _ = write!(line, ", VLAN {}", tag.tci.get() & 0xfff);
        }
    }
    lines.push(line);
    let mut l3 = link.l3;
    let mut v6 = match link.ethertype {
        ethernet::IPV4 => false,
        ethernet::IPV6 => true,
        _ => return lines,
    };
    loop {
        let next = if v6 {
            let Some(ip) = bytes.load::<Ipv6>(l3) else { return lines };
            let (source, destination) = (Ipv6Addr::from(ip.source), Ipv6Addr::from(ip.destination));
            let len = usize::from(ip.payload_len.get()) + ipv6::LEN;
            lines.push(format!(
                "IPv6 {source} > {destination}, hop limit {}, {len} bytes",
                ip.hop_limit
            ));
            (ip.next, l3 + ipv6::LEN)
        } else {
            let Some(ip) = bytes.load::<Ipv4>(l3) else { return lines };
            let (source, destination) = (Ipv4Addr::from(ip.source), Ipv4Addr::from(ip.destination));
            lines.push(format!(
                "IPv4 {source} > {destination}, TTL {}, {} bytes",
                ip.ttl,
                ip.total_len.get()
            ));
            let Some(header) = ip.header_len() else { return lines };
            (ip.proto, l3 + header)
        };
        match next.0 {
            number::IPV4 | number::IPV6 => (l3, v6) = (next.1, next.0 == number::IPV6),
            _ => return lines,
        }
    }
}

/// A MAC address as people write it.
pub(crate) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The inverse of [`hex`].
pub(crate) fn unhex(text: &str) -> Result<Vec<u8>> {
    ensure!(
        text.is_ascii() && text.len().is_multiple_of(2),
        "a frame in hexadecimal has two digits for each byte"
    );
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16);
    (0..text.len()).step_by(2).map(|at| byte(at).context("a frame in hexadecimal")).collect()
}

//! The packets that are sent, and what is read of those that come back.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Backend, backend_flags},
    packet::{
        Packet as _,
        icmp::{self, Icmp, QuotedPorts},
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
        tcp::{self, Tcp},
        udp::{self, Udp},
    },
    rewrite,
};
use zerocopy::{IntoBytes as _, network_endian::U16};

use super::{Error, Way};
use crate::{
    datapath::entry,
    desired::{Mode, Protocol},
};

/// Bytes of a TCP header without options.
const TCP_LEN: usize = size_of::<Tcp>();
/// ICMP: code of [`icmp::UNREACHABLE`] for a port on which nobody listens.
const PORT_UNREACHABLE: u8 = 3;
/// ICMPv6: destination unreachable, and its code for a port.
const V6_UNREACHABLE: u8 = 1;
const V6_PORT_UNREACHABLE: u8 = 4;

/// Both ends of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub protocol: Protocol,
    pub own: SocketAddr,
    /// The VIP.
    pub peer: SocketAddr,
}

/// What a packet says to its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A TCP segment.
    Segment { sequence: u32, acknowledgment: u32, flags: u8 },
    /// A datagram, whose payload is these bytes of the packet.
    Datagram(std::ops::Range<usize>),
    /// Nobody listens on the port.
    Unreachable,
}

/// The way that frames take: the data plane's own entry for the backend.
#[derive(Clone, Debug)]
pub(super) struct Path(Backend);

impl Path {
    /// Of packets to the VIP of `way`.
    pub(super) fn of(way: &Way) -> Result<Self, Error> {
        let (vip, backend) = (way.vip, way.backend);
        let fits = match way.mode {
            Mode::Dsr => vip.is_ipv4() == backend.is_ipv4(),
            Mode::Ipip => vip.is_ipv4() || backend.is_ipv6(),
        };
        if !fits {
            let mode = way.mode;
            return Err(Error::Local(format!("{vip} does not travel to {backend} by {mode}")));
        }
        Ok(Self(entry::by_hop(entry::blank(way.mode, backend, &way.tunnel), &way.hop)))
    }

    /// Index of the interface that frames leave by.
    pub(super) const fn ifindex(&self) -> u32 {
        self.0.ifindex
    }

    /// The largest IP packet, in bytes, that fits.
    pub(super) const fn mtu(&self) -> usize {
        self.0.mtu as usize
    }

    /// The frame that takes an IP packet there. `entropy` is the flow's, as the data plane has one
    /// for each.
    pub(super) fn frame(&self, packet: &[u8], entropy: u32) -> Vec<u8> {
        let backend = &self.0;
        let mut frame = Vec::with_capacity(backend.l2.len() + ipv6::LEN + packet.len());
        frame.extend_from_slice(&backend.l2[..usize::from(backend.l2_len)]);
        let length = packet.len() as u16;
        let next = if packet[0] >> 4 == 4 { number::IPV4 } else { number::IPV6 };
        // Nothing that is asked has a traffic class.
        match (backend.flags & backend_flags::TUNNEL, backend.flags & backend_flags::V6) {
            (0, _) => {}
            (_, 0) => {
                let outer = rewrite::outer_v4(backend, 0, length, entropy);
                frame.extend_from_slice(outer.as_bytes());
            }
            _ => {
                let outer = rewrite::outer_v6(backend, 0, length, next, entropy);
                frame.extend_from_slice(outer.as_bytes());
            }
        }
        frame.extend_from_slice(packet);
        frame
    }
}

/// A TCP segment without data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: u8,
    /// The option of a SYN.
    pub mss: Option<u16>,
}

impl Segment {
    /// The packet.
    pub(super) fn packet(&self, flow: &Flow) -> Vec<u8> {
        let options = self.mss.map(|mss| {
            let [high, low] = mss.to_be_bytes();
            [2, 4, high, low]
        });
        let options: &[u8] = options.as_ref().map_or(&[], |bytes| bytes);
        let length = TCP_LEN + options.len();
        let mut header = Tcp {
            source: flow.own.port().to_be_bytes(),
            destination: U16::new(flow.peer.port()),
            sequence: self.sequence.to_be_bytes(),
            acknowledgment: self.acknowledgment.to_be_bytes(),
            data_offset: ((length / 4) as u8) << 4,
            flags: self.flags,
            window: U16::new(if self.flags & tcp::SYN == 0 { 0 } else { 1_024 }),
            check: U16::ZERO,
            urgent: U16::ZERO,
        };
        let sum =
            pseudo_sum(flow, length) + rewrite::sum(header.as_bytes()) + rewrite::sum(options);
        header.check = U16::new(!rewrite::fold(sum));
        let mut packet = ip_header(flow, length);
        packet.extend_from_slice(header.as_bytes());
        packet.extend_from_slice(options);
        packet
    }
}

/// A packet with a datagram, which fits (see [`largest_datagram`]).
pub(super) fn datagram(flow: &Flow, payload: &[u8]) -> Vec<u8> {
    let length = udp::LEN + payload.len();
    let mut header = Udp {
        source: flow.own.port().to_be_bytes(),
        destination: U16::new(flow.peer.port()),
        len: U16::new(length as u16),
        check: U16::ZERO,
    };
    let (even, odd) = payload.split_at(payload.len() & !1);
    let odd = odd.first().map_or(0, |last| u32::from(*last) << 8);
    let sum = pseudo_sum(flow, length) + rewrite::sum(header.as_bytes()) + rewrite::sum(even);
    // RFC 768: zero would say that there is none.
    let check = match !rewrite::fold(sum + odd) {
        0 => 0xffff,
        check => check,
    };
    header.check = U16::new(check);
    let mut packet = ip_header(flow, length);
    packet.extend_from_slice(header.as_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// The largest payload of a datagram, in bytes, with an MTU.
pub(super) const fn largest_datagram(flow: &Flow, mtu: usize) -> usize {
    mtu.saturating_sub(ip_len(flow) + udp::LEN)
}

/// The largest payload of a TCP segment, in bytes, with an MTU (RFC 6691).
pub(super) fn mss(flow: &Flow, mtu: usize) -> u16 {
    mtu.saturating_sub(ip_len(flow) + TCP_LEN).try_into().unwrap_or(u16::MAX)
}

const fn ip_len(flow: &Flow) -> usize {
    if flow.peer.is_ipv4() { ipv4::LEN } else { ipv6::LEN }
}

/// The IP header of a packet with `length` bytes of transport.
fn ip_header(flow: &Flow, length: usize) -> Vec<u8> {
    let proto = flow.protocol.number();
    let mut packet = Vec::with_capacity(ip_len(flow) + length);
    match (flow.own.ip(), flow.peer.ip()) {
        (IpAddr::V4(own), IpAddr::V4(peer)) => {
            let mut header = Ipv4 {
                total_len: U16::new((ipv4::LEN + length) as u16),
                proto,
                ..rewrite::ipv4_template(own.octets(), peer.octets())
            };
            header.check = U16::new(!rewrite::fold(rewrite::sum(header.as_bytes())));
            packet.extend_from_slice(header.as_bytes());
        }
        (own, peer) => {
            let header = Ipv6 {
                version_class_label: [0x60, 0, 0, 0],
                payload_len: U16::new(length as u16),
                next: proto,
                hop_limit: rewrite::TTL,
                source: entry::address(own),
                destination: entry::address(peer),
            };
            packet.extend_from_slice(header.as_bytes());
        }
    }
    packet
}

/// Sum of the pseudo-header's words (RFC 9293, 3.1; RFC 8200, 8.1). That addresses of IPv4 come with
/// 0xffff before them changes nothing: twice that is zero in ones' complement.
fn pseudo_sum(flow: &Flow, length: usize) -> u32 {
    let addresses = [entry::address(flow.own.ip()), entry::address(flow.peer.ip())];
    rewrite::sum(addresses.as_bytes()) + u32::from(flow.protocol.number()) + length as u32
}

/// Reads a packet that has come: whose it is and what it says. None if it is damaged, a fragment,
/// or of no interest. Checksums are not verified: between hosts on one machine they may be unset,
/// and elsewhere the interface has looked at them.
pub(super) fn parse(packet: &[u8]) -> Option<(Flow, Said)> {
    let ip = Ip::parse(packet)?;
    let end = ip.end?;
    let bytes = &packet[..end];
    match ip.proto {
        number::TCP => {
            let header = bytes.load::<Tcp>(ip.transport)?;
            let length = usize::from(header.data_offset >> 4) * 4;
            if length < TCP_LEN || ip.transport + length > end {
                return None;
            }
            let said = Said::Segment {
                sequence: u32::from_be_bytes(header.sequence),
                acknowledgment: u32::from_be_bytes(header.acknowledgment),
                flags: header.flags,
            };
            let own = SocketAddr::new(ip.destination, header.destination.get());
            let peer = SocketAddr::new(ip.source, u16::from_be_bytes(header.source));
            Some((Flow { protocol: Protocol::Tcp, own, peer }, said))
        }
        number::UDP => {
            let header = bytes.load::<Udp>(ip.transport)?;
            let length = usize::from(header.len.get());
            if length < udp::LEN || ip.transport + length > end {
                return None;
            }
            let said = Said::Datagram(ip.transport + udp::LEN..ip.transport + length);
            let own = SocketAddr::new(ip.destination, header.destination.get());
            let peer = SocketAddr::new(ip.source, u16::from_be_bytes(header.source));
            Some((Flow { protocol: Protocol::Udp, own, peer }, said))
        }
        number::ICMP | number::ICMPV6 => {
            let message = bytes.load::<Icmp>(ip.transport)?;
            let unreachable = match ip.proto {
                number::ICMP => (icmp::UNREACHABLE, PORT_UNREACHABLE),
                _ => (V6_UNREACHABLE, V6_PORT_UNREACHABLE),
            };
            if (message.kind, message.code) != unreachable {
                return None;
            }
            quoted_flow(&bytes[ip.transport + icmp::LEN..]).map(|flow| (flow, Said::Unreachable))
        }
        _ => None,
    }
}

/// The flow of a packet that this node has sent and an ICMP error quotes.
fn quoted_flow(quote: &[u8]) -> Option<Flow> {
    let ip = Ip::parse(quote)?;
    let protocol = match ip.proto {
        number::TCP => Protocol::Tcp,
        number::UDP => Protocol::Udp,
        _ => return None,
    };
    let ports = quote.load::<QuotedPorts>(ip.transport)?;
    Some(Flow {
        protocol,
        own: SocketAddr::new(ip.source, ports.source.get()),
        peer: SocketAddr::new(ip.destination, u16::from_be_bytes(ports.destination)),
    })
}

/// What an IP header says of a packet that is no fragment.
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    proto: u8,
    /// Where the transport header begins.
    transport: usize,
    /// Where the packet ends, if all of it is there.
    end: Option<usize>,
}

impl Ip {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (ip, end) = match bytes.first()? >> 4 {
            4 => {
                let header = bytes.load::<Ipv4>(0)?;
                if header.fragment.get() & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0 {
                    return None;
                }
                let ip = Self {
                    source: header.source.into(),
                    destination: header.destination.into(),
                    proto: header.proto,
                    transport: header.header_len()?,
                    end: None,
                };
                (ip, usize::from(header.total_len.get()))
            }
            6 => {
                let header = bytes.load::<Ipv6>(0)?;
                let ip = Self {
                    source: header.source.into(),
                    destination: header.destination.into(),
                    proto: header.next,
                    transport: ipv6::LEN,
                    end: None,
                };
                (ip, ipv6::LEN + usize::from(header.payload_len.get()))
            }
            _ => return None,
        };
        let whole = (ip.transport..=bytes.len()).contains(&end);
        Some(Self { end: whole.then_some(end), ..ip })
    }
}

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
use lb_model::{
    desired::{Mode, Protocol},
    entry,
};
use zerocopy::{IntoBytes as _, network_endian::U16};

use super::{Error, ProbePath};

/// Bytes of a TCP header without options.
const TCP_LEN: usize = size_of::<Tcp>();
/// The smallest MTU of a link (RFC 791, 3.2), which leaves room for the headers.
const MIN_MTU: u16 = 68;
/// ICMP: codes of [`icmp::UNREACHABLE`] for a port on which nothing listens, and for what the host's firewall rejects
/// (RFC 1812, 5.2.7.1).
const REFUSALS: &[u8] = &[3, 9, 10, 13];
/// ICMPv6: destination unreachable, and its codes for the same (RFC 4443, 3.1).
const V6_UNREACHABLE: u8 = 1;
const V6_REFUSALS: &[u8] = &[1, 4, 5, 6];

/// The protocol and both ends of a probe's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub protocol: Protocol,
    pub own: SocketAddr,
    /// The VIP.
    pub peer: SocketAddr,
}

/// The content of a packet, for its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A TCP segment.
    Segment { sequence: u32, acknowledgment: u32, flags: u8 },
    /// A datagram, whose payload is these bytes of the packet.
    Datagram(std::ops::Range<usize>),
    /// Nothing listens on the port, or the host's firewall rejects what is sent there.
    Unreachable,
}

/// The headers of frames to a backend, and their interface and MTU.
#[derive(Clone, Debug)]
pub(super) struct Framing {
    /// The data plane's own entry for the backend.
    entry: Backend,
    /// Whether they leave without an Ethernet header: a packet socket takes them so.
    is_raw_ip: bool,
}

impl Framing {
    /// Of packets to the VIP of `path`.
    pub(super) fn of(path: &ProbePath) -> Result<Self, Error> {
        let (vip, backend) = (path.vip, path.backend);
        let fits = match path.mode {
            Mode::Dsr | Mode::Nat => vip.is_ipv4() == backend.is_ipv4(),
            Mode::Ipip => vip.is_ipv4() || backend.is_ipv6(),
        };
        if !fits {
            let mode = path.mode;
            return Err(Error::Local(format!("{vip} does not travel to {backend} by {mode}")));
        }
        let entry = entry::by_hop(entry::blank(path.mode, backend.into(), &path.tunnel), &path.hop);
        if entry.mtu < MIN_MTU {
            let (interface, mtu) = (&path.hop.interface, entry.mtu);
            return Err(Error::Local(format!("the MTU of {mtu} by {interface} is too small")));
        }
        Ok(Self { entry, is_raw_ip: path.hop.is_raw_ip() })
    }

    /// Index of the interface that frames leave by.
    pub(super) const fn ifindex(&self) -> u32 {
        self.entry.ifindex
    }

    /// The largest IP packet, in bytes, that fits.
    pub(super) const fn mtu(&self) -> usize {
        self.entry.mtu as usize
    }

    /// The frame that takes an IP packet there. `entropy` is the flow's, as the data plane has one
    /// for each.
    pub(super) fn frame(&self, packet: &[u8], entropy: u32) -> Vec<u8> {
        let backend = &self.entry;
        let mut frame = Vec::with_capacity(backend.l2.len() + ipv6::LEN + packet.len());
        if !self.is_raw_ip {
            frame.extend_from_slice(&backend.l2[..usize::from(backend.l2_len)]);
        }
        let length = packet.len() as u16;
        let next = if packet[0] >> 4 == 4 { number::IPV4 } else { number::IPV6 };
        // No probe has a traffic class.
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
    pub(super) fn packet(&self, flow: &Flow) -> Vec<u8> {
        let segment = self.transport(flow);
        let mut packet = ip_header(flow, segment.len());
        packet.extend_from_slice(&segment);
        packet
    }

    /// The packet without its IP header.
    pub(super) fn transport(&self, flow: &Flow) -> Vec<u8> {
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
        [header.as_bytes(), options].concat()
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
    // RFC 768: zero would mean that there is none.
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

/// Reads a packet that has come: its flow and its content. None if it is damaged, a fragment,
/// or of no interest. Checksums are not verified: between hosts on one machine they may be unset,
/// and elsewhere the interface has looked at them.
pub(super) fn parse(packet: &[u8]) -> Option<(Flow, Content)> {
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
            let content = Content::Segment {
                sequence: u32::from_be_bytes(header.sequence),
                acknowledgment: u32::from_be_bytes(header.acknowledgment),
                flags: header.flags,
            };
            let own = SocketAddr::new(ip.destination, header.destination.get());
            let peer = SocketAddr::new(ip.source, u16::from_be_bytes(header.source));
            Some((Flow { protocol: Protocol::Tcp, own, peer }, content))
        }
        number::UDP => {
            let header = bytes.load::<Udp>(ip.transport)?;
            let length = usize::from(header.len.get());
            if length < udp::LEN || ip.transport + length > end {
                return None;
            }
            let content = Content::Datagram(ip.transport + udp::LEN..ip.transport + length);
            let own = SocketAddr::new(ip.destination, header.destination.get());
            let peer = SocketAddr::new(ip.source, u16::from_be_bytes(header.source));
            Some((Flow { protocol: Protocol::Udp, own, peer }, content))
        }
        number::ICMP | number::ICMPV6 => {
            let message = bytes.load::<Icmp>(ip.transport)?;
            let (unreachable, refusals) = match ip.proto {
                number::ICMP => (icmp::UNREACHABLE, REFUSALS),
                _ => (V6_UNREACHABLE, V6_REFUSALS),
            };
            if message.kind != unreachable || !refusals.contains(&message.code) {
                return None;
            }
            quoted_flow(&bytes[ip.transport + icmp::LEN..]).map(|flow| (flow, Content::Unreachable))
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

/// The IP header's fields of a packet that is no fragment.
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

#[cfg(test)]
mod tests {
    use lb_model::{hop::NextHop, settings::Tunnel};

    use super::*;

    const L2: [u8; 14] = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0];
    const TAGGED: [u8; 18] = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 10, 8, 0];

    fn flow(protocol: Protocol, own: &str, peer: &str) -> Flow {
        Flow { protocol, own: own.parse().unwrap(), peer: peer.parse().unwrap() }
    }

    fn flows(protocol: Protocol) -> [Flow; 2] {
        [
            flow(protocol, "10.0.0.5:40001", "10.0.0.100:80"),
            flow(protocol, "[fd00::5]:40001", "[fd00::100]:80"),
        ]
    }

    fn framing(vip: &str, backend: &str, mode: Mode, l2: &[u8]) -> Result<Framing, Error> {
        let hop = NextHop {
            ifindex: 7,
            interface: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 9],
            l2: l2.to_vec(),
            mtu: 1500,
        };
        Framing::of(&ProbePath {
            vip: vip.parse().unwrap(),
            backend: backend.parse().unwrap(),
            mode,
            hop,
            tunnel: Tunnel::default(),
        })
    }

    /// The flow as the other end sees it.
    fn back(flow: &Flow) -> Flow {
        Flow { own: flow.peer, peer: flow.own, ..*flow }
    }

    /// The sum of all words of pseudo-header and transport, which is all ones if the checksum is
    /// right.
    fn transport_sum(flow: &Flow, packet: &[u8]) -> u16 {
        let mut transport = packet[ip_len(flow)..].to_vec();
        let length = transport.len();
        transport.resize(length.next_multiple_of(2), 0);
        let addresses = match (flow.own.ip(), flow.peer.ip()) {
            (IpAddr::V4(own), IpAddr::V4(peer)) => [own.octets(), peer.octets()].concat(),
            (IpAddr::V6(own), IpAddr::V6(peer)) => [own.octets(), peer.octets()].concat(),
            _ => panic!("one family"),
        };
        let number = u32::from(flow.protocol.number());
        rewrite::fold(rewrite::sum(&addresses) + number + length as u32 + rewrite::sum(&transport))
    }

    #[test]
    fn syn_has_its_mss_and_right_checksums() {
        for flow in flows(Protocol::Tcp) {
            let syn = Segment {
                sequence: 0x0102_0304,
                acknowledgment: 0,
                flags: tcp::SYN,
                mss: Some(mss(&flow, 1500)),
            };
            let packet = syn.packet(&flow);
            assert_eq!(packet.len(), ip_len(&flow) + 24);
            let mss: u16 = if flow.peer.is_ipv4() { 1460 } else { 1440 };
            let [high, low] = mss.to_be_bytes();
            assert_eq!(packet[ip_len(&flow) + 20..], [2, 4, high, low]);
            assert_eq!(transport_sum(&flow, &packet), 0xffff);
            if flow.peer.is_ipv4() {
                assert_eq!(rewrite::fold(rewrite::sum(&packet[..20])), 0xffff);
                assert_eq!(packet[12..20], [10, 0, 0, 5, 10, 0, 0, 100]);
            }
            let content =
                Content::Segment { sequence: 0x0102_0304, acknowledgment: 0, flags: tcp::SYN };
            assert_eq!(parse(&packet), Some((back(&flow), content)));
        }
    }

    #[test]
    fn datagrams_of_any_length_have_right_checksums() {
        for flow in flows(Protocol::Udp) {
            for length in [0, 1, 2, 3, 511, 1472 - 20] {
                let payload: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
                let packet = datagram(&flow, &payload);
                assert_eq!(transport_sum(&flow, &packet), 0xffff, "{length} bytes");
                let (to, content) = parse(&packet).unwrap();
                assert_eq!(to, back(&flow));
                let Content::Datagram(range) = content else { panic!("{content:?}") };
                assert_eq!(packet[range], payload);
            }
        }
    }

    #[test]
    fn frames_have_the_headers_of_the_data_plane() {
        let [v4, v6] = flows(Protocol::Tcp);
        let segment = Segment { sequence: 1, acknowledgment: 0, flags: tcp::RST, mss: None };
        let (v4, v6) = (segment.packet(&v4), segment.packet(&v6));

        let dsr = framing("10.0.0.100", "10.0.0.9", Mode::Dsr, &L2).unwrap();
        assert_eq!((dsr.ifindex(), dsr.mtu()), (7, 1500));
        assert_eq!(dsr.frame(&v4, 5), [&L2[..], &v4].concat());
        let tagged = framing("10.0.0.100", "10.0.0.9", Mode::Dsr, &TAGGED).unwrap();
        assert_eq!(tagged.frame(&v4, 5), [&TAGGED[..], &v4].concat());

        let ipip = framing("10.0.0.100", "10.0.0.9", Mode::Ipip, &TAGGED).unwrap();
        let frame = ipip.frame(&v4, 0xffff_1234);
        assert_eq!((ipip.mtu(), frame.len()), (1480, 18 + 20 + v4.len()));
        assert_eq!(frame[18..22], [0x45, 0, 0, 60]);
        assert_eq!(frame[18 + 9], number::IPV4);
        assert_eq!(frame[18 + 12..18 + 20], [172, 16, 0x12, 0x34, 10, 0, 0, 9]);
        assert_eq!(rewrite::fold(rewrite::sum(&frame[18..38])), 0xffff);
        assert_eq!(frame[38..], v4);

        for (vip, packet, next) in
            [("10.0.0.100", &v4, number::IPV4), ("fd00::100", &v6, number::IPV6)]
        {
            let ipip = framing(vip, "fd00::9", Mode::Ipip, &L2).unwrap();
            let frame = ipip.frame(packet, 0x0009_1234);
            assert_eq!((ipip.mtu(), frame.len()), (1460, 14 + 40 + packet.len()));
            assert_eq!(frame[14..18], [0x60, 9, 0x12, 0x34]);
            assert_eq!(frame[18..20], (packet.len() as u16).to_be_bytes());
            assert_eq!(frame[20], next);
            assert_eq!(&frame[54..], packet);
        }
    }

    #[test]
    fn addresses_that_do_not_go_together_are_no_way() {
        for (vip, backend, mode) in [
            ("10.0.0.100", "fd00::9", Mode::Dsr),
            ("fd00::100", "10.0.0.9", Mode::Dsr),
            ("fd00::100", "10.0.0.9", Mode::Ipip),
        ] {
            let message = framing(vip, backend, mode, &L2).unwrap_err().to_string();
            assert_eq!(message, format!("{vip} does not travel to {backend} by {mode}"));
        }
    }

    /// An ICMP error about a packet, from its destination.
    fn icmp_error(flow: &Flow, kind: u8, code: u8, quote: &[u8]) -> Vec<u8> {
        let message = [&[kind, code, 0, 0, 0, 0, 0, 0], quote].concat();
        let back = Flow { own: flow.peer, peer: flow.own, ..*flow };
        let mut packet = ip_header(&back, message.len());
        let proto = if flow.peer.is_ipv4() { 9 } else { 6 };
        packet[proto] = if flow.peer.is_ipv4() { number::ICMP } else { number::ICMPV6 };
        packet.extend_from_slice(&message);
        packet
    }

    #[test]
    fn unreachable_port_is_told_to_who_asked() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for flow in flows(protocol) {
                let sent = match protocol {
                    Protocol::Udp => datagram(&flow, b"?"),
                    Protocol::Tcp => {
                        let flags = tcp::SYN;
                        Segment { sequence: 1, acknowledgment: 0, flags, mss: None }.packet(&flow)
                    }
                };
                // The quote may end behind the ports.
                for length in [ip_len(&flow) + 8, sent.len()] {
                    let quote = &sent[..length];
                    let (kind, codes) =
                        if flow.peer.is_ipv4() { (3, REFUSALS) } else { (1, V6_REFUSALS) };
                    for &code in codes {
                        let error = icmp_error(&flow, kind, code, quote);
                        assert_eq!(parse(&error), Some((flow, Content::Unreachable)));
                        let short = icmp_error(&flow, kind, code, &sent[..ip_len(&flow) + 7]);
                        assert_eq!(parse(&short), None);
                    }
                    // A router's: no route, or none to the host.
                    assert_eq!(parse(&icmp_error(&flow, kind, 0, quote)), None);
                }
            }
        }
    }

    #[test]
    fn fragments_and_bad_lengths_are_ignored() {
        for flow in flows(Protocol::Udp) {
            let packet = datagram(&flow, b"payload");
            for length in 0..packet.len() {
                assert_eq!(parse(&packet[..length]), None, "{length} bytes");
            }
            let padded = [&packet[..], &[0; 20]].concat();
            assert_eq!(parse(&padded), parse(&packet));
            let mut bad = packet.clone();
            bad[ip_len(&flow) + 5] += 1;
            assert_eq!(parse(&bad), None, "more payload than packet");
            bad[ip_len(&flow) + 5] = 7;
            assert_eq!(parse(&bad), None, "less than a header");
        }
        let [v4, v6] = flows(Protocol::Udp);
        for (offset, value) in [(6, 0x20), (7, 1), (0, 0x44), (0, 0x4f), (0, 0x55)] {
            let mut bad = datagram(&v4, b"");
            bad[offset] = value;
            assert_eq!(parse(&bad), None, "{value:#x} at {offset}");
        }
        let mut fragment = datagram(&v6, b"");
        fragment[6] = number::FRAGMENT;
        assert_eq!(parse(&fragment), None);
        for flow in flows(Protocol::Tcp) {
            let segment = Segment { sequence: 1, acknowledgment: 0, flags: tcp::SYN, mss: None };
            let mut bad = segment.packet(&flow);
            for data_offset in [0x40, 0x60, 0xf0] {
                bad[ip_len(&flow) + 12] = data_offset;
                assert_eq!(parse(&bad), None, "{data_offset:#x}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_packet_makes_it_panic(
            start in proptest::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60]),
            proto in proptest::sample::select(vec![1_u8, 6, 17, 58]),
            mut packet in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
            true_length in proptest::bool::ANY,
        ) {
            let length = packet.len();
            if let Some(first) = packet.first_mut() {
                *first = start;
            }
            let (proto_at, length_at, length) = match start >> 4 {
                4 => (9, 3, length),
                _ => (6, 5, length.saturating_sub(40)),
            };
            if let Some(at) = packet.get_mut(proto_at) {
                *at = proto;
            }
            if true_length && packet.len() > length_at {
                packet[length_at - 1] = 0;
                packet[length_at] = length as u8;
            }
            if let Some((_, Content::Datagram(range))) = parse(&packet) {
                proptest::prop_assert!(packet.get(range).is_some());
            }
        }
    }
}

//! Random frames that meet the states of [`super::generate`].

use lb_common::{
    packet::{
        ethernet, icmp,
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
    },
    rewrite, unfinished,
};
use zerocopy::{IntoBytes, network_endian::U16};

use super::{
    generate::{
        BACKENDS, CLIENTS, GATEWAY, NODE_V4, OWN, OWN_TOO, PORTS, Random, VIP_V4, VIP_V6,
        backend_port, backend_proto, backend_v4, backend_v6, client_port, client_v4, client_v6,
        connection_id, some_backend,
    },
    wide,
};

/// Sources that no ICMP error may go to.
const BAD_V4: [[u8; 4]; 7] = [
    [0, 0, 0, 0],
    [0, 1, 2, 3],
    [127, 0, 0, 1],
    [224, 0, 0, 1],
    [240, 0, 0, 1],
    [255, 255, 255, 255],
    VIP_V4,
];
/// The same for IPv6.
const BAD_V6: [[u8; 16]; 4] = [
    [0; 16],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    VIP_V6,
];

/// A random frame: most are well-formed and for a service, the rest is neither.
pub fn frame(random: &mut Random) -> Vec<u8> {
    frame_with(random, 6)
}

/// The same; each is from a backend.
pub fn frame_of_backend(random: &mut Random) -> Vec<u8> {
    frame_with(random, 1)
}

/// A random frame; one in `from_backend` is from a backend.
fn frame_with(random: &mut Random, from_backend: usize) -> Vec<u8> {
    let v6 = random.one_in(2);
    let packet = match (v6, random.one_in(from_backend)) {
        (true, true) => return_v6(random),
        (true, false) => packet_v6(random),
        (false, true) => return_v4(random),
        (false, false) => packet_v4(random),
    };
    let destination =
        random.of(&[OWN, OWN, OWN, OWN, OWN, OWN_TOO, [0xff; 6], [2, 0, 0, 0, 0, 77]]);
    let ethertype = if random.one_in(60) {
        random.of(&[0x0806, 0x88cc, 0, 0xffff])
    } else if v6 {
        ethernet::IPV6
    } else {
        ethernet::IPV4
    };
    let mut frame = [destination, GATEWAY].concat();
    for _ in 0..random.of(&[0, 0, 0, 0, 1, 2, 2, 3]) {
        frame.extend(random.of(&[ethernet::VLAN, ethernet::QINQ]).to_be_bytes());
        frame.extend(random.bytes::<2>());
    }
    frame.extend(ethertype.to_be_bytes());
    let l3 = frame.len();
    frame.extend(packet);
    if random.one_in(4)
        && let Some((place, sum)) = unfinished::pseudo_header(&frame[..], l3, v6)
        && let Some(check) = frame.get_mut(place.check..place.check + 2)
    {
        check.copy_from_slice(&sum);
    }
    damage(random, &mut frame);
    // The kernel's test run takes no frame shorter than an Ethernet header.
    if frame.len() < 60 && random.one_in(2) {
        frame.resize(60, 0);
    }
    frame.resize(frame.len().max(ethernet::LEN), 0);
    frame
}

fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(12) {
        0 => frame.truncate(ethernet::LEN + random.below(frame.len())),
        1 => {
            for _ in 0..=random.below(3) {
                let at = random.below(frame.len().min(96));
                frame[at] ^= 1 << random.below(8);
            }
        }
        2 => {
            let at = random.below(frame.len());
            frame[at] = random.next() as u8;
        }
        _ => {}
    }
}

/// The VIP's last byte, the port and the protocol of a packet.
fn target(random: &mut Random) -> (u8, u16, u8) {
    if random.one_in(4) {
        return wide::target(random);
    }
    if random.one_in(12) {
        return (VIP_V4[3], random.of(&[22, 0, 8080]), random.of(&[number::TCP, number::UDP]));
    }
    let (port, proto, _) = random.of(&PORTS);
    (VIP_V4[3], port, proto)
}

/// A transport header from `from` to `to` with a payload.
fn transport(random: &mut Random, proto: u8, from: [u8; 2], to: [u8; 2]) -> Vec<u8> {
    let mut out = [from, to].concat();
    let payload_len = random.of(&[0, 0, 1, 64, 300, 560, 1232, 1400, 1440, 1460]);
    let mut payload = vec![0x5a; payload_len];
    if proto == number::TCP {
        // Few sequence numbers, so that some SYNs are sent again.
        out.extend([0, 0, 0, random.below(3) as u8]);
        out.extend(random.bytes::<4>());
        let flags = random.of(&[0x02, 0x02, 0x02, 0x10, 0x10, 0x18, 0x11, 0x04, 0x12, 0x06, 0xc2]);
        out.extend([random.of(&[0x50, 0x50, 0x50, 0x80, 0xf0, 0x40]), flags]);
        out.extend([0xff, 0xff, 0, 0, 0, 0]);
    } else {
        if random.one_in(2) {
            payload = quic(random);
        }
        let len = 8 + payload.len() as u16;
        let len = if random.one_in(15) { random.of(&[0, 7, 8, 9999]) } else { len };
        out.extend(len.to_be_bytes());
        out.extend([0, 0]);
    }
    out.extend(payload);
    out
}

fn quic(random: &mut Random) -> Vec<u8> {
    let id = connection_id(random.below(CLIENTS));
    let kind = random.below(4) as u8;
    let mut out = match random.below(4) {
        0 => vec![0x40 | random.next() as u8 & 0x3f],
        _ => {
            let mut out = vec![0xc0 | kind << 4];
            out.extend(random.of(&[[0, 0, 0, 1], [0x6b, 0x33, 0x43, 0xcf], [0xff, 0, 0, 0x1d]]));
            out.push(random.of(&[8, 8, 20, 4, 0]));
            out
        }
    };
    out.extend(id);
    out.extend(vec![0; random.of(&[0, 20, 1190])]);
    out
}

fn header_v4(random: &mut Random, proto: u8, len: usize, from: [u8; 4], to: [u8; 4]) -> Ipv4 {
    let mut ip = Ipv4 {
        tos: random.next() as u8,
        total_len: U16::new((ipv4::LEN + len) as u16),
        id: [0, random.below(8) as u8],
        fragment: U16::new(random.of(&[0, 0, 0x4000])),
        ttl: random.of(&[64, 64, 64, 64, 128, 255, 2, 1, 0]),
        proto,
        ..rewrite::ipv4_template(from, to)
    };
    ip.check = U16::new(!rewrite::fold(rewrite::sum(ip.as_bytes())));
    ip
}

fn packet_v4(random: &mut Random) -> Vec<u8> {
    let n = random.below(CLIENTS);
    let client = match random.below(12) {
        0 => random.of(&BAD_V4),
        1 => backend_v4(some_backend(random, false)),
        _ => client_v4(n),
    };
    let (last, port, proto) = target(random);
    let vip = if random.one_in(10) { NODE_V4 } else { wide::vip_v4(last) };
    if random.one_in(8) {
        return icmp_v4(random, n, vip, port, proto);
    }
    let proto = if random.one_in(40) { random.of(&[1, 2, 47, 58, 89, 132]) } else { proto };
    let segment = transport(random, proto, client_port(n), port.to_be_bytes());
    let mut ip = header_v4(random, proto, segment.len(), client, vip);
    if random.one_in(6) {
        ip.fragment = U16::new(random.of(&[0x2000, 0x2000, 0x2001, 0x00b9, 0x1fff]));
    }
    let mut out = ip.as_bytes().to_vec();
    if random.one_in(12) {
        // Options: no-operations.
        let words = 1 + random.below(10);
        out[0] += words as u8;
        out.extend(vec![1; 4 * words]);
        ip.total_len += words as u16 * 4;
        out[2..4].copy_from_slice(ip.total_len.as_bytes());
    }
    out.extend(segment);
    out
}

/// A packet of a backend to a client: an answer, if it is one in mode `nat`, or an ICMP error about a packet to it.
fn return_v4(random: &mut Random) -> Vec<u8> {
    let n = random.below(CLIENTS);
    let id = 1 + random.below(usize::from(BACKENDS) - 1) as u16;
    let (port, proto) = (backend_port(id), backend_proto(id));
    let client = if random.one_in(12) { NODE_V4 } else { client_v4(n) };
    if random.one_in(4) {
        let segment = transport(random, proto, client_port(n), port);
        let quoted = header_v4(random, proto, segment.len(), client, backend_v4(id));
        let mut message = vec![random.of(&[3, 3, 11, 12, 8]), 0, 0, 0, 0, 0, 5, 0];
        message.extend(quoted.as_bytes());
        message.extend(&segment[..segment.len().min(8 + random.below(20))]);
        let from = random.of(&[backend_v4(id), client_v4(201)]);
        let ip = header_v4(random, number::ICMP, message.len(), from, client);
        return [ip.as_bytes(), &message].concat();
    }
    let segment = transport(random, proto, port, client_port(n));
    let mut ip = header_v4(random, proto, segment.len(), backend_v4(id), client);
    if random.one_in(4) {
        ip.fragment = U16::new(random.of(&[0x2000, 0x2000, 0x00b9, 0x00b9]));
    }
    [ip.as_bytes(), &segment].concat()
}

/// An ICMP message to the VIP: most quote a packet that the VIP sent to the client.
fn icmp_v4(random: &mut Random, n: usize, vip: [u8; 4], port: u16, proto: u8) -> Vec<u8> {
    let quoted_from = if random.one_in(12) { NODE_V4 } else { vip };
    let segment = transport(random, proto, port.to_be_bytes(), client_port(n));
    let mut quoted = header_v4(random, proto, segment.len(), quoted_from, client_v4(n));
    if random.one_in(12) {
        quoted.fragment = U16::new(0x00b9);
    }
    let kind = random.of(&[icmp::UNREACHABLE, icmp::UNREACHABLE, icmp::TIME_EXCEEDED, 12, 8, 0, 5]);
    let mut message = vec![kind, random.below(5) as u8, 0, 0, 0, 0, 5, 0];
    message.extend(quoted.as_bytes());
    message.extend(&segment[..segment.len().min(8 + random.below(20))]);
    let ip = header_v4(random, number::ICMP, message.len(), client_v4(200), vip);
    [ip.as_bytes(), &message].concat()
}

fn header_v6(random: &mut Random, next: u8, len: usize, from: [u8; 16], to: [u8; 16]) -> Ipv6 {
    Ipv6 {
        version_class_label: [0x60 | random.next() as u8 & 0xf, random.next() as u8, 1, 2],
        payload_len: U16::new(len as u16),
        next,
        hop_limit: random.of(&[64, 64, 64, 64, 128, 255, 2, 1, 0]),
        source: from,
        destination: to,
    }
}

/// A chain of extension headers that ends in `last`; returns its first protocol number.
fn extensions(random: &mut Random, last: u8) -> (u8, Vec<u8>) {
    let mut kinds = Vec::new();
    for _ in 0..random.of(&[0, 0, 0, 1, 1, 2, 3, 6, 8]) {
        kinds.push(random.of(&[
            number::HOP_BY_HOP,
            number::ROUTING,
            number::DESTINATION,
            number::FRAGMENT,
        ]));
    }
    let mut out = Vec::new();
    for (index, &kind) in kinds.iter().enumerate() {
        let next = kinds.get(index + 1).copied().unwrap_or(last);
        if kind == number::FRAGMENT {
            let offset_more = random.of(&[0u16, 1, 1, 0x00b8, 0x00b9, 6]);
            out.extend([next, 0]);
            out.extend(offset_more.to_be_bytes());
            out.extend([0, random.below(8) as u8, 0, 0]);
        } else {
            let words = random.of(&[0, 0, 1, 5]);
            out.extend([next, words]);
            out.extend(vec![0; 6 + 8 * usize::from(words)]);
        }
    }
    (kinds.first().copied().unwrap_or(last), out)
}

fn packet_v6(random: &mut Random) -> Vec<u8> {
    let n = random.below(CLIENTS);
    let client = match random.below(12) {
        0 => random.of(&BAD_V6),
        1 => backend_v6(some_backend(random, true)),
        _ => client_v6(n),
    };
    let (last, port, proto) = target(random);
    let vip = if random.one_in(10) { client_v6(250) } else { wide::vip_v6(last) };
    let (proto, segment) = if random.one_in(8) {
        (number::ICMPV6, icmp_v6(random, n, vip, port, proto))
    } else {
        let proto = if random.one_in(40) { random.of(&[58, 59, 50, 1, 41]) } else { proto };
        (proto, transport(random, proto, client_port(n), port.to_be_bytes()))
    };
    let (next, mut payload) = extensions(random, proto);
    payload.extend(segment);
    let mut ip = header_v6(random, next, payload.len(), client, vip);
    if random.one_in(50) {
        ip.payload_len = U16::new(random.of(&[0, 0xffff, 0xfff0]));
    }
    [ip.as_bytes(), &payload].concat()
}

/// The same for IPv6.
fn return_v6(random: &mut Random) -> Vec<u8> {
    let n = random.below(CLIENTS);
    let id = 1 + random.below(usize::from(BACKENDS) - 1) as u16;
    let (port, proto) = (backend_port(id), backend_proto(id));
    let client = if random.one_in(12) { client_v6(250) } else { client_v6(n) };
    if random.one_in(4) {
        let segment = transport(random, proto, client_port(n), port);
        let (next, mut payload) = extensions(random, proto);
        payload.extend(segment);
        let quoted = header_v6(random, next, payload.len(), client, backend_v6(id));
        let mut message = vec![random.of(&[1, 2, 3, 4, 128]), 0, 0, 0, 0, 0, 5, 0];
        message.extend(quoted.as_bytes());
        message.extend(&payload[..payload.len().min(8 + random.below(120))]);
        message.truncate(1280 - ipv6::LEN);
        let from = random.of(&[backend_v6(id), client_v6(252)]);
        let ip = header_v6(random, number::ICMPV6, message.len(), from, client);
        return [ip.as_bytes(), &message].concat();
    }
    let segment = transport(random, proto, port, client_port(n));
    let (next, mut payload) = extensions(random, proto);
    payload.extend(segment);
    let ip = header_v6(random, next, payload.len(), backend_v6(id), client);
    [ip.as_bytes(), &payload].concat()
}

fn icmp_v6(random: &mut Random, n: usize, vip: [u8; 16], port: u16, proto: u8) -> Vec<u8> {
    let quoted_from = if random.one_in(12) { client_v6(251) } else { vip };
    let segment = transport(random, proto, port.to_be_bytes(), client_port(n));
    let (next, mut payload) = extensions(random, proto);
    payload.extend(segment);
    let quoted = header_v6(random, next, payload.len(), quoted_from, client_v6(n));
    let mut message = vec![random.of(&[1, 2, 2, 3, 4, 0, 5, 128, 135]), 0, 0, 0, 0, 0, 5, 0];
    message.extend(quoted.as_bytes());
    let cut = payload.len().min(8 + random.below(120));
    message.extend(&payload[..cut]);
    let max = 1280 - ipv6::LEN;
    message.truncate(max);
    message
}

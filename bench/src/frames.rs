//! The frames of the benchmark: the headers that `restore` writes, and where the flow goes in them.

use lb_common::{
    packet::{
        ethernet::Ethernet,
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
        tcp::Tcp,
        udp::Udp,
    },
    rewrite,
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    network_endian::{U16, U32},
};

/// Bytes of headers; as in the program.
pub const HEADERS: usize = 80;

/// The element of `PLAN`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Plan {
    /// The first bytes of every frame.
    pub headers: [u8; HEADERS],
    /// Bytes of the frame.
    pub frame_len: u32,
    /// Offset of the four bytes of the client's address that vary.
    pub address: u32,
    /// Offset of the client's port.
    pub port: u32,
    /// Number of flows less one.
    pub mask: u32,
    /// Runs so far.
    pub runs: u64,
    /// Bits that every client's address has.
    pub base: u32,
    /// Where `generate` sends frames.
    pub ifindex: u32,
    /// When `generate` has begun the first batch, in nanoseconds.
    pub first: u64,
    /// When it has begun the last one.
    pub last: u64,
    /// The port of the first service that `restore` sends to; the others' ports follow it.
    pub service: u32,
    /// Number of services less one; a power of two less one.
    pub services: u32,
}

/// Which packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// TCP with ACK.
    Tcp,
    /// TCP with SYN.
    Syn,
    /// UDP.
    Udp,
    /// QUIC with a short header.
    Quic,
    /// The header of a QUIC Initial packet (RFC 9000, 17.2.2), without the rest of its 1,200 bytes.
    Initial,
}

/// The VIP of IPv4 services.
pub const VIP_V4: [u8; 4] = [10, 0, 0, 100];
/// The VIP of IPv6 services.
pub const VIP_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x64];
/// The MAC address of the balancer.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The client of flow `flow`, as the programs make it: the varying part of its address, and its port.
pub fn client(base: u32, flow: u32) -> ([u8; 4], [u8; 2]) {
    ((base | flow >> 8).to_be_bytes(), (0x0400 | (flow & 0xff) as u16).to_be_bytes())
}

/// Frames to `port` of the VIP, of `flows` flows.
pub fn plan(v6: bool, shape: Shape, port: u16, flows: u32) -> Plan {
    let mut frame = Vec::new();
    let kind = U16::new(if v6 { 0x86dd } else { 0x0800 });
    frame.extend(Ethernet { destination: OWN, source: [2, 0, 0, 0, 0, 9], kind }.as_bytes());
    let (transport, proto) = transport(shape, port);
    // A small packet, as small as Ethernet's minimum where that is more than the headers.
    let payload = transport.len();
    let (address, port_at) = if v6 {
        let ip = Ipv6 {
            version_class_label: [0x60, 0, 0, 0],
            payload_len: U16::new(payload as u16),
            next: proto,
            hop_limit: 64,
            source: VIP_V6,
            destination: VIP_V6,
        };
        frame.extend(ip.as_bytes());
        (14 + 8 + 12, 14 + ipv6::LEN)
    } else {
        let mut ip = Ipv4 {
            total_len: U16::new((ipv4::LEN + payload) as u16),
            proto,
            ..rewrite::ipv4_template([0; 4], VIP_V4)
        };
        ip.check = U16::new(!rewrite::fold(rewrite::sum(ip.as_bytes())));
        frame.extend(ip.as_bytes());
        (14 + 12, 14 + ipv4::LEN)
    };
    frame.extend(transport);
    let frame_len = frame.len().max(HEADERS) as u32;
    frame.resize(HEADERS, 0);
    let headers = frame.try_into().expect("the headers were just sized");
    let address = address as u32;
    let mask = flows.wrapping_sub(1);
    let (runs, base, ifindex, first, last, services) = Default::default();
    let (port, service) = (port_at as u32, port.into());
    Plan {
        headers,
        frame_len,
        address,
        port,
        mask,
        runs,
        base,
        ifindex,
        first,
        last,
        service,
        services,
    }
}

/// Answers over TCP and IPv4 from this address and port, to the clients of `flows` flows.
pub fn answers(source: [u8; 4], port: u16, flows: u32) -> Plan {
    let mut plan = plan(false, Shape::Tcp, 0, flows);
    let mut ip = Ipv4 {
        total_len: U16::new((ipv4::LEN + size_of::<Tcp>()) as u16),
        proto: number::TCP,
        ..rewrite::ipv4_template(source, [0; 4])
    };
    ip.check = U16::new(!rewrite::fold(rewrite::sum(ip.as_bytes())));
    let transport = 14 + ipv4::LEN;
    plan.headers[14..transport].copy_from_slice(ip.as_bytes());
    plan.headers[transport..][..2].copy_from_slice(&port.to_be_bytes());
    (plan.address, plan.port) = (14 + 16, transport as u32 + 2);
    plan
}

fn transport(shape: Shape, port: u16) -> (Vec<u8>, u8) {
    let destination = U16::new(port);
    if matches!(shape, Shape::Tcp | Shape::Syn) {
        let tcp = Tcp {
            source: [0; 2],
            destination,
            sequence: [0, 0, 0, 1],
            acknowledgment: [0; 4],
            data_offset: 0x50,
            flags: if shape == Shape::Syn { 2 } else { 16 },
            window: U16::MAX_VALUE,
            check: U16::ZERO,
            urgent: U16::ZERO,
        };
        return (tcp.as_bytes().to_vec(), number::TCP);
    }
    let mut payload = vec![0x11; 18];
    if shape == Shape::Quic {
        payload[0] = 0x40;
        payload[1..9].copy_from_slice(U32::new(7).as_bytes().repeat(2).as_slice());
    }
    if shape == Shape::Initial {
        payload[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
    }
    let len = U16::new((8 + payload.len()) as u16);
    let udp = Udp { source: [0; 2], destination, len, check: U16::ZERO };
    ([udp.as_bytes(), &payload].concat(), number::UDP)
}

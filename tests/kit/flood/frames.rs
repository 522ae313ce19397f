//! The frames of a flood: each is a pure function of its number.
//!
//! All sources are of 198.18.0.0/15, which is reserved (RFC 2544, C.2.2), so that a flood's entries
//! in a table differ from the flows of clients.

use std::net::Ipv4Addr;

/// MAC address of the attacker.
pub(super) const ATTACKER: [u8; 6] = [2, 0, 0, 0, 0x66, 0x66];
/// Where all floods come from, and the bits of it that vary.
const SOURCES: (u32, u32) = (0xc612_0000, 0x0001_ffff);
/// The ports that clients of the lab use: Linux's own range.
const EPHEMERAL: (u64, u64) = (32_768, 28_232);

/// The kinds of frames of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SYNs, each of another tuple.
    SynNew,
    /// One SYN again and again: one slot.
    SynSame,
    /// A SYN and an ACK of each tuple, as if the handshake had been answered.
    Handshakes,
    /// Datagrams to the UDP service, each of another tuple.
    Udp,
    /// First fragments of ever new packets, and later fragments of packets that never began.
    Fragments,
    /// ICMP errors that quote packets to the client's ports, and to strangers.
    IcmpErrors,
    /// Headers that contradict themselves, are cut off, or make no sense.
    Malformed,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::SynNew,
        Self::SynSame,
        Self::Handshakes,
        Self::Udp,
        Self::Fragments,
        Self::IcmpErrors,
        Self::Malformed,
    ];

    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynNew => "syn-new",
            Self::SynSame => "syn-same",
            Self::Handshakes => "handshakes",
            Self::Udp => "udp",
            Self::Fragments => "fragments",
            Self::IcmpErrors => "icmp-errors",
            Self::Malformed => "malformed",
        }
    }
}

/// Whom a flood is for.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    /// MAC address of the balancer.
    pub mac: [u8; 6],
    /// The VIP of the services.
    pub vip: Ipv4Addr,
    /// Port of the TCP service.
    pub tcp: u16,
    /// Port of the UDP service.
    pub udp: u16,
    /// A client, whose flows ICMP errors are about.
    pub client: Ipv4Addr,
}

/// The frame with this number, Ethernet header included.
#[must_use]
pub fn frame(kind: Kind, aim: &Aim, number: u64) -> Vec<u8> {
    let from = stranger(number);
    match kind {
        Kind::SynNew => aim.frame(from.0, TCP, &aim.tcp(from, SYN, number as u32)),
        Kind::SynSame => aim.frame(stranger(0).0, TCP, &aim.tcp(stranger(0), SYN, 0)),
        Kind::Handshakes => {
            let from = stranger(number / 2);
            let flags = if number.is_multiple_of(2) { SYN } else { ACK };
            tcp_frame(aim, from, flags, (number / 2) as u32)
        }
        Kind::Udp => aim.frame(from.0, UDP, &aim.udp(from, &[0x55; 18])),
        Kind::Fragments => {
            let first = number.is_multiple_of(2);
            let (offset, more) = if first { (0, true) } else { (185, false) };
            let payload = aim.udp(from, &[0x55; 24]);
            let mut packet = ipv4(from.0, aim.vip, UDP, &payload);
            // Half of them have no ports.
            packet[4..6].copy_from_slice(&((mix(number) >> 48) as u16).to_be_bytes());
            packet[6..8].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
            aim.ethernet(checked(packet))
        }
        Kind::IcmpErrors => {
            let (client, port) = if number.is_multiple_of(2) {
                (aim.client, (EPHEMERAL.0 + mix(number) % EPHEMERAL.1) as u16)
            } else {
                stranger(number + 1)
            };
            // Destination unreachable: fragmentation needed, or port unreachable (RFC 792).
            let code = if number % 4 < 2 { 4 } else { 3 };
            let mut message = vec![3, code, 0, 0, 0, 0, 2, 0x40];
            let quoted = segment((aim.vip, aim.tcp), (client, port), ACK, number as u32);
            message.extend(&ipv4(aim.vip, client, TCP, &quoted)[..28]);
            let check = !fold(sum(&message));
            message[2..4].copy_from_slice(&check.to_be_bytes());
            aim.frame(from.0, ICMP, &message)
        }
        Kind::Malformed => aim.malformed(number),
    }
}

/// A SYN or another segment of a client to the TCP service.
#[must_use]
pub fn tcp_frame(aim: &Aim, from: (Ipv4Addr, u16), flags: u8, sequence: u32) -> Vec<u8> {
    aim.frame(from.0, TCP, &aim.tcp(from, flags, sequence))
}

/// A datagram of a client to the UDP service.
#[must_use]
pub fn udp_frame(aim: &Aim, from: (Ipv4Addr, u16)) -> Vec<u8> {
    aim.frame(from.0, UDP, &aim.udp(from, &[0x55; 18]))
}

/// The address and port that a frame's number stands for.
#[must_use]
pub fn stranger(number: u64) -> (Ipv4Addr, u16) {
    let mixed = mix(number);
    let address = SOURCES.0 | mixed as u32 & SOURCES.1;
    let port = 1_024 + (mixed >> 32) % (65_536 - 1_024);
    (address.into(), port as u16)
}

/// Flag of TCP: opens a connection.
pub const SYN: u8 = 2;
/// Flag of TCP: there is no more.
pub const FIN: u8 = 1;
/// Flag of TCP: acknowledges.
pub const ACK: u8 = 16;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

impl Aim {
    fn ethernet(&self, packet: Vec<u8>) -> Vec<u8> {
        let head = [&self.mac[..], &ATTACKER, &[8, 0]].concat();
        [head, packet].concat()
    }

    fn frame(&self, from: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.ethernet(ipv4(from, self.vip, protocol, payload))
    }

    fn tcp(&self, from: (Ipv4Addr, u16), flags: u8, sequence: u32) -> Vec<u8> {
        segment(from, (self.vip, self.tcp), flags, sequence)
    }

    fn udp(&self, from: (Ipv4Addr, u16), data: &[u8]) -> Vec<u8> {
        let length = 8 + data.len() as u16;
        let ports = [from.1.to_be_bytes(), self.udp.to_be_bytes()].concat();
        // No checksum (RFC 768): fragments have one of the whole.
        [&ports, &length.to_be_bytes()[..], &[0, 0], data].concat()
    }

    fn malformed(&self, number: u64) -> Vec<u8> {
        let from = stranger(number);
        let mut packet = ipv4(from.0, self.vip, TCP, &self.tcp(from, SYN, 0));
        match number % 8 {
            // A header shorter than one can be.
            0 => packet[0] = 0x44,
            // Another version.
            1 => packet[0] = 0x65,
            // Longer than the frame, and shorter than the header.
            2 => packet[2..4].copy_from_slice(&1_500_u16.to_be_bytes()),
            3 => packet[2..4].copy_from_slice(&12_u16.to_be_bytes()),
            // Cut off in the TCP header, and in the IP header.
            4 => packet.truncate(20 + 6),
            5 => packet.truncate(11),
            // SYN and FIN and RST, and a data offset beyond the end.
            6 => packet[20 + 12..20 + 14].copy_from_slice(&[0xf0, 7]),
            // An unassigned protocol.
            _ => packet[9] = 253,
        }
        let packet = if packet.len() >= 20 { checked(packet) } else { packet };
        self.ethernet(packet)
    }
}

fn segment(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8, sequence: u32) -> Vec<u8> {
    let ports = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    let mut segment = [&ports[..], &sequence.to_be_bytes(), &[0; 4]].concat();
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, TCP, 0, 20]].concat();
    let check = !fold(sum(&pseudo) + sum(&segment));
    segment[16..18].copy_from_slice(&check.to_be_bytes());
    segment
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = 20 + payload.len() as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend(payload);
    checked(packet)
}

/// The packet with the checksum of its first twenty bytes.
fn checked(mut packet: Vec<u8>) -> Vec<u8> {
    packet[10..12].fill(0);
    let check = !fold(sum(&packet[..20]));
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet
}

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| [pair[0], pair.get(1).copied().unwrap_or_default()]);
    words.map(|word| u32::from(u16::from_be_bytes(word))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The finalizer of SplitMix64: numbers in a row become numbers without a pattern.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use etherparse::{PacketHeaders, TransportHeader};

    use super::*;

    const AIM: Aim = Aim {
        mac: [2, 0, 0, 0, 0, 5],
        vip: Ipv4Addr::new(10, 0, 0, 100),
        tcp: 80,
        udp: 53,
        client: Ipv4Addr::new(10, 0, 0, 2),
    };

    #[test]
    fn syns_are_whole_and_each_is_of_another_tuple() {
        let mut tuples = HashSet::new();
        for number in 0..10_000 {
            let frame = frame(Kind::SynNew, &AIM, number);
            let headers = PacketHeaders::from_ethernet_slice(&frame).expect("it parses");
            let Some(etherparse::NetHeaders::Ipv4(ip, _)) = headers.net else { panic!("IPv4") };
            let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("TCP") };
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let check = tcp.calc_checksum_ipv4(&ip, &[]).expect("it is short");
            assert_eq!((tcp.checksum, tcp.destination_port, tcp.syn), (check, 80, true));
            tuples.insert((ip.source, tcp.source_port));
            assert!(matches!(ip.source, [198, 18..=19, ..]), "{:?}", ip.source);
        }
        assert!(tuples.len() > 9_990, "{} tuples", tuples.len());
    }

    #[test]
    fn the_same_syn_is_the_same() {
        assert_eq!(frame(Kind::SynSame, &AIM, 1), frame(Kind::SynSame, &AIM, 2));
    }

    #[test]
    fn each_handshake_is_a_syn_and_an_ack_of_one_tuple() {
        for pair in 0..100 {
            let [syn, ack] = [0, 1].map(|half| frame(Kind::Handshakes, &AIM, 2 * pair + half));
            let ports = 14 + 20..14 + 20 + 4;
            let tuple = |frame: &[u8]| [&frame[26..34], &frame[ports.clone()]].concat();
            assert_eq!(tuple(&syn), tuple(&ack));
            let flags = 14 + 20 + 13;
            assert_eq!((syn[flags], ack[flags]), (SYN, ACK));
        }
    }

    #[test]
    fn errors_quote_what_the_vip_has_sent() {
        for number in 0..100 {
            let frame = frame(Kind::IcmpErrors, &AIM, number);
            let quoted = &frame[14 + 20 + 8..];
            assert_eq!(quoted.len(), 28);
            assert_eq!(quoted[12..16], AIM.vip.octets());
            assert_eq!(quoted[20..22], AIM.tcp.to_be_bytes());
            assert_eq!(quoted[16..20] == AIM.client.octets(), number % 2 == 0);
            assert_eq!(fold(sum(&frame[14 + 20..])), 0xffff, "the checksum");
        }
    }

    #[test]
    fn later_fragments_follow_no_first_one() {
        let key = |number| {
            let frame = frame(Kind::Fragments, &AIM, number);
            [&frame[18..20], &frame[26..30]].concat()
        };
        let first: HashSet<_> = (0..50_000).step_by(2).map(key).collect();
        let met = (1..50_000).step_by(2).filter(|&number| first.contains(&key(number))).count();
        assert!(met < 5, "{met} of 25,000 by chance");
    }

    #[test]
    fn half_of_the_fragments_are_the_first() {
        let offset = |number| {
            let frame = frame(Kind::Fragments, &AIM, number);
            u16::from_be_bytes([frame[20], frame[21]])
        };
        assert_eq!((offset(0), offset(1)), (0x2000, 185));
    }

    #[test]
    fn no_frame_is_longer_than_a_cable_takes() {
        for kind in Kind::ALL {
            for number in 0..64 {
                let length = frame(kind, &AIM, number).len();
                assert!((14..=1_514).contains(&length), "{kind:?} {number}: {length}");
            }
        }
    }
}

//! Frames are read as etherparse reads them, and whatever else arrives is left alone.

use etherparse::{
    EtherType, IpFragOffset, IpHeaders, Ipv6FragmentHeader, Ipv6RawExtHeader, LaxNetSlice,
    LaxSlicedPacket, TransportSlice,
};
use lb_common::{
    abi::mapped,
    packet::{
        ethernet,
        ipv6::{Fragmentation, MAX_EXTENSIONS, Transport, transport, transport_word},
        number,
    },
    verdict::{Pass, Verdict},
};
use proptest::prelude::*;

use crate::{
    frames::{ACK, Client, FAMILIES, Family, SYN, packet, segment},
    model::{DNS, GATEWAY, Model, OWN, VIP_V4, VIP_V6, WEB},
};

/// Puts `tags` and the EtherType before a packet.
fn frame(tags: &[(u16, u16)], ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut out = [OWN, GATEWAY].concat();
    for (kind, tci) in tags {
        out.extend(kind.to_be_bytes());
        out.extend(tci.to_be_bytes());
    }
    out.extend(ethertype.to_be_bytes());
    out.extend(packet);
    out
}

fn ethertype(family: Family) -> u16 {
    match family {
        Family::V4 => EtherType::IPV4.0,
        Family::V6 => EtherType::IPV6.0,
    }
}

/// A client's packet with whatever may stand between addresses and ports.
#[derive(Clone, Debug)]
struct Shape {
    family: Family,
    client: u32,
    port: u16,
    udp: bool,
    tags: Vec<(u16, u16)>,
    options: usize,
    hop_by_hop: Option<usize>,
    destination: Option<usize>,
    fragment: Option<(u32, bool)>,
    payload: usize,
}

prop_compose! {
    fn shapes()(
        v6: bool, client: u32, port: u16, udp: bool,
        tags in prop::collection::vec(
            (prop_oneof![Just(ethernet::VLAN), Just(ethernet::QINQ)], any::<u16>()), 0..=2,
        ),
        options in 0..=10_usize,
        hop_by_hop in prop::option::of(0..8_usize),
        destination in prop::option::of(0..8_usize),
        fragment in prop::option::of((any::<u32>(), any::<bool>())),
        payload in 0..100_usize,
    ) -> Shape {
        let family = if v6 { Family::V6 } else { Family::V4 };
        Shape {
            family, client, port, udp, tags, options, hop_by_hop, destination, fragment, payload,
        }
    }
}

fn extension(words: usize) -> Ipv6RawExtHeader {
    let payload = vec![1; 6 + 8 * words];
    Ipv6RawExtHeader::new_raw(number::TCP.into(), &payload).expect("a length that fits")
}

impl Shape {
    fn client(&self) -> Client {
        Client { port: self.port, ..Client::new(self.client) }
    }

    fn build(&self) -> Vec<u8> {
        let client = self.client();
        let mut headers = client.ip(self.family, 64);
        match &mut headers {
            IpHeaders::Ipv4(ip, _) => {
                let options = vec![1; 4 * self.options];
                ip.options = options[..].try_into().expect("up to 40 bytes");
                if let Some((id, more)) = self.fragment {
                    ip.identification = id as u16;
                    ip.dont_fragment = false;
                    ip.more_fragments = more;
                }
            }
            IpHeaders::Ipv6(_, extensions) => {
                extensions.hop_by_hop_options = self.hop_by_hop.map(extension);
                extensions.destination_options = self.destination.map(extension);
                extensions.fragment =
                    self.fragment.map(|(identification, more_fragments)| Ipv6FragmentHeader {
                        next_header: number::TCP.into(),
                        fragment_offset: IpFragOffset::ZERO,
                        more_fragments,
                        identification,
                    });
            }
        }
        let (proto, mut bytes) = if self.udp {
            let len = 8 + self.payload as u16;
            (number::UDP, [client.port, DNS, len, 0].map(u16::to_be_bytes).concat())
        } else {
            (number::TCP, segment(client.port, WEB, ACK))
        };
        bytes.extend(vec![0x5a; self.payload]);
        frame(&self.tags, ethertype(self.family), &packet(headers, proto, &bytes))
    }
}

proptest! {
    #[test]
    fn frames_are_read_as_etherparse_reads_them(shape in shapes()) {
        let bytes = shape.build();
        let theirs = LaxSlicedPacket::from_ethernet(&bytes).expect("an Ethernet header");
        let l3 = 14 + 4 * theirs.link_exts.len();
        prop_assert_eq!(theirs.link_exts.len(), shape.tags.len());

        let link = ethernet::parse(&bytes[..]).expect("at most two tags");
        prop_assert_eq!(link.l3, l3);
        prop_assert_eq!(link.ethertype, ethertype(shape.family));
        prop_assert_eq!(link.destination, OWN);

        // A frame that is a fragment has no transport for etherparse: it is only compared whole.
        let more = shape.fragment.is_some_and(|(_, more)| more);
        let ports = match &theirs.transport {
            Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
            Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
            _ => None,
        };
        prop_assert_eq!(ports.is_none(), more, "{:?}", theirs.stop_err);
        if let Some((source, destination)) = ports {
            prop_assert_eq!(source, shape.port);
            prop_assert_eq!(destination, if shape.udp { DNS } else { WEB });
        }
        let payload = match theirs.net.as_ref().expect("a network header") {
            LaxNetSlice::Ipv4(ip) => ip.payload(),
            LaxNetSlice::Ipv6(ip) => ip.payload(),
            other => panic!("{other:?}"),
        };
        let offset = payload.payload.as_ptr() as usize - bytes.as_ptr() as usize;

        if shape.family == Family::V6 {
            let next = bytes[l3 + 6];
            let ours = transport(&bytes[..], next, l3 + 40).expect("a short chain");
            prop_assert_eq!((ours.offset, ours.proto), (offset, payload.ip_number.0));
            let expected = match shape.fragment {
                Some((id, true)) => Fragmentation::First(id.to_be_bytes()),
                _ => Fragmentation::Whole,
            };
            prop_assert_eq!(ours.fragmentation, expected);
            let word = Transport::from_word(transport_word(&bytes[..], next, l3 + 40));
            let word = word.expect("the same as a word");
            prop_assert_eq!((word.offset, word.proto), (ours.offset, ours.proto));
        }

        // The decision read the same ports and addresses, as it found the service; and the flow's
        // key, as the packet went where a plain one of this flow goes.
        let model = Model::new(61);
        let id = shape.family.service(if shape.udp { 2 } else { 1 });
        for (index, slot) in model.rings[&id].iter().enumerate() {
            let current = 1 + index as u16 % 8;
            slot.set_owners(lb_common::abi::Owners { current, base: 0 });
        }
        let plain = if shape.udp {
            shape.client().udp(shape.family, DNS, b"")
        } else {
            shape.client().tcp(shape.family, WEB, ACK)
        };
        let (to, plain) = (model.forwarded(&bytes), model.forwarded(&plain));
        prop_assert_eq!((to.id, to.entropy), (plain.id, plain.entropy));
        prop_assert_eq!((to.l3, to.v6), (l3, shape.family == Family::V6));
        prop_assert_eq!(usize::from(to.len), bytes.len() - l3);

        let noted: Vec<_> = model.fragments.borrow().keys().copied().collect();
        prop_assert_eq!(noted.len(), usize::from(more));
        for key in noted {
            let (id, _) = shape.fragment.expect("it is one");
            let (id, vip) = match shape.family {
                Family::V4 => ([(id >> 8) as u8, id as u8, 0, 0], mapped(VIP_V4)),
                Family::V6 => (id.to_be_bytes(), VIP_V6),
            };
            prop_assert_eq!(key.id, id);
            prop_assert_eq!(key.source, shape.client().key_address(shape.family));
            prop_assert_eq!(key.destination, vip);
        }
    }

    #[test]
    fn a_cut_frame_passes_at_every_length(shape in shapes()) {
        let bytes = shape.build();
        let model = Model::new(3);
        model.forwarded(&bytes);
        for len in 0..bytes.len() {
            let verdict = model.decide(&bytes[..len]);
            prop_assert!(matches!(verdict, Verdict::Pass(_)), "{} bytes: {:?}", len, verdict);
        }
    }

    #[test]
    fn a_packet_shorter_than_its_headers_passes(shape in shapes()) {
        // Its length field is cut, while the frame holds every byte.
        let whole = shape.build();
        let l3 = 14 + 4 * shape.tags.len();
        let model = Model::new(3);
        let transport_len = shape.payload + if shape.udp { 8 } else { 20 };
        let needed = whole.len() - l3 - shape.payload;
        let (at, less) = if shape.family == Family::V4 { (l3 + 2, 0) } else { (l3 + 4, 40) };
        prop_assert!(transport_len < whole.len() - l3);
        for len in less..needed {
            let mut bytes = whole.clone();
            bytes[at..at + 2].copy_from_slice(&((len - less) as u16).to_be_bytes());
            let verdict = model.decide(&bytes);
            prop_assert!(matches!(verdict, Verdict::Pass(_)), "{} bytes: {:?}", len, verdict);
        }
    }

    #[test]
    fn random_bytes_are_never_forwarded(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300), own: bool, kind in 0..4_usize,
    ) {
        if let (true, Some(mac)) = (own, bytes.get_mut(..6)) {
            mac.copy_from_slice(&OWN);
        }
        if let Some(field) = bytes.get_mut(12..15) {
            match kind {
                0 => field.copy_from_slice(&[8, 0, 0x45]),
                1 => field.copy_from_slice(&[0x86, 0xdd, 0x60]),
                2 => field[..2].copy_from_slice(&[0x81, 0]),
                _ => {}
            }
        }
        // No VIP is hit by chance: 32 bits of address and 24 of port and protocol.
        let verdict = Model::new(3).decide(&bytes);
        prop_assert!(matches!(verdict, Verdict::Pass(_)), "{:?}", verdict);
    }

    #[test]
    fn a_damaged_frame_is_forwarded_only_if_it_is_for_a_service(
        shape in shapes(), damage in prop::collection::vec((0..100_usize, any::<u8>()), 1..6),
    ) {
        let mut bytes = shape.build();
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let model = Model::new(3);
        if let Verdict::Forward(to) = model.decide(&bytes) {
            prop_assert_eq!(&bytes[..6], &OWN);
            let address = if to.v6 {
                bytes[to.l3 + 24..to.l3 + 40] == VIP_V6
            } else {
                bytes[to.l3 + 16..to.l3 + 20] == VIP_V4
            };
            prop_assert!(address, "not for the VIP");
            prop_assert!(to.l3 + usize::from(to.len) <= bytes.len());
            prop_assert!((1..=8).contains(&to.id));
        }
    }

    #[test]
    fn any_chain_of_headers_comes_to_an_end(
        bytes in prop::collection::vec(prop_oneof![
            Just(number::HOP_BY_HOP), Just(number::ROUTING), Just(number::DESTINATION),
            Just(number::FRAGMENT), Just(0), any::<u8>(),
        ], 0..400),
        next: u8, offset in 0..100_usize,
    ) {
        if let Ok(found) = transport(&bytes[..], next, offset) {
            prop_assert!(found.offset >= offset);
            prop_assert!(found.offset <= lb_common::packet::MAX_OFFSET);
        }
    }
}

#[test]
fn three_tags_are_too_many() {
    for family in FAMILIES {
        let packet = Client::new(1).tcp(family, WEB, SYN).split_off(14);
        let model = Model::new(1);
        for depth in 0..=5 {
            let tags = vec![(ethernet::VLAN, 5); depth];
            let verdict = model.decide(&frame(&tags, ethertype(family), &packet));
            if depth <= 2 {
                assert!(matches!(verdict, Verdict::Forward(to) if to.l3 == 14 + 4 * depth));
            } else {
                assert_eq!(verdict, Verdict::Pass(Pass::VlanDepth), "{family:?}, {depth} tags");
            }
        }
    }
}

#[test]
fn a_chain_of_headers_is_followed_so_far_and_no_further() {
    let client = Client::new(1);
    for count in 0..=40 {
        let mut payload = segment(client.port, WEB, SYN);
        let mut next = number::TCP;
        for _ in 0..count {
            payload = [&[next, 0, 1, 4, 0, 0, 0, 0], &payload[..]].concat();
            next = number::DESTINATION;
        }
        let packet = packet(client.ip(Family::V6, 64), next, &payload);
        let verdict = Model::new(1).decide(&frame(&[], ethernet::IPV6, &packet));
        if count <= MAX_EXTENSIONS {
            assert!(matches!(verdict, Verdict::Forward(_)), "{count}: {verdict:?}");
        } else {
            assert_eq!(verdict, Verdict::Pass(Pass::ExtensionHeaders), "{count}");
        }
    }
}

#[test]
fn headers_that_lead_far_away_are_not_followed() {
    let client = Client::new(1);
    // The longest extension headers there are: 2,048 bytes each.
    let mut payload = segment(client.port, WEB, SYN);
    let mut next = number::TCP;
    for _ in 0..4 {
        payload = [&[next, 255][..], &[0; 2046], &payload[..]].concat();
        next = number::DESTINATION;
    }
    let packet = packet(client.ip(Family::V6, 64), next, &payload);
    let verdict = Model::new(1).decide(&frame(&[], ethernet::IPV6, &packet));
    assert_eq!(verdict, Verdict::Pass(Pass::ExtensionHeaders));
}

#[test]
fn headers_that_contradict_themselves_pass() {
    let tcp = |family| Client::new(1).tcp(family, WEB, SYN);
    let udp = |family| Client::new(1).udp(family, DNS, b"x");
    type Change = fn(&mut Vec<u8>);
    let cases: [(&str, Vec<u8>, Change); 9] = [
        ("version 6 in IPv4", tcp(Family::V4), |f| f[14] = 0x65),
        ("a header of 16 bytes", tcp(Family::V4), |f| f[14] = 0x44),
        ("a total length below the header's", tcp(Family::V4), |f| {
            f[16..18].copy_from_slice(&[0, 19])
        }),
        ("version 4 in IPv6", tcp(Family::V6), |f| f[14] = 0x40),
        ("a payload that can't be", tcp(Family::V6), |f| f[18..20].copy_from_slice(&[0xff, 0xff])),
        ("a TCP header of 16 bytes", tcp(Family::V4), |f| f[14 + 20 + 12] = 0x40),
        ("a TCP header of 16 bytes", tcp(Family::V6), |f| f[14 + 40 + 12] = 0x40),
        ("UDP of length 0", udp(Family::V4), |f| f[38..40].copy_from_slice(&[0, 0])),
        ("UDP of length 7", udp(Family::V6), |f| f[58..60].copy_from_slice(&[0, 7])),
    ];
    for (what, mut bytes, change) in cases {
        let model = Model::new(1);
        model.forwarded(&bytes);
        change(&mut bytes);
        assert_eq!(model.decide(&bytes), Verdict::Pass(Pass::Malformed), "{what}");
    }
}

#[test]
fn other_ethertypes_pass() {
    let packet = Client::new(1).tcp(Family::V4, WEB, SYN).split_off(14);
    for kind in [0, 0x0806, 0x8035, 0x88cc, 0x8847, 0x9100, 0xffff] {
        let verdict = Model::new(1).decide(&frame(&[], kind, &packet));
        assert_eq!(verdict, Verdict::Pass(Pass::NotIp), "{kind:#06x}");
    }
}

#[test]
fn other_protocols_pass() {
    for family in FAMILIES {
        for proto in 0..=255 {
            let known = match family {
                Family::V4 => matches!(proto, number::TCP | number::UDP | number::ICMP),
                Family::V6 => matches!(
                    proto,
                    number::TCP
                        | number::UDP
                        | number::ICMPV6
                        | number::FRAGMENT
                        | number::HOP_BY_HOP
                        | number::ROUTING
                        | number::DESTINATION
                ),
            };
            if !known {
                let packet = packet(Client::new(1).ip(family, 64), proto, &segment(1, WEB, SYN));
                let verdict = Model::new(1).decide(&frame(&[], ethertype(family), &packet));
                assert_eq!(verdict, Verdict::Pass(Pass::Protocol), "{family:?} {proto}");
            }
        }
    }
}

//! What the balancer wraps, the other end unwraps, and nothing else.

use lb_common::{
    abi::{VipKey, mapped},
    decap::{Reason, Source, Tables, Unwrap, Verdict, decide, mark_v4, mark_v6},
    packet::{ipv4::Ipv4, ipv6::Ipv6, number},
    rewrite::{outer_v4, outer_v6},
};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    frames::{Client, FAMILIES, Family, ethernet, packet, segment},
    model::{VIP_V4, VIP_V6},
    rewrite::tunnel,
};

const HOST_V4: [u8; 4] = [192, 0, 2, 11];
const HOST_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];

/// A host with both addresses that unwraps packets for both VIPs.
struct Host;

impl Tables for Host {
    fn is_address(&self, key: &VipKey) -> bool {
        key.address == mapped(HOST_V4) || key.address == HOST_V6
    }

    fn is_source(&self, key: &VipKey) -> bool {
        // What `wrap` has, and nothing else.
        let v4 = Source::new(u128::from_be_bytes(mapped([172, 16, 0, 0])), 96 + 16);
        let v6 = Source::new(u128::from_be_bytes([1; 16]), 96);
        v4.contains(key) || v6.contains(key)
    }

    fn is_vip(&self, key: &VipKey) -> bool {
        key.address == mapped(VIP_V4) || key.address == VIP_V6
    }
}

/// A client's packet to the VIP with this traffic class.
fn inner(family: Family, client: u32, class: u8, payload: &[u8]) -> Vec<u8> {
    let mut headers = Client::new(client).ip(family, 63);
    match &mut headers {
        etherparse::IpHeaders::Ipv4(ip, _) => {
            ip.dscp = etherparse::IpDscp::try_new(class >> 2).expect("6 bits");
            ip.ecn = etherparse::IpEcn::try_new(class & 3).expect("2 bits");
        }
        etherparse::IpHeaders::Ipv6(ip, _) => ip.traffic_class = class,
    }
    let mut bytes = segment(40_000, 80, 0x10);
    bytes.extend(payload);
    packet(headers, number::TCP, &bytes)
}

/// What the balancer sends for a client's packet; `outer` is the family of the tunnel.
fn wrap(outer: Family, family: Family, packet: &[u8], to: ([u8; 4], [u8; 16])) -> Vec<u8> {
    let backend = tunnel(0xac10_0000, [1; 16], 0xffff, to.0, to.1);
    let (class, next) = match family {
        Family::V4 => (packet[1], number::IPV4),
        Family::V6 => (packet[0] << 4 | packet[1] >> 4, number::IPV6),
    };
    let len = packet.len() as u16;
    let (ethertype, header) = match outer {
        Family::V4 => (0x0800_u16, outer_v4(&backend, class, len, 0x1234_5678).as_bytes().to_vec()),
        Family::V6 => {
            (0x86dd, outer_v6(&backend, class, len, next, 0x1234_5678).as_bytes().to_vec())
        }
    };
    let mut frame = [[2; 6], [3; 6]].concat();
    frame.extend(ethertype.to_be_bytes());
    [frame, header, packet.to_vec()].concat()
}

/// What the decapsulator leaves of a frame's packet.
fn unwrap(frame: &[u8], how: &Unwrap) -> Vec<u8> {
    let mut out = frame[how.l3 + how.outer_len..].to_vec();
    if how.congestion && how.v6 {
        let ip = mark_v6(Ipv6::read_from_prefix(&out).expect("a header").0);
        out[..40].copy_from_slice(ip.as_bytes());
    } else if how.congestion {
        let ip = mark_v4(Ipv4::read_from_prefix(&out).expect("a header").0);
        out[..20].copy_from_slice(ip.as_bytes());
    }
    out
}

/// The tunnels that the balancer makes: outer family, inner family.
const TUNNELS: [(Family, Family); 3] =
    [(Family::V4, Family::V4), (Family::V6, Family::V6), (Family::V6, Family::V4)];

/// Sets the ECN field of the outer header as a congested router would.
fn congest(outer: Family, frame: &mut [u8]) {
    match outer {
        Family::V4 => {
            let ip = mark_v4(Ipv4::read_from_prefix(&frame[14..]).expect("a header").0);
            frame[14..34].copy_from_slice(ip.as_bytes());
        }
        Family::V6 => frame[15] |= 0x30,
    }
}

proptest! {
    #[test]
    fn what_is_wrapped_is_unwrapped_unchanged(
        which in 0..3_usize, client: u32, class: u8,
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (outer, family) = TUNNELS[which];
        let packet = inner(family, client, class, &payload);
        let frame = wrap(outer, family, &packet, (HOST_V4, HOST_V6));
        let Verdict::Unwrap(how) = decide(&frame[..], &Host) else { panic!("not unwrapped") };
        prop_assert_eq!(how.v6, family == Family::V6);
        prop_assert!(!how.congestion, "the outer header's ECN is the inner one's");
        prop_assert_eq!(unwrap(&frame, &how), packet);
    }

    #[test]
    fn congestion_on_the_way_reaches_the_inner_packet(which in 0..3_usize, client: u32, class: u8) {
        let (outer, family) = TUNNELS[which];
        let packet = inner(family, client, class, &[1; 8]);
        let mut frame = wrap(outer, family, &packet, (HOST_V4, HOST_V6));
        congest(outer, &mut frame);
        match decide(&frame[..], &Host) {
            // RFC 6040, 4.2: not ECN-capable inside, CE outside.
            Verdict::Drop(Reason::Congestion) => prop_assert_eq!(class & 3, 0),
            Verdict::Unwrap(how) => {
                prop_assert_ne!(class & 3, 0);
                prop_assert_eq!(unwrap(&frame, &how), inner(family, client, class | 3, &[1; 8]));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn foreign_destinations_are_left_alone(
        which in 0..3_usize, to_v4: [u8; 4], to_v6: [u8; 16],
    ) {
        prop_assume!(to_v4 != HOST_V4 && to_v6 != HOST_V6);
        let (outer, family) = TUNNELS[which];
        let frame = wrap(outer, family, &inner(family, 1, 0, &[]), (to_v4, to_v6));
        prop_assert_eq!(decide(&frame[..], &Host), Verdict::Pass(Reason::NotATunnel));
    }

    #[test]
    fn other_sources_are_left_alone_and_named(
        which in 0..3_usize, from_v4: [u8; 4], from_v6: [u8; 16],
    ) {
        prop_assume!(from_v4[..2] != [172, 16] && from_v6[..12] != [1; 12]);
        let (outer, family) = TUNNELS[which];
        let mut frame = wrap(outer, family, &inner(family, 1, 0, &[]), (HOST_V4, HOST_V6));
        let source = match outer {
            Family::V4 => {
                frame[26..30].copy_from_slice(&from_v4);
                mapped(from_v4)
            }
            Family::V6 => {
                frame[22..38].copy_from_slice(&from_v6);
                from_v6
            }
        };
        let expected = Verdict::Unlisted(VipKey { address: source });
        prop_assert_eq!(decide(&frame[..], &Host), expected);
    }

    #[test]
    fn packets_for_other_addresses_are_not_unwrapped(
        which in 0..3_usize, to_v4: [u8; 4], to_v6: [u8; 16],
    ) {
        prop_assume!(to_v4 != VIP_V4 && to_v6 != VIP_V6);
        let (outer, family) = TUNNELS[which];
        let mut packet = inner(family, 1, 0, &[]);
        match family {
            Family::V4 => packet[16..20].copy_from_slice(&to_v4),
            Family::V6 => packet[24..40].copy_from_slice(&to_v6),
        }
        let frame = wrap(outer, family, &packet, (HOST_V4, HOST_V6));
        prop_assert_eq!(decide(&frame[..], &Host), Verdict::Pass(Reason::NotAVip));
    }

    #[test]
    fn anything_at_all_can_arrive(mut bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool) {
        if let Some(kind) = bytes.get_mut(12..14) {
            kind.copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
        }
        decide(&bytes[..], &Host);
    }
}

#[test]
fn a_cut_tunnel_packet_is_never_unwrapped() {
    for (outer, family) in TUNNELS {
        let frame = wrap(outer, family, &inner(family, 1, 0, &[1; 20]), (HOST_V4, HOST_V6));
        assert!(matches!(decide(&frame[..], &Host), Verdict::Unwrap(_)));
        for len in 0..frame.len() {
            let verdict = decide(&frame[..len], &Host);
            assert!(matches!(verdict, Verdict::Pass(_)), "{outer:?} {len}: {verdict:?}");
        }
    }
}

#[test]
fn what_is_no_tunnel_passes() {
    for family in FAMILIES {
        let mut headers = Client::new(1).ip(family, 64);
        match &mut headers {
            etherparse::IpHeaders::Ipv4(ip, _) => ip.destination = HOST_V4,
            etherparse::IpHeaders::Ipv6(ip, _) => ip.destination = HOST_V6,
        }
        let frame = ethernet(headers, number::TCP, &segment(40_000, 80, 2));
        assert_eq!(decide(&frame[..], &Host), Verdict::Pass(Reason::NotATunnel), "{family:?}");
    }
}

#[test]
fn an_inner_packet_longer_than_its_tunnel_is_not_unwrapped() {
    let mut packet = inner(Family::V4, 1, 0, &[1; 20]);
    packet.truncate(packet.len() - 1);
    let mut frame = wrap(Family::V4, Family::V4, &packet, (HOST_V4, HOST_V6));
    // Bytes behind the outer packet must not fill the gap.
    frame.extend([0; 40]);
    assert_eq!(decide(&frame[..], &Host), Verdict::Pass(Reason::Malformed));
}

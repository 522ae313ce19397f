//! ICMP errors follow the flow that they quote.

use lb_common::{
    abi::Owners,
    verdict::{Drop, Pass, Verdict},
};

use crate::{
    frames::{
        ACK, Client, FAMILIES, Family, SYN, answer, ethernet, icmp_error, ip, packet, segment,
    },
    model::{GAME, Model, QUIC, VIP_V4, VIP_V6, WEB},
};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The types that quote a packet.
fn errors(family: Family) -> &'static [u8] {
    match family {
        Family::V4 => &[3, 11, 12],
        Family::V6 => &[1, 2, 3, 4],
    }
}

fn quoted_tcp(family: Family, client: &Client) -> Vec<u8> {
    answer(family, client, TCP, &segment(WEB, client.port, ACK))
}

#[test]
fn an_error_follows_a_flow_in_the_steady_state() {
    for family in FAMILIES {
        let model = Model::new(61);
        for (index, slot) in model.rings[&family.service(1)].iter().enumerate() {
            slot.set_owners(Owners { current: 1 + index as u16 % 8, base: 0 });
        }
        for n in 0..50 {
            let client = Client { port: 1024 + n as u16, ..Client::new(n) };
            let flow = model.forwarded(&client.tcp(family, WEB, ACK));
            for &kind in errors(family) {
                let quoted = quoted_tcp(family, &client);
                let error = model.forwarded(&icmp_error(family, kind, &quoted));
                assert_eq!((error.id, error.events), (flow.id, 0), "{family:?} {kind}");
                assert_eq!(error.entropy, flow.entropy, "the same way through the tunnel");
                // Eight bytes of the transport are all that RFC 792 promises.
                let start = &quoted[..quoted.len() - 12];
                assert_eq!(model.forwarded(&icmp_error(family, kind, start)).id, flow.id);
            }
        }
    }
}

#[test]
fn an_error_follows_a_pinned_flow_and_an_old_one() {
    for family in FAMILIES {
        let model = Model::new(1);
        let (old, new) = (Client::new(1), Client::new(2));
        model.move_rings_to(2);
        model.forwarded(&new.tcp(family, WEB, SYN));
        model.move_rings_to(3);
        for (client, id) in [(old, 1), (new, 2)] {
            let error = icmp_error(family, errors(family)[0], &quoted_tcp(family, &client));
            assert_eq!(model.forwarded(&error).id, id, "{family:?}");
        }
    }
}

#[test]
fn an_error_follows_a_udp_flow() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.forwarded(&client.udp(family, GAME, b"move"));
        model.move_rings_to(2);
        for port in [GAME, QUIC] {
            let datagram = [port, client.port, 8, 0].map(u16::to_be_bytes).concat();
            let quoted = answer(family, &client, UDP, &datagram);
            let error = icmp_error(family, errors(family)[0], &quoted);
            assert_eq!(model.forwarded(&error).id, 1, "{family:?} {port}");
        }
    }
}

#[test]
fn an_error_finds_its_flow_behind_extension_headers() {
    let model = Model::new(1);
    model.move_rings_to(2);
    let client = Client::new(1);
    // Hop-by-hop and destination options in what is quoted, and around it.
    let options = |next: u8, inner: &[u8]| {
        [&[next, 1][..], &[1, 4, 0, 0, 0, 0, 1, 8, 0, 0, 0, 0, 0, 0], inner].concat()
    };
    let inner = options(60, &options(TCP, &segment(WEB, client.port, ACK)));
    let quoted = answer(Family::V6, &client, 0, &inner);
    let message = [&[2, 0, 0, 0, 0, 0, 5, 0][..], &quoted].concat();
    let headers = || ip(Family::V6, 64, ([0; 4], Client::new(99).v6), (VIP_V4, VIP_V6));
    for frame in [
        ethernet(headers(), 58, &message),
        ethernet(headers(), 0, &options(58, &message)),
        ethernet(headers(), 60, &options(60, &options(58, &message))),
    ] {
        assert_eq!(model.forwarded(&frame).id, 1);
    }
}

#[test]
fn an_error_finds_its_flow_behind_options() {
    let model = Model::new(1);
    let client = Client::new(1);
    let mut headers = ip(Family::V4, 9, (VIP_V4, VIP_V6), (client.v4, client.v6));
    if let etherparse::IpHeaders::Ipv4(header, _) = &mut headers {
        header.options = [1; 24].into();
    }
    let quoted = packet(headers, TCP, &segment(WEB, client.port, ACK));
    assert_eq!(model.forwarded(&icmp_error(Family::V4, 3, &quoted)).id, 1);
}

#[test]
fn what_is_no_error_passes() {
    for family in FAMILIES {
        let model = Model::new(1);
        let quoted = quoted_tcp(family, &Client::new(1));
        for kind in 0..=255 {
            if !errors(family).contains(&kind) {
                let verdict = model.decide(&icmp_error(family, kind, &quoted));
                assert_eq!(verdict, Verdict::Pass(Pass::Protocol), "{family:?} {kind}");
            }
        }
    }
}

#[test]
fn an_error_about_another_s_packet_passes() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        let pass = Verdict::Pass(Pass::NotAService);
        let tcp = segment(WEB, client.port, ACK);
        // Not from the address that the error is for.
        let from = ([10, 0, 0, 1], [9; 16]);
        let other = packet(ip(family, 50, from, (client.v4, client.v6)), TCP, &tcp);
        assert_eq!(model.decide(&icmp_error(family, errors(family)[0], &other)), pass);
        // Of no service: the node's own connection from the VIP.
        let own = answer(family, &client, TCP, &segment(34_567, client.port, ACK));
        assert_eq!(model.decide(&icmp_error(family, errors(family)[0], &own)), pass);
        // Of another protocol than the service's.
        let udp = answer(family, &client, UDP, &[0, 80, 1, 2, 0, 8, 0, 0]);
        assert_eq!(model.decide(&icmp_error(family, errors(family)[0], &udp)), pass);
    }
}

#[test]
fn an_error_about_a_later_fragment_passes() {
    let model = Model::new(1);
    let client = Client::new(1);
    let mut v4 = quoted_tcp(Family::V4, &client);
    v4[6..8].copy_from_slice(&0x00b9_u16.to_be_bytes());
    let fragment = [&[TCP, 0, 0, 0xb8, 0, 0, 0, 1][..], &segment(WEB, client.port, ACK)].concat();
    let v6 = answer(Family::V6, &client, 44, &fragment);
    for (family, quoted) in [(Family::V4, v4), (Family::V6, v6)] {
        let verdict = model.decide(&icmp_error(family, errors(family)[0], &quoted));
        assert_eq!(verdict, Verdict::Pass(Pass::NotAService), "{family:?}");
    }
}

#[test]
fn an_error_is_never_answered_with_an_error() {
    for family in FAMILIES {
        let model = Model::new(1);
        let error = icmp_error(family, errors(family)[0], &quoted_tcp(family, &Client::new(1)));
        for ttl in [0, 1] {
            let mut frame = error.clone();
            frame[if family == Family::V4 { 14 + 8 } else { 14 + 7 }] = ttl;
            assert_eq!(model.decide(&frame), Verdict::Drop(Drop::TtlExceeded), "{family:?}");
        }
        model.set_mtu(60);
        assert_eq!(model.decide(&error), Verdict::Drop(Drop::TooBig), "{family:?}");
    }
}

#[test]
fn an_error_neither_opens_nor_keeps_a_flow() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.move_rings_to(2);
        model.forwarded(&client.tcp(family, WEB, SYN));
        let pin = || model.pins.borrow().values().map(|pin| pin.get()).collect::<Vec<_>>();
        let before = (pin(), model.only_slot(family.service(1)).pinned());
        model.pass_seconds(30);
        for n in [1, 2] {
            let quoted = quoted_tcp(family, &Client::new(n));
            model.forwarded(&icmp_error(family, errors(family)[0], &quoted));
        }
        let slot = model.only_slot(family.service(1));
        assert_eq!((pin(), slot.pinned(), slot.unpinned()), (before.0, before.1, 0), "{family:?}");
    }
}

#[test]
fn a_quote_is_not_read_behind_the_end_of_its_packet() {
    // The bytes are in the frame, but the packet ends before them.
    for family in FAMILIES {
        let model = Model::new(1);
        let whole = icmp_error(family, errors(family)[0], &quoted_tcp(family, &Client::new(1)));
        let (length_at, base) = match family {
            Family::V4 => (14 + 2, 20),
            Family::V6 => (14 + 4, 0),
        };
        let quoted_header = if family == Family::V4 { 20 } else { 40 };
        for len in 0..8 + quoted_header + 8 {
            let mut frame = whole.clone();
            let length = (base + len) as u16;
            frame[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
            let verdict = model.decide(&frame);
            assert!(matches!(verdict, Verdict::Pass(_)), "{family:?}, {len} bytes: {verdict:?}");
        }
    }
}

#[test]
fn a_quoted_header_of_the_other_version_passes() {
    for family in FAMILIES {
        let model = Model::new(1);
        let mut quoted = quoted_tcp(family, &Client::new(1));
        quoted[0] ^= 0x20;
        let verdict = model.decide(&icmp_error(family, errors(family)[0], &quoted));
        assert_eq!(verdict, Verdict::Pass(Pass::Malformed), "{family:?}");
    }
}

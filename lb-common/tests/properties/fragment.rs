//! Fragments follow their first one.

use lb_common::{
    fragment::FRAGMENT_TIMEOUT,
    verdict::{Drop, Pass, ReplyKind, Verdict},
};

use crate::{
    frames::{ACK, Client, FAMILIES, Family, SYN, ethernet, ip, segment},
    model::{Model, VIP_V4, VIP_V6, WEB},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const NO_FIRST: Verdict<lb_common::abi::Backend> = Verdict::Drop(Drop::FragmentWithoutFirst);

/// The first fragment of a TCP packet to `port`.
fn first(family: Family, client: &Client, id: u16, port: u16, flags: u8) -> Vec<u8> {
    let payload = [segment(client.port, port, flags), vec![0x5a; 28]].concat();
    client.fragment(family, (id, TCP), (0, true), &payload)
}

fn later(family: Family, client: &Client, id: u16) -> Vec<u8> {
    client.fragment(family, (id, TCP), (48, false), &[0x5a; 40])
}

#[test]
fn later_fragments_follow_the_first_one() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.move_rings_to(2);
        let to = model.forwarded(&first(family, &client, 7, WEB, SYN));
        assert_eq!(to.id, 2, "{family:?}");
        model.move_rings_to(3);
        for offset in [48, 96, 144] {
            let frame = client.fragment(family, (7, TCP), (offset, offset != 144), &[1; 48]);
            let next = model.forwarded(&frame);
            assert_eq!((next.id, next.entropy, next.events), (2, to.entropy, 0), "{family:?}");
        }
    }
}

#[test]
fn a_fragment_before_the_first_one_is_dropped() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        assert_eq!(model.decide(&later(family, &client, 7)), NO_FIRST, "{family:?}");
        model.forwarded(&first(family, &client, 7, WEB, ACK));
        model.forwarded(&later(family, &client, 7));
        // Of another packet, or of another client.
        assert_eq!(model.decide(&later(family, &client, 8)), NO_FIRST, "{family:?}");
        assert_eq!(model.decide(&later(family, &Client::new(2), 7)), NO_FIRST, "{family:?}");
    }
    // Of another protocol: RFC 791, 3.2 makes it part of a packet's identity.
    let model = Model::new(1);
    let client = Client::new(1);
    model.forwarded(&first(Family::V4, &client, 7, WEB, ACK));
    let udp = client.fragment(Family::V4, (7, UDP), (48, false), &[1; 8]);
    assert_eq!(model.decide(&udp), NO_FIRST);
}

#[test]
fn a_first_fragment_is_forgotten_after_its_time() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.forwarded(&first(family, &client, 7, WEB, ACK));
        model.pass_seconds(FRAGMENT_TIMEOUT);
        model.forwarded(&later(family, &client, 7));
        model.pass_seconds(1);
        assert_eq!(model.decide(&later(family, &client, 7)), NO_FIRST, "{family:?}");
    }
}

#[test]
fn fragments_for_the_node_itself_pass() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        // To a VIP, but to no service.
        let pass = Verdict::Pass(Pass::NotAService);
        assert_eq!(model.decide(&first(family, &client, 7, 22, SYN)), pass, "{family:?}");
        let pass = Verdict::Pass(Pass::Fragment);
        assert_eq!(model.decide(&later(family, &client, 7)), pass, "{family:?}");
    }
}

#[test]
fn fragments_for_another_address_pass_and_are_not_noted() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        let mut frames = [first(family, &client, 7, WEB, SYN), later(family, &client, 7)];
        for frame in &mut frames {
            let end = if family == Family::V4 { 34 } else { 54 };
            frame[end - 1] ^= 0x55;
        }
        assert_eq!(model.decide(&frames[0]), Verdict::Pass(Pass::NotAService), "{family:?}");
        assert_eq!(model.decide(&frames[1]), Verdict::Pass(Pass::Fragment), "{family:?}");
        assert!(model.fragments.borrow().is_empty());
    }
}

#[test]
fn fragments_of_what_no_service_can_be_pass() {
    // A long ping to the VIP, ESP, GRE, SCTP: their first fragments pass, so must the others, in
    // whatever order they come.
    for family in FAMILIES {
        let model = Model::new(1);
        let ping = if family == Family::V4 { 1 } else { 58 };
        for proto in [ping, 50, 47, 132] {
            let client = Client::new(1);
            let rest = client.fragment(family, (7, proto), (48, false), &[1; 40]);
            assert_eq!(model.decide(&rest), Verdict::Pass(Pass::Fragment), "{family:?} {proto}");
            let mut payload = [0; 48];
            payload[0] = if family == Family::V4 { 8 } else { 128 };
            let start = client.fragment(family, (7, proto), (0, true), &payload);
            assert_eq!(model.decide(&start), Verdict::Pass(Pass::Protocol), "{family:?} {proto}");
            assert_eq!(model.decide(&rest), Verdict::Pass(Pass::Fragment), "{family:?} {proto}");
        }
    }
}

#[test]
fn the_fragments_of_a_dropped_packet_are_dropped() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.only_slot(family.service(1)).set_owners(Default::default());
        let verdict = model.decide(&first(family, &client, 7, WEB, SYN));
        assert_eq!(verdict, Verdict::Drop(Drop::NoBackend), "{family:?}");
        assert_eq!(model.decide(&later(family, &client, 7)), NO_FIRST, "{family:?}");
    }
}

#[test]
fn only_the_first_fragment_is_answered() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        let ttl_at = if family == Family::V4 { 22 } else { 21 };
        let mut start = first(family, &client, 7, WEB, SYN);
        start[ttl_at] = 1;
        match model.decide(&start) {
            Verdict::Reply(reply) => assert_eq!(reply.kind, ReplyKind::TtlExceeded),
            other => panic!("{family:?}: {other:?}"),
        }
        let mut rest = later(family, &client, 7);
        rest[ttl_at] = 1;
        assert_eq!(model.decide(&rest), Verdict::Drop(Drop::TtlExceeded), "{family:?}");
    }
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    // RFC 6946: a fragment header, but neither an offset nor more to come.
    let model = Model::new(1);
    let client = Client::new(1);
    let payload = segment(client.port, WEB, SYN);
    let frame = client.fragment(Family::V6, (7, TCP), (0, false), &payload);
    model.forwarded(&frame);
    assert!(model.fragments.borrow().is_empty());
}

#[test]
fn fragments_are_found_behind_extension_headers() {
    let model = Model::new(1);
    let client = Client::new(1);
    let headers = || ip(Family::V6, 64, (client.v4, client.v6), (VIP_V4, VIP_V6));
    let hop_by_hop = [44, 0, 1, 4, 0, 0, 0, 0];
    // Destination options are a part of what is fragmented.
    let start = [
        &hop_by_hop[..],
        &[60, 0, 0, 1, 0, 0, 0, 9],
        &[TCP, 0, 1, 4, 0, 0, 0, 0],
        &segment(client.port, WEB, SYN),
        &[1; 20],
    ];
    let rest = [&hop_by_hop[..], &[60, 0, 0, 0x30, 0, 0, 0, 9], &[1; 20]];
    let rest = ethernet(headers(), 0, &rest.concat());
    assert_eq!(model.decide(&rest), NO_FIRST);
    model.forwarded(&ethernet(headers(), 0, &start.concat()));
    assert_eq!(model.forwarded(&rest).id, 1);
}

#[test]
fn a_fragment_header_behind_the_end_of_its_packet_passes() {
    let model = Model::new(1);
    let client = Client::new(1);
    model.forwarded(&first(Family::V6, &client, 7, WEB, SYN));
    let mut frame = later(Family::V6, &client, 7);
    for len in 0..8_u16 {
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        assert_eq!(model.decide(&frame), Verdict::Pass(Pass::Truncated), "{len}");
    }
}

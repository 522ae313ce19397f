//! The decision's rim: whose frame, which hop, how big.

use lb_common::{
    abi::OWN_MACS,
    verdict::{Drop, Pass, ReplyKind, Verdict},
};
use proptest::prelude::*;

use crate::{
    frames::{ACK, Client, FAMILIES, Family, SYN},
    model::{DNS, GATEWAY, Model, OWN, WEB},
};

const OTHER: Verdict<lb_common::abi::Backend> = Verdict::Pass(Pass::OtherHost);

fn for_mac(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = Client::new(1).tcp(Family::V4, WEB, SYN);
    frame[..6].copy_from_slice(&mac);
    frame
}

#[test]
fn frames_for_others_pass() {
    let model = Model::new(1);
    model.forwarded(&for_mac(OWN));
    for mac in [GATEWAY, [0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [0; 6], [2, 0, 0, 0, 0, 2]] {
        assert_eq!(model.decide(&for_mac(mac)), OTHER, "{mac:x?}");
    }
}

#[test]
fn every_own_address_counts_and_none_means_all() {
    let mut model = Model::new(1);
    model.own_macs = (0..OWN_MACS as u8).map(|n| [2, 0, 0, 0, 1, n]).collect();
    for mac in model.own_macs.clone() {
        model.forwarded(&for_mac(mac));
    }
    assert_eq!(model.decide(&for_mac(OWN)), OTHER);
    assert_eq!(model.decide(&for_mac([0; 6])), OTHER);
    model.own_macs.clear();
    for mac in [OWN, GATEWAY, [0; 6]] {
        model.forwarded(&for_mac(mac));
    }
}

#[test]
fn what_is_for_no_service_passes() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        let pass = Verdict::Pass(Pass::NotAService);
        assert_eq!(model.decide(&client.tcp(family, 22, SYN)), pass, "SSH to the VIP");
        assert_eq!(model.decide(&client.tcp(family, DNS, SYN)), pass, "a UDP service's port");
        assert_eq!(model.decide(&client.udp(family, WEB, b"x")), pass, "a TCP service's port");
        let mut frame = client.tcp(family, WEB, SYN);
        let last = if family == Family::V4 { 33 } else { 53 };
        frame[last] ^= 1;
        assert_eq!(model.decide(&frame), pass, "another address");
    }
}

#[test]
fn a_last_hop_is_answered() {
    for family in FAMILIES {
        let model = Model::new(1);
        for ttl in [0, 1] {
            let frame = Client::new(1).tcp_with(family, WEB, ACK, ttl, b"");
            match model.decide(&frame) {
                Verdict::Reply(reply) => {
                    assert_eq!((reply.kind, reply.mtu), (ReplyKind::TtlExceeded, 0));
                    assert_eq!((reply.l3, reply.v6), (14, family == Family::V6));
                }
                other => panic!("{family:?} {ttl}: {other:?}"),
            }
        }
        model.forwarded(&Client::new(1).tcp_with(family, WEB, ACK, 2, b""));
    }
}

#[test]
fn what_is_too_big_is_answered_with_the_way_s_mtu() {
    for family in FAMILIES {
        let model = Model::new(1);
        let headers = if family == Family::V4 { 40 } else { 60 };
        for mtu in [1280, 1480, 1460, 1500] {
            model.set_mtu(mtu);
            let fits = vec![0; usize::from(mtu) - headers];
            let to = model.forwarded(&Client::new(1).tcp_with(family, WEB, ACK, 64, &fits));
            assert_eq!(to.len, mtu);
            let too_big = vec![0; fits.len() + 1];
            match model.decide(&Client::new(1).tcp_with(family, WEB, ACK, 64, &too_big)) {
                Verdict::Reply(reply) => {
                    assert_eq!((reply.kind, reply.mtu), (ReplyKind::TooBig, mtu), "{family:?}");
                }
                other => panic!("{family:?} {mtu}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_packet_that_no_backend_takes_is_not_answered() {
    for family in FAMILIES {
        let model = Model::new(1);
        model.set_flags(1, 0);
        let frame = Client::new(1).tcp_with(family, WEB, ACK, 1, b"");
        assert_eq!(model.decide(&frame), Verdict::Drop(Drop::NoBackend), "{family:?}");
    }
}

#[test]
fn padding_behind_a_packet_is_no_part_of_it() {
    for family in FAMILIES {
        let model = Model::new(1);
        let mut frame = Client::new(1).tcp_with(family, WEB, ACK, 64, b"");
        let len = frame.len() - 14;
        frame.extend([0xee; 2000]);
        assert_eq!(usize::from(model.forwarded(&frame).len), len, "{family:?}");
    }
}

proptest! {
    #[test]
    fn a_flow_has_one_backend_and_one_entropy(n: u32, port: u16, flags in 0..32_u8, v6: bool) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let model = Model::new(61);
        for (index, slot) in model.rings[&family.service(1)].iter().enumerate() {
            let current = 1 + index as u16 % 8;
            slot.set_owners(lb_common::abi::Owners { current, base: 0 });
        }
        let client = Client { port, ..Client::new(n) };
        let one = model.forwarded(&client.tcp(family, WEB, SYN));
        let two = model.forwarded(&client.tcp(family, WEB, flags));
        prop_assert_eq!((one.id, one.entropy), (two.id, two.entropy));
    }
}

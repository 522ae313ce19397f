//! Backends on the balancer's own node, alone and beside other balancers.

use lb_common::{
    abi::{LOOPBACK, Owners, PeerKey, service_flags},
    verdict::{Drop, Verdict, events},
};

use crate::{
    frames::{ACK, Client, FAMILIES, Family, SYN, answer, icmp_error, segment},
    model::{DNS, GAME, GATEWAY, Model, QUIC, WEB},
};

const HERE: u16 = 2;
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// Rings that backend 1 owns; backend [`HERE`] is on this node, and [`PEER`] another balancer.
fn model() -> Model {
    let mut model = Model::new(1);
    {
        let backend = &mut model.backends.borrow_mut()[usize::from(HERE)];
        (backend.l2_len, backend.ifindex, backend.mtu) = (0, LOOPBACK, u16::MAX);
    }
    for service in 1..=8 {
        model.change_service(service, |service| service.flags |= service_flags::LOCAL);
        model.peer_macs.insert(PeerKey { mac: PEER, service }, HERE);
    }
    model
}

fn from(mac: [u8; 6], mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&mac);
    frame
}

#[test]
fn a_packet_for_a_backend_on_this_node_needs_no_hop_and_fits() {
    for family in FAMILIES {
        let model = model();
        model.rings[&family.service(1)][0].set_owners(Owners { current: HERE, base: 0 });
        for ttl in [0, 1, 64] {
            let frame = Client::new(1).tcp_with(family, WEB, ACK, ttl, &[0; 1_800]);
            let to = model.forwarded(&frame);
            assert_eq!((to.id, to.backend.is_local()), (HERE, true));
        }
    }
}

#[test]
fn what_another_balancer_forwards_is_delivered_whatever_the_ring_says() {
    for family in FAMILIES {
        let model = model();
        let client = Client::new(1);
        for (port, udp) in [(WEB, false), (DNS, true), (GAME, true), (QUIC, true)] {
            let frame = match udp {
                true => client.udp(family, port, b"x"),
                false => client.tcp(family, port, ACK),
            };
            let delivered = model.forwarded(&from(PEER, frame.clone()));
            assert_eq!((delivered.id, delivered.events), (HERE, events::DELIVERED), "{port}");
            // The client's own router is no balancer.
            assert_eq!(model.forwarded(&from(GATEWAY, frame)).id, 1, "{port}");
        }
        let quoted = answer(family, &client, 6, &segment(WEB, client.port, ACK));
        let kind = if family == Family::V4 { 3 } else { 2 };
        let error = icmp_error(family, kind, &quoted);
        assert_eq!(model.forwarded(&from(PEER, error.clone())).id, HERE);
        assert_eq!(model.forwarded(&error).id, 1);
    }
}

#[test]
fn fragments_follow_their_first_one_here() {
    for family in FAMILIES {
        let model = model();
        let client = Client::new(1);
        let first = [&segment(client.port, WEB, ACK)[..], &[0; 4]].concat();
        let fragment = |at, more, part: &[u8]| client.fragment(family, (7, 6), (at, more), part);
        assert_eq!(model.forwarded(&from(PEER, fragment(0, true, &first))).id, HERE);
        assert_eq!(model.forwarded(&from(PEER, fragment(24, false, &[0; 16]))).id, HERE);
    }
}

#[test]
fn a_delivered_flow_is_neither_pinned_nor_stamped_and_counts_as_new_and_heard() {
    for family in FAMILIES {
        let model = model();
        // In flux: the same SYN from a client's router would be pinned.
        model.move_rings_to(3);
        let client = Client::new(1);
        let opened = model.forwarded(&from(PEER, client.tcp(family, WEB, SYN)));
        assert_eq!(opened.events, events::DELIVERED | events::NEW_FLOW);
        model.forwarded(&from(PEER, client.tcp(family, WEB, ACK)));
        let slot = model.only_slot(family.service(1));
        assert_eq!((model.pins.borrow().len(), slot.pinned(), slot.unpinned()), (0, 0, 0));
        // Its client acknowledges bytes of the backend, so it is not taken for silent.
        let counter = &model.counters[usize::from(HERE)];
        assert_eq!((counter.new_flows.load(), counter.unanswered.load() != 0), (1, true));
        let acked = model.forwarded(&from(PEER, client.bare_ack(family, WEB)));
        assert_eq!(acked.events, events::DELIVERED | events::BARE_ACK);
        assert_eq!(counter.unanswered.load(), 0);
    }
}

#[test]
fn a_backend_here_that_takes_no_new_flows_takes_what_is_forwarded_to_it() {
    for family in FAMILIES {
        let model = model();
        model.set_flags(HERE, 0);
        let frame = Client::new(1).tcp(family, WEB, ACK);
        assert_eq!(model.forwarded(&from(PEER, frame.clone())).id, HERE);
        // By its own ring nothing comes to it.
        model.rings[&family.service(1)][0].set_owners(Owners { current: HERE, base: 0 });
        assert_eq!(model.decide(&frame), Verdict::Drop(Drop::NoBackend));
    }
}

#[test]
fn an_entry_that_is_on_this_node_no_more_gets_nothing_without_a_way() {
    for family in FAMILIES {
        let model = model();
        {
            let backend = &mut model.backends.borrow_mut()[usize::from(HERE)];
            (backend.l2_len, backend.flags) = (14, 0);
        }
        let frame = from(PEER, Client::new(1).tcp(family, WEB, ACK));
        assert_eq!(model.decide(&frame), Verdict::Drop(Drop::NoBackend));
    }
}

#[test]
fn two_nodes_that_disagree_send_no_packet_to_and_fro() {
    // Each thinks that the other is the owner.
    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    for family in FAMILIES {
        let (mut a, mut b) = (model(), model());
        for (node, peer) in [(&mut a, PEER), (&mut b, A)] {
            node.own_macs = vec![if peer == A { PEER } else { A }];
            node.peer_macs.clear();
            for service in 1..=8 {
                node.peer_macs.insert(PeerKey { mac: peer, service }, HERE);
            }
        }
        let mut frame = Client::new(1).tcp(family, WEB, SYN);
        frame[..6].copy_from_slice(&A);
        assert!(!a.forwarded(&frame).backend.is_local(), "sent to the other node");
        frame[..6].copy_from_slice(&PEER);
        assert!(b.forwarded(&from(A, frame)).backend.is_local(), "delivered there");
    }
}

//! QUIC: what a datagram says, and the policy `quic`.

use lb_common::{
    packet::quic::{Datagram, ID_LEN, parse},
    steer::HANDSHAKE_TIMEOUT,
    verdict::events,
};
use proptest::prelude::*;

use crate::{
    frames::{Client, FAMILIES, Family},
    model::{BACKENDS, Model, QUIC},
};

const V1: u32 = 1;
const V2: u32 = 0x6b33_43cf;
const ID: [u8; ID_LEN] = [0xa0, 1, 2, 3, 4, 5, 6, 7];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Long {
    Initial,
    ZeroRtt,
    Handshake,
    Retry,
}

/// A long header: RFC 9000, 17.2, and RFC 9369, 3.2, which turns the types by one.
fn long(version: u32, kind: Long, id: &[u8]) -> Vec<u8> {
    let number = match (version, kind) {
        (V2, Long::Initial) => 1,
        (V2, Long::ZeroRtt) => 2,
        (V2, Long::Handshake) => 3,
        (V2, Long::Retry) => 0,
        (_, kind) => kind as u8,
    };
    let mut out = vec![0xc0 | number << 4 | 3];
    out.extend(version.to_be_bytes());
    out.push(id.len() as u8);
    out.extend(id);
    out.extend([4, 9, 9, 9, 9]);
    out.extend([0; 60]);
    out
}

fn short(id: &[u8]) -> Vec<u8> {
    [&[0x43], id, &[0x77; 20]].concat()
}

#[test]
fn a_datagram_says_what_it_is() {
    for version in [V1, V2] {
        for kind in [Long::Initial, Long::ZeroRtt, Long::Retry] {
            assert_eq!(parse(&long(version, kind, &ID)[..], 0), Datagram::Opens(ID));
            let short = long(version, kind, &ID[..7]);
            assert_eq!(parse(&short[..], 0), Datagram::Opens([0; ID_LEN]));
        }
        assert_eq!(parse(&long(version, Long::Handshake, &ID)[..], 0), Datagram::Shows(ID));
        let longer = [&ID[..], &[8; 12]].concat();
        assert_eq!(parse(&long(version, Long::Handshake, &longer)[..], 0), Datagram::Shows(ID));
        assert_eq!(parse(&long(version, Long::Handshake, &ID[..7])[..], 0), Datagram::Other);
    }
    for version in [0, 2, 0xff00_001d, 0x0a0a_0a0a] {
        for kind in [Long::Initial, Long::ZeroRtt, Long::Handshake, Long::Retry] {
            assert_eq!(
                parse(&long(version, kind, &ID)[..], 0),
                Datagram::Opens([0; ID_LEN]),
                "{version:#x}"
            );
        }
    }
    assert_eq!(parse(&short(&ID)[..], 0), Datagram::Continues(ID));
    assert_eq!(parse(&[0x43, 1, 2, 3][..], 0), Datagram::Other);
    assert_eq!(parse(&[][..], 0), Datagram::Other);
    assert_eq!(parse(&[0xc3, 0, 0, 0, 1][..], 0), Datagram::Other);
    let handshake = long(V1, Long::Handshake, &ID);
    assert_eq!(parse(&handshake[..6 + ID_LEN - 1], 0), Datagram::Other, "a cut id");
}

/// A connection that opened while the ring owner was `owner`; returns where it lives.
fn connect(model: &Model, family: Family, client: &Client, version: u32, id: &[u8; ID_LEN]) -> u16 {
    let initial =
        model.forwarded(&client.udp(family, QUIC, &long(version, Long::Initial, &[5; 8])));
    assert_eq!(initial.events & events::NEW_FLOW, events::NEW_FLOW);
    let handshake = model.forwarded(&client.udp(family, QUIC, &long(version, Long::Handshake, id)));
    assert_eq!(handshake.id, initial.id);
    initial.id
}

#[test]
fn a_connection_keeps_its_backend_when_its_client_moves() {
    for family in FAMILIES {
        for version in [V1, V2] {
            let model = Model::new(1);
            assert_eq!(connect(&model, family, &Client::new(1), version, &ID), 1);
            model.move_rings_to(2);
            let moved = Client { port: 50_000, ..Client::new(77) };
            let to = model.forwarded(&moved.udp(family, QUIC, &short(&ID)));
            assert_eq!((to.id, to.events), (1, 0), "{family:?} {version:#x}");
            // Another connection from there is its own.
            let id = [0xb0; ID_LEN];
            assert_eq!(connect(&model, family, &moved, version, &id), 2);
            assert_eq!(model.forwarded(&moved.udp(family, QUIC, &short(&ID))).id, 1);
            assert_eq!(model.forwarded(&moved.udp(family, QUIC, &short(&id))).id, 2);
        }
    }
}

#[test]
fn an_initial_opens_a_flow_as_a_syn_does() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        model.move_rings_to(2);
        assert_eq!(connect(&model, family, &client, V1, &ID), 2);
        assert_eq!(model.pins.borrow().len(), 1);
        model.move_rings_to(3);
        // By its pin, as no connection has this id; and a second Initial stays with the first.
        assert_eq!(model.forwarded(&client.udp(family, QUIC, &short(&[1; 8]))).id, 2);
        let again = client.udp(family, QUIC, &long(V1, Long::Initial, &ID));
        assert_eq!(model.forwarded(&again).id, 2);
    }
}

#[test]
fn a_handshake_stays_where_its_first_initial_went() {
    for family in FAMILIES {
        for version in [V1, V2] {
            let model = Model::new(1);
            let client = Client::new(1);
            let send = |payload: &[u8]| {
                let to = model.forwarded(&client.udp(family, QUIC, payload));
                (to.id, to.events & events::NEW_FLOW)
            };
            assert_eq!(send(&long(version, Long::Initial, &[5; 8])), (1, events::NEW_FLOW));
            model.move_rings_to(2);
            // The hello's second part, the acknowledgement of the server's answer, 0-RTT.
            assert_eq!(send(&long(version, Long::Initial, &[5; 8])), (1, 0), "{family:?}");
            assert_eq!(send(&long(version, Long::ZeroRtt, &[5; 8])), (1, 0));
            assert_eq!(send(&long(version, Long::Initial, &ID)), (1, 0));
            model.move_rings_to(3);
            assert_eq!(send(&long(version, Long::Handshake, &ID)), (1, 0));
            assert_eq!(send(&short(&ID)), (1, 0));
            assert!(model.pins.borrow().is_empty(), "it lives on the base owner");
            // Others open theirs with the new owner.
            let other = Client::new(2).udp(family, QUIC, &long(version, Long::Initial, &[6; 8]));
            assert_eq!(model.forwarded(&other).id, 3);
        }
    }
}

#[test]
fn a_handshake_stays_on_the_base_owner_when_its_first_initial_got_no_pin() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        let initial = client.udp(family, QUIC, &long(V1, Long::Initial, &[5; 8]));
        model.move_rings_to(2);
        model.pin_capacity.set(0);
        assert_eq!(model.forwarded(&initial).id, 1);
        model.pin_capacity.set(usize::MAX);
        assert_eq!(model.forwarded(&initial).id, 1, "{family:?}");
        let handshake = client.udp(family, QUIC, &long(V1, Long::Handshake, &ID));
        assert_eq!(model.forwarded(&handshake).id, 1);
    }
}

#[test]
fn a_handshake_leaves_a_backend_that_is_gone() {
    for family in FAMILIES {
        let model = Model::new(1);
        let initial = Client::new(1).udp(family, QUIC, &long(V1, Long::Initial, &[5; 8]));
        assert_eq!(model.forwarded(&initial).id, 1);
        model.set_flags(1, 0);
        model.move_rings_to(2);
        assert_eq!(model.forwarded(&initial).id, 2);
    }
}

#[test]
fn an_initial_opens_a_flow_again_when_no_handshake_takes_that_long() {
    for family in FAMILIES {
        let model = Model::new(1);
        let initial = Client::new(1).udp(family, QUIC, &long(V1, Long::Initial, &[5; 8]));
        assert_eq!(model.forwarded(&initial).id, 1);
        model.move_rings_to(2);
        model.nanos.set(model.nanos.get() + u64::from(HANDSHAKE_TIMEOUT) * 1_000_000_000);
        assert_eq!(model.forwarded(&initial).id, 1);
        model.nanos.set(model.nanos.get() + 1_000_000_000);
        let to = model.forwarded(&initial);
        assert_eq!((to.id, to.events & events::NEW_FLOW), (2, events::NEW_FLOW));
    }
}

#[test]
fn an_id_that_only_an_initial_shows_is_learnt() {
    // A client sends its Handshake packet behind the Initial one that acknowledges the answer.
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        for id in [&[5; 8], &ID] {
            model.forwarded(&client.udp(family, QUIC, &long(V1, Long::Initial, id)));
        }
        model.move_rings_to(2);
        let moved = Client::new(77);
        assert_eq!(model.forwarded(&moved.udp(family, QUIC, &short(&ID))).id, 1, "{family:?}");
        // What the client made up is no id of a server's.
        assert_eq!(model.connections.borrow().len(), 1);
    }
}

#[test]
fn a_connection_of_unknown_version_follows_its_tuple() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        let frame = client.udp(family, QUIC, &long(0xff00_001d, Long::Handshake, &ID));
        assert_eq!(model.forwarded(&frame).events, events::NEW_FLOW);
        assert!(model.connections.borrow().is_empty());
        model.move_rings_to(2);
        let to = model.forwarded(&client.udp(family, QUIC, &short(&ID)));
        assert_eq!((to.id, to.events), (1, events::UNPINNED));
    }
}

#[test]
fn nobody_takes_over_a_known_connection() {
    // A forged Handshake with the id of someone's connection, from a tuple that goes elsewhere.
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        connect(&model, family, &client, V1, &ID);
        model.move_rings_to(2);
        let forger = Client::new(66);
        let initial = forger.udp(family, QUIC, &long(V1, Long::Initial, &[6; 8]));
        assert_eq!(model.forwarded(&initial).id, 2);
        model.forwarded(&forger.udp(family, QUIC, &long(V1, Long::Handshake, &ID)));
        assert_eq!(model.forwarded(&client.udp(family, QUIC, &short(&ID))).id, 1);
    }
}

#[test]
fn a_connection_on_a_dead_backend_follows_its_tuple() {
    for family in FAMILIES {
        let model = Model::new(1);
        let client = Client::new(1);
        connect(&model, family, &client, V1, &ID);
        model.set_flags(1, 0);
        model.move_rings_to(2);
        assert_eq!(model.forwarded(&client.udp(family, QUIC, &short(&ID))).id, 2);
    }
}

proptest! {
    /// Any order of handshakes, changes of the ring and pauses: no connection ever moves, however far
    /// its handshake is, whatever its datagrams begin with, and wherever its client goes afterwards.
    #[test]
    fn no_order_of_changes_moves_a_connection(
        steps in prop::collection::vec((0..6_u8, 0..30_u32, 1..=BACKENDS), 1..200),
        v6: bool, capacity in 0..40_usize, budget in 0..20_u32,
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut model = Model::new(5);
        model.pin_capacity.set(capacity);
        model.change_service(family.service(4), |service| service.syn_budget = budget);
        let mut connections = [None; 30];
        let mut second = 0_u32;
        for (step, n, owner) in steps {
            let client = Client::new(n);
            let ids = ([0xc0, n as u8, 0, 0, 0, 0, 0, 1], [0xa0, n as u8, 0, 0, 0, 0, 0, 2]);
            if step == 1 {
                // No handshake takes as long as that.
                let mut others = connections.iter().flatten();
                if others.all(|(_, sent, born)| *sent > 2 || second - born < HANDSHAKE_TIMEOUT.into()) {
                    model.pass_seconds(1);
                    second += 1;
                }
                continue;
            }
            let connection = &mut connections[n as usize];
            let send = |client: &Client, payload: &[u8]| {
                model.forwarded(&client.udp(family, QUIC, payload)).id
            };
            match (step, *connection) {
                (0, _) => model.move_rings_to(owner),
                (_, None) => {
                    let home = send(&client, &long(V1, Long::Initial, &ids.0));
                    *connection = Some((home, 0, second));
                }
                (_, Some((home, sent, born))) => {
                    let payload = match (sent, step) {
                        (0, 2) => long(V1, Long::ZeroRtt, &ids.0),
                        (0, _) => long(V1, Long::Initial, &ids.0),
                        (1, _) => long(V1, Long::Initial, &ids.1),
                        (2, 2) => long(V1, Long::Handshake, &ids.1),
                        _ => short(&ids.1),
                    };
                    let moved = Client { port: client.port + 1_000, ..client };
                    let from = if sent > 2 && step == 5 { &moved } else { &client };
                    prop_assert_eq!(send(from, &payload), home, "packet {} of {}", sent, n);
                    *connection = Some((home, sent + 1, born));
                }
            }
        }
    }

    #[test]
    fn any_payload_is_forwarded_somewhere(payload in prop::collection::vec(any::<u8>(), 0..60)) {
        let model = Model::new(3);
        model.move_rings_to(2);
        let to = model.forwarded(&Client::new(1).udp(Family::V4, QUIC, &payload));
        prop_assert!(to.id == 1 || to.id == 2);
    }
}

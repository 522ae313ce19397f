use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
};

use lb_model::{
    desired::{Extent, Protocol, ServiceKey},
    router::{Family, RouterKey, State},
};
use proptest::{collection::vec, prelude::*};

use super::{
    node_state::{FINGERPRINT, ROUTERS},
    *,
};
use crate::{Fingerprint, NodeState, RouterState, ServiceFingerprint};

fn router_key() -> impl Strategy<Value = RouterKey> {
    (any::<bool>(), 1_u8..).prop_map(|(v6, vrid)| RouterKey {
        family: if v6 { Family::V6 } else { Family::V4 },
        vrid: NonZeroU8::new(vrid).expect("from 1 on"),
    })
}

pub(super) fn service_key() -> impl Strategy<Value = ServiceKey> {
    let extent = (any::<bool>(), 0..=Extent::MAX_HOST_BITS, any::<u16>());
    (any::<IpAddr>(), any::<u16>(), any::<bool>(), extent).prop_map(|(vip, port, udp, extent)| {
        let key = ServiceKey::new(vip, port, if udp { Protocol::Udp } else { Protocol::Tcp });
        let (is_wide, host_bits, more_ports) = extent;
        if !is_wide {
            return key;
        }
        let vip = match vip {
            IpAddr::V4(vip) => Ipv4Addr::from(u32::from(vip) >> host_bits << host_bits).into(),
            IpAddr::V6(vip) => Ipv6Addr::from(u128::from(vip) >> host_bits << host_bits).into(),
        };
        let extent = Extent { host_bits, more_ports: more_ports.min(u16::MAX - port) };
        ServiceKey { vip, ..key }.with_extent(extent).unwrap()
    })
}

fn router_state() -> impl Strategy<Value = RouterState> {
    let state = proptest::sample::select(State::ALL.to_vec());
    let standing = (state, any::<u8>(), any::<[bool; 2]>(), any::<Option<IpAddr>>());
    (standing, any::<u64>(), any::<u16>(), any::<u64>()).prop_map(
        |((state, priority, flags, source), fingerprint, interval_centis, addresses)| RouterState {
            state,
            priority,
            wants: flags[0],
            lowered: flags[1],
            source,
            fingerprint,
            interval_centis,
            addresses,
        },
    )
}

fn node_state() -> impl Strategy<Value = NodeState> {
    let routers = proptest::collection::btree_map(router_key(), router_state(), 0..60);
    let fingerprint = any::<(u64, u64, u64)>()
        .prop_map(|(settings, backends, shares)| ServiceFingerprint { settings, backends, shares });
    let services = proptest::collection::btree_map(service_key(), fingerprint, 0..200);
    (any::<u64>(), services, routers, any::<bool>()).prop_map(
        |(seed, services, routers, draining)| NodeState {
            fingerprint: Fingerprint { seed, services },
            routers,
            draining,
        },
    )
}

fn ranges() -> impl Strategy<Value = Vec<Range>> {
    vec((0_u64..1 << 40, 1_u32..), 0..RANGES).prop_map(|steps| {
        let mut from = 0;
        let range = |(step, count): (u64, u32)| {
            let first = from + step;
            from = first + u64::from(count);
            (first, count)
        };
        steps.into_iter().map(range).collect()
    })
}

/// Encodes, decodes, and gives up on what has no room in a datagram.
fn round_trip(message: &Message<'_>) {
    let mut body = Vec::new();
    message.encode(&mut body);
    assert!(body.len() <= BODY, "{} bytes", body.len());
    assert_eq!(Message::decode(message.kind(), &body).as_ref(), Ok(message));
    // One byte more or less is another message, or none.
    for cut in 0..body.len() {
        assert_ne!(Message::decode(message.kind(), &body[..cut]).as_ref(), Ok(message));
    }
}

proptest! {
    #[test]
    fn hellos_come_back_as_they_were(
        node in "[a-zä-ü.0-9-]{0,32}",
        (challenge, session, echoed, losses) in any::<(u32, [u8; 16], u32, u32)>(),
        (clock, echo_clock, head) in any::<(u64, (u64, u64), u64)>(),
        (next, acknowledged, complete) in any::<(u64, u64, bool)>(),
        (node_state, has) in any::<([u32; 2], [u32; 2])>(),
    ) {
        let echo = (SessionId(session), echoed);
        round_trip(&Message::Hello(Hello {
            node: &node, challenge, echo, losses, clock, echo_clock, head, next, acknowledged, complete, node_state, has,
        }));
    }

    #[test]
    fn histories_come_back_as_they_were(
        parts in vec(any::<u8>(), 0..=PARTS),
        (sequence, ahead, transfer, index, last, since) in any::<(u64, u64, u32, u32, bool, u64)>(),
    ) {
        round_trip(&Message::Changes { sequence, ahead, parts: &parts });
        round_trip(&Message::Transfer { transfer, index, last, since, parts: &parts });
    }

    #[test]
    fn acknowledgements_come_back_as_they_were(transfer: u32, next: u32, missing in ranges()) {
        round_trip(&Message::Ack { transfer, next, missing: missing.clone() });
        round_trip(&Message::Nack { missing });
    }

    #[test]
    fn takeover_requests_and_answers_come_back_as_they_were(
        (id, head) in any::<(u64, u64)>(), routers in vec(router_key(), 0..510), refusal in ".{0,60}",
    ) {
        round_trip(&Message::TakeoverRequest { id, head, routers });
        round_trip(&Message::Withdraw { id });
        round_trip(&Message::Answer { id, answer: Ok(()) });
        round_trip(&Message::Answer { id, answer: Err(&refusal) });
    }

    #[test]
    fn facts_come_back_as_they_were(node_state in node_state()) {
        let mut read = NodeState::default();
        for half in [ROUTERS, FINGERPRINT] {
            let bytes = node_state::encode(half, &node_state);
            let fragments: Vec<_> = node_state::fragments(&bytes).collect();
            prop_assert_eq!(fragments.concat(), bytes.clone());
            let count = fragments.len() as u16;
            for (index, bytes) in fragments.into_iter().enumerate() {
                let index = (index as u16, count);
                round_trip(&Message::NodeState { half, generation: 7, index, bytes });
            }
            prop_assert_eq!(node_state::decode(half, &bytes, &mut read), Ok(()));
            prop_assert!(node_state::decode(half, &bytes[..bytes.len() - 1], &mut NodeState::default()).is_err());
        }
        prop_assert_eq!(read, node_state);
    }

    #[test]
    fn any_bytes_are_read_without_panic(kind in 0_u8..12, body in vec(any::<u8>(), 0..=BODY)) {
        let _ = decode(kind, &body);
    }

    /// Bytes that are nearly a message reach further than any bytes.
    #[test]
    fn damaged_facts_are_read_without_panic(
        node_state in node_state(), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        for half in [ROUTERS, FINGERPRINT] {
            let mut bytes = node_state::encode(half, &node_state);
            for (at, byte) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let _ = node_state::decode(half, &bytes, &mut NodeState::default());
        }
    }
}

#[test]
fn a_long_name_and_a_long_refusal_are_cut_off() {
    let long = "x".repeat(2000);
    let mut body = Vec::new();
    Message::Hello(Hello { node: &long, ..Hello::default() }).encode(&mut body);
    let Ok(Message::Hello(hello)) = Message::decode(Message::HELLO, &body) else {
        panic!("it is a Hello")
    };
    assert_eq!(hello.node.len(), usize::from(NAME));
    let mut body = Vec::new();
    let answer = Message::Answer { id: 1, answer: Err(&long) };
    answer.encode(&mut body);
    assert!(body.len() <= BODY && Message::decode(answer.kind(), &body).is_ok());
}

#[test]
fn datagrams_of_another_version_say_so() {
    let mut datagram = vec![0; 100];
    datagram[..3].copy_from_slice(b"ls\x07");
    assert_eq!(Header::split(&mut datagram), Err(NoHeader::Version(7)));
    let message = NoHeader::Version(7).to_string();
    assert!(message.contains("version 7") && message.contains("same release"), "{message}");
    assert_eq!(Header::split(&mut [0; 100]), Err(NoHeader::Foreign));
    assert_eq!(Header::split(&mut []), Err(NoHeader::Foreign));
    let mut short = vec![b'l', b's', VERSION, 1];
    assert_eq!(Header::split(&mut short), Err(NoHeader::Foreign));
}

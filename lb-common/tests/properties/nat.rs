//! Mode `nat`: what is translated, where, and that all checksums stay true.

use lb_common::{
    abi::{Backend, ReverseKey, ReversePrefix, backend_flags, mapped},
    nat,
    verdict::{Drop, Forward, Pass, Return, Verdict},
};
use proptest::prelude::*;

use crate::{
    frames::{
        ACK, Client, FAMILIES, FIN, Family, RST, SYN, ethernet, icmp_error, ip, packet, segment,
    },
    model::{Decided, GAME, Model, VIP_V4, VIP_V6, WEB},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The port that backends listen at.
pub const PORT: u16 = 8080;
/// The last port of a range with all that clients connect to: the last of a block.
const LAST: u16 = 127;
/// The backends' address in either family.
const BACKEND: ([u8; 4], [u8; 16]) =
    ([10, 0, 1, 10], [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10]);
const VIP: ([u8; 4], [u8; 16]) = (VIP_V4, VIP_V6);

/// Backend 1 serves TCP at [`WEB`] and backend 2 UDP at [`GAME`], both by NAT.
pub fn world(family: Family) -> Model {
    let mut model = Model::new(1);
    for (id, service, vip_port, proto) in [(1, 1, WEB, TCP), (2, 3, GAME, UDP)] {
        let backend = &mut model.backends.borrow_mut()[usize::from(id)];
        let (v6, address, vip) = match family {
            Family::V4 => (0, mapped(BACKEND.0), mapped(VIP_V4)),
            Family::V6 => (backend_flags::V6, BACKEND.1, VIP_V6),
        };
        *backend = Backend {
            flags: backend_flags::USABLE | backend_flags::NAT | v6,
            address_v4: BACKEND.0,
            address,
            port: PORT.into(),
            vip,
            vip_port: vip_port.into(),
            proto,
            ..*backend
        };
        for slot in &model.rings[&family.service(service)] {
            slot.set_owners(lb_common::abi::Owners { current: id, base: 0 });
        }
    }
    for (id, proto) in [(1, TCP), (2, UDP)] {
        let address = if family == Family::V4 { mapped(BACKEND.0) } else { BACKEND.1 };
        let key = ReverseKey { address, port: PORT.into(), proto, reserved: 0 };
        model.reverse_nat.insert(key, id);
    }
    model
}

/// The same where the backends serve ports up to [`LAST`], and keep the one that a client connects to.
fn world_of_ranges(family: Family) -> Model {
    let mut model = world(family);
    for (source, id) in std::mem::take(&mut model.reverse_nat) {
        let backend = &mut model.backends.get_mut()[usize::from(id)];
        (backend.port, backend.vip_port) = (0.into(), 0.into());
        (backend.first_port, backend.last_port) = (1.into(), LAST.into());
        let prefix = ReversePrefix::of(&ReverseKey { port: LAST.into(), ..source });
        let bits = ReversePrefix::BEFORE_PORT + LAST.leading_zeros();
        model.reverse_ranges.insert(prefix.shortened(bits), id);
    }
    model
}

/// The backends' port for one of the clients'.
type PortAt = fn(u16) -> u16;

/// Both of each family.
fn worlds() -> impl Iterator<Item = (Family, (Model, PortAt))> {
    FAMILIES.into_iter().flat_map(|family| {
        let one: (Model, PortAt) = (world(family), |_| PORT);
        let range: (Model, PortAt) = (world_of_ranges(family), |port| port);
        [(family, one), (family, range)]
    })
}

/// A frame after its verdict.
pub fn translated(frame: &[u8], verdict: &Decided) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let done = match verdict {
        Verdict::Forward(Forward { backend, l3, v6, .. }) => {
            nat::to_backend(&mut bytes[..], *l3, *v6, backend).map(drop)
        }
        Verdict::Return(Return { backend, l3, v6, .. }) => {
            nat::to_client(&mut bytes[..], *l3, *v6, backend)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(done, Some(()));
    bytes
}

fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

fn is_true(sum: u64) -> bool {
    sum != 0 && sum.is_multiple_of(0xffff)
}

/// Offset of the transport header of a frame without extension headers or options.
pub const fn l4(family: Family) -> usize {
    match family {
        Family::V4 => 34,
        Family::V6 => 54,
    }
}

/// Whether the checksums of the IP header and of the transport header are true.
fn checksums_are_true(family: Family, frame: &[u8], proto: u8) -> bool {
    let transport = &frame[l4(family)..];
    let (header, addresses) = match family {
        Family::V4 => (is_true(sum(&frame[14..34])), &frame[26..34]),
        Family::V6 => (true, &frame[22..54]),
    };
    let pseudo = match (family, proto) {
        (Family::V4, 1) => 0,
        _ => sum(addresses) + u64::from(proto) + transport.len() as u64,
    };
    header && is_true(pseudo + sum(transport))
}

/// Source and destination of a frame, with their ports.
fn ends(family: Family, frame: &[u8]) -> [(Vec<u8>, u16); 2] {
    let (at, len) = if family == Family::V4 { (26, 4) } else { (22, 16) };
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let l4 = l4(family);
    [
        (frame[at..at + len].to_vec(), port(l4)),
        (frame[at + len..at + 2 * len].to_vec(), port(l4 + 2)),
    ]
}

fn text(family: Family, address: ([u8; 4], [u8; 16])) -> Vec<u8> {
    match family {
        Family::V4 => address.0.to_vec(),
        Family::V6 => address.1.to_vec(),
    }
}

/// A frame from a backend to a client.
pub fn from_backend(family: Family, client: &Client, proto: u8, transport: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(ip(family, 64, BACKEND, (client.v4, client.v6)), proto, transport);
    // The checksum, from nothing.
    let at = l4(family) + if proto == TCP { 16 } else { 6 };
    frame[at..at + 2].fill(0);
    let addresses = if family == Family::V4 { &frame[26..34] } else { &frame[22..54] };
    let pseudo = sum(addresses) + u64::from(proto) + transport.len() as u64;
    let all = pseudo + sum(&frame[l4(family)..]);
    let check = !(all % 0xffff) as u16;
    frame[at..at + 2].copy_from_slice(&check.to_be_bytes());
    frame
}

proptest! {
    #[test]
    fn packets_and_answers_are_translated_with_true_checksums(
        n in 0_u32..50,
        flags in prop::sample::select(vec![SYN, ACK, ACK | FIN, RST]),
        payload in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        for (family, (model, port_at)) in worlds() {
            let client = Client { port: 1024 + n as u16, ..Client::new(n) };
            let whom = (text(family, (client.v4, client.v6)), client.port);
            for (proto, vip_port) in [(TCP, WEB), (UDP, GAME)] {
                let port = port_at(vip_port);
                let backend = (text(family, BACKEND), port);
                let frame = match proto {
                    TCP => client.tcp_with(family, vip_port, flags, 64, &payload),
                    _ => client.udp(family, vip_port, &payload),
                };
                let sent = translated(&frame, &model.decide(&frame));
                prop_assert_eq!(ends(family, &sent), [whom.clone(), backend]);
                prop_assert!(checksums_are_true(family, &sent, proto), "{:?} {}", family, proto);

                let mut transport = match proto {
                    TCP => segment(port, client.port, SYN | ACK),
                    _ => [port, client.port, 8 + payload.len() as u16, 0].map(u16::to_be_bytes).concat(),
                };
                transport.extend(&payload);
                let frame = from_backend(family, &client, proto, &transport);
                prop_assert!(checksums_are_true(family, &frame, proto));
                let verdict = model.decide(&frame);
                let Verdict::Return(answer) = &verdict else { panic!("{verdict:?}") };
                prop_assert_eq!(answer.id, if proto == TCP { 1 } else { 2 });
                let sent = translated(&frame, &verdict);
                prop_assert_eq!(ends(family, &sent), [(text(family, VIP), vip_port), whom.clone()]);
                prop_assert!(checksums_are_true(family, &sent, proto), "{:?} {}", family, proto);
            }
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_gets_none() {
    let model = world(Family::V4);
    let mut frame = Client::new(1).udp(Family::V4, GAME, b"move");
    frame[40..42].fill(0);
    let sent = translated(&frame, &model.decide(&frame));
    assert_eq!(sent[40..42], [0, 0]);
    assert_eq!(ends(Family::V4, &sent)[1], (BACKEND.0.to_vec(), PORT));
}

#[test]
fn a_backend_without_a_port_of_its_own_has_that_of_the_service() {
    for family in FAMILIES {
        let model = world(family);
        model.backends.borrow_mut()[1].port = 0.into();
        let frame = Client::new(1).tcp(family, WEB, SYN);
        let sent = translated(&frame, &model.decide(&frame));
        assert_eq!(ends(family, &sent)[1], (text(family, BACKEND), WEB));
        assert!(checksums_are_true(family, &sent, TCP));
    }
}

#[test]
fn later_fragments_follow_in_both_directions_by_their_addresses_alone() {
    for family in FAMILIES {
        let model = world(family);
        let client = Client::new(1);
        let whom = text(family, (client.v4, client.v6));
        let datagram = [client.port, GAME, 1_480, 0].map(u16::to_be_bytes).concat();
        let first = client.fragment(family, (7, UDP), (0, true), &datagram);
        let later = client.fragment(family, (7, UDP), (1_480, false), &[0x5a; 100]);
        assert!(matches!(model.decide(&first), Verdict::Forward(to) if to.id == 2), "{family:?}");
        let verdict = model.decide(&later);
        let Verdict::Forward(to) = &verdict else { panic!("{verdict:?}") };
        assert_eq!(to.id, 2);
        let sent = translated(&later, &verdict);
        assert_eq!(ends(family, &sent)[0].0, whom);
        assert_eq!(ends(family, &sent)[1].0, text(family, BACKEND));
        assert_eq!(sent[sent.len() - 100..], later[later.len() - 100..]);

        // An answer in fragments: as the client's, with the other addresses.
        let answer = |(offset, more): (u16, bool), payload: &[u8]| {
            let mut frame = client.fragment(family, (9, UDP), (offset, more), payload);
            let (at, len) = if family == Family::V4 { (26, 4) } else { (22, 16) };
            frame[at..at + len].copy_from_slice(&text(family, BACKEND));
            frame[at + len..at + 2 * len].copy_from_slice(&whom);
            if family == Family::V4 {
                frame[24..26].fill(0);
                let check = !(sum(&frame[14..34]) % 0xffff) as u16;
                frame[24..26].copy_from_slice(&check.to_be_bytes());
            }
            frame
        };
        let later = answer((1_480, false), &[0x5a; 100]);
        assert_eq!(model.decide(&later), Verdict::Pass(Pass::Fragment), "its first is not known");
        let datagram = [PORT, client.port, 1_480, 0].map(u16::to_be_bytes).concat();
        let first = answer((0, true), &datagram);
        assert!(matches!(model.decide(&first), Verdict::Return(of) if of.id == 2), "{family:?}");
        let verdict = model.decide(&later);
        assert!(matches!(&verdict, Verdict::Return(of) if of.id == 2));
        let sent = translated(&later, &verdict);
        assert_eq!(ends(family, &sent)[0].0, text(family, VIP));
        assert_eq!(ends(family, &sent)[1].0, whom);
        // It is not one of a client's packet with the same addresses and id.
        model.pass_seconds(31);
        assert_eq!(model.decide(&later), Verdict::Pass(Pass::Fragment));
    }
}

/// The kinds of errors, and their protocol.
fn errors(family: Family) -> (&'static [u8], u8) {
    match family {
        Family::V4 => (&[3, 11, 12], 1),
        Family::V6 => (&[1, 2, 3, 4], 58),
    }
}

/// An ICMP error with its true checksum.
fn error(
    family: Family,
    kind: u8,
    from: ([u8; 4], [u8; 16]),
    to: ([u8; 4], [u8; 16]),
    quoted: &[u8],
) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 5, 0];
    message.extend(quoted);
    let (_, proto) = errors(family);
    let mut frame = ethernet(ip(family, 64, from, to), proto, &message);
    let at = l4(family) + 2;
    let pseudo = match family {
        Family::V4 => 0,
        Family::V6 => sum(&frame[22..54]) + 58 + message.len() as u64,
    };
    let check = !((pseudo + sum(&frame[l4(family)..])) % 0xffff) as u16;
    frame[at..at + 2].copy_from_slice(&check.to_be_bytes());
    frame
}

/// The ends of the packet that an error quotes.
fn quoted_ends(family: Family, frame: &[u8]) -> [(Vec<u8>, u16); 2] {
    let mut quoted = vec![0; 14];
    quoted.extend(&frame[l4(family) + 8..]);
    if family == Family::V4 {
        assert!(is_true(sum(&quoted[14..34])), "the quoted header's checksum");
    }
    ends(family, &quoted)
}

#[test]
fn an_error_about_an_answer_reaches_the_backend_as_about_what_it_has_sent() {
    for (family, (model, port_at)) in worlds() {
        let client = Client::new(1);
        let whom = (client.v4, client.v6);
        // What the client got: from VIP and port.
        let quoted = packet(ip(family, 50, VIP, whom), TCP, &segment(WEB, client.port, ACK));
        for &kind in errors(family).0 {
            // By a router, or by the client itself.
            for from in [(Client::new(0xfefe).v4, Client::new(0xfefe).v6), whom] {
                let frame = error(family, kind, from, VIP, &quoted);
                let verdict = model.decide(&frame);
                assert!(matches!(&verdict, Verdict::Forward(to) if to.id == 1), "{verdict:?}");
                let sent = translated(&frame, &verdict);
                let (_, proto) = errors(family);
                assert!(checksums_are_true(family, &sent, proto), "{family:?} {kind}");
                assert_eq!(ends(family, &sent)[0].0, text(family, from));
                assert_eq!(ends(family, &sent)[1].0, text(family, BACKEND));
                let expected =
                    [(text(family, BACKEND), port_at(WEB)), (text(family, whom), client.port)];
                assert_eq!(quoted_ends(family, &sent), expected);
            }
        }
    }
}

#[test]
fn an_error_about_a_packet_reaches_the_client_as_about_what_it_has_sent() {
    for (family, (model, port_at)) in worlds() {
        let client = Client::new(1);
        let whom = (client.v4, client.v6);
        let quoted =
            packet(ip(family, 50, whom, BACKEND), TCP, &segment(client.port, port_at(WEB), ACK));
        for &kind in errors(family).0 {
            let router = (Client::new(0xfefe).v4, Client::new(0xfefe).v6);
            // The backend itself is the VIP to the client; a router behind it is what it is.
            for (from, shown) in [(BACKEND, VIP), (router, router)] {
                let frame = error(family, kind, from, whom, &quoted);
                let verdict = model.decide(&frame);
                assert!(matches!(&verdict, Verdict::Return(of) if of.id == 1), "{verdict:?}");
                let sent = translated(&frame, &verdict);
                let (_, proto) = errors(family);
                assert!(checksums_are_true(family, &sent, proto), "{family:?} {kind}");
                assert_eq!(ends(family, &sent)[0].0, text(family, shown));
                assert_eq!(ends(family, &sent)[1].0, text(family, whom));
                let expected = [(text(family, whom), client.port), (text(family, VIP), WEB)];
                assert_eq!(quoted_ends(family, &sent), expected);
            }
        }
        // One about another's packet passes.
        let other =
            packet(ip(family, 50, whom, BACKEND), TCP, &segment(client.port, LAST + 1, ACK));
        let frame = error(family, errors(family).0[0], BACKEND, whom, &other);
        assert_eq!(model.decide(&frame), Verdict::Pass(Pass::NotAService), "{family:?}");
    }
}

#[test]
fn what_else_a_backend_sends_passes() {
    for family in FAMILIES {
        let model = world(family);
        let client = Client::new(1);
        let ssh = from_backend(family, &client, TCP, &segment(22, client.port, ACK));
        assert_eq!(model.decide(&ssh), Verdict::Pass(Pass::NotAService), "{family:?}");
        let udp = [PORT, client.port, 8, 0].map(u16::to_be_bytes).concat();
        let udp = from_backend(family, &client, UDP, &udp);
        assert!(matches!(model.decide(&udp), Verdict::Return(of) if of.id == 2), "{family:?}");
        // Without hops left the kernel is to answer it.
        let mut last = from_backend(family, &client, TCP, &segment(PORT, client.port, ACK));
        last[if family == Family::V4 { 22 } else { 21 }] = 1;
        assert_eq!(model.decide(&last), Verdict::Pass(Pass::ReturnUntranslated), "{family:?}");
        // An entry that is being freed is none.
        model.backends.borrow_mut()[1].flags = 0;
        let answer = from_backend(family, &client, TCP, &segment(PORT, client.port, ACK));
        assert_eq!(model.decide(&answer), Verdict::Pass(Pass::NotAService), "{family:?}");
        assert_eq!(model.decide(&client.tcp(family, WEB, SYN)), Verdict::Drop(Drop::NoBackend));
    }
}

#[test]
fn a_truncated_frame_is_never_translated_beyond_its_end() {
    for family in FAMILIES {
        let model = world(family);
        let client = Client::new(1);
        let whom = (client.v4, client.v6);
        let quoted = packet(ip(family, 50, VIP, whom), TCP, &segment(WEB, client.port, ACK));
        let frames = [
            client.tcp(family, WEB, SYN),
            client.udp(family, GAME, b"move"),
            icmp_error(family, errors(family).0[0], &quoted),
        ];
        for frame in &frames {
            let verdict = model.decide(frame);
            let Verdict::Forward(to) = &verdict else { panic!("{verdict:?}") };
            for len in 0..frame.len() {
                let mut cut = frame[..len].to_vec();
                // Whether it is done or not, it does not panic.
                let _ = nat::to_backend(&mut cut[..], to.l3, to.v6, &to.backend);
            }
        }
    }
}

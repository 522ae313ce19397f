//! The explanation of packets, over the maps in memory.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_api::status::{self, Status};
use lb_common::{
    abi::{self, FlowKey, FlowValue, Owners, backend_flags, mapped},
    hash::FlowKeys,
};
use lb_inspect::explain::{
    Around, Explained, Flags, IcmpError, Made, Outcome, Packet, Payload, Questions, explain, hex,
};
use lb_model::{
    desired::{Mode, Protocol, ServiceKey},
    entry,
    flow::{FlowRef, slot_of_flow},
    settings::{Limits, Tunnel},
};
use zerocopy::FromZeros as _;

use super::Fake;
use crate::Maps;

const NOW: u64 = 5_000_000_000_000;
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 5];

/// Backends 1 to 3; the current owner of every slot is 1, and the base owner of the odd ones 2.
fn balancer(mode: Mode) -> (Fake, Status) {
    let mut fake = Fake::new(Limits { pins: 2, ..Limits::default() });
    fake.set_time(std::time::Duration::from_nanos(NOW));
    fake.set_own_macs(&[OWN]).unwrap();
    let vip: IpAddr = "10.0.0.100".parse().unwrap();
    let key = ServiceKey::new(vip, 80, Protocol::Tcp);
    let value = abi::Service {
        keys: FlowKeys::derive(&[7; 16], b"web").0,
        slots: 251,
        id: 3,
        udp_policy: 0,
        flags: 0,
        idle_timeout: 900,
        syn_budget: 5,
    };
    let mut service = status::Service {
        key,
        mode,
        udp_policy: None,
        ring_slots: 251,
        slots_in_flux: 125,
        idle_timeout_secs: 900,
        standing: Default::default(),
        totals: Default::default(),
        target_port: None,
        backends: BTreeMap::new(),
    };
    for id in 1..=3_u16 {
        let address: IpAddr = format!("10.0.0.{}", 10 + id).parse().unwrap();
        let mut backend = entry::blank(mode, address.into(), &Tunnel::default());
        backend.l2[..6].copy_from_slice(&[2, 0, 0, 0, 1, id as u8]);
        backend.l2[12..14].copy_from_slice(&[8, 0]);
        backend.flags |= backend_flags::USABLE;
        (backend.ifindex, backend.mtu, backend.service) = (u32::from(id), 1_480, 3);
        fake.put_backend(id, &backend).unwrap();
        service.backends.insert(address.into(), status::Backend { id, ..Default::default() });
    }
    let base = |slot: u16| if slot % 2 == 1 { 2 } else { 0 };
    let owners: Vec<_> = (0..251).map(|slot| Owners { current: 1, base: base(slot) }).collect();
    fake.publish_rings(&[(3, owners)]).unwrap();
    fake.put_vip(vip).unwrap();
    fake.put_service(&key, &value).unwrap();
    let interface = status::Interface {
        name: "eth0".into(),
        ifindex: 1,
        mode: "native".into(),
        attached: true,
        others: Vec::new(),
    };
    let services = [(String::from("web"), service)].into();
    (fake, Status { services, interfaces: vec![interface], ..Status::default() })
}

fn made(port: u16, flags: Flags) -> Made {
    Made {
        protocol: Protocol::Tcp,
        source: SocketAddr::new("198.51.100.7".parse().unwrap(), port),
        destination: "10.0.0.100:80".parse().unwrap(),
        flags,
        sequence: 9,
        ttl: 64,
        length: None,
        vlans: Vec::new(),
        payload: Payload::Plain,
        error: None,
    }
}

fn asked(fake: &Fake, status: &Status, made: Made, again: bool) -> Explained {
    let questions = Questions {
        packets: vec![Packet::Made(Box::new(made))],
        interface: None,
        cpu: 0,
        any_mac: false,
        again,
        verify: false,
    };
    let around = Around { status, nanos: NOW, room_for_pins: true };
    explain(fake, &questions, &around).unwrap().remove(0).0
}

/// The first port whose flow is in a slot that is odd, or even.
fn port_of(fake: &Fake, odd: bool) -> u16 {
    let services = Maps::services(fake).unwrap();
    let service = services.values().next().unwrap();
    let slot = |port: u16| {
        let key = FlowKey::new(mapped([198, 51, 100, 7]), port.into(), service.id);
        slot_of_flow(service, &key)
    };
    (4_000..5_000).find(|port| (slot(*port) % 2 == 1) == odd).unwrap()
}

fn text<'a>(explained: &'a Explained, about: &str) -> Vec<&'a str> {
    let steps = explained.steps.iter().filter(|step| step.about == about);
    steps.map(|step| step.text.as_str()).collect()
}

#[test]
fn a_steady_slot_needs_no_pin_and_its_next_packet_goes_the_same_way() {
    let (fake, status) = balancer(Mode::Dsr);
    let explained = asked(&fake, &status, made(port_of(&fake, false), Flags::SYN), false);
    assert_eq!(explained.outcome, Outcome::Forwarded);
    assert_eq!((explained.backend_id, explained.action.as_str()), (1, "XDP_TX"));
    assert_eq!(explained.service.as_deref(), Some("web"));
    assert_eq!(explained.counted, "backend 10.0.0.11 (id 1): packets, bytes, new_flows");
    assert_eq!(text(&explained, "pin"), ["not looked for: the slot is steady and has none"]);
    assert_eq!(explained.writes, ["mark of the SYN"]);
    let next = explained.next.unwrap();
    assert!(!next.differs && next.goes_to == "10.0.0.11 (id 1)", "{next:?}");
    // The frame that leaves has the next hop's address, and one hop less.
    assert!(explained.leaves.starts_with("020000000101"), "{}", explained.leaves);
    assert_eq!(&explained.leaves[44..46], "3f");
}

#[test]
fn a_syn_in_flux_would_be_pinned_and_nothing_is_written() {
    let (fake, status) = balancer(Mode::Ipip);
    let port = port_of(&fake, true);
    let before = fake.dump();
    let explained = asked(&fake, &status, made(port, Flags::SYN), false);
    assert_eq!(explained.backend_id, 1);
    assert!(explained.writes.contains(&"pin made: to 10.0.0.11 (id 1)".into()), "{explained:?}");
    let next = explained.next.clone().unwrap();
    assert_eq!((next.differs, next.why.as_str()), (true, "by its pin"));
    assert_eq!(text(&explained, "tunnel"), ["to 10.0.0.11, TTL 64"]);
    assert_eq!(text(&explained, "leaves").len(), 3, "Ethernet, outer, inner: {explained:?}");
    assert_eq!(fake.dump(), before);
    let slot = explained.slot.unwrap() as usize;
    assert_eq!(fake.ring(3).unwrap()[slot].pinned(), 0, "no stamp");
    assert_eq!(fake.flow_count(lb_model::flow::FlowTable::Pins), 0);
    // Asked again, as nothing has happened.
    assert_eq!(asked(&fake, &status, made(port, Flags::SYN), false), explained);
    // Without a pin the other packets of the slot go to the base owner.
    let other = asked(&fake, &status, made(port, Flags::ACK), false);
    assert_eq!(other.backend_id, 2);
    assert!(other.counted.ends_with("packets, bytes, unpinned_packets"), "{}", other.counted);
}

#[test]
fn a_pin_decides_and_is_told() {
    let (mut fake, status) = balancer(Mode::Dsr);
    let port = port_of(&fake, true);
    let key = FlowKey::new(mapped([198, 51, 100, 7]), port.into(), 3);
    let seen = (NOW / 1_000_000_000) as u32 - 4;
    let value = FlowValue { backend: 3, flags: 1, seen };
    fake.add_flow(FlowRef::Pin(key), value);
    let slot = asked(&fake, &status, made(port, Flags::ACK), false).slot.unwrap();
    fake.ring(3).unwrap()[slot as usize].set_stamps(0, 1);
    let explained = asked(&fake, &status, made(port, Flags::ACK), false);
    assert_eq!((explained.backend_id, explained.action.as_str()), (3, "XDP_REDIRECT"));
    assert_eq!(text(&explained, "pin"), ["to 10.0.0.13 (id 3), established, last packet 4 s ago"]);
    assert_eq!(fake.flow(&FlowRef::Pin(key)), Some(value), "it is not refreshed");
}

#[test]
fn every_end_is_told_with_its_counter() {
    let (mut fake, status) = balancer(Mode::Dsr);
    let port = port_of(&fake, false);
    let base = || made(port, Flags::SYN);
    let other = Made { destination: "10.0.0.100:81".parse().unwrap(), ..base() };
    let cases = [
        (other, Outcome::Passed, "not_a_service", "XDP_PASS"),
        (Made { ttl: 1, ..base() }, Outcome::Answered, "ttl_exceeded_replied", "XDP_TX"),
        (Made { length: Some(1_500), ..base() }, Outcome::Answered, "too_big_replied", "XDP_TX"),
        (Made { vlans: vec![1, 2, 3], ..base() }, Outcome::Passed, "vlan_depth", "XDP_PASS"),
    ];
    for (made, outcome, reason, action) in cases {
        let explained = asked(&fake, &status, made, false);
        assert_eq!(
            (explained.outcome, explained.reason.as_deref(), explained.action.as_str()),
            (outcome, Some(reason), action)
        );
    }
    fake.put_backend(1, &abi::Backend::new_zeroed()).unwrap();
    let explained = asked(&fake, &status, base(), false);
    assert_eq!(explained.reason.as_deref(), Some("no_backend"));
    assert_eq!(explained.counted, "dropped no_backend");
}

#[test]
fn an_error_about_a_flow_goes_where_the_flow_goes() {
    let (fake, status) = balancer(Mode::Dsr);
    let port = port_of(&fake, true);
    let router = "203.0.113.1".parse().unwrap();
    for kind in [IcmpError::Unreachable, IcmpError::TooBig, IcmpError::TimeExceeded] {
        let made = Made { error: Some((kind, router)), ..made(port, Flags::ACK) };
        let explained = asked(&fake, &status, made, false);
        assert_eq!(explained.backend_id, 2, "{explained:?}");
        assert!(explained.writes.is_empty());
    }
}

#[test]
fn a_syn_that_is_sent_again_is_told_so() {
    let (fake, status) = balancer(Mode::Dsr);
    let explained = asked(&fake, &status, made(port_of(&fake, false), Flags::SYN), true);
    assert!(explained.counted.ends_with("new_flows, syn_retransmissions"), "{explained:?}");
}

#[test]
fn a_packet_of_which_only_the_start_was_saved_is_not_taken_for_truncated() {
    let (fake, status) = balancer(Mode::Dsr);
    let long = Made { length: Some(1_400), ..made(port_of(&fake, false), Flags::ACK) };
    let whole = long.frame(OWN).unwrap();
    for (kept, outcome) in [(64, Outcome::Forwarded), (30, Outcome::Passed)] {
        let bytes = hex(&whole.bytes[..kept]);
        let questions = Questions {
            packets: vec![Packet::Frame { bytes, length: whole.length as u32 }],
            interface: Some("eth0".into()),
            cpu: 0,
            any_mac: false,
            again: false,
            verify: false,
        };
        let around = Around { status: &status, nanos: NOW, room_for_pins: true };
        assert_eq!(explain(&fake, &questions, &around).unwrap()[0].0.outcome, outcome, "{kept}");
    }
}

#[test]
fn flags_and_payloads_are_read_as_people_write_them() {
    assert_eq!("syn".parse(), Ok(Flags(2)));
    assert_eq!("PSH,ack".parse(), Ok(Flags(24)));
    assert!("sin".parse::<Flags>().unwrap_err().contains("is none of"));
    assert_eq!(
        "quic-short:0102030405060708".parse(),
        Ok(Payload::QuicShort([1, 2, 3, 4, 5, 6, 7, 8]))
    );
    assert!("quic-short:01".parse::<Payload>().unwrap_err().contains("first eight bytes"));
}

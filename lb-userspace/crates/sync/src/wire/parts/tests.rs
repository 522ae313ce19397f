use std::{net::IpAddr, num::NonZeroU16};

use lb_model::backend_address::BackendAddress;
use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::wire::{PARTS, tests::service_key};

fn flow() -> impl Strategy<Value = Flow> {
    prop_oneof![
        (any::<(IpAddr, u16)>(), destination())
            .prop_map(|((client, port), to)| Flow::Pinned(client, port, to)),
        (any::<(IpAddr, u16)>(), destination())
            .prop_map(|((client, port), to)| Flow::Tracked(client, port, to)),
        any::<[u8; 8]>().prop_map(Flow::Connection),
    ]
}

fn destination() -> impl Strategy<Value = Destination> {
    prop_oneof![
        Just(Destination::ONLY),
        any::<(u16, [u8; 2])>().prop_map(|(port, host)| Destination { port: port.into(), host }),
    ]
}

fn backend() -> impl Strategy<Value = BackendAddress> {
    (any::<IpAddr>(), any::<u16>())
        .prop_map(|(ip, port)| BackendAddress { ip, port: NonZeroU16::new(port) })
}

fn pin() -> impl Strategy<Value = Pin> {
    (flow(), backend(), prop_oneof![0_u16..4, any::<u16>()], any::<u32>()).prop_map(
        |(flow, backend, flags, idle)| Pin {
            flow,
            backend,
            flags,
            idle: Duration::from_secs(u64::from(idle)),
        },
    )
}

fn base() -> impl Strategy<Value = Base> {
    (any::<u32>(), option::of(backend())).prop_map(|(slot, backend)| Base { slot, backend })
}

fn record() -> impl Strategy<Value = Record> {
    let ring = (service_key(), any::<u32>(), vec((backend(), any::<u32>()), 0..400), any::<u64>())
        .prop_map(|(service, slots, members, digest)| Record::Ring {
            service,
            slots,
            members,
            digest,
        });
    prop_oneof![
        ring,
        (service_key(), vec(base(), 0..300))
            .prop_map(|(service, bases)| Record::Bases { service, bases }),
        (service_key(), vec(pin(), 0..300))
            .prop_map(|(service, pins)| Record::Pins { service, pins }),
        (service_key(), vec(flow(), 0..300))
            .prop_map(|(service, flows)| Record::Ended { service, flows }),
    ]
}

fn packed(records: &[Record], limit: usize) -> Vec<Packed> {
    let mut packer = Packer::new(records.to_vec(), limit);
    let mut packets = Vec::new();
    while !packer.is_empty() {
        packets.push(packer.next_packet());
        assert!(packets.len() < 10_000, "it makes no progress");
    }
    packets
}

fn read(packets: &[Packed]) -> Vec<Record> {
    let (mut assembler, mut records) = (Assembler::default(), Vec::new());
    for packet in packets {
        let parts = unpack(&packet.bytes).expect("it was packed so");
        assert_eq!(parts.len(), packet.parts as usize);
        assembler.take(parts, &mut records).expect("they belong together");
    }
    records
}

/// Puts together what was sent in parts.
fn joined(records: Vec<Record>, like: &[Record]) -> Vec<Record> {
    let mut records = records.into_iter().peekable();
    let mut whole = Vec::new();
    for like in like {
        let mut record = records.next().expect("there is another");
        while len(&record) < len(like) {
            match (&mut record, records.next().expect("there is more of it")) {
                (Record::Bases { bases, .. }, Record::Bases { bases: mut more, .. }) => {
                    bases.append(&mut more);
                }
                (Record::Pins { pins, .. }, Record::Pins { pins: mut more, .. }) => {
                    pins.append(&mut more);
                }
                (Record::Ended { flows, .. }, Record::Ended { flows: mut more, .. }) => {
                    flows.append(&mut more);
                }
                (record, more) => panic!("{record:?} is followed by {more:?}"),
            }
        }
        whole.push(record);
    }
    assert_eq!(records.next(), None);
    whole
}

fn len(record: &Record) -> usize {
    match record {
        Record::Ring { members, .. } => members.len(),
        Record::Bases { bases, .. } => bases.len(),
        Record::Pins { pins, .. } => pins.len(),
        Record::Ended { flows, .. } => flows.len(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn records_come_back_as_they_were(
        records in vec(record(), 0..6), limit in prop_oneof![Just(PARTS), 128_usize..400],
    ) {
        let packets = packed(&records, limit);
        prop_assert!(packets.iter().all(|packet| packet.bytes.len() <= limit));
        prop_assert_eq!(joined(read(&packets), &records), records);
    }

    #[test]
    fn any_bytes_are_unpacked_without_panic(bytes in vec(any::<u8>(), 0..=PARTS)) {
        if let Ok(parts) = unpack(&bytes) {
            let _ = Assembler::default().take(parts, &mut Vec::new());
        }
    }

    /// Bytes that are nearly parts reach further than any bytes.
    #[test]
    fn damaged_records_are_unpacked_without_panic(
        records in vec(record(), 1..4),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut assembler = Assembler::default();
        for mut packet in packed(&records, PARTS) {
            for (at, byte) in &damage {
                let at = at.index(packet.bytes.len());
                packet.bytes[at] = *byte;
            }
            if let Ok(parts) = unpack(&packet.bytes) {
                let _ = assembler.take(parts, &mut Vec::new());
            }
        }
    }
}

fn service() -> ServiceKey {
    let protocol = lb_model::desired::Protocol::Tcp;
    ServiceKey::new("10.0.0.100".parse().unwrap(), 443, protocol)
}

fn client(number: u32) -> Flow {
    Flow::Pinned(
        std::net::Ipv4Addr::from(0x0a01_0000 + number).into(),
        number as u16,
        Destination::ONLY,
    )
}

#[test]
fn a_pin_of_ipv4_takes_nine_or_ten_bytes() {
    let backend = "10.0.0.9".parse().unwrap();
    let pin = |number| Pin {
        flow: client(number),
        backend,
        flags: 1,
        idle: Duration::from_secs(u64::from(number % 900)),
    };
    let pins = (0..10_000).map(pin).collect();
    let packets = packed(&[Record::Pins { service: service(), pins }], PARTS);
    let bytes: usize = packets.iter().map(|packet| packet.bytes.len()).sum();
    assert!((90_000..101_000).contains(&bytes), "{bytes}");
}

#[test]
fn a_ring_of_more_members_than_there_are_ids_is_refused() {
    let mut ring = vec![0, RING];
    ring.put_service(&service());
    ring.put_varint(65_537);
    ring.put(&[0; 8]);
    ring.put_varint(u64::from(MEMBERS) + 1);
    ring.put(&[0, 0]);
    assert!(unpack(&ring).is_err());
}

#[test]
fn a_ring_that_lacks_members_is_not_told() {
    let members = (0..500).map(|i| (std::net::Ipv4Addr::from(i).into(), 1000)).collect();
    let ring = Record::Ring { service: service(), slots: 65_537, members, digest: 5 };
    let packets = packed(&[ring], PARTS);
    assert!(packets.len() > 1);
    assert_eq!(read(&packets[..packets.len() - 1]), []);
    // What follows does not make it whole, nor is it lost without an error.
    let mut assembler = Assembler::default();
    let first = || unpack(&packets[0].bytes).unwrap();
    assert_eq!(assembler.take(first(), &mut Vec::new()), Ok(()));
    assert!(assembler.take(first(), &mut Vec::new()).is_err());
    let last = unpack(&packets[packets.len() - 1].bytes).unwrap();
    assert!(Assembler::default().take(last, &mut Vec::new()).is_err());
}

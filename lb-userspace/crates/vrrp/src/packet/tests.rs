use std::{net::IpAddr, num::NonZeroU8, time::Duration, time::SystemTime};

use lb_model::router::{Announce, Auth, Router, RouterKey, VirtualAddress};
use proptest::prelude::*;

use super::*;
use crate::fsm::ReceivedAdvertisement;

pub(super) const NOW: SystemTime = SystemTime::UNIX_EPOCH;

pub(super) fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|c| !c.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

pub(super) fn packet<'a>(source: &str, destination: &str, message: &'a [u8]) -> Packet<'a> {
    Packet { source: ip(source), destination: ip(destination), ttl: 255, message }
}

pub(super) fn router(family: Family, vrid: u8, version: Version, addresses: &[&str]) -> Router {
    let addresses = addresses.iter().map(|address| VirtualAddress {
        address: ip(address),
        prefix: 32,
        interface: None,
        label: None,
        nodad: true,
        advertised: true,
    });
    Router {
        name: "main".into(),
        interface: "eth0".into(),
        key: RouterKey { family, vrid: NonZeroU8::new(vrid).unwrap() },
        version,
        priority: NonZeroU8::new(100).unwrap(),
        interval: Duration::from_secs(1),
        preempt: true,
        preempt_delay: Duration::ZERO,
        accept: true,
        addresses: addresses.collect(),
        source: None,
        peers: Vec::new(),
        min_ttl: 255,
        second_path: None,
        auth: Auth::None,
        checksum: Checksum::PseudoHeader,
        virtual_mac: None,
        announce: Announce::default(),
        tracks: Vec::new(),
        notify: None,
    }
}

/// A message of keepalived 2.2.7, as captured on a link.
struct KeepalivedMessage {
    router: Router,
    priority: u8,
    source: &'static str,
    destination: &'static str,
    message: &'static str,
}

fn keepalived_messages() -> Vec<KeepalivedMessage> {
    let group = "224.0.0.18";
    let v2 = router(Family::V4, 51, Version::V2, &["10.0.0.100", "10.0.0.101"]);
    let mut v2_password = router(Family::V4, 51, Version::V2, &["10.0.0.100"]);
    v2_password.auth = Auth::Pass(*b"secret\0\0");
    let mut v3 = router(Family::V4, 52, Version::V3, &["10.0.0.100", "10.0.0.101"]);
    v3.interval = Duration::from_millis(500);
    let mut v3_unicast = router(Family::V4, 53, Version::V3, &["10.0.0.100"]);
    v3_unicast.peers = vec![ip("10.0.0.1")];
    let v6 = router(Family::V6, 54, Version::V3, &["fe80::100", "2001:db8::100"]);
    let one = |router, priority, source, destination, message| KeepalivedMessage {
        router,
        priority,
        source,
        destination,
        message,
    };
    vec![
        one(v2, 150, "10.0.0.1", group, "2133960200013400 0a000064 0a000065 0000000000000000"),
        one(
            v2_password.clone(),
            150,
            "10.0.0.1",
            group,
            "213396010101011a 0a000064 7365637265740000",
        ),
        one(v2_password, 0, "10.0.0.1", group, "213300010101971a 0a000064 7365637265740000"),
        one(v3, 200, "10.0.0.1", group, "3134c8020032073a 0a000064 0a000065"),
        one(v3_unicast.clone(), 100, "10.0.0.1", "10.0.0.2", "3135640100644b82 0a000064"),
        one(v3_unicast, 0, "10.0.0.1", "10.0.0.2", "313500010064af82 0a000064"),
        one(
            v6,
            254,
            "fe80::a",
            "ff02::12",
            "3136fe020064a3f0 fe800000000000000000000000000100 20010db8000000000000000000000100",
        ),
    ]
}

#[test]
fn what_keepalived_sends_is_taken() {
    for captured in keepalived_messages() {
        let message = hex(captured.message);
        let packet = packet(captured.source, captured.destination, &message);
        let taken = Codec::new(&captured.router).read(&packet, Path::First, NOW);
        let received = ReceivedAdvertisement {
            from: ip(captured.source),
            own: ip(captured.destination),
            second_path: false,
            priority: captured.priority,
            interval: captured.router.interval,
        };
        assert_eq!(taken, Ok(Taken { received, mismatch: None }), "{}", captured.message);
    }
}

#[test]
fn the_bytes_sent_are_those_of_keepalived() {
    for captured in keepalived_messages() {
        let mut codec = Codec::new(&captured.router);
        let (source, destination) = (ip(captured.source), ip(captured.destination));
        let sent = codec.write(captured.priority, Path::First, source, destination, NOW);
        assert_eq!(sent, hex(captured.message));
    }
}

#[test]
fn the_checksum_of_ipv6_and_of_a_pseudo_header_binds_source_and_destination() {
    for (family, source, other, destination) in [
        (Family::V6, "fe80::a", "fe80::b", "ff02::12"),
        (Family::V4, "10.0.0.1", "10.0.0.2", "224.0.0.18"),
    ] {
        let router = router(family, 9, Version::V3, &["10.0.0.100", "fe80::100"]);
        let message = Codec::new(&router).write(1, Path::First, ip(source), ip(destination), NOW);
        assert!(decode(&packet(source, destination, &message)).is_ok());
        let moved = decode(&packet(other, destination, &message));
        assert_eq!(moved.unwrap_err(), Refusal::Checksum);
    }
}

#[test]
fn all_addresses_that_have_room_are_named_and_no_more() {
    let addresses: Vec<_> =
        (0..300_u16).map(|n| IpAddr::from(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, n))).collect();
    let advertisement = Advertisement {
        version: Version::V3,
        vrid: NonZeroU8::MIN,
        priority: 1,
        interval: Duration::from_secs(1),
        addresses: addresses.clone(),
    };
    let (source, group) = (ip("fe80::a"), Family::V6.group());
    let message = encode(&advertisement, source, group, Checksum::PseudoHeader, Proof::None);
    assert!(message.len() <= MAX_LEN);
    let packet = Packet { source, destination: group, ttl: 255, message: &message };
    assert_eq!(decode(&packet).unwrap().advertisement.addresses, addresses[..MAX_ADDRESSES]);
}

fn advertisements() -> impl Strategy<Value = (Advertisement, IpAddr, IpAddr, Checksum, Proof)> {
    let v4 = || any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits)));
    let v6 = || any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits)));
    let centiseconds =
        (1..=MAX_CENTISECONDS).prop_map(|n| Duration::from_millis(u64::from(n) * 10));
    let proof = prop_oneof![
        Just(Proof::None),
        any::<[u8; 8]>().prop_map(Proof::Password),
        (2..=u8::MAX).prop_map(Proof::Other),
    ];
    let v2 = (
        (1..=u8::MAX).prop_map(|n| Duration::from_secs(n.into())),
        prop::collection::vec(v4(), 0..=255),
        Just(Version::V2),
        (v4(), v4()),
        proof,
    );
    let v3_v4 = (
        centiseconds.clone(),
        prop::collection::vec(v4(), 1..=255),
        Just(Version::V3),
        (v4(), v4()),
        Just(Proof::None),
    );
    let v3_v6 = (
        centiseconds,
        prop::collection::vec(v6(), 1..=255),
        Just(Version::V3),
        (v6(), v6()),
        Just(Proof::None),
    );
    let checksum = prop_oneof![Just(Checksum::PseudoHeader), Just(Checksum::Message)];
    let rest = (1..=u8::MAX, any::<u8>(), checksum);
    (prop_oneof![v2, v3_v4, v3_v6], rest).prop_map(
        |((interval, addresses, version, (source, destination), proof), rest)| {
            let (vrid, priority, checksum) = rest;
            let vrid = NonZeroU8::new(vrid).unwrap();
            let advertisement = Advertisement { version, vrid, priority, interval, addresses };
            (advertisement, source, destination, checksum, proof)
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read((sent, source, destination, checksum, proof) in advertisements()) {
        let message = encode(&sent, source, destination, checksum, proof);
        let packet = Packet { source, destination, ttl: 255, message: &message };
        let read = decode(&packet).unwrap();
        prop_assert_eq!(&read.advertisement, &sent);
        prop_assert_eq!(read.proof, proof);
        prop_assert_eq!(read.body, &message[..]);
        prop_assert_eq!(read.trailer, None);
        prop_assert_eq!(vrid(&message), Some(sent.vrid));
    }

    #[test]
    fn one_changed_bit_is_always_found(
        (sent, source, destination, checksum, proof) in advertisements(),
        bit in any::<prop::sample::Index>(),
    ) {
        let mut message = encode(&sent, source, destination, checksum, proof);
        let bit = bit.index(message.len() * 8);
        message[bit / 8] ^= 1 << (bit % 8);
        let packet = Packet { source, destination, ttl: 255, message: &message };
        prop_assert!(decode(&packet).is_err());
    }
}

//! What comes from the wire, broken in many ways: nothing panics, and nothing is taken that its
//! checksum, or its HMAC, does not prove.

use std::{
    net::IpAddr,
    num::NonZeroU8,
    time::{Duration, SystemTime},
};

use lb_model::router::{Auth, Checksum, Family, Router, Version};

use super::{Codec, Packet, Path, Proof, TTL, decode, tests::router, total};
use crate::announce;

const INPUTS: u64 = 200_000;

/// SplitMix64: the same inputs in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Changes bytes, cuts, extends, or moves a part; sometimes nothing.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.extend((0..self.below(40)).map(|n| n as u8)),
                2 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                3 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                4 => bytes.rotate_left(at),
                5 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                _ => {}
            }
        }
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Where a message of this family comes from and goes to.
fn ends(family: Family) -> (IpAddr, IpAddr) {
    let source = match family {
        Family::V4 => "10.0.0.1",
        Family::V6 => "fe80::a",
    };
    (source.parse().unwrap(), family.group())
}

fn routers() -> Vec<Router> {
    let names = ["10.0.0.100", "10.0.0.101", "fe80::100", "2001:db8::1"];
    let kinds = [(Family::V4, Version::V2), (Family::V4, Version::V3), (Family::V6, Version::V3)];
    let auths = [Auth::None, Auth::Pass(*b"secret\0\0"), Auth::Hmac { id: 1, secret: vec![1; 32] }];
    let all = kinds.into_iter().flat_map(|(family, version)| {
        let plain = router(family, 51, version, &names);
        auths.clone().map(|auth| Router { auth, ..plain.clone() })
    });
    all.filter(|r| r.version == Version::V2 || !matches!(r.auth, Auth::Pass(_))).collect()
}

/// The checksum, by another way than the decoder's: over each part that may be covered.
fn checksum_is_right(packet: &Packet<'_>) -> bool {
    let kinds = [Checksum::Message, Checksum::PseudoHeader];
    let ends = [Some(packet.message.len()), packet.message.len().checked_sub(28)];
    kinds.into_iter().any(|kind| {
        ends.into_iter().flatten().any(|end| {
            total(&packet.message[..end], packet.source, packet.destination, kind) == 0xffff
        })
    })
}

#[test]
fn no_broken_message_panics_and_none_is_taken_that_is_not_proven() {
    let routers = routers();
    let mut random = Random(1);
    let mut taken = 0;
    for input in 0..INPUTS {
        let sender = &routers[random.below(routers.len())];
        let reader = &routers[random.below(routers.len())];
        let (source, destination) = ends(sender.key.family);
        let sent = Codec::new(sender).write(9, Path::First, source, destination, now());
        let mut message = sent.clone();
        random.mutate(&mut message);
        let mut packet = Packet { source, destination, ttl: TTL, message: &message };
        if random.below(50) == 0 {
            // A destination and a source of different families come from no socket.
            packet.source = ends(reader.key.family).0;
        }
        if let Ok(decoded) = decode(&packet) {
            assert!(checksum_is_right(&packet), "input {input}");
            assert!(decoded.body.len() <= message.len());
            assert_eq!(super::vrid(&message), Some(decoded.advertisement.vrid));
        }
        let Ok(accepted) = Codec::new(reader).read(&packet, Path::First, now()) else { continue };
        taken += 1;
        assert_eq!(sender.key, reader.key, "input {input}");
        assert_eq!(accepted.received.from, source);
        match &reader.auth {
            Auth::None => {}
            Auth::Pass(password) => {
                assert_eq!(decode(&packet).unwrap().proof, Proof::Password(*password));
            }
            // The checksum is not signed.
            Auth::Hmac { .. } => {
                assert_eq!(message[..6], sent[..6], "input {input}");
                assert_eq!(message[8..], sent[8..], "input {input}");
            }
        }
    }
    assert!(taken > INPUTS / 100, "only {taken} were whole");
}

#[test]
fn no_broken_frame_panics_or_claims_without_being_whole() {
    let mut random = Random(2);
    let mac = [2, 0, 0, 0, 0, 1];
    let mut claims = 0;
    for input in 0..INPUTS {
        let address: IpAddr = ["10.0.0.100", "2001:db8::1"][random.below(2)].parse().unwrap();
        let whole = announce::frame(address, mac, random.below(2) == 0);
        let mut frame = whole.clone();
        random.mutate(&mut frame);
        let Some(claim) = announce::claim(&frame) else { continue };
        claims += 1;
        let at = if claim.address.is_ipv6() { 14 + 40 + 8 } else { 14 + 14 };
        let octets = match claim.address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        assert!(frame[at..].starts_with(&octets), "input {input}");
        if claim.address.is_ipv6() {
            // Not from behind a router, and ICMPv6.
            assert_eq!((frame[14 + 7], frame[14 + 6]), (255, 58), "input {input}");
        }
    }
    assert!(claims > INPUTS / 100, "only {claims} were whole");
}

#[test]
fn no_bytes_at_all_are_an_advertisement_by_chance() {
    let mut random = Random(3);
    let reader = router(Family::V4, 51, Version::V3, &["10.0.0.100"]);
    let (source, destination) = ends(Family::V4);
    for _ in 0..INPUTS {
        let message: Vec<u8> = (0..random.below(64)).map(|_| random.next() as u8).collect();
        let packet = Packet { source, destination, ttl: TTL, message: &message };
        if let Ok(decoded) = decode(&packet) {
            assert!(checksum_is_right(&packet));
            assert_ne!(NonZeroU8::new(message[1]), None);
            assert!(!decoded.advertisement.interval.is_zero());
        }
        let _ = Codec::new(&reader).read(&packet, Path::First, now());
    }
}

use proptest::prelude::*;

use super::*;

const WINDOW: Duration = Duration::from_secs(5);

/// The images of the draft's appendix: key 00..1f, VRID 51, priority 200, sequence
/// 0x6800000080000000, of version 3.
const IMAGES: [(&str, &str); 2] = [
    (
        "198.51.100.10",
        "3133c80100644402c0000264\
         0101000068000000800000001b84bc4e8e43892dc6d98448f8ee2265",
    ),
    (
        "fe80::10",
        "3133c8010064a2e9fe800000000000000000000000000100\
         010100006800000080000000c8c56146ebfd66ee10ec4d8186461b78",
    ),
];

fn hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn key() -> Hmac {
    let secret: Vec<u8> = (0..32).collect();
    Hmac::new(1, &secret, WINDOW)
}

/// The time of the images.
fn then() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(0x6800_0000) + Duration::from_millis(500)
}

fn message() -> Vec<u8> {
    hex("3133c80100644402c0000264")
}

fn verify(hmac: &mut Hmac, signed: &[u8], source: &str, now: SystemTime) -> Result<(), Failure> {
    let (message, trailer) = signed.split_at(signed.len() - TRAILER);
    hmac.verify(message, trailer.try_into().unwrap(), Version::V3, ip(source), now)
}

fn sign(hmac: &mut Hmac, source: &str, now: SystemTime) -> Vec<u8> {
    let mut message = message();
    hmac.sign(&mut message, Version::V3, ip(source), now);
    message
}

#[test]
fn the_images_of_the_draft_are_right_and_are_what_is_signed() {
    for (source, image) in IMAGES {
        let image = hex(image);
        assert_eq!(verify(&mut key(), &image, source, then()), Ok(()));
        let mut signed = image[..image.len() - TRAILER].to_vec();
        key().sign(&mut signed, Version::V3, ip(source), then());
        assert_eq!(signed, image);
    }
}

#[test]
fn all_but_the_checksum_is_bound() {
    let (source, image) = IMAGES[1];
    let image = hex(image);
    let start = image.len() - TRAILER;
    for at in 0..image.len() {
        let mut changed = image.clone();
        changed[at] ^= 1;
        let found = verify(&mut key(), &changed, source, then());
        let expected = match at {
            6 | 7 => Ok(()),
            at if at == start => Err(Failure::Malformed),
            at if at == start + 1 => Err(Failure::UnknownKey(0)),
            at if at == start + 2 || at == start + 3 => Err(Failure::Malformed),
            _ => Err(Failure::Wrong),
        };
        assert_eq!(found, expected, "byte {at}");
    }
}

#[test]
fn it_is_bound_to_sender_version_and_key() {
    let (source, image) = IMAGES[1];
    let image = hex(image);
    assert_eq!(verify(&mut key(), &image, "fe80::20", then()), Err(Failure::Wrong));
    let (message, trailer) = image.split_at(image.len() - TRAILER);
    let version =
        key().verify(message, trailer.try_into().unwrap(), Version::V2, ip(source), then());
    assert_eq!(version, Err(Failure::Wrong));
    let mut other = Hmac::new(1, &[9; 32], WINDOW);
    assert_eq!(verify(&mut other, &image, source, then()), Err(Failure::Wrong));
    let mut other = Hmac::new(2, &[9; 32], WINDOW);
    assert_eq!(verify(&mut other, &image, source, then()), Err(Failure::UnknownKey(1)));
}

#[test]
fn clocks_may_be_apart_by_the_window_and_no_more() {
    let signed = sign(&mut key(), "10.0.0.1", then());
    for (now, expected) in [
        (then() + WINDOW, Ok(())),
        (then() - WINDOW, Ok(())),
        (then() + WINDOW + Duration::from_millis(1), Err(Failure::Stale)),
        (then() - WINDOW - Duration::from_millis(1), Err(Failure::Stale)),
    ] {
        assert_eq!(verify(&mut key(), &signed, "10.0.0.1", now), expected);
    }
}

#[test]
fn only_who_has_the_key_has_a_wrong_clock() {
    let now = then() + 100 * WINDOW;
    let mut signed = sign(&mut key(), "10.0.0.1", then());
    assert_eq!(verify(&mut key(), &signed, "10.0.0.1", now), Err(Failure::Stale));
    *signed.last_mut().unwrap() ^= 1;
    assert_eq!(verify(&mut key(), &signed, "10.0.0.1", now), Err(Failure::Wrong));
}

#[test]
fn every_signature_is_newer_even_at_the_same_moment() {
    let mut sender = key();
    let mut receiver = key();
    for _ in 0..3 {
        let signed = sign(&mut sender, "10.0.0.1", then());
        assert_eq!(verify(&mut receiver, &signed, "10.0.0.1", then()), Ok(()));
    }
    // And when the clock goes back a little.
    let signed = sign(&mut sender, "10.0.0.1", then() - Duration::from_secs(2));
    assert_eq!(verify(&mut receiver, &signed, "10.0.0.1", then()), Ok(()));
}

#[test]
fn a_repetition_and_what_is_older_are_refused_and_other_senders_are_not() {
    let mut sender = key();
    let mut receiver = key();
    let first = sign(&mut sender, "10.0.0.1", then());
    let second = sign(&mut sender, "10.0.0.1", then());
    let elsewhere = sign(&mut key(), "10.0.0.2", then() - Duration::from_secs(1));
    assert_eq!(verify(&mut receiver, &second, "10.0.0.1", then()), Ok(()));
    assert_eq!(verify(&mut receiver, &second, "10.0.0.1", then()), Err(Failure::Replayed));
    assert_eq!(verify(&mut receiver, &first, "10.0.0.1", then()), Err(Failure::Replayed));
    assert_eq!(verify(&mut receiver, &elsewhere, "10.0.0.2", then()), Ok(()));
    // New settings keep that in mind.
    let mut next = key();
    next.resume(&mut receiver);
    assert_eq!(verify(&mut next, &second, "10.0.0.1", then()), Err(Failure::Replayed));
}

#[test]
fn a_forgery_moves_no_mark() {
    let mut receiver = key();
    let mut forged = sign(&mut key(), "10.0.0.1", then() + Duration::from_secs(4));
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(verify(&mut receiver, &forged, "10.0.0.1", then()), Err(Failure::Wrong));
    let signed = sign(&mut key(), "10.0.0.1", then());
    assert_eq!(verify(&mut receiver, &signed, "10.0.0.1", then()), Ok(()));
}

#[test]
fn a_clock_that_was_far_ahead_keeps_nobody_out() {
    let hour = Duration::from_secs(3_600);
    let mut sender = key();
    let mut receiver = key();
    // Both clocks were wrong together; then both are set right.
    let signed = sign(&mut sender, "10.0.0.1", then() + hour);
    assert_eq!(verify(&mut receiver, &signed, "10.0.0.1", then() + hour), Ok(()));
    let signed = sign(&mut sender, "10.0.0.1", then());
    assert_eq!(verify(&mut receiver, &signed, "10.0.0.1", then()), Ok(()));
    assert_eq!(verify(&mut receiver, &signed, "10.0.0.1", then()), Err(Failure::Replayed));
}

#[test]
fn nothing_happens_when_the_seconds_overflow() {
    let end = UNIX_EPOCH + Duration::from_secs(1 << 32);
    let mut sender = key();
    let mut receiver = key();
    let before = sign(&mut sender, "10.0.0.1", end - Duration::from_millis(500));
    let after = sign(&mut sender, "10.0.0.1", end + Duration::from_millis(500));
    assert_eq!(verify(&mut receiver, &before, "10.0.0.1", end), Ok(()));
    assert_eq!(verify(&mut receiver, &after, "10.0.0.1", end), Ok(()));
    assert_eq!(verify(&mut receiver, &before, "10.0.0.1", end), Err(Failure::Replayed));
}

#[test]
fn of_many_senders_those_not_heard_for_longest_are_forgotten() {
    let mut receiver = key();
    let source = |n: usize| format!("10.0.0.{n}");
    for n in 0..=MAX_SENDERS {
        let now = then() + Duration::from_millis(n as u64);
        let signed = sign(&mut key(), &source(n), now);
        assert_eq!(verify(&mut receiver, &signed, &source(n), now), Ok(()));
    }
    assert_eq!(receiver.received.len(), MAX_SENDERS);
    assert!(!receiver.received.contains_key(&ip("10.0.0.0")));
}

#[test]
fn the_window_follows_the_interval() {
    assert_eq!(window(Duration::from_millis(100)), Duration::from_secs(5));
    assert_eq!(window(Duration::from_secs(40)), Duration::from_secs(120));
}

proptest! {
    #[test]
    fn what_is_signed_is_verified_and_no_other_message_is(
        message in prop::collection::vec(any::<u8>(), 8..100),
        secret in prop::collection::vec(any::<u8>(), 0..100),
        source in any::<u32>(),
        at in any::<prop::sample::Index>(),
        with in 1..=u8::MAX,
    ) {
        let source = IpAddr::from(std::net::Ipv4Addr::from_bits(source));
        let mut signed = message.clone();
        let hmac = || Hmac::new(1, &secret, WINDOW);
        hmac().sign(&mut signed, Version::V2, source, then());
        let trailer = signed[message.len()..].try_into().unwrap();
        prop_assert_eq!(hmac().verify(&message, trailer, Version::V2, source, then()), Ok(()));
        let at = at.index(message.len());
        prop_assume!(at != 6 && at != 7);
        let mut other = message;
        other[at] ^= with;
        let found = hmac().verify(&other, trailer, Version::V2, source, then());
        prop_assert_eq!(found, Err(Failure::Wrong));
    }
}

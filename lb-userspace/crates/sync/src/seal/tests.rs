use proptest::prelude::*;

use super::*;
use crate::wire::Message;

const KEY: Key = Key([7; KEY_BYTES]);

fn session(number: u8) -> SessionId {
    SessionId([number; 16])
}

/// A datagram of session 1, for session 2 or all.
fn sealed(sealer: &mut Sealer, to: Option<u8>) -> Vec<u8> {
    sealer.seal(9, to.map(session).as_ref(), |body| body.extend_from_slice(b"what is sent"))
}

fn opened(opener: &mut Opener, own: u8, datagram: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut datagram = datagram.to_vec();
    let (header, sealed) = Header::split(&mut datagram).expect("it has a header");
    opener.open(&header, &session(own), sealed).map(<[u8]>::to_vec)
}

#[test]
fn what_is_sealed_opens_once() {
    let (mut sealer, mut opener) = (Sealer::new(&KEY, session(1)), Opener::new(&KEY, session(1)));
    for to in [None, Some(2)] {
        let datagram = sealed(&mut sealer, to);
        assert!(!datagram.windows(12).any(|bytes| bytes == b"what is sent"), "it is readable");
        assert_eq!(opened(&mut opener, 2, &datagram).as_deref(), Ok(&b"what is sent"[..]));
        assert_eq!(opened(&mut opener, 2, &datagram), Err(Refused::Replayed));
    }
}

/// As of a virtual machine that goes on from one snapshot twice: with one session, key and counter.
#[test]
fn a_session_that_goes_on_from_a_snapshot_twice_repeats_no_key_stream() {
    let bodies = [&b"what is sent at first"[..], b"what the copy says"];
    let sealed = bodies.map(|body| {
        let mut sealer = Sealer::new(&KEY, session(1));
        sealer.seal(9, None, |datagram| datagram.extend_from_slice(body))
    });
    let stream = |n: usize| {
        let body = &sealed[n][size_of::<Header>()..];
        let bytes = body.iter().zip(bodies[n]).take(16);
        bytes.map(|(one, other)| one ^ other).collect::<Vec<_>>()
    };
    assert_ne!(stream(0), stream(1));
    for (datagram, body) in sealed.iter().zip(bodies) {
        let mut opener = Opener::new(&KEY, session(1));
        assert_eq!(opened(&mut opener, 2, datagram).as_deref(), Ok(body));
    }
}

#[test]
fn what_is_for_another_session_does_not_open() {
    let (mut sealer, mut opener) = (Sealer::new(&KEY, session(1)), Opener::new(&KEY, session(1)));
    let mut datagram = sealed(&mut sealer, Some(2));
    assert_eq!(opened(&mut opener, 3, &datagram), Err(Refused::ElseWhere));
    // Nor when its header is for this one, or for all.
    for tag in [session(3).tag(), 0] {
        datagram[4..8].copy_from_slice(&tag.to_be_bytes());
        assert_eq!(opened(&mut opener, 3, &datagram), Err(Refused::NotAuthentic));
    }
}

#[test]
fn another_key_and_another_session_do_not_open_it() {
    let datagram = sealed(&mut Sealer::new(&KEY, session(1)), None);
    let mut other_key = Opener::new(&Key([8; KEY_BYTES]), session(1));
    assert_eq!(opened(&mut other_key, 2, &datagram), Err(Refused::NotAuthentic));
    let mut other_session = Opener::new(&KEY, session(3));
    assert_eq!(opened(&mut other_session, 2, &datagram), Err(Refused::NotAuthentic));
}

#[test]
fn no_bit_can_be_changed() {
    let datagram = sealed(&mut Sealer::new(&KEY, session(1)), Some(2));
    for bit in 0..datagram.len() * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let Ok((header, sealed)) = Header::split(&mut changed) else { continue };
        let mut opener = Opener::new(&KEY, SessionId(header.session));
        assert!(opener.open(&header, &session(2), sealed).is_err(), "bit {bit}");
    }
}

#[test]
fn sessions_have_keys_of_their_own() {
    let mut datagrams = [1, 2].map(|number| sealed(&mut Sealer::new(&KEY, session(number)), None));
    let bodies = datagrams.each_mut().map(|datagram| datagram.split_off(size_of::<Header>()));
    assert_ne!(bodies[0], bodies[1]);
}

#[test]
fn what_is_refused_is_not_marked_as_taken() {
    let (mut sealer, mut opener) = (Sealer::new(&KEY, session(1)), Opener::new(&KEY, session(1)));
    let datagram = sealed(&mut sealer, None);
    let mut forged = datagram.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(opened(&mut opener, 2, &forged), Err(Refused::NotAuthentic));
    assert!(opened(&mut opener, 2, &datagram).is_ok());
}

#[test]
fn keys_are_64_hexadecimal_digits() {
    let key = Key::generate().expect("there is randomness");
    assert_eq!(key.to_text().len(), 64);
    assert_eq!(format!("{}\n", key.to_text()).parse(), Ok(key.clone()));
    assert_ne!(Key::generate().expect("there is randomness"), key);
    for text in ["", "0", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"+1".repeat(32)] {
        assert_eq!(text.parse::<Key>(), Err(NoKey), "{text}");
    }
}

#[test]
fn nothing_that_is_shown_tells_the_key() {
    let key = Key([0xab; KEY_BYTES]);
    let shown = format!(
        "{key:?} {:?} {:?} {}",
        Sealer::new(&key, session(1)),
        Opener::new(&key, session(1)),
        NoKey
    );
    assert!(
        !shown.contains("171") && !shown.contains("ab, ab") && !shown.contains("abab"),
        "{shown}"
    );
}

proptest! {
    /// A set of all counters that were taken is the model.
    #[test]
    fn the_window_takes_each_counter_once_and_forgets_none_that_is_near(
        steps in proptest::collection::vec((0_u64..3, 0_u64..6000), 1..400),
    ) {
        let (mut window, mut taken) = (Window::default(), std::collections::BTreeSet::new());
        let mut highest = 0_u64;
        for (kind, step) in steps {
            let counter = match kind {
                0 => highest + step % 200,
                1 => highest + step,
                _ => highest.saturating_sub(step),
            };
            let near = counter > 0 && (counter > highest || highest - counter < WINDOW);
            prop_assert_eq!(window.is_fresh(counter), near && !taken.contains(&counter));
            if window.is_fresh(counter) {
                window.take(counter);
                taken.insert(counter);
                highest = highest.max(counter);
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_without_panic(bytes: Vec<u8>, header in any::<bool>()) {
        let mut datagram = bytes;
        if header {
            let start = [&b"ls\x01"[..], &[Message::HELLO]].concat();
            datagram.splice(..0, start);
        }
        let _ = open(&KEY, &session(1), &mut datagram);
    }
}

//! Seals and opens datagrams: ChaCha20-Poly1305 (RFC 8439) under a key of the sender's session.
//!
//! Each start of a node is a session, with an id of 16 random bytes. HKDF-SHA256 (RFC 5869) makes
//! the session's key from the shared key, salted with that id; so no two sessions share a key, and
//! the counter of a session's packets is a nonce that never repeats in a run. A virtual machine that
//! goes on from a snapshot twice repeats session and counter; so the nonce has 4 random bytes beside
//! the counter, from the kernel for each datagram, which seeds its randomness anew in such a machine (the
//! VM Generation ID, Linux 5.18). The header is authenticated with the body. A datagram for one peer is also bound to that peer's session: it opens nowhere
//! else, and not after a restart.
//!
//! A session's packets are taken once each ([`Window`]); that a session is not a recorded one is for
//! [`session`](super::session) to find out.

use std::{fmt, str::FromStr};

use anyhow::Result;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    hkdf,
    rand::{SecureRandom as _, SystemRandom},
};

use super::{
    KEY_BYTES, Key,
    id::{SessionId, random},
    wire::{Header, NoHeader},
};

/// Datagrams that may come out of their order, in number.
const WINDOW: u64 = 4096;

/// What the session's key is for.
const INFO: &[u8] = b"lb flow sync 1";

impl Key {
    /// A random key.
    ///
    /// # Errors
    ///
    /// The system has no randomness.
    pub fn generate() -> Result<Self> {
        Ok(Self(random()?))
    }

    /// The key as files have it: 64 hexadecimal digits.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no key of 64 hexadecimal digits; `lbctl sync key` makes one")]
pub struct NoKey;

impl FromStr for Key {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let digits = text.trim().as_bytes();
        if digits.len() != 2 * KEY_BYTES {
            return Err(NoKey);
        }
        let mut key = [0; KEY_BYTES];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(NoKey);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Self(key))
    }
}

fn session_key(key: &Key, session: &SessionId) -> LessSafeKey {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, &session.0).extract(&key.0);
    let info = [INFO];
    let material = secret.expand(&info, &CHACHA20_POLY1305);
    LessSafeKey::new(UnboundKey::from(material.expect("a key is shorter than HKDF's limit")))
}

fn nonce(header: &Header) -> Nonce {
    use zerocopy::IntoBytes as _;
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(header.salt.as_bytes());
    nonce[4..].copy_from_slice(header.counter.as_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// What is authenticated beside the body: the header, and whose session the datagram is for.
fn bound(header: &Header, to: Option<&SessionId>) -> Aad<[u8; size_of::<Header>() + 16]> {
    use zerocopy::IntoBytes as _;
    let mut bytes = [0; size_of::<Header>() + 16];
    bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    if let Some(to) = to {
        bytes[size_of::<Header>()..].copy_from_slice(&to.0);
    }
    Aad::from(bytes)
}

/// Seals what this node's session sends.
pub struct Sealer {
    key: LessSafeKey,
    session: SessionId,
    counter: u64,
    random: SystemRandom,
}

impl Sealer {
    /// For a session that has sent nothing yet.
    #[must_use]
    pub fn new(key: &Key, session: SessionId) -> Self {
        let (key, random) = (session_key(key, &session), SystemRandom::new());
        Self { key, session, counter: 0, random }
    }

    /// The session.
    #[must_use]
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// A datagram of a message of this kind, for one session or for all; `body` appends the
    /// message.
    pub fn seal(
        &mut self,
        kind: u8,
        to: Option<&SessionId>,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Vec<u8> {
        use zerocopy::IntoBytes as _;
        self.counter += 1;
        let mut salt = [0; 4];
        // Without randomness the counter alone makes the nonce, which is enough but after a snapshot.
        let _ = self.random.fill(&mut salt);
        let (to_tag, salt) = (to.map_or(0, SessionId::tag), u32::from_be_bytes(salt));
        let header = Header::new(kind, to_tag, &self.session, self.counter, salt);
        let mut datagram = Vec::with_capacity(super::wire::DATAGRAM);
        datagram.extend_from_slice(header.as_bytes());
        body(&mut datagram);
        let tag = self.key.seal_in_place_separate_tag(
            nonce(&header),
            bound(&header, to),
            &mut datagram[size_of::<Header>()..],
        );
        datagram.extend_from_slice(tag.expect("a datagram is shorter than the limit").as_ref());
        datagram
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, counter, .. } = self;
        f.debug_struct("Sealer").field("session", session).field("counter", counter).finish()
    }
}

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It was made with another key, or changed on its way.
    NotAuthentic,
    /// It was taken before, or is too old to know.
    Replayed,
    /// It is for another session.
    ElseWhere,
}

/// Opens what one session of a peer sends.
pub struct Opener {
    key: LessSafeKey,
    session: SessionId,
    window: Window,
}

impl Opener {
    /// For a session of which nothing was taken yet.
    #[must_use]
    pub fn new(key: &Key, session: SessionId) -> Self {
        Self { key: session_key(key, &session), session, window: Window::default() }
    }

    /// The session.
    #[must_use]
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// Opens a datagram, which is not taken a second time.
    ///
    /// # Errors
    ///
    /// It can't be taken.
    pub fn open<'a>(
        &mut self,
        header: &Header,
        own: &SessionId,
        sealed: &'a mut [u8],
    ) -> Result<&'a [u8], Refused> {
        if !self.window.is_fresh(header.counter.get()) {
            return Err(Refused::Replayed);
        }
        let to = match header.to.get() {
            0 => None,
            tag if tag == own.tag() => Some(own),
            _ => return Err(Refused::ElseWhere),
        };
        let body = self
            .key
            .open_in_place(nonce(header), bound(header, to), sealed)
            .map_err(|_| Refused::NotAuthentic)?;
        self.window.take(header.counter.get());
        Ok(body)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Opens a datagram as the first of its session and reads it; for tests with any bytes.
///
/// # Errors
///
/// What it is not.
pub fn open(key: &Key, own: &SessionId, datagram: &mut [u8]) -> Result<(), NoHeader> {
    let (header, sealed) = Header::split(datagram)?;
    let mut opener = Opener::new(key, SessionId(header.session));
    if let Ok(body) = opener.open(&header, own, sealed) {
        let _ = super::wire::decode(header.kind, body);
    }
    Ok(())
}

/// Which counters were taken: a ring of bits below the highest one, by the algorithm of RFC 6479.
#[derive(Clone, Debug)]
struct Window {
    highest: u64,
    words: [u64; Self::WORDS],
}

impl Window {
    /// One word more than the window has, so that moving on clears whole words only.
    const WORDS: usize = (WINDOW / 64) as usize + 1;

    const fn word(counter: u64) -> usize {
        ((counter / 64) % Self::WORDS as u64) as usize
    }

    const fn bit(counter: u64) -> u64 {
        1 << (counter % 64)
    }

    /// Whether a counter was not taken yet, for sure.
    fn is_fresh(&self, counter: u64) -> bool {
        if counter > self.highest {
            return true;
        }
        // Counters begin with 1.
        counter != 0
            && self.highest - counter < WINDOW
            && self.words[Self::word(counter)] & Self::bit(counter) == 0
    }

    /// Notes that a fresh one was taken.
    fn take(&mut self, counter: u64) {
        if counter > self.highest {
            let steps = (counter / 64 - self.highest / 64).min(Self::WORDS as u64);
            for step in 1..=steps {
                self.words[Self::word((self.highest / 64 + step) * 64)] = 0;
            }
            self.highest = counter;
        }
        self.words[Self::word(counter)] |= Self::bit(counter);
    }
}

impl Default for Window {
    fn default() -> Self {
        Self { highest: 0, words: [0; Self::WORDS] }
    }
}

#[cfg(test)]
mod tests;

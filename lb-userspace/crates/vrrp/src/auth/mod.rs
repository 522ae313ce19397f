//! Authentication of advertisements by HMAC-SHA-256 and a time (draft-cassen-vrrp-auth-hmac, as
//! keepalived 2.4.1 and newer have it): a trailer behind the message of either version and family.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |   Type (1)    |    Key ID     |          Reserved (0)         |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |             Sequence: seconds since 1970 (UTC)                |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |    Sequence: 2^-16 seconds    |      Sequence: counter        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                   HMAC, its first 128 bits                    |
//! |                              ...                              |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! The HMAC is that of a pseudo-header, the message with a checksum of zero, and the trailer with an
//! HMAC of zero. The pseudo-header is not sent:
//!
//! ```text
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! | Family (4, 6) |    Version    | Virtual Rtr ID|       0       |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |        Source address, 16 bytes, filled with zeros            |
//! |                              ...                              |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! So it proves that the sender has the key, which instance and sender it is from, and by its sequence that it is
//! neither old nor a repetition. The checksum is left out because for IPv6 the kernel may compute it
//! after that; it covers the trailer there, and for IPv4 it does not.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_model::router::Version;
use ring::hmac;
use subtle::ConstantTimeEq as _;

/// Length of the trailer.
pub(crate) const TRAILER: usize = 28;

/// The only type there is: HMAC-SHA-256, cut to 128 bits.
const HMAC_SHA256: u8 = 1;
/// Where the HMAC is in the trailer.
const TAG_AT: usize = 12;
/// No window is smaller unless it is configured.
const MIN_WINDOW: Duration = Duration::from_secs(5);
/// So many senders are remembered. Only a sender that has the key becomes one.
const MAX_SENDERS: usize = 64;

/// Why the authentication of a message is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It has none.
    Missing,
    /// It has one, and none is configured.
    Unexpected,
    /// Its password is another one.
    Password,
    /// Its trailer has a form that is not known here.
    Malformed,
    /// It was signed with a key of this number, and there is none.
    UnknownKey(u8),
    /// Its HMAC is wrong.
    Wrong,
    /// Its HMAC is right; but it is too old, or the sender's clock is wrong, or this node's.
    Stale,
    /// It, or a newer one of its sender, was taken before.
    Replayed,
}

impl Failure {
    /// Whether another configuration of the sender explains it.
    #[must_use]
    pub(crate) const fn is_mismatch(self) -> bool {
        match self {
            Self::Missing
            | Self::Unexpected
            | Self::Password
            | Self::UnknownKey(_)
            | Self::Wrong => true,
            // Its key is right; but it may be a repetition, too old to be known for one.
            Self::Stale => false,
            Self::Malformed | Self::Replayed => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("it is not authenticated"),
            Self::Unexpected => f.write_str("it is authenticated, and this node's are not"),
            Self::Password => f.write_str("its password is another one"),
            Self::Malformed => f.write_str("its authentication has an unknown form"),
            Self::UnknownKey(id) => write!(f, "it was signed with key {id}, which is not known"),
            Self::Wrong => f.write_str("its HMAC is wrong: the key is another one"),
            Self::Stale => {
                f.write_str("its time is too far from this node's; are both clocks right")
            }
            Self::Replayed => f.write_str("it is a repetition of an old one"),
        }
    }
}

/// How far the clocks of two nodes may be apart, as keepalived has it by default: three intervals,
/// and five seconds at least.
#[must_use]
pub(crate) fn window(interval: Duration) -> Duration {
    (interval * 3).max(MIN_WINDOW)
}

/// Signs what one virtual router sends, and verifies what it receives.
pub struct Hmac {
    id: u8,
    key: hmac::Key,
    window: Duration,
    /// What was signed last.
    sent: Option<Sequence>,
    /// The newest of each sender.
    received: BTreeMap<IpAddr, Sequence>,
}

impl fmt::Debug for Hmac {
    /// It shows no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hmac").field("id", &self.id).field("received", &self.received).finish()
    }
}

impl Hmac {
    /// With the key of this number, and clocks that are no further apart than `window`.
    #[must_use]
    pub fn new(id: u8, secret: &[u8], window: Duration) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Self { id, key, window, sent: None, received: BTreeMap::new() }
    }

    /// Carries over what was sent and received before.
    pub fn resume(&mut self, before: &mut Self) {
        self.sent = before.sent;
        self.received = std::mem::take(&mut before.received);
    }

    /// Appends the trailer to a message that is sent from `source`.
    pub fn sign(
        &mut self,
        message: &mut Vec<u8>,
        version: Version,
        source: IpAddr,
        now: SystemTime,
    ) {
        let sequence = Sequence::after(self.sent, now, self.window);
        self.sent = Some(sequence);
        let mut trailer = [0; TRAILER];
        trailer[0] = HMAC_SHA256;
        trailer[1] = self.id;
        trailer[4..TAG_AT].copy_from_slice(&sequence.0.to_be_bytes());
        let tag = self.tag(message, &trailer, version, source);
        trailer[TAG_AT..].copy_from_slice(&tag);
        message.extend(trailer);
    }

    /// Verifies the trailer behind a message from `source`, and remembers its sequence if it is right.
    ///
    /// # Errors
    ///
    /// What of it is wrong.
    pub fn verify(
        &mut self,
        message: &[u8],
        trailer: &[u8; TRAILER],
        version: Version,
        source: IpAddr,
        now: SystemTime,
    ) -> Result<(), Failure> {
        let [kind, id, reserved @ ..] = [trailer[0], trailer[1], trailer[2], trailer[3]];
        if kind != HMAC_SHA256 || reserved != [0, 0] {
            return Err(Failure::Malformed);
        }
        if id != self.id {
            return Err(Failure::UnknownKey(id));
        }
        let tag = self.tag(message, trailer, version, source);
        if !bool::from(tag.ct_eq(&trailer[TAG_AT..])) {
            return Err(Failure::Wrong);
        }
        let sequence = Sequence::of(trailer);
        let clock = Sequence::at(now);
        if sequence.is_far_from(clock, self.window) {
            return Err(Failure::Stale);
        }
        // A mark that is far off is of a clock that was wrong: it would keep the sender out for long.
        let mark = self.received.get(&source).filter(|mark| !mark.is_far_from(clock, self.window));
        if mark.is_some_and(|mark| !sequence.is_newer_than(*mark)) {
            return Err(Failure::Replayed);
        }
        self.remember(source, sequence);
        Ok(())
    }

    fn remember(&mut self, source: IpAddr, sequence: Sequence) {
        if self.received.len() >= MAX_SENDERS && !self.received.contains_key(&source) {
            let oldest = self.received.iter().max_by_key(|(_, mark)| sequence.distance(**mark));
            if let Some(oldest) = oldest.map(|(source, _)| *source) {
                self.received.remove(&oldest);
            }
        }
        self.received.insert(source, sequence);
    }

    fn tag(
        &self,
        message: &[u8],
        trailer: &[u8; TRAILER],
        version: Version,
        source: IpAddr,
    ) -> [u8; TRAILER - TAG_AT] {
        let mut pseudo = [0; 20];
        pseudo[1] = match version {
            Version::V2 => 2,
            Version::V3 => 3,
        };
        pseudo[2] = message[1];
        match source {
            IpAddr::V4(source) => {
                pseudo[0] = 4;
                pseudo[4..8].copy_from_slice(&source.octets());
            }
            IpAddr::V6(source) => {
                pseudo[0] = 6;
                pseudo[4..].copy_from_slice(&source.octets());
            }
        }
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&pseudo);
        context.update(&message[..6]);
        context.update(&[0, 0]);
        context.update(&message[8..]);
        context.update(&trailer[..TAG_AT]);
        context.update(&[0; TRAILER - TAG_AT]);
        let tag = context.sign();
        *tag.as_ref().first_chunk().expect("a SHA-256 tag has 32 bytes")
    }
}

/// Seconds, 2^-16 seconds and a counter, which are compared by serial number arithmetic (RFC 1982), so
/// that nothing happens when the seconds overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sequence(u64);

impl Sequence {
    /// Of a time, with a counter of zero.
    fn at(now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let fraction = (u64::from(since.subsec_nanos()) << 16) / 1_000_000_000;
        Self((since.as_secs() << 32) | (fraction << 16))
    }

    fn of(trailer: &[u8; TRAILER]) -> Self {
        let bytes = trailer[4..TAG_AT].first_chunk().expect("the sequence has eight bytes");
        Self(u64::from_be_bytes(*bytes))
    }

    /// For what is sent `now`: newer than what was sent before, unless that was sent by a clock that
    /// was far ahead.
    fn after(sent: Option<Self>, now: SystemTime, window: Duration) -> Self {
        let clock = Self::at(now);
        match sent {
            Some(sent) if !clock.is_newer_than(sent) && !sent.is_far_from(clock, window) => {
                Self(sent.0.wrapping_add(1))
            }
            _ => clock,
        }
    }

    /// How much newer it is than another.
    const fn distance(self, other: Self) -> i64 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    const fn is_newer_than(self, other: Self) -> bool {
        self.distance(other) > 0
    }

    fn is_far_from(self, other: Self, window: Duration) -> bool {
        let fraction = (u64::from(window.subsec_nanos()) << 32) / 1_000_000_000;
        self.distance(other).unsigned_abs() > (window.as_secs() << 32) + fraction
    }
}

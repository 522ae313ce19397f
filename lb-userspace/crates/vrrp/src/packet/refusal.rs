//! Why a message is not taken.

use std::{fmt, time::Duration};

use lb_api::routers::Counters;

use crate::{auth, fsm::ReceivedAdvertisement};

/// A message that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// What it would be if it were taken, when nothing else than [`Refusal::is_mismatch`] or
    /// [`Refusal::is_stale`] keeps it from that.
    pub received: Option<ReceivedAdvertisement>,
}

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This node has sent it.
    Own,
    /// It is for another virtual router.
    Vrid,
    /// It has come over more routers than are allowed.
    Ttl(u8),
    /// Its form is wrong; what of it.
    Malformed(&'static str),
    /// Its checksum is wrong.
    Checksum,
    /// It has this version.
    Version(u8),
    /// Its sender is no peer, or it was not sent to this node.
    Foreign,
    /// Its authentication is wrong.
    Auth(auth::Failure),
    /// Its interval is not this node's (version 2).
    Interval(Duration),
}

impl Refusal {
    /// Whether another configuration of the sender explains it, and nothing else is wrong.
    #[must_use]
    pub(crate) const fn is_mismatch(self) -> bool {
        match self {
            Self::Version(_) | Self::Interval(_) => true,
            Self::Auth(failure) => failure.is_mismatch(),
            _ => false,
        }
    }

    /// Whether nothing is wrong but that the clocks differ, or that it is an old one.
    #[must_use]
    pub(crate) const fn is_stale(self) -> bool {
        matches!(self, Self::Auth(auth::Failure::Stale))
    }

    /// Whether lbd reports it to the operator: these are all that may mean that two routers of one network
    /// do not understand each other.
    #[must_use]
    pub(crate) const fn is_reported(self) -> bool {
        !matches!(self, Self::Own | Self::Vrid | Self::Foreign)
    }

    pub(crate) const fn count(self, counters: &mut Counters) {
        match self {
            Self::Own | Self::Vrid => {}
            Self::Ttl(_) => counters.ttl_errors += 1,
            Self::Malformed(_) => counters.malformed += 1,
            Self::Checksum => counters.checksum_errors += 1,
            Self::Version(_) => counters.version_errors += 1,
            Self::Foreign => counters.foreign += 1,
            Self::Auth(_) => counters.auth_errors += 1,
            Self::Interval(_) => counters.mismatches += 1,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("this node has sent it"),
            Self::Vrid => f.write_str("it is for another virtual router"),
            Self::Ttl(ttl) => write!(f, "its TTL is {ttl}: it has crossed a router"),
            Self::Malformed(what) => f.write_str(what),
            Self::Checksum => f.write_str("its checksum is wrong"),
            Self::Version(version) => write!(f, "its version is {version}"),
            Self::Foreign => f.write_str("its sender is no peer"),
            Self::Auth(failure) => failure.fmt(f),
            Self::Interval(interval) => {
                write!(f, "its interval is {} s", interval.as_secs())
            }
        }
    }
}

impl std::error::Error for Refusal {}

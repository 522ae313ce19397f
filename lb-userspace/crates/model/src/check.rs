//! The probes of a backend, their interval, and how many answers make a change.

use std::{num::NonZeroU8, ops::RangeInclusive, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::units::millis;

/// A check of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Check {
    /// The kind of probe.
    pub kind: Kind,
    /// The port that is probed; none: the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where the probe goes.
    pub via: Via,
    /// Between two checks of a backend that is up.
    #[serde(with = "millis")]
    pub interval: Duration,
    /// Between two checks while a change shows: the last answers differ from the condition.
    #[serde(with = "millis")]
    pub fast_interval: Duration,
    /// Between two checks of a backend that is down.
    #[serde(with = "millis")]
    pub down_interval: Duration,
    /// How long an answer may take, all of it.
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// Good answers in a row that bring a backend up.
    pub rise: NonZeroU8,
    /// Bad answers in a row that bring a backend down.
    pub fall: NonZeroU8,
    /// Percent by which intervals vary, so that checks don't march in step.
    pub jitter: u8,
    /// The condition of a backend before its first answer, which decides alone.
    pub start: Start,
}

const fn at_least_once(times: u8) -> NonZeroU8 {
    match NonZeroU8::new(times) {
        Some(times) => times,
        None => NonZeroU8::MIN,
    }
}

impl Default for Check {
    /// HAProxy's numbers, but that a change in the making is looked at four times as often.
    fn default() -> Self {
        Self {
            kind: Kind::None,
            port: None,
            via: Via::Vip,
            interval: Duration::from_secs(2),
            fast_interval: Duration::from_millis(500),
            down_interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: at_least_once(2),
            fall: at_least_once(3),
            jitter: 10,
            start: Start::Up,
        }
    }
}

impl Check {
    /// Whether probes are sent at all.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        !matches!(self.kind, Kind::None)
    }
}

impl Kind {
    /// Whether it asks one port of the backend.
    #[must_use]
    pub const fn is_of_a_port(&self) -> bool {
        !matches!(self, Self::None | Self::Exec(_))
    }
}

/// The kind of probe of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Kind {
    /// Nothing: it counts as up.
    #[default]
    None,
    /// To take a TCP connection.
    Tcp,
    /// To answer an HTTP request.
    Http(Http),
    /// To answer an HTTP request over TLS.
    Https(Http, Tls),
    /// To answer a datagram.
    Udp(Udp),
    /// To answer a DNS query over UDP.
    Dns(Dns),
    /// A command is run, whose exit status is the result.
    Exec(Exec),
}

impl Kind {
    /// The name that the configuration has for it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcp => "tcp",
            Self::Http(_) => "http",
            Self::Https(..) => "https",
            Self::Udp(_) => "udp",
            Self::Dns(_) => "dns",
            Self::Exec(_) => "exec",
        }
    }
}

/// Where the probe goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// To the VIP, at this backend: by the way of the traffic, so that a missing VIP on the
    /// backend's loopback or a missing tunnel shows.
    #[default]
    Vip,
    /// To the backend's own address.
    Backend,
}

/// The condition of a backend before its first answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// It is up.
    #[default]
    Up,
    /// It is down until `rise` good answers.
    Down,
}

/// An HTTP request (RFC 9110), and the expected answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// The method.
    pub method: String,
    /// The path, with the query if there is one.
    pub path: String,
    /// The header `Host`; none: the address that is probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The status codes that are good. A redirect is not followed.
    pub status: Vec<RangeInclusive<u16>>,
    /// A text that the first 64 KiB of the body must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

impl Default for Http {
    /// `GET /`; 2xx and 3xx are good, as for HAProxy.
    fn default() -> Self {
        Self {
            method: "GET".into(),
            path: "/".into(),
            host: None,
            status: vec![200..=399],
            body: None,
        }
    }
}

/// How a backend's certificate is verified (RFC 5280, RFC 6125).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// It is not.
    pub insecure: bool,
    /// The name that it must be for, which is also sent (SNI); none: `host`, or the address that is
    /// probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// PEM file of the authorities that are trusted; none: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// A datagram, and the expected beginning of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Udp {
    /// The payload.
    pub send: Vec<u8>,
    /// The beginning of the answer's payload; empty: any answer will do.
    pub expect: Vec<u8>,
}

/// A DNS query (RFC 1035). An answer without an error (NOERROR) is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// The name that is queried.
    pub name: String,
    /// The record type, as `A` or `SOA`.
    pub record: String,
}

impl Default for Dns {
    /// A query that every server can answer: the root's name servers.
    fn default() -> Self {
        Self { name: ".".into(), record: "NS".into() }
    }
}

/// A command: status 0 is good. It is run without a shell, with nothing in its environment but
/// `PATH` and `LB_SERVICE` (the name), `LB_VIP`, `LB_BACKEND`, `LB_PORT`, `LB_PROTOCOL`, and is killed when its
/// time is over. The first line that it prints is the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Path and arguments.
    pub command: Vec<String>,
}

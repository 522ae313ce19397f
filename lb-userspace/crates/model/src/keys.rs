//! Services, backends and checks as the configuration writes them: the inverse of its reader.
//!
//! Each is a list of keys and values in the order in which a person would write them. The comparison of
//! two states and the edits of the file both use these lists, so that neither can overlook a key
//! of the other.

use std::{fmt, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    check::{Check, Http, Kind, Start, Tls, Via},
    desired::{Admin, Backend, Mode, Protocol, Service, UdpPolicy},
    units::{exact_duration, format_time},
};

/// A value of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Number(u64),
    /// A string.
    Text(String),
    /// An array of strings.
    Words(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) if text.is_empty() => f.write_str("\"\""),
            Self::Text(text) => f.write_str(text),
            Self::Words(words) => write!(f, "{words:?}"),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<Duration> for Value {
    fn from(duration: Duration) -> Self {
        Self::Text(exact_duration(duration))
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        Self::Text(address.to_string())
    }
}

/// Keys with their values. An optional key that has no value is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<(&'static str, Value)>);

impl Keys {
    fn push(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.push((key, value.into()));
    }

    fn push_some(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        self.0.extend(value.map(|value| (key, value.into())));
    }

    /// Gives a key a value, in place of the one that it has.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.retain(|(name, _)| *name != key);
        self.push(key, value);
    }

    /// The value of a key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// All keys with their values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(key, value)| (*key, value))
    }

    /// The keys of either whose values differ, in order.
    pub(crate) fn differences<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (&'static str, Option<&'a Value>, Option<&'a Value>)> {
        let left = other.iter().filter(|(key, _)| self.value(key).is_none());
        let keys = self.iter().chain(left).map(|(key, _)| key);
        let pairs = keys.map(|key| (key, self.value(key), other.value(key)));
        pairs.filter(|(_, before, after)| before != after)
    }
}

/// The keys of a service; those of its check and of its backends are apart.
#[must_use]
pub fn service(service: &Service) -> Keys {
    let Service { key, mode, udp_policy, ring_slots, idle_timeout, syn_budget, policy, .. } =
        service;
    let mut keys = Keys::default();
    keys.push("vip", key.vips().to_string());
    match key.ports() {
        one if one.is_one() => keys.push("port", u32::from(key.port)),
        range => keys.push("port", range.to_string()),
    }
    keys.push_some("target_port", service.target_port.map(|port| u32::from(port.get())));
    keys.push("protocol", key.protocol.to_string());
    keys.push("mode", mode.to_string());
    if key.protocol == Protocol::Udp {
        keys.push("udp", udp_word(*udp_policy));
    }
    keys.push("idle_timeout", *idle_timeout);
    keys.push("ring_slots", *ring_slots);
    keys.push("syn_budget", *syn_budget);
    keys.push_some("drain_deadline", service.drain_deadline);
    keys.push("drain_silence", service.drain_silence);
    keys.push("slow_start", policy.slow_start);
    keys.push("panic_threshold", format!("{}%", policy.panic_threshold));
    keys.push("min_healthy", u32::from(policy.min_healthy));
    keys.push("flap_half_life", policy.flap_half_life);
    keys.push("on_down", policy.on_down.word());
    keys.push("syn_failover", policy.second_choice);
    keys
}

/// The configuration's name for a UDP service's policy.
#[must_use]
pub(crate) const fn udp_word(policy: UdpPolicy) -> &'static str {
    match policy {
        UdpPolicy::Oneshot => "oneshot",
        UdpPolicy::Tracked => "tracked",
        UdpPolicy::Quic => "quic",
    }
}

/// The values of a service whose table has only the required keys.
#[must_use]
pub fn service_defaults(of: &Service) -> Keys {
    let mut keys = service(&Service::new(of.key.vip, of.key.port, Mode::Dsr));
    keys.0.retain(|(key, _)| !REQUIRED.contains(key));
    keys.push("udp", udp_word(UdpPolicy::default()));
    keys
}

/// The keys that a service can't do without, besides its name.
const REQUIRED: [&str; 4] = ["vip", "port", "protocol", "mode"];

/// The keys of a backend; those of its check are apart.
///
/// A state that the configuration has no name for is there as it is shown to people.
#[must_use]
pub fn backend(backend: &Backend) -> Keys {
    let mut keys = Keys::default();
    keys.push_some("name", backend.name.clone());
    keys.push("weight", u32::from(backend.weight.0.get()));
    keys.push("state", state(&backend.admin));
    keys.push("backup", backend.backup);
    keys
}

/// An administrative state as text.
#[must_use]
pub fn state(admin: &Admin) -> String {
    let until = |word: &str, deadline: &Option<std::time::SystemTime>| match deadline {
        None => word.to_owned(),
        Some(deadline) => format!("{word} until {}", format_time(*deadline)),
    };
    match admin {
        Admin::Enabled => "enabled".into(),
        Admin::Disabled => "disabled".into(),
        Admin::Down => "down".into(),
        Admin::Draining { deadline } => until("draining", deadline),
        Admin::Removing { deadline } => until("removing", deadline),
    }
}

/// The keys of a check.
#[must_use]
pub fn check(check: &Check) -> Keys {
    let Check {
        kind,
        port,
        via,
        interval,
        fast_interval,
        down_interval,
        timeout,
        rise,
        fall,
        jitter,
        start,
    } = check;
    let mut keys = Keys::default();
    keys.push("type", kind.name());
    match kind {
        Kind::None | Kind::Tcp => {}
        Kind::Http(http) => push_http(&mut keys, http),
        Kind::Https(http, tls) => {
            push_http(&mut keys, http);
            push_tls(&mut keys, tls);
        }
        Kind::Udp(udp) => {
            keys.push("send", escaped(&udp.send));
            keys.push("expect", escaped(&udp.expect));
        }
        Kind::Dns(dns) => {
            keys.push("query", dns.name.clone());
            keys.push("record", dns.record.clone());
        }
        Kind::Exec(exec) => keys.push("command", Value::Words(exec.command.clone())),
    }
    keys.push_some("port", port.map(u32::from));
    keys.push(
        "via",
        match via {
            Via::Vip => "vip",
            Via::Backend => "backend",
        },
    );
    keys.push("interval", *interval);
    keys.push("fast_interval", *fast_interval);
    keys.push("down_interval", *down_interval);
    keys.push("timeout", *timeout);
    keys.push("rise", u32::from(rise.get()));
    keys.push("fall", u32::from(fall.get()));
    keys.push("jitter", format!("{jitter}%"));
    keys.push(
        "start",
        match start {
            Start::Up => "up",
            Start::Down => "down",
        },
    );
    keys
}

fn push_http(keys: &mut Keys, http: &Http) {
    let ranges = http.status.iter().map(|range| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    });
    keys.push("method", http.method.clone());
    keys.push("path", http.path.clone());
    keys.push_some("host", http.host.clone());
    keys.push("status", ranges.collect::<Vec<_>>().join(", "));
    keys.push_some("body", http.body.clone());
}

fn push_tls(keys: &mut Keys, tls: &Tls) {
    keys.push("insecure", tls.insecure);
    keys.push_some("server_name", tls.server_name.clone());
    keys.push_some("ca_file", tls.ca_file.as_ref().map(|path| path.display().to_string()));
}

/// Bytes as the reader takes them: what is no plain sign as `\xNN`.
fn escaped(bytes: &[u8]) -> String {
    let sign = |byte: &u8| match byte {
        b'\\' => "\\\\".to_owned(),
        b'\r' => "\\r".to_owned(),
        b'\n' => "\\n".to_owned(),
        b'\t' => "\\t".to_owned(),
        0x20..0x7f => char::from(*byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    bytes.iter().map(sign).collect()
}

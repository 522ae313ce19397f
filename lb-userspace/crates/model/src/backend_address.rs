//! The identity of a backend in its service, and the ways to name it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// A backend's address and, where one is given, its port: `10.0.1.10`, `10.0.1.10:6432`, `[fd00::10]:6432`.
///
/// It is the backend's identity in its service, in configurations, rings, state file, flow sync and labels of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackendAddress {
    /// The address.
    pub ip: IpAddr,
    /// The port that it listens at; none: the one that clients connect to.
    pub port: Option<NonZeroU16>,
}

impl BackendAddress {
    /// An address without a port.
    #[must_use]
    pub const fn new(ip: IpAddr) -> Self {
        Self { ip, port: None }
    }

    /// Whether `other` is this backend, or one with this address where this has no port.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.ip == other.ip && (self.port.is_none() || self.port == other.port)
    }

    /// It with `port`, unless it has one.
    #[must_use]
    pub fn or_port(self, port: Option<NonZeroU16>) -> Self {
        Self { port: self.port.or(port), ..self }
    }

    /// The port that it listens at, where clients connect to `service`.
    #[must_use]
    pub fn port_or(self, service: u16) -> u16 {
        self.port.map_or(service, NonZeroU16::get)
    }

    /// Its socket address, where clients connect to the port `service`.
    #[must_use]
    pub fn socket(self, service: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port_or(service))
    }
}

impl From<IpAddr> for BackendAddress {
    fn from(ip: IpAddr) -> Self {
        Self::new(ip)
    }
}

impl From<Ipv4Addr> for BackendAddress {
    fn from(ip: Ipv4Addr) -> Self {
        Self::new(ip.into())
    }
}

impl From<[u8; 4]> for BackendAddress {
    fn from(octets: [u8; 4]) -> Self {
        Self::new(octets.into())
    }
}

impl From<BackendAddress> for String {
    fn from(address: BackendAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for BackendAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for BackendAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::new(ip));
        }
        let Ok(socket) = text.parse::<SocketAddr>() else {
            return Err(format!(
                "`{text}` is no address of a backend; write one as \"10.0.0.11\", \"fd00::11\", \"10.0.0.11:8080\" or \
                 \"[fd00::11]:8080\""
            ));
        };
        if matches!(socket, SocketAddr::V6(v6) if v6.scope_id() != 0) {
            return Err(format!("`{text}` has an interface; a backend's address has none"));
        }
        match NonZeroU16::new(socket.port()) {
            Some(port) => Ok(Self { ip: socket.ip(), port: Some(port) }),
            None => Err(format!("`{text}` has port 0; a number from 1 to 65535 is expected")),
        }
    }
}

impl fmt::Display for BackendAddress {
    /// As a text with padding, so that tables can align it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => self.ip.fmt(f),
            Some(port) => SocketAddr::new(self.ip, port.get()).fmt(f),
        }
    }
}

/// A backend as a person names it: by its address, or by the name that the configuration gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum BackendRef {
    /// Its address. Without a port it may also stand for the one backend that has this address with a port.
    Address(BackendAddress),
    /// Its name.
    Name(String),
}

impl From<BackendAddress> for BackendRef {
    fn from(address: BackendAddress) -> Self {
        Self::Address(address)
    }
}

impl From<String> for BackendRef {
    fn from(text: String) -> Self {
        text.parse().map_or(Self::Name(text), Self::Address)
    }
}

impl FromStr for BackendRef {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::from(text.to_owned()))
    }
}

impl From<BackendRef> for String {
    fn from(backend: BackendRef) -> Self {
        backend.to_string()
    }
}

impl fmt::Display for BackendRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.pad(name),
        }
    }
}

impl BackendRef {
    /// The backend that it names among `backends`, each with its name, of a service at the port `service`.
    ///
    /// # Errors
    ///
    /// All that it could mean: none, or several with one address.
    pub fn find<'a>(
        &self,
        service: u16,
        backends: impl IntoIterator<Item = (BackendAddress, Option<&'a str>)>,
    ) -> Result<BackendAddress, Vec<BackendAddress>> {
        let backends: Vec<_> = backends.into_iter().collect();
        let all = |is: &dyn Fn(BackendAddress, Option<&str>) -> bool| {
            let found = backends.iter().filter(|(at, name)| is(*at, *name));
            found.map(|(at, _)| *at).collect::<Vec<_>>()
        };
        let mut found = match self {
            Self::Name(name) => all(&|_, its| its == Some(name)),
            Self::Address(address) => {
                let mut found = all(&|at, _| at == *address);
                if found.is_empty() {
                    found = all(&|at, _| at.socket(service) == address.socket(service));
                }
                if found.is_empty() && address.port.is_none() {
                    found = all(&|at, _| at.ip == address.ip);
                }
                found
            }
        };
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => Ok(one),
            (last, _) => Err(found.into_iter().chain(last).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> BackendAddress {
        text.parse().expect(text)
    }

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for text in ["10.0.0.11", "10.0.0.11:8080", "fd00::11", "[fd00::11]:8080"] {
            assert_eq!(at(text).to_string(), text);
            let json = format!("\"{text}\"");
            assert_eq!(serde_json::from_str::<BackendAddress>(&json).expect(text), at(text));
            assert_eq!(serde_json::to_string(&at(text)).expect(text), json);
        }
        assert_eq!(format!("{:>16}|", at("10.0.0.11:80")), "    10.0.0.11:80|");
    }

    #[test]
    fn other_texts_are_refused_with_examples() {
        for text in ["", "pgb2", "10.0.0", "10.0.0.11:", "10.0.0.11:65536", "fd00::11:x", "a:80"] {
            let error = text.parse::<BackendAddress>().expect_err(text);
            assert!(error.contains("10.0.0.11:8080"), "{error}");
        }
        let error = "10.0.0.11:0".parse::<BackendAddress>().expect_err("port 0");
        assert!(error.contains("port 0"), "{error}");
        let error = "[fe80::1%3]:80".parse::<BackendAddress>().expect_err("a scope");
        assert!(error.contains("an interface"), "{error}");
    }

    #[test]
    fn a_backend_is_found_by_name_by_address_and_by_an_address_that_no_other_has() {
        let backends = [
            (at("10.0.0.1:6432"), Some("a")),
            (at("10.0.0.1:6433"), Some("b")),
            (at("10.0.0.2:6432"), None),
            (at("10.0.0.3"), None),
        ];
        let find = |text: &str| BackendRef::from(text.to_owned()).find(5432, backends);
        assert_eq!(find("b"), Ok(at("10.0.0.1:6433")));
        assert_eq!(find("10.0.0.1:6432"), Ok(at("10.0.0.1:6432")));
        assert_eq!(find("10.0.0.2"), Ok(at("10.0.0.2:6432")));
        assert_eq!(find("10.0.0.3:5432"), Ok(at("10.0.0.3")));
        assert_eq!(find("10.0.0.1"), Err(vec![at("10.0.0.1:6432"), at("10.0.0.1:6433")]));
        let twice = [(at("10.0.0.3"), None), (at("10.0.0.3:5432"), None)];
        for exact in ["10.0.0.3", "10.0.0.3:5432"] {
            assert_eq!(BackendRef::from(exact.to_owned()).find(5432, twice), Ok(at(exact)));
        }
        for none in ["c", "10.0.0.4", "10.0.0.2:6433", "10.0.0.3:6432"] {
            assert_eq!(find(none), Err(vec![]), "{none}");
        }
    }
}

//! What identifies a service on the wire.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::Protocol;

/// Identifies a service on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    /// The virtual IP; of a prefix, its first address.
    pub vip: IpAddr,
    /// The port that clients connect to, or the first one of a range.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The further VIPs and ports.
    #[serde(default, skip_serializing_if = "Extent::is_one")]
    pub extent: Extent,
}

/// How far a service goes beyond one VIP and one port; by default it has one of each.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Extent {
    // The order of the fields is that of the lookup: the fewest VIPs first, then the fewest ports.
    /// Bits at the end of the VIP that differ within the service: 4 for a prefix of 16 addresses. At most
    /// [`Self::MAX_HOST_BITS`].
    pub host_bits: u8,
    /// Ports after the first one.
    pub more_ports: u16,
}

impl Extent {
    /// One VIP, one port.
    pub const ONE: Self = Self { host_bits: 0, more_ports: 0 };
    /// A flow's key has 16 bits for which VIP of the prefix it is ([`lb_common::abi::Destination`]).
    pub const MAX_HOST_BITS: u8 = 16;

    /// Whether it is one VIP and one port.
    #[must_use]
    pub fn is_one(&self) -> bool {
        *self == Self::ONE
    }
}

impl ServiceKey {
    /// A service with one VIP and one port.
    #[must_use]
    pub const fn new(vip: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self { vip, port, protocol, extent: Extent::ONE }
    }

    /// A service with these VIPs and ports.
    #[must_use]
    pub const fn of(vips: Vips, ports: Ports, protocol: Protocol) -> Self {
        let extent = Extent { host_bits: vips.host_bits, more_ports: ports.more };
        Self { vip: vips.first, port: ports.first, protocol, extent }
    }

    /// It with these further VIPs and ports; none if its VIP is not the first one of such a prefix, or there are not so
    /// many ports behind its own.
    #[must_use]
    pub fn with_extent(self, extent: Extent) -> Option<Self> {
        let has_ports = self.port.checked_add(extent.more_ports).is_some();
        let has_vips =
            extent.host_bits <= Extent::MAX_HOST_BITS && host_of(self.vip, extent.host_bits) == 0;
        (has_ports && has_vips).then_some(Self { extent, ..self })
    }

    /// Its VIPs.
    #[must_use]
    pub const fn vips(&self) -> Vips {
        Vips { first: self.vip, host_bits: self.extent.host_bits }
    }

    /// Its ports.
    #[must_use]
    pub const fn ports(&self) -> Ports {
        Ports { first: self.port, more: self.extent.more_ports }
    }

    /// Its VIPs and ports, as text: `10.0.0.100:80`, `[fd00::/120]:8000-8100`.
    #[must_use]
    pub fn destination(&self) -> String {
        let (vips, ports) = (self.vips(), self.ports());
        match self.vip {
            IpAddr::V4(_) => format!("{vips}:{ports}"),
            IpAddr::V6(_) => format!("[{vips}]:{ports}"),
        }
    }

    /// Whether both have a destination, and neither is the more specific one: that of fewer VIPs, or of as many VIPs
    /// and a part of the other's ports.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        let (own, its) = (self.ports(), other.ports());
        let is_part = |one: Ports, of: Ports| of.first <= one.first && one.last() <= of.last();
        let is_same = own == its;
        (self.vips(), self.protocol) == (other.vips(), other.protocol)
            && own.overlaps(&its)
            && (is_same || !(is_part(own, its) || is_part(its, own)))
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.destination())
    }
}

/// The last bits of an address.
fn host_of(address: IpAddr, bits: u8) -> u128 {
    let number = match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    number & ((1_u128 << bits) - 1)
}

/// The VIPs of a service: one, or a prefix. As text `10.0.0.100` or `198.51.100.0/28`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vips {
    first: IpAddr,
    host_bits: u8,
}

impl Vips {
    /// One VIP.
    #[must_use]
    pub const fn one(vip: IpAddr) -> Self {
        Self { first: vip, host_bits: 0 }
    }

    /// The number of bits that all of them share.
    #[must_use]
    pub const fn prefix_len(&self) -> u8 {
        (if self.first.is_ipv4() { 32 } else { 128 }) - self.host_bits
    }

    /// The first one.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        let others = (1_u128 << self.host_bits) - 1;
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first) | others as u32).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) | others).into(),
        }
    }

    /// All of them, in order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let first = self.first;
        (0..1_u32 << self.host_bits).map(move |number| match first {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first) | number).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) | u128::from(number)).into(),
        })
    }

    /// Whether an address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        (self.first..=self.last()).contains(&address)
    }
}

impl fmt::Display for Vips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_bits {
            0 => write!(f, "{}", self.first),
            _ => write!(f, "{}/{}", self.first, self.prefix_len()),
        }
    }
}

impl FromStr for Vips {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let first: IpAddr =
            address.parse().map_err(|_| match address.parse::<SocketAddr>() {
                Ok(_) => format!("`{address}` has a port in it; write the address alone"),
                Err(_) => format!(
                    "`{address}` is no IP address; write one as \"10.0.0.100\", or a prefix as \"198.51.100.0/28\""
                ),
            })?;
        let bits: u8 = if first.is_ipv4() { 32 } else { 128 };
        let Some(length) = length else { return Ok(Self { first, host_bits: 0 }) };
        let length: Option<u8> = length.parse().ok().filter(|length| *length <= bits);
        let length = length.ok_or_else(|| format!("`{text}` has no length from 0 to {bits}"))?;
        let host_bits = bits - length;
        if host_bits > Extent::MAX_HOST_BITS {
            return Err(format!(
                "`{text}` has more than 65,536 addresses; a service takes prefixes from /{} on",
                bits - Extent::MAX_HOST_BITS
            ));
        }
        if host_of(first, host_bits) != 0 {
            return Err(format!("`{address}` is not the first address of its /{length}"));
        }
        Ok(Self { first, host_bits })
    }
}

/// The ports of a service: one, a range, or all but 0. As text `80`, `8000-8100` or `any`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    more: u16,
}

impl Ports {
    /// All but 0.
    const ANY: Self = Self { first: 1, more: u16::MAX - 1 };

    /// One port.
    #[must_use]
    pub const fn one(port: u16) -> Self {
        Self { first: port, more: 0 }
    }

    /// The last one.
    #[must_use]
    pub const fn last(&self) -> u16 {
        self.first.saturating_add(self.more)
    }

    /// Whether it is one.
    #[must_use]
    pub const fn is_one(&self) -> bool {
        self.more == 0
    }

    /// Whether a port is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last()).contains(&port)
    }

    /// Whether some port is in both.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last() && other.first <= self.last()
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self, self.more) {
            (Self::ANY, _) => f.write_str("any"),
            (_, 0) => write!(f, "{}", self.first),
            _ => write!(f, "{}-{}", self.first, self.last()),
        }
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" {
            return Ok(Self::ANY);
        }
        let port = |port: &str| -> Result<u16, String> {
            let number = port.parse().ok().filter(|number| *number != 0);
            number.ok_or_else(|| match port.parse::<i128>() {
                Ok(number) => {
                    format!("{number} is out of range; a number from 1 to 65535 is expected")
                }
                Err(_) => format!("`{text}` is no port; write 80, a range as 8000-8100, or any"),
            })
        };
        // Not the sign of a number.
        let range = text.split_once('-').filter(|(first, _)| !first.is_empty());
        let Some((first, last)) = range else { return port(text).map(Self::one) };
        let (first, last) = (port(first)?, port(last)?);
        match last.checked_sub(first) {
            Some(more) => Ok(Self { first, more }),
            None => Err(format!("`{text}` ends before it begins")),
        }
    }
}

impl Serialize for Vips {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Vips {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// One port is a number, others are text.
impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.more {
            0 => serializer.serialize_u16(self.first),
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a port, or a range of ports as text")]
        enum Form {
            Number(u16),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(port) => Ok(Self::one(port)),
            Form::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_with_its_prefix_and_its_range() {
        let cases = [
            ("10.0.0.100", "80", "tcp 10.0.0.100:80"),
            ("2001:db8::1", "80", "tcp [2001:db8::1]:80"),
            ("10.0.0.100", "8000-8100", "tcp 10.0.0.100:8000-8100"),
            ("198.51.100.0/28", "any", "tcp 198.51.100.0/28:any"),
            ("2001:db8::/120", "443", "tcp [2001:db8::/120]:443"),
            // One of each, whichever way it is written.
            ("10.0.0.100/32", "80-80", "tcp 10.0.0.100:80"),
            ("10.0.0.100", "1-65535", "tcp 10.0.0.100:any"),
        ];
        for (vips, ports, text) in cases {
            let key = ServiceKey::of(vips.parse().unwrap(), ports.parse().unwrap(), Protocol::Tcp);
            assert_eq!(key.to_string(), text);
            assert_eq!(key.extent.is_one(), text.ends_with(":80"), "{text}");
            let (vips, ports) = (key.vips().to_string(), key.ports().to_string());
            let again =
                ServiceKey::of(vips.parse().unwrap(), ports.parse().unwrap(), Protocol::Tcp);
            assert_eq!(again, key);
            let json = serde_json::to_string(&key).unwrap();
            assert_eq!(serde_json::from_str::<ServiceKey>(&json).unwrap(), key);
        }
    }

    #[test]
    fn a_key_clashes_where_no_more_specific_one_decides() {
        let key = |text: &str| {
            let (vips, ports) = text.split_once(' ').unwrap();
            ServiceKey::of(vips.parse().unwrap(), ports.parse().unwrap(), Protocol::Tcp)
        };
        for (one, other, clash) in [
            ("10.0.0.0/28 80", "10.0.0.0/28 80", true),
            ("10.0.0.1 8000-8100", "10.0.0.1 8050-8200", true),
            ("10.0.0.1 8000-8100", "10.0.0.1 8050", false),
            ("10.0.0.1 8000-8100", "10.0.0.1 8000-8050", false),
            ("10.0.0.1 8000-8100", "10.0.0.1 8101-8200", false),
            ("10.0.0.1 8000-8100", "10.0.0.2 8050-8200", false),
            ("10.0.0.0/28 8000-8100", "10.0.0.1 8050-8200", false),
            ("10.0.0.1 any", "10.0.0.0/28 80", false),
        ] {
            let (one, other) = (key(one), key(other));
            assert_eq!((one.clashes(&other), other.clashes(&one)), (clash, clash), "{one} {other}");
            assert!(!one.clashes(&ServiceKey { protocol: Protocol::Udp, ..other }));
        }
    }

    #[test]
    fn a_prefix_has_its_addresses_and_no_other() {
        let vips: Vips = "198.51.100.16/28".parse().unwrap();
        let at = |last: u8| IpAddr::from([198, 51, 100, last]);
        assert_eq!((vips.first(), vips.last()), (at(16), at(31)));
        assert!((16..32).all(|last| vips.contains(at(last))));
        assert!(vips.addresses().eq((16..32).map(at)));
        assert!(!vips.contains(at(15)) && !vips.contains(at(32)));
        let v6: Vips = "2001:db8::/112".parse().unwrap();
        assert_eq!(v6.last(), "2001:db8::ffff".parse::<IpAddr>().unwrap());
        assert!(!v6.contains("2001:db8::1:0".parse().unwrap()) && !v6.contains(at(16)));
    }

    #[test]
    fn what_is_no_prefix_and_no_range_is_refused_with_the_reason() {
        let vips = |text: &str| text.parse::<Vips>().unwrap_err();
        assert!(vips("web").starts_with("`web` is no IP address; write one as"));
        assert!(vips("10.0.0.1:80").contains("has a port in it"));
        assert_eq!(vips("10.0.0.1/33"), "`10.0.0.1/33` has no length from 0 to 32");
        assert_eq!(vips("10.0.0.1/x"), "`10.0.0.1/x` has no length from 0 to 32");
        assert_eq!(vips("10.0.0.1/28"), "`10.0.0.1` is not the first address of its /28");
        assert!(vips("10.0.0.0/15").contains("prefixes from /16 on"), "{}", vips("10.0.0.0/15"));
        assert!(vips("2001:db8::/64").contains("prefixes from /112 on"));
        let ports = |text: &str| text.parse::<Ports>().unwrap_err();
        for text in ["", "http", "80-", "80-90-100", "80-any"] {
            assert!(ports(text).contains("is no port; write 80"), "{text}: {}", ports(text));
        }
        for text in ["0", "-80", "0-80", "65536", "1-65536"] {
            assert!(ports(text).contains("is out of range"), "{text}: {}", ports(text));
        }
        assert_eq!(ports("90-80"), "`90-80` ends before it begins");
    }
}

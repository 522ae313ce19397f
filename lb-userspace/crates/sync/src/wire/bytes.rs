//! Numbers, addresses and texts as bytes: what all messages are made of.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU16,
};

use lb_model::{
    backend_address::BackendAddress,
    desired::{Extent, Protocol, ServiceKey},
};

/// Bytes that are no message, and what is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// What reading gives.
pub(crate) type Read<T> = Result<T, Malformed>;

const CUT_OFF: Malformed = Malformed("it is cut off");

/// In the byte before a service: its address is of IPv6.
const SERVICE_V6: u8 = 1;
/// In the byte before a backend: its address is of IPv6.
const BACKEND_V6: u8 = 1;
/// In the byte before a backend: its port follows its address. A node of a release without ports refuses it.
const BACKEND_PORT: u8 = 2;
/// In the byte before a service: its protocol is UDP.
const SERVICE_UDP: u8 = 2;
/// In the byte before a service: it has several VIPs or ports, and its [`Extent`] follows its port. A node of a release
/// whose services have one of each refuses it.
const SERVICE_WIDE: u8 = 4;

/// Takes values from the front of bytes; never beyond their end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `length` bytes.
    pub(crate) fn slice(&mut self, length: usize) -> Read<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(CUT_OFF)?;
        self.0 = tail;
        Ok(head)
    }

    /// The next bytes, as many as the result has.
    pub(crate) fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk().ok_or(CUT_OFF)?;
        self.0 = tail;
        Ok(*head)
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// One byte.
    pub(crate) fn u8(&mut self) -> Read<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes in network order.
    pub(crate) fn u16(&mut self) -> Read<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Eight bytes in network order.
    pub(crate) fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A number in as few bytes as it needs: seven bits in each, the lowest first, the top bit shows
    /// that another byte follows.
    pub(crate) fn varint(&mut self) -> Read<u64> {
        let mut value = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is too long"))
    }

    /// A [`Self::varint`] that fits in 32 bits.
    pub(crate) fn varint32(&mut self) -> Read<u32> {
        u32::try_from(self.varint()?).map_err(|_| Malformed("a number is too large"))
    }

    /// A byte that is 0 or 1.
    pub(crate) fn bool(&mut self) -> Read<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a flag is neither 0 nor 1")),
        }
    }

    /// An address of the family that was read before.
    pub(crate) fn address(&mut self, v6: bool) -> Read<IpAddr> {
        Ok(if v6 {
            IpAddr::V6(Ipv6Addr::from(self.array::<16>()?))
        } else {
            IpAddr::V4(Ipv4Addr::from(self.array::<4>()?))
        })
    }

    /// A text behind its length of one byte.
    pub fn text(&mut self) -> Read<&'a str> {
        let length = self.u8()?;
        let bytes = self.slice(usize::from(length))?;
        std::str::from_utf8(bytes).map_err(|_| Malformed("a text is not UTF-8"))
    }

    /// A service.
    pub fn service(&mut self) -> Read<ServiceKey> {
        let head = self.u8()?;
        if head & !(SERVICE_V6 | SERVICE_UDP | SERVICE_WIDE) != 0 {
            return Err(Malformed("a service is of an unknown kind"));
        }
        let protocol = if head & SERVICE_UDP != 0 { Protocol::Udp } else { Protocol::Tcp };
        let vip = self.address(head & SERVICE_V6 != 0)?;
        let key = ServiceKey::new(vip, self.u16()?, protocol);
        if head & SERVICE_WIDE == 0 {
            return Ok(key);
        }
        let extent = Extent { host_bits: self.u8()?, more_ports: self.u16()? };
        key.with_extent(extent).ok_or(Malformed("a service has no such VIPs or ports"))
    }

    /// A backend: the kind of its address, and the port behind it if the kind has one.
    pub(crate) fn backend(&mut self) -> Read<BackendAddress> {
        let head = self.u8()?;
        if head & !(BACKEND_V6 | BACKEND_PORT) != 0 {
            return Err(Malformed("a backend's address is of an unknown kind"));
        }
        let ip = self.address(head & BACKEND_V6 != 0)?;
        if head & BACKEND_PORT == 0 {
            return Ok(BackendAddress::new(ip));
        }
        let port = NonZeroU16::new(self.u16()?).ok_or(Malformed("a backend has port 0"))?;
        Ok(BackendAddress { ip, port: Some(port) })
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Read<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("more follows than was announced")) }
    }
}

/// Appends values to bytes, as [`Reader`] takes them.
pub(crate) trait Writer {
    /// Bytes as they are.
    fn put(&mut self, bytes: &[u8]);

    /// See [`Reader::varint`].
    fn put_varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.put(&[value as u8 | 0x80]);
            value >>= 7;
        }
        self.put(&[value as u8]);
    }

    /// The bytes of an address; its family is written elsewhere.
    fn put_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.put(&address.octets()),
            IpAddr::V6(address) => self.put(&address.octets()),
        }
    }

    /// See [`Reader::backend`].
    fn put_backend(&mut self, backend: &BackendAddress) {
        let family = if backend.ip.is_ipv6() { BACKEND_V6 } else { 0 };
        let port = if backend.port.is_some() { BACKEND_PORT } else { 0 };
        self.put(&[family | port]);
        self.put_address(backend.ip);
        if let Some(port) = backend.port {
            self.put(&port.get().to_be_bytes());
        }
    }

    /// See [`Reader::text`]; what is longer than `limit` bytes (255 at most) is cut off.
    fn put_text(&mut self, text: &str, limit: u8) {
        let cut = text.floor_char_boundary(usize::from(limit).min(text.len()));
        self.put(&[cut as u8]);
        self.put(&text.as_bytes()[..cut]);
    }

    /// See [`Reader::service`].
    fn put_service(&mut self, service: &ServiceKey) {
        let family = if service.vip.is_ipv6() { SERVICE_V6 } else { 0 };
        let protocol = if service.protocol == Protocol::Udp { SERVICE_UDP } else { 0 };
        let wide = if service.extent.is_one() { 0 } else { SERVICE_WIDE };
        self.put(&[family | protocol | wide]);
        self.put_address(service.vip);
        self.put(&service.port.to_be_bytes());
        if wide != 0 {
            self.put(&[service.extent.host_bits]);
            self.put(&service.extent.more_ports.to_be_bytes());
        }
    }
}

impl Writer for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_seven_bits_a_byte_and_come_back() {
        for (value, length) in
            [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (u64::MAX, 10)]
        {
            let mut bytes = Vec::new();
            bytes.put_varint(value);
            assert_eq!(bytes.len(), length, "{value}");
            let mut reader = Reader(&bytes);
            assert_eq!(reader.varint(), Ok(value));
            assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused() {
        assert!(Reader(&[0xff; 11]).varint().is_err());
        let mut too_large = vec![0xff; 9];
        too_large.push(2);
        assert!(Reader(&too_large).varint().is_err());
        assert!(Reader(&[0x80]).varint().is_err());
        assert!(Reader(&[0xff, 0xff, 0xff, 0xff, 0x10]).varint32().is_err());
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let mut bytes = Vec::new();
        bytes.put_text("äöü", 5);
        assert_eq!(Reader(&bytes).text(), Ok("äö"));
    }
}

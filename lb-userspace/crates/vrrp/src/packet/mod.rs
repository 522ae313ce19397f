//! Advertisements as bytes: VRRP version 3 (RFC 9568) for IPv4 and IPv6, version 2 (RFC 3768, with
//! the authentication data of RFC 2338) for IPv4.
//!
//! [`encode`] and [`decode`] know the form and the checksum of one message; [`Codec`] knows one
//! virtual router, and so what it sends and which messages it takes.
//!
//! Version 3 (RFC 9568, 5.1):
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |Version| Type  | Virtual Rtr ID|   Priority    |IPvX Addr Count|
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |Reserve| Max Advertise Interval|          Checksum             |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                       IPvX Address(es)                        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! Version 2 (RFC 3768, 5.1):
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |Version| Type  | Virtual Rtr ID|   Priority    | Count IP Addrs|
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |   Auth Type   |   Adver Int   |          Checksum             |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                         IP Address(es)                        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                     Authentication Data (1)                   |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                     Authentication Data (2)                   |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! Either may be followed by the trailer of [`auth`], which the counts above leave out.

mod codec;
#[cfg(test)]
mod fuzz;
mod refusal;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
    time::Duration,
};

use lb_common::rewrite::{fold, sum};
use lb_model::router::{Checksum, Family, Version};

pub use self::{
    codec::{Codec, Path, Taken},
    refusal::{Refusal, Refused},
};
use super::auth;

/// VRRP's number among the protocols of IP.
pub const PROTOCOL: u8 = 112;
/// TTL or hop limit of every advertisement (RFC 9568, 5.1.1.3 and 5.1.2.3).
pub(crate) const TTL: u8 = 255;
/// So many addresses at most are named.
pub(crate) const MAX_ADDRESSES: usize = u8::MAX as usize;
/// No message is longer: what has no room is no advertisement.
pub(crate) const MAX_LEN: usize = HEADER + MAX_ADDRESSES * 16 + PASSWORD + auth::TRAILER;

/// The only type there is.
const ADVERTISEMENT: u8 = 1;
const HEADER: usize = 8;
const PASSWORD: usize = 8;
const CHECKSUM_AT: usize = 6;
/// The interval has 12 bits, in centiseconds.
const MAX_CENTISECONDS: u16 = 0xfff;

/// The content of an advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// The version of the protocol.
    pub version: Version,
    /// The virtual router's identifier.
    pub vrid: NonZeroU8,
    /// The sender's priority; 0: it ceases to be Active.
    pub priority: u8,
    /// The sender's interval.
    pub interval: Duration,
    /// The virtual addresses, all of one family.
    pub addresses: Vec<IpAddr>,
}

/// A message as it has come.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Its sender.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Its TTL or hop limit.
    pub ttl: u8,
    /// What follows the IP header.
    pub message: &'a [u8],
}

/// The authentication of version 2 (RFC 2338, 5.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing, as always in version 3.
    None,
    /// A plain password.
    Password([u8; PASSWORD]),
    /// Another type, which is not known here.
    Other(u8),
}

/// An advertisement of which form and checksum are right, and nothing else is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// Its content.
    pub advertisement: Advertisement,
    /// The authentication of version 2.
    pub proof: Proof,
    /// The message without a trailer.
    pub body: &'a [u8],
    /// The trailer of [`auth`], not verified.
    pub trailer: Option<&'a [u8; auth::TRAILER]>,
}

/// The virtual router that a message is for, if it has one; nothing else is looked at.
#[must_use]
pub fn vrid(message: &[u8]) -> Option<NonZeroU8> {
    message.get(1).copied().and_then(NonZeroU8::new)
}

/// Writes an advertisement from `source` to `destination`.
///
/// Addresses of another family than the source's and those above [`MAX_ADDRESSES`] are left out;
/// the interval is cut to what the version can carry.
#[must_use]
pub fn encode(
    advertisement: &Advertisement,
    source: IpAddr,
    destination: IpAddr,
    checksum: Checksum,
    proof: Proof,
) -> Vec<u8> {
    let family = Family::of(source);
    let addresses = advertisement.addresses.iter().filter(|a| Family::of(**a) == family);
    let mut bytes = vec![0; HEADER];
    let mut count = 0;
    for address in addresses.take(MAX_ADDRESSES) {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
        count += 1;
    }
    bytes[1] = advertisement.vrid.get();
    bytes[2] = advertisement.priority;
    bytes[3] = count;
    match advertisement.version {
        Version::V2 => {
            bytes[0] = (2 << 4) | ADVERTISEMENT;
            bytes[5] = advertisement.interval.as_secs().try_into().unwrap_or(u8::MAX);
            let (kind, data) = match proof {
                Proof::None => (0, [0; PASSWORD]),
                Proof::Password(password) => (1, password),
                Proof::Other(kind) => (kind, [0; PASSWORD]),
            };
            bytes[4] = kind;
            bytes.extend(data);
        }
        Version::V3 => {
            bytes[0] = (3 << 4) | ADVERTISEMENT;
            let centiseconds = u16::try_from(advertisement.interval.as_millis() / 10)
                .unwrap_or(u16::MAX)
                .min(MAX_CENTISECONDS);
            bytes[4..6].copy_from_slice(&centiseconds.to_be_bytes());
        }
    }
    let with = match (family, advertisement.version, checksum) {
        (Family::V4, Version::V2, _) | (Family::V4, Version::V3, Checksum::Message) => {
            Checksum::Message
        }
        _ => Checksum::PseudoHeader,
    };
    fill_checksum(&mut bytes, source, destination, with);
    bytes
}

/// Reads a message: form and checksum, with the pseudo-header or without where both are in use.
///
/// # Errors
///
/// Why it is no advertisement.
pub fn decode<'a>(packet: &Packet<'a>) -> Result<Decoded<'a>, Refusal> {
    let message = packet.message;
    let Some((header, rest)) = message.split_first_chunk::<HEADER>() else {
        return Err(Refusal::Malformed("it is shorter than a header"));
    };
    let version = match (header[0] >> 4, Family::of(packet.source)) {
        (2, Family::V4) => Version::V2,
        (3, _) => Version::V3,
        (other, _) => return Err(Refusal::Version(other)),
    };
    if header[0] & 0xf != ADVERTISEMENT {
        return Err(Refusal::Malformed("it is of another type than an advertisement"));
    }
    let Some(vrid) = NonZeroU8::new(header[1]) else {
        return Err(Refusal::Malformed("its VRID is 0"));
    };
    if header[3] == 0 && version == Version::V3 {
        // RFC 9568, 5.2.5; erratum 8299 has it in 7.1, too.
        return Err(Refusal::Malformed("it names no address"));
    }
    let (addresses, rest) = read_addresses(rest, header[3], Family::of(packet.source))?;
    let (proof, rest) = match version {
        Version::V2 => read_proof(rest, header[4])?,
        Version::V3 => (Proof::None, rest),
    };
    let trailer = match <&[u8; auth::TRAILER]>::try_from(rest) {
        Ok(trailer) => Some(trailer),
        Err(_) if rest.is_empty() => None,
        Err(_) => return Err(Refusal::Malformed("its length does not fit its addresses")),
    };
    let body = &message[..message.len() - rest.len()];
    if !checksum_holds(packet, version, body) {
        return Err(Refusal::Checksum);
    }
    let interval = match version {
        Version::V2 => Duration::from_secs(header[5].into()),
        Version::V3 => {
            let centiseconds = u16::from_be_bytes([header[4], header[5]]) & MAX_CENTISECONDS;
            Duration::from_millis(u64::from(centiseconds) * 10)
        }
    };
    if interval.is_zero() {
        // Erratum 8301 to RFC 9568, 7.1: a router that learnt this one would never wait.
        return Err(Refusal::Malformed("its interval is 0"));
    }
    let priority = header[2];
    let advertisement = Advertisement { version, vrid, priority, interval, addresses };
    Ok(Decoded { advertisement, proof, body, trailer })
}

fn read_addresses(
    bytes: &[u8],
    count: u8,
    family: Family,
) -> Result<(Vec<IpAddr>, &[u8]), Refusal> {
    let width = match family {
        Family::V4 => 4,
        Family::V6 => 16,
    };
    let Some((addresses, rest)) = bytes.split_at_checked(usize::from(count) * width) else {
        return Err(Refusal::Malformed("it is shorter than its addresses"));
    };
    let addresses = match family {
        Family::V4 => addresses.as_chunks().0.iter().map(|a| Ipv4Addr::from(*a).into()).collect(),
        Family::V6 => addresses.as_chunks().0.iter().map(|a| Ipv6Addr::from(*a).into()).collect(),
    };
    Ok((addresses, rest))
}

fn read_proof(bytes: &[u8], kind: u8) -> Result<(Proof, &[u8]), Refusal> {
    let Some((password, rest)) = bytes.split_first_chunk() else {
        return Err(Refusal::Malformed("it has no authentication data"));
    };
    let proof = match kind {
        0 => Proof::None,
        1 => Proof::Password(*password),
        other => Proof::Other(other),
    };
    Ok((proof, rest))
}

/// Whether the checksum is right in any of the ways that are in use: for version 3 over IPv4 with the
/// pseudo-header (RFC 5798) and without (RFC 9568); with a trailer, over it too where the kernel of
/// the sender computes it, as for IPv6, and of the message alone where it does not.
fn checksum_holds(packet: &Packet<'_>, version: Version, body: &[u8]) -> bool {
    let kinds: &[Checksum] = match (version, Family::of(packet.source)) {
        (Version::V2, _) => &[Checksum::Message],
        (Version::V3, Family::V4) => &[Checksum::PseudoHeader, Checksum::Message],
        (Version::V3, Family::V6) => &[Checksum::PseudoHeader],
    };
    let parts = [body, packet.message];
    kinds.iter().any(|kind| {
        parts.iter().any(|bytes| total(bytes, packet.source, packet.destination, *kind) == 0xffff)
    })
}

/// Computes the checksum of a message, and puts it there.
pub(super) fn fill_checksum(
    message: &mut [u8],
    source: IpAddr,
    destination: IpAddr,
    kind: Checksum,
) {
    message[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
    let check = !total(message, source, destination, kind);
    message[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&check.to_be_bytes());
}

/// The sum of a message's words in ones' complement: all ones if its checksum is right. The
/// pseudo-header is that of RFC 8200, 8.1 or, with the same sum, RFC 9293, 3.1.
fn total(message: &[u8], source: IpAddr, destination: IpAddr, kind: Checksum) -> u16 {
    let pseudo = match kind {
        Checksum::Message => 0,
        Checksum::PseudoHeader => {
            let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
            sum_of(source) + sum_of(destination) + u32::from(length) + u32::from(PROTOCOL)
        }
    };
    fold(pseudo + sum(message))
}

fn sum_of(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    }
}

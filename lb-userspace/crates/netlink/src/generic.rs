//! Generic netlink, for families that no crate here implements (`netdev`, `ethtool`).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+  behind netlink's own header, in the
//! |    Command    |    Version    |           Reserved            |  machine's byte order
//! |       Attribute length        |  Attribute type (15, nested)  |  with its own four bytes,
//! |       payload, padded to four bytes ...                       |  again and again
//! +---------------------------------------------------------------+
//! ```

use std::{collections::BTreeMap, io};

use anyhow::Context as _;
use rtnetlink::{
    packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable},
    sys::protocols::NETLINK_GENERIC,
};

use super::client::Client;

/// Length of `struct genlmsghdr`.
const HEADER: usize = 4;
const VERSION: u8 = 1;
/// The flag of an attribute that holds attributes.
pub(crate) const NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that are no flags.
const TYPE: u16 = (1 << 14) - 1;

// From linux/genetlink.h.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

// From linux/netdev.h.
const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;

/// What devices can do for XDP: bits of enum netdev_xdp_act of linux/netdev.h.
pub mod xdp_act {
    /// To run programs natively, and to transmit what they return with XDP_TX.
    pub const BASIC: u64 = 1;
    /// To take XDP_REDIRECT from a program.
    pub const REDIRECT: u64 = 2;
    /// To be the target of XDP_REDIRECT (`ndo_xdp_xmit`).
    pub const NDO_XMIT: u64 = 4;
    /// To run programs on frames of several buffers.
    pub const RX_SG: u64 = 32;
}

/// What every interface can do for XDP (see [`xdp_act`]), by index.
///
/// # Errors
///
/// If the kernel does not report it (before Linux 6.3).
pub fn xdp_features() -> io::Result<BTreeMap<u32, u64>> {
    let feature = |answer: &Vec<u8>| {
        let ifindex = find(answer, DEV_IFINDEX).and_then(word)?;
        let bits = find(answer, DEV_XDP_FEATURES)?.try_into().ok()?;
        Some((ifindex, u64::from_ne_bytes(bits)))
    };
    Ok(request("netdev", DEV_GET, true, Vec::new())?.iter().filter_map(feature).collect())
}

/// Whether the kernel has a family of generic netlink.
pub fn has_family(name: &str) -> bool {
    let client = Client::of(NETLINK_GENERIC);
    client.is_ok_and(|mut client| client.request(Message::about_family(name), 0).is_ok())
}

/// A number of four bytes.
pub fn word(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_ne_bytes)
}

/// Queries a family; the attributes of its answer.
pub fn query(family: &str, command: u8, attributes: Vec<u8>) -> io::Result<Vec<u8>> {
    let answers = request(family, command, false, attributes)?;
    answers.into_iter().next_back().ok_or_else(|| io::Error::other("netlink answers nothing"))
}

fn request(family: &str, command: u8, dump: bool, attributes: Vec<u8>) -> io::Result<Vec<Vec<u8>>> {
    let exchange = || -> anyhow::Result<Vec<Message>> {
        let mut client = Client::of(NETLINK_GENERIC)?;
        let found = client.request(Message::about_family(family), 0)?;
        let id =
            found.iter().find_map(|answer| find(&answer.attributes, FAMILY_ID)?.try_into().ok());
        let family = id.map(u16::from_ne_bytes).context("netlink names no family")?;
        let request = Message { family, command, attributes };
        Ok(if dump { client.dump(request)? } else { client.request(request, 0)? })
    };
    let answers = exchange().map_err(|error| match error.downcast() {
        Ok(error) => error,
        Err(error) => io::Error::other(error),
    })?;
    Ok(answers.into_iter().map(|answer| answer.attributes).collect())
}

/// A message of a family.
#[derive(Clone, Debug)]
struct Message {
    family: u16,
    command: u8,
    attributes: Vec<u8>,
}

impl Message {
    /// The request for what is known of a family.
    fn about_family(name: &str) -> Self {
        let name = [name.as_bytes(), &[0]].concat();
        let attributes = attribute(FAMILY_NAME, &name);
        Self { family: CONTROL, command: GET_FAMILY, attributes }
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..HEADER].copy_from_slice(&[self.command, VERSION, 0, 0]);
        // What comes behind fills up a word.
        buffer[HEADER..self.buffer_len()].copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (generic, attributes) = payload
            .split_first_chunk::<HEADER>()
            .ok_or_else(|| DecodeError::from("shorter than its header"))?;
        let (family, command) = (header.message_type, generic[0]);
        Ok(Self { family, command, attributes: attributes.to_vec() })
    }
}

/// An attribute, padded.
pub fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = 4 + payload.len() as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes in a payload, by type.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of an attribute.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(one, _)| *one == kind).map(|(_, payload)| payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_no_attribute() {
        let whole = attribute(1, b"12345");
        for length in 0..9 {
            assert_eq!(find(&whole[..length], 1), None, "{length}");
        }
        assert_eq!(find(&whole[..9], 1), Some(&b"12345"[..]));
        assert_eq!(find(&[2, 0, 1, 0], 1), None, "shorter than its header");
    }
}

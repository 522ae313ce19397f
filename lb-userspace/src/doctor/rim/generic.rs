//! What drivers can do and what is switched on, by generic netlink: the families `ethtool` and
//! `netdev`, which no crate here speaks.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+  in the machine's byte order
//! |                            Length                             |
//! |             Type              |             Flags             |
//! |                           Sequence                            |
//! |                             Port                              |
//! |    Command    |    Version    |           Reserved            |
//! |       Attribute length        |  Attribute type (15, nested)  |  with its own four bytes,
//! |       payload, padded to four bytes ...                       |  again and again
//! +---------------------------------------------------------------+
//! ```

use std::{collections::BTreeSet, io};

use rtnetlink::sys::{Socket, protocols::NETLINK_GENERIC};

use crate::doctor::facts::{Channels, Interface};

const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that are no flags.
const TYPE: u16 = (1 << 14) - 1;
/// What the kernel answers with instead of a message.
const NLMSG_ERROR: u16 = 2;

// From linux/genetlink.h.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

// From linux/ethtool_netlink.h.
const FEATURES_GET: u8 = 11;
const CHANNELS_GET: u8 = 17;
const ETHTOOL_HEADER: u16 = 1;
const HEADER_DEV_NAME: u16 = 2;
const FEATURES_ACTIVE: u16 = 4;
const BITSET_BITS: u16 = 3;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;
const RX_MAX: u16 = 2;
const COMBINED_MAX: u16 = 5;
const RX_COUNT: u16 = 6;
const COMBINED_COUNT: u16 = 9;

// From linux/netdev.h.
const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;

/// Fills in what generic netlink tells of an interface.
pub(super) fn describe(name: &str, interface: &mut Interface) {
    let of = of_name(name);
    interface.offloads = ask("ethtool", FEATURES_GET, &of).ok().map(|answer| offloads(&answer));
    interface.channels = ask("ethtool", CHANNELS_GET, &of).ok().map(|answer| channels(&answer));
    let of = attribute(DEV_IFINDEX, &interface.ifindex.to_ne_bytes());
    let told = ask("netdev", DEV_GET, &of).ok();
    interface.xdp_features = told.and_then(|answer| xdp_features(&answer));
}

/// Whether the kernel has a family of generic netlink.
pub(crate) fn has_family(name: &str) -> bool {
    let name = [name.as_bytes(), &[0]].concat();
    let answer = Socket::new(NETLINK_GENERIC).and_then(|mut socket| {
        socket.bind_auto()?;
        exchange(&socket, CONTROL, GET_FAMILY, &attribute(FAMILY_NAME, &name))
    });
    answer.is_ok()
}

fn of_name(name: &str) -> Vec<u8> {
    let name = [name.as_bytes(), &[0]].concat();
    attribute(ETHTOOL_HEADER | NESTED, &attribute(HEADER_DEV_NAME, &name))
}

/// The names of the features that are on.
fn offloads(answer: &[u8]) -> BTreeSet<String> {
    let Some(active) = find(answer, FEATURES_ACTIVE) else { return BTreeSet::new() };
    let bits = find(active, BITSET_BITS).unwrap_or_default();
    attributes(bits)
        .filter(|(_, bit)| find(bit, BIT_VALUE).is_some())
        .filter_map(|(_, bit)| {
            let name = find(bit, BIT_NAME)?;
            Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
        })
        .collect()
}

fn channels(answer: &[u8]) -> Channels {
    let number = |kind| find(answer, kind).and_then(word).unwrap_or(0);
    Channels {
        combined: number(COMBINED_COUNT),
        combined_max: number(COMBINED_MAX),
        rx: number(RX_COUNT),
        rx_max: number(RX_MAX),
    }
}

fn xdp_features(answer: &[u8]) -> Option<u64> {
    find(answer, DEV_XDP_FEATURES)?.try_into().ok().map(u64::from_ne_bytes)
}

fn word(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_ne_bytes)
}

/// Asks a family; the attributes of its answer.
fn ask(family: &str, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    let name = [family.as_bytes(), &[0]].concat();
    let answer = exchange(&socket, CONTROL, GET_FAMILY, &attribute(FAMILY_NAME, &name))?;
    let id = find(&answer, FAMILY_ID).and_then(|id| id.try_into().ok()).map(u16::from_ne_bytes);
    let id = id.ok_or_else(|| io::Error::other("netlink names no family"))?;
    exchange(&socket, id, command, attributes)
}

fn exchange(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let length = (HEADER + GENERIC_HEADER + attributes.len()) as u32;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(family.to_ne_bytes());
    // With the acknowledgement there always is an answer to wait for.
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    socket.send(&message, 0)?;
    let mut answer = None;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, payload) in messages(&bytes) {
            if kind == family {
                answer = Some(payload.get(GENERIC_HEADER..).unwrap_or_default().to_vec());
            } else if kind == NLMSG_ERROR {
                let code =
                    payload.first_chunk().map_or(-libc::EPROTO, |code| i32::from_ne_bytes(*code));
                return match (code, answer) {
                    (0, Some(answer)) => Ok(answer),
                    (0, None) => Err(io::Error::other("netlink answers nothing")),
                    (code, _) => Err(io::Error::from_raw_os_error(-code)),
                };
            }
        }
    }
}

/// The messages of a datagram: their types and what follows their headers.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([message[4], message[5]]), &message[HEADER..]))
    })
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = 4 + payload.len() as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes in a payload, by type.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(one, _)| *one == kind).map(|(_, payload)| payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let bit = |name: &str, on: bool| {
            let name = attribute(BIT_NAME, format!("{name}\0").as_bytes());
            let value = if on { attribute(BIT_VALUE, &[]) } else { Vec::new() };
            attribute(1 | NESTED, &[name, value].concat())
        };
        let bits = [bit("rx-lro", true), bit("rx-gro-hw", false)].concat();
        let bits = attribute(BITSET_BITS | NESTED, &bits);
        let answer = [of_name("eth0"), attribute(FEATURES_ACTIVE | NESTED, &bits)].concat();
        assert_eq!(offloads(&answer), BTreeSet::from(["rx-lro".to_owned()]));
        let answer = attribute(DEV_XDP_FEATURES, &7_u64.to_ne_bytes());
        assert_eq!(xdp_features(&answer), Some(7));
        let answer = [
            attribute(COMBINED_MAX, &8_u32.to_ne_bytes()),
            attribute(COMBINED_COUNT, &2_u32.to_ne_bytes()),
        ];
        let expected = Channels { combined: 2, combined_max: 8, ..Channels::default() };
        assert_eq!(channels(&answer.concat()), expected);
    }

    #[test]
    fn what_is_cut_off_is_no_attribute() {
        let whole = attribute(1, b"12345");
        for length in 0..9 {
            assert_eq!(find(&whole[..length], 1), None, "{length}");
        }
        assert_eq!(find(&whole[..9], 1), Some(&b"12345"[..]));
        assert_eq!(find(&[2, 0, 1, 0], 1), None, "shorter than its header");
        assert_eq!(messages(&[3, 0, 0, 0]).count(), 0);
    }
}

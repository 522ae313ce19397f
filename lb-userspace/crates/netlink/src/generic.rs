//! Generic netlink, for families that no crate here speaks (`netdev`, `ethtool`).
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

use std::{collections::BTreeMap, io};

use rtnetlink::sys::{Socket, protocols::NETLINK_GENERIC};

const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// The flag of an attribute that holds attributes.
pub const NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that are no flags.
const TYPE: u16 = (1 << 14) - 1;
/// What the kernel answers with instead of a message.
const NLMSG_ERROR: u16 = 2;
/// The end of a dump.
const NLMSG_DONE: u16 = 3;

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
/// If the kernel does not say (before Linux 6.3).
pub fn xdp_features() -> io::Result<BTreeMap<u32, u64>> {
    let feature = |answer: &Vec<u8>| {
        let ifindex = find(answer, DEV_IFINDEX).and_then(word)?;
        let bits = find(answer, DEV_XDP_FEATURES)?.try_into().ok()?;
        Some((ifindex, u64::from_ne_bytes(bits)))
    };
    Ok(request("netdev", DEV_GET, NLM_F_DUMP, &[])?.iter().filter_map(feature).collect())
}

/// Whether the kernel has a family of generic netlink.
pub fn has_family(name: &str) -> bool {
    let name = [name.as_bytes(), &[0]].concat();
    let answer = Socket::new(NETLINK_GENERIC).and_then(|mut socket| {
        socket.bind_auto()?;
        exchange(&socket, CONTROL, GET_FAMILY, 0, &attribute(FAMILY_NAME, &name))
    });
    answer.is_ok()
}

/// A number of four bytes.
pub fn word(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_ne_bytes)
}

/// Asks a family; the attributes of its answer.
pub fn ask(family: &str, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let answers = request(family, command, 0, attributes)?;
    answers.into_iter().next_back().ok_or_else(|| io::Error::other("netlink answers nothing"))
}

fn request(family: &str, command: u8, flags: u16, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    let name = [family.as_bytes(), &[0]].concat();
    let answers = exchange(&socket, CONTROL, GET_FAMILY, 0, &attribute(FAMILY_NAME, &name))?;
    let id = answers.iter().find_map(|answer| find(answer, FAMILY_ID)?.try_into().ok());
    let id = id.map(u16::from_ne_bytes);
    let id = id.ok_or_else(|| io::Error::other("netlink names no family"))?;
    exchange(&socket, id, command, flags, attributes)
}

fn exchange(
    socket: &Socket,
    family: u16,
    command: u8,
    flags: u16,
    attributes: &[u8],
) -> io::Result<Vec<Vec<u8>>> {
    let length = (HEADER + GENERIC_HEADER + attributes.len()) as u32;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(family.to_ne_bytes());
    // With the acknowledgement there always is an answer to wait for.
    message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    socket.send(&message, 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for (kind, payload) in messages(&bytes) {
            if kind == family {
                answers.push(payload.get(GENERIC_HEADER..).unwrap_or_default().to_vec());
            } else if kind == NLMSG_ERROR || kind == NLMSG_DONE {
                let code =
                    payload.first_chunk().map_or(-libc::EPROTO, |code| i32::from_ne_bytes(*code));
                return match code {
                    0 => Ok(answers),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
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

/// An attribute, padded.
pub fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = 4 + payload.len() as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes in a payload, by type.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
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
        assert_eq!(messages(&[3, 0, 0, 0]).count(), 0);
    }
}

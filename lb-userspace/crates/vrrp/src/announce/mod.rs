//! How a node announces its addresses on a link: gratuitous ARP (RFC 5227, 3; RFC 5944, 4.6) and
//! unsolicited neighbour advertisements (RFC 4861, 7.2.6; RFC 9568, 8.2.2). As bytes, both ways: what
//! the Active router sends, and the claims that it receives from others, unsolicited or as answers.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+   ARP (RFC 826)
//! |     Hardware (1: Ethernet)    |     Protocol (0x0800)         |
//! | Hw length (6) | Pr length (4) |     Operation (1: request)    |
//! |                Sender hardware address                        |
//! |                               |  Sender protocol address      |
//! |                               |  Target hardware address      |
//! |                                                               |
//! |                Target protocol address                        |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+   (RFC 4861, 4.4 and 4.6.1)
//! |  Type (136)   |   Code (0)    |          Checksum             |
//! |R|S|O|                     Reserved                            |
//! |                       Target Address                          |
//! |                           16 bytes                            |
//! |   Option (2)  |  Length (1)   |  Link-layer address           |
//! |                                                               |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    packet::{ethernet, number},
    rewrite::{fold, sum},
};

/// A hardware address.
pub type Mac = [u8; 6];

/// Length of the header of Ethernet.
const ETHERNET: usize = 14;
/// Of ARP between Ethernet and IPv4.
const ARP: usize = 28;
/// Of the fixed part of a neighbour advertisement or solicitation, and with the option that it has here.
const ADVERTISEMENT: usize = 24;
const ADVERTISEMENT_AND_OPTION: usize = 32;
const IPV6: usize = 40;

const BROADCAST: Mac = [0xff; 6];
/// To all nodes of the link, and the multicast address of Ethernet for it (RFC 2464, 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethernet and IPv4, with the lengths of their addresses.
const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];

const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ROUTER: u8 = 0x80;
const OVERRIDE: u8 = 0x20;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
/// RFC 4861, 7.1.2: a lower one has crossed a router.
const HOP_LIMIT: u8 = 255;

/// A host's claim of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The hardware address that packets to it are to be sent to.
    pub mac: Mac,
}

/// The frame that announces on the link that `mac` has `address`. `router` is for IPv6: whether
/// the node forwards packets of the interface's hosts, as its kernel's own answers state.
#[must_use]
pub(crate) fn frame(address: IpAddr, mac: Mac, router: bool) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => gratuitous_arp(address, mac),
        IpAddr::V6(address) => neighbour_advertisement(address, mac, router),
    }
}

fn gratuitous_arp(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let mut frame = ethernet_header(BROADCAST, mac, ETHERTYPE_ARP);
    frame.extend(ARP_START);
    // A request, as keepalived sends it: RFC 5227 has found that some hosts take no others.
    frame.extend(ARP_REQUEST);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend(BROADCAST);
    frame.extend(address.octets());
    frame
}

fn neighbour_advertisement(address: Ipv6Addr, mac: Mac, router: bool) -> Vec<u8> {
    let mut frame = ethernet_header(ALL_NODES_MAC, mac, ethernet::IPV6);
    frame.extend([0x60, 0, 0, 0, 0, ADVERTISEMENT_AND_OPTION as u8, number::ICMPV6, HOP_LIMIT]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    let flags = OVERRIDE | if router { ROUTER } else { 0 };
    frame.extend([NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    frame.extend(address.octets());
    frame.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
    frame.extend(mac);
    fill_checksum(&mut frame);
    frame
}

/// The frame that requests an address's owner. `from` is another address of the node; without one, the
/// request is a probe, from which no host learns an address (RFC 5227, 2.1.1).
#[must_use]
pub fn arp_request(address: Ipv4Addr, mac: Mac, from: Option<Ipv4Addr>) -> Vec<u8> {
    let mut frame = ethernet_header(BROADCAST, mac, ETHERTYPE_ARP);
    frame.extend(ARP_START);
    frame.extend(ARP_REQUEST);
    frame.extend(mac);
    frame.extend(from.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// The same over IPv6 (RFC 4861, 7.2.2); `from` is a link-local address of the node.
#[must_use]
pub fn solicitation(address: Ipv6Addr, mac: Mac, from: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = address.octets();
    // RFC 4291, 2.7.1.
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    let mut frame = ethernet_header([0x33, 0x33, 0xff, a, b, c], mac, ethernet::IPV6);
    frame.extend([0x60, 0, 0, 0, 0, ADVERTISEMENT_AND_OPTION as u8, number::ICMPV6, HOP_LIMIT]);
    frame.extend(from.octets());
    frame.extend(group);
    frame.extend([NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(address.octets());
    frame.extend([SOURCE_LINK_LAYER_ADDRESS, 1]);
    frame.extend(mac);
    fill_checksum(&mut frame);
    frame
}

fn fill_checksum(frame: &mut [u8]) {
    let check = !icmpv6_sum(&frame[ETHERNET..]);
    frame[ETHERNET + IPV6 + 2..][..2].copy_from_slice(&check.to_be_bytes());
}

fn ethernet_header(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + IPV6 + ADVERTISEMENT_AND_OPTION);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// The claim of an address in a frame: the sender of any ARP message, and the target of a neighbour
/// advertisement. A probe (RFC 5227, 2.1.1) claims none.
#[must_use]
pub fn claim(frame: &[u8]) -> Option<Claim> {
    let (header, rest) = frame.split_first_chunk::<ETHERNET>()?;
    match u16::from_be_bytes([header[12], header[13]]) {
        ETHERTYPE_ARP => arp_claim(rest),
        ethernet::IPV6 => advertisement_claim(rest, *header[6..].first_chunk()?),
        _ => None,
    }
}

fn arp_claim(message: &[u8]) -> Option<Claim> {
    let message = message.first_chunk::<ARP>()?;
    if !message.starts_with(&ARP_START) {
        return None;
    }
    let mac = *message[8..].first_chunk()?;
    let address = Ipv4Addr::from(*message[14..].first_chunk::<4>()?);
    (!address.is_unspecified()).then_some(Claim { address: address.into(), mac })
}

/// RFC 4861, 7.1.2 defines which are valid. Without the option the sender's own address counts.
fn advertisement_claim(packet: &[u8], sender: Mac) -> Option<Claim> {
    let (header, rest) = packet.split_first_chunk::<IPV6>()?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let message = rest.get(..len)?;
    if header[0] >> 4 != 6
        || header[6] != number::ICMPV6
        || header[7] != HOP_LIMIT
        || message.len() < ADVERTISEMENT
        || message[..2] != [NEIGHBOUR_ADVERTISEMENT, 0]
        || icmpv6_sum(&packet[..IPV6 + len]) != 0xffff
    {
        return None;
    }
    let address = Ipv6Addr::from(*message[8..].first_chunk::<16>()?);
    if address.is_multicast() {
        return None;
    }
    let mut options = &message[ADVERTISEMENT..];
    let mut mac = sender;
    while let [kind, length, ..] = *options {
        let option = options.get(..usize::from(length) * 8).filter(|option| !option.is_empty())?;
        if (kind, length) == (TARGET_LINK_LAYER_ADDRESS, 1) {
            mac = *option[2..].first_chunk()?;
        }
        options = &options[option.len()..];
    }
    Some(Claim { address: address.into(), mac })
}

/// The sum of an ICMPv6 message with its pseudo-header (RFC 8200, 8.1), of a packet without extension
/// headers and nothing behind: all ones if its checksum is right.
fn icmpv6_sum(packet: &[u8]) -> u16 {
    let (header, message) = packet.split_at(IPV6);
    let (words, odd) = message.split_at(message.len() & !1);
    let last = odd.first().map_or(0, |byte| u32::from(*byte) << 8);
    // Below 2^32: a packet has fewer than 2^15 words.
    let pseudo = sum(&header[8..]) + message.len() as u32 + u32::from(number::ICMPV6);
    fold(pseudo + sum(words) + last)
}

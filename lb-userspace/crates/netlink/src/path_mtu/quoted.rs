//! The content of an ICMP error that quotes a tunnelled packet. No I/O.

use std::net::IpAddr;

use lb_common::{
    packet::{
        icmp::{self, Icmp},
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
    },
    rewrite::{fold, sum},
};
use zerocopy::FromBytes as _;

use super::MIN;

/// A router could not forward a tunnelled packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooBig {
    /// The packet's outer source.
    pub(super) source: IpAddr,
    /// Its outer destination.
    pub(super) backend: IpAddr,
    /// The largest packet that the next link takes, in bytes.
    pub(super) mtu: u16,
}

/// Reads "fragmentation needed" (RFC 1191, 4) or "packet too big" (RFC 4443, 3.2) from its IP header on;
/// none if the packet is something else, is not whole, or names an MTU that no link has or that the
/// quoted packet would have fitted.
pub(super) fn parse(packet: &[u8]) -> Option<TooBig> {
    match packet.first()? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => None,
    }
}

fn parse_v4(packet: &[u8]) -> Option<TooBig> {
    let (ip, _) = Ipv4::ref_from_prefix(packet).ok()?;
    let message = packet.get(ip.header_len()?..ip.total_len.get().into())?;
    let (icmp, quoted) = Icmp::ref_from_prefix(message).ok()?;
    let is_too_big = icmp.kind == icmp::UNREACHABLE && icmp.code == icmp::FRAGMENTATION_NEEDED;
    if ip.proto != number::ICMP || !is_too_big || fold(sum_of(message)) != 0xffff {
        return None;
    }
    let (outer, _) = Ipv4::ref_from_prefix(quoted).ok()?;
    outer.header_len()?;
    let is_tunnelled = outer.proto == number::IPV4
        && outer.fragment.get() & (ipv4::OFFSET_MASK | ipv4::MORE_FRAGMENTS) == 0;
    let [_, _, high, low] = icmp.rest;
    let mtu = u16::from_be_bytes([high, low]);
    let is_sane = (MIN..outer.total_len.get()).contains(&mtu);
    // The error goes to the source of what it quotes.
    (is_tunnelled && is_sane && outer.source == ip.destination).then(|| TooBig {
        source: outer.source.into(),
        backend: outer.destination.into(),
        mtu,
    })
}

fn parse_v6(packet: &[u8]) -> Option<TooBig> {
    let (ip, _) = Ipv6::ref_from_prefix(packet).ok()?;
    let message = packet.get(ipv6::LEN..)?.get(..ip.payload_len.get().into())?;
    let (icmp, quoted) = Icmp::ref_from_prefix(message).ok()?;
    let pseudo = sum(&ip.source)
        + sum(&ip.destination)
        + u32::from(ip.payload_len.get())
        + u32::from(number::ICMPV6);
    if ip.next != number::ICMPV6
        || icmp.kind != icmp::V6_TOO_BIG
        || fold(pseudo + sum_of(message)) != 0xffff
    {
        return None;
    }
    let (outer, _) = Ipv6::ref_from_prefix(quoted).ok()?;
    let is_tunnelled =
        outer.version_class_label[0] >> 4 == 6 && matches!(outer.next, number::IPV4 | number::IPV6);
    let mtu = u16::try_from(u32::from_be_bytes(icmp.rest)).ok()?;
    let len = usize::from(outer.payload_len.get()) + ipv6::LEN;
    let is_sane = mtu >= MIN && usize::from(mtu) < len;
    (is_tunnelled && is_sane && outer.source == ip.destination).then(|| TooBig {
        source: outer.source.into(),
        backend: outer.destination.into(),
        mtu,
    })
}

/// Sum of the words of a message, the last one filled up with a zero (RFC 1071).
fn sum_of(message: &[u8]) -> u32 {
    let (pairs, last) = message.split_at(message.len() & !1);
    sum(pairs) + last.first().map_or(0, |byte| u32::from(*byte) << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: [u8; 4] = [10, 0, 0, 1];
    const SOURCE: [u8; 4] = [172, 16, 1, 2];
    const BACKEND: [u8; 4] = [10, 2, 0, 11];

    fn v4(source: [u8; 4], destination: [u8; 4], proto: u8, len: usize) -> Vec<u8> {
        let mut header = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0x40, 0, 64, proto, 0, 0];
        header.extend(source);
        header.extend(destination);
        header
    }

    fn v6(source: u8, destination: u8, next: u8, payload: usize) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0, (payload >> 8) as u8, payload as u8, next, 64];
        header.extend([source; 16]);
        header.extend([destination; 16]);
        header
    }

    /// "Fragmentation needed" about a packet of `len` bytes, its checksum right.
    fn needed(mtu: u16, proto: u8, len: usize) -> Vec<u8> {
        let [high, low] = mtu.to_be_bytes();
        let mut message = vec![3, 4, 0, 0, 0, 0, high, low];
        message.extend(v4(SOURCE, BACKEND, proto, len));
        message.extend([0x45; 9]);
        let check = !fold(sum_of(&message));
        message[2..4].copy_from_slice(&check.to_be_bytes());
        [v4(ROUTER, SOURCE, number::ICMP, ipv4::LEN + message.len()), message].concat()
    }

    /// "Packet too big" about a packet of `len` bytes, its checksum right.
    fn too_big(mtu: u32, next: u8, len: usize) -> Vec<u8> {
        let mut message = vec![2, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(v6(2, 3, next, len - ipv6::LEN));
        message.extend([0x60; 40]);
        let pseudo =
            sum(&[1; 16]) + sum(&[2; 16]) + message.len() as u32 + u32::from(number::ICMPV6);
        let check = !fold(pseudo + sum_of(&message));
        message[2..4].copy_from_slice(&check.to_be_bytes());
        [v6(1, 2, number::ICMPV6, message.len()), message].concat()
    }

    #[test]
    fn an_error_about_a_tunnelled_packet_says_what_the_path_takes() {
        let expected = TooBig { source: SOURCE.into(), backend: BACKEND.into(), mtu: 1400 };
        assert_eq!(parse(&needed(1400, number::IPV4, 1500)), Some(expected));
        for next in [number::IPV4, number::IPV6] {
            let expected = TooBig { source: [2; 16].into(), backend: [3; 16].into(), mtu: 1400 };
            assert_eq!(parse(&too_big(1400, next, 1500)), Some(expected));
        }
        // Ethernet fills frames up.
        let padded = [needed(1400, number::IPV4, 1500), vec![0xff; 20]].concat();
        assert_eq!(parse(&padded), Some(expected));
    }

    #[test]
    fn an_mtu_that_no_link_has_or_that_the_packet_fitted_is_no_news() {
        for (mtu, is_taken) in
            [(0, false), (576, false), (1279, false), (1280, true), (1499, true), (1500, false)]
        {
            assert_eq!(parse(&needed(mtu, number::IPV4, 1500)).is_some(), is_taken, "{mtu}");
        }
        for (mtu, is_taken) in
            [(0, false), (1279, false), (1280, true), (1499, true), (1500, false), (66_936, false)]
        {
            assert_eq!(parse(&too_big(mtu, number::IPV6, 1500)).is_some(), is_taken, "{mtu}");
        }
    }

    #[test]
    fn what_quotes_something_else_or_is_broken_is_no_error_about_a_tunnel() {
        assert_eq!(parse(&needed(1400, number::TCP, 1500)), None);
        assert_eq!(parse(&needed(1400, number::IPV6, 1500)), None);
        assert_eq!(parse(&too_big(1400, number::TCP, 1500)), None);
        assert_eq!(parse(&[]), None);
        for good in [needed(1400, number::IPV4, 1500), too_big(1400, number::IPV6, 1500)] {
            for cut in 0..good.len() {
                assert_eq!(parse(&good[..cut]), None, "cut at {cut}");
            }
            let message = if good[0] >> 4 == 4 { ipv4::LEN } else { ipv6::LEN };
            for at in message..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1;
                assert_eq!(parse(&bad), None, "byte {at} is another");
            }
        }
        // To another host than the source of what it quotes.
        let mut elsewhere = needed(1400, number::IPV4, 1500);
        elsewhere[19] ^= 1;
        assert_eq!(parse(&elsewhere), None);
    }
}

//! Checksums that are not computed yet.
//!
//! A local sender leaves the checksum of a TCP segment or UDP datagram to the NIC, and puts the sum of the pseudo-header into
//! its place (`CHECKSUM_PARTIAL`). On a veth such a packet arrives so. A socket buffer remembers it; XDP does not, and its
//! redirects send what is in the frame. So XDP computes the checksum before it translates such a packet in mode `nat`, and puts
//! the sum back if the node's own stack gets the packet.
//!
//! A packet with a true checksum may look the same, one of 65,535. What is computed for it is what it has.

use core::mem::offset_of;

use crate::{
    packet::{
        MAX_OFFSET, Packet,
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
        tcp::Tcp,
        udp::Udp,
    },
    rewrite::fold,
};

/// Where the transport header and the packet end, and where the checksum is, in bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The begin of the transport header.
    pub begin: usize,
    /// The end of the packet.
    pub end: usize,
    /// The checksum.
    pub check: usize,
}

impl Place {
    /// As a word that is not 0.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.begin as u64 | (self.end as u64) << 16 | (self.check as u64) << 40
    }

    /// The inverse, of [`Self::to_word`], each within a bound that the kernel's verifier can see.
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            begin: word as usize & MAX_OFFSET,
            end: (word >> 16) as usize & 0xf_ffff,
            check: (word >> 40) as usize & MAX_OFFSET,
        }
    }
}

/// The place of a checksum, and its bytes before it is computed: the sum of the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1).
/// `None` for packets that have none: other protocols, fragments, and IPv6 packets with extension headers, which no sender
/// leaves to a NIC.
#[inline(always)]
pub fn pseudo_header<P: Packet + ?Sized>(pkt: &P, l3: usize, v6: bool) -> Option<(Place, [u8; 2])> {
    let (begin, end, proto, addresses) = if v6 {
        let ip = pkt.load::<Ipv6>(l3)?;
        let begin = l3 + ipv6::LEN;
        let addresses = words(&ip.source) + words(&ip.destination);
        (begin, begin + usize::from(ip.payload_len.get()), ip.next, addresses)
    } else {
        let ip = pkt.load::<Ipv4>(l3)?;
        if ip.fragment.get() & (ipv4::OFFSET_MASK | ipv4::MORE_FRAGMENTS) != 0 {
            return None;
        }
        let addresses = words(&ip.source) + words(&ip.destination);
        (l3 + ip.header_len()?, l3 + usize::from(ip.total_len.get()), ip.proto, addresses)
    };
    let check = match proto {
        number::TCP => offset_of!(Tcp, check),
        number::UDP => offset_of!(Udp, check),
        _ => return None,
    };
    if end < begin {
        return None;
    }
    let proto = u16::from(proto).to_be();
    let len = ((end - begin) as u16).to_be();
    let sum = addresses + u64::from(proto) + u64::from(len);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    // Below 2^17 then, so the sum fits what `fold` takes.
    let sum = (sum >> 16) + (sum & 0xffff);
    Some((Place { begin, end, check: begin + check }, fold(sum as u32).to_ne_bytes()))
}

/// The sum of the 32-bit words of an address, in the order of the machine: folded to 16 bits, it is that of its 16-bit words
/// (RFC 1071, 2).
#[inline(always)]
fn words(address: &[u8]) -> u64 {
    let mut sum = 0;
    for word in address.chunks_exact(4) {
        sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    sum
}

/// The place of the checksum of a packet, as a word, if it is not computed yet; else 0.
#[inline(always)]
pub fn find<P: Packet + ?Sized>(pkt: &P, l3: usize, v6: bool) -> u64 {
    let Some((place, pseudo)) = pseudo_header(pkt, l3, v6) else { return 0 };
    match pkt.load::<[u8; 2]>(place.check) {
        Some(check) if *check == pseudo => place.to_word(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP datagram of 3 bytes from 10.0.0.1:1 to 10.0.0.2:2 behind 14 bytes, its checksum not computed.
    fn datagram() -> [u8; 45] {
        let mut frame = [0; 45];
        frame[14..16].copy_from_slice(&[0x45, 0]);
        frame[16..18].copy_from_slice(&31_u16.to_be_bytes());
        frame[22..24].copy_from_slice(&[64, number::UDP]);
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame[34..42].copy_from_slice(&[0, 1, 0, 2, 0, 11, 0, 0]);
        frame[42..].copy_from_slice(b"abc");
        let pseudo = 0x0a00 + 1 + 0x0a00 + 2 + 17 + 11_u16;
        frame[40..42].copy_from_slice(&pseudo.to_be_bytes());
        frame
    }

    #[test]
    fn a_checksum_is_unfinished_while_it_is_the_pseudo_headers_sum() {
        let mut frame = datagram();
        let word = find(&frame[..], 14, false);
        assert_eq!(Place::from_word(word), Place { begin: 34, end: 45, check: 40 });
        frame[41] += 1;
        assert_eq!(find(&frame[..], 14, false), 0, "another sum");
    }

    #[test]
    fn fragments_and_other_protocols_have_no_unfinished_checksum() {
        let mut first = datagram();
        first[20] = 0x20;
        assert_eq!(find(&first[..], 14, false), 0);
        let mut other = datagram();
        other[23] = number::ICMP;
        assert_eq!(find(&other[..], 14, false), 0);
    }

    #[test]
    fn a_place_survives_the_way_through_a_word() {
        let place = Place { begin: 74, end: 74 + 65_535, check: 90 };
        assert_eq!(Place::from_word(place.to_word()), place);
    }
}

use proptest::prelude::*;

use super::*;

const MAC: Mac = [0xca, 0x9b, 0x15, 0x6c, 0xdc, 0xc0];

fn hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// As seen on a link.
#[test]
fn the_frames_are_those_of_keepalived() {
    let arp = "ffffffffffffca9b156cdcc00806\
               0001080006040001ca9b156cdcc00a000064ffffffffffff0a000064";
    assert_eq!(frame(ip("10.0.0.100"), MAC, false), hex(arp));
    let advertisement = "333300000001ca9b156cdcc086dd\
                         6000000000203aff20010db8000000000000000000000100\
                         ff020000000000000000000000000001\
                         88003c652000000020010db80000000000000000000001000201ca9b156cdcc0";
    assert_eq!(frame(ip("2001:db8::100"), MAC, false), hex(advertisement));
}

#[test]
fn a_router_says_so() {
    let frame = frame(ip("2001:db8::100"), MAC, true);
    assert_eq!(frame[ETHERNET + IPV6 + 4], 0xa0);
    assert!(claim(&frame).is_some());
}

#[test]
fn requests_and_replies_claim_and_probes_do_not() {
    let mut frame = frame(ip("10.0.0.100"), MAC, false);
    let of_mac = Some(Claim { address: ip("10.0.0.100"), mac: MAC });
    assert_eq!(claim(&frame), of_mac);
    frame[ETHERNET + 7] = 2;
    assert_eq!(claim(&frame), of_mac);
    frame[ETHERNET + 14..][..4].fill(0);
    assert_eq!(claim(&frame), None);
}

#[test]
fn requests_claim_nothing() {
    let frame = arp_request([10, 0, 0, 100].into(), MAC, None);
    let request = "ffffffffffffca9b156cdcc00806\
                0001080006040001ca9b156cdcc0000000000000000000000a000064";
    assert_eq!((frame.clone(), claim(&frame)), (hex(request), None));
    let from = Some([10, 0, 0, 2].into());
    let claimed = claim(&arp_request([10, 0, 0, 100].into(), MAC, from));
    assert_eq!(claimed.map(|claim| claim.address), Some(ip("10.0.0.2")), "that is its own");

    let (vip, own) = ("2001:db8::12:3456".parse().unwrap(), "fe80::1".parse().unwrap());
    let frame = solicitation(vip, MAC, own);
    assert_eq!(claim(&frame), None);
    assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    assert_eq!(frame.len(), ETHERNET + IPV6 + ADVERTISEMENT_AND_OPTION);
    assert_eq!(icmpv6_sum(&frame[ETHERNET..]), 0xffff);
}

/// A change at `at`, with a checksum that is right again.
fn changed(at: usize, to: u8) -> Vec<u8> {
    let mut frame = frame(ip("2001:db8::100"), MAC, false);
    frame[ETHERNET + at] = to;
    let check = ETHERNET + IPV6 + 2;
    frame[check..check + 2].fill(0);
    let sum = !icmpv6_sum(&frame[ETHERNET..]);
    frame[check..check + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn only_a_valid_neighbour_advertisement_claims() {
    assert!(claim(&changed(0, 0x60)).is_some());
    for (at, to) in [
        (0, 0x40),        // another version
        (6, 17),          // another protocol
        (7, 254),         // crossed a router
        (IPV6, 135),      // a solicitation
        (IPV6 + 1, 1),    // another code
        (IPV6 + 8, 0xff), // a multicast address
        (IPV6 + 25, 0),   // an option without a length
        (IPV6 + 25, 2),   // one that is longer than the message
    ] {
        assert_eq!(claim(&changed(at, to)), None, "byte {at}");
    }
    let mut wrong = frame(ip("2001:db8::100"), MAC, false);
    wrong[ETHERNET + IPV6 + 2] ^= 1;
    assert_eq!(claim(&wrong), None);
}

#[test]
fn without_the_option_the_sender_of_the_frame_counts() {
    let mut frame = changed(IPV6 + 24, 200);
    let other = [2, 0, 0, 0, 0, 9];
    frame[6..12].copy_from_slice(&other);
    assert_eq!(claim(&frame), Some(Claim { address: ip("2001:db8::100"), mac: other }));
    // What follows the packet, as in a frame that was filled up, is not looked at.
    frame.extend([0; 20]);
    assert!(claim(&frame).is_some());
}

proptest! {
    #[test]
    fn what_is_announced_is_claimed(v6 in any::<bool>(), bits in any::<u128>(), mac: Mac, router: bool) {
        let address = if v6 {
            IpAddr::from(Ipv6Addr::from_bits(bits))
        } else {
            IpAddr::from(Ipv4Addr::from_bits(bits as u32))
        };
        prop_assume!(!address.is_multicast() && !address.is_unspecified());
        prop_assert_eq!(claim(&frame(address, mac, router)), Some(Claim { address, mac }));
    }

    #[test]
    fn one_changed_bit_of_a_neighbour_advertisement_is_found(bits in any::<u128>(), bit in 0..72 * 8_usize) {
        let address = Ipv6Addr::from_bits(bits & !(0xff << 120)).into();
        let mut frame = frame(address, MAC, false);
        // Of the IPv6 header from the length on: the test needs nothing before it.
        let bit = bit % ((ADVERTISEMENT_AND_OPTION + IPV6 - 4) * 8);
        frame[ETHERNET + 4 + bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(claim(&frame), None);
    }

    #[test]
    fn no_frame_panics(frame in prop::collection::vec(any::<u8>(), 0..120)) {
        let _ = claim(&frame);
    }
}

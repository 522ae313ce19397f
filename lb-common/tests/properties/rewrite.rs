//! Checksums and headers as an independent library computes them.

use etherparse::{
    Icmpv4Slice, Icmpv6Slice, IpEcn, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6Header,
    Ipv6HeaderSlice,
};
use lb_common::{
    abi::Backend,
    decap::{mark_v4, mark_v6},
    packet::{icmp, ipv4::Ipv4, ipv6::Ipv6, number},
    rewrite::{
        QUOTE_V4, QUOTE_V6, check_after_ttl, fold, hop_taken, ipv4_template_sum, outer_v4,
        outer_v6, reply_v4, reply_v6, settled_checksum, sum,
    },
    verdict::ReplyKind,
};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

/// A backend at the end of a tunnel whose source varies in the bits of `mask`.
pub fn tunnel(
    source_v4: u32,
    source: [u8; 16],
    mask: u32,
    to_v4: [u8; 4],
    to: [u8; 16],
) -> Backend {
    let source_v4 = (source_v4 & !mask).to_be_bytes();
    let low = u32::from_be_bytes([source[12], source[13], source[14], source[15]]) & !mask;
    let mut base = source;
    base[12..].copy_from_slice(&low.to_be_bytes());
    Backend {
        l2: [0; 22],
        l2_len: 14,
        flags: 7,
        ifindex: 1,
        mtu: 1500,
        service: 0,
        outer_sum: ipv4_template_sum(source_v4, to_v4),
        source_mask: mask,
        address_v4: to_v4,
        source_v4,
        port: 0.into(),
        reserved0: [0; 14],
        address: to,
        source: base,
        vip: [0; 16],
        vip_port: 0.into(),
        proto: 0,
        reserved1: 0,
        first_port: 0.into(),
        last_port: 0.into(),
        reserved2: [0; 8],
    }
}

/// A random IPv4 header with the checksum that etherparse gives it.
fn header_v4() -> impl Strategy<Value = Ipv4> {
    any::<[u8; 20]>().prop_map(|mut bytes| {
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&1500_u16.to_be_bytes());
        let slice = Ipv4HeaderSlice::from_slice(&bytes).expect("20 bytes, version 4");
        let check = slice.to_header().calc_header_checksum();
        bytes[10..12].copy_from_slice(&check.to_be_bytes());
        Ipv4::read_from_bytes(&bytes).expect("20 bytes")
    })
}

fn header_v6() -> impl Strategy<Value = Ipv6> {
    any::<[u8; 40]>().prop_map(|mut bytes| {
        bytes[0] = 0x60 | bytes[0] & 0xf;
        Ipv6::read_from_bytes(&bytes).expect("40 bytes")
    })
}

/// What etherparse reads in a header, whose checksum it must agree with.
fn checked(ip: &Ipv4) -> Result<Ipv4Header, TestCaseError> {
    let header = Ipv4HeaderSlice::from_slice(ip.as_bytes()).expect("a header").to_header();
    prop_assert_eq!(header.calc_header_checksum(), header.header_checksum);
    Ok(header)
}

fn kinds() -> impl Strategy<Value = ReplyKind> {
    prop_oneof![Just(ReplyKind::TooBig), Just(ReplyKind::TtlExceeded)]
}

fn prefix_mask() -> impl Strategy<Value = u32> {
    (0..=32_u32).prop_map(|bits| u32::MAX.checked_shr(bits).unwrap_or(0))
}

proptest! {
    #[test]
    fn a_lower_ttl_has_the_checksum_of_a_fresh_header(mut ip in header_v4()) {
        prop_assume!(ip.ttl > 0);
        ip.ttl -= 1;
        ip.check.set(check_after_ttl(ip.check.get()));
        checked(&ip)?;
    }

    #[test]
    fn hops_add_up(mut ip in header_v4()) {
        while ip.ttl > 0 {
            ip.ttl -= 1;
            ip.check.set(check_after_ttl(ip.check.get()));
        }
        checked(&ip)?;
    }

    #[test]
    fn a_settled_checksum_stays_when_the_segment_s_is_computed(words: [u16; 20]) {
        let rest = words.iter().map(|&word| u32::from(word)).sum();
        let settled = settled_checksum(rest);
        // What the kernel writes in its place (`skb_checksum_help()`).
        let completed = !fold(rest + u32::from(settled));
        // Both words are zero in ones' complement.
        let value = |word: u16| if word == 0xffff { 0 } else { word };
        prop_assert_eq!(value(completed), value(settled));
    }

    #[test]
    fn the_outer_ipv4_header_is_whole(
        source: u32, mask in prefix_mask(), to: [u8; 4], tos: u8, len in 20_u16..=65_515, entropy: u32,
    ) {
        let backend = tunnel(source, [0; 16], mask, to, [0; 16]);
        let header = checked(&outer_v4(&backend, tos, len, entropy))?;
        prop_assert_eq!(header.protocol, IpNumber::IPV4);
        prop_assert_eq!(header.total_len, len + 20);
        prop_assert_eq!(header.destination, to);
        prop_assert_eq!(header.dscp.value() << 2 | header.ecn.value(), tos);
        prop_assert_eq!(header.time_to_live, 64);
        prop_assert!(header.dont_fragment && !header.is_fragmenting_payload());
        let outer = u32::from_be_bytes(header.source);
        prop_assert_eq!(outer & !mask, source & !mask, "the source leaves its prefix");
        prop_assert_eq!(outer & mask, entropy & mask, "the source does not vary with the flow");
    }

    #[test]
    fn the_outer_ipv6_header_is_whole(
        source: [u8; 16], mask in prefix_mask(), to: [u8; 16], class: u8, len: u16, entropy: u32,
        v6: bool,
    ) {
        let backend = tunnel(0, source, mask, [0; 4], to);
        let next = if v6 { number::IPV6 } else { number::IPV4 };
        let outer = outer_v6(&backend, class, len, next, entropy);
        let header: Ipv6Header =
            Ipv6HeaderSlice::from_slice(outer.as_bytes()).expect("a header").to_header();
        prop_assert_eq!(header.next_header, IpNumber(next));
        prop_assert_eq!(header.payload_length, len);
        prop_assert_eq!(header.destination, to);
        prop_assert_eq!(header.traffic_class, class);
        prop_assert_eq!(outer.class(), class);
        prop_assert_eq!(header.hop_limit, 64);
        prop_assert_eq!(header.flow_label.value(), entropy & 0xf_ffff);
        prop_assert_eq!(&header.source[..12], &source[..12], "the source leaves its prefix");
        let low = u32::from_be_bytes(outer.source[12..].try_into().expect("4 bytes"));
        let base = u32::from_be_bytes(backend.source[12..].try_into().expect("4 bytes"));
        prop_assert_eq!(low, base | entropy & mask);
    }

    #[test]
    fn an_icmp_error_is_whole(
        ip in header_v4(), kind in kinds(), mtu: u16, words in 14..=QUOTE_V4 / 2, fill: [u8; 32],
    ) {
        let mut quote = ip.as_bytes().to_vec();
        quote.extend(fill.iter().cycle().take(2 * words - quote.len()));
        let (outer, message) = reply_v4(&ip, kind, mtu, quote.len(), sum(&quote));
        let header = checked(&outer)?;
        prop_assert_eq!(header.protocol, IpNumber::ICMP);
        prop_assert_eq!((header.source, header.destination), (ip.destination, ip.source));
        prop_assert_eq!(usize::from(header.total_len), 20 + icmp::LEN + quote.len());
        prop_assert!(header.total_len <= 576);
        let bytes = [message.as_bytes(), &quote].concat();
        let read = Icmpv4Slice::from_slice(&bytes).expect("a message");
        let written = read.header().icmp_type.calc_checksum(read.payload());
        prop_assert_eq!(written, read.checksum());
        prop_assert_eq!(read.payload(), &quote[..], "it quotes the start of the packet");
        let expected = match kind {
            ReplyKind::TooBig => etherparse::Icmpv4Type::DestinationUnreachable(
                etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu },
            ),
            ReplyKind::TtlExceeded => etherparse::Icmpv4Type::TimeExceeded(
                etherparse::icmpv4::TimeExceededCode::TtlExceededInTransit,
            ),
        };
        prop_assert_eq!(read.icmp_type(), expected);
    }

    #[test]
    fn an_icmpv6_error_is_whole(
        ip in header_v6(), kind in kinds(), mtu: u16, words in 24..=QUOTE_V6 / 2, fill: [u8; 32],
    ) {
        let mut quote = ip.as_bytes().to_vec();
        quote.extend(fill.iter().cycle().take(2 * words - quote.len()));
        let (outer, message) = reply_v6(&ip, kind, mtu, quote.len(), sum(&quote));
        let header = Ipv6HeaderSlice::from_slice(outer.as_bytes()).expect("a header").to_header();
        prop_assert_eq!(header.next_header, IpNumber::IPV6_ICMP);
        prop_assert_eq!((header.source, header.destination), (ip.destination, ip.source));
        prop_assert_eq!(usize::from(header.payload_length), icmp::LEN + quote.len());
        prop_assert!(header.payload_length <= 1280 - 40);
        let bytes = [message.as_bytes(), &quote].concat();
        let read = Icmpv6Slice::from_slice(&bytes).expect("a message");
        prop_assert!(read.is_checksum_valid(header.source, header.destination));
        prop_assert_eq!(read.payload(), &quote[..], "it quotes the start of the packet");
        let expected = match kind {
            ReplyKind::TooBig => etherparse::Icmpv6Type::PacketTooBig { mtu: u32::from(mtu) },
            ReplyKind::TtlExceeded => etherparse::Icmpv6Type::TimeExceeded(
                etherparse::icmpv6::TimeExceededCode::HopLimitExceeded,
            ),
        };
        prop_assert_eq!(read.icmp_type(), expected);
    }

    #[test]
    fn a_mark_of_congestion_changes_ecn_and_checksum_only(ip in header_v4()) {
        let before = checked(&ip)?;
        let after = checked(&mark_v4(ip))?;
        let ecn = IpEcn::CongestionExperienced;
        let header_checksum = after.header_checksum;
        prop_assert_eq!(after, Ipv4Header { ecn, header_checksum, ..before });
    }

    #[test]
    fn a_mark_of_congestion_changes_ecn_only_in_ipv6(ip in header_v6()) {
        let read = |ip: &Ipv6| {
            Ipv6HeaderSlice::from_slice(ip.as_bytes()).expect("a header").to_header()
        };
        let (before, after) = (read(&ip), read(&mark_v6(ip)));
        let traffic_class = before.traffic_class | 3;
        prop_assert_eq!(after, Ipv6Header { traffic_class, ..before });
    }

    #[test]
    fn folding_is_the_remainder_in_ones_complement(sum in 0..u32::MAX - 0xffff) {
        let folded = u32::from(fold(sum));
        prop_assert_eq!(folded % 0xffff, sum % 0xffff);
        prop_assert_eq!(folded == 0, sum == 0, "only nothing sums up to nothing");
    }
}

#[test]
fn sums_of_corner_cases() {
    // RFC 1071, 3: the example's sum.
    assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    assert_eq!(fold(0), 0);
    assert_eq!(fold(0xffff), 0xffff);
    assert_eq!(fold(0x1_0000), 1);
    assert_eq!(fold(0xfffe_ffff), 0xfffe);
    assert_eq!(fold(sum(&[0xff; 65_534])), 0xffff);
    assert_eq!(sum(&[]), 0);
}

#[test]
fn a_lower_ttl_with_every_checksum_there_is() {
    // RFC 1624, 5: the two zeros. For each checksum there is a header that has it; two words make
    // it up, TTL and protocol, and another one.
    for check in 0..=u16::MAX {
        let after = check_after_ttl(check);
        let before_sum = u32::from(!check);
        let expected = (before_sum + 0xffff - 0x0100) % 0xffff;
        assert_eq!(u32::from(!after) % 0xffff, expected, "{check:#06x}");
        assert_ne!(after, 0xffff, "{check:#06x}: a header never sums up to zero");
        // The same in one word with TTL and protocol, as it stands in the frame.
        for ttl in [1, 2, 64, 255] {
            let [a, b] = check.to_be_bytes();
            let [c, d] = after.to_be_bytes();
            let word = hop_taken(u32::from_le_bytes([ttl, 6, a, b]));
            assert_eq!(word.to_le_bytes(), [ttl - 1, 6, c, d], "{check:#06x}, {ttl}");
        }
    }
    assert_eq!(check_after_ttl(0x0000), 0x0100);
    assert_eq!(check_after_ttl(0xffff), 0x0100);
    assert_eq!(check_after_ttl(0xfeff), 0x0000);
    assert_eq!(check_after_ttl(0xdd2f), 0xde2f);
}

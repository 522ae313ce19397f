//! Which ICMP errors are sent: to whom, how many, how long.

use lb_common::{
    abi::TOO_BIG_BUDGETS,
    icmp_error::{bucket_of_source, burst, rate_of_source},
    packet::{icmp, ipv4, ipv6},
    rewrite::quote_len,
    verdict::{Drop, ReplyKind, Verdict},
};
use proptest::prelude::*;

use crate::{
    frames::{ACK, Client, FAMILIES, Family},
    model::{Decided, Model, VIP_V4, VIP_V6, WEB},
};

/// What becomes of a packet on its last hop that has this source.
fn last_hop_from(model: &Model, family: Family, v4: [u8; 4], v6: [u8; 16]) -> Decided {
    let client = Client { v4, v6, ..Client::new(1) };
    model.decide(&client.tcp_with(family, WEB, ACK, 1, b""))
}

const fn v6(first: u8, last: u8) -> [u8; 16] {
    [first, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

#[test]
fn no_error_goes_to_what_is_no_single_host() {
    let sources = [
        [0, 0, 0, 0],
        [0, 255, 0, 1],
        [127, 0, 0, 1],
        [127, 255, 255, 254],
        [224, 0, 0, 1],
        [239, 255, 255, 255],
        [240, 0, 0, 1],
        [255, 255, 255, 255],
        VIP_V4,
    ];
    let refused = Verdict::Drop(Drop::IcmpBadSource);
    let model = Model::new(1);
    for source in sources {
        assert_eq!(last_hop_from(&model, Family::V4, source, [0; 16]), refused, "{source:?}");
    }
    for source in [[0; 16], v6(0, 1), v6(0xff, 1), VIP_V6] {
        assert_eq!(last_hop_from(&model, Family::V6, [0; 4], source), refused, "{source:?}");
    }
    // And takes no token of those that may be replies.
    assert_eq!(model.icmp_budget.refilled.load(), 0);
    for source in [[1, 0, 0, 0], [126, 1, 1, 1], [128, 0, 0, 1], [223, 255, 255, 255]] {
        let verdict = last_hop_from(&model, Family::V4, source, [0; 16]);
        assert!(matches!(verdict, Verdict::Reply(_)), "{source:?}: {verdict:?}");
    }
    for source in [v6(0, 2), v6(0xfe, 1), v6(0x20, 0)] {
        let verdict = last_hop_from(&model, Family::V6, [0; 4], source);
        assert!(matches!(verdict, Verdict::Reply(_)), "{source:?}: {verdict:?}");
    }
}

#[test]
fn a_packet_that_is_too_big_is_not_answered_past_the_limit_nor_to_a_bad_source() {
    for family in FAMILIES {
        let mut model = Model::new(1);
        model.icmp_rate = 1;
        model.set_mtu(1400);
        let big = |client: Client| model.decide(&client.tcp_with(family, WEB, ACK, 64, &[0; 1400]));
        let bad = Client { v4: [255; 4], v6: v6(0xff, 2), ..Client::new(1) };
        assert_eq!(big(bad), Verdict::Drop(Drop::IcmpBadSource));
        assert!(matches!(big(Client::new(1)), Verdict::Reply(_)));
        assert_eq!(big(Client::new(1)), Verdict::Drop(Drop::IcmpRateLimited));
        model.pass_seconds(1);
        assert!(matches!(big(Client::new(1)), Verdict::Reply(_)));
    }
}

/// A packet that fits no way to a backend, from a client.
fn too_big(model: &Model, family: Family, client: u8) -> Decided {
    let client = Client { v6: v6(0x20 + client, 1), ..Client::new(client.into()) };
    model.decide(&client.tcp_with(family, WEB, ACK, 64, &[0; 1400]))
}

#[test]
fn neither_packets_on_their_last_hop_nor_those_of_others_use_up_what_a_source_is_told_of_its_path()
{
    const LIMITED: Decided = Verdict::Drop(Drop::IcmpRateLimited);
    for family in FAMILIES {
        let mut model = Model::new(1);
        model.icmp_rate = 800;
        model.set_mtu(1400);
        let last_hop = || last_hop_from(&model, family, [198, 51, 100, 1], v6(0x21, 1));
        while last_hop() != LIMITED {}
        let replies = (0..1_000).take_while(|_| too_big(&model, family, 1) != LIMITED).count();
        assert_eq!(replies, burst(rate_of_source(800)) as usize, "{family:?}");
        assert!(matches!(too_big(&model, family, 2), Verdict::Reply(_)), "{family:?}");
        model.pass_seconds(1);
        let replies = (0..1_000).take_while(|_| last_hop() != LIMITED).count();
        assert_eq!(replies, burst(800) as usize, "{family:?}: nor the other way round");
    }
}

#[test]
fn sources_are_spread_over_the_buckets_whatever_they_have_in_common() {
    let key = 0x5851_f42d_4c95_7f2d;
    for step in [0, 8, 16, 32, 48] {
        let mut met = [0; TOO_BIG_BUDGETS as usize];
        for n in 0..4_096_u64 {
            met[bucket_of_source(n << step, key) as usize] += 1;
        }
        assert!(met.iter().all(|&sources| sources < 64), "step {step}: {met:?}");
    }
    assert_eq!([0, 1, 5, 8, 9, 1_000].map(rate_of_source), [0, 1, 1, 1, 2, 125]);
}

#[test]
fn a_rate_of_none_answers_nobody() {
    for family in FAMILIES {
        let mut model = Model::new(1);
        model.icmp_rate = 0;
        model.set_mtu(1400);
        for _ in 0..3 {
            assert_eq!(too_big(&model, family, 1), Verdict::Drop(Drop::IcmpRateLimited));
            let verdict = last_hop_from(&model, family, [198, 51, 100, 1], v6(0x20, 1));
            assert_eq!(verdict, Verdict::Drop(Drop::IcmpRateLimited), "{family:?}");
            model.pass_seconds(7);
        }
    }
}

#[test]
fn a_burst_is_that_of_linux_at_its_rate_and_never_more_than_a_second_s() {
    let bursts = [0, 1, 49, 50, 1_000, 2_000, 1_000_000].map(|rate| (rate, burst(rate)));
    let expected =
        [(0, 0), (1, 1), (49, 49), (50, 50), (1_000, 50), (2_000, 100), (1_000_000, 50_000)];
    assert_eq!(bursts, expected);
}

proptest! {
    #[test]
    fn in_no_time_are_more_errors_sent_than_rate_and_burst_say(
        rate in 1..20_000_u32, gap in 1..40_000_000_u64, packets in 1..600_u64, v6: bool,
    ) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        let mut model = Model::new(1);
        model.icmp_rate = rate;
        let frame = Client::new(1).tcp_with(family, WEB, ACK, 1, b"");
        let mut sent = 0;
        for _ in 0..packets {
            model.nanos.set(model.nanos.get() + gap);
            sent += u64::from(matches!(model.decide(&frame), Verdict::Reply(_)));
        }
        let earned = u64::from(rate) * (packets - 1) * gap / 1_000_000_000;
        prop_assert!(sent <= u64::from(burst(rate)) + earned, "{sent} of {packets}");
        // Nor fewer than the rate affords.
        prop_assert!(sent >= packets.min(u64::from(burst(rate))));
    }

    #[test]
    fn an_error_outgrows_its_cause_by_its_own_headers_at_most(len: u16, v6: bool, ttl: bool) {
        let kind = if ttl { ReplyKind::TtlExceeded } else { ReplyKind::TooBig };
        let (headers, least, most) =
            if v6 { (ipv6::LEN + icmp::LEN, 48, 1280) } else { (ipv4::LEN + icmp::LEN, 28, 576) };
        // The core reads the ports of whatever it answers.
        let len = usize::from(len).max(least);
        let quote = quote_len(kind, v6, len as u16);
        prop_assert!(quote <= len);
        prop_assert!(headers + quote <= most);
        prop_assert!(headers + quote <= len || quote == least);
    }
}

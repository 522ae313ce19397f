//! ICMP errors of the tc program.
//!
//! The frame itself becomes the error: `bpf_skb_change_tail` cuts it behind the quote and clears the marks of a frame
//! to be segmented. It leaves the mark that its checksum is yet to be computed (`CHECKSUM_PARTIAL`), of which a program
//! can't know: the kernel or the NIC may then write a checksum into the quoted TCP or UDP header, over the quote from
//! there on. So the checksum there is replaced by the one that this leaves as it is
//! ([`rewrite::settled_checksum`]), which no receiver of an error looks at. For the same reason the kernel cuts no frame
//! before the end of that checksum, and at least a whole TCP header is quoted. Nor does it before a transport header that
//! it knows of: of a packet with IPv4 options or IPv6 extension headers that has no hop left, there may be no error.

use aya_ebpf::programs::TcContext;
use lb_common::{
    packet::{
        Packet as _,
        ethernet::{self, Ethernet},
        icmp,
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
        tcp::Tcp,
        udp,
    },
    rewrite,
    verdict::{Reply, ReplyKind},
};
use lb_ebpf::{frame::SkbFrame, skb::Skb};
use zerocopy::network_endian::U16;

use super::tags::{self, Tags};

/// Where the checksum is in a TCP header.
const TCP_CHECK: usize = 16;
/// Where it is in one of UDP.
const UDP_CHECK: usize = 6;
/// Bytes of a TCP header without options.
const TCP_LEN: usize = size_of::<Tcp>();

/// Turns a frame into an ICMP error and sends it back, with the tags that it had; `None` if that can't be done.
///
/// One function for each length of the quote, out of line, that take words: see `send.rs`.
#[inline(always)]
pub fn reply(ctx: &TcContext, reply: &Reply) -> Option<u32> {
    let skb = Skb::new(ctx);
    let Reply { kind, l3, v6, len, mtu } = *reply;
    let ttl = kind == ReplyKind::TtlExceeded;
    let long = match rewrite::quote_len(kind, v6, len) {
        rewrite::QUOTE_V4 if !v6 => true,
        rewrite::QUOTE_V6 if v6 => true,
        _ => false,
    };
    let done =
        if v6 { reply_v6(skb, l3, mtu, ttl, long) } else { reply_v4(skb, l3, mtu, ttl, long) };
    if done == 0 {
        return None;
    }
    Some(skb.redirect(skb.ifindex()))
}

/// What the offset of the network layer, 14 to 22, fits in: a bound that the verifier can see.
const L3_MASK: usize = 0x1f;

#[inline(never)]
fn reply_v4(skb: Skb, l3: usize, mtu: u16, ttl: bool, long: bool) -> u64 {
    u64::from(bare_v4(skb, l3 & L3_MASK, mtu, ttl, long).is_some())
}

#[inline(never)]
fn reply_v6(skb: Skb, l3: usize, mtu: u16, ttl: bool, long: bool) -> u64 {
    u64::from(bare_v6(skb, l3 & L3_MASK, mtu, ttl, long).is_some())
}

#[inline(always)]
fn bare_v4(skb: Skb, l3: usize, mtu: u16, ttl: bool, long: bool) -> Option<()> {
    let frame = SkbFrame::of_skb(skb);
    let tcp = frame.load::<Ipv4>(l3)?.proto == number::TCP;
    let tags = take_tags(skb, &frame, l3)?;
    const LONG: usize = rewrite::QUOTE_V4 - ipv4::LEN;
    let (rest, sums) = match (long, tcp) {
        (true, true) => (LONG, quote::<{ ipv4::LEN }, LONG, TCP_CHECK>(skb)),
        (true, false) => (LONG, quote::<{ ipv4::LEN }, LONG, UDP_CHECK>(skb)),
        (false, true) => (TCP_LEN, quote::<{ ipv4::LEN }, TCP_LEN, TCP_CHECK>(skb)),
        (false, false) => (udp::LEN, quote::<{ ipv4::LEN }, { udp::LEN }, UDP_CHECK>(skb)),
    };
    let done = sums != 0 && answer_v4(skb, ipv4::LEN + rest, sums, mtu, ttl) != 0;
    (done && tags.push(skb)).then_some(())
}

#[inline(always)]
fn bare_v6(skb: Skb, l3: usize, mtu: u16, ttl: bool, long: bool) -> Option<()> {
    let frame = SkbFrame::of_skb(skb);
    let tcp = frame.load::<Ipv6>(l3)?.next == number::TCP;
    let tags = take_tags(skb, &frame, l3)?;
    const LONG: usize = rewrite::QUOTE_V6 - ipv6::LEN;
    let (rest, sums) = match (long, tcp) {
        (true, true) => (LONG, quote::<{ ipv6::LEN }, LONG, TCP_CHECK>(skb)),
        (true, false) => (LONG, quote::<{ ipv6::LEN }, LONG, UDP_CHECK>(skb)),
        (false, true) => (TCP_LEN, quote::<{ ipv6::LEN }, TCP_LEN, TCP_CHECK>(skb)),
        (false, false) => (udp::LEN, quote::<{ ipv6::LEN }, { udp::LEN }, UDP_CHECK>(skb)),
    };
    let done = sums != 0 && answer_v6(skb, ipv6::LEN + rest, sums, mtu, ttl) != 0;
    (done && tags.push(skb)).then_some(())
}

/// Takes all tags off a frame.
#[inline(always)]
fn take_tags(skb: Skb, frame: &SkbFrame, l3: usize) -> Option<Tags> {
    let tags = Tags::of_frame(skb, frame, l3)?;
    (!tags::any(skb, l3) || tags::strip(skb)).then_some(tags)
}

#[inline(always)]
fn kind(ttl: bool) -> ReplyKind {
    if ttl { ReplyKind::TtlExceeded } else { ReplyKind::TooBig }
}

/// Cuts a frame without tags behind the quote, an IP header of `IP` bytes and `REST` more, and replaces the checksum that
/// is `CHECK` bytes behind the header. The sums of the quote, folded, before and after that; 0 if it can't be done.
#[inline(never)]
fn quote<const IP: usize, const REST: usize, const CHECK: usize>(skb: Skb) -> u64 {
    try_quote::<IP, REST, CHECK>(skb).unwrap_or(0)
}

#[inline(always)]
fn try_quote<const IP: usize, const REST: usize, const CHECK: usize>(skb: Skb) -> Option<u64> {
    if !skb.truncate(ethernet::LEN + IP + REST) {
        return None;
    }
    let frame = SkbFrame::of_skb(skb);
    let header = rewrite::sum(frame.load::<[u8; IP]>(ethernet::LEN)?);
    let rest = rewrite::sum(frame.load::<[u8; REST]>(ethernet::LEN + IP)?);
    let old = u32::from(frame.load::<U16>(ethernet::LEN + IP + CHECK)?.get());
    let settled = rewrite::settled_checksum(rest - old);
    frame.store(ethernet::LEN + IP + CHECK, U16::new(settled));
    let after = rewrite::fold(header + rest - old + u32::from(settled));
    // An IP header is not all zero, so neither sum is 0.
    Some(u64::from(rewrite::fold(header + rest)) << 16 | u64::from(after))
}

/// Writes the headers of the error before the quote, of `quote` bytes, whose `sums` [`quote`] has returned; 0 if it
/// can't be done.
#[inline(never)]
fn answer_v4(skb: Skb, quote: usize, sums: u64, mtu: u16, ttl: bool) -> u64 {
    u64::from(head_v4(skb, quote, sums, mtu, kind(ttl)).is_some())
}

#[inline(never)]
fn answer_v6(skb: Skb, quote: usize, sums: u64, mtu: u16, ttl: bool) -> u64 {
    u64::from(head_v6(skb, quote, sums, mtu, kind(ttl)).is_some())
}

#[inline(always)]
fn head_v4(skb: Skb, quote: usize, sums: u64, mtu: u16, kind: ReplyKind) -> Option<()> {
    let frame = SkbFrame::of_skb(skb);
    let ip = frame.load::<Ipv4>(ethernet::LEN)?;
    let (outer, message) = rewrite::reply_v4(ip, kind, mtu, quote, sums as u32 & 0xffff);
    if !skb.make_room(ipv4::LEN + icmp::LEN, 0) {
        return None;
    }
    skb.update_sum(0, (sums >> 16) as u32);
    let frame = SkbFrame::of_skb(skb);
    let done = frame.store(ethernet::LEN + ipv4::LEN, message) && frame.store(ethernet::LEN, outer);
    if done { turn(&frame) } else { None }
}

#[inline(always)]
fn head_v6(skb: Skb, quote: usize, sums: u64, mtu: u16, kind: ReplyKind) -> Option<()> {
    let frame = SkbFrame::of_skb(skb);
    let ip = frame.load::<Ipv6>(ethernet::LEN)?;
    let (outer, message) = rewrite::reply_v6(ip, kind, mtu, quote, sums as u32 & 0xffff);
    if !skb.make_room(ipv6::LEN + icmp::LEN, 0) {
        return None;
    }
    skb.update_sum(REPLY_SUM_V6, (sums >> 16) as u32);
    let frame = SkbFrame::of_skb(skb);
    let done = frame.store(ethernet::LEN + ipv6::LEN, message) && frame.store(ethernet::LEN, outer);
    if done { turn(&frame) } else { None }
}

/// The sum of an ICMPv6 error's words. Its checksum makes the message's the complement of the pseudo-header's (RFC 4443,
/// 2.3), so that of the header is left what the pseudo-header does not have, and without the protocol's number what it
/// has. Both an IPv4 header and an ICMP message have the sum 0.
const REPLY_SUM_V6: u32 =
    0x6000 + ((number::ICMPV6 as u32) << 8) + rewrite::TTL as u32 - number::ICMPV6 as u32;

/// Sends a frame back to where it came from.
#[inline(always)]
fn turn(frame: &SkbFrame) -> Option<()> {
    let Ethernet { destination, source, kind } = *frame.load::<Ethernet>(0)?;
    frame.store(0, Ethernet { destination: source, source: destination, kind }).then_some(())
}

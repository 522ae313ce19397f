//! What is done to a frame once it is decided: new MACs, an outer header, or an ICMP error.

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};
use lb_common::{
    abi::{Backend, backend_flags},
    packet::{
        Packet,
        ethernet::{self, Ethernet, Tag},
        icmp,
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
    },
    rewrite,
    verdict::{Forward, Reply, ReplyKind},
};
use zerocopy::network_endian::U16;

use lb_ebpf::frame::Frame;

/// What the inner header gives to the outer one.
#[derive(Clone, Copy)]
struct Inner {
    class: u8,
    next: u8,
}

/// Sends a frame to its backend; `None` if the frame has no room for the headers.
#[inline(always)]
pub fn forward(ctx: &XdpContext, frame: &Frame, to: &Forward<&Backend>) -> Option<u32> {
    let inner = take_hop(frame, to.l3, to.v6)?;
    match to.backend.l2_len {
        14 => place::<14>(ctx, frame, to, inner)?,
        18 => place::<18>(ctx, frame, to, inner)?,
        22 => place::<22>(ctx, frame, to, inner)?,
        _ => return None,
    }
    if to.backend.ifindex == ctx.ingress_ifindex() as u32 {
        return Some(xdp_action::XDP_TX);
    }
    // SAFETY: the helper checks the index itself.
    Some(unsafe { bpf_redirect(to.backend.ifindex, 0) } as u32)
}

/// Lowers the client's TTL or hop limit by one.
#[inline(always)]
fn take_hop(frame: &Frame, l3: usize, v6: bool) -> Option<Inner> {
    if v6 {
        let ip = frame.load::<Ipv6>(l3)?;
        let inner = Inner { class: ip.class(), next: number::IPV6 };
        let hop_limit = ip.hop_limit - 1;
        frame.store(l3 + core::mem::offset_of!(Ipv6, hop_limit), hop_limit);
        return Some(inner);
    }
    let ip = frame.load::<Ipv4>(l3)?;
    let inner = Inner { class: ip.tos, next: number::IPV4 };
    let ttl = ip.ttl - 1;
    let check = rewrite::check_after_ttl(ip.check.get());
    frame.store(l3 + core::mem::offset_of!(Ipv4, ttl), ttl);
    frame.store(l3 + core::mem::offset_of!(Ipv4, check), U16::new(check));
    Some(inner)
}

/// Writes the link-layer header, of `L2` bytes, and the outer header before the client's.
#[inline(always)]
fn place<const L2: usize>(
    ctx: &XdpContext,
    frame: &Frame,
    to: &Forward<&Backend>,
    inner: Inner,
) -> Option<()> {
    let backend = to.backend;
    let outer_len = match backend.flags & (backend_flags::TUNNEL | backend_flags::V6) {
        backend_flags::TUNNEL => ipv4::LEN,
        flags if flags & backend_flags::TUNNEL != 0 => ipv6::LEN,
        _ => 0,
    };
    let delta = to.l3 as i32 - (L2 + outer_len) as i32;
    if delta != 0 && !frame.adjust_head(delta) {
        return None;
    }
    let frame = Frame::new(ctx);
    let mut l2 = [0; L2];
    l2.copy_from_slice(&backend.l2[..L2]);
    if !frame.store(0, l2) {
        return None;
    }
    let stored = match outer_len {
        0 => true,
        ipv4::LEN => frame.store(L2, rewrite::outer_v4(backend, inner.class, to.len, to.entropy)),
        _ => {
            let outer = rewrite::outer_v6(backend, inner.class, to.len, inner.next, to.entropy);
            frame.store(L2, outer)
        }
    };
    stored.then_some(())
}

/// Turns a frame into an ICMP error to its sender; false if that can't be done. A packet that is
/// shorter than the full quote is quoted as far as its ports.
///
/// One function for each length of the quote, as the kernel wants to know it, and out of line: what
/// they keep on the stack would not fit beside the rest of the program's. They take words and not
/// the [`Reply`]: LLVM writes that to the stack on paths that never made it, from registers that
/// the verifier knows to be unset.
#[inline(always)]
pub fn reply(ctx: &XdpContext, reply: &Reply) -> bool {
    let Reply { l3, mtu, .. } = *reply;
    match (reply.v6, reply.kind) {
        (false, ReplyKind::TooBig) => {
            reply_v4::<{ rewrite::QUOTE_V4 }>(ctx, l3, mtu, false)
                || reply_v4::<{ rewrite::QUOTE_SHORT_V4 }>(ctx, l3, mtu, false)
        }
        (false, ReplyKind::TtlExceeded) => {
            reply_v4::<{ rewrite::QUOTE_SHORT_V4 }>(ctx, l3, mtu, true)
        }
        (true, ReplyKind::TooBig) => {
            reply_v6::<{ rewrite::QUOTE_V6 }>(ctx, l3, mtu, false)
                || reply_v6::<{ rewrite::QUOTE_SHORT_V6 }>(ctx, l3, mtu, false)
        }
        (true, ReplyKind::TtlExceeded) => {
            reply_v6::<{ rewrite::QUOTE_SHORT_V6 }>(ctx, l3, mtu, true)
        }
    }
}

#[inline(never)]
fn reply_v4<const QUOTE: usize>(ctx: &XdpContext, l3: usize, mtu: u16, ttl: bool) -> bool {
    answer_v4::<QUOTE>(ctx, l3 & L3_MASK, mtu, kind(ttl)).is_some()
}

#[inline(never)]
fn reply_v6<const QUOTE: usize>(ctx: &XdpContext, l3: usize, mtu: u16, ttl: bool) -> bool {
    answer_v6::<QUOTE>(ctx, l3 & L3_MASK, mtu, kind(ttl)).is_some()
}

#[inline(always)]
fn kind(ttl: bool) -> ReplyKind {
    if ttl { ReplyKind::TtlExceeded } else { ReplyKind::TooBig }
}

#[inline(always)]
fn answer_v4<const QUOTE: usize>(
    ctx: &XdpContext,
    l3: usize,
    mtu: u16,
    kind: ReplyKind,
) -> Option<()> {
    const ADDED: usize = ipv4::LEN + icmp::LEN;
    let frame = Frame::new(ctx);
    let sum = rewrite::sum(frame.load::<[u8; QUOTE]>(l3)?);
    let ip = frame.load::<Ipv4>(l3)?;
    let (outer, message) = rewrite::reply_v4(ip, kind, mtu, QUOTE, sum);
    let frame = make_room(ctx, &frame, l3, QUOTE, ADDED)?;
    (frame.store(l3, outer) && frame.store(l3 + ipv4::LEN, message)).then_some(())
}

#[inline(always)]
fn answer_v6<const QUOTE: usize>(
    ctx: &XdpContext,
    l3: usize,
    mtu: u16,
    kind: ReplyKind,
) -> Option<()> {
    const ADDED: usize = ipv6::LEN + icmp::LEN;
    let frame = Frame::new(ctx);
    let sum = rewrite::sum(frame.load::<[u8; QUOTE]>(l3)?);
    let ip = frame.load::<Ipv6>(l3)?;
    let (outer, message) = rewrite::reply_v6(ip, kind, mtu, QUOTE, sum);
    let frame = make_room(ctx, &frame, l3, QUOTE, ADDED)?;
    (frame.store(l3, outer) && frame.store(l3 + ipv6::LEN, message)).then_some(())
}

/// What the offset of the network layer, 14 to 22, fits in: a bound that the verifier can see.
const L3_MASK: usize = 0x1f;

/// Cuts the frame behind the quote, makes room for `added` bytes before it, and writes the
/// link-layer header: back to where the frame came from, with the same tags.
#[inline(always)]
fn make_room(
    ctx: &XdpContext,
    frame: &Frame,
    l3: usize,
    quote: usize,
    added: usize,
) -> Option<Frame> {
    if !frame.truncate(l3 + quote) || !frame.adjust_head(-(added as i32)) {
        return None;
    }
    let frame = Frame::new(ctx);
    let Ethernet { destination, source, kind } = *frame.load::<Ethernet>(added)?;
    frame.store(0, Ethernet { destination: source, source: destination, kind });
    if l3 > ethernet::LEN {
        let tag = *frame.load::<Tag>(added + ethernet::LEN)?;
        frame.store(ethernet::LEN, tag);
    }
    if l3 > ethernet::LEN + ethernet::TAG_LEN {
        let tag = *frame.load::<Tag>(added + ethernet::LEN + ethernet::TAG_LEN)?;
        frame.store(ethernet::LEN + ethernet::TAG_LEN, tag);
    }
    Some(frame)
}

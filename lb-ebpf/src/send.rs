//! What is done to a frame once it is decided: new MACs, an outer header, or an ICMP error.

use core::hint::cold_path;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::bpf_redirect,
    programs::XdpContext,
};
use lb_common::{
    abi::{Backend, backend_flags},
    nat,
    nat_connections::{self, Place},
    packet::{
        MAX_OFFSET, Packet,
        ethernet::{self, Ethernet, Tag},
        icmp,
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
    },
    returns, rewrite,
    tables::Tables as _,
    verdict::{Forward, Reply, ReplyKind, Return},
};
use zerocopy::little_endian::{U32, U64};

use lb_ebpf::{checksum, fib, frame::Frame};

use crate::{hop, maps::Maps};

/// The node's own stack sees the frame.
pub const PASS: u32 = xdp_action::XDP_PASS;
/// The frame is dropped.
pub const DROP: u32 = xdp_action::XDP_DROP;

/// The index of the interface that a frame came by.
#[inline(always)]
pub fn ingress(ctx: &XdpContext) -> u32 {
    ctx.ingress_ifindex() as u32
}

/// Sends a frame to its backend, or passes it to the one on this node; `None` if the frame has no room for the headers.
#[inline(always)]
pub fn forward(ctx: &XdpContext, frame: &Frame, to: &Forward<&Backend>) -> Option<u32> {
    if to.backend.l2_len == 14 {
        place::<14>(ctx, frame, to)?;
    } else {
        cold_path();
        match to.backend.l2_len {
            0 => return Some(PASS),
            18 => place::<18>(ctx, frame, to)?,
            22 => place::<22>(ctx, frame, to)?,
            _ => return None,
        }
    }
    if to.backend.ifindex == ingress(ctx) {
        return Some(xdp_action::XDP_TX);
    }
    // SAFETY: the helper checks the index itself.
    Some(unsafe { bpf_redirect(to.backend.ifindex, 0) } as u32)
}

/// Takes a hop off the client's header, and writes the link-layer header, of `L2` bytes, and the outer header before it.
#[inline(always)]
fn place<const L2: usize>(ctx: &XdpContext, frame: &Frame, to: &Forward<&Backend>) -> Option<()> {
    hop::take(frame, to.l3, to.v6)?;
    let backend = to.backend;
    if backend.flags & backend_flags::TUNNEL == 0 {
        if nat::is_nat(backend) {
            cold_path();
            let what = place_of(to.l3, to.v6);
            checksum::complete(ctx.ctx, what);
            match translate(ctx.ctx, to.id.into(), what) {
                0 => return None,
                TRANSLATED => {}
                tcp => {
                    note_close(ctx.ctx, to.id.into(), what | tcp << TCP_SHIFT);
                }
            }
        }
        let delta = to.l3 as i32 - L2 as i32;
        if delta == 0 {
            return store_link::<L2>(frame, &backend.l2);
        }
        if !frame.adjust_head(delta) {
            return None;
        }
        return store_link::<L2>(&Frame::new(ctx), &backend.l2);
    }
    let (class, next) = if to.v6 {
        (frame.load::<Ipv6>(to.l3)?.class(), number::IPV6)
    } else {
        (frame.load::<Ipv4>(to.l3)?.tos, number::IPV4)
    };
    if backend.flags & backend_flags::V6 == 0 {
        if !frame.adjust_head(to.l3 as i32 - (L2 + ipv4::LEN) as i32) {
            return None;
        }
        let frame = Frame::new(ctx);
        // The farther one first: its check of bounds is enough for both.
        let outer = rewrite::outer_v4(backend, class, to.len, to.entropy);
        return if frame.store(L2, outer) { store_link::<L2>(&frame, &backend.l2) } else { None };
    }
    if !frame.adjust_head(to.l3 as i32 - (L2 + ipv6::LEN) as i32) {
        return None;
    }
    let frame = Frame::new(ctx);
    let outer = rewrite::outer_v6(backend, class, to.len, next, to.entropy);
    if frame.store(L2, outer) { store_link::<L2>(&frame, &backend.l2) } else { None }
}

/// Where the network layer starts, and above the low byte whether it is IPv6, for functions out of line.
#[inline(always)]
pub fn place_of(l3: usize, v6: bool) -> u64 {
    u64::from(v6) << 8 | l3 as u64
}

/// What [`translate`] returns for a packet that closes no connection; no TCP header starts there.
pub const TRANSLATED: u64 = 1;
/// Where the offset of the TCP header is in words for [`note_close`].
pub const TCP_SHIFT: u32 = 16;

/// [`nat::to_backend`] of a frame at [`place_of`] `what` for backend `id`; 0 if it fails. Of a packet for [`note_close`],
/// where its TCP header starts. A function that the verifier walks once, as the next ones.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translate(ctx: *mut xdp_md, id: u64, what: u64) -> u64 {
    let mut frame = Frame::new(&XdpContext::new(ctx));
    let Some(backend) = Maps.backend(id as u16) else { return 0 };
    let l3 = what as usize & L3_MASK;
    let Some(part) = nat::to_backend(&mut frame, l3, what >> 8 != 0, backend) else { return 0 };
    nat_connections::closing(&frame, l3, part).map_or(TRANSLATED, |tcp| tcp as u64)
}

/// [`nat_connections::note_close`] of a frame to backend `id` at [`place_of`] `what`, with the place of its TCP header.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_close(ctx: *mut xdp_md, id: u64, what: u64) -> u64 {
    let frame = Frame::new(&XdpContext::new(ctx));
    nat_connections::note_close(&frame, &Maps, closing_at(what), id as u16, Maps.now());
    0
}

/// The headers of a packet for [`note_close`], by its word.
#[inline(always)]
pub fn closing_at(what: u64) -> Place {
    let tcp = (what >> TCP_SHIFT) as usize & MAX_OFFSET;
    Place { l3: what as usize & L3_MASK, v6: what >> 8 & 1 != 0, tcp }
}

/// [`nat_connections::note_answer`] of the answer of which [`returns::find`](lb_common::returns::find) has returned `word`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_answer(ctx: *mut xdp_md, word: u64) -> u64 {
    let frame = Frame::new(&XdpContext::new(ctx));
    let (l3, v6, _) = returns::place(word);
    nat_connections::note_answer(&frame, &Maps, (l3, v6), word as u16, Maps.now()) as u64
}

/// What [`to_client`] returns for an answer that is as it came, for the node's own stack to deal with; no action has this
/// number.
pub const UNTOUCHED: u64 = 1 << 32;
/// The same for one of which the first buffer does not hold what is translated: it can't be sent.
pub const SPOILT: u64 = 1 << 33;

/// Translates the answer of a backend, of which [`returns::find`](lb_common::returns::find) has returned `word`, counts it, and
/// sends it by the kernel's route; an action of XDP. Where the kernel has to find the next hop's MAC address first, or the egress
/// interface takes no redirect, the node's own stack sends it, translated.
///
/// In steps out of line, as all that they keep on the stack would not fit beside that of the caller.
#[inline(always)]
pub fn to_client(ctx: &XdpContext, word: u64) -> u64 {
    let route = address_to_client(ctx.ctx, word);
    if route == UNTOUCHED {
        return UNTOUCHED;
    }
    let (l3, v6, _) = returns::place(word);
    let what = place_of(l3, v6);
    let was_unfinished = checksum::complete(ctx.ctx, what) != 0;
    let noted = note_answer(ctx.ctx, word);
    if translate_to_client(ctx.ctx, word, u64::from(route != BY_STACK) | noted << 8) == 0 {
        return SPOILT;
    }
    if route == BY_STACK {
        if was_unfinished {
            checksum::leave(ctx.ctx, what);
        }
        return PASS.into();
    }
    if route == u64::from(ingress(ctx)) {
        return xdp_action::XDP_TX.into();
    }
    // SAFETY: the helper checks the index itself.
    unsafe { bpf_redirect(route as u32, 0) as u64 }
}

/// What [`address_to_client`] returns where the node's own stack sends the frame; no interface has this index.
pub const BY_STACK: u64 = 0;

/// Looks up the route of an answer, and gives the frame the MAC addresses that it leaves with. Returns the index of the interface
/// that it leaves by, [`BY_STACK`] or [`UNTOUCHED`].
#[inline(never)]
fn address_to_client(ctx: *mut xdp_md, word: u64) -> u64 {
    let context = XdpContext::new(ctx);
    let frame = Frame::new(&context);
    let Some(backend) = Maps.backend(word as u16).filter(|backend| nat::is_nat(backend)) else {
        return UNTOUCHED;
    };
    let at = returns::place(word);
    let ingress = ingress(&context);
    if at.0 != ethernet::LEN {
        // A frame with VLAN tags.
        return fib::route(&frame, at, ingress, &backend.vip).map_or(UNTOUCHED, |_| BY_STACK);
    }
    let Some(wanted) = fib::wanted(&frame, at, ingress, &backend.vip) else { return UNTOUCHED };
    let Some(kept) = Maps.return_route(&wanted) else { return UNTOUCHED };
    let now = Maps.now_nanos();
    let link = match kept.find(&wanted, now) {
        Some(link) => link,
        None => {
            let Some(route) = fib::route(&frame, at, ingress, &backend.vip) else {
                return UNTOUCHED;
            };
            if !route.has_neighbour
                || !(route.link.egress == ingress || Maps.is_return_egress(route.link.egress, 0))
            {
                return BY_STACK;
            }
            kept.keep(&wanted, &route.link, now);
            route.link
        }
    };
    if !frame.store(8, U32::new(link.end)) || !frame.store(0, U64::new(link.begin)) {
        return UNTOUCHED;
    }
    link.egress.into()
}

/// Translates and counts an answer, with what [`note_answer`] has returned from the second byte of `what` on, and takes a hop off
/// unless the first byte is 0; 0 if the first buffer does not hold what changes.
#[inline(never)]
fn translate_to_client(ctx: *mut xdp_md, word: u64, what: u64) -> u64 {
    let mut frame = Frame::new(&XdpContext::new(ctx));
    let Some(backend) = Maps.backend(word as u16) else { return 0 };
    let to = Return::from_word(&frame, backend, word);
    if nat::to_client(&mut frame, to.l3, to.v6, backend).is_none() {
        return 0;
    }
    Maps.count_return(&to, what >> 8);
    (what & 0xff == 0 || hop::take(&frame, to.l3, to.v6).is_some()).into()
}

/// Writes a link-layer header of `L2` bytes, by words that overlap: LLVM makes a loop over bytes of
/// a copy between places of which it does not know that they are apart.
#[inline(always)]
fn store_link<const L2: usize>(frame: &Frame, l2: &[u8; 22]) -> Option<()> {
    let store = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(l2.get(at..at + 8)?);
        frame.store(at, U64::new(u64::from_le_bytes(word))).then_some(())
    };
    store(L2 - 8)?;
    if L2 > 16 {
        store(8)?;
    }
    store(0)
}

/// Turns a frame into an ICMP error to its sender; `None` if that can't be done. A packet whose first
/// buffer is shorter than the full quote is quoted as far as its ports.
///
/// One function for each length of the quote, as the kernel wants to know it, and out of line: what
/// they keep on the stack would not fit beside the rest of the program's. They take words and not
/// the [`Reply`]: LLVM writes that to the stack on paths that never made it, from registers that
/// the verifier knows to be unset.
#[inline(always)]
pub fn reply(ctx: &XdpContext, reply: &Reply) -> Option<u32> {
    let Reply { kind, l3, v6, len, mtu } = *reply;
    let ttl = kind == ReplyKind::TtlExceeded;
    let quote = rewrite::quote_len(kind, v6, len);
    let (ctx, l3, mtu, ttl) = (ctx.ctx, l3 as u64, u64::from(mtu), u64::from(ttl));
    let done = if v6 {
        (quote == rewrite::QUOTE_V6 && reply_v6(ctx, l3, mtu, ttl) != 0)
            || reply_short_v6(ctx, l3, mtu, ttl) != 0
    } else {
        (quote == rewrite::QUOTE_V4 && reply_v4(ctx, l3, mtu, ttl) != 0)
            || reply_short_v4(ctx, l3, mtu, ttl) != 0
    };
    done.then_some(xdp_action::XDP_TX)
}

/// `$name` is `$answer` with a quote of `$quote` bytes, by a function that the verifier walks once; 0 if it can't be done.
macro_rules! reply {
    ($name:ident, $answer:ident, $quote:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(ctx: *mut xdp_md, l3: u64, mtu: u64, ttl: u64) -> u64 {
            let ctx = XdpContext::new(ctx);
            let kind = if ttl == 0 { ReplyKind::TooBig } else { ReplyKind::TtlExceeded };
            $answer::<{ $quote }>(&ctx, l3 as usize & L3_MASK, mtu as u16, kind).is_some().into()
        }
    };
}
reply!(reply_v4, answer_v4, rewrite::QUOTE_V4);
reply!(reply_short_v4, answer_v4, rewrite::QUOTE_SHORT_V4);
reply!(reply_v6, answer_v6, rewrite::QUOTE_V6);
reply!(reply_short_v6, answer_v6, rewrite::QUOTE_SHORT_V6);

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

//! What is done to a frame that goes to a backend: new MACs and tags, or an outer header before it.

use core::hint::cold_path;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_SHOT, TC_ACT_UNSPEC,
    },
    programs::TcContext,
};
use lb_common::{
    abi::{Backend, RETURN_EGRESS_TC, backend_flags},
    nat, nat_connections,
    packet::{
        Packet as _, ethernet,
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        number,
    },
    returns, rewrite,
    tables::Tables as _,
    verdict::{Forward, Return},
};
use lb_ebpf::{fib, frame::SkbFrame, skb::Skb};
use zerocopy::little_endian::{U32, U64};

use super::tags::{self, Tags};
use crate::{hop, maps::Maps};

pub use super::reply::reply;
use crate::send::{BY_STACK, TCP_SHIFT, TRANSLATED, closing_at, place_of};
pub use crate::send::{SPOILT, UNTOUCHED};

/// The next program or filter sees the frame, then the stack: `TCX_NEXT`, and `TC_ACT_UNSPEC` of `clsact`. 0 would end
/// the chain.
pub const PASS: u32 = TC_ACT_UNSPEC as u32;
/// `TC_ACT_SHOT`.
pub const DROP: u32 = TC_ACT_SHOT as u32;

/// The index of the interface that a frame came by.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> u32 {
    Skb::new(ctx).ifindex()
}

/// Sends a frame to its backend, or passes it to the one on this node; `None` if the frame has no room for the headers.
#[inline(always)]
pub fn forward(ctx: &TcContext, _frame: &SkbFrame, to: &Forward<&Backend>) -> Option<u32> {
    let skb = Skb::new(ctx);
    let backend = to.backend;
    if backend.is_local() {
        cold_path();
        return Some(PASS);
    }
    if nat::is_nat(backend) {
        cold_path();
        let what = place_of(to.l3, to.v6);
        match translate_skb(skb.context().skb.skb, to.id.into(), what) {
            0 => return None,
            TRANSLATED => {}
            tcp => {
                note_close_skb(skb.context().skb.skb, to.id.into(), what | tcp << TCP_SHIFT);
            }
        }
    }
    let frame = &SkbFrame::of_skb(skb);
    hop::take(frame, to.l3, to.v6)?;
    if to.v6 {
        // The hop limit is the lower half of a word. The sum of an IPv4 header stays what it was.
        skb.update_sum(0, 1);
    }
    if backend.flags & backend_flags::TUNNEL == 0 {
        if tags::any(skb, to.l3) {
            cold_path();
            if !tags::strip(skb) {
                return None;
            }
        }
    } else {
        encapsulate(skb, frame, to)?;
    }
    if backend.l2_len == 14 {
        store_link(&SkbFrame::of_skb(skb), &backend.l2)?;
    } else {
        cold_path();
        match backend.l2_len {
            18 => place_tagged::<18>(skb, &backend.l2)?,
            22 => place_tagged::<22>(skb, &backend.l2)?,
            _ => return None,
        }
    }
    Some(skb.redirect(backend.ifindex))
}

/// What the offset of the network layer, 14 to 22, fits in: a bound that the verifier can see.
const L3_MASK: usize = 0x1f;

/// [`nat::to_backend`] for backend `id` of a frame whose network layer starts at the low byte of `what`; above it is whether
/// it is IPv6. 0 if it fails; of a packet for [`note_close_skb`], where its TCP header starts. A function that the verifier
/// walks once, as the next ones.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translate_skb(skb: *mut __sk_buff, id: u64, what: u64) -> u64 {
    let skb = Skb::new(&TcContext::new(skb));
    let Some(backend) = Maps.backend(id as u16) else { return 0 };
    let mut frame = SkbFrame::of_skb(skb);
    let l3 = what as usize & L3_MASK;
    let Some(part) = nat::to_backend(&mut frame, l3, what >> 8 != 0, backend) else { return 0 };
    let frame = SkbFrame::of_skb(skb);
    nat_connections::closing(&frame, l3, part).map_or(TRANSLATED, |tcp| tcp as u64)
}

/// [`nat_connections::note_close`] of a frame to backend `id`; `what` as for [`translate_skb`], with the place of its TCP header.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_close_skb(skb: *mut __sk_buff, id: u64, what: u64) -> u64 {
    let skb = Skb::new(&TcContext::new(skb));
    nat_connections::note_close(
        &SkbFrame::of_skb(skb),
        &Maps,
        closing_at(what),
        id as u16,
        Maps.now(),
    );
    0
}

/// [`nat_connections::note_answer`] of the answer of which [`returns::find`](lb_common::returns::find) has returned `word`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_answer_skb(skb: *mut __sk_buff, word: u64) -> u64 {
    let skb = Skb::new(&TcContext::new(skb));
    let (l3, v6, _) = returns::place(word);
    let frame = SkbFrame::of_skb(skb);
    nat_connections::note_answer(&frame, &Maps, (l3, v6), word as u16, Maps.now()) as u64
}

/// As that of XDP (`send.rs`); the kernel resolves next hops whose MAC address is not known.
#[inline(always)]
pub fn to_client(ctx: &TcContext, word: u64) -> u64 {
    let skb = Skb::new(ctx);
    let route = address_to_client(skb, word);
    if route == UNTOUCHED {
        return UNTOUCHED;
    }
    if !translate_and_count(skb, word, route) {
        return SPOILT;
    }
    let action = if route == BY_STACK {
        PASS
    } else if route & NEIGHBOUR != 0 {
        skb.redirect_to_neighbour(route as u32)
    } else {
        skb.redirect(route as u32)
    };
    action.into()
}

/// Translates and counts an answer that leaves by `route`; false if the first buffer does not hold what changes.
#[inline(always)]
pub fn translate_and_count(skb: Skb, word: u64, route: u64) -> bool {
    let noted = note_answer_skb(skb.context().skb.skb, word);
    translate_to_client(skb, word, u64::from(route != BY_STACK) | noted << 8) != 0
}

/// What [`address_to_client`] returns above the index of an interface, where the kernel writes the MAC addresses.
const NEIGHBOUR: u64 = 1 << 34;

/// Looks up the route of an answer, and gives the frame the MAC addresses that it leaves with where they are kept. Returns the
/// index of the interface that it leaves by, which may have the bit [`NEIGHBOUR`], or [`BY_STACK`] or [`UNTOUCHED`].
#[inline(never)]
fn address_to_client(skb: Skb, word: u64) -> u64 {
    let frame = SkbFrame::of_skb(skb);
    let Some(backend) = Maps.backend(word as u16).filter(|backend| nat::is_nat(backend)) else {
        return UNTOUCHED;
    };
    let (l3, v6, len) = returns::place(word);
    // Of a GSO frame the packets' sizes count, which the kernel looks at when it cuts it.
    let at = (l3, v6, if skb.gso_size() == 0 { len } else { 0 });
    let ingress = skb.ifindex();
    let Some(wanted) = fib::wanted(&frame, at, ingress, &backend.vip) else { return UNTOUCHED };
    let Some(kept) = Maps.return_route(&wanted) else { return UNTOUCHED };
    let now = Maps.now_nanos();
    let Some(link) = kept.find(&wanted, now) else {
        let Some(route) = fib::route(&frame, at, ingress, &backend.vip) else { return UNTOUCHED };
        if route.by_stack {
            return BY_STACK;
        }
        let egress = route.link.egress;
        if route.has_neighbour
            && (egress == ingress || Maps.is_return_egress(egress, RETURN_EGRESS_TC))
        {
            kept.keep(&wanted, &route.link, now);
        }
        // Also where the MAC address is known: so the kernel notices that the neighbour is in use, and asks for the address
        // again when it is old.
        return NEIGHBOUR | u64::from(egress);
    };
    if !frame.store(8, U32::new(link.end)) || !frame.store(0, U64::new(link.begin)) {
        return UNTOUCHED;
    }
    link.egress.into()
}

/// As that of XDP; it removes VLAN tags too, unless the first byte of `what` is 0.
#[inline(never)]
fn translate_to_client(skb: Skb, word: u64, what: u64) -> u64 {
    let mut frame = SkbFrame::of_skb(skb);
    let Some(backend) = Maps.backend(word as u16) else { return 0 };
    let to = Return::from_word(&frame, backend, word);
    let (l3, v6) = (to.l3, to.v6);
    Maps.count_return(&to, what >> 8);
    if nat::to_client(&mut frame, l3, v6, backend).is_none() {
        return 0;
    }
    if what & 0xff == 0 {
        return 1;
    }
    if hop::take(&SkbFrame::of_skb(skb), l3, v6).is_none() {
        return 0;
    }
    if v6 {
        skb.update_sum(0, 1);
    }
    (!tags::any(skb, l3) || tags::strip(skb)).into()
}

/// The longest packet that fits an outer IPv4 header.
const LONGEST: u16 = u16::MAX - ipv4::LEN as u16;

/// Makes room for the outer header between the link layer's, without tags, and the client's, and writes it. The
/// kernel then cuts a GSO frame into packets that each have both.
#[inline(always)]
fn encapsulate(skb: Skb, frame: &SkbFrame, to: &Forward<&Backend>) -> Option<()> {
    let backend = to.backend;
    let (class, next) = if to.v6 {
        (frame.load::<Ipv6>(to.l3)?.class(), number::IPV6)
    } else {
        (frame.load::<Ipv4>(to.l3)?.tos, number::IPV4)
    };
    if tags::any(skb, to.l3) {
        cold_path();
        if !tags::strip(skb) {
            return None;
        }
    }
    // Each packet's size was compared with the MTU: they are to stay what they are.
    if backend.flags & backend_flags::V6 == 0 {
        let flags = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_FIXED_GSO;
        if !skb.make_room(ipv4::LEN, flags) {
            return None;
        }
        // A GSO frame may be longer than its outer header can hold, which has 0 then (`iph_totlen()`, Linux 6.3).
        let len = if to.len > LONGEST { LONGEST + 1 } else { to.len };
        // A header with a true checksum adds nothing to the sum of the packet.
        let outer = rewrite::outer_v4(backend, class, len, to.entropy);
        return SkbFrame::of_skb(skb).store(ethernet::LEN, outer).then_some(());
    }
    let flags = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_FIXED_GSO;
    if !skb.make_room(ipv6::LEN, flags) {
        return None;
    }
    let outer = rewrite::outer_v6(backend, class, to.len, next, to.entropy);
    SkbFrame::of_skb(skb).store(ethernet::LEN, outer).then_some(())?;
    add_outer_v6(skb);
    Some(())
}

/// [`Skb::update_sum`] for an outer IPv6 header. Out of line, and from the frame, as its bytes have no room on the stack.
#[inline(never)]
fn add_outer_v6(skb: Skb) -> u64 {
    if let Some(outer) = SkbFrame::of_skb(skb).load::<[u8; ipv6::LEN]>(ethernet::LEN) {
        skb.update_sum(rewrite::sum(outer), 0);
    }
    0
}

/// Writes a link-layer header of 14 bytes, by words that overlap: see `send.rs`.
#[inline(always)]
fn store_link(frame: &SkbFrame, l2: &[u8; 22]) -> Option<()> {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(l2.get(at..at + 8)?);
        Some(U64::new(u64::from_le_bytes(word)))
    };
    (frame.store(6, word(6)?) && frame.store(0, word(0)?)).then_some(())
}

/// The same for one with tags, of `L2` bytes: the addresses and the EtherType go into the frame, and the kernel adds the
/// tags.
#[inline(always)]
fn place_tagged<const L2: usize>(skb: Skb, l2: &[u8; 22]) -> Option<()> {
    let frame = SkbFrame::of_skb(skb);
    let mut header = [0; ethernet::LEN];
    header[..12].copy_from_slice(&l2[..12]);
    header[12..].copy_from_slice(&l2[L2 - 2..L2]);
    (frame.store(0, header) && Tags::of_header::<L2>(l2).push(skb)).then_some(())
}

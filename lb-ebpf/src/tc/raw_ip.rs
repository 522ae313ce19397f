//! Frames of an interface without a link layer (WireGuard, tun): they begin with their IP header.
//!
//! The decision is made on the frame as it is, and one that passes to the stack stays so. One that leaves gets an
//! Ethernet header first, and is from there on what every other frame is: the kernel takes the header off again where
//! the frame leaves by such an interface (`__bpf_redirect_no_mac()` of net/core/filter.c).

use core::hint::cold_path;

use lb_common::{
    abi::Backend,
    nat,
    packet::ethernet,
    returns,
    tables::Tables as _,
    verdict::{Forward, Reply},
};
use lb_ebpf::{
    fib,
    frame::{RawFrame, SkbFrame},
    skb::RawSkb,
};

use super::send;
use crate::{maps::Maps, send::BY_STACK};

pub use super::send::{DROP, PASS, SPOILT, UNTOUCHED};

/// The index of the interface that a frame came by.
#[inline(always)]
pub fn ingress(skb: &RawSkb) -> u32 {
    skb.0.ifindex()
}

/// As [`send::forward`].
#[inline(always)]
pub fn forward(skb: &RawSkb, _frame: &RawFrame, to: &Forward<&Backend>) -> Option<u32> {
    if to.backend.is_local() {
        cold_path();
        return Some(PASS);
    }
    if !skb.0.push_link() {
        return None;
    }
    let to = Forward { l3: ethernet::LEN, ..*to };
    send::forward(&skb.0.context(), &SkbFrame::of_skb(skb.0), &to)
}

/// As [`send::to_client`]; the kernel writes the MAC addresses of the next hop. What its own stack has to send comes in once
/// more, translated, as its Ethernet header can't be taken off again here.
#[inline(always)]
pub fn to_client(skb: &RawSkb, word: u64) -> u64 {
    let route = route_to_client(*skb, word);
    if route == UNTOUCHED {
        return UNTOUCHED;
    }
    let RawSkb(skb) = *skb;
    if !skb.push_link() || !send::translate_and_count(skb, returns::behind_link(word), route) {
        return SPOILT;
    }
    let action = if route == BY_STACK {
        skb.redirect_to_ingress(skb.ifindex())
    } else {
        skb.redirect_to_neighbour(route as u32)
    };
    action.into()
}

/// The index of the interface by which an answer leaves, [`BY_STACK`] or [`UNTOUCHED`].
#[inline(never)]
fn route_to_client(skb: RawSkb, word: u64) -> u64 {
    let frame = RawFrame::of_raw(skb);
    let Some(backend) = Maps.backend(word as u16).filter(|backend| nat::is_nat(backend)) else {
        return UNTOUCHED;
    };
    let (l3, v6, len) = returns::place(word);
    // Of a GSO frame the packets' sizes count, which the kernel looks at when it cuts it.
    let at = (l3, v6, if skb.0.gso_size() == 0 { len } else { 0 });
    match fib::route(&frame, at, skb.0.ifindex(), &backend.vip) {
        None => UNTOUCHED,
        Some(route) if route.by_stack => BY_STACK,
        Some(route) => route.link.egress.into(),
    }
}

/// As [`send::reply`].
#[inline(always)]
pub fn reply(skb: &RawSkb, reply: &Reply) -> Option<u32> {
    if !skb.0.push_link() {
        return None;
    }
    send::reply(&skb.0.context(), &Reply { l3: ethernet::LEN, ..*reply })
}

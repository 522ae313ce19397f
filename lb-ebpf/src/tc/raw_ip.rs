//! Frames of an interface without a link layer (WireGuard, tun): they begin with their IP header.
//!
//! The decision is made on the frame as it is, and one that passes to the stack stays so. One that leaves gets an
//! Ethernet header first, and is from there on what every other frame is: the kernel takes the header off again where
//! the frame leaves by such an interface (`__bpf_redirect_no_mac()` of net/core/filter.c).

use core::hint::cold_path;

use lb_common::{
    abi::Backend,
    packet::ethernet,
    verdict::{Forward, Reply},
};
use lb_ebpf::{
    frame::{RawFrame, SkbFrame},
    skb::RawSkb,
};

use super::send;

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

/// An answer of a backend passes as it came: mode `nat` is for interfaces with a link layer.
#[inline(always)]
pub fn to_client(_skb: &RawSkb, _word: u64) -> u64 {
    UNTOUCHED
}

/// As [`send::reply`].
#[inline(always)]
pub fn reply(skb: &RawSkb, reply: &Reply) -> Option<u32> {
    if !skb.0.push_link() {
        return None;
    }
    send::reply(&skb.0.context(), &Reply { l3: ethernet::LEN, ..*reply })
}

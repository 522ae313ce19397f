//! The balancer as a tc program: the same decision on a socket buffer, before the node's own stack gets it.
//!
//! It runs where an interface has no native XDP, at the interface's ingress (TCX, Linux 6.6; the qdisc `clsact` before
//! that). What differs from XDP:
//!
//! - The kernel has taken the outermost VLAN tag out of the frame into the buffer's metadata ([`tags`]).
//! - GRO may have merged packets, and a local sender's may not be cut yet ([`lb_common::gso`]).
//! - A local sender's checksum may not be computed yet (`CHECKSUM_PARTIAL`), and the NIC may have summed up the whole
//!   packet (`CHECKSUM_COMPLETE`): whoever changes the packet has to keep that sum true ([`send`], [`reply`]).
//! - Packets leave through the egress interface's queueing discipline, whether its driver has XDP or not.

mod reply;
mod send;
mod tags;

use aya_ebpf::programs::TcContext;
use lb_common::{
    forward::decide,
    plain,
    verdict::{Drop, Pass, ReplyKind, Verdict, events},
};
use lb_ebpf::{frame::SkbFrame, skb::Skb};

use crate::{exit::settle, maps::Maps};

/// What [`plain()`] returns for other packets; no action has this number.
const NOT_PLAIN: u64 = u64::MAX;

/// Decides what happens to a frame, and does it; an action of tc.
#[inline(always)]
pub fn walk(ctx: &TcContext) -> i32 {
    let skb = Skb::new(ctx);
    let action = match plain(skb) {
        NOT_PLAIN => {
            pull(skb);
            any(skb)
        }
        action => action as u32,
    };
    action as i32
}

/// What most packets are; see `walk.rs`.
#[inline(never)]
fn plain(skb: Skb) -> u64 {
    let ctx = skb.context();
    let frame = SkbFrame::of_skb(skb);
    let bytes = skb.total() as usize;
    match plain::decide(&frame, &Maps) {
        Some(verdict) => {
            u64::from(settle!(ctx, frame, bytes, verdict, |to| plain::is_heard(&frame)))
        }
        None => NOT_PLAIN,
    }
}

/// Everything else.
#[inline(never)]
fn any(skb: Skb) -> u32 {
    let ctx = skb.context();
    let frame = SkbFrame::of_skb(skb);
    let bytes = skb.total() as usize;
    if tags::is_too_deep(skb, &frame) {
        Maps.count(Pass::VlanDepth.index(), bytes);
        crate::log::frame(&ctx, Pass::VlanDepth.index());
        return send::PASS;
    }
    let verdict = decide(&frame, &Maps);
    settle!(ctx, frame, bytes, verdict, |to| to.events & events::HEARD != 0)
}

/// A first buffer with so many bytes has the headers of nearly every packet.
const ENOUGH: u32 = 128;
/// How many are asked for where it has fewer.
const WANTED: u32 = 256;

/// Moves headers into the first buffer, as `pull.rs` does. It is called before any pointer into the frame is made.
#[inline(always)]
fn pull(skb: Skb) {
    let (bytes, total) = (skb.data_end() - skb.data(), skb.total());
    if bytes < ENOUGH && bytes < total {
        // A frame that has no room for them is walked as it is.
        skb.pull(if total < WANTED { total } else { WANTED });
    }
}

//! One frame of tc from its beginning to its end: as `walk.rs` for XDP.

use aya_ebpf::programs::TcContext;
use lb_common::{
    fast_path,
    forward::decide,
    returns,
    verdict::{Drop, Pass, ReplyKind, Verdict, events},
};
use lb_ebpf::{
    frame::{RawFrame, SkbFrame},
    skb::{RawSkb, Skb},
};

use crate::{
    exit::{self, finish, finish_answer},
    maps::Maps,
    tc::{pull, raw_ip, send, tags},
};

/// What [`fast_path()`] returns for other packets; no action has this number.
const NOT_FOR_FAST_PATH: u64 = u64::MAX;

/// Decides what happens to a frame, and does it; an action of tc.
#[inline(always)]
pub fn walk(ctx: &TcContext) -> i32 {
    let skb = Skb::new(ctx);
    let action = match fast_path(skb) {
        NOT_FOR_FAST_PATH => {
            pull(skb);
            slow_path(skb)
        }
        action => action as u32,
    };
    let is_answer = exit::may_be_answer(action);
    (if is_answer { answer(skb, action) } else { action }) as i32
}

/// Tries the fast path; see `walk.rs`.
#[inline(never)]
fn fast_path(skb: Skb) -> u64 {
    let ctx = skb.context();
    let frame = SkbFrame::of_skb(skb);
    let bytes = skb.total() as usize;
    match fast_path::try_decide(&frame, &Maps) {
        Some(verdict) => u64::from(finish!(
            ctx,
            frame,
            bytes,
            verdict,
            |to| fast_path::is_bare_ack(&frame),
            |reason| returns::is_possible(&Maps, reason)
        )),
        None => NOT_FOR_FAST_PATH,
    }
}

/// Decides and finishes every other frame.
#[inline(never)]
fn slow_path(skb: Skb) -> u32 {
    let ctx = skb.context();
    let frame = SkbFrame::of_skb(skb);
    let bytes = skb.total() as usize;
    if tags::is_too_deep(skb, &frame) {
        Maps.count(Pass::VlanDepth.index(), bytes);
        crate::log::frame(&ctx, Pass::VlanDepth.index());
        return send::PASS;
    }
    let verdict = decide(&frame, &Maps);
    finish!(ctx, frame, bytes, verdict, |to| to.events & events::BARE_ACK != 0, |reason| {
        returns::is_possible(&Maps, reason)
    })
}

/// The same for a frame that begins with its IP header.
#[inline(always)]
pub fn walk_raw(ctx: &TcContext) -> i32 {
    let skb = Skb::new(ctx);
    pull(skb);
    let action = match slow_path_raw(skb) {
        action if exit::may_be_answer(action) => answer_raw(skb, action),
        action => action,
    };
    action as i32
}

#[inline(never)]
fn slow_path_raw(skb: Skb) -> u32 {
    use raw_ip as send;

    let skb = RawSkb(skb);
    let frame = RawFrame::of_raw(skb);
    let bytes = skb.0.total() as usize;
    let verdict = decide(&frame, &Maps);
    finish!(skb, frame, bytes, verdict, |to| to.events & events::BARE_ACK != 0, |reason| {
        returns::is_possible(&Maps, reason)
    })
}

/// Finishes a frame that may be the answer of a backend in mode `nat`.
#[inline(never)]
fn answer(skb: Skb, action: u32) -> u32 {
    let ctx = skb.context();
    let frame = SkbFrame::of_skb(skb);
    let bytes = skb.total() as usize;
    finish_answer!(ctx, frame, bytes, action, &Maps)
}

/// The same for a frame that begins with its IP header.
#[inline(never)]
fn answer_raw(skb: Skb, action: u32) -> u32 {
    use raw_ip as send;

    let skb = RawSkb(skb);
    let frame = RawFrame::of_raw(skb);
    let bytes = skb.0.total() as usize;
    finish_answer!(skb, frame, bytes, action, &Maps)
}

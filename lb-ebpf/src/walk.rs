//! One frame from its beginning to its end.

use core::hint::cold_path;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    fast_path,
    forward::decide,
    returns,
    verdict::{Drop, Pass, ReplyKind, Verdict, events},
};

use lb_ebpf::{frame::Frame, pull};

use crate::{
    exit::{self, finish, finish_answer},
    maps::Maps,
    send,
};

/// What [`fast_path()`] returns for other packets; no action has this number.
const NOT_FOR_FAST_PATH: u64 = u64::MAX;

/// Decides what happens to a frame, and does it; an action of XDP.
#[inline(always)]
pub fn walk(ctx: &XdpContext) -> u32 {
    let action = fast_path(ctx.ctx);
    if action < exit::MAYBE_ANSWER.into() {
        return action as u32;
    }
    cold_path();
    let action = match action {
        NOT_FOR_FAST_PATH => {
            pull::headers(ctx);
            slow_path(ctx.ctx)
        }
        action => action as u32,
    };
    if exit::may_be_answer(action) { answer(ctx.ctx, action) } else { action }
}

/// Tries the fast path. Out of line, as the slow path is: so the registers of either hold nothing of the
/// other's, the verifier walks each once, and their stacks don't add up.
#[inline(never)]
fn fast_path(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
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
fn slow_path(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    let verdict = decide(&frame, &Maps);
    finish!(ctx, frame, bytes, verdict, |to| to.events & events::BARE_ACK != 0, |reason| {
        returns::is_possible(&Maps, reason)
    })
}

/// Finishes a frame that may be the answer of a backend in mode `nat`.
#[inline(never)]
fn answer(ctx: *mut xdp_md, action: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    finish_answer!(ctx, frame, bytes, action, &Maps)
}

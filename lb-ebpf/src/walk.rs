//! One frame from its beginning to its end.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    forward::decide,
    plain,
    verdict::{Drop, ReplyKind, Verdict, events},
};

use lb_ebpf::{frame::Frame, pull};

use crate::{exit::settle, maps::Maps, send};

/// What [`plain()`] returns for other packets; no action has this number.
const NOT_PLAIN: u64 = u64::MAX;

/// Decides what happens to a frame, and does it; an action of XDP.
#[inline(always)]
pub fn walk(ctx: &XdpContext) -> u32 {
    match plain(ctx.ctx) {
        NOT_PLAIN => {
            pull::headers(ctx);
            any(ctx.ctx)
        }
        action => action as u32,
    }
}

/// What most packets are. Out of line, as is what all others are: so the registers of either hold
/// nothing of the other's, the verifier walks each once, and their stacks don't add up.
#[inline(never)]
fn plain(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    match plain::decide(&frame, &Maps) {
        Some(verdict) => {
            u64::from(settle!(ctx, frame, bytes, verdict, |to| plain::is_heard(&frame)))
        }
        None => NOT_PLAIN,
    }
}

/// Everything else.
#[inline(never)]
fn any(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    let verdict = decide(&frame, &Maps);
    settle!(ctx, frame, bytes, verdict, |to| to.events & events::HEARD != 0)
}

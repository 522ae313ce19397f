//! The balancer's program with a capture around it: [`decide`] over tables that note what was found,
//! the frame saved before and after the one exit.
//!
//! It takes the place of the balancer's own program on an interface while a capture runs, over the same
//! maps, so that the other one pays nothing for what it does not do.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the macros `xdp` and `classifier` make public functions of their own"
)]

mod exit;
mod hop;
mod log;
mod maps;
mod reverse_nat;
mod save;
mod send;
mod service_maps;
mod tc;
#[path = "tc/capture.rs"]
mod tc_capture;
mod trie_key;
mod watch;
mod wide;

use aya_ebpf::{
    bindings::xdp_md,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    forward::decide,
    returns,
    verdict::{Drop, Pass, ReplyKind, Verdict, events},
};

use lb_ebpf::{frame::Frame, pull};

use crate::{
    exit::{finish, finish_answer},
    maps::Maps,
    watch::Watched,
};

/// Takes every frame of the interface.
#[xdp(frags)]
pub fn capture(ctx: XdpContext) -> u32 {
    walk(ctx)
}

/// The same for generic mode, as `balance_generic` is.
#[xdp]
pub fn capture_generic(ctx: XdpContext) -> u32 {
    walk(ctx)
}

/// The same for tc, as `classify` is.
#[classifier]
pub fn capture_tc(ctx: TcContext) -> i32 {
    tc_capture::walk(&ctx) as i32
}

/// The same at the ingress of an interface without a link layer, as `classify_raw` is.
#[classifier]
pub fn capture_raw(ctx: TcContext) -> i32 {
    tc_capture::walk_raw(&ctx) as i32
}

#[inline(always)]
fn walk(ctx: XdpContext) -> u32 {
    pull::headers(&ctx);
    let action = match any(ctx.ctx) {
        action if exit::may_be_answer(action) => answer(ctx.ctx, action),
        action => action,
    };
    save::after(&ctx, action);
    action
}

/// Out of line, as [`answer`] is, since the kernel's limit of the stack is for each way of calls.
#[inline(never)]
fn any(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    save::begin();
    let seen = save::seen(&ctx);
    let verdict = decide(&frame, &Watched);
    finish!(
        ctx,
        frame,
        bytes,
        verdict,
        |to| to.events & events::BARE_ACK != 0,
        |reason| returns::is_possible(&Watched, reason),
        seen
    )
}

/// Finishes a frame that may be the answer of a backend in mode `nat`.
#[inline(never)]
fn answer(ctx: *mut xdp_md, action: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    let seen = save::seen(&ctx);
    finish_answer!(ctx, frame, bytes, action, &Watched, seen)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

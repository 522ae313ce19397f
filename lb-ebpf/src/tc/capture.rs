//! One frame of tc with a capture around it: as `capture.rs` for XDP.

use aya_ebpf::{bindings::xdp_action, programs::TcContext};
use lb_common::{
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
    save,
    tc::{pull, raw_ip, send, tags},
    watch::Watched,
};

/// What becomes of a frame, and an action of tc.
#[inline(always)]
pub fn walk(ctx: &TcContext) -> u32 {
    let skb = Skb::new(ctx);
    pull(skb);
    let action = match any(skb) {
        action if exit::may_be_answer(action) => answer(skb, action),
        action => action,
    };
    save::after(skb, xdp_action_of(action));
    action
}

/// Out of line, since the kernel's limit of the stack is for each way of calls.
#[inline(never)]
fn any(skb: Skb) -> u32 {
    let ctx = skb.context();
    let frame = SkbFrame::of_skb(skb);
    let bytes = skb.total() as usize;
    save::begin();
    let seen = save::seen(skb);
    let verdict = if tags::is_too_deep(skb, &frame) {
        Verdict::Pass(Pass::VlanDepth)
    } else {
        decide(&frame, &Watched)
    };
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
fn answer(skb: Skb, action: u32) -> u32 {
    let ctx = skb.context();
    let frame = SkbFrame::of_skb(skb);
    let bytes = skb.total() as usize;
    let seen = save::seen(skb);
    finish_answer!(ctx, frame, bytes, action, &Watched, seen)
}

/// The same for a frame that begins with its IP header.
#[inline(always)]
pub fn walk_raw(ctx: &TcContext) -> u32 {
    let skb = Skb::new(ctx);
    pull(skb);
    let action = match any_raw(skb) {
        action if exit::may_be_answer(action) => answer_raw(skb, action),
        action => action,
    };
    after_raw(skb, action);
    action
}

#[inline(never)]
fn any_raw(skb: Skb) -> u32 {
    use raw_ip as send;

    let ctx = RawSkb(skb);
    let frame = RawFrame::of_raw(ctx);
    let bytes = skb.total() as usize;
    save::begin();
    let seen = save::seen(ctx);
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

/// As [`answer`].
#[inline(never)]
fn answer_raw(skb: Skb, action: u32) -> u32 {
    use raw_ip as send;

    let ctx = RawSkb(skb);
    let frame = RawFrame::of_raw(ctx);
    let bytes = skb.total() as usize;
    let seen = save::seen(ctx);
    finish_answer!(ctx, frame, bytes, action, &Watched, seen)
}

/// Saves it as it is then: if it leaves, it has got an Ethernet header.
#[inline(never)]
fn after_raw(skb: Skb, action: u32) -> u64 {
    match action {
        raw_ip::PASS | raw_ip::DROP => save::after(RawSkb(skb), xdp_action_of(action)),
        _ => save::after(skb, xdp_action_of(action)),
    }
}

/// What XDP calls an action: the record has its words.
#[inline(always)]
fn xdp_action_of(action: u32) -> u32 {
    match action {
        send::PASS => xdp_action::XDP_PASS,
        send::DROP => xdp_action::XDP_DROP,
        _ if save::leaves_by_ingress() => xdp_action::XDP_TX,
        _ => xdp_action::XDP_REDIRECT,
    }
}

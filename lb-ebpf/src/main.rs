//! The balancer's XDP program: [`decide`], then the one exit that counts and acts.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `xdp` makes a public function of its own")]

mod log;
mod maps;
mod send;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    forward::decide,
    verdict::{Drop, ReplyKind, Verdict},
};

use lb_ebpf::frame::Frame;

use crate::maps::Maps;

/// Takes every frame of the interface.
#[xdp(frags)]
pub fn balance(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    match decide(&frame, &Maps) {
        Verdict::Pass(reason) => {
            Maps.count(reason.index(), bytes);
            if reason.is_odd() {
                log::frame(&ctx, reason.index());
            }
            xdp_action::XDP_PASS
        }
        Verdict::Drop(reason) => {
            log::frame(&ctx, reason.index());
            drop(reason, bytes)
        }
        Verdict::Forward(to) => {
            // Before the frame is changed: the counter's cache line then comes while the backend's
            // does, and not after the calls into the kernel.
            Maps.count_forward(&to);
            match send::forward(&ctx, &frame, &to) {
                Some(action) => action,
                None => {
                    Maps.take_back(&to);
                    drop(Drop::NoHeadroom, bytes)
                }
            }
        }
        Verdict::Reply(reply) => {
            if !send::reply(&ctx, &reply) {
                return drop(Drop::NoHeadroom, bytes);
            }
            let reason = match reply.kind {
                ReplyKind::TooBig => Drop::TooBigReplied,
                ReplyKind::TtlExceeded => Drop::TtlExceededReplied,
            };
            Maps.count(reason.index(), bytes);
            xdp_action::XDP_TX
        }
    }
}

#[inline(always)]
fn drop(reason: Drop, bytes: usize) -> u32 {
    Maps.count(reason.index(), bytes);
    xdp_action::XDP_DROP
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

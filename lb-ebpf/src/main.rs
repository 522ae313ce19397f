//! The balancer's XDP program: [`decide`], then the one exit that counts and acts.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `xdp` makes a public function of its own")]

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
    let (reason, action) = match decide(&frame, &Maps) {
        Verdict::Pass(reason) => (reason.index(), xdp_action::XDP_PASS),
        Verdict::Drop(reason) => (reason.index(), xdp_action::XDP_DROP),
        Verdict::Forward(to) => match send::forward(&ctx, &frame, &to) {
            Some(action) => {
                Maps.count_forward(&to);
                return action;
            }
            None => (Drop::NoHeadroom.index(), xdp_action::XDP_DROP),
        },
        Verdict::Reply(reply) => {
            let reason = match reply.kind {
                ReplyKind::TooBig => Drop::TooBigReplied,
                ReplyKind::TtlExceeded => Drop::TtlExceededReplied,
            };
            if send::reply(&ctx, &reply) {
                (reason.index(), xdp_action::XDP_TX)
            } else {
                (Drop::NoHeadroom.index(), xdp_action::XDP_DROP)
            }
        }
    };
    Maps.count(reason, frame.bytes());
    action
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

//! The balancer's program with a capture around it: [`decide`] over tables that note what was found,
//! the frame saved before and after the one exit.
//!
//! It takes the place of the balancer's own program on an interface while a capture runs, over the same
//! maps, so that the other one pays nothing for what it does not do.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `xdp` makes a public function of its own")]

mod exit;
mod log;
mod maps;
mod save;
mod send;
mod watch;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    capture::FORWARDED,
    forward::decide,
    verdict::{Drop, ReplyKind, Verdict},
};

use lb_ebpf::frame::Frame;

use crate::{exit::settle, maps::Maps, watch::Watched};

/// Takes every frame of the interface.
#[xdp(frags)]
pub fn capture(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    save::begin();
    let verdict = decide(&frame, &Watched);
    let (reason, backend, events, egress) = match &verdict {
        Verdict::Pass(reason) => (reason.index(), 0, 0, 0),
        Verdict::Drop(reason) => (reason.index(), 0, 0, 0),
        Verdict::Forward(to) => (FORWARDED, to.id, to.events, to.backend.ifindex),
        Verdict::Reply(reply) => {
            let reason = match reply.kind {
                ReplyKind::TooBig => Drop::TooBigReplied,
                ReplyKind::TtlExceeded => Drop::TtlExceededReplied,
            };
            (reason.index(), 0, 0, ctx.ingress_ifindex() as u32)
        }
    };
    let what = u64::from(reason) | u64::from(backend) << 16 | u64::from(events) << 32;
    let saved = save::before(&ctx, what, egress);
    let action = settle!(ctx, frame, bytes, verdict);
    if saved != 0 {
        save::after(&ctx, action);
    }
    action
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

//! The balancer's program without anything that it says: the benchmark compares the two. Nothing that is
//! installed contains it.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `xdp` makes a public function of its own")]

mod exit;
#[path = "silence.rs"]
mod log;
mod maps;
mod send;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    forward::decide,
    verdict::{Drop, ReplyKind, Verdict},
};

use lb_ebpf::frame::Frame;

use crate::{exit::settle, maps::Maps};

/// Takes every frame of the interface.
#[xdp(frags)]
pub fn silent(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    settle!(ctx, frame, bytes, decide(&frame, &Maps))
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

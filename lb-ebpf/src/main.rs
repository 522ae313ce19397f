//! The balancer's XDP program: [`decide`], then the one exit that counts and acts.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `xdp` makes a public function of its own")]

mod exit;
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
pub fn balance(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    settle!(ctx, frame, bytes, decide(&frame, &Maps))
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

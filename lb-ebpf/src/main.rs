//! The balancer's XDP program: the walk of a frame over the maps, then the one exit that counts and
//! acts.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `xdp` makes a public function of its own")]

mod exit;
mod log;
mod maps;
mod send;
mod walk;

use aya_ebpf::{macros::xdp, programs::XdpContext};

/// Takes every frame of the interface.
#[xdp(frags)]
pub fn balance(ctx: XdpContext) -> u32 {
    walk::walk(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

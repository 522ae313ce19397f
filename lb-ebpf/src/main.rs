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

/// The same for generic mode. Without frags the kernel makes a frame one buffer before the program sees it; with them,
/// Linux 6.9 and later copy it in a way that has made kernels panic.
#[xdp]
pub fn balance_generic(ctx: XdpContext) -> u32 {
    walk::walk(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

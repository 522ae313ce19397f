//! The balancer's program without its log messages: the benchmark compares the two. Nothing that is
//! installed contains it.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `xdp` makes a public function of its own")]

mod exit;
mod hop;
#[path = "log_stub.rs"]
mod log;
mod maps;
mod reverse_nat;
mod send;
mod service_maps;
mod trie_key;
mod walk;
mod wide;

use aya_ebpf::{macros::xdp, programs::XdpContext};

/// Takes every frame of the interface.
#[xdp(frags)]
pub fn silent(ctx: XdpContext) -> u32 {
    walk::walk(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

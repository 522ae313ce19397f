//! The balancer's programs for XDP and tc: the walk of a frame over the maps, then the one exit that counts and
//! acts.
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
mod send;
mod service_maps;
mod tc;
#[path = "tc/walk.rs"]
mod tc_walk;
mod trie_key;
mod walk;
mod wide;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

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

/// The same for tc, at the ingress of an interface with an Ethernet header.
#[classifier]
pub fn classify(ctx: TcContext) -> i32 {
    tc_walk::walk(&ctx)
}

/// The same at the ingress of an interface without a link layer.
#[classifier]
pub fn classify_raw(ctx: TcContext) -> i32 {
    tc_walk::walk_raw(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

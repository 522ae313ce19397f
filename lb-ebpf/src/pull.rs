//! Headers that are not in a frame's first buffer.
//!
//! Drivers choose where a frame's buffers end: mlx5 with a striding receive queue leaves the first one
//! empty. A program can only point into the first, so the headers are moved there, before anything is
//! read, by `bpf_xdp_pull_data` (Linux 6.18). To read a copy of them instead would take a second walk
//! with all that it calls, which the verifier's limits on instructions and stack have no room for.
//!
//! The program pulls 256 bytes where a first buffer has fewer than 128 and the frame has more, after the fast path
//! has declined the frame.

use aya_ebpf::{Global, bindings::xdp_md, helpers::bpf_xdp_get_buff_len, programs::XdpContext};
use core::mem::transmute;

/// Not 0: the kernel has the function, and the loader has made its call of [`PLACEHOLDER`]'s. As the
/// verifier knows the value, it drops all of this where it is 0.
#[unsafe(no_mangle)]
static PULL_DATA: Global<u32> = Global::new(0);

/// Stands for the function: it is no helper but one of the kernel's own, which are called by their
/// number in the kernel's type information, and of these neither LLVM nor aya know. `datapath/pull.rs`
/// of the loader has the same number.
const PLACEHOLDER: usize = 0x6c62_7064;

/// A first buffer with so many bytes has the headers of nearly every packet.
const ENOUGH: usize = 128;
/// How many are pulled.
const WANTED: usize = 256;

/// Sees to it that the first buffer has the headers, where the kernel can. It is called before any
/// pointer into the frame is made.
#[inline(always)]
pub fn headers(ctx: &XdpContext) {
    if PULL_DATA.load() == 0 {
        return;
    }
    let bytes = ctx.data_end() - ctx.data();
    if bytes >= ENOUGH {
        return;
    }
    // SAFETY: the context is the one that the kernel passed in.
    let total = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as usize;
    if total > bytes {
        let wanted = if total < WANTED { total } else { WANTED };
        // SAFETY: the loader makes it a call of this type, as the verifier checks.
        let pull_data: unsafe extern "C" fn(*mut xdp_md, u32) -> i32 =
            unsafe { transmute(PLACEHOLDER) };
        // A frame that has no room for them is walked as it is.
        // SAFETY: the context is the one that the kernel passed in.
        let _ = unsafe { pull_data(ctx.ctx, wanted as u32) };
    }
}

//! The one exit: counts a verdict, and acts on it.

use aya_ebpf::bindings::xdp_action;
use lb_common::verdict::Drop;

use crate::maps::Maps;

/// What becomes of a frame of `bytes` bytes in its first buffer, by its verdict.
///
/// A macro, since it is a part of two programs and LLVM makes a longer one of a function that takes
/// the verdict, however it is inlined.
macro_rules! settle {
    ($ctx:ident, $frame:ident, $bytes:ident, $verdict:expr) => {
        match $verdict {
            Verdict::Pass(reason) => {
                Maps.count(reason.index(), $bytes);
                if reason.is_odd() {
                    $crate::log::frame(&$ctx, reason.index());
                }
                xdp_action::XDP_PASS
            }
            Verdict::Drop(reason) => {
                $crate::log::frame(&$ctx, reason.index());
                $crate::exit::drop(reason, $bytes)
            }
            Verdict::Forward(to) => {
                // Before the frame is changed: the counter's cache line then comes while the
                // backend's does, and not after the calls into the kernel.
                Maps.count_forward(&to);
                match send::forward(&$ctx, &$frame, &to) {
                    Some(action) => action,
                    None => {
                        Maps.take_back(&to);
                        $crate::exit::drop(Drop::NoHeadroom, $bytes)
                    }
                }
            }
            Verdict::Reply(reply) => {
                if !send::reply(&$ctx, &reply) {
                    $crate::exit::drop(Drop::NoHeadroom, $bytes)
                } else {
                    let reason = match reply.kind {
                        ReplyKind::TooBig => Drop::TooBigReplied,
                        ReplyKind::TtlExceeded => Drop::TtlExceededReplied,
                    };
                    Maps.count(reason.index(), $bytes);
                    xdp_action::XDP_TX
                }
            }
        }
    };
}
pub(crate) use settle;

/// Counts a frame that nobody gets.
#[inline(always)]
pub fn drop(reason: Drop, bytes: usize) -> u32 {
    Maps.count(reason.index(), bytes);
    xdp_action::XDP_DROP
}

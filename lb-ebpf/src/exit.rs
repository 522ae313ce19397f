//! The one exit: counts a verdict, and acts on it.
//!
//! LLVM tends to copy a value on paths that never made it, and the verifier refuses this as an unset register. So
//! each verdict ends in an arm of its own here, and `send.rs` passes words.

use aya_ebpf::bindings::xdp_action;
use lb_common::verdict::Drop;

use crate::maps::Maps;

/// What becomes of a frame of `bytes` bytes in its first buffer, by its verdict.
///
/// `$is_heard` is of the verdict to forward, `$to`. `$seen` is told of each verdict before anything is
/// done: the reason's index, backend, events and the interface that it leaves by.
///
/// A macro, since it is a part of several programs and LLVM makes a longer one of a function that takes
/// the verdict, however it is inlined.
macro_rules! settle {
    ($ctx:ident, $frame:ident, $bytes:ident, $verdict:expr, |$to:ident| $is_heard:expr) => {
        $crate::exit::settle!(
            $ctx,
            $frame,
            $bytes,
            $verdict,
            |$to| $is_heard,
            |_: u32, _: u16, _: u32, _: u32| ()
        )
    };
    ($ctx:ident, $frame:ident, $bytes:ident, $verdict:expr, |$to:ident| $is_heard:expr, $seen:expr) => {
        match $verdict {
            Verdict::Pass(reason) => {
                $seen(reason.index(), 0, 0, 0);
                Maps.count(reason.index(), $bytes);
                if reason.is_odd() {
                    $crate::log::frame(&$ctx, reason.index());
                }
                xdp_action::XDP_PASS
            }
            Verdict::Drop(reason) => {
                $seen(reason.index(), 0, 0, 0);
                $crate::log::frame(&$ctx, reason.index());
                $crate::exit::drop(reason, $bytes)
            }
            Verdict::Forward($to) => {
                $seen(lb_common::capture::FORWARDED, $to.id, $to.events, $to.backend.ifindex);
                // Before the frame is changed: the counter's cache line then comes while the
                // backend's does, and not after the calls into the kernel.
                Maps.count_forward(&$to, || $is_heard);
                match send::forward(&$ctx, &$frame, &$to) {
                    Some(action) => action,
                    None => {
                        Maps.take_back(&$to);
                        $crate::exit::drop(Drop::NoHeadroom, $bytes)
                    }
                }
            }
            Verdict::Reply(reply) => {
                let reason = match reply.kind {
                    ReplyKind::TooBig => Drop::TooBigReplied,
                    ReplyKind::TtlExceeded => Drop::TtlExceededReplied,
                };
                $seen(reason.index(), 0, 0, $ctx.ingress_ifindex() as u32);
                if send::reply(&$ctx, &reply) {
                    Maps.count(reason.index(), $bytes);
                    xdp_action::XDP_TX
                } else {
                    $crate::exit::drop(Drop::NoHeadroom, $bytes)
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

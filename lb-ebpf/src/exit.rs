//! The one exit: counts a verdict, and acts on it.
//!
//! LLVM tends to copy a value on paths that never made it, and the verifier refuses this as an unset register. So
//! each verdict ends in an arm of its own here, and `send.rs` passes words.

/// What becomes of a frame of `bytes` bytes in its first buffer, by its verdict. `send` is that of XDP or of tc, whichever
/// is in scope.
///
/// `$is_bare_ack` is of the verdict to forward, `$to`. `$seen` is called with each verdict before anything is
/// done: the reason's index, backend, events and the interface that it leaves by.
///
/// A macro, since it is a part of several programs and LLVM makes a longer one of a function that takes
/// the verdict, however it is inlined.
macro_rules! finish {
    ($ctx:ident, $frame:ident, $bytes:ident, $verdict:expr, |$to:ident| $is_bare_ack:expr) => {
        $crate::exit::finish!(
            $ctx,
            $frame,
            $bytes,
            $verdict,
            |$to| $is_bare_ack,
            |_: u32, _: u16, _: u32, _: u32| ()
        )
    };
    ($ctx:ident, $frame:ident, $bytes:ident, $verdict:expr, |$to:ident| $is_bare_ack:expr, $seen:expr) => {
        match $verdict {
            Verdict::Pass(reason) => {
                $seen(reason.index(), 0, 0, 0);
                Maps.count(reason.index(), $bytes);
                if reason.is_odd() {
                    $crate::log::frame(&$ctx, reason.index());
                }
                send::PASS
            }
            Verdict::Drop(reason) => {
                $seen(reason.index(), 0, 0, 0);
                $crate::log::frame(&$ctx, reason.index());
                Maps.count(reason.index(), $bytes);
                send::DROP
            }
            Verdict::Forward($to) => {
                $seen(lb_common::capture::FORWARDED, $to.id, $to.events, $to.backend.ifindex);
                // Before the frame is changed: the counter's cache line then comes while the
                // backend's does, and not after the calls into the kernel.
                Maps.count_forward(&$to, || $is_bare_ack);
                match send::forward(&$ctx, &$frame, &$to) {
                    Some(action) => action,
                    None => {
                        Maps.take_back(&$to);
                        Maps.count(Drop::NoHeadroom.index(), $bytes);
                        send::DROP
                    }
                }
            }
            Verdict::Reply(reply) => {
                let reason = match reply.kind {
                    ReplyKind::TooBig => Drop::TooBigReplied,
                    ReplyKind::TtlExceeded => Drop::TtlExceededReplied,
                };
                $seen(reason.index(), 0, 0, send::ingress(&$ctx));
                match send::reply(&$ctx, &reply) {
                    Some(action) => {
                        Maps.count(reason.index(), $bytes);
                        action
                    }
                    None => {
                        Maps.count(Drop::NoHeadroom.index(), $bytes);
                        send::DROP
                    }
                }
            }
        }
    };
}
pub(crate) use finish;

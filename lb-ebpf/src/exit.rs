//! The one exit: counts a verdict, and acts on it.
//!
//! LLVM tends to copy a value on paths that never made it, and the verifier refuses this as an unset register. So
//! each verdict ends in an arm of its own here, and `send.rs` passes words.

/// What becomes of a frame of `bytes` bytes in its first buffer, by its verdict. `send` is that of XDP or of tc, whichever
/// is in scope.
///
/// `$is_bare_ack` is of the verdict to forward, `$to`; `$answers` is whether a frame that passes
/// for `$reason` may be the answer of a backend in mode `nat`: then nothing is done to it, and the action is for
/// [`finish_answer`]. `$seen` is called with each verdict before anything is
/// done: the reason's index, backend, events and the interface that it leaves by.
///
/// A macro, since it is a part of several programs and LLVM makes a longer one of a function that takes
/// the verdict, however it is inlined.
macro_rules! finish {
    (
        $ctx:ident, $frame:ident, $bytes:ident, $verdict:expr, |$to:ident| $is_bare_ack:expr,
        |$reason:ident| $answers:expr
    ) => {
        $crate::exit::finish!(
            $ctx,
            $frame,
            $bytes,
            $verdict,
            |$to| $is_bare_ack,
            |$reason| $answers,
            |_: u32, _: u16, _: u32, _: u32| ()
        )
    };
    (
        $ctx:ident, $frame:ident, $bytes:ident, $verdict:expr, |$to:ident| $is_bare_ack:expr,
        |$reason:ident| $answers:expr, $seen:expr
    ) => {
        match $verdict {
            Verdict::Pass($reason) => {
                if $answers {
                    $crate::exit::MAYBE_ANSWER | $reason.index()
                } else {
                    $seen($reason.index(), 0, 0, 0);
                    Maps.count($reason.index(), $bytes);
                    if $reason.is_odd() {
                        $crate::log::frame(&$ctx, $reason.index());
                    }
                    send::PASS
                }
            }
            // Only `returns::decide` makes it.
            Verdict::Return(_) => send::PASS,
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

/// The action of a frame that may be the answer of a backend in mode `nat`, with the index of the reason for which it
/// passes if it is none; no action of XDP or tc has this bit alone.
pub(crate) const MAYBE_ANSWER: u32 = 1 << 16;

/// Whether [`finish`] leaves a frame with this action to [`finish_answer`].
#[inline(always)]
pub(crate) fn may_be_answer(action: u32) -> bool {
    action & !0xff == MAYBE_ANSWER
}

/// What becomes of a frame for which [`finish`] has left this action. It is a step of its own, as the frames of all its
/// functions would not fit on the stack below those of the decision.
macro_rules! finish_answer {
    ($ctx:ident, $frame:ident, $bytes:ident, $action:ident, $tables:expr) => {
        $crate::exit::finish_answer!(
            $ctx,
            $frame,
            $bytes,
            $action,
            $tables,
            |_: u32, _: u16, _: u32, _: u32| ()
        )
    };
    ($ctx:ident, $frame:ident, $bytes:ident, $action:ident, $tables:expr, $seen:expr) => {
        match returns::find(&$frame, $tables) {
            0 => {
                let reason = $action & 0xff;
                $seen(reason, 0, 0, 0);
                Maps.count(reason, $bytes);
                send::PASS
            }
            returns::UNTRANSLATED => {
                $seen(Pass::ReturnUntranslated.index(), 0, 0, 0);
                Maps.count(Pass::ReturnUntranslated.index(), $bytes);
                send::PASS
            }
            word => {
                $seen(lb_common::capture::RETURNED, word as u16, 0, 0);
                match send::to_client(&$ctx, word) {
                    send::UNTOUCHED => {
                        Maps.count(Pass::ReturnUntranslated.index(), $bytes);
                        send::PASS
                    }
                    send::SPOILT => {
                        Maps.count(Drop::NoHeadroom.index(), $bytes);
                        send::DROP
                    }
                    action => action as u32,
                }
            }
        }
    };
}
pub(crate) use finish_answer;

//! The program's messages about packets that are rare, for `lbd`'s log.
//!
//! It logs nothing unless `lbd` enables it: `lbd` grants it some messages each second while its log
//! takes them, at level `debug`. All of it is out of line, and nothing of it is called for packets that
//! are forwarded.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, xdp_md},
    btf_maps::Array,
    macros::btf_map,
    programs::{TcContext, XdpContext},
};
use aya_log_ebpf::debug;
use lb_common::{
    abi::FlowKey,
    packet::{Packet as _, ethernet},
    shared::SharedU64,
};
use lb_ebpf::{
    frame::{Context, Frame, RawFrame, SkbFrame},
    skb::{RawSkb, Skb},
};

/// Bytes of a frame in a message: Ethernet (of zeros where there is none), IPv4 and TCP without options.
const HEAD: usize = 54;

/// How many messages may be written until `lbd` grants more.
#[btf_map]
static LOG_BUDGET: Array<SharedU64, 1> = Array::new();

/// Whether a message may be logged; then it counts as logged. Two CPUs at once may count one.
#[inline(always)]
fn may_speak() -> bool {
    let Some(budget) = LOG_BUDGET.get(0) else { return false };
    let left = budget.load();
    if left == 0 {
        return false;
    }
    budget.store(left - 1);
    true
}

/// Logs a frame that was dropped or passed for the reason with this index.
#[inline(always)]
pub fn frame(ctx: &impl Logged, reason: u32) -> u64 {
    ctx.log(reason.into())
}

/// What a program gets for a frame.
pub trait Logged {
    /// Writes a message about the frame.
    fn log(&self, reason: u64) -> u64;
}

impl Logged for XdpContext {
    #[inline(always)]
    fn log(&self, reason: u64) -> u64 {
        log_frame(self.ctx, reason)
    }
}

impl Logged for TcContext {
    #[inline(always)]
    fn log(&self, reason: u64) -> u64 {
        log_skb(self.skb.skb, reason)
    }
}

impl Logged for RawSkb {
    #[inline(always)]
    fn log(&self, reason: u64) -> u64 {
        log_raw(self.0.context().skb.skb, reason)
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn log_frame(ctx: *mut xdp_md, reason: u64) -> u64 {
    if !may_speak() {
        return 0;
    }
    let ctx = XdpContext::new(ctx);
    let frame = Frame::new(&ctx);
    write(&ctx, &frame, reason as u32, ctx.ingress_ifindex() as u32, frame.bytes() as u32)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn log_skb(ctx: *mut __sk_buff, reason: u64) -> u64 {
    if !may_speak() {
        return 0;
    }
    let ctx = TcContext::new(ctx);
    let skb = Skb::new(&ctx);
    write(&ctx, &SkbFrame::of_skb(skb), reason as u32, skb.ifindex(), skb.total())
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn log_raw(ctx: *mut __sk_buff, reason: u64) -> u64 {
    if !may_speak() {
        return 0;
    }
    let ctx = TcContext::new(ctx);
    let skb = RawSkb(Skb::new(&ctx));
    let frame = RawFrame::of_raw(skb);
    let (interface, length) = (skb.0.ifindex(), skb.0.total());
    let mut head = [0; HEAD];
    if let (Ok(link), Some(packet)) =
        (ethernet::parse(&frame), frame.load::<[u8; HEAD - ethernet::LEN]>(0))
    {
        head[12..ethernet::LEN].copy_from_slice(&link.ethertype.to_be_bytes());
        head[ethernet::LEN..].copy_from_slice(packet);
    }
    say(&ctx, Some(&head), reason as u32, interface, length)
}

#[inline(always)]
fn write<C: Context>(
    ctx: &impl EbpfContext,
    frame: &Frame<C>,
    reason: u32,
    interface: u32,
    length: u32,
) -> u64 {
    say(ctx, frame.load::<[u8; HEAD]>(0), reason, interface, length)
}

#[inline(always)]
fn say(
    ctx: &impl EbpfContext,
    head: Option<&[u8; HEAD]>,
    reason: u32,
    interface: u32,
    length: u32,
) -> u64 {
    match head {
        Some(head) => debug!(
            ctx,
            "reason={} interface={} length={} frame={:x}",
            reason,
            interface,
            length,
            &head[..]
        ),
        None => debug!(ctx, "reason={} interface={} length={}", reason, interface, length),
    }
    1
}

/// Logs a flow that should have been pinned: the words of its key, as [`FlowKey::to_words`] has
/// them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn no_room_for_pin(upper: u64, lower: u64, rest: u64) -> u64 {
    if !may_speak() {
        return 0;
    }
    let key = FlowKey::from_words([upper, lower, rest]);
    debug!(&key, "no room for a pin: client={:i} port={}", key.source, key.port.get());
    1
}

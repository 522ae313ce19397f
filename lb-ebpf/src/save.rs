//! Saves the frames that match the filter into a ring that the daemon reads, and no others.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::{
        bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_xdp_get_buff_len,
        bpf_xdp_load_bytes,
    },
    macros::btf_map,
    programs::XdpContext,
};
use lb_common::{
    abi::{TokenBucket, mapped},
    capture::{ANY, CaptureCounter, Head, MAX_SNAP, NO_SERVICE, NO_SLOT, Plan, Scratch, flags},
    packet::{Packet, ethernet, ipv4::Ipv4, ipv6::Ipv6},
    token_bucket,
};
use lb_ebpf::{
    frame::{Frame, RawFrame, SkbFrame},
    skb::{RawSkb, Skb},
};

const MMAPABLE: usize = 1 << 10;
/// Bytes of the ring: what the daemon may be behind.
const RING: usize = 4 << 20;

/// The filter.
#[btf_map]
static CAPTURE_PLAN: Array<Plan, 1> = Array::new();

/// Where a frame is written together.
#[btf_map]
static CAPTURE_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// What has become of packets; the daemon sizes it.
#[btf_map]
static CAPTURE_COUNTERS: Array<CaptureCounter, 1, MMAPABLE> = Array::new();

/// How much each CPU may still save; the daemon sizes it.
#[btf_map]
static CAPTURE_BUDGETS: Array<TokenBucket, 1> = Array::new();

/// The frames.
#[btf_map]
static CAPTURE_RING: RingBuf<(), RING> = RingBuf::new();

fn cpu() -> u32 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_get_smp_processor_id() }
}

/// What is being noted of the packet at hand.
#[inline(always)]
pub fn with_head(note: impl FnOnce(&mut Head)) {
    if let Some(scratch) = CAPTURE_SCRATCH.get_ptr_mut(0) {
        // SAFETY: the value is this CPU's own, and nothing else holds a reference to it meanwhile.
        note(unsafe { &mut (*scratch).head });
    }
}

/// Begins to note.
#[inline(always)]
pub fn begin() {
    with_head(|head| {
        head.service = NO_SERVICE;
        head.slot = NO_SLOT;
        head.flags = 0;
        head.current = 0;
        head.base = 0;
    });
}

/// Whether the packet at hand, which was saved as it came, leaves by the interface that it came by.
#[inline(always)]
pub fn leaves_by_ingress() -> bool {
    let mut same = false;
    with_head(|head| same = head.egress == head.ingress);
    same
}

/// A frame that can be saved.
pub trait Frames: Copy {
    /// Bytes of the frame.
    fn length(self) -> u32;
    /// Copies its first bytes, as many as `to` has.
    fn copy(self, to: &mut [u8]) -> bool;
    /// Index of the interface that it came by.
    fn ingress(self) -> u32;
    /// Its headers.
    fn packet(self) -> impl Packet;
}

impl Frames for &XdpContext {
    #[inline(always)]
    fn length(self) -> u32 {
        // SAFETY: the context is the one that the kernel passed in.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as u32 }
    }

    #[inline(always)]
    fn copy(self, to: &mut [u8]) -> bool {
        let (bytes, len) = (to.as_mut_ptr().cast(), to.len() as u32);
        // SAFETY: the context is the kernel's, and `to` has room for its length.
        unsafe { bpf_xdp_load_bytes(self.ctx, 0, bytes, len) == 0 }
    }

    #[inline(always)]
    fn ingress(self) -> u32 {
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn packet(self) -> impl Packet {
        Frame::new(self)
    }
}

/// The outermost VLAN tag is not saved: it is in the metadata, not in the frame.
impl Frames for Skb {
    #[inline(always)]
    fn length(self) -> u32 {
        self.total()
    }

    #[inline(always)]
    fn copy(self, to: &mut [u8]) -> bool {
        self.load(0, to)
    }

    #[inline(always)]
    fn ingress(self) -> u32 {
        self.ifindex()
    }

    #[inline(always)]
    fn packet(self) -> impl Packet {
        SkbFrame::of_skb(self)
    }
}

/// It is saved with an Ethernet header of zeros, so that all frames of a file begin alike.
impl Frames for RawSkb {
    #[inline(always)]
    fn length(self) -> u32 {
        self.0.total() + ethernet::LEN as u32
    }

    #[inline(always)]
    fn copy(self, to: &mut [u8]) -> bool {
        let kind = ethernet::parse(&RawFrame::of_raw(self)).map_or(0, |link| link.ethertype);
        let Some((header, packet)) = to.split_first_chunk_mut::<{ ethernet::LEN }>() else {
            return false;
        };
        *header = [0; ethernet::LEN];
        header[12..].copy_from_slice(&kind.to_be_bytes());
        !packet.is_empty() && self.0.load(0, packet)
    }

    #[inline(always)]
    fn ingress(self) -> u32 {
        self.0.ifindex()
    }

    #[inline(always)]
    fn packet(self) -> impl Packet {
        RawFrame::of_raw(self)
    }
}

/// What `finish!` calls of the exit before anything is done to a frame: [`before`] of the reason's index, the backend, the
/// events and the interface that the frame leaves by.
#[inline(always)]
pub fn seen<F: Frames>(ctx: F) -> impl Fn(u32, u16, u32, u32) {
    move |reason, backend, events, egress| {
        let what = u64::from(reason) | u64::from(backend) << 16 | u64::from(events) << 32;
        before(ctx, what, egress);
    }
}

/// Saves a frame as it came, if it matches the filter. `what` is the index of the reason, the backend's id and the
/// events, from its low bits on.
#[inline(never)]
pub fn before<F: Frames>(ctx: F, what: u64, egress: u32) -> u64 {
    let Some(plan) = CAPTURE_PLAN.get(0) else { return 0 };
    let Some(counter) = CAPTURE_COUNTERS.get(cpu()) else { return 0 };
    let Some(scratch) = CAPTURE_SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: the value is this CPU's own, and nothing else holds a reference to it meanwhile.
    let head = unsafe { &mut (*scratch).head };
    counter.seen.bump(1);
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let (reason, backend) = (what as u32 & 0xff, (what >> 16) as u16);
    if now > plan.until
        || plan.verdicts >> (reason & 63) & 1 == 0
        || plan.service != ANY && plan.service != u32::from(head.service)
        || plan.backend != ANY && plan.backend != u32::from(backend)
        || !is_client(ctx, plan)
    {
        return 0;
    }
    counter.matched.bump(1);
    // SAFETY: the helper has no precondition.
    if plan.sample != u32::MAX && unsafe { bpf_get_prandom_u32() } > plan.sample {
        counter.sampled_out.bump(1);
        return 0;
    }
    let Some(budget) = CAPTURE_BUDGETS.get(cpu()) else { return 0 };
    if !token_bucket::take(budget, plan.rate, plan.rate, now) {
        counter.limited.bump(1);
        return 0;
    }
    head.nanos = now;
    head.number = counter.saved.load();
    head.cpu = cpu();
    head.ingress = ctx.ingress();
    head.egress = egress;
    head.reason = reason as u16;
    head.backend = backend;
    head.events = (what >> 32) as u16;
    head.action = 0;
    if save(ctx, plan.snap) == 0 {
        counter.lost.bump(1);
        return 0;
    }
    counter.saved.bump(1);
    head.flags |= flags::SAVED;
    0
}

/// Saves the same frame as it leaves, if [`before`] has saved it. That is noted in the head and not by a value that it
/// returns, which would take stack of the whole decision.
#[inline(never)]
pub fn after<F: Frames>(ctx: F, action: u32) -> u64 {
    let Some(plan) = CAPTURE_PLAN.get(0) else { return 0 };
    let mut saved = false;
    with_head(|head| {
        saved = head.flags & flags::SAVED != 0;
        if saved {
            head.flags |= flags::AFTER;
            head.action = action as u16;
        }
    });
    if !saved {
        return 0;
    }
    save(ctx, plan.snap)
}

/// Whether the packet comes from a client of the filter.
#[inline(always)]
fn is_client<F: Frames>(ctx: F, plan: &Plan) -> bool {
    if plan.mask == [0; 2] {
        return true;
    }
    let frame = ctx.packet();
    let Ok(link) = ethernet::parse(&frame) else { return false };
    let source = match link.ethertype {
        ethernet::IPV4 => match frame.load::<Ipv4>(link.l3) {
            Some(ip) => mapped(ip.source),
            None => return false,
        },
        ethernet::IPV6 => match frame.load::<Ipv6>(link.l3) {
            Some(ip) => ip.source,
            None => return false,
        },
        _ => return false,
    };
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = source;
    let high = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    let low = u64::from_ne_bytes([i, j, k, l, m, n, o, p]);
    high & plan.mask[0] == plan.client[0] && low & plan.mask[1] == plan.client[1]
}

/// Writes what is known of the frame and its first bytes into the ring; 0 if there is no room.
#[inline(never)]
fn save<F: Frames>(ctx: F, snap: u32) -> u64 {
    let Some(scratch) = CAPTURE_SCRATCH.get_ptr_mut(0) else { return 0 };
    let length = ctx.length();
    let wanted = if length < snap { length } else { snap };
    // From 1 to MAX_SNAP, in a form that the verifier can follow.
    let saved = (wanted.wrapping_sub(1) & (MAX_SNAP as u32 - 1)) + 1;
    if saved > length {
        return 0;
    }
    // SAFETY: the value is this CPU's own, and nothing else holds a reference to it meanwhile.
    let Scratch { head, bytes } = unsafe { &mut *scratch };
    head.length = length;
    head.saved = saved;
    let Some(to) = bytes.get_mut(..saved as usize) else { return 0 };
    if !ctx.copy(to) {
        return 0;
    }
    let size = size_of::<Head>() + saved as usize;
    // SAFETY: the scratch has at least `size` bytes, all of them written, as a new map's are.
    let record = unsafe { core::slice::from_raw_parts(scratch.cast::<u8>(), size) };
    // No reader is woken: the daemon polls by itself, which costs the packet nothing.
    let put = CAPTURE_RING.output_untyped::<[u8]>(record, u64::from(BPF_RB_NO_WAKEUP));
    u64::from(put.is_ok())
}

//! The programs of the benchmark: the floors, and the one that restores the frame around the
//! program that is measured.
//!
//! `BPF_PROG_TEST_RUN` with `repeat` gives the next run the frame that the last one left. So
//! `restore` is what is run: it takes off what was put before the frame, writes the headers anew
//! with the flow's address and port, and calls the program behind it by a tail call.
//!
//! With live frames, a test run sends what it makes: `generate` writes each frame and sends it to an
//! interface, whose far end has the program that is measured, and `sink` counts what comes back.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `xdp` makes a public function of its own")]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    helpers::{bpf_ktime_get_ns, bpf_redirect},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    packet::{
        Packet,
        ethernet::Ethernet,
        ipv4::{self, Ipv4},
        number,
    },
    rewrite,
    shared::{SharedU32, SharedU64},
};
use lb_ebpf::frame::Frame;
use zerocopy::network_endian::U16;

/// Bytes of headers that are written anew for each run: Ethernet, IPv6 and TCP fit.
const HEADERS: usize = 80;

/// What is to be run; the benchmark writes it.
#[repr(C)]
pub struct Plan {
    /// The first bytes of every frame.
    headers: [u8; HEADERS],
    /// Bytes of the frame.
    frame_len: SharedU32,
    /// Offset of the four bytes of the client's address that vary.
    address: SharedU32,
    /// Offset of the client's port.
    port: SharedU32,
    /// Number of flows less one; a power of two less one.
    mask: SharedU32,
    /// Runs so far.
    runs: SharedU64,
    /// Bits that every client's address has.
    base: SharedU32,
    /// Where `generate` sends frames.
    ifindex: SharedU32,
    /// When `generate` has begun the first batch, in nanoseconds.
    first: SharedU64,
    /// When it has begun the last one.
    last: SharedU64,
    /// The port of the first service that `restore` sends to; the others' ports follow it.
    service: SharedU32,
    /// Number of services less one; a power of two less one.
    services: SharedU32,
}

/// Frames that a test run with live frames makes before any of them goes further.
const BATCH: u64 = 64;

#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();

/// Frames that `sink` has taken.
#[btf_map]
static SUNK: Array<SharedU64, 1> = Array::new();

#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();

/// Restores the frame, and calls the program that is measured.
#[xdp(frags)]
pub fn restore(ctx: XdpContext) -> u32 {
    prepare(&ctx);
    // SAFETY: the context is the one that the kernel passed in, and it is not used again.
    unsafe { TARGET.tail_call(&ctx, 0) };
    // Reached only if there is nothing to call.
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn prepare(ctx: &XdpContext) -> Option<()> {
    let plan = PLAN.get(0)?;
    let frame = Frame::new(ctx);
    let grown = frame.bytes() as i64 - i64::from(plan.frame_len.load());
    // Also where nothing has grown, so that restoring costs the same whatever is measured.
    if !frame.adjust_head(grown as i32) {
        return None;
    }
    let frame = Frame::new(ctx);
    let flow = write(&frame, plan)?;
    let service = plan.service.load() + (flow & plan.services.load());
    let port = (plan.port.load() & 0x3f) as usize + 2;
    frame.store(port, (service as u16).to_be_bytes()).then_some(())
}

/// Writes the headers of the next frame; the flow that it is of.
#[inline(always)]
fn write(frame: &Frame, plan: &Plan) -> Option<u32> {
    let run = plan.runs.load();
    plan.runs.store(run + 1);
    // An odd factor visits every flow once before any a second time, in no order that a cache
    // could foresee.
    let flow = (run as u32).wrapping_mul(0x9e37_79b1) & plan.mask.load();
    if !frame.store(0, plan.headers) {
        return None;
    }
    let address = plan.base.load() | flow >> 8;
    frame.store((plan.address.load() & 0x3f) as usize, address.to_be_bytes());
    frame.store((plan.port.load() & 0x3f) as usize, (0x0400 | (flow & 0xff) as u16).to_be_bytes());
    Some(flow)
}

/// Writes a frame of IPv4 and sends it to the plan's interface.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let Some(plan) = PLAN.get(0) else { return xdp_action::XDP_ABORTED };
    if plan.runs.load() % BATCH == 0 {
        // SAFETY: the helper has no precondition.
        let now = unsafe { bpf_ktime_get_ns() };
        if plan.first.load() == 0 {
            plan.first.store(now);
        }
        plan.last.store(now);
    }
    let frame = Frame::new(&ctx);
    if write(&frame, plan).is_none() || complete(&frame, plan).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the helper checks the index itself.
    unsafe { bpf_redirect(plan.ifindex.load(), 0) as u32 }
}

/// Adds the client's address to the header's checksum, which was made without it: a kernel that takes
/// the packet looks.
#[inline(always)]
fn complete(frame: &Frame, plan: &Plan) -> Option<()> {
    let client = frame.load::<[u8; 4]>((plan.address.load() & 0x3f) as usize)?;
    let [a, b, c, d] = client.map(u32::from);
    let ip = frame.load::<Ipv4>(14)?;
    let sum = u32::from(!ip.check.get()) + (a << 8 | b) + (c << 8 | d);
    let check = U16::new(!rewrite::fold(sum));
    frame.store(14 + core::mem::offset_of!(Ipv4, check), check).then_some(())
}

/// Lets every frame pass.
#[xdp(frags)]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Takes every frame, and counts it.
#[xdp(frags)]
pub fn sink(_ctx: XdpContext) -> u32 {
    if let Some(sunk) = SUNK.get(0) {
        sunk.store(sunk.load() + 1);
    }
    xdp_action::XDP_DROP
}

/// The lower floor: transmits.
#[xdp(frags)]
pub fn transmit(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// The floor of what rewrites in place: exchanges the MACs, and transmits.
#[xdp(frags)]
pub fn swap(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let Some(ether) = frame.load::<Ethernet>(0) else { return xdp_action::XDP_ABORTED };
    let Ethernet { destination, source, kind } = *ether;
    frame.store(0, Ethernet { destination: source, source: destination, kind });
    xdp_action::XDP_TX
}

/// The floor of what encapsulates: one constant header for every packet.
#[xdp(frags)]
pub fn encapsulate(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let Some(ip) = frame.load::<Ipv4>(14) else { return xdp_action::XDP_ABORTED };
    let total = ip.total_len.get().wrapping_add(ipv4::LEN as u16);
    if !frame.adjust_head(-(ipv4::LEN as i32)) {
        return xdp_action::XDP_ABORTED;
    }
    let frame = Frame::new(&ctx);
    // In words: LLVM copies a header that it knows byte by byte.
    let check = !rewrite::fold(0x8a3c + total as u32);
    let stored = frame.store(14 + 16, [10_u8, 0, 0, 11])
        && frame.store(14 + 12, [172_u8, 16, 1, 2])
        && frame.store(14 + 10, U16::new(check))
        && frame.store(14 + 8, [64_u8, number::IPV4])
        && frame.store(14 + 4, [0_u8; 4])
        && frame.store(14 + 2, U16::new(total))
        && frame.store(14, [0x45_u8, 0])
        && frame.store(8, [4_u8, 4, 4, 4, 8, 0])
        && frame.store(0, [2_u8, 2, 2, 2, 2, 2, 4, 4]);
    if stored { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

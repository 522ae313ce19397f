//! The XDP program of a backend: takes the balancer's outer header off.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro `xdp` makes a public function of its own")]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, HashMap},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    abi::{VerdictCounter, VipKey},
    decap::{
        MAX_SOURCES, REASONS, Reason, Source, Tables, Unlisted, Unwrap, Verdict, decide, mark_v4,
        mark_v6,
    },
    packet::{
        Packet,
        ethernet::{self, Ethernet, Tag},
        ipv4::Ipv4,
        ipv6::Ipv6,
    },
};
use zerocopy::network_endian::U16;

use lb_ebpf::{frame::Frame, pull};

/// `BPF_F_MMAPABLE` (Linux 5.5).
const MMAPABLE: usize = 1 << 10;

/// The host's addresses to which the balancer sends.
#[btf_map]
static DECAP_ADDRESSES: HashMap<VipKey, u32, 64> = HashMap::new();

/// The addresses for which packets may be unwrapped.
#[btf_map]
static DECAP_VIPS: HashMap<VipKey, u32, 512> = HashMap::new();

/// The outer sources whose packets may be unwrapped; an entry that is not used ends the list.
#[btf_map]
static DECAP_SOURCES: Array<Source, { MAX_SOURCES as usize }> = Array::new();

/// Packets and bytes by verdict, [`REASONS`] for each CPU. The loader sizes it.
#[btf_map]
static DECAP_VERDICTS: Array<VerdictCounter, { REASONS as usize }, MMAPABLE> = Array::new();

/// The last packet from a source that is not allowed, for each CPU. The loader sizes it.
#[btf_map]
static DECAP_UNLISTED: Array<Unlisted, 1> = Array::new();

struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn is_address(&self, key: &VipKey) -> bool {
        DECAP_ADDRESSES.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn is_vip(&self, key: &VipKey) -> bool {
        DECAP_VIPS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn is_source(&self, key: &VipKey) -> bool {
        is_source(key) != 0
    }
}

/// Whether a source is in any of the prefixes. Out of line, so that the verifier walks the loop with
/// nothing else in its registers.
#[inline(never)]
fn is_source(key: &VipKey) -> u64 {
    for index in 0..MAX_SOURCES {
        let Some(source) = DECAP_SOURCES.get(index) else { return 0 };
        if source.used == 0 {
            return 0;
        }
        if source.contains(key) {
            return 1;
        }
    }
    0
}

/// Takes every frame of the interface.
#[xdp(frags)]
pub fn decapsulate(ctx: XdpContext) -> u32 {
    walk(&ctx)
}

/// The same for generic mode, as the balancer's `balance_generic` is.
#[xdp]
pub fn decap_generic(ctx: XdpContext) -> u32 {
    walk(&ctx)
}

#[inline(always)]
fn walk(ctx: &XdpContext) -> u32 {
    pull::headers(ctx);
    let frame = Frame::new(ctx);
    let bytes = frame.bytes();
    // SAFETY: the helper has no precondition.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let (reason, action) = match decide(&frame, &Maps) {
        Verdict::Unlisted(source) => {
            record(cpu, &source);
            (Reason::NotASource, xdp_action::XDP_PASS)
        }
        Verdict::Pass(reason) => (reason, xdp_action::XDP_PASS),
        Verdict::Drop(reason) => (reason, xdp_action::XDP_DROP),
        Verdict::Unwrap(unwrap) => match apply(ctx, &frame, &unwrap) {
            Some(()) => (Reason::Unwrapped, xdp_action::XDP_PASS),
            None => (Reason::NoHeadroom, xdp_action::XDP_DROP),
        },
    };
    if let Some(counter) = DECAP_VERDICTS.get(cpu * REASONS + reason.index()) {
        counter.packets.bump(1);
        counter.bytes.bump(bytes as u64);
    }
    action
}

/// Keeps a source that is not allowed, for people.
#[inline(always)]
fn record(cpu: u32, source: &VipKey) {
    let Some(last) = DECAP_UNLISTED.get_ptr_mut(cpu) else { return };
    // SAFETY: the helper has no precondition.
    let at = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the element is this CPU's own, and its programs do not interrupt each other.
    let last = unsafe { &mut *last };
    *last = Unlisted { source: source.address, at, packets: last.packets + 1 };
}

/// Moves the link-layer header over the outer one.
#[inline(always)]
fn apply(ctx: &XdpContext, frame: &Frame, unwrap: &Unwrap) -> Option<()> {
    let kind = U16::new(if unwrap.v6 { ethernet::IPV6 } else { ethernet::IPV4 });
    let mut ether = *frame.load::<Ethernet>(0)?;
    let mut tags = [Tag { tci: U16::ZERO, kind }; 2];
    match unwrap.l3 {
        ethernet::LEN => ether.kind = kind,
        18 => tags[0].tci = frame.load::<Tag>(ethernet::LEN)?.tci,
        _ => {
            tags[0] = *frame.load::<Tag>(ethernet::LEN)?;
            tags[1].tci = frame.load::<Tag>(ethernet::LEN + ethernet::TAG_LEN)?.tci;
        }
    }
    if !frame.adjust_head(unwrap.outer_len as i32) {
        return None;
    }
    let frame = Frame::new(ctx);
    let mut stored = frame.store(0, ether);
    if unwrap.l3 > ethernet::LEN {
        stored &= frame.store(ethernet::LEN, tags[0]);
    }
    if unwrap.l3 > ethernet::LEN + ethernet::TAG_LEN {
        stored &= frame.store(ethernet::LEN + ethernet::TAG_LEN, tags[1]);
    }
    if unwrap.congestion {
        stored &= if unwrap.v6 {
            frame.store(unwrap.l3, mark_v6(*frame.load::<Ipv6>(unwrap.l3)?))
        } else {
            frame.store(unwrap.l3, mark_v4(*frame.load::<Ipv4>(unwrap.l3)?))
        };
    }
    stored.then_some(())
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

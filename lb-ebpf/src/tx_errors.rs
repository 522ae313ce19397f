//! Counts frames that are dropped after an XDP program has returned XDP_TX or XDP_REDIRECT.
//!
//! The program that returned it has counted the frame as sent, and is not notified. The kernel's tracepoints are:
//!
//! | tracepoint | when |
//! |---|---|
//! | `xdp_redirect_err` | the target takes no frames from XDP, is down, gone, or its MTU too small |
//! | `xdp_devmap_xmit` | the target's driver did not take all frames of a batch |
//! | `xdp_exception` | a driver could not transmit what it got XDP_TX for |
//! | `xdp_bulk_tx` | the same for a batch, on a veth |
//!
//! The two for batches come for those that were taken as well, once for up to 16 frames. They are *raw* tracepoints, whose
//! arguments are those of `TP_PROTO` in the kernel's `include/trace/events/xdp.h`: they need neither tracefs nor
//! `perf_event_open`. Interfaces have equal numbers in different network namespaces, so only those of the loader's count.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the macro makes public functions of its own")]

use aya_ebpf::{
    Global,
    bindings::{BPF_NOEXIST, xdp_action},
    btf_maps::PerCpuHashMap,
    helpers::bpf_probe_read_kernel,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use lb_common::tx_errors::{Key, Reason};

/// Where in `struct net_device` its index is.
#[unsafe(no_mangle)]
static DEVICE_IFINDEX: Global<u32> = Global::new(0);
/// Where in `struct net_device` the pointer to its namespace is.
#[unsafe(no_mangle)]
static DEVICE_NET: Global<u32> = Global::new(0);
/// Where in `struct net` the number is by which user space knows it.
#[unsafe(no_mangle)]
static NET_INUM: Global<u32> = Global::new(0);
/// The number of the namespace whose interfaces count.
#[unsafe(no_mangle)]
static NAMESPACE: Global<u32> = Global::new(0);

/// Frames. The room is for combinations of two interfaces and an error; those that find none are not counted.
#[btf_map]
static TX_ERRORS: PerCpuHashMap<Key, u64, 1_024> = PerCpuHashMap::new();

/// A `struct net_device *`.
#[derive(Clone, Copy)]
struct Device(u64);

impl Device {
    /// Reads kernel memory, in which an address that is not mapped is an error and no fault.
    fn read<T>(at: u64) -> Option<T> {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(at as *const T) }.ok()
    }

    fn ifindex(self) -> Option<u32> {
        Self::read(self.0 + u64::from(DEVICE_IFINDEX.load()))
    }

    fn is_ours(self) -> bool {
        let net = Self::read::<u64>(self.0 + u64::from(DEVICE_NET.load()));
        let inum = net.and_then(|net| Self::read::<u32>(net + u64::from(NET_INUM.load())));
        inum == Some(NAMESPACE.load())
    }
}

/// Counts `frames` that came by `from`; `to` is the index of the interface by which they were to leave.
#[inline(always)]
fn count(from: Device, to: u32, reason: Reason, error: i32, frames: u64) -> Option<()> {
    if !from.is_ours() {
        return None;
    }
    let key = Key { ingress: from.ifindex()?, egress: to, reason: reason as u32, error };
    if TX_ERRORS.get_ptr_mut(key).is_none() {
        // Another CPU may be faster; either entry is all zero.
        let _ = TX_ERRORS.insert(key, 0, BPF_NOEXIST.into());
    }
    let counter = TX_ERRORS.get_ptr_mut(key)?;
    // SAFETY: the entry is this CPU's own, and lives as long as the map.
    unsafe { *counter += frames };
    Some(())
}

/// `xdp_redirect_err(dev, prog, tgt, err, map_type, map_id, index)`. Without a map, which the balancer's program has none
/// of for this, `index` is that of the interface.
#[raw_tracepoint(tracepoint = "xdp_redirect_err")]
pub fn redirect_err(ctx: RawTracePointContext) -> i32 {
    let (from, error, to) = (Device(ctx.arg(0)), ctx.arg::<u64>(3), ctx.arg::<u64>(6));
    let _ = count(from, to as u32, Reason::Redirect, error as i32, 1);
    0
}

/// `xdp_devmap_xmit(from_dev, to_dev, sent, drops, err)`.
#[raw_tracepoint(tracepoint = "xdp_devmap_xmit")]
pub fn devmap_xmit(ctx: RawTracePointContext) -> i32 {
    let drops = ctx.arg::<u64>(3) as i32;
    if drops > 0 {
        let (from, to) = (Device(ctx.arg(0)), Device(ctx.arg(1)));
        let (to, error) = (to.ifindex().unwrap_or(0), ctx.arg::<u64>(4) as i32);
        let _ = count(from, to, Reason::Redirect, error, drops as u64);
    }
    0
}

/// `xdp_exception(dev, prog, act)`. For XDP_REDIRECT some drivers call it as well, and `xdp_redirect_err` has counted it.
#[raw_tracepoint(tracepoint = "xdp_exception")]
pub fn exception(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<u64>(2) as u32 == xdp_action::XDP_TX {
        let from = Device(ctx.arg(0));
        let _ = count(from, from.ifindex().unwrap_or(0), Reason::Tx, 0, 1);
    }
    0
}

/// `xdp_bulk_tx(dev, sent, drops, err)`.
#[raw_tracepoint(tracepoint = "xdp_bulk_tx")]
pub fn bulk_tx(ctx: RawTracePointContext) -> i32 {
    let drops = ctx.arg::<u64>(2) as i32;
    if drops > 0 {
        let (from, error) = (Device(ctx.arg(0)), ctx.arg::<u64>(3) as i32);
        let _ = count(from, from.ifindex().unwrap_or(0), Reason::Tx, error, drops as u64);
    }
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

//! The XDP program that takes a tunnel's outer header off, on a backend.
#![no_std]
#![no_main]

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    btf_maps::{Array, HashMap},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::abi::{VerdictCounter, VipKey};

/// `BPF_F_MMAPABLE` (Linux 5.5): the array can be read through memory.
const MMAPABLE: usize = 1 << 10;

/// 1: any inner destination is taken; 0: those in `DECAP_VIPS`.
#[unsafe(no_mangle)]
static DECAP_ANY_VIP: Global<u32> = Global::new(1);

/// The outer destinations that are taken: the host's own addresses.
#[btf_map]
static DECAP_ADDRESSES: HashMap<VipKey, u32, 64> = HashMap::new();

/// The inner destinations that are taken.
#[btf_map]
static DECAP_VIPS: HashMap<VipKey, u32, 512> = HashMap::new();

/// Packets and bytes by verdict, 16 for each CPU. The loader sizes it.
#[btf_map]
static DECAP_VERDICTS: Array<VerdictCounter, 16, MMAPABLE> = Array::new();

/// Takes every frame of the interface.
#[xdp(frags)]
pub fn decapsulate(_ctx: XdpContext) -> u32 {
    let any = VipKey { address: [0; 16] };
    let known = DECAP_ADDRESSES.get_ptr(&any).is_some() || DECAP_VIPS.get_ptr(&any).is_some();
    if (known || DECAP_ANY_VIP.load() != 0)
        && let Some(counter) = DECAP_VERDICTS.get(0)
    {
        counter.packets.bump(1);
    }
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

//! The client's TTL or hop limit, of which a balancer takes one as any router does.

use core::mem::offset_of;

use lb_common::{
    packet::{Packet as _, ipv4::Ipv4, ipv6::Ipv6},
    rewrite,
};
use lb_ebpf::frame::{Context, Frame};
use zerocopy::little_endian::U32;

/// Lowers it by one. The sum of an IPv4 header stays what it was.
#[inline(always)]
pub fn take<C: Context>(frame: &Frame<C>, l3: usize, v6: bool) -> Option<()> {
    if v6 {
        let at = l3 + offset_of!(Ipv6, hop_limit);
        let hop_limit = *frame.load::<u8>(at)?;
        return frame.store(at, hop_limit - 1).then_some(());
    }
    // With the protocol and the checksum, which follow it.
    let at = l3 + offset_of!(Ipv4, ttl);
    let word = frame.load::<U32>(at)?.get();
    frame.store(at, U32::new(rewrite::hop_taken(word))).then_some(())
}

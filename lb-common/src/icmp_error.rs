//! Whether an ICMP error may be sent for a packet: by its source (RFC 1122, 3.2.2; RFC 1812,
//! 4.3.2.7; RFC 4443, 2.4 (e)), and by how many were sent (RFC 1812, 4.3.2.8; RFC 4443, 2.4 (f)).
//! By what the packet is, [`crate::forward`] says.

use crate::{
    abi::{VipKey, mapped},
    steer,
    tables::Tables,
    verdict::Drop,
};

/// ICMP errors that a CPU may send at once at a rate of 1,000 a second, as Linux has it
/// (`icmp_msgs_burst`).
const BURST: u32 = 50;

/// ICMP errors that a CPU may send at once: those of 50 milliseconds, as the clock is coarse, but
/// not fewer than [`BURST`], and never more than those of a second.
#[must_use]
#[inline(always)]
pub const fn burst(rate: u32) -> u32 {
    let burst = if rate / 20 > BURST { rate / 20 } else { BURST };
    if burst < rate { burst } else { rate }
}

/// Whether an IPv4 address, as a number, can be that of one host on a network: not of "this"
/// network, loopback, multicast, reserved, or broadcast.
const fn is_host_v4(source: u32) -> bool {
    !matches!(source >> 24, 0 | 127 | 224..=255)
}

/// The same for IPv6, as its halves: neither unspecified, nor loopback, nor multicast.
const fn is_host_v6(high: u64, low: u64) -> bool {
    high >> 56 != 0xff && (high != 0 || low > 1)
}

/// What [`refusal_v4`] and [`refusal_v6`] return if the error may be sent. No [`Drop`] has this
/// index.
const MAY: u64 = 0;

/// What they return, as a reason.
#[inline(always)]
pub(crate) const fn refused(word: u64) -> Option<Drop> {
    if word == MAY { None } else { Drop::from_index(word as u32) }
}

/// Why no ICMP error may be sent to `source`, an IPv4 address as a number. Takes a token otherwise.
#[inline(never)]
pub fn refusal_v4<T: Tables>(tables: &T, source: u32) -> u64 {
    if !is_host_v4(source) {
        return Drop::IcmpBadSource.index() as u64;
    }
    refusal(tables, &VipKey { address: mapped(source.to_be_bytes()) })
}

/// The same for IPv6, of whose address these are the halves as numbers.
#[inline(never)]
pub fn refusal_v6<T: Tables>(tables: &T, high: u64, low: u64) -> u64 {
    if !is_host_v6(high, low) {
        return Drop::IcmpBadSource.index() as u64;
    }
    let address = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
    refusal(tables, &VipKey { address })
}

/// An error to a VIP would come back here: whoever writes a VIP there has forged it.
#[inline(always)]
fn refusal<T: Tables>(tables: &T, source: &VipKey) -> u64 {
    if tables.is_vip(source) {
        return Drop::IcmpBadSource.index() as u64;
    }
    let rate = tables.icmp_rate();
    let may = match tables.icmp_budget() {
        Some(budget) => steer::take(&budget, rate, burst(rate), tables.now_nanos()),
        None => false,
    };
    if may { MAY } else { Drop::IcmpRateLimited.index() as u64 }
}

//! Whether an ICMP error may be sent for a packet: by its source (RFC 1122, 3.2.2; RFC 1812,
//! 4.3.2.7; RFC 4443, 2.4 (e)), and by how many were sent (RFC 1812, 4.3.2.8; RFC 4443, 2.4 (f)).
//! [`crate::forward`] decides by the kind of the packet.
//!
//! Without the error that a packet was too big, a client's connection stands still, so the limit
//! of the others is none for these (Linux exempts them from its own: `icmpv4_mask_allow()` in
//! net/ipv4/icmp.c). They are limited by their source: a source that is forged, or a client that sends
//! thousands, takes the tokens of the few that share its bucket.

use crate::{
    abi::{TOO_BIG_BUDGETS, VipKey, mapped},
    tables::Tables,
    token_bucket::take,
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

/// Errors that a packet was too big which a CPU may send in a second to all sources of one bucket, if
/// it may send `rate` other ICMP errors: an eighth. None of either if that is 0.
#[must_use]
#[inline(always)]
pub const fn rate_of_source(rate: u32) -> u32 {
    rate.div_ceil(8)
}

/// Which of [`TOO_BIG_BUDGETS`] buckets a source has: an IPv4 address, or the
/// upper half of an IPv6 one, whose lower half is its host's to choose. `key` is odd and secret, so no host
/// knows who shares a bucket with whom (multiply-shift hashing: Dietzfelbinger et al., Journal of
/// Algorithms 25, 1997).
#[must_use]
#[inline(always)]
pub const fn bucket_of_source(source: u64, key: u64) -> u32 {
    (source.wrapping_mul(key) >> (64 - TOO_BIG_BUDGETS.ilog2())) as u32
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

/// Why no ICMP error may be sent to `source`, an IPv4 address as a number; `too_big` is 1 for one that
/// reports a packet as too big, else 0. Takes a token otherwise.
#[inline(never)]
pub fn refusal_v4<T: Tables>(tables: &T, source: u32, too_big: u32) -> u64 {
    if !is_host_v4(source) {
        return Drop::IcmpBadSource.index() as u64;
    }
    refusal(tables, &VipKey { address: mapped(source.to_be_bytes()) }, source.into(), too_big)
}

/// The same for IPv6, of whose address these are the halves as numbers.
#[inline(never)]
pub fn refusal_v6<T: Tables>(tables: &T, high: u64, low: u64, too_big: u32) -> u64 {
    if !is_host_v6(high, low) {
        return Drop::IcmpBadSource.index() as u64;
    }
    let address = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
    refusal(tables, &VipKey { address }, high, too_big)
}

/// An error to a VIP would come back here: a packet with a VIP as its source is forged.
#[inline(always)]
fn refusal<T: Tables>(tables: &T, address: &VipKey, source: u64, too_big: u32) -> u64 {
    if tables.is_vip(address) {
        return Drop::IcmpBadSource.index() as u64;
    }
    let (rate, now) = (tables.icmp_rate(), tables.now_nanos());
    let may = if too_big == 0 {
        tables.icmp_budget().is_some_and(|budget| take(&budget, rate, burst(rate), now))
    } else {
        let rate = rate_of_source(rate);
        let budget = tables.too_big_budget(source);
        budget.is_some_and(|budget| take(&budget, rate, burst(rate), now))
    };
    if may { MAY } else { Drop::IcmpRateLimited.index() as u64 }
}

//! Token buckets, by which pins, ICMP errors and captured packets are limited.

use crate::abi::TokenBucket;

/// Takes a token from a bucket that refills `rate` times a second and holds `burst` of them, which is
/// at most one second's worth. The time that counts as refilled is only what the whole tokens took, so
/// that a slow rate loses nothing to rounding, however coarse the clock is.
#[inline(always)]
pub fn take(bucket: &TokenBucket, rate: u32, burst: u32, now_nanos: u64) -> bool {
    const SECOND: u64 = 1_000_000_000;
    let (rate, burst) = (u64::from(rate), u64::from(burst));
    let mut tokens = u64::from(bucket.tokens.load());
    let refilled = bucket.refilled.load();
    let elapsed = now_nanos.wrapping_sub(refilled);
    if elapsed >= SECOND {
        tokens = burst;
        bucket.refilled.store(now_nanos);
    } else {
        let gained = elapsed * rate / SECOND;
        if gained > 0 {
            tokens = if tokens + gained < burst { tokens + gained } else { burst };
            // Rounded up, which is at most `elapsed`. A rate of 0 gains nothing; the check is for
            // the compiler, which would leave a panic here.
            let took = (gained * SECOND + rate - 1).checked_div(rate).unwrap_or(elapsed);
            bucket.refilled.store(refilled.wrapping_add(took));
        }
    }
    let taken = tokens > 0;
    bucket.tokens.store(if taken { tokens - 1 } else { 0 } as u32);
    taken
}

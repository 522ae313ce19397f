//! How the CPUs share a service's SYN budget.
//!
//! The program takes tokens from a bucket of its CPU, so nothing is atomic. Which CPUs receive is up
//! to the NIC: 8 queues use 8 of 64 CPUs, and an even share would leave seven eighths of the budget
//! unused. So the daemon looks ten times a second at the use of each CPU's bucket, and
//! shares the budget out anew: an eighth of it evenly, with which a CPU begins that
//! received nothing before, the rest by max-min fairness. A CPU gets what it takes and a quarter more, and
//! those that take all they have share the rest. The sum is the budget all the while; only a
//! budget below one token for each CPU is exceeded, since no CPU's share is zero.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use lb_common::abi::TokenBucket;
use lb_model::time::Now;
use lb_plane::DataPlane;

use super::{maps::AppliedMaps, wanted::Wanted};

const SECOND: u64 = 1_000_000_000;
/// The part of a budget that is shared evenly is one of so many.
const EVEN_PART: u32 = 8;
/// A bucket with less than one of so many parts left is spent.
const SPENT_PART: u64 = 8;

/// The last state of the buckets of one service.
#[derive(Debug, Default)]
struct Shares {
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    looked: u64,
    /// By CPU: the tokens that were left, and its demand in a second.
    seen: Vec<(u64, u64)>,
    /// When a bucket was spent last; none: it never was.
    spent: Option<u64>,
}

impl Shares {
    /// Whether a CPU had nothing left of the budget within the last second.
    fn is_spent(&self, now: Now) -> bool {
        let now = u64::try_from(now.mono.as_nanos()).unwrap_or(u64::MAX);
        self.spent.is_some_and(|spent| now.saturating_sub(spent) <= SECOND)
    }

    /// Shares `total` tokens a second out among the CPUs with these buckets. `even` is the share of a
    /// bucket without one.
    fn adapt(&mut self, total: u32, even: u32, now: u64, buckets: &[&TokenBucket]) {
        let elapsed = now.saturating_sub(self.looked);
        let known = self.seen.len() == buckets.len() && (1..=SECOND).contains(&elapsed);
        let before = std::mem::take(&mut self.seen);
        for (cpu, bucket) in buckets.iter().enumerate() {
            let share = match bucket.share.load() {
                0 => u64::from(even),
                share => u64::from(share),
            };
            let left = left(bucket, share, now);
            if left * SPENT_PART < share {
                self.spent = Some(now);
            }
            let demand = match before.get(cpu).filter(|_| known) {
                None => 0,
                Some(&(had, wanted)) => {
                    let untouched = (had + share * elapsed / SECOND).min(share);
                    let taken = untouched.saturating_sub(left);
                    let wants = match taken > 0 && left * SPENT_PART < share {
                        true => u64::from(total),
                        false => taken * SECOND / elapsed * 5 / 4,
                    };
                    wants.max(wanted * 3 / 4)
                }
            };
            self.seen.push((left, demand));
        }
        self.looked = now;
        let demands: Vec<u64> = self.seen.iter().map(|(_, demand)| *demand).collect();
        let shares = fair(total, &demands);
        let all = || buckets.iter().zip(&shares);
        // Shrinking shares first, so that the sum never exceeds the budget.
        let shrinks = |bucket: &TokenBucket, share| match bucket.share.load() {
            0 => share < even,
            before => share < before,
        };
        all()
            .filter(|(bucket, share)| shrinks(bucket, **share))
            .for_each(|(b, s)| b.share.store(*s));
        all().filter(|(b, s)| b.share.load() != **s).for_each(|(b, s)| b.share.store(*s));
    }
}

/// Tokens that a bucket holds.
fn left(bucket: &TokenBucket, share: u64, now: u64) -> u64 {
    let elapsed = now.saturating_sub(bucket.refilled.load());
    if elapsed >= SECOND {
        return share;
    }
    (u64::from(bucket.tokens.load()) + elapsed * share / SECOND).min(share)
}

/// Shares `total` out: something to each CPU, then the demand of each as far as that goes
/// fairly, and the rest evenly.
fn fair(total: u32, demands: &[u64]) -> Vec<u32> {
    let cpus = demands.len() as u32;
    if total <= cpus {
        return vec![total.min(1); demands.len()];
    }
    let floor = (total / EVEN_PART / cpus).max(1);
    let mut shares = vec![floor; demands.len()];
    let mut rest = total - floor * cpus;
    let mut order: Vec<usize> = (0..demands.len()).collect();
    order.sort_by_key(|cpu| demands[*cpu]);
    for (place, &cpu) in order.iter().enumerate() {
        let fair = rest / (cpus - place as u32);
        let wants = demands[cpu].saturating_sub(floor.into());
        let gets = u32::try_from(wants).unwrap_or(u32::MAX).min(fair);
        shares[cpu] += gets;
        rest -= gets;
    }
    let (each, more) = (rest / cpus, rest % cpus);
    for (cpu, share) in (0..).zip(&mut shares) {
        *share += each + u32::from(cpu < more);
    }
    shares
}

/// The shares of all services whose flows are pinned, by the service's id.
#[derive(Debug, Default)]
pub(super) struct PinShares(BTreeMap<u16, Shares>);

impl PinShares {
    /// Whether a CPU had nothing left of a service's budget within the last second.
    pub(super) fn is_spent(&self, service: u16, now: Now) -> bool {
        self.0.get(&service).is_some_and(|shares| shares.is_spent(now))
    }

    /// Shares SYN budgets out among the CPUs.
    pub(super) fn share_out<D: DataPlane>(
        &mut self,
        maps: &mut AppliedMaps<D>,
        wanted: &Wanted,
        now: Now,
    ) -> Result<()> {
        let mut totals = BTreeMap::new();
        for service in wanted.desired().services.values() {
            let Some(value) = maps.applied.services.get(&service.key) else { continue };
            let ring = maps.applied.rings.get(&value.id);
            let pins = ring.is_some_and(|ring| ring.in_flux > 0 || ring.pinned > 0);
            if pins && service.syn_budget > 0 {
                totals.insert(value.id, (service.syn_budget, value.syn_budget));
            }
        }
        let services: BTreeSet<u16> = totals.keys().copied().collect();
        self.0.retain(|id, _| services.contains(id));
        if services.is_empty() {
            return Ok(());
        }
        let nanos = u64::try_from(now.mono.as_nanos()).unwrap_or(u64::MAX);
        maps.plane
            .visit_syn_budgets(&services, &mut |id, buckets| {
                if let Some(&(total, even)) = totals.get(&id) {
                    self.0.entry(id).or_default().adapt(total, even, nanos, buckets);
                }
            })
            .context("share the SYN budgets out")
    }
}

#[cfg(test)]
mod tests {
    use lb_common::token_bucket::take;

    use super::*;

    const TOTAL: u32 = 20_000;
    const CPUS: usize = 64;
    const LOOK: u64 = SECOND / 10;

    /// CPUs, and the daemon that looks at them.
    struct World {
        buckets: Vec<TokenBucket>,
        shares: Shares,
        even: u32,
        now: u64,
    }

    impl World {
        fn new() -> Self {
            let even = TOTAL.div_ceil(CPUS as u32);
            let buckets = (0..CPUS).map(|_| TokenBucket::default()).collect();
            Self { buckets, shares: Shares::default(), even, now: 50 * SECOND }
        }

        /// Passes a tenth of a second in which each CPU has so many SYNs, and looks. Pins that were made.
        fn step(&mut self, syns: impl Fn(usize) -> u32) -> Vec<u32> {
            let mut made = vec![0; CPUS];
            for _ in 0..25 {
                self.now += LOOK / 25;
                for (cpu, bucket) in self.buckets.iter().enumerate() {
                    let rate = match bucket.share.load() {
                        0 => self.even,
                        share => share,
                    };
                    for _ in 0..syns(cpu).div_ceil(25) {
                        made[cpu] += u32::from(take(bucket, rate, rate, self.now));
                    }
                }
            }
            let buckets: Vec<_> = self.buckets.iter().collect();
            self.shares.adapt(TOTAL, self.even, self.now, &buckets);
            let shares = self.buckets.iter().map(|bucket| bucket.share.load());
            assert!(shares.clone().all(|share| share > 0), "no CPU is left without");
            assert_eq!(shares.sum::<u32>(), TOTAL);
            made
        }

        /// Pins that were made in a second.
        fn second(&mut self, syns: impl Fn(usize) -> u32 + Copy) -> Vec<u32> {
            let mut made = vec![0; CPUS];
            for _ in 0..10 {
                made.iter_mut().zip(self.step(syns)).for_each(|(all, more)| *all += more);
            }
            made
        }
    }

    fn sum(made: &[u32]) -> u32 {
        made.iter().sum()
    }

    #[test]
    fn eight_queues_of_64_cpus_get_nearly_the_whole_budget() {
        let mut world = World::new();
        let flood = |cpu: usize| if cpu.is_multiple_of(8) { 5_000 } else { 0 };
        world.second(flood);
        let made = world.second(flood);
        assert!((TOTAL * 85 / 100..=TOTAL).contains(&sum(&made)), "{}", sum(&made));
        let of_one = TOTAL * 85 / 100 / 8;
        assert!(made.iter().step_by(8).all(|made| *made >= of_one), "{made:?}");
    }

    #[test]
    fn a_cpu_that_begins_to_receive_has_its_share_within_half_a_second() {
        let mut world = World::new();
        for _ in 0..3 {
            world.second(|cpu| if cpu == 3 { 5_000 } else { 0 });
        }
        assert!(world.buckets[3].share.load() > TOTAL * 85 / 100);
        let both = |cpu| if cpu == 3 || cpu == 40 { 5_000 } else { 0 };
        assert!(world.step(both)[40] > 0, "it has some from the first");
        for _ in 0..4 {
            world.step(both);
        }
        assert!(world.buckets[40].share.load() > TOTAL * 40 / 100);
        // And alone, all that there is to be had.
        world.second(|cpu| if cpu == 40 { 5_000 } else { 0 });
        world.second(|cpu| if cpu == 40 { 5_000 } else { 0 });
        assert!(world.buckets[40].share.load() > TOTAL * 80 / 100);
    }

    #[test]
    fn a_flood_on_one_cpu_leaves_the_others_what_they_take() {
        let mut world = World::new();
        let syns = |cpu: usize| match cpu {
            0 => 20_000,
            1..=10 => 50,
            _ => 0,
        };
        world.second(syns);
        let made = world.second(syns);
        assert!(made[1..=10].iter().all(|made| *made >= 490), "{made:?}");
        assert!(made[0] > TOTAL / 2, "{made:?}");
    }

    #[test]
    fn a_burst_on_all_cpus_is_no_more_than_a_second_s_budget() {
        let mut world = World::new();
        world.second(|_| 0);
        let made = world.step(|_| 100_000);
        assert!(sum(&made) <= TOTAL + TOTAL / 5, "{}", sum(&made));
    }

    #[test]
    fn a_budget_below_the_number_of_cpus_leaves_each_a_token() {
        assert_eq!(fair(3, &[0, 9, 9, 0]), [1, 1, 1, 1]);
        assert_eq!(fair(0, &[0, 9]), [0, 0]);
        assert_eq!(fair(9, &[0, 0, 100, 0]), [1, 1, 6, 1]);
        assert_eq!(
            fair(u32::MAX, &[u64::MAX; 3]).iter().map(|s| u64::from(*s)).sum::<u64>(),
            u64::from(u32::MAX)
        );
    }
}

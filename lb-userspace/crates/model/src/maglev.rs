//! Weighted Maglev hashing: which backend owns which slot of a ring (Eisenbud et al., "Maglev: A
//! Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4).
//!
//! The table is a pure function of the backends, their weights, the seed and the number of slots,
//! so every node of a group computes the same one. Each backend has a permutation of the slots,
//! from a keyed hash of its address; the backends take turns, and each takes the first slot of its
//! permutation that is still free.

use std::{hash::Hasher as _, net::IpAddr};

use crate::backend_address::BackendAddress;

use siphasher::sip128::{Hasher128 as _, SipHasher24};

/// A slot that no backend has taken.
const FREE: u16 = u16::MAX;

/// A backend of a ring, and its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The backend's address.
    pub address: BackendAddress,
    /// Its share, against the other members' weights; not 0.
    pub weight: u32,
}

/// Gives every slot to a member: the value is an index into `members` in the order of their
/// addresses, whatever order they come in. Without members there are no owners, and the table is
/// empty.
///
/// A member's share is its weight's, to within a slot; one whose share is less than half a slot
/// gets none.
///
/// # Panics
///
/// If `slots` is not a prime below 2^31, or there are more than 65,535 members: the permutations
/// would miss slots.
#[must_use]
pub fn table(members: &[Member], seed: &[u8; 16], slots: u32) -> Vec<u16> {
    assert!(is_prime(slots) && slots < 1 << 31, "a ring of {slots} slots, which is no prime");
    assert!(members.len() <= usize::from(FREE), "{} members of one ring", members.len());
    if members.is_empty() {
        return Vec::new();
    }
    let mut sorted = members.to_vec();
    sorted.sort_unstable_by_key(|member| member.address);
    let mut cursors: Vec<_> =
        sorted.iter().map(|member| Permutation::new(member.address, seed, slots)).collect();
    let mut turns = Turns::new(&sorted);
    let mut owners = vec![FREE; slots as usize];
    // The most frequent test is whether a slot is free: a bit each fits the first-level cache.
    let mut taken = vec![0_u64; (slots as usize).div_ceil(64)];
    let mut left = slots;
    loop {
        for &index in turns.next_round() {
            let cursor = &mut cursors[usize::from(index)];
            let slot = loop {
                let slot = cursor.next(slots);
                let word = &mut taken[slot as usize / 64];
                let bit = 1 << (slot % 64);
                if *word & bit == 0 {
                    *word |= bit;
                    break slot;
                }
            };
            owners[slot as usize] = index;
            left -= 1;
            if left == 0 {
                return owners;
            }
        }
    }
}

/// The order in which a member wants the slots: a start and a stride, which visit every slot of a
/// prime number of them.
struct Permutation {
    position: u32,
    stride: u32,
}

impl Permutation {
    fn new(address: BackendAddress, seed: &[u8; 16], slots: u32) -> Self {
        let mut hasher = SipHasher24::new_with_key(seed);
        match address.ip {
            IpAddr::V4(ip) => hasher.write(&ip.octets()),
            IpAddr::V6(ip) => hasher.write(&ip.octets()),
        }
        if let Some(port) = address.port {
            hasher.write(&port.get().to_be_bytes());
        }
        let hash = hasher.finish128();
        let slots = u64::from(slots);
        Self {
            position: (hash.h1 % slots) as u32,
            stride: (hash.h2 % (slots - 1).max(1) + 1) as u32,
        }
    }

    /// The next slot. A subtraction where the paper has a remainder: both terms are below `slots`.
    fn next(&mut self, slots: u32) -> u32 {
        let slot = self.position;
        let next = slot + self.stride;
        self.position = if next >= slots { next - slots } else { next };
        slot
    }
}

/// The members that take a slot in each round: the heaviest members in every one, the others in proportion.
/// Members of one weight take their turns together, so a round costs one step for each distinct
/// weight, and light members beside a heavy one cost nothing in the rounds that they sit out.
struct Turns {
    groups: Vec<Group>,
    heaviest: u32,
    round: Vec<u16>,
}

struct Group {
    weight: u32,
    credit: u32,
    members: Vec<u16>,
}

impl Turns {
    fn new(sorted: &[Member]) -> Self {
        let mut by_weight = std::collections::BTreeMap::<_, Vec<u16>>::new();
        for (index, member) in (0..).zip(sorted) {
            by_weight.entry(member.weight.max(1)).or_default().push(index);
        }
        let heaviest = by_weight.keys().next_back().copied().unwrap_or(1);
        // Half a turn in hand: shares are rounded to the nearest, not down.
        let group = |(weight, members)| Group { weight, credit: heaviest / 2, members };
        Self { groups: by_weight.into_iter().rev().map(group).collect(), heaviest, round: vec![] }
    }

    fn next_round(&mut self) -> &[u16] {
        self.round.clear();
        for group in &mut self.groups {
            group.credit += group.weight;
            if group.credit >= self.heaviest {
                group.credit -= self.heaviest;
                self.round.extend_from_slice(&group.members);
            }
        }
        &self.round
    }
}

/// Whether a number is prime.
#[must_use]
pub(crate) fn is_prime(n: u32) -> bool {
    let n = u64::from(n);
    n == 2
        || (n > 2 && n % 2 == 1 && (3..).step_by(2).take_while(|d| d * d <= n).all(|d| n % d != 0))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const SEED: [u8; 16] = *b"0123456789abcdef";

    fn members(count: u32) -> Vec<Member> {
        let address = |n: u32| BackendAddress::new(Ipv4Addr::from(0x0a00_0001 + n).into());
        (0..count).map(|n| Member { address: address(n), weight: 1 }).collect()
    }

    fn shares(table: &[u16], members: usize) -> Vec<u32> {
        let mut shares = vec![0; members];
        for &owner in table {
            shares[usize::from(owner)] += 1;
        }
        shares
    }

    /// Section 5.3, figure 12: with a table of 100 times the backends' number the imbalance is at
    /// most 1 %. Taking turns makes it a slot.
    #[test]
    fn equal_weights_have_equal_shares_to_within_a_slot() {
        for (count, slots) in [(3, 65_537), (100, 65_537), (1_000, 65_537), (1_000, 655_373)] {
            let shares = shares(&table(&members(count), &SEED, slots), count as usize);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count} members: {least} to {most} of {slots} slots");
            assert!(f64::from(*most) / f64::from(*least) < 1.02);
        }
    }

    /// Section 5.3, figure 13: of 1,000 backends in 65,537 slots, the loss of one changes the owner
    /// of about 1 % of the other backends' slots, and the larger table's of fewer.
    #[test]
    fn removing_one_member_moves_few_slots_of_the_others() {
        for (count, slots, most) in
            [(1_000, 65_537, 0.02), (1_000, 655_373, 0.01), (10, 65_537, 0.03)]
        {
            let all = members(count);
            let before = table(&all, &SEED, slots);
            let gone = count / 2;
            let mut rest = all.clone();
            rest.remove(gone as usize);
            let after = table(&rest, &SEED, slots);
            let moved = before
                .iter()
                .zip(&after)
                .filter(|&(&old, &new)| {
                    u32::from(old) != gone && all[usize::from(old)] != rest[usize::from(new)]
                })
                .count();
            let share = moved as f64 / f64::from(slots);
            assert!(share < most, "{count} members, {slots} slots: {share} moved besides");
        }
    }

    #[test]
    fn shares_follow_weights() {
        let mut members = members(4);
        for (member, weight) in members.iter_mut().zip([1, 2, 3, 10]) {
            member.weight = weight;
        }
        let shares = shares(&table(&members, &SEED, 65_537), 4);
        for (share, weight) in shares.iter().zip([1.0, 2.0, 3.0, 10.0]) {
            let exact = 65_537.0 * weight / 16.0;
            assert!(
                (f64::from(*share) - exact).abs() <= 2.0,
                "{share} slots where {exact} are due"
            );
        }
    }

    #[test]
    fn one_member_owns_every_slot_and_none_owns_nothing() {
        assert!(table(&members(1), &SEED, 251).iter().all(|&owner| owner == 0));
        assert!(table(&[], &SEED, 251).is_empty());
        assert_eq!(table(&members(3), &SEED, 2).len(), 2);
    }

    #[test]
    fn the_seed_decides_the_table() {
        assert_ne!(table(&members(5), &SEED, 251), table(&members(5), &[7; 16], 251));
    }

    #[test]
    fn primes_are_told_from_other_numbers() {
        let primes: Vec<u32> = (0..30).filter(|&n| is_prime(n)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(
            is_prime(65_537) && is_prime(1_048_573) && !is_prime(65_536) && !is_prime(251 * 251)
        );
    }

    proptest! {
        #[test]
        fn the_order_of_the_input_does_not_matter(
            weights in prop::collection::vec(1_u32..200, 1..40),
            shuffle in any::<prop::sample::Index>(),
        ) {
            let mut input = members(weights.len() as u32);
            for (member, weight) in input.iter_mut().zip(&weights) {
                member.weight = *weight;
            }
            let sorted = table(&input, &SEED, 1_021);
            let middle = shuffle.index(weights.len());
            input.rotate_left(middle);
            input.swap(0, weights.len() / 2);
            prop_assert_eq!(table(&input, &SEED, 1_021), sorted);
        }

        #[test]
        fn every_share_is_its_weights_to_within_a_slot_or_so(
            weights in prop::collection::vec(1_u32..1_000, 1..60),
        ) {
            let mut input = members(weights.len() as u32);
            for (member, weight) in input.iter_mut().zip(&weights) {
                member.weight = *weight;
            }
            let sum: f64 = weights.iter().copied().map(f64::from).sum();
            for (share, weight) in shares(&table(&input, &SEED, 4_093), weights.len()).iter().zip(weights) {
                let exact = 4_093.0 * f64::from(weight) / sum;
                prop_assert!((f64::from(*share) - exact).abs() <= 2.0, "{} of {}", share, exact);
            }
        }
    }
}

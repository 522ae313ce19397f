//! Random numbers that a seed gives again: the same on every machine and with every version of any
//! library.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// One below `end`, which is not 0.
    pub const fn below(&mut self, end: usize) -> usize {
        // The remainder's bias is far below what anybody could see.
        (self.word() % end as u64) as usize
    }

    /// Whether one chance of so many has come.
    pub const fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    /// A time between two, to the millisecond.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let (least, most) = (least.as_millis() as usize, most.as_millis() as usize);
        Duration::from_millis((least + self.below(most - least + 1)) as u64)
    }

    /// One of these, by their weights.
    pub fn weighted<T: Copy>(&mut self, choices: &[(usize, T)]) -> Option<T> {
        let sum = choices.iter().map(|(weight, _)| weight).sum::<usize>();
        let mut left = if sum == 0 { return None } else { self.below(sum) };
        choices.iter().find_map(|&(weight, choice)| {
            let found = left < weight;
            left = left.saturating_sub(weight);
            found.then_some(choice)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_published_numbers() {
        let mut random = Random::new(1_234_567);
        let words = [random.word(), random.word(), random.word()];
        assert_eq!(
            words,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn weights_are_shares() {
        let mut random = Random::new(7);
        let mut found = [0; 3];
        for _ in 0..8_000 {
            found[random.weighted(&[(1, 0), (0, 1), (3, 2)]).unwrap()] += 1;
        }
        assert_eq!(found[1], 0);
        assert!((1_800..2_200).contains(&found[0]), "{found:?}");
        assert_eq!(random.weighted::<u8>(&[(0, 1)]), None);
    }
}

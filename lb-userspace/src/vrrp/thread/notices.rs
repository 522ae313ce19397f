//! Keeps what goes on from being told again and again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long the same is not told again.
const PAUSE: Duration = Duration::from_secs(60);
/// How much is remembered: more differs only if somebody sees to that.
const MOST: usize = 1024;

/// What was told, and when.
#[derive(Debug, Default)]
pub struct Told {
    times: BTreeMap<(String, String), Instant>,
}

impl Told {
    /// Whether `what` of a router is to be told now: it was not for a while.
    pub fn is_new(&mut self, router: &str, what: &str, now: Instant) -> bool {
        let key = (router.to_owned(), what.to_owned());
        if self.times.get(&key).is_some_and(|told| now.duration_since(*told) < PAUSE) {
            return false;
        }
        if self.times.len() >= MOST {
            self.times.retain(|_, told| now.duration_since(*told) < PAUSE);
        }
        if self.times.len() >= MOST {
            return false;
        }
        self.times.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_is_told_once_a_minute() {
        let mut told = Told::default();
        let start = Instant::now();
        assert!(told.is_new("main", "trouble", start));
        assert!(!told.is_new("main", "trouble", start + Duration::from_secs(59)));
        assert!(told.is_new("other", "trouble", start));
        assert!(told.is_new("main", "trouble", start + Duration::from_secs(60)));
    }

    #[test]
    fn stranger_cannot_fill_the_memory() {
        let mut told = Told::default();
        let start = Instant::now();
        for n in 0..10_000 {
            told.is_new("main", &format!("sender {n}"), start);
        }
        assert!(told.times.len() <= MOST);
        assert!(told.is_new("main", "sender 1", start + PAUSE));
    }
}

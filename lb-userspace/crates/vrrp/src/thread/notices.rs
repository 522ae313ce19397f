//! Keeps what goes on from being told again and again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::NoticeKind;

/// How long the same is not told again.
const PAUSE: Duration = Duration::from_secs(60);
/// So much of one kind is told of one router meanwhile: more differs only if somebody sees to that.
const MOST: usize = 32;

/// What was told, and when.
#[derive(Debug, Default)]
pub struct Told {
    times: Vec<(String, NoticeKind, BTreeMap<String, Instant>)>,
}

impl Told {
    /// Whether `what` of a router is to be told now: it was not for a while.
    pub fn is_new(&mut self, router: &str, kind: NoticeKind, what: &str, now: Instant) -> bool {
        let known = self.times.iter().position(|(of, one, _)| of == router && *one == kind);
        let known = known.unwrap_or_else(|| {
            self.times.push((router.to_owned(), kind, BTreeMap::new()));
            self.times.len() - 1
        });
        let times = &mut self.times[known].2;
        let is_fresh = |told: Instant| now.duration_since(told) < PAUSE;
        if times.get(what).is_some_and(|told| is_fresh(*told)) {
            return false;
        }
        if times.len() >= MOST {
            times.retain(|_, told| is_fresh(*told));
        }
        if times.len() >= MOST {
            return false;
        }
        times.insert(what.to_owned(), now);
        true
    }

    /// Forgets the routers that are not any more.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.times.retain(|(of, _, _)| of.is_empty() || is_there(of));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_is_told_once_a_minute() {
        let mut told = Told::default();
        let start = Instant::now();
        let mut is_new = |of, at| told.is_new(of, NoticeKind::Trouble, "trouble", at);
        assert!(is_new("main", start));
        assert!(!is_new("main", start + Duration::from_secs(59)));
        assert!(is_new("other", start));
        assert!(is_new("main", start + Duration::from_secs(60)));
    }

    #[test]
    fn stranger_fills_no_memory_and_hides_nothing_else() {
        let mut told = Told::default();
        let start = Instant::now();
        for n in 0..10_000 {
            told.is_new("main", NoticeKind::Mismatch, &format!("sender {n}"), start);
        }
        assert!(told.times.iter().all(|(_, _, times)| times.len() <= MOST));
        assert!(told.is_new("main", NoticeKind::Trouble, "an address stays", start));
        assert!(told.is_new("other", NoticeKind::Mismatch, "sender 1", start));
        assert!(told.is_new("main", NoticeKind::Mismatch, "sender 1", start + PAUSE));
    }

    #[test]
    fn router_that_is_no_more_is_forgotten() {
        let mut told = Told::default();
        let start = Instant::now();
        assert!(told.is_new("main", NoticeKind::Trouble, "trouble", start));
        told.keep(|router| router != "main");
        assert!(told.times.is_empty());
    }
}

//! Why probes can't be sent: logged once when it begins and once when it is over, however many
//! backends it concerns.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long a trouble must not have come back to be over.
const QUIET: Duration = Duration::from_secs(5);
/// How many are distinguished.
const KINDS: usize = 16;
/// What the others are called together.
const OTHERS: &str = "other reasons";

#[derive(Clone, Copy, Debug)]
struct Trouble {
    probes: u64,
    last: Instant,
}

/// The present troubles by reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Troubles {
    by_reason: BTreeMap<String, Trouble>,
}

impl Troubles {
    /// A probe couldn't be sent; returns whether that is new.
    pub(crate) fn unsent(&mut self, reason: &str, now: Instant) -> bool {
        let is_known = self.by_reason.contains_key(reason);
        let reason = if is_known || self.by_reason.len() < KINDS { reason } else { OTHERS };
        if let Some(trouble) = self.by_reason.get_mut(reason) {
            trouble.probes += 1;
            trouble.last = now;
            return false;
        }
        self.by_reason.insert(reason.into(), Trouble { probes: 1, last: now });
        true
    }

    /// A probe was sent: takes out the troubles that are over, with the number of probes
    /// that each has cost.
    pub(crate) fn sent(&mut self, now: Instant) -> BTreeMap<String, u64> {
        if self.by_reason.is_empty() {
            return BTreeMap::new();
        }
        let is_over = |_: &String, trouble: &mut Trouble| now.duration_since(trouble.last) >= QUIET;
        let over = self.by_reason.extract_if(.., is_over);
        over.map(|(reason, trouble)| (reason, trouble.probes)).collect()
    }

    pub(crate) fn reasons(&self) -> Vec<String> {
        self.by_reason.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_news_once_until_it_is_over() {
        let now = Instant::now();
        let mut troubles = Troubles::default();
        assert!(troubles.unsent("too many open files", now));
        assert!(!troubles.unsent("too many open files", now));
        assert!(troubles.sent(now + QUIET / 2).is_empty(), "it may come back");
        let over = troubles.sent(now + QUIET);
        assert_eq!(over, BTreeMap::from([("too many open files".to_owned(), 2)]));
        assert!(troubles.reasons().is_empty());
        assert!(troubles.unsent("too many open files", now + QUIET));
    }

    #[test]
    fn reasons_without_end_take_no_memory_without_end() {
        let now = Instant::now();
        let mut troubles = Troubles::default();
        let new = (0..1_000).filter(|n| troubles.unsent(&format!("reason {n}"), now)).count();
        assert_eq!(new, KINDS + 1);
        assert_eq!(troubles.reasons().len(), KINDS + 1);
    }
}

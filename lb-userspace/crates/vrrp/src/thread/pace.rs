//! Announcements that have time: repeated ones, and the refresh of each minute.
//!
//! The first announcement of a router that becomes Active goes at once, whatever it takes. All else is
//! spread out, as keepalived's `vrrp_garp_interval` does: switches and hosts take ARP by their CPU,
//! many limit it, and hundreds of frames at once would keep what else this node sends waiting.

use std::{
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

use crate::machine::Name;

/// So many addresses are announced at once,
const BURST: usize = 10;
/// and the next ones so much later: a thousand a second.
const APART: Duration = Duration::from_millis(10);

/// Announcements that are to be made.
#[derive(Default)]
pub struct Pace {
    waiting: VecDeque<Waiting>,
    next_at: Option<Instant>,
}

struct Waiting {
    name: Name,
    /// Rounds of all its addresses that are left.
    rounds: u8,
    /// The next address of this round.
    next: usize,
    /// Whether other owners of them are requested in this round.
    requests_owners: bool,
}

/// Addresses that are to be announced now.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn {
    /// The router.
    pub name: Name,
    /// Which of its addresses.
    pub addresses: Range<usize>,
    /// Whether other owners of them are requested.
    pub requests_owners: bool,
}

impl Pace {
    /// All addresses of a router are to be announced so many times, unless they are already.
    pub fn add(&mut self, name: &Name, rounds: u8, requests_owners: bool) {
        if rounds > 0 && !self.waiting.iter().any(|waiting| waiting.name == *name) {
            self.waiting.push_back(Waiting {
                name: Name::clone(name),
                rounds,
                next: 0,
                requests_owners,
            });
        }
    }

    /// When something is to be announced.
    pub fn deadline(&self) -> Option<Instant> {
        self.next_at.filter(|_| !self.waiting.is_empty())
    }

    /// What is to be announced now. `count` gives the number of a router's addresses; none: it holds none.
    pub fn turn(&mut self, now: Instant, count: impl Fn(&Name) -> Option<usize>) -> Vec<Turn> {
        let mut turns = Vec::new();
        if self.waiting.is_empty() || self.next_at.is_some_and(|at| now < at) {
            return turns;
        }
        let mut room = BURST;
        while room > 0
            && let Some(mut one) = self.waiting.pop_front()
        {
            let Some(all) = count(&one.name).filter(|all| *all > 0) else { continue };
            let begin = one.next.min(all);
            let end = all.min(begin + room);
            room -= end - begin;
            let name = Name::clone(&one.name);
            turns.push(Turn { name, addresses: begin..end, requests_owners: one.requests_owners });
            one.next = end;
            if end == all {
                (one.next, one.requests_owners) = (0, false);
                one.rounds -= 1;
            }
            if one.rounds > 0 {
                self.waiting.push_back(one);
            }
        }
        self.next_at = Some(now + APART);
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hundreds_of_addresses_are_announced_a_few_at_a_time_and_all_of_them() {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        let (many, one) = (Name::from("many"), Name::from("one"));
        let count = |name: &Name| Some(if *name == many { 255 } else { 1 });
        pace.add(&many, 4, true);
        pace.add(&one, 4, false);
        // Once is enough.
        pace.add(&one, 4, false);
        let (mut announced, mut requested) = ([[0; 255], [0; 255]], 0);
        let mut last: Option<Instant> = None;
        for millis in 0.. {
            let now = begun + Duration::from_millis(millis);
            let turns = pace.turn(now, count);
            let frames: usize = turns.iter().map(|turn| turn.addresses.len()).sum();
            assert!(frames <= BURST, "{frames} at once");
            if frames > 0 {
                assert!(last.is_none_or(|last| now - last >= APART), "after {millis} ms");
                last = Some(now);
            }
            for turn in turns {
                requested += if turn.requests_owners { turn.addresses.len() } else { 0 };
                for address in turn.addresses {
                    announced[usize::from(turn.name == one)][address] += 1;
                }
            }
            match pace.deadline() {
                Some(at) => assert!(at > now),
                None => break,
            }
        }
        assert_eq!((announced[0], requested), ([4; 255], 255));
        assert_eq!((announced[1][0], announced[1][1]), (4, 0));
    }

    #[test]
    fn a_router_that_holds_its_addresses_no_more_is_left_out() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.add(&Name::from("gone"), 4, false);
        assert_eq!((pace.turn(now, |_| None), pace.deadline()), (Vec::new(), None));
    }
}

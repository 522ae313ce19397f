//! The queue of announcements that are not urgent: repeated ones, and the refresh of each minute.
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

/// Most addresses that are announced at once.
const BURST: usize = 10;
/// The time between two bursts: a thousand addresses a second.
const BURST_INTERVAL: Duration = Duration::from_millis(10);

/// The routers whose addresses are to be announced, in order.
#[derive(Default)]
pub(crate) struct AnnouncementQueue {
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
pub(crate) struct DueAnnouncement {
    /// The router.
    pub name: Name,
    /// Which of its addresses.
    pub addresses: Range<usize>,
    /// Whether other owners of them are requested.
    pub requests_owners: bool,
}

impl AnnouncementQueue {
    /// All addresses of a router are to be announced so many times, unless they are already.
    pub(crate) fn add(&mut self, name: &Name, rounds: u8, requests_owners: bool) {
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

    /// Takes the announcements that are due now. `count` gives the number of a router's addresses; none: it holds none.
    pub(crate) fn take_due(
        &mut self,
        now: Instant,
        count: impl Fn(&Name) -> Option<usize>,
    ) -> Vec<DueAnnouncement> {
        let mut due = Vec::new();
        if self.waiting.is_empty() || self.next_at.is_some_and(|at| now < at) {
            return due;
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
            due.push(DueAnnouncement {
                name,
                addresses: begin..end,
                requests_owners: one.requests_owners,
            });
            one.next = end;
            if end == all {
                (one.next, one.requests_owners) = (0, false);
                one.rounds -= 1;
            }
            if one.rounds > 0 {
                self.waiting.push_back(one);
            }
        }
        self.next_at = Some(now + BURST_INTERVAL);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hundreds_of_addresses_are_announced_a_few_at_a_time_and_all_of_them() {
        let (mut queue, begun) = (AnnouncementQueue::default(), Instant::now());
        let (many, one) = (Name::from("many"), Name::from("one"));
        let count = |name: &Name| Some(if *name == many { 255 } else { 1 });
        queue.add(&many, 4, true);
        queue.add(&one, 4, false);
        // Once is enough.
        queue.add(&one, 4, false);
        let (mut announced, mut requested) = ([[0; 255], [0; 255]], 0);
        let mut last: Option<Instant> = None;
        for millis in 0.. {
            let now = begun + Duration::from_millis(millis);
            let due = queue.take_due(now, count);
            let frames: usize = due.iter().map(|announcement| announcement.addresses.len()).sum();
            assert!(frames <= BURST, "{frames} at once");
            if frames > 0 {
                assert!(last.is_none_or(|last| now - last >= BURST_INTERVAL), "after {millis} ms");
                last = Some(now);
            }
            for announcement in due {
                requested +=
                    if announcement.requests_owners { announcement.addresses.len() } else { 0 };
                for address in announcement.addresses {
                    announced[usize::from(announcement.name == one)][address] += 1;
                }
            }
            match queue.deadline() {
                Some(at) => assert!(at > now),
                None => break,
            }
        }
        assert_eq!((announced[0], requested), ([4; 255], 255));
        assert_eq!((announced[1][0], announced[1][1]), (4, 0));
    }

    #[test]
    fn a_router_that_holds_its_addresses_no_more_is_left_out() {
        let (mut queue, now) = (AnnouncementQueue::default(), Instant::now());
        queue.add(&Name::from("gone"), 4, false);
        assert_eq!((queue.take_due(now, |_| None), queue.deadline()), (Vec::new(), None));
    }
}

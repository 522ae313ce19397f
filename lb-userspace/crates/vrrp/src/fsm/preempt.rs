//! Taking over from a lower router that is Active: what puts it off, and until when.
//!
//! Flows that are not known here, and an order by which it gave way, put it off. Neither does so against
//! a router that has lowered its priority while it was Active: what it tracks has failed there, and it
//! needs a successor. An advertisement carries the priority as it is, not the configured one, so the
//! highest that this sender has advertised since its first advertisement as Active stands for that. A Backup that
//! begins later can't know of a fall; so missing flows put it off for [`LONGEST_WAIT`] at most. Nor does one that
//! has given way learn what has lowered the other router before: the flow sync's peer reports it, which ends the
//! order. It ends no wait for flows, which such a peer is about to send.
//!
//! With the flow sync, a router that would preempt sends that to its peer (`RouterState::wants`), and the Active node
//! begins a handover: the router becomes Active when it has the last pins. If there is no handover within three
//! seconds, it preempts as the RFC has it.

use std::time::{Duration, Instant};

use lb_model::router::{OWNER, State};

use super::VirtualRouter;

/// How long flows that are not known here put preemption off. A peer that can be reached has sent them
/// long before.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl VirtualRouter {
    /// Why it does not take over from a lower one, though it is configured to.
    #[must_use]
    pub fn holds_back(&self, now: Instant) -> Option<String> {
        if self.state == State::Active {
            None
        } else if self.assessment.draining {
            Some("the node is draining".into())
        } else if self.has_fallen() {
            None
        } else {
            let in_time = |since| now.saturating_duration_since(since) < LONGEST_WAIT;
            let waits = self.lacks_since.is_none_or(in_time);
            self.order().or_else(|| self.lacks().filter(|_| waits))
        }
    }

    /// By which order it, or another router of its sync group, has given way, unless that has ended.
    fn order(&self) -> Option<String> {
        if self.assessment.lowered_there && !self.assessment.drains_there {
            return None;
        }
        let own = self.abstains.then(|| "it has given way by an order".to_owned());
        own.or_else(|| self.assessment.abstains.clone())
    }

    /// Whether lower advertisements are discarded, so that the timer runs out. Asking begins the
    /// preempt delay.
    pub(super) fn may_preempt(&mut self, now: Instant) -> bool {
        let owner = self.priority() == OWNER;
        self.lacks_since = self.lacks().map(|_| self.lacks_since.unwrap_or(now));
        if self.holds_back(now).is_some() || !(owner || self.settings.preempt) {
            self.could_since = None;
            return false;
        }
        let since = *self.could_since.get_or_insert(now);
        owner || now.saturating_duration_since(since) >= self.settings.preempt_delay
    }

    /// It is not higher than the Active router, so nothing is put off.
    pub(super) fn has_no_claim(&mut self) {
        (self.could_since, self.lacks_since) = (None, None);
    }

    /// What of the Active router's flows is not known here, if so.
    pub(super) fn lacks(&self) -> Option<String> {
        let known = self.assessment.known_after;
        if known.is_some_and(|known| known < self.tally.transitions) {
            Some("it is not known yet whether the flows of another node are known here".into())
        } else {
            self.assessment.holds_back.clone()
        }
    }

    /// Whether the Active router has lowered its priority, for another reason than that its node drains:
    /// that one hands over when its flows are known.
    fn has_fallen(&self) -> bool {
        let last = self.last_adverts.iter().flatten().max_by_key(|last| last.at);
        !self.assessment.drains_there && last.is_some_and(|last| last.priority < last.highest)
    }
}

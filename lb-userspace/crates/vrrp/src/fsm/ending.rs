//! How a router ceases to be Active by an order, without a time in which no router is.

use std::{net::IpAddr, time::Instant};

use lb_model::router::State;

use super::{Action, LastAdvertisement, ReceivedAdvertisement, VirtualRouter};
use crate::Yield;

/// It is about to cease.
#[derive(Debug)]
pub(super) struct Yielding {
    /// How others learn of it.
    pub how: Yield,
    /// When it is given up.
    pub until: Instant,
    /// Whether the daemon waits for [`Action::Yielded`].
    pub owed: bool,
    /// Whether the router ends then, and whether its addresses go in any case.
    pub stop: Option<bool>,
}

impl VirtualRouter {
    /// Whether it advertises that it leaves.
    pub(super) fn is_leaving(&self) -> bool {
        self.when.yielding.as_ref().is_some_and(|yielding| yielding.how == Yield::Advertised)
    }

    pub(super) fn active_yield(&mut self, how: Yield, now: Instant, out: &mut Vec<Action>) {
        if let Some(Yielding { owed, stop: Some(_), .. }) = &mut self.when.yielding {
            // It is leaving for good already.
            *owed = true;
            return;
        }
        // Advertisements that were sent are not taken back.
        let how = if self.is_leaving() { Yield::Advertised } else { how };
        let until = now + self.limit_of(how);
        self.when.yielding = Some(Yielding { how, until, owed: true, stop: None });
        self.advertise_end(now, out);
    }

    pub(super) fn active_stop(&mut self, release: bool, now: Instant, out: &mut Vec<Action>) {
        if let Some(Yielding { stop: Some(stop), .. }) = &mut self.when.yielding {
            *stop |= release;
            return;
        }
        let owed = self.when.yielding.as_ref().is_some_and(|yielding| yielding.owed);
        let until = now + self.yield_limit();
        self.when.yielding =
            Some(Yielding { how: Yield::Advertised, until, owed, stop: Some(release) });
        self.advertise_end(now, out);
    }

    /// RFC 9568, 6.4.3: "Send an ADVERTISEMENT with Priority = 0". It is sent again in each interval,
    /// as it may be lost; other advertisements are not answered any more.
    fn advertise_end(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.when.answer_at = None;
        if self.is_leaving() {
            out.push(Action::Advertise { priority: 0 });
            self.sent(now);
        }
    }

    /// It is to be Active after all.
    pub(super) fn active_take(&mut self, now: Instant, out: &mut Vec<Action>) {
        match self.when.yielding.take() {
            None => {}
            // What ends is not begun again.
            Some(yielding) if yielding.stop.is_some() => self.when.yielding = Some(yielding),
            Some(yielding) => {
                if yielding.how == Yield::Advertised {
                    out.push(Action::Advertise { priority: self.priority() });
                    self.sent(now);
                }
                out.push(Action::Yielded(Err("it was ordered to take over again".into())));
            }
        }
    }

    /// Another router is Active.
    pub(super) fn has_yielded(
        &mut self,
        advert: &ReceivedAdvertisement,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(yielding) = self.when.yielding.take() else { return };
        // Priority 0 lets the other one stay, whatever its priority is, and announce itself once more
        // when the addresses are off here.
        out.extend([Action::Release, Action::Advertise { priority: 0 }]);
        let cause = format!("{} has taken over", advert.from);
        let abstains = yielding.how != Yield::Outranked;
        self.end_yield(yielding, State::Backup, Ok(advert.from), cause, now, out);
        if self.state == State::Backup {
            self.abstains = abstains;
            self.last_adverts = [None; 2];
            self.note(advert, now);
            self.learn(advert.interval);
            self.timer = Some(now + self.down(self.active_interval));
        }
    }

    pub(super) fn nobody_took_over(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(yielding) = self.when.yielding.take() else { return };
        let limit = self.limit_of(yielding.how);
        let why = format!("no other router has become active within {limit:?}");
        match yielding.stop {
            Some(release) => {
                if release {
                    out.push(Action::Release);
                }
                let kept = if release { "" } else { ": the addresses stay" };
                let cause = format!("{why}{kept}");
                self.end_yield(yielding, State::Active, Err(why), cause, now, out);
            }
            None => {
                if yielding.how == Yield::Advertised {
                    out.push(Action::Advertise { priority: self.priority() });
                    self.sent(now);
                }
                out.push(Action::Yielded(Err(why)));
            }
        }
    }

    /// A yield has led to this state, or to the end.
    pub(super) fn end_yield(
        &mut self,
        yielding: Yielding,
        to: State,
        by: Result<IpAddr, String>,
        cause: String,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let stops = yielding.stop.is_some();
        if stops {
            self.enter(State::Initialize, format!("it was stopped: {cause}"), now, out);
        } else {
            self.enter(to, cause, now, out);
        }
        if yielding.owed {
            out.push(Action::Yielded(by));
        }
        if stops {
            out.push(Action::Stopped);
        }
    }

    /// There is nothing to give up; but it does not take over again either.
    pub(super) fn yield_without_being_active(&mut self, now: Instant, out: &mut Vec<Action>) {
        let down = self.down(self.active_interval);
        let fresh = |last: &&LastAdvertisement| now.saturating_duration_since(last.at) < down;
        let active = self.last_adverts.iter().flatten().find(fresh).map(|last| last.from);
        self.abstains |= active.is_some() && self.state == State::Backup;
        out.push(Action::Yielded(active.ok_or_else(|| {
            format!("it is in state {}, and no other router has advertised", self.state)
        })));
    }
}

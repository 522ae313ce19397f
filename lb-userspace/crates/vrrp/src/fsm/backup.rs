//! Initialize and Backup: how a router becomes Active, and what keeps it from that.

use super::{active::Displaced, *};

impl VirtualRouter {
    /// RFC 9568, 6.4.1.
    pub(super) fn start(&mut self, inherited: bool, now: Instant, out: &mut Vec<Action>) {
        self.active_interval = self.settings.interval;
        self.learnt = false;
        self.last_adverts = [None; 2];
        self.abstains = false;
        if let Some(fault) = self.assessment.fault.clone() {
            if inherited {
                out.push(Action::Release);
            }
            self.enter(State::Fault, fault, now, out);
        } else if self.priority() == OWNER {
            self.become_active("it owns the addresses", None, now, out);
        } else {
            let cause = "it has begun, and listens whether another router is active";
            self.enter(State::Backup, cause, now, out);
            self.when.inherited = inherited;
            // Others still count by its predecessor's advertisements, so it has no time to lose.
            let wait = if inherited { self.short_listening() } else { self.initial_down() };
            self.timer = Some(now + wait);
        }
    }

    /// Its fault has ended: it begins anew.
    pub(super) fn recover(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.priority() == OWNER && self.may_preempt(now) {
            self.become_active("its fault has ended, and it owns the addresses", None, now, out);
        } else {
            self.enter(State::Backup, "its fault has ended", now, out);
            self.listen_for_active(now);
        }
    }

    /// In a fault it learns by which interval it will have to listen.
    pub(super) fn fault_receive(&mut self, advert: &ReceivedAdvertisement, now: Instant) {
        self.note(advert, now);
        if advert.priority > 0 {
            self.learn(advert.interval);
        }
    }

    /// Waits Active_Down_Interval: by what it has learnt before, if that is longer than the own interval.
    pub(super) fn listen_for_active(&mut self, now: Instant) {
        let own = self.settings.interval;
        self.active_interval = if self.learnt { self.active_interval.max(own) } else { own };
        let wait = if self.learnt { self.down(self.active_interval) } else { self.initial_down() };
        self.timer = Some(now + wait);
    }

    /// Backup below a router that advertises.
    pub(super) fn become_backup(
        &mut self,
        advert: &ReceivedAdvertisement,
        cause: impl Into<String>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        self.learn(advert.interval);
        self.last_adverts = [None; 2];
        self.note(advert, now);
        self.enter(State::Backup, cause, now, out);
        self.timer = Some(now + self.down(self.active_interval));
    }

    pub(super) fn backup_receive(
        &mut self,
        advert: ReceivedAdvertisement,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if advert.priority == 0 {
            // RFC 9568, 6.4.2: the Active router leaves, so only the skew time is waited. What one
            // that isn't the Active router leaves changes nothing.
            let active = self.last_adverts[usize::from(advert.second_path)];
            if active.is_none_or(|active| active.from == advert.from) {
                self.note(&advert, now);
                self.when.left = Some(advert.from);
                self.wait_at_most(self.skew(self.active_interval), now);
            }
            return;
        }
        let first = self.active().is_none();
        self.note(&advert, now);
        let lower = advert.priority < self.priority();
        if !lower {
            self.has_no_claim();
        }
        let discarded = lower && self.may_preempt(now) && !self.assessment.handed_over;
        self.when.left = None;
        if std::mem::take(&mut self.when.inherited) {
            // What the predecessor left is another router's by now.
            out.push(Action::Release);
            self.timer = Some(now + self.down(self.active_interval));
        }
        if !discarded {
            if first {
                self.cause = format!("{} is active", advert.from);
            }
            self.learn(advert.interval);
            self.timer = Some(now + self.down(self.active_interval));
            self.when.listened = false;
        } else if !self.learnt {
            // It takes over from this one, and need not listen for others any longer.
            self.learn(advert.interval);
            self.wait_at_most(self.down(self.active_interval), now);
        }
    }

    fn wait_at_most(&mut self, wait: Duration, now: Instant) {
        let soon = now + wait;
        self.timer = Some(self.timer.map_or(soon, |timer| timer.min(soon)));
    }

    pub(super) fn backup_timer(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(timer) = self.timer.filter(|timer| *timer <= now) else { return };
        let late = now.saturating_duration_since(timer);
        if late >= self.down(self.active_interval) && !self.when.listened {
            return self.backup_stalled(now, out);
        }
        let cause = self.reason_to_take_over();
        let displaced = self.displace(false, now);
        self.become_active(cause, displaced, now, out);
    }

    /// It wasn't run, and perhaps its host wasn't: that nothing was received then proves nothing.
    fn backup_stalled(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.when.listened = true;
        self.timer = self.timer.max(Some(now + self.short_listening()));
        self.notice(NoticeKind::Stalled, "it was not run in time", "it listens once more", out);
    }

    fn reason_to_take_over(&self) -> String {
        let own = self.priority();
        match (self.when.left, self.last_adverts.iter().flatten().next()) {
            _ if self.when.inherited => "it was active before, and nobody else is".into(),
            (Some(left), _) => format!("{left} has left"),
            (None, Some(last)) if self.could_since.is_some() && last.priority < own => {
                let lacks =
                    self.lacks().map_or_else(String::new, |lacks| format!(", though {lacks}"));
                let LastAdvertisement { priority, from, .. } = last;
                format!("its priority {own} is higher than the {priority} of {from}{lacks}")
            }
            (None, Some(last)) => format!("{} is silent", last.from),
            (None, None) => "nobody else is active".into(),
        }
    }

    pub(super) fn take(&mut self, now: Instant, out: &mut Vec<Action>) {
        let displaced = self.displace(true, now);
        self.become_active("it was ordered to take over", displaced, now, out);
    }

    /// The router that was Active until now won't be; its further advertisements are expected.
    pub(super) fn displace(&self, by_order: bool, now: Instant) -> Option<Displaced> {
        let fresh = |last: &LastAdvertisement| {
            by_order || now.saturating_duration_since(last.at) < self.short_listening()
        };
        let from = self.last_adverts.map(|last| last.filter(fresh).map(|last| last.from));
        let wait = if by_order { self.yield_limit() } else { self.short_listening() };
        Some(Displaced { from, until: now + wait, by_order })
    }

    /// It is not wanted any more, whatever the state: it ends at once.
    pub fn retire(&mut self, now: Instant, out: &mut Vec<Action>) {
        let yielding = self.when.yielding.take();
        if self.state == State::Active {
            out.extend([Action::Advertise { priority: 0 }, Action::Release]);
        } else if self.when.inherited {
            out.push(Action::Release);
        }
        let cause = "it is not configured any more";
        if self.state != State::Initialize {
            self.enter(State::Initialize, cause, now, out);
        }
        if yielding.is_some_and(|yielding| yielding.owed) {
            out.push(Action::Yielded(Err(cause.into())));
        }
        out.push(Action::Stopped);
    }

    pub(super) fn backup_stop(&mut self, release: bool, now: Instant, out: &mut Vec<Action>) {
        if self.when.inherited && release {
            out.push(Action::Release);
        }
        self.enter(State::Initialize, "it was stopped", now, out);
        out.push(Action::Stopped);
    }
}

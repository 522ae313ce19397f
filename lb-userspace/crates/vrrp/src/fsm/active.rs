//! Active: advertising, announcing, and giving way when another router is Active too.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_model::router::{Announce, State};

use super::{Action, ReceivedAdvertisement, VirtualRouter};
use crate::NoticeKind;

/// One sender is answered so often in an interval: once for its advertisement, and once more for its
/// last one, if it gives way to the answer.
const ANSWERS: u8 = 2;
/// A sender that was not answered for so long, and for two intervals, is reported again.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// So many senders are distinguished and reported until they are forgotten: a host that makes up more
/// adds nothing new.
const SENDERS: usize = 16;
/// So many advertisements announce a longer interval at the pace of the shorter one.
const HURRIED: u8 = 3;
/// How many intervals an equal router is borne, when another router decides.
const PATIENCE: u32 = 2;

/// So many answers are announced however soon they follow each other.
const ANNOUNCED: u8 = 4;
/// Then one in so long: a router that does not receive this one's advertisements goes on for ever, and each announcement
/// is a broadcast for each address.
const ANNOUNCE_GAP: Duration = Duration::from_millis(100);

/// Announcements in answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answers {
    /// The last one, and how many were soon after another.
    last: Option<(Instant, u8)>,
    /// One that was put off.
    pub due: Option<Instant>,
}

/// The router that it has replaced knowingly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Displaced {
    /// By path; none: nothing was received there.
    pub from: [Option<IpAddr>; 2],
    /// Until then, it may not have received an advertisement of it.
    pub until: Instant,
    /// Whether it was requested to give way, and does so whatever the priorities are.
    pub by_order: bool,
}

impl Displaced {
    /// A router that was requested to give way, but never seen on a path, is the first one that is seen there now.
    fn with(mut self, advert: &ReceivedAdvertisement) -> Self {
        if self.by_order {
            self.from[usize::from(advert.second_path)].get_or_insert(advert.from);
        }
        self
    }

    fn is(&self, advert: &ReceivedAdvertisement, now: Instant) -> bool {
        now < self.until && self.from[usize::from(advert.second_path)] == Some(advert.from)
    }
}

impl VirtualRouter {
    pub(super) fn become_active(
        &mut self,
        cause: impl Into<String>,
        displaced: Option<Displaced>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        // The advertisement is first, as it is quick and stops others from doing the same.
        out.extend([
            Action::Advertise { priority: self.priority() },
            Action::Hold,
            Action::Announce,
        ]);
        self.enter(State::Active, cause, now, out);
        self.abstains = false;
        self.when.displaced = displaced;
        self.sent(now);
        self.plan_announcement(now, false);
    }

    /// Advertises, and begins the interval anew.
    fn advertise(&mut self, now: Instant, out: &mut Vec<Action>) {
        out.push(Action::Advertise { priority: self.priority() });
        self.sent(now);
    }

    pub(super) fn sent(&mut self, now: Instant) {
        let pace = match &mut self.when.hurry {
            Some((left, pace)) => {
                let pace = *pace;
                *left -= 1;
                if *left == 0 {
                    self.when.hurry = None;
                }
                pace
            }
            None => self.settings.interval,
        };
        self.when.sent = Some(now);
        self.timer = Some(now + pace);
    }

    /// When the addresses are announced next; `later`: the one after the delay is over.
    pub(super) fn plan_announcement(&mut self, now: Instant, later: bool) {
        let Announce { delay, refresh, .. } = self.settings.announce;
        let wait = if later || delay.is_zero() { refresh } else { delay };
        self.when.announce_at = (!wait.is_zero()).then(|| now + wait);
    }

    /// Whether others have had the time to take over since its last advertisement.
    fn is_late(&self, now: Instant) -> bool {
        let down = self.down(self.settings.interval);
        self.when.sent.is_some_and(|sent| now.saturating_duration_since(sent) >= down)
    }

    pub(super) fn active_timer(&mut self, now: Instant, out: &mut Vec<Action>) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.timer) && self.is_late(now) && !self.is_yielding() {
            return self.active_stalled(now, out);
        }
        if due(self.when.yielding.as_ref().map(|yielding| yielding.until)) {
            self.nobody_took_over(now, out);
            if self.state != State::Active {
                return;
            }
        }
        if due(self.when.answer_at) {
            self.when.answer_at = None;
            self.advertise(now, out);
            self.announce_answer(now, out);
        }
        if due(self.timer) {
            // RFC 9568, 6.4.3: "If the Adver_Timer fires".
            let timer = self.timer.unwrap_or(now);
            if self.is_leaving() {
                out.push(Action::Advertise { priority: 0 });
                self.sent(now);
            } else {
                self.advertise(now, out);
            }
            // A little lateness does not add up.
            let next = self.timer.unwrap_or(now) - now.saturating_duration_since(timer);
            if next > now {
                self.timer = Some(next);
            }
        }
        if due(self.when.answers.due) {
            self.announce_answer(now, out);
        }
        if due(self.when.announce_at) {
            out.push(Action::Announce);
            self.plan_announcement(now, true);
        }
    }

    /// It wasn't run for as long as others wait. No other router has advertised, or it would be Backup by now.
    fn active_stalled(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.advertise(now, out);
        out.push(Action::Announce);
        let why = "no other router has advertised meanwhile: it goes on";
        self.notice(NoticeKind::Stalled, "it was not run in time", why, out);
    }

    pub(super) fn active_receive(
        &mut self,
        advert: ReceivedAdvertisement,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if advert.priority == 0 {
            // RFC 9568, 6.4.3: another one has ceased, and this one advertises itself. But not if
            // it has announced itself that it leaves.
            if !self.is_leaving() {
                self.answer(&advert, now, out);
            }
        } else if self.is_yielding() {
            self.has_yielded(&advert, now, out);
        } else if self.is_late(now) {
            self.give_way_after_a_stall(&advert, now, out);
        } else {
            self.contest(&advert, now, out);
        }
    }

    /// RFC 9568, 6.4.3: the higher one stays, and with equal priorities that with the higher address.
    fn contest(&mut self, advert: &ReceivedAdvertisement, now: Instant, out: &mut Vec<Action>) {
        let (own, other, from) = (self.priority(), advert.priority, advert.from);
        let displaced = self.when.displaced.take().map(|displaced| displaced.with(advert));
        let expected = displaced.is_some_and(|displaced| displaced.is(advert, now));
        let by_order = expected && displaced.is_some_and(|displaced| displaced.by_order);
        self.when.displaced = displaced;
        let yields = !by_order && self.is_outranked(advert, now);
        if !expected {
            let what = format!("{from} is active too, with priority {other}");
            let why = if yields { "it yields" } else { "it stays active" };
            self.tally.two_active += 1;
            // A sender that goes on is reported once.
            let reported = self.when.answered.get(&from).is_some_and(|(since, _)| {
                now.saturating_duration_since(*since) < FORGOTTEN + 2 * self.settings.interval
            });
            if yields || (!reported && self.may_alarm(now)) {
                self.notice(NoticeKind::TwoActive, &what, format!("{why} with its {own}"), out);
            }
        }
        if !yields {
            // RFC 9568, 6.4.3: "send an ADVERTISEMENT immediately to assert the Active state".
            return self.answer(advert, now, out);
        }
        // The last advertisement comes after the addresses are off: the winner receives a lower one,
        // and its announcement is then the last on the link about the addresses.
        out.extend([Action::Release, Action::Advertise { priority: own }]);
        let than = if other > own { "higher" } else { "equal, with a higher address" };
        let cause = format!("{from} has priority {other}, which is {than} (here {own})");
        self.become_backup(advert, cause, now, out);
    }

    /// Whether one more that is Active too is reported.
    fn may_alarm(&mut self, now: Instant) -> bool {
        let (since, count) = self.when.alarms.get_or_insert((now, 0));
        if now.saturating_duration_since(*since) >= FORGOTTEN {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        usize::from(*count) <= SENDERS
    }

    fn is_outranked(&mut self, advert: &ReceivedAdvertisement, now: Instant) -> bool {
        let own = self.priority();
        if advert.priority != own || advert.from <= advert.own {
            return advert.priority > own;
        }
        if !advert.second_path && !self.settings.defers {
            return true;
        }
        // Two paths, or the routers of a group, may order two nodes differently, and both would yield.
        // The first path, or the first router of the group, decides in an interval if it can.
        let patience = PATIENCE * advert.interval.max(self.settings.interval);
        let tie = self.when.tie.get_or_insert((now, now));
        if now.saturating_duration_since(tie.1) >= patience {
            tie.0 = now;
        }
        tie.1 = now;
        now.saturating_duration_since(tie.0) >= patience
    }

    /// Advertises that this router is Active: to the other one, and to the link, which may have learnt
    /// otherwise from it.
    fn answer(&mut self, advert: &ReceivedAdvertisement, now: Instant, out: &mut Vec<Action>) {
        let interval = self.settings.interval;
        let is_over = |since: Instant| now.saturating_duration_since(since) >= interval;
        let answered = &mut self.when.answered;
        if !answered.contains_key(&advert.from) && answered.len() >= SENDERS {
            answered.retain(|_, (since, _)| !is_over(*since));
        }
        if !answered.contains_key(&advert.from) && answered.len() >= SENDERS {
            self.when.answer_at.get_or_insert(now + interval);
            return;
        }
        let (since, count) = answered.entry(advert.from).or_insert((now, 0));
        if is_over(*since) {
            (*since, *count) = (now, 0);
        }
        if *count < ANSWERS {
            *count += 1;
            self.advertise(now, out);
            self.announce_answer(now, out);
        } else {
            let at = *since + interval;
            self.when.answer_at = Some(self.when.answer_at.map_or(at, |other| other.min(at)));
        }
    }

    /// Announces the addresses once, now or soon.
    fn announce_answer(&mut self, now: Instant, out: &mut Vec<Action>) {
        let answers = &mut self.when.answers;
        let soon = answers.last.filter(|(at, _)| now.saturating_duration_since(*at) < ANNOUNCE_GAP);
        match soon {
            // The last answer of all is announced, if late: it corrects the other one's announcement.
            Some((at, count)) if count >= ANNOUNCED => answers.due = Some(at + ANNOUNCE_GAP),
            _ => {
                let again = answers.due.take().is_some() || soon.is_some();
                let count = answers.last.filter(|_| again).map_or(0, |(_, count)| count);
                answers.last = Some((now, (count + 1).min(ANNOUNCED)));
                out.push(Action::AnnounceOnce);
            }
        }
    }

    /// While it was not run, another one has become Active, whatever its priority: what has happened
    /// since is known there.
    fn give_way_after_a_stall(
        &mut self,
        advert: &ReceivedAdvertisement,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        self.tally.two_active += 1;
        // Priority 0, as its own could be higher, and the other one is to stay and to announce itself.
        out.extend([Action::Release, Action::Advertise { priority: 0 }]);
        let why = format!("{} has become active meanwhile", advert.from);
        self.notice(NoticeKind::Stalled, "it was not run in time", why.clone(), out);
        self.become_backup(advert, format!("it was not run in time, and {why}"), now, out);
    }

    /// Its fault begins: others receive it first, as they need longer than this one.
    pub(super) fn fail(&mut self, fault: String, now: Instant, out: &mut Vec<Action>) {
        out.extend([Action::Advertise { priority: 0 }, Action::Release]);
        let yielding = self.when.yielding.take();
        self.last_adverts = [None; 2];
        match yielding {
            None => self.enter(State::Fault, fault, now, out),
            Some(yielding) => {
                self.end_yield(yielding, State::Fault, Err(fault.clone()), fault, now, out)
            }
        }
    }

    /// Another router of its sync group isn't Active, so this one isn't.
    pub(super) fn follow_to_backup(&mut self, mate: &str, now: Instant, out: &mut Vec<Action>) {
        out.extend([Action::Release, Action::Advertise { priority: 0 }]);
        let yielding = self.when.yielding.take();
        self.last_adverts = [None; 2];
        let cause = format!("{mate}, of its sync group, is not active");
        match yielding {
            None => self.enter(State::Backup, cause, now, out),
            Some(yielding) => {
                self.end_yield(yielding, State::Backup, Err(cause.clone()), cause, now, out);
            }
        }
        if self.state == State::Backup {
            self.listen_for_active(now);
        }
    }

    /// Its interval has changed from that one, or its addresses have.
    pub(super) fn reconfigured_active(
        &mut self,
        before: Option<Duration>,
        moved: bool,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if before.is_none() && !moved {
            return;
        }
        if let Some(before) = before {
            // A router that counts by the old interval has to receive a longer one before it is over, even if
            // an advertisement is lost.
            let longer = self.settings.interval > before;
            self.when.hurry = longer.then_some((HURRIED, before));
        }
        if self.is_leaving() {
            self.sent(now);
        } else {
            self.advertise(now, out);
        }
        if moved {
            out.extend([Action::Hold, Action::Announce]);
        }
    }
}

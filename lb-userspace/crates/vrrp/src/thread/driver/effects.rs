//! What is done for the routers.

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    sync::mpsc::sync_channel,
    time::{Duration, Instant, SystemTime},
};

use lb_netlink::interfaces::Key;
use tracing::debug;

use super::{Driver, Ending, receive::CHANGEOVER};
use crate::{
    Done, NoticeKind, Report, Transition,
    addresses::placed,
    fsm::Action,
    machine::{Name, Out},
    macvlan,
    notify_program::Call,
    thread::{helper::Job, member::Refused},
};

/// How long it is waited until frames to a virtual MAC address are taken.
const TAKE_MAC: Duration = Duration::from_millis(20);

/// How long effects that take longer than an advertisement are applied before the timers and receivers
/// have their turn: with hundreds of routers, the others would send their advertisements late.
const TURN: Duration = Duration::from_millis(2);

/// How often lbd tries again whether the kernel takes addresses that it has refused.
const QUERY_AGAIN: Duration = Duration::from_secs(5);

/// The effects that were put off.
#[derive(Default)]
pub(super) struct Effects {
    /// What is to be done, in order.
    pub(super) queue: VecDeque<(Name, Effect)>,
    /// Whether other addresses are assigned than those that claims are looked for of.
    watch_anew: bool,
}

/// Something to be done for a router.
pub(super) enum Effect {
    /// An action of the machine.
    Action(Action),
    /// Take the addresses off where they were before they were moved.
    MoveOff,
}

impl Driver {
    /// Sends the advertisements that the machine wants, and puts off what takes longer.
    ///
    /// A router's effects are done in the machine's order, but for advertisements: these go first, so
    /// that no other node becomes Active meanwhile, unless addresses have to come off before.
    pub(super) fn perform(&mut self, out: Out, now: Instant) {
        for (name, action) in out {
            let Some(member) = self.members.get_mut(&name) else { continue };
            match action {
                Action::Advertise { priority } if member.releases == 0 => {
                    self.advertise(&name, priority, now);
                    continue;
                }
                // What was to be announced before is not done any more.
                Action::Release => {
                    member.releases += 1;
                    member.announcing = false;
                }
                // What it holds from then on may be more.
                Action::Hold => member.announcing = false,
                // Once is enough: other routers that do not receive this one's advertisements make it announce again and
                // again.
                Action::Announce if std::mem::replace(&mut member.announcing, true) => continue,
                _ => {}
            }
            self.effects.queue.push_back((name, Effect::Action(action)));
        }
    }

    /// Does what was put off, for a while.
    pub(super) fn work(&mut self, now: Instant) {
        let began = Instant::now();
        while began.elapsed() < TURN {
            let Some((name, effect)) = self.effects.queue.pop_front() else { break };
            self.apply(&name, effect, now);
        }
        self.renew_watch(now);
    }

    /// Does all that was put off.
    pub(super) fn work_to_the_end(&mut self, now: Instant) {
        while let Some((name, effect)) = self.effects.queue.pop_front() {
            self.apply(&name, effect, now);
        }
        self.renew_watch(now);
    }

    fn renew_watch(&mut self, now: Instant) {
        if self.effects.queue.is_empty() && std::mem::take(&mut self.effects.watch_anew) {
            self.watch(now);
        }
    }

    fn apply(&mut self, name: &Name, effect: Effect, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        match effect {
            Effect::Action(Action::Advertise { priority }) => self.advertise(name, priority, now),
            Effect::Action(Action::Hold) => {
                self.take_macs(name);
                self.hold(name, now);
                self.effects.watch_anew = true;
            }
            Effect::Action(Action::Release) => {
                member.releases = member.releases.saturating_sub(1);
                self.release(name, now);
                self.effects.watch_anew = true;
            }
            Effect::Action(Action::Announce) if member.releases > 0 => {}
            Effect::Action(Action::Announce) => {
                member.announcing = false;
                let repeat = member.router.announce.repeat;
                // What was just taken may still be with its former owner.
                let since = member.assigned_since;
                let settled = since.is_some_and(|at| now.duration_since(at) >= CHANGEOVER);
                if settled {
                    self.announcements.queue.add(name, repeat, true);
                } else {
                    self.announce(name, now);
                    debug!(router = &**name, after = ?now.elapsed(), "announced");
                    self.announcements.queue.add(name, repeat.saturating_sub(1), false);
                }
            }
            Effect::Action(Action::AnnounceOnce) => {
                if member.releases == 0 {
                    self.announce(name, now);
                }
            }
            Effect::MoveOff => self.remove_surplus_of(name, now),
            Effect::Action(Action::Transition { from, to, cause }) => {
                let (router, key) = (member.router.name.clone(), member.router.key);
                debug!(router, %key, %from, %to, cause, "virtual router");
                self.report_transition(name, Transition { router, key, from, to, cause });
                self.publication.changed = true;
            }
            Effect::Action(Action::Notice(notice)) => self.reporter.report(Report::Notice(notice)),
            Effect::Action(Action::Yielded(by)) => {
                let router = member.router.key;
                self.reporter.report(Report::Yielded { router, by });
            }
            Effect::Action(Action::Stopped) => debug!(router = &**name, "stopped"),
        }
    }

    fn report_transition(&self, name: &Name, transition: Transition) {
        if let Some(member) = self.members.get(name)
            && member.router.notify.is_some()
        {
            let configured = member.router.priority.get();
            let priority = self.machine.priority(&transition.router).unwrap_or(configured);
            let group = member.group.as_deref();
            if let Some(call) = Call::of(&member.router, group, &transition, priority) {
                self.preparations.give(Job::Notify(call));
            }
        }
        self.reporter.report(Report::Transition(transition));
    }

    /// Before a router holds addresses on a virtual MAC address, frames to that must be taken; those
    /// of others that are to hold theirs next are requested with it.
    fn take_macs(&mut self, name: &Name) {
        let needs = |name: &Name| {
            let member = self.members.get(name);
            member.is_some_and(|one| one.router.virtual_mac.is_some() && !one.mac_taken)
        };
        if !needs(name) {
            return;
        }
        let waiting = self.effects.queue.iter().filter_map(|(other, effect)| {
            // One that is to release before gives it back with that.
            let holds = matches!(effect, Effect::Action(Action::Hold))
                && self.members.get(other).is_some_and(|member| member.releases == 0);
            (holds && needs(other)).then(|| Name::clone(other))
        });
        let names: BTreeSet<Name> = waiting.chain([Name::clone(name)]).collect();
        let mut answers = Vec::new();
        for name in names {
            let Some(member) = self.members.get_mut(&name) else { continue };
            member.mac_taken = true;
            let (done, answer) = sync_channel(1);
            let mac = macvlan::mac(member.router.key);
            self.reporter.report(Report::TakeMac { mac, take: true, done: Done(done) });
            answers.push(answer);
        }
        let until = Instant::now() + TAKE_MAC;
        for answer in answers {
            // Late or without an answer, the address is still to be assigned: others wait for it.
            let _ = answer.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
    }

    /// Frames to a virtual MAC address are not taken any more.
    pub(super) fn return_mac(&self, mac: [u8; 6]) {
        let (done, _) = sync_channel(1);
        self.reporter.report(Report::TakeMac { mac, take: false, done: Done(done) });
    }

    fn advertise(&mut self, name: &Name, priority: u8, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        if let Err(why) = member.advertise(priority, SystemTime::now()) {
            self.reporter.notice(
                name,
                NoticeKind::Trouble,
                "an advertisement was not sent",
                &why,
                now,
            );
        }
    }

    fn hold(&mut self, name: &Name, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        member.left = false;
        if !member.holding {
            member.holding = true;
            member.assigned_since = Some(now);
        }
        let (_, problems) = self.addresses.hold(placed(&member.router));
        debug!(router = &**name, after = ?now.elapsed(), "addresses are assigned");
        self.see_refusal(name, &problems, now);
        self.report_problems(name, problems, now);
    }

    /// A router of whose addresses the kernel takes none is Active in vain: that is a fault, so that a
    /// peer takes over. With some of them it serves those.
    fn see_refusal(&mut self, name: &Name, problems: &[String], now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        let missing = self.addresses.missing(&member.router).len();
        let none = missing > 0 && missing == member.router.addresses.len();
        if none && !problems.is_empty() {
            let query_at = now + QUERY_AGAIN;
            member.refused = Some(Refused { why: problems.join("; "), query_at });
            self.view.is_stale = true;
        }
    }

    /// Tries whether the kernel takes what it has refused, for a moment: to become Active for that
    /// would take the addresses from a node that has them.
    pub(super) fn query_kernel_again(&mut self, now: Instant) {
        for member in self.members.values_mut().filter(|member| !member.holding) {
            let Some(refused) = member.refused.take_if(|refused| refused.query_at <= now) else {
                continue;
            };
            let (taken, _) = self.addresses.hold(placed(&member.router));
            let taken: BTreeSet<_> = taken.into_iter().collect();
            let unwanted =
                placed(&member.router).filter(|one| taken.contains(&one.address.address));
            self.addresses.release(unwanted);
            if taken.is_empty() {
                member.refused = Some(Refused { query_at: now + QUERY_AGAIN, ..refused });
            } else {
                self.view.is_stale = true;
            }
        }
    }

    /// Puts back what is missing of a router's addresses. Of these, `by_hand` were set by hand, and
    /// this node had them by that.
    pub(super) fn restore(&mut self, name: &Name, by_hand: &BTreeSet<IpAddr>, now: Instant) {
        let Some(member) = self.members.get(name) else { return };
        let missing = self.addresses.missing(&member.router);
        if missing.is_empty() {
            return;
        }
        let missing: Vec<_> = missing.iter().map(|one| (*one.address).clone()).collect();
        let router = member.router.clone();
        let wanted = placed(&router).filter(|one| missing.contains(one.address));
        let (added, problems) = self.addresses.hold(wanted);
        if !added.is_empty() {
            let which: Vec<_> = added.iter().map(ToString::to_string).collect();
            let which = which.join(", ");
            let (kind, message, cause) = match added.iter().all(|one| by_hand.contains(one)) {
                true => (
                    NoticeKind::Leftover,
                    format!("lbd holds {which} by itself"),
                    "the one that was set by hand has been removed",
                ),
                false => (
                    NoticeKind::Trouble,
                    format!("{which} was missing, and was put back"),
                    "somebody has removed it",
                ),
            };
            self.reporter.notice(name, kind, &message, cause, now);
            self.announce(name, now);
        }
        self.see_refusal(name, &problems, now);
        self.report_problems(name, problems, now);
    }

    fn report_problems(&mut self, name: &Name, problems: Vec<String>, now: Instant) {
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        if let Some(why) = &problem {
            self.reporter.notice(
                name,
                NoticeKind::Trouble,
                "addresses are not as they should be",
                why,
                now,
            );
        }
        if let Some(member) = self.members.get_mut(name) {
            self.publication.changed |= member.problem != problem;
            member.problem = problem;
        }
    }

    fn release(&mut self, name: &Name, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        member.holding = false;
        member.left = false;
        member.assigned_since = None;
        let problems = self.addresses.release(placed(&member.router));
        member.moving = false;
        if std::mem::take(&mut member.mac_taken) {
            let mac = macvlan::mac(member.router.key);
            self.return_mac(mac);
        }
        self.report_problems(name, problems, now);
    }

    /// Takes addresses of ours off that no router is to have: what could not be removed before, or was
    /// on an interface that has another name by now.
    pub(super) fn remove_surplus(&mut self, now: Instant) {
        if self.ending != Ending::No
            || !self.effects.queue.is_empty()
            || !self.preparations.has_devices()
        {
            return;
        }
        let mut surplus = self.surplus();
        let moving: Vec<_> = self.members.values().filter(|member| member.moving).collect();
        surplus.retain(|key| !moving.iter().any(|member| member.has(key.1)));
        if surplus.is_empty() {
            return;
        }
        let which = self.listed(&surplus);
        let problems = self.addresses.remove(surplus);
        if problems.is_empty() {
            let cause = "no virtual router holds them";
            let message = format!("removed {which}");
            self.reporter.notice("", NoticeKind::Leftover, &message, cause, now);
        } else {
            let why = problems.join("; ");
            self.reporter.notice("", NoticeKind::Trouble, "an address stays", &why, now);
        }
    }

    /// Takes those of one router off that are still where they were before.
    fn remove_surplus_of(&mut self, name: &Name, now: Instant) {
        let mut surplus = self.surplus();
        let Some(member) = self.members.get(name) else { return };
        // They are somewhere at least.
        if !member.holding || !self.addresses.missing(&member.router).is_empty() {
            return;
        }
        surplus.retain(|key| member.has(key.1));
        let problems = self.addresses.remove(surplus);
        self.report_problems(name, problems, now);
    }

    fn surplus(&self) -> Vec<Key> {
        let keepers = self.members.values().filter(|member| member.holding || member.left);
        self.addresses.surplus(keepers.flat_map(|member| placed(&member.router)))
    }

    /// Addresses and their interfaces, for people.
    pub(super) fn listed(&self, keys: &[Key]) -> String {
        let one = |key: &Key| format!("{}/{} on {}", key.1, key.2, self.addresses.interface(key.0));
        keys.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

//! What is done for the routers.

use std::{
    fs,
    net::IpAddr,
    sync::mpsc::sync_channel,
    time::{Duration, Instant, SystemTime},
};

use tracing::{debug, info};

use super::Rim;
use crate::vrrp::{
    Done, NoticeKind, Report, Transition,
    addresses::{self, placed},
    fsm::Action,
    machine::{Name, Out},
    macvlan,
    notify::Call,
    thread::helper::Job,
};

/// How long it is waited until frames to a virtual MAC address are taken.
const TAKE_MAC: Duration = Duration::from_millis(20);

/// What takes longer than an advertisement is done for so long before others have their turn: among
/// hundreds of routers, those that are done with must not be late meanwhile.
const TURN: Duration = Duration::from_millis(2);

/// Something to be done for a router.
pub(super) enum Deed {
    /// What the machine says.
    Action(Action),
    /// Announce the addresses so many times more.
    AnnounceAgain(u8),
}

impl Rim {
    /// Sends the advertisements that the machine wants, and puts off what takes longer.
    ///
    /// A router's deeds are done in the machine's order, but for advertisements: these go first, so
    /// that no other node becomes Active meanwhile, unless addresses have to come off before.
    pub(super) fn perform(&mut self, out: Out, now: Instant) {
        self.take_macs(&out);
        for (name, action) in out {
            let Some(member) = self.members.get_mut(&name) else { continue };
            match action {
                Action::Advertise { priority } if member.releases == 0 => {
                    self.advertise(&name, priority, now);
                    continue;
                }
                Action::Release => member.releases += 1,
                _ => {}
            }
            self.deeds.push_back((name, Deed::Action(action)));
        }
    }

    /// Does what was put off, for a while.
    pub(super) fn work(&mut self, now: Instant) {
        let began = Instant::now();
        while began.elapsed() < TURN {
            let Some((name, deed)) = self.deeds.pop_front() else { break };
            self.act(&name, deed, now);
        }
        self.settle(now);
    }

    /// Does all that was put off.
    pub(super) fn work_to_the_end(&mut self, now: Instant) {
        while let Some((name, deed)) = self.deeds.pop_front() {
            self.act(&name, deed, now);
        }
        self.settle(now);
    }

    fn settle(&mut self, now: Instant) {
        if self.deeds.is_empty() && std::mem::take(&mut self.watch_anew) {
            self.watch(now);
        }
    }

    fn act(&mut self, name: &Name, deed: Deed, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        match deed {
            Deed::Action(Action::Advertise { priority }) => self.advertise(name, priority, now),
            Deed::Action(Action::Hold) => {
                self.hold(name, now);
                self.watch_anew = true;
            }
            Deed::Action(Action::Release) => {
                member.releases = member.releases.saturating_sub(1);
                self.release(name, now);
                self.watch_anew = true;
            }
            Deed::Action(Action::Announce) => {
                let more = member.router.announce.repeat.saturating_sub(1);
                self.announce(name, 1, now);
                debug!(router = &**name, after = ?now.elapsed(), "announced");
                // The first of each router is worth more than the fifth of one.
                if more > 0 {
                    self.deeds.push_back((Name::clone(name), Deed::AnnounceAgain(more)));
                }
            }
            Deed::Action(Action::AnnounceOnce) => self.announce(name, 1, now),
            Deed::AnnounceAgain(times) if member.holding => self.announce(name, times, now),
            Deed::AnnounceAgain(_) => {}
            Deed::Action(Action::Transition { from, to, cause }) => {
                let (router, key) = (member.router.name.clone(), member.router.key);
                info!(router, %key, %from, %to, cause, "virtual router");
                self.tell(name, Transition { router, key, from, to, cause }, now);
                self.changed = true;
            }
            Deed::Action(Action::Notice(notice)) => self.report(Report::Notice(notice)),
            Deed::Action(Action::Yielded(by)) => {
                let router = member.router.key;
                self.report(Report::Yielded { router, by });
            }
            Deed::Action(Action::Stopped) => debug!(router = &**name, "stopped"),
        }
    }

    fn tell(&mut self, name: &Name, transition: Transition, now: Instant) {
        if let Some(member) = self.members.get(name)
            && member.router.notify.is_some()
        {
            let status = self.machine.status(now, SystemTime::now());
            let priority = status.into_iter().find(|one| one.name == transition.router);
            let priority =
                priority.map_or_else(|| member.router.priority.get(), |one| one.priority);
            let group = member.group.as_deref();
            if let Some(call) = Call::of(&member.router, group, &transition, priority) {
                self.give(Job::Notify(call));
            }
        }
        self.report(Report::Transition(transition));
    }

    pub(super) fn give(&self, job: Job) {
        // The helper ends only after this thread.
        let _ = self.jobs.send(job);
    }

    /// Before routers hold addresses on a virtual MAC address, frames to that must be taken.
    fn take_macs(&mut self, out: &Out) {
        let mut answers = Vec::new();
        for (name, action) in out {
            let Some(member) = self.members.get_mut(name) else { continue };
            if *action != Action::Hold || member.router.virtual_mac.is_none() || member.mac_taken {
                continue;
            }
            member.mac_taken = true;
            let (done, answer) = sync_channel(1);
            let mac = macvlan::mac(member.router.key);
            self.report(Report::TakeMac { mac, take: true, done: Done(done) });
            answers.push(answer);
        }
        let until = Instant::now() + TAKE_MAC;
        for answer in answers {
            // Late or without an answer, the address is still to be held: others wait for it.
            let _ = answer.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
    }

    fn advertise(&mut self, name: &Name, priority: u8, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        if let Err(why) = member.advertise(priority, SystemTime::now()) {
            self.notice(name, NoticeKind::Trouble, "an advertisement was not sent", &why, now);
        }
    }

    fn hold(&mut self, name: &Name, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        if !member.holding {
            member.holding = true;
            member.held_since = Some(now);
        }
        let (_, problems) = self.addresses.hold(placed(&member.router));
        debug!(router = &**name, after = ?now.elapsed(), "addresses are held");
        self.tell_problems(name, problems, now);
    }

    /// Puts back what is missing of a router's addresses.
    pub(super) fn restore(&mut self, name: &Name, now: Instant) {
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
            let message = format!("{} was missing, and was put back", which.join(", "));
            self.notice(name, NoticeKind::Trouble, &message, "somebody has removed it", now);
            self.announce(name, 1, now);
        }
        self.tell_problems(name, problems, now);
    }

    fn tell_problems(&mut self, name: &Name, problems: Vec<String>, now: Instant) {
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        if let Some(why) = &problem {
            self.notice(name, NoticeKind::Trouble, "addresses are not as they should be", why, now);
        }
        if let Some(member) = self.members.get_mut(name) {
            self.changed |= member.problem != problem;
            member.problem = problem;
        }
    }

    fn release(&mut self, name: &Name, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        member.holding = false;
        member.held_since = None;
        let problems = self.addresses.release(placed(&member.router));
        if member.mac_taken {
            member.mac_taken = false;
            let mac = macvlan::mac(member.router.key);
            let (done, _) = sync_channel(1);
            self.report(Report::TakeMac { mac, take: false, done: Done(done) });
        }
        self.tell_problems(name, problems, now);
    }

    /// Announces the addresses of a router so many times.
    fn announce(&mut self, name: &Name, times: u8, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        let mut trouble = None;
        let tables = &self.addresses.tables;
        let mut routes: Option<(&str, bool)> = None;
        for _ in 0..times {
            for addresses::Placed { interface, address } in placed(&member.router) {
                let Some((index, link)) = tables.link(interface) else { continue };
                let router = match (address.address, routes) {
                    (IpAddr::V4(_), _) => false,
                    (IpAddr::V6(_), Some((known, router))) if known == interface => router,
                    (IpAddr::V6(_), _) => {
                        let router = is_router(interface);
                        routes = Some((interface, router));
                        router
                    }
                };
                match self.announcer.announce(index, link.mac, address.address, router) {
                    Ok(()) => member.counters.announcements += 1,
                    Err(error) => {
                        trouble = Some(format!("{} on {interface}: {error}", address.address))
                    }
                }
            }
        }
        if let Some(why) = trouble {
            self.notice(name, NoticeKind::Trouble, "an address was not announced", &why, now);
        }
    }
}

/// Whether the kernel forwards packets that come by an interface, as its neighbour advertisements say.
fn is_router(interface: &str) -> bool {
    let setting = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    fs::read_to_string(setting).is_ok_and(|value| value.trim() != "0")
}

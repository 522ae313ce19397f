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

impl Rim {
    /// Performs what the machine has said, in order.
    pub(super) fn perform(&mut self, out: Out, now: Instant) {
        if out.is_empty() {
            return;
        }
        self.take_macs(&out);
        let mut priorities = None;
        let mut watch = false;
        for (name, action) in out {
            match action {
                Action::Advertise { priority } => self.advertise(&name, priority, now),
                Action::Hold => {
                    self.hold(&name, now);
                    watch = true;
                }
                Action::Release => {
                    self.release(&name, now);
                    watch = true;
                }
                Action::Announce => {
                    let Some(member) = self.members.get(&name) else { continue };
                    let times = member.router.announce.repeat.max(1);
                    self.announce(&name, times, now);
                    debug!(router = &*name, after = ?now.elapsed(), "announced");
                }
                Action::Transition { from, to, cause } => {
                    let Some(member) = self.members.get(&name) else { continue };
                    let (router, key) = (member.router.name.clone(), member.router.key);
                    info!(router, %key, %from, %to, cause, "virtual router");
                    let transition = Transition { router, key, from, to, cause };
                    let priorities = priorities.get_or_insert_with(|| {
                        let status = self.machine.status(now, SystemTime::now());
                        status.into_iter().map(|one| (one.name, one.priority)).collect::<Vec<_>>()
                    });
                    let priority = priorities.iter().find(|one| one.0 == transition.router);
                    let priority =
                        priority.map_or_else(|| member.router.priority.get(), |one| one.1);
                    let group = member.group.as_deref();
                    if let Some(call) = Call::of(&member.router, group, &transition, priority) {
                        self.give(Job::Notify(call));
                    }
                    self.report(Report::Transition(transition));
                }
                Action::Notice(notice) => self.report(Report::Notice(notice)),
                Action::Yielded(by) => {
                    let Some(member) = self.members.get(&name) else { continue };
                    self.report(Report::Yielded { router: member.router.key, by });
                }
                Action::Stopped => debug!(router = &*name, "stopped"),
            }
        }
        if watch {
            self.watch(now);
        }
        self.changed = true;
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
        let problems = self.addresses.hold(placed(&member.router));
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
        let which: Vec<_> = missing.iter().map(|one| one.address.address.to_string()).collect();
        let missing: Vec<_> = missing.iter().map(|one| (*one.address).clone()).collect();
        let router = member.router.clone();
        let wanted = placed(&router).filter(|one| missing.contains(one.address));
        let problems = self.addresses.hold(wanted);
        let message = format!("{} was missing, and was put back", which.join(", "));
        if problems.is_empty() {
            self.notice(name, NoticeKind::Trouble, &message, "somebody has removed it", now);
        }
        self.tell_problems(name, problems, now);
        self.announce(name, 1, now);
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

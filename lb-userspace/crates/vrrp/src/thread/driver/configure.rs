//! What the routers are, and that all is there which they need.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lb_model::router::{OWNER, Router, Routers, State};
use tracing::warn;

use super::{Driver, Ending, LateRouters, effects::Effect};
use crate::{
    NoticeKind,
    addresses::placed,
    fsm::Action,
    machine::{Name, Out},
    macvlan::{self, Device},
    observe, realtime,
    scripts::scripts,
    thread::{filter, helper::Job, member::Member},
};

/// How long the first routers wait for what the helper makes for them.
const PATIENCE: Duration = Duration::from_secs(3);

impl Driver {
    /// From now on the routers are these.
    pub(super) fn configure(&mut self, routers: Routers, now: Instant) {
        if !matches!(self.ending, Ending::No) {
            return;
        }
        let mut out = Out::new();
        self.machine.retire(&routers, now, &mut out);
        self.perform(out, now);
        self.work_to_the_end(now);
        let inherited = self.set_members(&routers, now);
        self.configured = routers;
        // Those whose device is to go leave it before.
        self.move_addresses();
        self.work_to_the_end(now);

        self.preparations.give(Job::Scripts(scripts(&self.configured.routers)));
        let files = observe::files(&self.configured.routers);
        self.view.files.retain(|path, _| files.contains(path));
        self.preparations.give(Job::Files(files));
        self.preparations.request_filter(filter::closed(&self.configured.routers));
        let devices = self.configured.routers.iter().filter_map(Device::of).collect();
        self.preparations.request_devices(devices);

        // What is seen comes first, or the machine would find new routers without a source.
        self.open_sockets(now);
        self.beginning.patience.get_or_insert(now + PATIENCE);
        let mut out = Out::new();
        self.observe(now, &mut out);
        self.begin(inherited, now, &mut out);
        self.perform(out, now);
        self.move_addresses();
        self.watch(now);
        let short = realtime::short_interval(self.scheduling, &self.configured.routers);
        if let Some((message, cause)) = short
            && self.reporter.log.is_new("", NoticeKind::Trouble, &message, now)
        {
            warn!("{message}: {cause}");
        }
        self.publication.changed = true;
    }

    /// Has the machine know the routers. New ones that still wait for their device or the filter are
    /// left out until they have it: a fault that only means that would be one of their sync group.
    fn begin(&mut self, inherited: BTreeSet<String>, now: Instant, out: &mut Out) {
        let is_late = |router: &&Router| {
            let member = self.members.get(router.name.as_str());
            let awaits = member.is_some_and(|member| self.awaits(member));
            self.view.has_begun() && awaits && self.machine.state(&router.name).is_none()
        };
        let late: BTreeSet<String> =
            self.configured.routers.iter().filter(is_late).map(|one| one.name.clone()).collect();
        let mut routers = self.configured.clone();
        routers.routers.retain(|router| !late.contains(&router.name));
        self.machine.configure(&routers, &inherited, now, out);
        let until = now + PATIENCE;
        self.beginning.late_routers =
            (!late.is_empty()).then_some(LateRouters { late, inherited, until });
    }

    /// Has those begin that were left out, when they have what they waited for, or when that has
    /// taken too long: then it is a fault.
    pub(super) fn begin_late(&mut self, now: Instant, out: &mut Out) {
        let Some(waiting) = &self.beginning.late_routers else { return };
        let mut waiting_members = waiting.late.iter().filter_map(|name| self.members.get(&**name));
        if self.ending == Ending::No
            && now < waiting.until
            && waiting_members.any(|member| self.awaits(member))
        {
            return;
        }
        let inherited =
            self.beginning.late_routers.take().map(|waiting| waiting.inherited).unwrap_or_default();
        self.machine.configure(&self.configured, &inherited, now, out);
        self.publication.changed = true;
    }

    /// Has the addresses assigned anew that are to move and have the place for it.
    pub(super) fn move_addresses(&mut self) {
        let interfaces = &self.addresses.interfaces;
        let ready = |member: &&mut Member| member.moving && member.has_device(interfaces);
        for member in self.members.values_mut().filter(ready) {
            member.moving = false;
            let name = Name::from(member.router.name.as_str());
            if member.holding {
                self.effects.queue.push_back((Name::clone(&name), Effect::Action(Action::Hold)));
                self.effects.queue.push_back((Name::clone(&name), Effect::MoveOff));
                self.effects.queue.push_back((name, Effect::Action(Action::Announce)));
            }
        }
    }

    /// Has these as members; the names of the new ones whose addresses were left by a predecessor.
    fn set_members(&mut self, routers: &Routers, now: Instant) -> BTreeSet<String> {
        let is_first = !self.preparations.has_devices();
        let mut before = std::mem::take(&mut self.members);
        let mut inherited =
            self.beginning.late_routers.take().map(|late| late.inherited).unwrap_or_default();
        inherited.retain(|name| routers.routers.iter().any(|router| router.name == *name));
        for router in &routers.routers {
            let name = Name::from(router.name.as_str());
            let group = routers.groups.iter().find(|group| group.routers.contains(&router.name));
            let group = group.map(|group| group.name.clone());
            let same = before.remove(&name).filter(|member| goes_on(&member.router, router));
            let member = if let Some(mut member) = same {
                self.drop_addresses(&member, router, now);
                member.moving |= member.holding && member.router.virtual_mac != router.virtual_mac;
                if router.virtual_mac.is_none() && std::mem::take(&mut member.mac_taken) {
                    self.return_mac(macvlan::mac(router.key));
                }
                member.set(router, group);
                member
            } else {
                let is_inherited = self.addresses.are_inherited(router);
                self.addresses.adopt(router);
                if is_inherited {
                    inherited.insert(router.name.clone());
                    let what = "addresses of a predecessor are there";
                    let cause = "it was Active here when it ended";
                    self.reporter.notice(&router.name, NoticeKind::Leftover, what, cause, now);
                }
                let mut member = Member::new(router, group);
                member.left = inherited.contains(&router.name);
                member
            };
            self.members.insert(name, member);
        }
        let members = &self.members;
        self.reporter.log.keep(|router| members.contains_key(router));
        if is_first {
            self.remove_leftovers(&routers.routers, now);
        }
        inherited
    }

    /// Takes off what a router that goes on has no more.
    fn drop_addresses(&mut self, member: &Member, router: &Router, now: Instant) {
        let kept: BTreeMap<_, _> =
            router.addresses.iter().map(|one| ((&one.interface, one.address), one)).collect();
        // Those that move with the virtual MAC address stay until they are at their new place.
        let dropped = placed(&member.router).filter(|one| {
            let still = kept.get(&(&one.address.interface, one.address.address));
            still.is_none_or(|still| still.prefix != one.address.prefix)
        });
        let problems = self.addresses.release(dropped);
        for why in problems {
            self.reporter.notice(&router.name, NoticeKind::Trouble, "an address stays", &why, now);
        }
    }

    /// Removes what a predecessor has left of routers that are no more.
    fn remove_leftovers(&mut self, routers: &[Router], now: Instant) {
        let leftovers = self.addresses.leftovers(routers);
        if leftovers.is_empty() {
            return;
        }
        let which = self.listed(&leftovers);
        let mut problems = self.addresses.remove(leftovers);
        problems.insert(0, "no virtual router has them".to_owned());
        let message = format!("removed {which}, left by a predecessor");
        self.reporter.notice("", NoticeKind::Leftover, &message, &problems.join("; "), now);
    }

    /// Opens the sockets that send and receive, as links and addresses are by now.
    pub(super) fn open_sockets(&mut self, now: Instant) {
        let mut trouble = Vec::new();
        for (name, member) in &mut self.members {
            let why = member.open_senders(&self.addresses.interfaces);
            trouble.extend(why.map(|why| (Name::clone(name), why)));
        }
        trouble.extend(self.listening.listen(&self.members, &self.addresses.interfaces));
        self.view.is_stale = true;
        for (name, why) in trouble {
            self.reporter.notice(&name, NoticeKind::Trouble, "a socket can't be opened", &why, now);
        }
    }

    /// Looks for others that have the addresses assigned here.
    pub(super) fn watch(&mut self, now: Instant) {
        for why in self.listening.watch(&self.members, &self.claims, &self.addresses.interfaces) {
            self.reporter.notice("", NoticeKind::Trouble, "a socket can't be opened", &why, now);
        }
    }

    /// Sees that all is still as it is to be.
    pub(super) fn look_after(&mut self, now: Instant) {
        let holding = self.members.iter().filter(|(_, one)| one.holding && !one.moving);
        let names: Vec<_> = holding.map(|(name, _)| Name::clone(name)).collect();
        for name in names {
            self.restore(&name, &BTreeSet::new(), now);
        }
        self.query_kernel_again(now);
        self.look_afar(now);
        self.report_addresses_set_by_hand(now);
        self.remove_surplus(now);
        self.open_sockets(now);
        self.watch(now);
        self.see_to_devices();
        self.preparations.retry_filter();
    }

    /// Addresses that this node does not hold, and that an operator has put on its interfaces all the same:
    /// it answers for them beside the node that holds them.
    fn report_addresses_set_by_hand(&mut self, now: Instant) {
        let mut found = Vec::new();
        for (name, member) in &self.members {
            let state = self.machine.state(name);
            // Where no other node advertises, this one may be the only one that serves its clients.
            let another = matches!(state, Some(State::Backup | State::Fault))
                && self.machine.sees_active(name, now);
            let keys = match another && !member.left && member.router.priority.get() != OWNER {
                true => self.addresses.set_by_others(&member.router),
                false => Vec::new(),
            };
            let problem = keys.first().map(|(index, address, prefix)| {
                let interface = self.addresses.interface(*index);
                let remedy = format!("ip address del {address}/{prefix} dev {interface}");
                (self.listed(&keys), remedy)
            });
            if problem.is_some() || member.stray.is_some() {
                found.push((Name::clone(name), problem));
            }
        }
        for (name, problem) in found {
            let problem = problem.map(|(which, remedy)| {
                let message = format!("{which} is set by hand, and this node is not active");
                let cause = format!("hosts may find two nodes that have it; run '{remedy}'");
                self.reporter.notice(&name, NoticeKind::Trouble, &message, &cause, now);
                format!("{message}: {cause}")
            });
            if let Some(member) = self.members.get_mut(&name) {
                self.publication.changed |= member.stray != problem;
                member.stray = problem;
            }
        }
    }

    /// Has devices made that are missing, though the interface below is there.
    pub(super) fn see_to_devices(&mut self) {
        let interfaces = &self.addresses.interfaces;
        let missing = self.members.values().any(|member| {
            !member.has_device(interfaces) && interfaces.index(&member.router.interface).is_some()
        });
        if missing {
            self.preparations.make_missing_devices();
        }
    }

    /// At the end: what belongs to addresses that stay is left, and nothing else.
    pub(super) fn give_last_jobs(&mut self) {
        let stays: Vec<Router> = (self.members.values())
            .filter(|member| member.holding)
            .map(|member| member.router.clone())
            .collect();
        self.preparations.give(Job::Scripts(Vec::new()));
        self.preparations.give(Job::Files(BTreeSet::new()));
        self.preparations.request_filter(filter::closed(&stays));
        self.preparations.request_devices(stays.iter().filter_map(Device::of).collect());
        self.preparations.give(Job::Mark);
    }
}

/// Whether a router is the same as before, with other settings.
fn goes_on(before: &Router, after: &Router) -> bool {
    before.name == after.name && before.interface == after.interface && before.key == after.key
}

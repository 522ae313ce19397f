//! The thread itself: waits, hands what has come to the machine, and performs its actions.

mod announcements;
mod configure;
mod effects;
mod preparations;
mod receive;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc, TryLockError,
        mpsc::{Receiver, TryRecvError},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use lb_api::routers::Counters;
use lb_model::router::Routers;
use lb_netlink::{client::Events, interfaces::GROUPS};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{eventfd::EventFd, time::TimeSpec},
};
use tokio::sync::mpsc::UnboundedSender;
use tracing::debug;

use self::{
    announcements::Announcements,
    effects::Effects,
    preparations::{Preparations, UNFILTERED},
};
use super::{
    Input, Shown,
    claims::Claims,
    filter,
    helper::{Job, JobResult},
    member::Member,
    notices::Reporter,
    receivers::Receivers,
};
use crate::{
    ExternalState, NoticeKind, Order, Report,
    addresses::Addresses,
    machine::{Machine, Name, Out},
    notify_program, observe,
    observed::Observed,
    packet::Path,
    realtime::Scheduling,
};

/// How often it is looked after what is to be so: assigned addresses, devices, sockets.
const LOOK: Duration = Duration::from_secs(1);
/// Being woken so much too late means that this thread was not run.
const LATE: Duration = Duration::from_millis(10);
/// How often it is shown what was counted, if nothing else is to be shown.
const SHOW: Duration = Duration::from_millis(500);

/// The virtual routers and all that they are made of.
pub(crate) struct Driver {
    inputs: Inputs,
    reporter: Reporter,
    preparations: Preparations,
    publication: Publication,
    machine: Machine,
    members: BTreeMap<Name, Member>,
    configured: Routers,
    beginning: Beginning,
    external: ExternalState,
    view: View,
    addresses: Addresses,
    events: KernelEvents,
    listening: Receivers,
    claims: Claims,
    announcements: Announcements,
    effects: Effects,
    /// Whether this thread was just not run in time.
    late: bool,
    scheduling: Scheduling,
    look_at: Instant,
    ending: Ending,
}

/// The inputs from other threads.
struct Inputs {
    inputs: Receiver<Input>,
    wake: Arc<EventFd>,
}

/// The routers' status, as other threads read it.
struct Publication {
    shown: Shown,
    /// When it is published at the latest.
    at: Instant,
    /// Whether more than counters has changed since it was published.
    changed: bool,
}

/// The observations of the system.
#[derive(Default)]
struct View {
    /// The machine's last observations.
    observed: Observed,
    /// The numbers in tracked files.
    files: BTreeMap<PathBuf, Result<i64, String>>,
    /// Whether the observations may have changed.
    is_stale: bool,
}

impl View {
    /// Whether the machine has had an observation.
    fn has_begun(&self) -> bool {
        self.observed != Observed::default()
    }

    /// Whether a router takes part in what the machine has observed.
    fn takes_part(&self, member: &Member) -> bool {
        self.observed.sources.contains_key(&member.router.name)
    }
}

/// Events of links and addresses.
struct KernelEvents {
    events: Events,
    /// Whether some were lost, and all has not been read anew since.
    are_lost: bool,
}

/// Routers that begin.
#[derive(Default)]
struct Beginning {
    /// How long it is waited for what the helper makes for the first routers, since there are any.
    patience: Option<Instant>,
    late_routers: Option<LateRouters>,
}

/// New routers that the machine does not have yet, as they wait for what the helper makes.
struct LateRouters {
    late: BTreeSet<String>,
    /// Of the new ones, those whose addresses were left by a predecessor.
    inherited: BTreeSet<String>,
    until: Instant,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// [`Order::Stop`] was given.
    Stopping,
    /// All routers have ended; the helper has until then.
    LastJobs(Instant),
    Reported,
}

impl Driver {
    /// Opens what it needs in the calling thread's network namespace.
    pub fn open(
        reports: UnboundedSender<Report>,
        inputs: Receiver<Input>,
        wake: Arc<EventFd>,
        jobs: UnboundedSender<Job>,
        shown: Shown,
    ) -> Result<Self> {
        // Events first, so that nothing is missed between the two.
        let events = KernelEvents { events: Events::open(&GROUPS)?, are_lost: false };
        let now = Instant::now();
        Ok(Self {
            inputs: Inputs { inputs, wake },
            reporter: Reporter::new(reports),
            preparations: Preparations::new(jobs),
            publication: Publication { shown, at: now + SHOW, changed: false },
            machine: Machine::new(),
            members: BTreeMap::new(),
            configured: Routers::default(),
            beginning: Beginning::default(),
            external: ExternalState::default(),
            view: View::default(),
            addresses: Addresses::open()?,
            events,
            listening: Receivers::default(),
            claims: Claims::default(),
            announcements: Announcements::open()?,
            effects: Effects::default(),
            late: false,
            scheduling: Scheduling::Ordinary,
            look_at: now + LOOK,
            ending: Ending::No,
        })
    }

    /// Runs until its inputs end.
    pub fn run(mut self, scheduling: Scheduling) {
        self.scheduling = scheduling;
        while self.round() {}
        debug!("the thread of the virtual routers ends");
    }

    /// Waits for something, and does what is to be done about it; false at the end.
    fn round(&mut self) -> bool {
        let due = self.wait();
        let now = Instant::now();
        self.late = now.saturating_duration_since(due) >= LATE;
        let mut out = Out::new();
        // Advertisements first: if this thread did not run for a while, another router may be Active
        // by now, which is to be known before anything is sent.
        self.receive_advertisements(now, &mut out);
        self.read_events(now);
        self.receive_claims(now);
        self.report_claims(now);
        let goes_on = self.take_inputs(now, &mut out);
        if now >= self.look_at {
            self.look_at = now + LOOK;
            self.look_after(now);
        }
        self.observe(now, &mut out);
        self.begin_late(now, &mut out);
        self.machine.tick(now, &mut out);
        self.perform(out, now);
        self.work(now);
        self.announce_due(now);
        self.end(now);
        self.show(now);
        goes_on
    }

    /// Waits for something; until when it wanted to at most.
    fn wait(&self) -> Instant {
        let last = match self.ending {
            Ending::LastJobs(until) => Some(until),
            _ => None,
        };
        let own = self.look_at.min(self.publication.at);
        let others = [
            self.machine.deadline(),
            self.announcements.queue.deadline(),
            self.claims.deadline(),
            last,
        ];
        let deadline = others.into_iter().flatten().fold(own, Instant::min);
        let mut sockets = vec![self.inputs.wake.as_fd(), self.events.events.as_fd()];
        sockets.extend(self.listening.receivers.values().map(|(_, receiver)| receiver.as_fd()));
        sockets.extend(self.listening.watches.values().map(|(_, watch)| watch.as_fd()));
        let mut sockets: Vec<_> =
            sockets.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let began = Instant::now();
        let until = if self.effects.queue.is_empty() { deadline.max(began) } else { began };
        let left = until.saturating_duration_since(began);
        // It fails only by a signal, and then all is looked at.
        let _ = ppoll(&mut sockets, Some(TimeSpec::from_duration(left)), None);
        until
    }

    /// Takes orders, and the helper's results.
    fn take_inputs(&mut self, now: Instant, out: &mut Out) -> bool {
        // There may be nothing to read.
        let _ = self.inputs.wake.read();
        loop {
            match self.inputs.inputs.try_recv() {
                Ok(Input::Order(Order::Configure(routers))) => {
                    // What was decided before belongs to the configuration before.
                    self.perform(std::mem::take(out), now);
                    self.work_to_the_end(now);
                    self.configure(routers, now);
                }
                Ok(Input::Order(order)) => {
                    match &order {
                        Order::ExternalState(external) => self.external = external.clone(),
                        Order::Stop { .. } => {
                            self.ending = Ending::Stopping;
                            self.begin_late(now, out);
                        }
                        _ => {}
                    }
                    self.machine.order(&order, now, out);
                    self.publication.changed = true;
                }
                Ok(Input::Helper(result)) => self.take_result(result, now, out),
                Ok(Input::End) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn take_result(&mut self, result: JobResult, now: Instant, out: &mut Out) {
        match result {
            JobResult::Script { routers, command, result } => {
                for router in routers {
                    self.machine.script_ended(&router, &command, &result, now, out);
                }
            }
            JobResult::Files(files) => {
                self.view.files = files;
                self.view.is_stale = true;
            }
            JobResult::NotifyFailed { router, why } => {
                self.reporter.notice(
                    &router,
                    NoticeKind::Trouble,
                    "its notify program failed",
                    &why,
                    now,
                );
            }
            JobResult::Devices(problems) => {
                self.preparations.take_devices();
                // The events of what was made have come before.
                self.read_events(now);
                for problem in problems {
                    let what = "a virtual MAC address has no interface";
                    let router = self.whose_device(&problem);
                    self.reporter.notice(&router, NoticeKind::Trouble, what, &problem, now);
                }
            }
            JobResult::Filter(result) => self.take_filter(result, now),
            JobResult::Mark => {
                if matches!(self.ending, Ending::LastJobs(_)) {
                    self.ending = Ending::LastJobs(now);
                }
            }
        }
    }

    /// Whether a router needs what the helper has not answered for yet.
    fn awaits(&self, member: &Member) -> bool {
        let takes_part = self.view.takes_part(member);
        self.preparations.awaits(member, &self.addresses.interfaces, takes_part)
    }

    fn take_filter(&mut self, result: Result<(), String>, now: Instant) {
        self.view.is_stale = true;
        if let Err(why) = &result {
            let closed = self.members.values().find(|one| filter::is_closed(&one.router));
            let router = closed.map_or_else(String::new, |member| member.router.name.clone());
            self.reporter.notice(&router, NoticeKind::Trouble, UNFILTERED, why, now);
        }
        self.publication.changed |= self.preparations.take_filter(result);
    }

    /// The router whose device a problem names.
    fn whose_device(&self, problem: &str) -> String {
        let device = |member: &&Member| {
            let mut words = problem.split([' ', ':', '/']);
            let mac = member.router.virtual_mac.as_ref();
            mac.is_some_and(|mac| words.any(|word| word == mac.interface))
        };
        self.members.values().find(device).map_or_else(String::new, |one| one.router.name.clone())
    }

    /// Passes to the machine what is seen of the system, if that has changed.
    fn observe(&mut self, now: Instant, out: &mut Out) {
        // Routers begin with the machine's first observation. A fault that only means that the filter or a
        // device was not made yet would take addresses off which a predecessor has left.
        if !self.view.is_stale
            || !self.view.has_begun()
                && self.beginning.patience.is_none_or(|until| now < until && self.is_awaiting())
        {
            return;
        }
        self.view.is_stale = false;
        let interfaces = &self.addresses.interfaces;
        let (mut sources, mut lacks) = (BTreeMap::new(), BTreeMap::new());
        for member in self.members.values() {
            let name = member.router.name.clone();
            if self.preparations.awaits_filter(member, self.view.takes_part(member)) {
                lacks.insert(name, UNFILTERED.to_owned());
            } else if let Some(refused) = &member.refused {
                let why = &refused.why;
                lacks.insert(name, format!("the kernel takes none of its addresses ({why})"));
            } else if let Some(source) = member.source(Path::First) {
                sources.insert(name, source);
            } else if let Some(why) = member.missing_device(interfaces) {
                lacks.insert(name, why);
            }
        }
        let links = observe::links(interfaces);
        let observed = Observed { links, sources, lacks, files: self.view.files.clone() };
        if observed != self.view.observed {
            self.machine.observe(&observed, now, out);
            self.view.observed = observed;
            self.publication.changed = true;
        }
    }

    /// Whether routers need what the helper has not answered for yet.
    fn is_awaiting(&self) -> bool {
        self.members.values().any(|member| self.awaits(member))
    }

    /// When all routers have ended, sees that nothing is left but what is to be, and reports it.
    fn end(&mut self, now: Instant) {
        match self.ending {
            Ending::Stopping if self.machine.is_stopped() && self.effects.queue.is_empty() => {
                self.give_last_jobs();
                self.ending = Ending::LastJobs(now + notify_program::LIMIT_AT_END);
            }
            Ending::LastJobs(until) if now >= until => {
                self.reporter.report(Report::Stopped);
                self.ending = Ending::Reported;
            }
            _ => {}
        }
    }

    /// Publishes the routers' status.
    fn show(&mut self, now: Instant) {
        // Not for each of many effects.
        if now < self.publication.at && !(self.publication.changed && self.effects.queue.is_empty())
        {
            return;
        }
        self.publication.at = now + SHOW;
        let mut status = self.machine.status(now, SystemTime::now());
        for router in &mut status {
            let Some(member) = self.members.get(router.name.as_str()) else { continue };
            add(&mut router.counters, &member.counters);
            router.problems.extend(member.problem.clone());
            router.problems.extend(member.stray.clone());
            router.problems.extend(self.preparations.lack_of_filter(member));
        }
        // A reader copies it and goes on; this thread does not wait for that.
        match self.publication.shown.try_lock() {
            Ok(mut shown) => *shown = status,
            Err(TryLockError::Poisoned(shown)) => *shown.into_inner() = status,
            Err(TryLockError::WouldBlock) => return,
        }
        self.publication.changed = false;
    }
}

/// Adds what is counted at the driver to what the machine has counted.
const fn add(all: &mut Counters, driver: &Counters) {
    all.sent += driver.sent;
    all.priority_zero_sent += driver.priority_zero_sent;
    all.ttl_errors += driver.ttl_errors;
    all.checksum_errors += driver.checksum_errors;
    all.malformed += driver.malformed;
    all.version_errors += driver.version_errors;
    all.auth_errors += driver.auth_errors;
    all.mismatches += driver.mismatches;
    all.foreign += driver.foreign;
    all.announcements += driver.announcements;
}

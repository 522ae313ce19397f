//! The thread itself: waits, hands what has come to the machine, and performs its actions.

mod announcements;
mod configure;
mod effects;
mod receive;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc, TryLockError,
        mpsc::{Receiver, TryRecvError},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use lb_api::routers::Counters;
use lb_model::router::Routers;
use lb_netlink::{client::Events, interfaces::GROUPS};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{eventfd::EventFd, time::TimeSpec},
};
use tokio::sync::mpsc::UnboundedSender;
use tracing::debug;

use self::effects::Effect;
use super::{
    Input, Shown,
    claims::Claims,
    helper::{Job, JobResult},
    member::Member,
    notices,
    pace::Pace,
    receivers::Receivers,
};
use crate::{
    ExternalState, Notice, NoticeKind, Order, Report,
    addresses::Addresses,
    machine::{Machine, Name, Out},
    macvlan::Device,
    notify, observe,
    observed::Observed,
    packet::Path,
    realtime::Scheduling,
    sockets::{Announcer, BUFFER},
};

/// How often it is looked after what is to be so: held addresses, devices, sockets.
const LOOK: Duration = Duration::from_secs(1);
/// Being woken so much too late means that this thread was not run.
const LATE: Duration = Duration::from_millis(10);
/// How often it is shown what was counted, if nothing else is to be shown.
const SHOW: Duration = Duration::from_millis(500);

/// What is wrong without the filter.
const UNFILTERED: &str = "packets to its addresses are not filtered, as accept = false asks";

/// The virtual routers and all that they are made of.
pub struct Driver {
    reports: UnboundedSender<Report>,
    inputs: Receiver<Input>,
    wake: Arc<EventFd>,
    jobs: UnboundedSender<Job>,
    shown: Shown,
    machine: Machine,
    members: BTreeMap<Name, Member>,
    configured: Routers,
    external: ExternalState,
    /// The numbers in tracked files.
    files: BTreeMap<PathBuf, Result<i64, String>>,
    /// The machine's last observations.
    observed: Observed,
    /// Whether that may have changed.
    look_anew: bool,
    addresses: Addresses,
    events: Events,
    /// Whether some were lost, and all has not been read anew since.
    events_lost: bool,
    listening: Receivers,
    claims: Claims,
    announcer: Announcer,
    /// What is to be done, in order.
    effects: VecDeque<(Name, Effect)>,
    pace: Pace,
    /// Whether other addresses are held than those that claims are looked for of.
    watch_anew: bool,
    notice_log: notices::NoticeLog,
    buffer: Vec<u8>,
    /// Whether this thread was just not run in time.
    late: bool,
    scheduling: Scheduling,
    /// The devices with virtual MAC addresses that were requested.
    devices: Option<Vec<Device>>,
    /// How often that was requested without an answer yet.
    device_jobs: u32,
    filter: Filter,
    /// How long it is waited for what the helper makes for the first routers, since there are any.
    patience: Option<Instant>,
    late_routers: Option<LateRouters>,
    look_at: Instant,
    show_at: Instant,
    /// Whether more than counters has changed since it was shown.
    changed: bool,
    ending: Ending,
}

/// The packet filter: what it is, and what was requested of it.
#[derive(Default)]
struct Filter {
    /// Addresses that are known to be filtered.
    done: BTreeSet<IpAddr>,
    /// Requested, and not answered yet.
    requested: VecDeque<Vec<IpAddr>>,
    /// The last request.
    wanted: Option<Vec<IpAddr>>,
    /// Why the last request failed; it is tried again.
    failed: Option<String>,
}

/// New routers that the machine does not have yet, as they wait for what the helper makes.
struct LateRouters {
    late: BTreeSet<String>,
    /// Of the new ones, those whose addresses were left by a predecessor.
    held: BTreeSet<String>,
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
        let events = Events::open(&GROUPS)?;
        let now = Instant::now();
        Ok(Self {
            reports,
            inputs,
            wake,
            jobs,
            shown,
            machine: Machine::new(),
            members: BTreeMap::new(),
            configured: Routers::default(),
            external: ExternalState::default(),
            files: BTreeMap::new(),
            observed: Observed::default(),
            look_anew: false,
            addresses: Addresses::open()?,
            events,
            events_lost: false,
            listening: Receivers::default(),
            claims: Claims::default(),
            announcer: Announcer::open().context("open a packet socket")?,
            effects: VecDeque::new(),
            pace: Pace::default(),
            watch_anew: false,
            notice_log: notices::NoticeLog::default(),
            buffer: vec![0; BUFFER],
            late: false,
            scheduling: Scheduling::Ordinary,
            devices: None,
            device_jobs: 0,
            filter: Filter::default(),
            patience: None,
            late_routers: None,
            look_at: now + LOOK,
            show_at: now + SHOW,
            changed: false,
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
        self.announce_in_turn(now);
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
        let own = self.look_at.min(self.show_at);
        let others = [self.machine.deadline(), self.pace.deadline(), self.claims.deadline(), last];
        let deadline = others.into_iter().flatten().fold(own, Instant::min);
        let mut sockets = vec![self.wake.as_fd(), self.events.as_fd()];
        sockets.extend(self.listening.receivers.values().map(|(_, receiver)| receiver.as_fd()));
        sockets.extend(self.listening.watches.values().map(|(_, watch)| watch.as_fd()));
        let mut sockets: Vec<_> =
            sockets.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let began = Instant::now();
        let until = if self.effects.is_empty() { deadline.max(began) } else { began };
        let left = until.saturating_duration_since(began);
        // It fails only by a signal, and then all is looked at.
        let _ = ppoll(&mut sockets, Some(TimeSpec::from_duration(left)), None);
        until
    }

    /// Takes orders, and the helper's results.
    fn take_inputs(&mut self, now: Instant, out: &mut Out) -> bool {
        // There may be nothing to read.
        let _ = self.wake.read();
        loop {
            match self.inputs.try_recv() {
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
                    self.changed = true;
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
                self.files = files;
                self.look_anew = true;
            }
            JobResult::NotifyFailed { router, why } => {
                self.notice(&router, NoticeKind::Trouble, "its notify program failed", &why, now);
            }
            JobResult::Devices(problems) => {
                self.device_jobs = self.device_jobs.saturating_sub(1);
                // The events of what was made have come before.
                self.read_events(now);
                for problem in problems {
                    let what = "a virtual MAC address has no interface";
                    let router = self.whose_device(&problem);
                    self.notice(&router, NoticeKind::Trouble, what, &problem, now);
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

    fn take_filter(&mut self, result: Result<(), String>, now: Instant) {
        let requested = self.filter.requested.pop_front().unwrap_or_default();
        self.look_anew = true;
        self.changed |= self.filter.failed.as_ref() != result.as_ref().err();
        match &result {
            Ok(()) => self.filter.done = requested.into_iter().collect(),
            Err(why) => {
                let closed =
                    self.members.values().find(|one| super::filter::is_closed(&one.router));
                let router = closed.map_or_else(String::new, |member| member.router.name.clone());
                self.notice(&router, NoticeKind::Trouble, UNFILTERED, why, now);
            }
        }
        self.filter.failed = result.err();
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
        if !self.look_anew
            || !self.has_begun()
                && self.patience.is_none_or(|until| now < until && self.is_awaiting())
        {
            return;
        }
        self.look_anew = false;
        let interfaces = &self.addresses.interfaces;
        let (mut sources, mut lacks) = (BTreeMap::new(), BTreeMap::new());
        for member in self.members.values() {
            let name = member.router.name.clone();
            if self.awaits_filter(member) {
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
        let observed = Observed { links, sources, lacks, files: self.files.clone() };
        if observed != self.observed {
            self.machine.observe(&observed, now, out);
            self.observed = observed;
            self.changed = true;
        }
    }

    /// Whether the machine has had an observation.
    fn has_begun(&self) -> bool {
        self.observed != Observed::default()
    }

    /// Whether routers need what the helper has not answered for yet.
    fn is_awaiting(&self) -> bool {
        self.members.values().any(|member| self.awaits(member))
    }

    /// Whether a router does.
    fn awaits(&self, member: &Member) -> bool {
        let device = !member.has_device(&self.addresses.interfaces) && self.device_jobs > 0;
        self.awaits_filter(member) || device
    }

    /// Whether a router does not take part yet, as the filter that it needs is being made.
    ///
    /// Where it can't be made, the router takes part without it: that its addresses are served counts
    /// for more than that they are served by nothing else. One that takes part already goes on while
    /// the filter follows a change of it.
    fn awaits_filter(&self, member: &Member) -> bool {
        let takes_part = self.observed.sources.contains_key(&member.router.name);
        self.filter.failed.is_none() && !takes_part && !self.is_filtered(member)
    }

    /// Whether packets to its addresses are filtered, if they are to be.
    fn is_filtered(&self, member: &Member) -> bool {
        let mut addresses = member.router.addresses.iter();
        !super::filter::is_closed(&member.router)
            || addresses.all(|one| self.filter.done.contains(&one.address))
    }

    /// That packets to a router's addresses are to be filtered and can't be.
    fn lack_of_filter(&self, member: &Member) -> Option<String> {
        let why = self.filter.failed.as_ref().filter(|_| !self.is_filtered(member))?;
        Some(format!("{UNFILTERED}: {why}"))
    }

    /// When all routers have ended, sees that nothing is left but what is to be, and reports it.
    fn end(&mut self, now: Instant) {
        match self.ending {
            Ending::Stopping if self.machine.is_stopped() && self.effects.is_empty() => {
                self.give_last_jobs();
                self.ending = Ending::LastJobs(now + notify::LIMIT_AT_END);
            }
            Ending::LastJobs(until) if now >= until => {
                self.report(Report::Stopped);
                self.ending = Ending::Reported;
            }
            _ => {}
        }
    }

    /// Reports a notice, unless the same was reported just now.
    fn notice(&mut self, router: &str, kind: NoticeKind, message: &str, cause: &str, now: Instant) {
        if self.notice_log.is_new(router, kind, &format!("{message}: {cause}"), now) {
            // The daemon logs it, as all that is reported.
            self.report(Report::Notice(Notice {
                router: router.to_owned(),
                kind,
                message: message.to_owned(),
                cause: cause.to_owned(),
            }));
        }
    }

    fn report(&self, report: Report) {
        // The channel may be closed, when the daemon ends.
        let _ = self.reports.send(report);
    }

    /// Publishes the routers' status.
    fn show(&mut self, now: Instant) {
        // Not for each of many effects.
        if now < self.show_at && !(self.changed && self.effects.is_empty()) {
            return;
        }
        self.show_at = now + SHOW;
        let mut status = self.machine.status(now, SystemTime::now());
        for router in &mut status {
            let Some(member) = self.members.get(router.name.as_str()) else { continue };
            add(&mut router.counters, &member.counters);
            router.problems.extend(member.problem.clone());
            router.problems.extend(member.stray.clone());
            router.problems.extend(self.lack_of_filter(member));
        }
        // A reader copies it and goes on; this thread does not wait for that.
        match self.shown.try_lock() {
            Ok(mut shown) => *shown = status,
            Err(TryLockError::Poisoned(shown)) => *shown.into_inner() = status,
            Err(TryLockError::WouldBlock) => return,
        }
        self.changed = false;
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

//! An engine over maps in memory, whose writes are counted and fail on order.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_api::status::{Interface, Standing, Status, Totals};
use lb_control::engine::{Engine, Outcome, Role, Sharers, Suspicion, Swept};
use lb_daemon::daemon::Balancer;
use lb_datapath::{
    capture::{Capturer, Loader, Tap},
    fake::Fake,
};
use lb_inspect::{
    capture::{Spec, book::Book},
    explain::{Answers, Questions},
};
use lb_model::{
    desired::{Desired, ServiceKey},
    hop::{Neighbourhood, Want},
    plan::Preview,
    seen::View,
    settings::{Hooks, Limits},
    time::Now,
};
use lb_sync::Piece;

use crate::fakes::{Deed, Deeds};

/// What a test sees and orders of the engine.
#[derive(Debug, Default)]
pub struct Wires {
    /// Writes that gave slots other owners.
    pub ring_writes: AtomicU64,
    /// So many writes are still to fail.
    pub failing_writes: AtomicU64,
    /// The longest that pins were leased for, in milliseconds.
    pub longest_lease: AtomicU64,
    /// When the lease ends, in milliseconds of CLOCK_MONOTONIC.
    pub lease_ends: AtomicU64,
    /// What the engine has to tell beside its own, once: news, and all of the history.
    pub news: Mutex<Vec<Piece>>,
    /// How often such news were told.
    pub more_told: AtomicU64,
    pub history: Mutex<Vec<Piece>>,
    /// Whether the history can't be read.
    pub failing_history: AtomicBool,
    /// Services of which something could not be learnt.
    pub unlearnt: Mutex<BTreeSet<ServiceKey>>,
    /// Whether sweeps fail.
    pub failing_sweeps: AtomicBool,
    /// What was done, by others as well.
    pub deeds: Deeds,
}

/// The engine of a test.
pub struct Wired {
    pub engine: Engine<Fake>,
    pub wires: Arc<Wires>,
}

impl Balancer for Wired {
    fn set_desired(&mut self, desired: Desired) {
        self.engine.set_desired(desired);
    }

    fn set_neighbourhood(&mut self, neighbourhood: Neighbourhood) {
        self.engine.set_neighbourhood(neighbourhood);
    }

    fn set_peers(&mut self, peers: BTreeSet<IpAddr>) {
        self.engine.set_peers(peers);
    }

    fn wants(&self) -> BTreeSet<Want> {
        self.engine.wants()
    }

    fn reconcile(&mut self, now: Now) -> Result<Outcome> {
        let failing = &self.wires.failing_writes;
        let fails = failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        ensure!(fails.is_err(), "a write was told to fail");
        let outcome = self.engine.reconcile(now)?;
        if outcome.slots_moved > 0 {
            self.wires.ring_writes.fetch_add(1, Ordering::SeqCst);
        }
        Ok(outcome)
    }

    fn sweep(&mut self, now: Now) -> Result<Swept> {
        ensure!(!self.wires.failing_sweeps.load(Ordering::SeqCst), "sweeps were told to fail");
        self.engine.sweep(now)
    }

    fn set_view(&mut self, view: View) {
        self.engine.set_view(view);
    }

    fn adopted_view(&self) -> View {
        self.engine.adopted_view()
    }

    fn standings(&self) -> &BTreeMap<ServiceKey, Standing> {
        self.engine.standings()
    }

    fn watch(&mut self, now: Now) -> Result<Vec<Suspicion>> {
        self.engine.watch(now)
    }

    fn set_hooks(&mut self, hooks: &Hooks) -> Result<()> {
        Balancer::set_hooks(&mut self.engine, hooks)
    }

    fn at_tc(&self) -> BTreeSet<String> {
        Balancer::at_tc(&self.engine)
    }

    fn has_stepped(&self, now: Now) -> bool {
        self.engine.has_stepped(now)
    }

    fn preview(&self, desired: &Desired, now: Now) -> Result<Preview> {
        self.engine.preview(desired, now)
    }

    fn set_roles(&mut self, roles: BTreeMap<ServiceKey, Role>, now: Now) -> Result<()> {
        let told = roles.iter().map(|(key, role)| (*key, *role)).collect();
        self.wires.deeds.push(Deed::Roles(told));
        self.engine.set_roles(roles, now)
    }

    fn set_unsynced(&mut self, unsynced: BTreeSet<ServiceKey>, now: Now) {
        self.engine.set_unsynced(unsynced, now);
    }

    fn set_sharers(&mut self, sharers: Sharers) {
        self.engine.set_sharers(sharers);
    }

    fn news(&mut self, now: Now) -> Result<(u64, Vec<Piece>)> {
        let more = std::mem::take(&mut *self.wires.news.lock().expect("nobody panics"));
        let more_told = u64::from(!more.is_empty());
        let told = self.wires.more_told.fetch_add(more_told, Ordering::SeqCst) + more_told;
        let pieces = [more, self.engine.news(now)?].concat();
        Ok((self.engine.news_number() + told, pieces))
    }

    fn news_are_taken(&mut self, number: u64) {
        self.engine.news_are_taken(number);
    }

    fn survey(&mut self, now: Now) -> Result<()> {
        self.wires.deeds.push(Deed::Survey);
        self.engine.survey(now)
    }

    fn history(&mut self, now: Now) -> Result<Vec<Piece>> {
        ensure!(!self.wires.failing_history.load(Ordering::SeqCst), "it was told to fail");
        let more = std::mem::take(&mut *self.wires.history.lock().expect("nobody panics"));
        Ok([more, self.engine.history(now)?].concat())
    }

    fn forget(&mut self, services: &BTreeSet<ServiceKey>) {
        self.wires.deeds.push(Deed::Forget(services.iter().copied().collect()));
        self.engine.forget(services);
    }

    fn learn(&mut self, pieces: Vec<Piece>, now: Now) -> Result<Vec<String>> {
        self.wires.deeds.push(Deed::Learn(pieces.clone()));
        self.engine.learn(pieces, now)
    }

    fn take_unlearnt(&mut self) -> BTreeSet<ServiceKey> {
        let mut unlearnt = std::mem::take(&mut *self.wires.unlearnt.lock().expect("nobody panics"));
        unlearnt.append(&mut self.engine.take_unlearnt());
        unlearnt
    }

    fn take_newly_known(&mut self) -> BTreeSet<ServiceKey> {
        self.engine.take_newly_known()
    }

    fn hold_pins(&mut self, services: &BTreeSet<ServiceKey>) -> Result<()> {
        self.wires.deeds.push(Deed::Hold(services.iter().copied().collect()));
        self.engine.hold_pins(services)
    }

    fn lease_pins(&mut self, until: Option<Duration>) {
        self.wires.deeds.push(Deed::Lease(until.is_some()));
        let lease = until.map_or(0, |until| until.saturating_sub(Now::read().mono).as_millis());
        let lease = u64::try_from(lease).unwrap_or(u64::MAX);
        self.wires.longest_lease.fetch_max(lease, Ordering::SeqCst);
        let ends = until.map_or(0, |until| u64::try_from(until.as_millis()).unwrap_or(u64::MAX));
        self.wires.lease_ends.store(ends, Ordering::SeqCst);
        self.engine.lease_pins(until);
    }

    fn take_mac(&mut self, mac: [u8; 6], take: bool) -> Result<()> {
        self.wires.deeds.push(Deed::TakeMac(mac, take));
        self.engine.take_mac(mac, take)
    }

    fn retired(&self) -> &BTreeMap<ServiceKey, Totals> {
        self.engine.retired()
    }

    fn set_retired(&mut self, sums: BTreeMap<ServiceKey, Totals>) {
        self.engine.set_retired(sums);
    }

    fn limits(&self) -> Limits {
        self.engine.limits()
    }

    fn interfaces(&self) -> Vec<Interface> {
        self.engine.interfaces()
    }

    fn explain(&self, questions: &Questions, status: &Status, nanos: u64) -> Result<Answers> {
        self.engine.explain(questions, status, nanos)
    }

    fn prepare_capture(&self, spec: &Spec, status: &Status) -> Result<(Loader, Book)> {
        self.engine.prepare_capture(spec, status)
    }

    fn begin_capture(&mut self, capturer: Capturer) -> Result<Tap> {
        self.engine.begin_capture(capturer)
    }

    fn end_capture(&mut self) -> Result<()> {
        self.engine.end_capture()
    }

    fn status(&self) -> Result<Status> {
        self.engine.status()
    }
}

//! What the daemon needs of the engine, so that it can be had without one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::Result;
use lb_api::status::{Interface, Standing, Status, Totals};
use lb_control::engine::{Engine, Outcome, Role, Sharers, Suspicion, Swept};
use lb_datapath::{
    DataPlane,
    capture::{Capturer, Loader, Tap},
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

/// What the daemon needs of the engine.
pub trait Balancer: Send + 'static {
    /// See [`Engine::set_desired`].
    fn set_desired(&mut self, desired: Desired);
    /// See [`Engine::set_neighbourhood`].
    fn set_neighbourhood(&mut self, neighbourhood: Neighbourhood);
    /// See [`Engine::set_peers`].
    fn set_peers(&mut self, peers: BTreeSet<IpAddr>);
    /// See [`Engine::wants`].
    fn wants(&self) -> BTreeSet<Want>;
    /// See [`Engine::reconcile`].
    ///
    /// # Errors
    ///
    /// A map can't be written.
    fn reconcile(&mut self, now: Now) -> Result<Outcome>;
    /// See [`Engine::sweep`].
    ///
    /// # Errors
    ///
    /// A map can't be read or written.
    fn sweep(&mut self, now: Now) -> Result<Swept>;
    /// See [`Engine::set_view`].
    fn set_view(&mut self, view: View);
    /// See [`Engine::adopted_view`].
    fn adopted_view(&self) -> View;
    /// See [`Engine::standings`].
    fn standings(&self) -> &BTreeMap<ServiceKey, Standing>;
    /// See [`Engine::watch`].
    ///
    /// # Errors
    ///
    /// The counters can't be read.
    fn watch(&mut self, now: Now) -> Result<Vec<Suspicion>>;
    /// See [`DataPlane::set_hooks`].
    ///
    /// # Errors
    ///
    /// An interface can't have its hook; all have what they had.
    fn set_hooks(&mut self, hooks: &Hooks) -> Result<()>;
    /// The interfaces whose program is at tc.
    fn at_tc(&self) -> BTreeSet<String>;
    /// See [`Engine::has_stepped`].
    fn has_stepped(&self, now: Now) -> bool;
    /// See [`Engine::preview`].
    ///
    /// # Errors
    ///
    /// A map can't be read.
    fn preview(&self, desired: &Desired, now: Now) -> Result<Preview>;
    /// See [`Engine::set_roles`].
    ///
    /// # Errors
    ///
    /// A map can't be written.
    fn set_roles(&mut self, roles: BTreeMap<ServiceKey, Role>, now: Now) -> Result<()>;
    /// See [`Engine::set_unsynced`].
    fn set_unsynced(&mut self, unsynced: BTreeSet<ServiceKey>, now: Now);
    /// See [`Engine::set_sharers`].
    fn set_sharers(&mut self, sharers: Sharers);
    /// See [`Engine::news`]; with their number.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    fn news(&mut self, now: Now) -> Result<(u64, Vec<Piece>)>;
    /// See [`Engine::news_are_taken`].
    fn news_are_taken(&mut self, number: u64);
    /// See [`Engine::survey`].
    ///
    /// # Errors
    ///
    /// A map can't be read.
    fn survey(&mut self, now: Now) -> Result<()>;
    /// See [`Engine::history`].
    ///
    /// # Errors
    ///
    /// A map can't be read.
    fn history(&mut self, now: Now) -> Result<Vec<Piece>>;
    /// See [`Engine::forget`].
    fn forget(&mut self, services: &BTreeSet<ServiceKey>);
    /// See [`Engine::learn`].
    ///
    /// # Errors
    ///
    /// A map can't be written.
    fn learn(&mut self, pieces: Vec<Piece>, now: Now) -> Result<Vec<String>>;
    /// See [`Engine::take_unlearnt`].
    fn take_unlearnt(&mut self) -> BTreeSet<ServiceKey>;
    /// See [`Engine::take_newly_known`].
    fn take_newly_known(&mut self) -> BTreeSet<ServiceKey>;
    /// See [`Engine::hold_pins`].
    ///
    /// # Errors
    ///
    /// A map can't be written.
    fn hold_pins(&mut self, services: &BTreeSet<ServiceKey>) -> Result<()>;
    /// See [`Engine::lease_pins`].
    fn lease_pins(&mut self, until: Option<Duration>);
    /// See [`Engine::take_mac`].
    ///
    /// # Errors
    ///
    /// A map can't be written.
    fn take_mac(&mut self, mac: [u8; 6], take: bool) -> Result<()>;
    /// See [`Engine::retired`].
    fn retired(&self) -> &BTreeMap<ServiceKey, Totals>;
    /// See [`Engine::set_retired`].
    fn set_retired(&mut self, sums: BTreeMap<ServiceKey, Totals>);
    /// How much the maps have room for.
    fn limits(&self) -> Limits;
    /// The interfaces with the program, as the kernel tells it.
    fn interfaces(&self) -> Vec<Interface>;
    /// See [`Engine::prepare_capture`].
    ///
    /// # Errors
    ///
    /// What is to be captured makes no sense, or a capture is running.
    fn prepare_capture(&self, spec: &Spec, status: &Status) -> Result<(Loader, Book)>;
    /// See [`Engine::begin_capture`].
    ///
    /// # Errors
    ///
    /// One is running, or the program can't be put into its place.
    fn begin_capture(&mut self, capturer: Capturer) -> Result<Tap>;
    /// See [`Engine::end_capture`].
    ///
    /// # Errors
    ///
    /// The normal program can't be put back.
    fn end_capture(&mut self) -> Result<()>;
    /// See [`Engine::explain`].
    ///
    /// # Errors
    ///
    /// A packet makes no sense, or a map can't be read.
    fn explain(&self, questions: &Questions, status: &Status, nanos: u64) -> Result<Answers>;
    /// See [`Engine::status`].
    ///
    /// # Errors
    ///
    /// A map can't be read.
    fn status(&self) -> Result<Status>;
}

impl<D: DataPlane + Send + 'static> Balancer for Engine<D> {
    fn set_desired(&mut self, desired: Desired) {
        Self::set_desired(self, desired);
    }

    fn set_neighbourhood(&mut self, neighbourhood: Neighbourhood) {
        Self::set_neighbourhood(self, neighbourhood);
    }

    fn wants(&self) -> BTreeSet<Want> {
        Self::wants(self)
    }

    fn reconcile(&mut self, now: Now) -> Result<Outcome> {
        Self::reconcile(self, now)
    }

    fn sweep(&mut self, now: Now) -> Result<Swept> {
        Self::sweep(self, now)
    }

    fn set_peers(&mut self, peers: BTreeSet<IpAddr>) {
        Self::set_peers(self, peers);
    }

    fn set_view(&mut self, view: View) {
        Self::set_view(self, view);
    }

    fn adopted_view(&self) -> View {
        Self::adopted_view(self)
    }

    fn standings(&self) -> &BTreeMap<ServiceKey, Standing> {
        Self::standings(self)
    }

    fn watch(&mut self, now: Now) -> Result<Vec<Suspicion>> {
        Self::watch(self, now)
    }

    fn set_hooks(&mut self, hooks: &Hooks) -> Result<()> {
        self.data_plane_mut().set_hooks(hooks)
    }

    fn at_tc(&self) -> BTreeSet<String> {
        let interfaces = self.data_plane().interfaces().into_iter();
        interfaces.filter(Interface::is_at_tc).map(|one| one.name).collect()
    }

    fn has_stepped(&self, now: Now) -> bool {
        Self::has_stepped(self, now)
    }

    fn preview(&self, desired: &Desired, now: Now) -> Result<Preview> {
        Self::preview(self, desired, now)
    }

    fn set_roles(&mut self, roles: BTreeMap<ServiceKey, Role>, now: Now) -> Result<()> {
        Self::set_roles(self, roles, now)
    }

    fn set_unsynced(&mut self, unsynced: BTreeSet<ServiceKey>, now: Now) {
        Self::set_unsynced(self, unsynced, now);
    }

    fn set_sharers(&mut self, sharers: Sharers) {
        Self::set_sharers(self, sharers);
    }

    fn news(&mut self, now: Now) -> Result<(u64, Vec<Piece>)> {
        let pieces = Self::news(self, now)?;
        Ok((self.news_number(), pieces))
    }

    fn news_are_taken(&mut self, number: u64) {
        Self::news_are_taken(self, number);
    }

    fn survey(&mut self, now: Now) -> Result<()> {
        Self::survey(self, now)
    }

    fn history(&mut self, now: Now) -> Result<Vec<Piece>> {
        Self::history(self, now)
    }

    fn forget(&mut self, services: &BTreeSet<ServiceKey>) {
        Self::forget(self, services);
    }

    fn learn(&mut self, pieces: Vec<Piece>, now: Now) -> Result<Vec<String>> {
        Self::learn(self, pieces, now)
    }

    fn take_unlearnt(&mut self) -> BTreeSet<ServiceKey> {
        Self::take_unlearnt(self)
    }

    fn take_newly_known(&mut self) -> BTreeSet<ServiceKey> {
        Self::take_newly_known(self)
    }

    fn hold_pins(&mut self, services: &BTreeSet<ServiceKey>) -> Result<()> {
        Self::hold_pins(self, services)
    }

    fn lease_pins(&mut self, until: Option<Duration>) {
        Self::lease_pins(self, until);
    }

    fn take_mac(&mut self, mac: [u8; 6], take: bool) -> Result<()> {
        Self::take_mac(self, mac, take)
    }

    fn retired(&self) -> &BTreeMap<ServiceKey, Totals> {
        Self::retired(self)
    }

    fn set_retired(&mut self, sums: BTreeMap<ServiceKey, Totals>) {
        Self::set_retired(self, sums);
    }

    fn limits(&self) -> Limits {
        self.data_plane().limits()
    }

    fn interfaces(&self) -> Vec<Interface> {
        self.data_plane().interfaces()
    }

    fn explain(&self, questions: &Questions, status: &Status, nanos: u64) -> Result<Answers> {
        Self::explain(self, questions, status, nanos)
    }

    fn prepare_capture(&self, spec: &Spec, status: &Status) -> Result<(Loader, Book)> {
        Self::prepare_capture(self, spec, status)
    }

    fn begin_capture(&mut self, capturer: Capturer) -> Result<Tap> {
        Self::begin_capture(self, capturer)
    }

    fn end_capture(&mut self) -> Result<()> {
        Self::end_capture(self)
    }

    fn status(&self) -> Result<Status> {
        Self::status(self)
    }
}

//! What the daemon needs of the engine, so that it can be had without one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::{
    datapath::DataPlane,
    desired::{Desired, ServiceKey},
    engine::{Engine, Now, Outcome, Suspicion, Swept, preview::Preview},
    health::View,
    netlink::{Neighbourhood, Want},
    reconcile::Standing,
    settings::Limits,
    status::{Interface, Status},
};

/// What the daemon needs of the engine.
pub trait Balancer: Send {
    /// See [`Engine::set_desired`].
    fn set_desired(&mut self, desired: Desired);
    /// See [`Engine::set_neighbourhood`].
    fn set_neighbourhood(&mut self, neighbourhood: Neighbourhood);
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
    /// See [`Engine::has_stepped`].
    fn has_stepped(&self, now: Now) -> bool;
    /// See [`Engine::preview`].
    ///
    /// # Errors
    ///
    /// A map can't be read.
    fn preview(&self, desired: &Desired, now: Now) -> Result<Preview>;
    /// How much the maps have room for.
    fn limits(&self) -> Limits;
    /// The interfaces with the program, as the kernel tells it.
    fn interfaces(&self) -> Vec<Interface>;
    /// See [`Engine::status`].
    ///
    /// # Errors
    ///
    /// A map can't be read.
    fn status(&self) -> Result<Status>;
}

impl<D: DataPlane + Send> Balancer for Engine<D> {
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

    fn has_stepped(&self, now: Now) -> bool {
        Self::has_stepped(self, now)
    }

    fn preview(&self, desired: &Desired, now: Now) -> Result<Preview> {
        Self::preview(self, desired, now)
    }

    fn limits(&self) -> Limits {
        self.data_plane().limits()
    }

    fn interfaces(&self) -> Vec<Interface> {
        self.data_plane().interfaces()
    }

    fn status(&self) -> Result<Status> {
        Self::status(self)
    }
}

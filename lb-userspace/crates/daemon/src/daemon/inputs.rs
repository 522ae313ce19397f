//! The daemon's inputs about backends: the paths to them, and reports of the checks and the clients' packets.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_health::prober::{Change, Report};
use lb_model::{
    hop::{Neighbourhood, Resolution, Want},
    seen::{BackendKey, Condition},
};
use lb_plane::DataPlane;
use tokio::sync::watch;

use super::Daemon;
use crate::egress;

/// How long the start waits for the next hops of all backends, so that none is taken for
/// unreachable because it was not resolved yet.
const FIRST_HOPS: Duration = Duration::from_secs(1);

impl<D: DataPlane> Daemon<D> {
    /// Takes a new neighbourhood.
    pub(super) fn on_neighbourhood(&mut self, neighbourhood: Neighbourhood) {
        let events = self.reach.follow(self.store.desired(), &neighbourhood);
        self.record(events);
        self.health.on_neighbourhood(neighbourhood.clone());
        self.engine.set_neighbourhood(neighbourhood);
        // Other balancers are wanted as soon as a backend is on this node.
        self.want();
        self.check_health();
        self.writing.set_due();
    }

    /// Has the desired backends probed, over the known paths.
    pub(super) fn check_health(&mut self) {
        self.health.assign_checks(self.store.desired());
        if let (Some(egress), Some(known)) = (&self.egress, self.health.neighbourhood()) {
            egress.watch(egress::plan(self.store.desired(), known, self.store.config().tunnel));
        }
        self.engine.set_view(self.health.view().clone());
    }

    /// Takes reports about backends.
    pub(super) fn on_reports(&mut self, reports: impl Iterator<Item = Report>) {
        let now = Instant::now();
        for report in reports {
            self.doubt_way(&report);
            let events = self.health.on_report(report, self.store.desired(), now);
            self.record(events);
            self.writing.set_due();
        }
        if self.writing.is_due() {
            self.engine.set_view(self.health.view().clone());
        }
    }

    /// A backend that is down may be at another MAC address.
    pub(super) fn doubt_way(&self, report: &Report) {
        let is_down = |change: &Change| change.to != Condition::Up;
        if !report.change.as_ref().is_some_and(is_down) {
            return;
        }
        let BackendKey { service, backend: address } = report.target;
        if let Some(service) = self.store.desired().services.values().find(|s| s.key == service) {
            (self.effects.doubt)(Want { address: address.ip, mode: service.mode });
        }
    }
}

/// Waits until each next hop is resolved or unreachable, for a while.
pub(super) async fn await_first_hops(
    wants: BTreeSet<Want>,
    neighbours: &mut watch::Receiver<Neighbourhood>,
) -> Result<()> {
    let known = |neighbourhood: &Neighbourhood| {
        wants.iter().all(|want| {
            matches!(
                neighbourhood.hops.get(want),
                Some(Resolution::Resolved(_) | Resolution::Unreachable { .. })
            )
        })
    };
    match tokio::time::timeout(FIRST_HOPS, neighbours.wait_for(known)).await {
        Ok(Err(_)) => anyhow::bail!("the kernel's neighbours can't be followed"),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

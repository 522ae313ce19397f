//! Periodic work. Each second: entries that have run out, interfaces, the time of day. Each tenth of a second: backends
//! that are silent, and nodes that are Active.

use std::time::{Duration, Instant};

use lb_api::event::{EventBody, Kind};
use lb_control::engine::{InterfaceEvent, InterfaceEventKind, Suspicion};
use lb_model::backend_address::BackendAddress;
use lb_plane::DataPlane;

use super::Daemon;
use crate::clock::Jump;

/// How often the neighbours are probed that get answers.
const ANSWERED: Duration = Duration::from_secs(10);

impl<D: DataPlane> Daemon<D> {
    /// The work of each second.
    pub(super) fn tick(&mut self) {
        self.look_at_clocks();
        self.send_pending_transfers();
        let found = self.egress.as_ref().map(|egress| egress.take_events());
        found.into_iter().flatten().for_each(|event| self.record_event(event));
        self.look_at_sharers();
        self.look_at_balancers();
        let failed = match self.engine.sweep(self.now()) {
            Ok(swept) => {
                if !swept.interfaces.is_empty() {
                    // One that was made anew may have got another hook.
                    (self.effects.at_tc)(self.engine.at_tc());
                }
                self.report_interfaces(swept.interfaces);
                if !swept.removed.is_empty() {
                    self.finish_removals(&swept.removed);
                }
                None
            }
            Err(error) => Some(format!("{error:#}")),
        };
        // Pending writes are tried again, even if the sweep has failed.
        if failed.is_some() || self.writing.error().is_some() {
            let unwritten = self.try_reconcile();
            self.set_write_error(unwritten.or(failed));
        }
        if self.store.write_error().is_some() {
            self.keep();
        }
        self.look_for_listener_files();
        self.look_at_answers();
        self.get_ready();
    }

    /// Has the kernel look now and then whether the hosts that get answers are still at their MAC addresses.
    fn look_at_answers(&mut self) {
        if self.answered.elapsed() < ANSWERED {
            return;
        }
        self.answered = Instant::now();
        let stations = self.engine.answered_stations(ANSWERED);
        let failed = stations.as_ref().err().map(|error| format!("{error:#}"));
        if let Some(error) = failed.as_ref().filter(|_| self.answered_error != failed) {
            tracing::warn!("the neighbours that get answers in mode nat are not probed: {error}");
        }
        self.answered_error = failed;
        if let Ok(stations) = stations
            && !stations.is_empty()
        {
            (self.effects.answered)(stations);
        }
    }

    /// The work of each tenth of a second: looks for backends that are silent, lets shares grow, and looks for two nodes that are Active.
    pub(super) fn fast_tick(&mut self) {
        let now = self.now();
        if self.engine.has_stepped(now) {
            self.reconcile();
        }
        match self.engine.watch(now) {
            Ok(suspicions) => {
                for Suspicion { target, reason } in suspicions {
                    self.health.suspect(target, reason);
                }
            }
            Err(error) => tracing::debug!("no look for silent backends: {error:#}"),
        }
        self.look_at_state_file();
        self.look_at_interfaces();
        self.end_resuming();
        self.look_for_two(Instant::now());
        self.look_at_wanting(Instant::now());
        self.look_at_handover();
        self.sync_roles();
    }

    /// Lets the deadlines go with a time of day that is set.
    pub(super) fn look_at_clocks(&mut self) {
        if let Some(jump) = self.clocks.look((self.effects.clocks)()) {
            self.follow_clock(jump);
            self.engine.set_desired(self.store.desired().clone());
        }
    }

    pub(super) fn follow_clock(&mut self, jump: Jump) {
        let (event, any) = self.store.shift_deadlines(jump);
        self.record_event(event);
        if any {
            self.keep();
        }
    }

    /// Records events of interfaces that lose the program and get it again.
    pub(super) fn report_interfaces(&self, changes: Vec<InterfaceEvent>) {
        for InterfaceEvent { interface, kind, text } in changes {
            let (kind, message) = match kind {
                InterfaceEventKind::Lost => {
                    (Kind::InterfaceLost, format!("what arrives at {interface} is not forwarded"))
                }
                InterfaceEventKind::Back => {
                    (Kind::InterfaceBack, format!("what arrives at {interface} is forwarded"))
                }
            };
            self.record_event(EventBody::new(kind, message, text));
        }
    }

    /// Takes backends out whose last flow has ended.
    pub(super) fn finish_removals(&mut self, removed: &[(String, BackendAddress)]) {
        let mut desired = self.store.desired().clone();
        for (service, address) in removed {
            if let Some(service) = desired.services.get_mut(service) {
                service.backends.remove(address);
            }
        }
        if let Err(refusal) = self.put_in_force(desired, "its last flow has ended") {
            tracing::debug!("{refusal}");
        }
    }
}

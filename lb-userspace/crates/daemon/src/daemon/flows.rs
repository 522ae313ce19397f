//! The history of flows, on its way to the peers and from them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use lb_api::event::{EventBody, Kind};
use lb_control::engine::LATE;
use lb_datapath::DataPlane;
use lb_model::desired::ServiceKey;
use lb_sync::{Mark, PeerId, Record};

use super::{Daemon, FLUSH_INTERVAL, peers::Group};

/// How long new pins may be made of which no peer knows: without the daemon, which allows it again with
/// each beat, or with news that a peer has not taken yet. No longer than it takes to see that a peer is
/// late, and to tell what follows from that: nobody else knows of a pin that is made when the daemon is
/// dead.
const LEASE: Duration = LATE.saturating_add(FLUSH_INTERVAL);

impl<D: DataPlane> Daemon<D> {
    /// Tells a peer all of this node's history.
    pub(super) fn send_all(&mut self, id: PeerId) {
        // What the others have not been told yet is not to be told to this one twice.
        self.flush();
        let now = self.now();
        match self.engine.export_all(now) {
            Ok(mut records) => {
                if let Some(group) = &self.group {
                    records.extend(group.retained_of(self.roles.flow_sources()));
                    group.rim.send_all(id, records);
                }
            }
            Err(error) => {
                // The session asks once.
                if let Some(group) = &mut self.group {
                    group.pending_full_sync.insert(id);
                }
                self.report_failed_export(&error);
            }
        }
    }

    /// Tells what was not told yet of services that are about to be another node's: afterwards nothing
    /// of them is told from here.
    ///
    /// While two nodes are Active for them, neither knows what the other one has pinned, and the one
    /// that stays learns it here. A peer that is not there gets it when it comes, if that is soon.
    pub(super) fn send_last(&mut self, services: &BTreeSet<ServiceKey>) {
        self.flush_if_connected();
        let Some(group) = &self.group else { return };
        let is_apart = group.misses_some();
        let both: BTreeSet<_> = group.both_active.keys().map(|(router, _)| *router).collect();
        let both = self.services_of(both);
        if !is_apart && both.is_disjoint(services) {
            return;
        }
        let now = self.now();
        let mut records = match self.engine.export_all(now) {
            Ok(records) => records,
            Err(error) => return self.report_failed_export(&error),
        };
        records.retain(|record| {
            matches!(record, Record::Pins { .. }) && services.contains(&record.service())
        });
        let Some(group) = &mut self.group else { return };
        if is_apart {
            group.retained = Some((Instant::now(), records.clone()));
        }
        records.retain(|record| both.contains(&record.service()));
        if !records.is_empty() {
            group.publish(records);
        }
    }

    /// Learns what a peer tells, as far as it counts.
    pub(super) fn learn(&mut self, id: PeerId, records: Vec<Record>, mark: Mark) {
        self.import_pieces(id, records);
        if let Some(group) = &self.group {
            group.rim.took(id, mark);
        }
    }

    fn import_pieces(&mut self, id: PeerId, records: Vec<Record>) {
        let Some(group) = &mut self.group else { return };
        let taken = group.accepted(id, records, self.roles.flow_sources());
        if taken.is_empty() {
            return;
        }
        match self.engine.import(taken, self.now()) {
            Ok(reasons) => {
                let events = self.group.as_mut().map(|group| group.rejected(id, reasons));
                self.record(events.into_iter().flatten());
            }
            Err(error) => self.report_failed_export(&error),
        }
        let missed = self.engine.take_rejected();
        let Some(group) = &mut self.group else { return };
        let missed = group.miss(id, missed, Instant::now());
        let cause = "they could not be written; it is asked for them again";
        self.report_missing(id, &missed, cause);
    }

    /// Flows on a backend that peers knew before this node did are missing here: an operator adds it to
    /// one node after the other. All is asked for again, at once.
    pub(super) fn on_new_backends(&mut self) {
        let known = self.engine.take_newly_known();
        let Some(group) = self.group.as_mut().filter(|_| !known.is_empty()) else { return };
        for (id, missed) in group.miss_flows_of(&known) {
            let cause = "their backend was not known here; it is asked for them again";
            self.report_missing(id, &missed, cause);
        }
    }

    fn report_missing(&self, id: PeerId, missed: &BTreeSet<ServiceKey>, cause: &str) {
        if missed.is_empty() {
            return;
        }
        let services = self.store.desired().services.iter();
        let names = services.filter(|(_, service)| missed.contains(&service.key));
        let names: Vec<_> = names.map(|(name, _)| name.as_str()).collect();
        let name = self.group.as_ref().map(|group| group.name(id)).unwrap_or_default();
        let message =
            format!("flows of {} that {name} replies of are missing here", names.join(", "));
        self.record_event(EventBody::new(Kind::PeerUnsynced, message, cause));
    }

    /// Tells those peers everything to whom it could not be told.
    pub(super) fn send_pending_full_syncs(&mut self) {
        let pending_full_sync =
            self.group.as_mut().map(|group| std::mem::take(&mut group.pending_full_sync));
        pending_full_sync.into_iter().flatten().for_each(|id| self.send_all(id));
    }

    pub(super) fn report_failed_export(&self, error: &anyhow::Error) {
        // The sweep meets with the same, and tells of it.
        tracing::debug!("the history of flows: {error:#}");
    }

    /// Tells the peers what has changed, and lets the program make pins for a while.
    pub(super) fn flush(&mut self) {
        let now = self.now();
        let Some(group) = &mut self.group else { return };
        self.engine.set_acknowledged(group.unacked.taken(group.rim.taken(), now.mono));
        match self.engine.export_changes(now) {
            Ok(records) if records.is_empty() => {}
            Ok(records) => {
                group.unacked.told(self.engine.export_number(), now.mono);
                group.publish(records);
            }
            Err(error) => return self.report_failed_export(&error),
        }
        self.engine.lease_pins(Some(group.unacked.since().unwrap_or(now.mono) + LEASE));
    }

    /// The same, if anybody is there. Without, pins need no lease.
    pub(super) fn flush_if_connected(&mut self) {
        if self.group.as_ref().is_some_and(Group::is_connected) {
            self.flush();
        }
    }
}

//! Flow sync: the export of flow records to the peers, and the import of theirs.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use lb_api::event::{EventBody, Kind};
use lb_control::engine::LATE;
use lb_model::desired::ServiceKey;
use lb_plane::DataPlane;
use lb_sync::{Mark, PeerId, Record};

use super::{Daemon, FLUSH_INTERVAL, peers::PeerGroup};

/// How long the program may make pins that no peer knows. The daemon extends the lease with each flush; it
/// runs out when the daemon is dead, or when a peer does not acknowledge an export. No longer than it takes
/// to see that a peer is late and to react: no other node knows a pin that is made while the daemon is dead.
const LEASE: Duration = LATE.saturating_add(FLUSH_INTERVAL);

impl<D: DataPlane> Daemon<D> {
    /// Sends all of this node's records to a peer: a transfer.
    pub(super) fn send_transfer(&mut self, id: PeerId) {
        // Changes that are not exported yet go out first, so that this peer does not receive them twice.
        self.flush();
        let now = self.now();
        match self.engine.export_all(now) {
            Ok(mut records) => {
                if let Some(group) = &self.group {
                    records.extend(group.retained_of(self.roles.flow_sources()));
                    group.sessions.send_transfer(id, records);
                }
            }
            Err(error) => {
                // The session requests all records once.
                if let Some(group) = &mut self.group {
                    group.pending_transfers.insert(id);
                }
                self.log_failed_exchange(&error);
            }
        }
    }

    /// Exports the remaining changes of services that are about to be another node's: afterwards this
    /// node exports none of them.
    ///
    /// While two nodes are Active for them, neither knows the pins of the other one, and the one
    /// that stays learns it here. A peer that is not connected receives it when it connects, if that is soon.
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
            Err(error) => return self.log_failed_exchange(&error),
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

    /// Imports the records of a peer that count, and acknowledges all of them.
    pub(super) fn import_and_acknowledge(&mut self, id: PeerId, records: Vec<Record>, mark: Mark) {
        self.import_records(id, records);
        if let Some(group) = &self.group {
            group.sessions.acknowledge(id, mark);
        }
    }

    fn import_records(&mut self, id: PeerId, records: Vec<Record>) {
        let Some(group) = &mut self.group else { return };
        let accepted = group.accepted(id, records, self.roles.flow_sources());
        if accepted.is_empty() {
            return;
        }
        match self.engine.import(accepted, self.now()) {
            Ok(reasons) => {
                let events = self.group.as_mut().map(|group| group.rejected(id, reasons));
                self.record(events.into_iter().flatten());
            }
            Err(error) => self.log_failed_exchange(&error),
        }
        let missed = self.engine.take_rejected();
        let Some(group) = &mut self.group else { return };
        let missed = group.miss(id, missed, Instant::now());
        let cause = "they could not be written; they are requested again";
        self.report_missing(id, &missed, cause);
    }

    /// Flows on a backend that peers knew before this node did are missing here: an operator adds it to
    /// one node after the other. All records are requested again, at once.
    pub(super) fn on_new_backends(&mut self) {
        let known = self.engine.take_newly_known();
        let Some(group) = self.group.as_mut().filter(|_| !known.is_empty()) else { return };
        for (id, missed) in group.miss_flows_of(&known) {
            let cause = "their backend was not known here; they are requested again";
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
        let message = format!("flows of {} that {name} has are missing here", names.join(", "));
        self.record_event(EventBody::new(Kind::PeerUnsynced, message, cause));
    }

    /// Sends all records to the peers for which the export has failed.
    pub(super) fn send_pending_transfers(&mut self) {
        let pending_transfers =
            self.group.as_mut().map(|group| std::mem::take(&mut group.pending_transfers));
        pending_transfers.into_iter().flatten().for_each(|id| self.send_transfer(id));
    }

    pub(super) fn log_failed_exchange(&self, error: &anyhow::Error) {
        // The sweep meets the same error, and logs it.
        tracing::debug!("the history of flows: {error:#}");
    }

    /// Exports the changes to the peers, and lets the program make pins for a while.
    pub(super) fn flush(&mut self) {
        let now = self.now();
        let Some(group) = &mut self.group else { return };
        self.engine
            .set_acknowledged(group.unacked.acknowledged(group.sessions.acknowledged(), now.mono));
        match self.engine.export_changes(now) {
            Ok(records) if records.is_empty() => {}
            Ok(records) => {
                group.unacked.sent(self.engine.export_number(), now.mono);
                group.publish(records);
            }
            Err(error) => return self.log_failed_exchange(&error),
        }
        self.engine.lease_pins(Some(group.unacked.since().unwrap_or(now.mono) + LEASE));
    }

    /// The same, if a peer is connected. Without peers, pins need no lease.
    pub(super) fn flush_if_connected(&mut self) {
        if self.group.as_ref().is_some_and(PeerGroup::is_connected) {
            self.flush();
        }
    }
}

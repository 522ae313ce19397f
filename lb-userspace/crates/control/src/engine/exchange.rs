//! The exchange of flow state with peers ([`history`](super::history)), as the daemon calls it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use lb_model::{desired::ServiceKey, time::Now};
use lb_plane::DataPlane;
use lb_sync::Record;

use super::{Engine, Outcome, Role, Sharers};

impl<D: DataPlane> Engine<D> {
    /// Sets whose history of each service counts; one that is not named is this node's own.
    ///
    /// A service that has followed has the right ring already: no map is written. One that begins to follow
    /// keeps its own ring until a peer exports one, for however long. If no peer does, it goes on from there
    /// when it is this node's own again.
    ///
    /// A service that follows is not exported any more. So the caller that takes [`Role::Own`] from a service
    /// calls [`Self::export_changes`] right before, and sends that to peers: it has the last pins.
    ///
    /// # Errors
    ///
    /// A ring can't be read; the roles are taken all the same.
    pub fn set_roles(&mut self, roles: BTreeMap<ServiceKey, Role>, now: Now) -> Result<()> {
        self.history.set_roles(&self.maps, roles, now)
    }

    /// Sets how the nodes stand that share services with this one. With peers, the caller sets it before each
    /// [`Self::sweep`].
    pub fn set_sharers(&mut self, sharers: Sharers) {
        self.history.sharing.sharers = sharers;
    }

    /// The changes since the last call, of services whose history is this node's or shared.
    ///
    /// The records are as they are at this moment, whatever they were when they changed. The export of one
    /// call has the number [`Self::export_number`]; [`Self::set_acknowledged`] sets the acknowledged one.
    ///
    /// # Errors
    ///
    /// A map can't be read; the next call exports the changes.
    pub fn export_changes(&mut self, now: Now) -> Result<Vec<Record>> {
        let around = (&self.starved, &self.wanted);
        self.history.export_changes(&mut self.maps, around, now)
    }

    /// The number of the last export.
    pub const fn export_number(&self) -> u64 {
        self.history.pending.number
    }

    /// Every peer has acknowledged all exports up to this number. Until this is called for the first time,
    /// the next export acknowledges the one before.
    pub const fn set_acknowledged(&mut self, number: u64) {
        self.history.set_acknowledged(number);
    }

    /// The full history of services whose history is this node's or shared.
    ///
    /// # Errors
    ///
    /// A map can't be read.
    pub fn export_all(&mut self, now: Now) -> Result<Vec<Record>> {
        self.history.export_all(&self.maps, now)
    }

    /// Looks which flows of UDP services [`Self::export_changes`] must export, as the walk of each second
    /// does: for a handover, where the last second counts. It costs a tenth of a microsecond a flow.
    ///
    /// # Errors
    ///
    /// A map can't be read; the next walk does it.
    pub fn survey(&mut self, now: Now) -> Result<()> {
        self.history.survey(&self.maps, now)
    }

    /// A peer is about to send the full histories of these services. The imported records are void when the
    /// full history has arrived; until then they hold.
    pub fn begin_import(&mut self, services: &BTreeSet<ServiceKey>) {
        self.history.begin_import(&self.wanted, services);
    }

    /// Imports a peer's history of services that follow it or share it. The errors are returned once each,
    /// as `web: backend 10.0.0.13 is not known here`.
    ///
    /// Of a service whose history is this node's own, only pins of unknown flows are taken: a predecessor
    /// has sent them late, or another node that is Active at the same time. The caller decides whether to
    /// import from such a node.
    ///
    /// # Errors
    ///
    /// A map can't be written. All that could be taken was; the next reconciliation writes the rings,
    /// and [`Self::take_rejected`] has the services that lack other records.
    pub fn import(&mut self, records: Vec<Record>, now: Now) -> Result<Vec<String>> {
        let embryonic_secs = self.walk.embryonic_secs(self.maps.room_for_pins());
        let around = (&mut self.maps, &self.wanted);
        let mut report = self.history.import(records, around, embryonic_secs, now);
        report.take_pinned().into_iter().for_each(|service| self.walk.expect_pins(service));
        for (id, target) in report.take_targets() {
            let done = self.retarget_ring(id, target, now, &mut Outcome::default());
            report.record_failure(done);
        }
        self.history.end_import(report, (&mut self.maps, &self.wanted), now)
    }

    /// The services with records that [`Self::import`] has rejected since the last call: a write has failed,
    /// there was no room, or a ring was wrong. Peers must send their full histories again
    /// before this node has all of them.
    ///
    /// An unknown backend does not count: its flows have no place here however often they are sent, until
    /// it is [known](Self::take_newly_known).
    pub fn take_rejected(&mut self) -> BTreeSet<ServiceKey> {
        self.history.take_rejected()
    }

    /// The services with a backend that was written since the last call, and to which a peer had sent pins
    /// before: an operator adds it to one node first. Peers must send their full histories again.
    pub fn take_newly_known(&mut self) -> BTreeSet<ServiceKey> {
        self.history.take_newly_known()
    }

    /// From now on no flow of these services is pinned: SYNs go to the base owner where a pin would
    /// be needed. So the node that takes over has all pins. Flows of other services are pinned again.
    ///
    /// # Errors
    ///
    /// A map can't be written; the next reconciliation does it.
    pub fn pause_pinning(&mut self, services: &BTreeSet<ServiceKey>) -> Result<()> {
        self.history.pause_pinning(&mut self.maps, services)
    }

    /// Flows may be pinned until this time on CLOCK_MONOTONIC; none: always. So the program ceases to
    /// make pins that are not exported when the daemon has ceased to run.
    pub fn lease_pins(&mut self, until: Option<Duration>) {
        self.history.lease_pins(&mut self.maps, until);
    }
}

//! Flows of UDP services that go where the ring would not send them. They are exported by the walk of each
//! second, and at once when a ring has changed.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use lb_common::abi::{Service, udp_policy};
use lb_datapath::DataPlane;
use lb_model::{
    desired::{Protocol, ServiceKey},
    flow::{FlowRef, FlowTable},
    time::Now,
};
use tracing::debug;

use super::{Role, off_ring};
use crate::engine::{Engine, sweep::is_kept};

impl<D: DataPlane> Engine<D> {
    /// Looks which flows of UDP services [`Self::export_changes`] must export, as the walk of each second
    /// does: for a handover, where the last second counts. It costs a tenth of a microsecond a flow.
    ///
    /// # Errors
    ///
    /// A map can't be read; the next walk does it.
    pub fn survey(&mut self, now: Now) -> Result<()> {
        debug!("survey");
        self.history.survey_due = false;
        let services: BTreeMap<_, _> = self.surveyed_services(now).collect();
        if !self.history.pending.is_requested() || services.is_empty() {
            return Ok(());
        }
        let rings = self.tracked_rings()?;
        let mut found = HashMap::new();
        for table in [FlowTable::Tracked, FlowTable::Connections] {
            self.data_plane
                .flows(table, &mut |flow: FlowRef, value| {
                    let Some((service, floor)) = services.get(&flow.service()) else { return };
                    let live = is_kept(value, service, *floor, now);
                    if live && off_ring(&flow, value, service, &rings) {
                        found.insert(flow, value.backend);
                    }
                })
                .context("walk the flows of UDP services")?;
        }
        drop(rings);
        self.take_survey(found);
        Ok(())
    }

    /// Takes over the flows that a walk has found, and exports them.
    pub(in crate::engine) fn take_survey(&mut self, found: HashMap<FlowRef, u16>) {
        for flow in self.history.pending.survey(found) {
            self.export_end(&flow);
        }
    }

    /// The ring of a service has changed, and flows of it may stay where it does not send them.
    pub(in crate::engine) fn expect_off_ring(&mut self, key: &ServiceKey) {
        let tracks = self.applied.services.get(key).is_some_and(|service| tracks(key, service));
        self.history.survey_due |= tracks && self.history.pending.is_requested();
    }

    /// Looks for such flows if a ring has changed since the last look.
    pub(in crate::engine) fn survey_if_due(&mut self, now: Now) -> Result<()> {
        if !self.history.survey_due {
            return Ok(());
        }
        let done = self.survey(now);
        self.history.survey_due = done.is_err();
        done
    }

    /// The services that are exported and have flows of their own, by id, with the second before which none
    /// of their flows can have been idle.
    fn surveyed_services(&self, now: Now) -> impl Iterator<Item = (u16, (Service, u32))> {
        let services = self.applied.services.iter();
        let exported = services.filter(|(key, service)| {
            tracks(key, service) && self.history.role(key) != Role::Follows
        });
        exported.map(move |(key, service)| {
            (service.id, (*service, self.history.floor(key, service.idle_timeout, now)))
        })
    }
}

/// Whether a service's flows are known one by one.
fn tracks(key: &ServiceKey, service: &Service) -> bool {
    key.protocol == Protocol::Udp && service.udp_policy != udp_policy::ONESHOT
}

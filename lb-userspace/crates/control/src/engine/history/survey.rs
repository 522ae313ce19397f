//! Flows of UDP services that go where the ring would not send them. They are exported by the walk of each
//! second, and at once when a ring has changed.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use lb_common::abi::{Service, udp_policy};
use lb_model::{
    desired::{Protocol, ServiceKey},
    flow::{FlowRef, FlowTable, idle_secs},
    time::Now,
};
use lb_plane::DataPlane;
use tracing::debug;

use super::{History, Role, off_ring};
use crate::engine::maps::AppliedMaps;

impl History {
    /// As [`Engine::survey`](crate::engine::Engine::survey).
    pub(in crate::engine) fn survey<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        now: Now,
    ) -> Result<()> {
        debug!("survey");
        self.survey_due = false;
        let services: BTreeMap<_, _> = self.surveyed_services(maps, now).collect();
        if !self.pending.is_requested() || services.is_empty() {
            return Ok(());
        }
        let rings = maps.tracked_rings()?;
        let mut found = HashMap::new();
        for table in [FlowTable::Tracked, FlowTable::Connections] {
            maps.plane
                .flows(table, &mut |flow: FlowRef, value| {
                    let Some((service, floor)) = services.get(&flow.service()) else { return };
                    let live = idle_secs(value, *floor, now) <= service.idle_timeout;
                    if live && off_ring(&flow, value, service, &rings) {
                        found.insert(flow, value.backend);
                    }
                })
                .context("walk the flows of UDP services")?;
        }
        drop(rings);
        self.record_survey(maps, found);
        Ok(())
    }

    /// Records the flows that a walk has found outside of their rings, and exports what has changed.
    pub(in crate::engine) fn record_survey<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        found: HashMap<FlowRef, u16>,
    ) {
        for flow in self.pending.survey(found) {
            self.export_end(maps, &flow);
        }
    }

    /// The ring of a service has changed, and flows of it may stay where it does not send them.
    pub(in crate::engine) fn expect_off_ring<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        key: &ServiceKey,
    ) {
        let tracks = maps.applied.services.get(key).is_some_and(|service| tracks(key, service));
        self.survey_due |= tracks && self.pending.is_requested();
    }

    /// Looks for such flows if a ring has changed since the last look.
    pub(in crate::engine) fn survey_if_due<D: DataPlane>(
        &mut self,
        maps: &AppliedMaps<D>,
        now: Now,
    ) -> Result<()> {
        if !self.survey_due {
            return Ok(());
        }
        let done = self.survey(maps, now);
        self.survey_due = done.is_err();
        done
    }

    /// The services that are exported and have flows of their own, by id, with the second before which none
    /// of their flows can have been idle.
    fn surveyed_services<D: DataPlane>(
        &self,
        maps: &AppliedMaps<D>,
        now: Now,
    ) -> impl Iterator<Item = (u16, (Service, u32))> {
        let services = maps.applied.services.iter();
        let exported = services
            .filter(|(key, service)| tracks(key, service) && self.role(key) != Role::Follows);
        exported.map(move |(key, service)| {
            (service.id, (*service, self.floor(key, service.idle_timeout, now)))
        })
    }
}

/// Whether a service's flows are known one by one.
fn tracks(key: &ServiceKey, service: &Service) -> bool {
    key.protocol == Protocol::Udp && service.udp_policy != udp_policy::ONESHOT
}

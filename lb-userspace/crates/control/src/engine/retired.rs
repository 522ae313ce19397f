//! Counters of backends that were removed from their services.
//!
//! A backend's counters go with its id. Without this a service's sums would fall when one of its
//! backends goes, which a reader of the metrics takes for a restart, and counts all of them again.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use lb_api::status::{Backend, Totals};
use lb_model::desired::ServiceKey;
use lb_plane::DataPlane;

/// The sums of backends that are gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Retired {
    pub(super) sums: BTreeMap<ServiceKey, Totals>,
    /// Ids that were cleared and whose counters are still to be added.
    cleared: Vec<(ServiceKey, u16)>,
}

impl Retired {
    /// A backend's entry was cleared: nothing more will be counted for it.
    pub(super) fn clear(&mut self, service: ServiceKey, id: u16) {
        self.cleared.push((service, id));
    }

    /// A service is gone, and its sums with it.
    pub(super) fn forget(&mut self, service: &ServiceKey) {
        self.sums.remove(service);
        self.cleared.retain(|(key, _)| key != service);
    }

    /// Adds the counters of the backends that were cleared. Their ids rest for two seconds and name
    /// no other backend until then.
    pub(super) fn count(&mut self, data_plane: &impl DataPlane) -> Result<()> {
        if self.cleared.is_empty() {
            return Ok(());
        }
        let ids: Vec<u16> = self.cleared.iter().map(|(_, id)| *id).collect();
        let totals = data_plane.totals_of(&ids).context("read the backends' counters")?;
        for ((service, _), counted) in self.cleared.drain(..).zip(totals) {
            let more = Totals { sent: counted.sent, new_flows: counted.new_flows };
            if more != Totals::default() {
                self.sums.entry(service).or_default().add(more);
            }
        }
        Ok(())
    }

    /// The sums of a service, with the counters of its present backends.
    pub(super) fn with<'a>(
        &self,
        service: &ServiceKey,
        backends: impl Iterator<Item = &'a Backend>,
    ) -> Totals {
        let mut totals = self.sums.get(service).copied().unwrap_or_default();
        backends.for_each(|b| totals.add(Totals { sent: b.sent, new_flows: b.new_flows }));
        totals
    }
}

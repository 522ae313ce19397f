//! The changes by `lbctl`, apart from the configuration.
//!
//! The desired state is the configuration with the overrides over it, so a change that is taken back
//! leaves no trace. [`merge()`] applies them when the configuration changes.

mod enforce_rules;
mod merge;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::merge::{Conflict, Ending, Merged, Unsaid, merge};
use crate::{
    backend_address::BackendAddress,
    check::Check,
    desired::{Admin, Backend, Desired, Service, Weight},
};

/// All changes, by service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// The changes of each service that has any.
    #[serde(default)]
    pub services: BTreeMap<String, ServiceOverride>,
}

/// The changes of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceOverride {
    /// The service, if it is not as the configuration has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<Service>,
    /// The service of this name in the configuration is not wanted; with `added`, another is.
    #[serde(default)]
    pub removed: bool,
    /// The changes of each backend that has any.
    #[serde(default)]
    pub backends: BTreeMap<BackendAddress, BackendOverride>,
}

/// The changes of one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum BackendOverride {
    /// It is there as given, whether the configuration has it or not.
    Added(Backend),
    /// The configuration's backend, with what differs.
    Changed {
        /// Another weight.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weight: Option<Weight>,
        /// Another administrative state.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        admin: Option<Admin>,
        /// Whether it is a backup, if that differs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backup: Option<bool>,
        /// Another check.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        check: Option<CheckOverride>,
    },
    /// The configuration's backend is not wanted.
    Removed,
}

/// Another check than the configuration's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum CheckOverride {
    /// This one.
    Own(Box<Check>),
    /// The service's.
    Service,
}

impl Overrides {
    /// The configuration with the changes over it.
    ///
    /// A service that was added under a name or with an address that the configuration has is not
    /// in it, unless it stands for the configuration's.
    #[must_use]
    pub fn apply(&self, configured: &Desired) -> Desired {
        let mut desired = configured.clone();
        for (name, change) in &self.services {
            if change.removed {
                desired.services.remove(name);
            }
            if let Some(added) = &change.added {
                let removed = |name| self.services.get(name).is_some_and(|change| change.removed);
                let mut others = configured.services.iter();
                let taken = others.any(|(name, s)| s.key == added.key && !removed(name));
                if !taken && !desired.services.contains_key(name) {
                    desired.services.insert(name.clone(), added.clone());
                }
            }
            let Some(service) = desired.services.get_mut(name) else { continue };
            for (address, change) in &change.backends {
                change.apply(*address, &mut service.backends);
            }
        }
        desired
    }

    /// The least overrides that make `wanted` of `configured`.
    #[must_use]
    pub fn between(configured: &Desired, wanted: &Desired) -> Self {
        let mut services = BTreeMap::new();
        let (base_services, wanted_services) = (&configured.services, &wanted.services);
        for name in base_services.keys().filter(|name| !wanted_services.contains_key(*name)) {
            services.insert(name.clone(), ServiceOverride { removed: true, ..Default::default() });
        }
        for (name, service) in wanted_services {
            let base = base_services.get(name);
            let Some(base) = base.filter(|base| base.is_same_but_for_backends(service)) else {
                let (added, removed) = (Some(service.clone()), base.is_some());
                services.insert(
                    name.clone(),
                    ServiceOverride { added, removed, backends: BTreeMap::new() },
                );
                continue;
            };
            let backends = backends_between(&base.backends, &service.backends);
            if !backends.is_empty() {
                services.insert(name.clone(), ServiceOverride { backends, ..Default::default() });
            }
        }
        Self { services }
    }
}

impl BackendOverride {
    fn apply(&self, address: BackendAddress, backends: &mut BTreeMap<BackendAddress, Backend>) {
        match self {
            Self::Added(backend) => {
                backends.insert(address, backend.clone());
            }
            Self::Removed => {
                backends.remove(&address);
            }
            Self::Changed { weight, admin, backup, check } => {
                let Some(backend) = backends.get_mut(&address) else { return };
                backend.weight = weight.unwrap_or(backend.weight);
                backend.admin = admin.unwrap_or(backend.admin);
                backend.backup = backup.unwrap_or(backend.backup);
                match check {
                    None => {}
                    Some(CheckOverride::Own(check)) => backend.check = Some(check.clone()),
                    Some(CheckOverride::Service) => backend.check = None,
                }
            }
        }
    }
}

fn backends_between(
    configured: &BTreeMap<BackendAddress, Backend>,
    desired: &BTreeMap<BackendAddress, Backend>,
) -> BTreeMap<BackendAddress, BackendOverride> {
    let gone = configured.keys().filter(|address| !desired.contains_key(*address));
    let gone = gone.map(|address| (*address, BackendOverride::Removed));
    let there = desired.iter().filter_map(|(address, backend)| {
        let change = match configured.get(address) {
            Some(base) if base == backend => return None,
            // A name has no override of its own: nothing changes it but another backend in its place.
            Some(base) if base.name != backend.name => BackendOverride::Added(backend.clone()),
            None => BackendOverride::Added(backend.clone()),
            Some(base) => BackendOverride::Changed {
                weight: (base.weight != backend.weight).then_some(backend.weight),
                admin: (base.admin != backend.admin).then_some(backend.admin),
                backup: (base.backup != backend.backup).then_some(backend.backup),
                check: (base.check != backend.check).then(|| match &backend.check {
                    Some(check) => CheckOverride::Own(check.clone()),
                    None => CheckOverride::Service,
                }),
            },
        };
        Some((*address, change))
    });
    gone.chain(there).collect()
}

#[cfg(test)]
mod tests;

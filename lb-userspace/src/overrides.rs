//! What `lbctl` changed, apart from what the configuration says.
//!
//! The desired state is the configuration with the overrides over it, so a reload keeps what was
//! changed at runtime, and a change that is taken back leaves no trace.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    desired::{Admin, Backend, Desired, Service, Weight},
    spec::{BackendSpec, ServiceSpec},
};

/// All changes, by service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// The changes of each service that has any.
    #[serde(default)]
    pub services: BTreeMap<String, ServiceOverride>,
}

/// What was changed of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceOverride {
    /// The service, if it is not as the configuration has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<ServiceSpec>,
    /// The service of this name in the configuration is not wanted; with `added`, another is.
    #[serde(default)]
    pub removed: bool,
    /// The changes of each backend that has any.
    #[serde(default)]
    pub backends: BTreeMap<IpAddr, BackendOverride>,
}

/// What was changed of one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum BackendOverride {
    /// It is there, and as it says; whether the configuration has it or not.
    Added(BackendSpec),
    /// The configuration's backend, with what differs.
    Changed {
        /// Another weight.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weight: Option<Weight>,
        /// Another administrative state.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        admin: Option<Admin>,
    },
    /// The configuration's backend is not wanted.
    Removed,
}

impl Overrides {
    /// The configuration with the changes over it.
    ///
    /// Where the two exclude each other, the configuration has it: a service that was added under
    /// a name or with a key that the configuration has taken since, a change of what is gone.
    #[must_use]
    pub fn apply(&self, configured: &Desired) -> Desired {
        let mut desired = configured.clone();
        for (name, change) in &self.services {
            if change.removed {
                desired.services.remove(name);
            }
            if let Some(spec) = &change.added {
                let removed = |name| self.services.get(name).is_some_and(|change| change.removed);
                let mut others = configured.services.iter();
                let taken = others.any(|(name, s)| s.key == spec.key() && !removed(name));
                if !taken && !desired.services.contains_key(name) {
                    desired.services.insert(name.clone(), spec.to_service());
                }
            }
            let Some(service) = desired.services.get_mut(name) else { continue };
            for (address, change) in &change.backends {
                change.apply(*address, &mut service.backends);
            }
        }
        desired
    }

    /// The least overrides that make `desired` of `configured`.
    #[must_use]
    pub fn between(
        configured: &Desired,
        desired: &Desired,
        drain_deadlines: &BTreeMap<String, Duration>,
    ) -> Self {
        let mut services = BTreeMap::new();
        for name in configured.services.keys().filter(|name| !desired.services.contains_key(*name))
        {
            services.insert(name.clone(), ServiceOverride { removed: true, ..Default::default() });
        }
        for (name, service) in &desired.services {
            let base = configured.services.get(name);
            let removed = base.is_some_and(|base| !same_but_backends(base, service));
            let Some(base) = base.filter(|_| !removed) else {
                let spec = ServiceSpec::of(service, drain_deadlines.get(name).copied());
                services.insert(
                    name.clone(),
                    ServiceOverride { added: Some(spec), removed, backends: BTreeMap::new() },
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

    /// Keeps backends that a configuration no longer has until their flows have ended.
    ///
    /// `before` is the configuration that was in force. Backends of a service that is gone go with
    /// it, since nothing is left that would send to them.
    #[must_use]
    pub fn retire(
        mut self,
        before: &Desired,
        configured: &Desired,
        deadline: impl Fn(&str) -> Option<SystemTime>,
    ) -> Self {
        for (name, service) in &configured.services {
            let Some(old) = before.services.get(name).filter(|old| old.key == service.key) else {
                continue;
            };
            // A backend that can't be reached in this mode, or that is a VIP by now, can't stay.
            if old.mode != service.mode {
                continue;
            }
            for (address, backend) in &old.backends {
                let changes =
                    self.services.get(name).and_then(|change| change.backends.get(address));
                let weight = match changes {
                    _ if service.backends.contains_key(address) => continue,
                    Some(BackendOverride::Added(_) | BackendOverride::Removed) => continue,
                    Some(BackendOverride::Changed { weight, .. }) => {
                        weight.unwrap_or(backend.weight)
                    }
                    None => backend.weight,
                };
                let admin = Admin::Removing { deadline: deadline(name) };
                let change =
                    BackendOverride::Added(BackendSpec { weight, admin, ..backend.clone().into() });
                self.services.entry(name.clone()).or_default().backends.insert(*address, change);
            }
        }
        self
    }
}

impl BackendOverride {
    fn apply(&self, address: IpAddr, backends: &mut BTreeMap<IpAddr, Backend>) {
        match self {
            Self::Added(spec) => {
                backends.insert(address, spec.clone().into());
            }
            Self::Removed => {
                backends.remove(&address);
            }
            Self::Changed { weight, admin } => {
                if let Some(backend) = backends.get_mut(&address) {
                    backend.weight = weight.unwrap_or(backend.weight);
                    backend.admin = admin.unwrap_or(backend.admin);
                }
            }
        }
    }
}

/// Whether two services are the same one, whatever their backends.
fn same_but_backends(a: &Service, b: &Service) -> bool {
    Service { backends: BTreeMap::new(), ..a.clone() }
        == Service { backends: BTreeMap::new(), ..b.clone() }
}

fn backends_between(
    configured: &BTreeMap<IpAddr, Backend>,
    desired: &BTreeMap<IpAddr, Backend>,
) -> BTreeMap<IpAddr, BackendOverride> {
    let gone = configured.keys().filter(|address| !desired.contains_key(*address));
    let gone = gone.map(|address| (*address, BackendOverride::Removed));
    let there = desired.iter().filter_map(|(address, backend)| {
        let change = match configured.get(address) {
            None => BackendOverride::Added(backend.clone().into()),
            Some(base) if base == backend => return None,
            Some(base) if base.backup != backend.backup || base.check != backend.check => {
                BackendOverride::Added(backend.clone().into())
            }
            Some(base) => BackendOverride::Changed {
                weight: (base.weight != backend.weight).then_some(backend.weight),
                admin: (base.admin != backend.admin).then_some(backend.admin),
            },
        };
        Some((*address, change))
    });
    gone.chain(there).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::desired::Mode;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn weight(weight: u16) -> Weight {
        weight.to_string().parse().expect("it is not zero")
    }

    /// A service: name, last byte of its VIP, backends.
    type Given<'a> = (&'a str, u8, &'a [(IpAddr, u16, Admin)]);

    fn desired(services: &[Given<'_>]) -> Desired {
        let services = services.iter().map(|(name, vip, backends)| {
            let mut spec = ServiceSpec::new(IpAddr::from([10, 0, 1, *vip]), 80, Mode::Dsr);
            spec.backends = backends
                .iter()
                .map(|(at, w, admin)| {
                    (*at, BackendSpec { weight: weight(*w), admin: *admin, ..Default::default() })
                })
                .collect();
            ((*name).to_owned(), spec.to_service())
        });
        Desired { services: services.collect() }
    }

    fn between(configured: &Desired, wanted: &Desired) -> Overrides {
        Overrides::between(configured, wanted, &BTreeMap::new())
    }

    #[test]
    fn changes_survive_a_change_of_the_configuration() {
        let old = desired(&[("web", 1, &[(A, 1, Admin::Enabled), (B, 1, Admin::Enabled)])]);
        let edited = desired(&[("web", 1, &[(A, 5, Admin::Enabled), (B, 1, Admin::Disabled)])]);
        let overrides = between(&old, &edited);
        let new = desired(&[("web", 1, &[(A, 2, Admin::Enabled), (B, 2, Admin::Enabled)])]);
        let expected = desired(&[("web", 1, &[(A, 5, Admin::Enabled), (B, 2, Admin::Disabled)])]);
        assert_eq!(overrides.apply(&new), expected);
    }

    #[test]
    fn a_change_taken_back_leaves_no_trace() {
        let configured = desired(&[("web", 1, &[(A, 1, Admin::Enabled)])]);
        assert_eq!(between(&configured, &configured), Overrides::default());
    }

    #[test]
    fn the_configuration_wins_over_what_was_added() {
        let overrides =
            between(&Desired::default(), &desired(&[("mine", 1, &[(A, 1, Admin::Enabled)])]));
        let same_key = desired(&[("theirs", 1, &[])]);
        assert_eq!(overrides.apply(&same_key), same_key);
        let same_name = desired(&[("mine", 2, &[])]);
        assert_eq!(overrides.apply(&same_name), same_name);
    }

    #[test]
    fn what_is_gone_can_not_be_changed() {
        let old = desired(&[
            ("web", 1, &[(A, 1, Admin::Enabled)]),
            ("dns", 2, &[(A, 1, Admin::Enabled)]),
        ]);
        let edited = desired(&[("web", 1, &[(A, 5, Admin::Enabled)])]);
        let new = desired(&[("web", 1, &[(B, 1, Admin::Enabled)])]);
        assert_eq!(between(&old, &edited).apply(&new), new);
    }

    #[test]
    fn backends_that_left_the_file_drain() {
        let before = desired(&[("web", 1, &[(A, 3, Admin::Enabled), (B, 1, Admin::Enabled)])]);
        let configured = desired(&[("web", 1, &[(B, 1, Admin::Enabled)])]);
        let removing = Admin::Removing { deadline: None };
        let overrides = Overrides::default().retire(&before, &configured, |_| None);
        let expected = desired(&[("web", 1, &[(A, 3, removing), (B, 1, Admin::Enabled)])]);
        assert_eq!(overrides.apply(&configured), expected);
        // Twice is as once, and what the operator has removed already does not come back.
        assert_eq!(overrides.clone().retire(&before, &configured, |_| None), overrides);
        let removed = between(&before, &configured);
        assert_eq!(removed.retire(&before, &configured, |_| None).apply(&configured), configured);
    }

    #[test]
    fn backends_of_a_service_that_left_go_with_it() {
        let before = desired(&[("web", 1, &[(A, 3, Admin::Enabled)])]);
        let configured = desired(&[("web", 2, &[]), ("other", 3, &[])]);
        assert_eq!(
            Overrides::default().retire(&before, &configured, |_| None),
            Overrides::default()
        );
    }

    fn any_desired() -> impl Strategy<Value = Desired> {
        let admin = prop_oneof![
            Just(Admin::Enabled),
            Just(Admin::Disabled),
            Just(Admin::Draining { deadline: None })
        ];
        let backends = prop::collection::btree_map(0u8..4, (1u16..4, admin), 0..4);
        let service = (backends, 1u16..3);
        prop::collection::btree_map(0u8..4, service, 0..4).prop_map(|services| {
            let services = services.into_iter().map(|(vip, (backends, port))| {
                let mut spec = ServiceSpec::new(IpAddr::from([10, 0, 1, vip]), port, Mode::Dsr);
                spec.backends = backends
                    .into_iter()
                    .map(|(at, (w, admin))| {
                        (
                            IpAddr::from([10, 0, 0, at]),
                            BackendSpec { weight: weight(w), admin, ..Default::default() },
                        )
                    })
                    .collect();
                (format!("s{vip}"), spec.to_service())
            });
            Desired { services: services.collect() }
        })
    }

    proptest! {
        #[test]
        fn overrides_between_two_states_lead_from_one_to_the_other(
            configured in any_desired(),
            wanted in any_desired(),
        ) {
            let overrides = between(&configured, &wanted);
            prop_assert_eq!(overrides.apply(&configured), wanted);
            let json = serde_json::to_string(&overrides).expect("it is JSON");
            prop_assert_eq!(serde_json::from_str::<Overrides>(&json).expect("it is JSON"), overrides);
        }
    }
}

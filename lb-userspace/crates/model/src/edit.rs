//! The changes that an operator makes at runtime, as edits of what is desired.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    backend_address::{BackendAddress, BackendRef},
    desired::{Admin, Backend, Desired, Service, Weight},
    refusal::{Refusal, RefusalKind},
    units::{format_duration, nearest},
};

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// A service more.
    AddService {
        /// Its name.
        name: String,
        /// The service.
        service: Box<Service>,
    },
    /// A service less.
    RemoveService {
        /// Its name.
        name: String,
    },
    /// A backend more, or one back that was being removed.
    AddBackend {
        /// The service's name.
        service: String,
        /// The backend's address; without a port it gets the service's `target_port`.
        address: BackendAddress,
        /// The backend.
        backend: Backend,
    },
    /// Another weight or administrative state.
    ChangeBackend {
        /// The service's name.
        service: String,
        /// The backend.
        backend: BackendRef,
        /// The changes.
        change: BackendChange,
    },
    /// A backend less.
    RemoveBackend {
        /// The service's name.
        service: String,
        /// The backend.
        backend: BackendRef,
        /// At once; otherwise it drains first.
        force: bool,
    },
}

/// The changes of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendChange {
    /// The new weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// The new administrative state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<AdminChange>,
}

/// An administrative state that can be requested.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state", deny_unknown_fields)]
pub enum AdminChange {
    /// It takes new flows.
    Enabled,
    /// It gets no new flows and keeps the ones it has.
    Draining {
        /// Seconds until flows that are left are moved; none: the service's own deadline.
        #[serde(default)]
        deadline_secs: Option<u64>,
    },
    /// It gets no new flows and keeps the ones it has, for as long as they last.
    Disabled,
    /// It gets nothing; its flows move at once.
    Down,
}

impl Edit {
    /// The service that is changed.
    #[must_use]
    pub fn service(&self) -> &str {
        match self {
            Self::AddService { name, .. } | Self::RemoveService { name } => name,
            Self::AddBackend { service, .. }
            | Self::ChangeBackend { service, .. }
            | Self::RemoveBackend { service, .. } => service,
        }
    }

    /// Makes the change; returns a message. The caller checks the rules of the whole.
    ///
    /// # Errors
    ///
    /// There is no such service or backend, or there is one already.
    pub fn apply(&self, desired: &mut Desired, wall: SystemTime) -> Result<String, Refusal> {
        match self {
            Self::AddService { name, service } => {
                if desired.services.contains_key(name) {
                    let refusal = Refusal::new(
                        RefusalKind::Conflict,
                        format!("service {name} is there already"),
                    );
                    return Err(refusal.hint(format!("see it with 'lbctl service show {name}'")));
                }
                let mut service = (**service).clone();
                let mut backends = BTreeMap::new();
                for (at, backend) in std::mem::take(&mut service.backends) {
                    let ported = at.or_port(service.target_port);
                    if backends.insert(ported, backend).is_some() {
                        let error = format!(
                            "backend {ported} is there twice, since target_port gives it its port"
                        );
                        let refusal = Refusal::new(RefusalKind::Invalid, error);
                        return Err(refusal.hint("give each once, with its weight"));
                    }
                }
                service.backends = backends;
                desired.services.insert(name.clone(), service.clone());
                Ok(format!("service {name} added: {} by {}", service.key, service.mode))
            }
            Self::RemoveService { name } => {
                service_mut(desired, name)?;
                desired.services.remove(name);
                Ok(format!("service {name} removed"))
            }
            Self::AddBackend { service: name, address, backend } => {
                let service = service_mut(desired, name)?;
                let address = address.or_port(service.target_port);
                let back = match service.backends.get(&address).map(|backend| backend.admin) {
                    None => false,
                    Some(Admin::Removing { .. }) => true,
                    Some(_) => {
                        let error = format!("backend {address} of {name} is there already");
                        let hint = format!(
                            "change it with 'lbctl backend weight {name} {address} N', or 'enable'"
                        );
                        return Err(Refusal::new(RefusalKind::Conflict, error).hint(hint));
                    }
                };
                // The name of one that leaves is free for its successor.
                for one in service.backends.values_mut() {
                    if matches!(one.admin, Admin::Removing { .. }) && one.name == backend.name {
                        one.name = None;
                    }
                }
                service.backends.insert(address, backend.clone());
                let how = if back { "is back" } else { "added" };
                Ok(format!("backend {address} of {name} {how} with weight {}", backend.weight))
            }
            Self::ChangeBackend { service: name, backend, change } => {
                let service = service_mut(desired, name)?;
                let deadline = service.drain_deadline;
                let (address, backend) = backend_mut(service, name, backend)?;
                let mut done = Vec::new();
                if let Some(weight) = change.weight {
                    done.push(format!("has weight {weight}"));
                    backend.weight = weight;
                }
                if let Some(admin) = change.admin {
                    let (admin, message) = admin.at(wall, deadline);
                    backend.admin = admin;
                    done.push(message);
                }
                if done.is_empty() {
                    let refusal = Refusal::new(RefusalKind::Invalid, "nothing to change was given");
                    return Err(refusal.hint("give a weight or a state"));
                }
                Ok(format!("backend {address} of {name} {}", done.join(" and ")))
            }
            Self::RemoveBackend { service: name, backend, force } => {
                let service = service_mut(desired, name)?;
                let deadline = service.drain_deadline;
                let (address, backend) = backend_mut(service, name, backend)?;
                if *force {
                    service.backends.remove(&address);
                    return Ok(format!(
                        "backend {address} of {name} removed; its flows move at once"
                    ));
                }
                let at = deadline.and_then(|after| wall.checked_add(after));
                backend.admin = Admin::Removing { deadline: at };
                let until = until(deadline);
                Ok(format!("backend {address} of {name} drains, and is removed when {until}"))
            }
        }
    }
}

impl AdminChange {
    /// The state from `wall` on, and a message.
    fn at(self, wall: SystemTime, default: Option<Duration>) -> (Admin, String) {
        match self {
            Self::Enabled => (Admin::Enabled, "takes new flows".into()),
            Self::Disabled => {
                (Admin::Disabled, "gets no new flows and keeps the ones it has".into())
            }
            Self::Down => (Admin::Down, "is down; its flows move at once".into()),
            Self::Draining { deadline_secs } => {
                let after = deadline_secs.map(Duration::from_secs).or(default);
                let deadline = after.and_then(|after| wall.checked_add(after));
                (Admin::Draining { deadline }, format!("drains until {}", until(after)))
            }
        }
    }
}

/// The event that ends a drain.
fn until(deadline: Option<Duration>) -> String {
    match deadline {
        None => "its last flow has ended".into(),
        Some(deadline) => {
            format!("its last flow has ended, or {} have passed", format_duration(deadline))
        }
    }
}

/// A service by name, or the nearest name.
fn service_mut<'d>(desired: &'d mut Desired, name: &str) -> Result<&'d mut Service, Refusal> {
    if !desired.services.contains_key(name) {
        return Err(no_service(name, desired.services.keys().map(String::as_str)));
    }
    desired.services.get_mut(name).ok_or_else(|| no_service(name, []))
}

/// The refusal of a name that no service has.
pub fn no_service<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Refusal {
    let refusal = Refusal::new(RefusalKind::NotFound, format!("no service {name}"));
    match nearest(name, known) {
        Some(near) => refusal.hint(format!("did you mean {near}?")),
        None => refusal.hint("'lbctl service list' shows all"),
    }
}

fn backend_mut<'s>(
    service: &'s mut Service,
    name: &str,
    backend: &BackendRef,
) -> Result<(BackendAddress, &'s mut Backend), Refusal> {
    let address = found(name, service, backend)?;
    let known = service.backends.get_mut(&address);
    known.map(|known| (address, known)).ok_or_else(|| no_backend(name, backend, []))
}

/// The backend of a service that a person names.
///
/// # Errors
///
/// There is none, or there are several.
pub fn found(
    name: &str,
    service: &Service,
    backend: &BackendRef,
) -> Result<BackendAddress, Refusal> {
    let names = || service.backends.iter().map(|(at, backend)| (*at, backend.name.as_deref()));
    find(name, service.key.port, backend, names)
}

/// The backend that a person names among `backends`, each with its name, of a service at a port.
///
/// # Errors
///
/// There is none, or there are several.
pub fn find<'a, I: Iterator<Item = (BackendAddress, Option<&'a str>)>>(
    service: &str,
    port: u16,
    backend: &BackendRef,
    backends: impl Fn() -> I,
) -> Result<BackendAddress, Refusal> {
    backend.find(port, backends()).map_err(|several| {
        if several.is_empty() {
            return no_backend(service, backend, backends());
        }
        let error = format!("service {service} has {} backends at {backend}", several.len());
        let several: Vec<String> = several.iter().map(ToString::to_string).collect();
        Refusal::new(RefusalKind::Invalid, error)
            .hint(format!("give the port: {}", several.join(" or ")))
    })
}

/// The refusal of an address or a name that no backend of a service has; `known` are its backends, each with its name.
pub fn no_backend<'a>(
    service: &str,
    backend: &BackendRef,
    known: impl IntoIterator<Item = (BackendAddress, Option<&'a str>)>,
) -> Refusal {
    let error = format!("service {service} has no backend {backend}");
    let refusal = Refusal::new(RefusalKind::NotFound, error);
    let known = known.into_iter();
    let known = known.flat_map(|(at, name)| [Some(at.to_string()), name.map(str::to_owned)]);
    let known: Vec<String> = known.flatten().collect();
    match nearest(&backend.to_string(), known.iter().map(String::as_str)) {
        Some(near) => refusal.hint(format!("did you mean {near}?")),
        None => refusal.hint(format!("'lbctl backend list {service}' shows all")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{desired::Mode, rules};

    const A: BackendAddress =
        BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11)));

    struct Bench {
        desired: Desired,
    }

    impl Bench {
        fn new() -> Self {
            let mut service = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr);
            service.backends.insert(A, Backend::default());
            Self { desired: Desired { services: [("web".to_owned(), service)].into() } }
        }

        fn apply(&mut self, edit: &Edit) -> Result<String, Refusal> {
            edit.apply(&mut self.desired, SystemTime::UNIX_EPOCH)
        }

        fn change(&mut self, admin: AdminChange) -> String {
            let change = BackendChange { admin: Some(admin), weight: None };
            let edit = Edit::ChangeBackend { service: "web".into(), backend: A.into(), change };
            self.apply(&edit).expect("it is possible")
        }

        fn set_deadline(&mut self, deadline: Duration) {
            let web = self.desired.services.get_mut("web").expect("it is there");
            web.drain_deadline = Some(deadline);
        }

        fn admin(&self) -> Admin {
            self.desired.services["web"].backends[&A].admin
        }
    }

    #[test]
    fn backends_of_an_added_service_get_its_target_port() {
        let mut service = Service::new(IpAddr::from([10, 0, 0, 101]), 80, Mode::Dsr);
        service.target_port = 80.try_into().ok();
        service.backends.insert(A, Backend::default());
        let mut bench = Bench::new();
        let add = |name: &str, service: &Service| Edit::AddService {
            name: name.into(),
            service: Box::new(service.clone()),
        };
        bench.apply(&add("one", &service)).expect("it is possible");
        let ported = A.or_port(service.target_port);
        let one: Vec<_> = bench.desired.services["one"].backends.keys().copied().collect();
        assert_eq!(one, [ported]);
        service.backends.insert(ported, Backend::default());
        let refusal = bench.apply(&add("two", &service)).expect_err("it is there twice");
        assert_eq!(
            refusal.error,
            "backend 10.0.0.11:80 is there twice, since target_port gives it its port"
        );
    }

    #[test]
    fn the_name_of_a_backend_that_leaves_is_its_successor_s() {
        let mut bench = Bench::new();
        let add = |address: &str| Edit::AddBackend {
            service: "web".into(),
            address: address.parse().expect("an address"),
            backend: Backend { name: Some("web1".into()), ..Backend::default() },
        };
        bench.apply(&add("10.0.0.12")).expect("it is possible");
        let backend = BackendRef::from("web1".to_owned());
        bench
            .apply(&Edit::RemoveBackend { service: "web".into(), backend, force: false })
            .expect("it is possible");
        bench.apply(&add("10.0.0.13")).expect("it is possible");
        let web = &bench.desired.services["web"];
        assert_eq!(web.find(&"web1".to_owned().into()), Ok([10, 0, 0, 13].into()));
        assert_eq!(rules::violations_of("web", web), []);
    }

    #[test]
    fn a_deadline_beyond_all_time_is_none() {
        let mut bench = Bench::new();
        bench.set_deadline(Duration::MAX);
        let remove = Edit::RemoveBackend { service: "web".into(), backend: A.into(), force: false };
        bench.apply(&remove).expect("it is possible");
        assert_eq!(bench.admin(), Admin::Removing { deadline: None });
        bench.change(AdminChange::Draining { deadline_secs: Some(u64::MAX) });
        assert_eq!(bench.admin(), Admin::Draining { deadline: None });
    }

    #[test]
    fn a_drain_has_its_own_deadline_or_the_services() {
        let mut bench = Bench::new();
        let after = |secs| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(secs));
        let message = bench.change(AdminChange::Draining { deadline_secs: None });
        assert_eq!(message, "backend 10.0.0.11 of web drains until its last flow has ended");
        assert_eq!(bench.admin(), Admin::Draining { deadline: None });
        bench.set_deadline(Duration::from_secs(60));
        bench.change(AdminChange::Draining { deadline_secs: None });
        assert_eq!(bench.admin(), Admin::Draining { deadline: after(60) });
        bench.change(AdminChange::Draining { deadline_secs: Some(5) });
        assert_eq!(bench.admin(), Admin::Draining { deadline: after(5) });
    }

    #[test]
    fn a_backend_is_removed_after_its_drain_or_by_force() {
        let mut bench = Bench::new();
        let remove =
            |force| Edit::RemoveBackend { service: "web".into(), backend: A.into(), force };
        let message = bench.apply(&remove(false)).expect("it is possible");
        assert_eq!(
            message,
            "backend 10.0.0.11 of web drains, and is removed when its last flow has ended"
        );
        assert_eq!(bench.admin(), Admin::Removing { deadline: None });
        let add =
            Edit::AddBackend { service: "web".into(), address: A, backend: Backend::default() };
        assert_eq!(
            bench.apply(&add).expect("it is back"),
            "backend 10.0.0.11 of web is back with weight 1"
        );
        assert_eq!(bench.admin(), Admin::Enabled);
        assert_eq!(bench.apply(&add).expect_err("it is there").kind, RefusalKind::Conflict);
        bench.apply(&remove(true)).expect("it is possible");
        assert!(bench.desired.services["web"].backends.is_empty());
    }

    #[test]
    fn a_service_is_removed_with_its_backends() {
        let mut bench = Bench::new();
        let message = bench.apply(&Edit::RemoveService { name: "web".into() });
        assert_eq!(message.expect("it is possible"), "service web removed");
        assert_eq!(bench.desired, Desired::default());
    }

    #[test]
    fn unknown_names_are_told_the_nearest() {
        let mut bench = Bench::new();
        let edit = Edit::RemoveService { name: "wbe".into() };
        let refusal = bench.apply(&edit).expect_err("there is none");
        assert_eq!(refusal.kind, RefusalKind::NotFound);
        assert_eq!(refusal.hint.as_deref(), Some("did you mean web?"));
        let backend = BackendRef::from("10.0.0.12".to_owned());
        let edit = Edit::RemoveBackend { service: "web".into(), backend, force: false };
        let refusal = bench.apply(&edit).expect_err("there is none");
        assert_eq!(refusal.error, "service web has no backend 10.0.0.12");
        assert_eq!(refusal.hint.as_deref(), Some("did you mean 10.0.0.11?"));
    }
}

//! The events of a change of the desired state.

use std::{collections::BTreeMap, time::SystemTime};

use lb_api::event::{EventBody, Kind};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Backend, Desired},
    units::rfc3339,
};

/// The events between two desired states.
#[must_use]
pub fn between(before: &Desired, after: &Desired, cause: &str) -> Vec<EventBody> {
    let mut found = Vec::new();
    for name in before.services.keys().filter(|name| !after.services.contains_key(*name)) {
        let removed =
            EventBody::new(Kind::ServiceRemoved, format!("service {name} removed"), cause);
        found.push(removed.of_service(name));
    }
    for (name, service) in &after.services {
        let Some(old) = before.services.get(name) else {
            let message = format!("service {name} added: {} by {}", service.key, service.mode);
            found.push(EventBody::new(Kind::ServiceAdded, message, cause).of_service(name));
            continue;
        };
        if !old.is_same_but_for_backends(service) {
            let message = format!("service {name} changed");
            found.push(EventBody::new(Kind::ServiceChanged, message, cause).of_service(name));
        }
        let changes = of_backends(&old.backends, &service.backends);
        found.extend(changes.into_iter().map(|(kind, address, message)| {
            let message = format!("backend {address} of {name} {message}");
            EventBody::new(kind, message, cause).of_backend(name, address)
        }));
    }
    found
}

type Backends = BTreeMap<BackendAddress, Backend>;

fn of_backends(before: &Backends, after: &Backends) -> Vec<(Kind, BackendAddress, String)> {
    let mut found = Vec::new();
    for address in before.keys().filter(|address| !after.contains_key(*address)) {
        found.push((Kind::BackendRemoved, *address, "removed".into()));
    }
    for (&address, backend) in after {
        let mut push = |kind, message| found.push((kind, address, message));
        let old = before.get(&address);
        if old.is_none() {
            push(Kind::BackendAdded, format!("added with weight {}", backend.weight));
        }
        // One that is added takes new flows by default.
        let admin = old.map_or(Admin::Enabled, |old| old.admin);
        if admin != backend.admin {
            let (kind, message) = state(backend.admin);
            push(kind, message);
        }
        let Some(old) = old else { continue };
        if old.weight != backend.weight {
            let message = format!("has weight {} instead of {}", backend.weight, old.weight);
            push(Kind::BackendWeight, message);
        }
        if old.name != backend.name || old.backup != backend.backup || old.check != backend.check {
            push(Kind::BackendChanged, "changed".into());
        }
    }
    found
}

fn state(admin: Admin) -> (Kind, String) {
    let until = |deadline: Option<SystemTime>| match deadline {
        Some(deadline) => {
            format!("until its last flow has ended, at most until {}", rfc3339::format(deadline))
        }
        None => "until its last flow has ended".into(),
    };
    match admin {
        Admin::Enabled => (Kind::BackendEnabled, "takes new flows".into()),
        Admin::Disabled => {
            (Kind::BackendDisabled, "gets no new flows and keeps the ones it has".into())
        }
        Admin::Down => (Kind::BackendDisabled, "is taken down; its flows move at once".into()),
        Admin::Draining { deadline } => {
            (Kind::BackendDraining, format!("drains {}", until(deadline)))
        }
        Admin::Removing { deadline } => {
            (Kind::BackendDraining, format!("drains {}, and is removed then", until(deadline)))
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_model::desired::{Backend, Mode, Service};
    use std::net::IpAddr;

    use super::*;

    const A: BackendAddress =
        BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11)));
    const B: BackendAddress =
        BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 12)));

    fn web(backends: &[(BackendAddress, u16, Admin)]) -> Desired {
        let mut spec = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr);
        for (address, weight, admin) in backends {
            let weight = weight.to_string().parse().expect("not zero");
            let backend = Backend { weight, admin: *admin, ..Backend::default() };
            spec.backends.insert(*address, backend);
        }
        Desired { services: [("web".into(), spec)].into() }
    }

    fn events(before: &Desired, after: &Desired) -> Vec<(Kind, String)> {
        let events = between(before, after, "a test");
        events.into_iter().map(|event| (event.kind, event.message)).collect()
    }

    #[test]
    fn every_change_of_a_backend_is_one_event() {
        let two = web(&[(A, 1, Admin::Enabled), (B, 1, Admin::Enabled)]);
        assert_eq!(events(&two, &two), []);
        let deadline = Some(SystemTime::UNIX_EPOCH);
        for (after, kind, message) in [
            (web(&[(A, 1, Admin::Enabled)]), Kind::BackendRemoved, "removed"),
            (
                web(&[(A, 1, Admin::Enabled), (B, 1, Admin::Disabled)]),
                Kind::BackendDisabled,
                "gets no new flows and keeps the ones it has",
            ),
            (
                web(&[(A, 1, Admin::Enabled), (B, 1, Admin::Removing { deadline })]),
                Kind::BackendDraining,
                "drains until its last flow has ended, at most until 1970-01-01T00:00:00.000Z, and is removed then",
            ),
            (
                web(&[(A, 1, Admin::Enabled), (B, 7, Admin::Enabled)]),
                Kind::BackendWeight,
                "has weight 7 instead of 1",
            ),
        ] {
            assert_eq!(events(&two, &after), [(kind, format!("backend {B} of web {message}"))]);
        }
        let back = events(
            &web(&[(A, 2, Admin::Disabled)]),
            &web(&[(A, 2, Admin::Enabled), (B, 3, Admin::Enabled)]),
        );
        assert_eq!(
            back,
            [
                (Kind::BackendEnabled, format!("backend {A} of web takes new flows")),
                (Kind::BackendAdded, format!("backend {B} of web added with weight 3")),
            ]
        );
    }

    #[test]
    fn services_come_change_and_go() {
        let (none, two) = (Desired::default(), web(&[(A, 1, Admin::Enabled)]));
        let added = "service web added: tcp 10.0.0.100:80 by dsr".to_owned();
        assert_eq!(events(&none, &two), [(Kind::ServiceAdded, added)]);
        assert_eq!(events(&two, &none), [(Kind::ServiceRemoved, "service web removed".into())]);
        let mut changed = two.clone();
        changed.services.get_mut("web").expect("it is there").syn_budget = 1;
        assert_eq!(events(&two, &changed), [(Kind::ServiceChanged, "service web changed".into())]);
    }
}

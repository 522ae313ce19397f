//! Changes that need `--yes`: they take a service from its clients.

use lb_model::{
    backend_address::BackendAddress,
    desired::{Admin, Backend, Desired, Service, ServiceKey},
    edit::{AdminChange, Edit},
    units::counted,
};

/// The loss by a change that needs `--yes`; none: it may go on.
///
/// `is_lost` returns whether a backend can't serve, regardless of its desired state.
pub(super) fn loss(
    edit: &Edit,
    desired: &Desired,
    is_lost: impl Fn(ServiceKey, BackendAddress) -> bool,
) -> Option<String> {
    let (name, named, takes_it_out) = match edit {
        Edit::RemoveService { name } => {
            let backends = desired.services.get(name)?.backends.len();
            let backends = counted(backends, "backend");
            return Some(format!(
                "this ends service {name}, which has {backends}: its connections break"
            ));
        }
        Edit::ChangeBackend { service, backend, change } => {
            let out = change.admin.is_some_and(|admin| admin != AdminChange::Enabled);
            (service, backend, out)
        }
        Edit::RemoveBackend { service, backend, .. } => (service, backend, true),
        Edit::AddService { .. } | Edit::AddBackend { .. } => return None,
    };
    let service = desired.services.get(name)?;
    let address = service.find(named).ok()?;
    let backend = service.backends.get(&address)?;
    if !takes_it_out {
        return None;
    }
    let serves = |address: BackendAddress, backend: &Backend| {
        backend.admin == Admin::Enabled && !is_lost(service.key, address)
    };
    if serves(address, backend) && !others(service, address).any(|(a, b)| serves(a, b)) {
        return Some(format!(
            "{address} is the last backend of {name} that takes new flows: without it, new connections are dropped"
        ));
    }
    // One that is down has had its flows moved.
    let has_flows = |backend: &Backend| backend.admin != Admin::Down;
    let at_once = match edit {
        Edit::RemoveBackend { force, .. } => *force,
        Edit::ChangeBackend { change, .. } => change.admin == Some(AdminChange::Down),
        _ => false,
    };
    if at_once && has_flows(backend) && !others(service, address).any(|(_, b)| has_flows(b)) {
        return Some(format!(
            "{address} is the last backend of {name} that may have flows: its connections break"
        ));
    }
    let is_removed = matches!(edit, Edit::RemoveBackend { .. });
    (is_removed && others(service, address).next().is_none())
        .then(|| format!("{address} is the last backend of {name}: without it, {name} has none"))
}

fn others(
    service: &Service,
    but: BackendAddress,
) -> impl Iterator<Item = (BackendAddress, &Backend)> {
    let all = service.backends.iter().map(|(address, backend)| (*address, backend));
    all.filter(move |(address, _)| *address != but)
}

#[cfg(test)]
mod tests {
    use lb_model::{
        desired::{Backend, Mode, Service},
        edit::BackendChange,
    };
    use std::net::IpAddr;

    use super::*;

    const A: BackendAddress =
        BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11)));
    const B: BackendAddress =
        BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 12)));

    fn web(backends: &[(BackendAddress, Admin)]) -> Desired {
        let mut spec = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr);
        for (address, admin) in backends {
            let backend = Backend { admin: *admin, ..Backend::default() };
            spec.backends.insert(*address, backend);
        }
        Desired { services: [("web".into(), spec)].into() }
    }

    fn change(address: BackendAddress, admin: AdminChange) -> Edit {
        let change = BackendChange { admin: Some(admin), weight: None };
        Edit::ChangeBackend { service: "web".into(), backend: address.into(), change }
    }

    fn remove(address: BackendAddress, force: bool) -> Edit {
        Edit::RemoveBackend { service: "web".into(), backend: address.into(), force }
    }

    #[test]
    fn the_last_backend_that_takes_new_flows_takes_a_yes() {
        let takes = |desired: &Desired, edit: &Edit| loss(edit, desired, |_, _| false).is_some();
        let two = web(&[(A, Admin::Enabled), (B, Admin::Enabled)]);
        let one = web(&[(A, Admin::Enabled), (B, Admin::Disabled)]);
        let out = [
            change(A, AdminChange::Draining { deadline_secs: None }),
            change(A, AdminChange::Disabled),
            change(A, AdminChange::Down),
            remove(A, false),
            remove(A, true),
        ];
        for edit in out {
            assert!(!takes(&two, &edit), "{edit:?}: another is left");
            assert!(takes(&one, &edit), "{edit:?}: none is left");
            let lost = loss(&edit, &two, |_, address| address == B);
            assert!(lost.is_some(), "{edit:?}: the other one can't be reached");
            let lost = loss(&edit, &two, |_, address| address == A);
            assert!(lost.is_none(), "{edit:?}: it does not serve anyway");
        }
        for edit in [
            change(A, AdminChange::Enabled),
            change(B, AdminChange::Down),
            remove(B, true),
            Edit::ChangeBackend {
                service: "web".into(),
                backend: A.into(),
                change: Default::default(),
            },
        ] {
            assert!(!takes(&one, &edit), "{edit:?}");
        }
    }

    #[test]
    fn the_last_backend_of_all_is_removed_only_by_a_yes() {
        for admin in [
            Admin::Enabled,
            Admin::Draining { deadline: None },
            Admin::Removing { deadline: None },
            Admin::Disabled,
            Admin::Down,
        ] {
            for force in [false, true] {
                let edit = remove(A, force);
                let lost = loss(&edit, &web(&[(A, admin)]), |_, _| false);
                assert!(lost.is_some(), "{edit:?} while {admin:?}");
                let lost = loss(&edit, &web(&[(A, admin), (B, Admin::Enabled)]), |_, _| false);
                assert!(lost.is_none(), "{edit:?} while {admin:?}: another is left");
            }
        }
    }

    #[test]
    fn what_breaks_all_connections_takes_a_yes() {
        let draining = Admin::Draining { deadline: None };
        let drained = web(&[(A, draining)]);
        assert!(loss(&remove(A, true), &drained, |_, _| false).is_some());
        for desired in [web(&[]), drained] {
            let edit = Edit::RemoveService { name: "web".into() };
            assert!(loss(&edit, &desired, |_, _| false).is_some());
        }
        // The last one with flows, though it takes no new ones: the other one has none any more.
        let last = web(&[(A, draining), (B, Admin::Down)]);
        let two = web(&[(A, draining), (B, Admin::Disabled)]);
        for edit in [change(A, AdminChange::Down), remove(A, true)] {
            assert!(loss(&edit, &last, |_, _| false).is_some(), "{edit:?}");
            assert!(loss(&edit, &two, |_, _| false).is_none(), "{edit:?}: the other one has some");
        }
        for edit in [
            change(B, AdminChange::Down),
            remove(B, true),
            remove(A, false),
            change(A, AdminChange::Disabled),
        ] {
            assert!(loss(&edit, &last, |_, _| false).is_none(), "{edit:?}: no flow breaks");
        }
        // A service that does not exist is refused by the change itself.
        let edit = Edit::RemoveService { name: "wbe".into() };
        assert!(loss(&edit, &web(&[]), |_, _| false).is_none());
    }
}

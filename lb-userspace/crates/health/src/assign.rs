//! The backends to check, how, and by which path: what is desired and what is known of next hops, as
//! assignments for the prober.

use std::collections::{BTreeMap, BTreeSet};

use lb_model::{
    check::Via,
    desired::{Desired, Mode},
    hop::{Neighbourhood, Resolution, Want},
    seen::{BackendKey, Condition, View},
    settings::Tunnel,
};

use super::{probe::Route, prober::Assignment, vip::ProbePath};

/// The assignments of all backends. `start` is what they count as until they have answered;
/// `adopted` are those whose condition in it the probes of an earlier run have established.
///
/// A probe along the path of the clients' packets waits until that path is known. lbd does not probe a backend
/// that can't be reached: its state is known without it.
#[must_use]
pub fn assignments(
    desired: &Desired,
    known: Option<&Neighbourhood>,
    tunnel: Tunnel,
    start: &View,
    adopted: &BTreeSet<BackendKey>,
) -> BTreeMap<BackendKey, Assignment> {
    let mut assignments = BTreeMap::new();
    for (name, service) in &desired.services {
        for (&address, backend) in &service.backends {
            let check = service.check_of(backend);
            let target = BackendKey { service: service.key, backend: address };
            let want = Want { address: address.ip, mode: service.mode };
            let hop = match known.and_then(|known| known.hops.get(&want)) {
                Some(Resolution::Resolved(hop)) => Some(hop),
                _ => None,
            };
            let route = hop.map(|hop| match check.via {
                Via::Backend => Route::Backend,
                // What a client's packet is after its translation: one for the backend's own address and port.
                Via::Vip if service.mode == Mode::Nat => Route::Backend,
                Via::Vip if hop.is_local() => Route::Here(service.key.vip),
                Via::Vip => Route::Vip(ProbePath {
                    vip: service.key.vip,
                    backend: address.ip,
                    mode: service.mode,
                    hop: hop.clone(),
                    tunnel,
                }),
            });
            let initial = start.get(&target).map_or(Condition::Up, |seen| seen.condition);
            let assignment = Assignment {
                service: name.clone(),
                check: check.clone(),
                route,
                half_life: service.policy.flap_half_life,
                on_down: service.policy.on_down,
                initial,
                is_adopted: adopted.contains(&target),
            };
            assignments.insert(target, assignment);
        }
    }
    assignments
}

#[cfg(test)]
mod tests {
    use lb_model::backend_address::BackendAddress;
    use std::net::IpAddr;

    use lb_model::{
        desired::{Backend, Mode, Service},
        hop::NextHop,
    };

    use super::*;
    use lb_model::{
        check::{Check, Kind},
        seen::Seen,
    };

    const A: BackendAddress =
        BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11)));
    const B: BackendAddress =
        BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 12)));

    fn web() -> Desired {
        let mut service = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr);
        service.policy.check.kind = Kind::Tcp;
        let own = Check { via: Via::Backend, kind: Kind::Tcp, ..Check::default() };
        let own = Backend { check: Some(Box::new(own)), ..Backend::default() };
        service.backends = [(A, Backend::default()), (B, own)].into();
        Desired { services: [("web".to_owned(), service)].into() }
    }

    fn target(backend: BackendAddress) -> BackendKey {
        BackendKey { service: web().services["web"].key, backend }
    }

    fn known(addresses: &[BackendAddress]) -> Neighbourhood {
        let hop = NextHop {
            ifindex: 3,
            interface: "eth0".into(),
            mac: [2; 6],
            l2: vec![0; 14],
            mtu: 1_500,
        };
        let want = |address| Want { address, mode: Mode::Dsr };
        let resolved = Resolution::Resolved(hop);
        let hops = addresses.iter().map(|at| (want(at.ip), resolved.clone())).collect();
        Neighbourhood { hops, ..Neighbourhood::default() }
    }

    #[test]
    fn questions_go_the_way_of_the_traffic_unless_the_check_says_otherwise() {
        let known = known(&[A, B]);
        let made =
            assignments(&web(), Some(&known), Tunnel::default(), &View::new(), &BTreeSet::new());
        let Some(Route::Vip(path)) = &made[&target(A)].route else { panic!("{made:?}") };
        assert_eq!(
            (path.vip, path.backend, path.hop.ifindex),
            (IpAddr::from([10, 0, 0, 100]), A.ip, 3)
        );
        assert_eq!(made[&target(B)].route, Some(Route::Backend));
    }

    #[test]
    fn a_backend_on_this_node_is_asked_for_the_vip_in_its_own_stack() {
        let mut known = known(&[B]);
        let want = Want { address: A.ip, mode: Mode::Dsr };
        known.hops.insert(want, Resolution::Resolved(NextHop::local()));
        let made =
            assignments(&web(), Some(&known), Tunnel::default(), &View::new(), &BTreeSet::new());
        let vip = IpAddr::from([10, 0, 0, 100]);
        assert_eq!(made[&target(A)].route, Some(Route::Here(vip)));
    }

    #[test]
    fn who_can_not_be_reached_is_not_asked() {
        let some = known(&[B]);
        let made =
            assignments(&web(), Some(&some), Tunnel::default(), &View::new(), &BTreeSet::new());
        assert_eq!(made[&target(A)].route, None);
        let made = assignments(&web(), None, Tunnel::default(), &View::new(), &BTreeSet::new());
        assert!(made.values().all(|assignment| assignment.route.is_none()));
    }

    #[test]
    fn who_was_down_starts_down() {
        let seen = Seen { condition: Condition::HardDown, ..Seen::default() };
        let start = [(target(B), seen)].into();
        let made = assignments(&web(), None, Tunnel::default(), &start, &[target(B)].into());
        let start = |backend| (made[&target(backend)].initial, made[&target(backend)].is_adopted);
        assert_eq!(start(A), (Condition::Up, false));
        assert_eq!(start(B), (Condition::HardDown, true));
    }
}

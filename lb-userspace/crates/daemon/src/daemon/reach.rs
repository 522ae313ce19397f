//! Which backends the kernel can't reach, or reaches by a path that is narrower than the link, and when
//! that changes.

use std::collections::{BTreeMap, BTreeSet};

use lb_api::event::{EventBody, Kind};
use lb_model::{
    backend_address::BackendAddress,
    desired::{Desired, Mode, ServiceKey},
    hop::{Neighbourhood, Resolution, Want},
};

/// The backends that can't be reached.
#[derive(Debug, Default)]
pub(super) struct Reach {
    lost: BTreeSet<(ServiceKey, BackendAddress)>,
    /// The MTU of paths that are narrower than the link, in bytes.
    narrow: BTreeMap<(ServiceKey, BackendAddress), u16>,
}

impl Reach {
    /// Takes a new neighbourhood; the events of the changes. A neighbour that is resolved again keeps
    /// its state until it has answered.
    pub(super) fn follow(&mut self, desired: &Desired, known: &Neighbourhood) -> Vec<EventBody> {
        let before = std::mem::take(&mut self.lost);
        let narrow_before = std::mem::take(&mut self.narrow);
        let mut found = Vec::new();
        for (name, service) in &desired.services {
            for &address in service.backends.keys() {
                let backend = (service.key, address);
                let was_lost = before.contains(&backend);
                let event = |kind, what: &str, cause: &str| {
                    let message = format!("backend {address} of {name} {what}");
                    EventBody::new(kind, message, cause).of_backend(name, address)
                };
                let is_lost =
                    match known.hops.get(&Want { address: address.ip, mode: service.mode }) {
                        Some(Resolution::Unreachable { reason }) => {
                            if !was_lost {
                                found.push(event(Kind::BackendDown, "can't be reached", reason));
                            }
                            true
                        }
                        Some(Resolution::Resolved(hop)) => {
                            if was_lost {
                                let cause = format!("its next hop answers on {}", hop.interface);
                                found.push(event(Kind::BackendUp, "can be reached", &cause));
                            }
                            false
                        }
                        Some(Resolution::Pending { .. }) | None => was_lost,
                    };
                if is_lost {
                    self.lost.insert(backend);
                }
                let narrow =
                    known.path_mtus.get(&address.ip).filter(|_| service.mode == Mode::Ipip);
                if let Some(&mtu) = narrow {
                    self.narrow.insert(backend, mtu);
                }
                match (narrow, narrow_before.get(&backend)) {
                    (Some(mtu), before) if before != Some(mtu) => found.push(event(
                        Kind::BackendPathMtu,
                        &format!("has a path that takes packets of {mtu} bytes"),
                        "a router could not forward a larger one; larger ones are tried again in ten minutes",
                    )),
                    (None, Some(_)) => found.push(event(
                        Kind::BackendPathMtu,
                        "has a path that takes what the link takes",
                        "no router has reported a smaller MTU for ten minutes",
                    )),
                    _ => {}
                }
            }
        }
        found
    }

    /// Whether a backend can't be reached.
    pub(super) fn is_lost(&self, service: ServiceKey, backend: BackendAddress) -> bool {
        self.lost.contains(&(service, backend))
    }
}

#[cfg(test)]
mod tests {
    use lb_model::{
        desired::{Backend, Mode, Service},
        hop::NextHop,
    };
    use std::net::IpAddr;

    use super::*;

    const A: BackendAddress =
        BackendAddress::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11)));

    #[test]
    fn a_backend_is_lost_once_and_back_once() {
        let mut spec = Service::new(IpAddr::from([10, 0, 0, 100]), 80, Mode::Dsr);
        spec.backends.insert(A, Backend::default());
        let desired = Desired { services: [("web".into(), spec)].into() };
        let hop = NextHop {
            ifindex: 2,
            interface: "eth0".into(),
            mac: [2; 6],
            l2: vec![0; 14],
            mtu: 1500,
        };
        let reason = || "neighbour 10.0.0.11 does not answer".to_owned();
        let lost = || Resolution::Unreachable { reason: reason() };
        let pending = || Resolution::Pending { reason: "it is resolved".into() };
        let found = || Resolution::Resolved(hop.clone());
        let mut reach = Reach::default();
        for (resolution, expected) in [
            (pending(), None),
            (found(), None),
            (pending(), None),
            (lost(), Some((Kind::BackendDown, reason()))),
            (pending(), None),
            (lost(), None),
            (pending(), None),
            (found(), Some((Kind::BackendUp, "its next hop answers on eth0".into()))),
            (found(), None),
        ] {
            let hops = [(Want { address: A.ip, mode: Mode::Dsr }, resolution.clone())].into();
            let known = Neighbourhood { hops, ..Neighbourhood::default() };
            let events = reach.follow(&desired, &known);
            let events: Vec<_> =
                events.into_iter().map(|event| (event.kind, event.cause)).collect();
            assert_eq!(events, Vec::from_iter(expected), "{resolution:?}");
        }
    }

    #[test]
    fn a_narrow_path_is_told_of_tunnels_when_it_changes() {
        let mut desired = Desired::default();
        for (name, port, mode) in [("dsr", 80, Mode::Dsr), ("ipip", 81, Mode::Ipip)] {
            let mut spec = Service::new(IpAddr::from([10, 0, 0, 100]), port, mode);
            spec.backends.insert(A, Backend::default());
            desired.services.insert(name.into(), spec);
        }
        let mut reach = Reach::default();
        for (mtu, expected) in [
            (None, None),
            (
                Some(1400),
                Some("backend 10.0.0.11 of ipip has a path that takes packets of 1400 bytes"),
            ),
            (Some(1400), None),
            (
                Some(1300),
                Some("backend 10.0.0.11 of ipip has a path that takes packets of 1300 bytes"),
            ),
            (None, Some("backend 10.0.0.11 of ipip has a path that takes what the link takes")),
            (None, None),
        ] {
            let path_mtus = mtu.map(|mtu| (A.ip, mtu)).into_iter().collect();
            let known = Neighbourhood { path_mtus, ..Neighbourhood::default() };
            let found = reach.follow(&desired, &known);
            let events: Vec<_> = found.iter().map(|event| (event.kind, &*event.message)).collect();
            let expected = expected.map(|message| (Kind::BackendPathMtu, message));
            assert_eq!(events, Vec::from_iter(expected), "{mtu:?}");
        }
    }
}

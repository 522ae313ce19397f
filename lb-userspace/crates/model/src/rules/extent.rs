//! The rules for services with several VIPs or ports.

use std::{collections::BTreeMap, net::IpAddr};

use super::Found;
use crate::{
    check::Check,
    desired::{Desired, Mode, Protocol, Service, ServiceKey, Vips},
};

/// The services that have a VIP.
pub(crate) struct Owners<'a> {
    single: BTreeMap<IpAddr, &'a str>,
    prefixes: BTreeMap<Vips, &'a str>,
}

impl<'a> Owners<'a> {
    /// Of all VIPs of these services.
    pub(crate) fn of(desired: &'a Desired) -> Self {
        let all = || desired.services.iter().map(|(name, service)| (service.key, name.as_str()));
        let single = all().filter(|(key, _)| key.extent.host_bits == 0);
        let prefixes = all().filter(|(key, _)| key.extent.host_bits != 0);
        Self {
            single: single.map(|(key, name)| (key.vip, name)).collect(),
            prefixes: prefixes.map(|(key, name)| (key.vips(), name)).collect(),
        }
    }

    /// One that has this VIP.
    pub(crate) fn of_vip(&self, vip: IpAddr) -> Option<&'a str> {
        let of_prefix = || self.prefixes.iter().find(|(vips, _)| vips.contains(vip));
        self.single.get(&vip).copied().or_else(|| of_prefix().map(|(_, name)| *name))
    }
}

impl Found {
    /// Services of the same VIPs have ports that do not overlap, or those of one are a part of the other's.
    pub(super) fn in_ranges(&mut self, desired: &Desired) {
        let mut ranges: BTreeMap<(Vips, Protocol), Vec<(ServiceKey, &str)>> = BTreeMap::new();
        for (name, service) in &desired.services {
            let key = service.key;
            let others = ranges.entry((key.vips(), key.protocol)).or_default();
            let clashes = |other: &&(ServiceKey, &str)| other.0 != key && other.0.clashes(&key);
            if let Some((other, first)) = others.iter().find(clashes) {
                let message = format!(
                    "{key} has ports of service {first}, {other}, and each has some that the other has not: which of \
                     them is meant? Make one a part of the other, or set them apart"
                );
                self.push(name, None, "port", message);
            }
            if !key.ports().is_one() {
                others.push((key, name));
            }
        }
    }

    /// What a service with several VIPs or ports can't be.
    pub(super) fn in_extent(&mut self, name: &str, service: &Service) {
        let (vips, ports) = (service.key.vips(), service.key.ports());
        if service.mode == Mode::Nat && vips.first() != vips.last() {
            let message = format!(
                "{vips}, and mode nat: nothing in a backend's answer says which of these VIPs the client has asked; \
                 use mode dsr or ipip, or make each VIP a service with a port of the backends of its own"
            );
            self.push(name, None, "vip", message);
        }
        if ports.is_one() {
            return;
        }
        let asks_nobody = |check: &Check| check.port.is_none() && check.kind.is_of_a_port();
        if service.backends.values().any(|backend| asks_nobody(service.check_of(backend)))
            || asks_nobody(&service.policy.check)
        {
            let message = format!(
                "clients connect to ports {ports}; say which one shows that a backend serves, as port = {} under \
                 [service.check] (lbctl: --check-port)",
                service.key.port
            );
            self.push(name, None, "port", message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{messages, service},
        *,
    };
    use crate::check::Kind;

    /// One whose check asks at port 80.
    fn wide(vips: &str, ports: &str, mode: Mode, backends: &[&str]) -> Service {
        let mut service = service("10.0.0.100", mode, backends);
        let (vips, ports) = (vips.parse().expect(vips), ports.parse().expect(ports));
        service.key = ServiceKey::of(vips, ports, Protocol::Tcp);
        (service.policy.check.kind, service.policy.check.port) = (Kind::Tcp, Some(80));
        service
    }

    #[test]
    fn a_service_has_several_vips_and_ports_and_the_most_specific_one_is_beside_it() {
        let on = |vips, ports| wide(vips, ports, Mode::Dsr, &["10.0.0.1"]);
        let services = [
            ("any", on("10.0.0.96/28", "any")),
            ("range", on("10.0.0.96/28", "8000-8100")),
            ("one", on("10.0.0.96/28", "8050")),
            ("web", on("10.0.0.100", "80")),
            ("others", on("10.0.0.100", "79-90")),
            ("far", wide("fd00::/120", "any", Mode::Ipip, &["fd01::1"])),
        ];
        assert_eq!(messages(&services), [""; 0]);
        let clash = [("a", on("10.0.0.100", "80-90")), ("b", on("10.0.0.100", "85-95"))];
        let found = messages(&clash);
        assert!(
            found.len() == 1 && found[0].contains("has ports of service a, tcp 10.0.0.100:80-90"),
            "{found:?}"
        );
        let twice = [("a", on("10.0.0.96/28", "80")), ("b", on("10.0.0.96/28", "80"))];
        assert!(messages(&twice)[0].contains("is service a already"));
        let inside = [("a", wide("10.0.0.96/28", "80", Mode::Dsr, &["10.0.0.97"]))];
        assert!(messages(&inside)[0].contains("10.0.0.97 is a VIP of service a"));
    }

    #[test]
    fn what_several_vips_or_ports_do_not_go_with_is_refused_with_the_reason() {
        for (vips, ports, mode, backend, reason) in [
            ("10.0.0.96/28", "80", Mode::Nat, "10.0.0.1", "says which of these VIPs"),
            (
                "10.0.0.100",
                "80-81",
                Mode::Dsr,
                "10.0.0.1:80",
                "clients connect to 80-81: dsr sends",
            ),
            ("0.0.0.0/16", "80", Mode::Dsr, "10.0.0.1", "the unspecified address"),
            ("255.255.255.0/24", "80", Mode::Dsr, "10.0.0.1", "the broadcast address"),
        ] {
            let found = messages(&[("web", wide(vips, ports, mode, &[backend]))]);
            assert!(found.len() == 1 && found[0].contains(reason), "{reason}: {found:?}");
        }
        let mut service = wide("10.0.0.100", "8000-8100", Mode::Dsr, &["10.0.0.1"]);
        service.policy.check.port = None;
        let found = messages(&[("web", service.clone())]);
        assert!(found.len() == 1 && found[0].contains("as port = 8000 under"), "{found:?}");
        service.policy.check.kind = Kind::None;
        assert_eq!(messages(&[("web", service)]), [""; 0]);
    }
}

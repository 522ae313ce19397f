//! Makes a merged state obey the rules: the changes by `lbctl` that break one are taken back.

use std::collections::BTreeMap;

use super::{Conflict, Ending, Merged};
use crate::{
    backend_address::BackendAddress,
    desired::{Admin, Desired},
    rules::{self, Violation},
    settings::Limits,
};

impl Merged {
    /// Takes back what breaks a rule and is not as the configuration has it, and names it as a
    /// conflict; all else stays.
    ///
    /// # Errors
    ///
    /// The configuration itself breaks a rule: the first one.
    pub fn enforce_rules(
        &mut self,
        configured: &Desired,
        limits: &Limits,
    ) -> Result<(), Violation> {
        loop {
            let violations = rules::violations_beside(configured, &self.desired, limits);
            let Some(first) = violations.first() else { return Ok(()) };
            let before = self.conflicts.len();
            for violation in &violations {
                self.take_back(violation, configured, limits);
            }
            if self.conflicts.len() == before {
                return Err(first.clone());
            }
        }
    }

    fn take_back(&mut self, violation: &Violation, configured: &Desired, limits: &Limits) {
        let Violation { service, backend, message, .. } = violation;
        match backend {
            None if service.is_empty() => self.make_room(violation, configured, limits),
            None => self.restore_service(service, configured, message),
            Some(at) if has(configured, service, *at) => {
                // The service is what was changed, or another one whose VIP this is.
                let vips =
                    self.desired.services.iter().filter(|(_, s)| s.key.vips().contains(at.ip));
                let names: Vec<String> = vips.map(|(name, _)| name.clone()).collect();
                let before = self.conflicts.len();
                for name in names {
                    self.restore_service(&name, configured, message);
                }
                if self.conflicts.len() == before {
                    self.restore_service(service, configured, message);
                }
            }
            Some(at) => self.remove_backend(service, *at, message),
        }
    }

    /// Takes out what the configuration does not have, until the rest fits.
    fn make_room(&mut self, violation: &Violation, configured: &Desired, limits: &Limits) {
        if violation.field == "services" {
            let names = self.desired.services.keys();
            let more: Vec<String> =
                names.filter(|name| !configured.services.contains_key(*name)).cloned().collect();
            let surplus = self.desired.services.len().saturating_sub(limits.services as usize);
            for name in more.iter().rev().take(surplus) {
                self.restore_service(name, configured, &violation.message);
            }
            return;
        }
        let mut count = 0;
        let mut more: Vec<(bool, String, BackendAddress)> = Vec::new();
        for (name, service) in &self.desired.services {
            count += service.backends.len();
            let added = service.backends.iter().filter(|(at, _)| !has(configured, name, **at));
            more.extend(added.map(|(at, backend)| {
                (matches!(backend.admin, Admin::Removing { .. }), name.clone(), *at)
            }));
        }
        // Those that are leaving go first.
        more.sort();
        for (_, name, at) in more.iter().rev().take(count.saturating_sub(limits.backends as usize))
        {
            self.remove_backend(name, *at, &violation.message);
        }
    }

    /// Puts the configuration's service in the place of one that differs.
    fn restore_service(&mut self, name: &str, configured: &Desired, why: &str) {
        let base = configured.services.get(name);
        if self.desired.services.get(name) == base {
            return;
        }
        self.desired.services.remove(name);
        if let Some(base) = base {
            self.desired.services.insert(name.to_owned(), base.clone());
        }
        self.misfit(name, None, why);
    }

    fn remove_backend(&mut self, name: &str, at: BackendAddress, why: &str) {
        let backends = self.desired.services.get_mut(name).map(|service| &mut service.backends);
        if backends.and_then(|backends: &mut BTreeMap<_, _>| backends.remove(&at)).is_some() {
            self.misfit(name, Some(at), why);
        }
    }

    fn misfit(&mut self, service: &str, backend: Option<BackendAddress>, why: &str) {
        let ending = Ending::Misfit(why.to_owned());
        self.conflicts.push(Conflict { service: service.to_owned(), backend, ending });
    }
}

fn has(configured: &Desired, name: &str, at: BackendAddress) -> bool {
    let service = configured.services.get(name);
    service.is_some_and(|service| service.backends.contains_key(&at))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::desired::{Backend, Mode, Service};

    const A: BackendAddress = BackendAddress::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    const B: BackendAddress = BackendAddress::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
    const C: BackendAddress = BackendAddress::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3)));

    fn service(vip: u8, backends: &[(BackendAddress, Admin)]) -> Service {
        let mut service = Service::new(IpAddr::from([10, 0, 1, vip]), 80, Mode::Dsr);
        let backend = |admin| Backend { admin, ..Backend::default() };
        service.backends = backends.iter().map(|(at, admin)| (*at, backend(*admin))).collect();
        service
    }

    fn merged(services: &[(&str, Service)]) -> Merged {
        let services = services.iter().map(|(name, service)| ((*name).to_owned(), service.clone()));
        Merged { desired: Desired { services: services.collect() }, ..Merged::default() }
    }

    fn limits(services: u32, backends: u32) -> Limits {
        Limits { services, backends, ..Limits::default() }
    }

    #[test]
    fn only_what_breaks_a_rule_is_taken_back() {
        let draining = Admin::Draining { deadline: None };
        let down = Admin::Down;
        let base = merged(&[("web", service(1, &[(A, Admin::Enabled), (B, Admin::Enabled)]))]);
        let drains = service(1, &[(A, draining), (B, down)]);
        let vip = BackendAddress::from([10, 0, 1, 2]);
        let mut small = drains.clone();
        small.ring_slots = 1_000;
        let mut v6 = drains.clone();
        v6.backends.insert("fd00::1".parse().expect("an address"), Backend::default());
        let more = |at: BackendAddress, admin| {
            let mut service = drains.clone();
            service.backends.insert(at, Backend { admin, ..Backend::default() });
            service
        };
        let kept = merged(&[("web", drains.clone())]);
        let with_vip = merged(&[("web", drains.clone()), ("more", service(2, &[]))]);
        /// The state in force, limits, the remaining state, the named ones.
        type Case<'a> = (Merged, Limits, &'a Merged, &'a [(&'a str, Option<BackendAddress>)]);
        let cases: &[Case<'_>] = &[
            (kept.clone(), limits(1, 2), &kept, &[]),
            (merged(&[("web", v6)]), limits(9, 9), &kept, &[("web", "fd00::1".parse().ok())]),
            (
                merged(&[("web", more(vip, Admin::Enabled)), ("more", service(2, &[]))]),
                limits(9, 9),
                &with_vip,
                &[("web", Some(vip))],
            ),
            // Too many: what was added goes, what is leaving first.
            (merged(&[("web", more(C, Admin::Enabled))]), limits(9, 2), &kept, &[("web", Some(C))]),
            (
                merged(&[
                    ("web", more(C, Admin::Removing { deadline: None })),
                    ("zoo", service(2, &[(A, Admin::Enabled)])),
                ]),
                limits(9, 3),
                &merged(&[("web", drains.clone()), ("zoo", service(2, &[(A, Admin::Enabled)]))]),
                &[("web", Some(C))],
            ),
            (
                merged(&[("web", drains.clone()), ("a", service(2, &[])), ("z", service(3, &[]))]),
                limits(2, 9),
                &merged(&[("web", drains.clone()), ("a", service(2, &[]))]),
                &[("z", None)],
            ),
            // A service that makes no sense as a whole is the configuration's again.
            (
                merged(&[("web", small), ("a", service(2, &[(C, draining)]))]),
                limits(9, 9),
                &merged(&[
                    ("web", base.desired.services["web"].clone()),
                    ("a", service(2, &[(C, draining)])),
                ]),
                &[("web", None)],
            ),
        ];
        for (given, limits, expected, named) in cases {
            let mut merged = given.clone();
            merged.enforce_rules(&base.desired, limits).expect("the configuration is fine");
            assert_eq!(merged.desired, expected.desired, "{given:?}");
            let found: Vec<_> =
                merged.conflicts.iter().map(|c| (c.service.as_str(), c.backend)).collect();
            assert_eq!(found, *named, "{given:?}");
        }
    }

    #[test]
    fn an_added_service_gives_way_to_a_configured_backend() {
        let vip = BackendAddress::from([10, 0, 1, 2]);
        let base = merged(&[("web", service(1, &[(vip, Admin::Enabled)]))]);
        let down = service(1, &[(vip, Admin::Down)]);
        let mut both = merged(&[("web", down.clone()), ("mine", service(2, &[]))]);
        both.enforce_rules(&base.desired, &limits(9, 9)).expect("the configuration is fine");
        assert_eq!(both.desired, merged(&[("web", down)]).desired);
    }

    #[test]
    fn a_configuration_that_breaks_a_rule_itself_is_told() {
        let base = merged(&[("web", service(1, &[(A, Admin::Enabled), (B, Admin::Enabled)]))]);
        let mut merged = merged(&[("web", service(1, &[(A, Admin::Down), (B, Admin::Down)]))]);
        let violation =
            merged.enforce_rules(&base.desired, &limits(9, 1)).expect_err("two are too many");
        assert_eq!(violation.field, "backends");
        assert_eq!(merged.conflicts, []);
    }
}

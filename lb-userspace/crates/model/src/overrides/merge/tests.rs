use std::{
    net::{IpAddr, Ipv4Addr},
    time::UNIX_EPOCH,
};

use proptest::prelude::*;

use super::{
    super::{
        Overrides,
        tests::{any_desired, weight},
    },
    *,
};
use crate::{
    check::Kind,
    desired::{Mode, Protocol, ServiceKey},
};

const A: BackendAddress = BackendAddress::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
const B: BackendAddress = BackendAddress::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
const ENABLED: Admin = Admin::Enabled;
const DRAINING: Admin = Admin::Draining { deadline: None };
const REMOVING: Admin = Admin::Removing { deadline: None };

/// A service: name, last byte of its VIP, backends.
type Services<'a> = &'a [(&'a str, u8, &'a [(BackendAddress, u16, Admin)])];

fn given(services: Services<'_>) -> Desired {
    let services = services.iter().map(|(name, vip, backends)| {
        let mut service = Service::new(IpAddr::from([10, 0, 1, *vip]), 80, Mode::Dsr);
        let backends = backends.iter();
        service.backends = backends
            .map(|(at, w, admin)| {
                (*at, Backend { weight: weight(*w), admin: *admin, ..Backend::default() })
            })
            .collect();
        ((*name).to_owned(), service)
    });
    Desired { services: services.collect() }
}

/// The conflicts of a change from `before` to `after`, with `runtime` in force.
fn conflicts(
    before: &Desired,
    after: &Desired,
    runtime: &Desired,
    expected: &Desired,
) -> Vec<String> {
    let merged = merge(before, after, runtime, UNIX_EPOCH, &Unsaid::new());
    assert_eq!(merged.desired, *expected);
    merged.conflicts.iter().map(ToString::to_string).collect()
}

#[test]
fn what_was_said_last_wins() {
    let web = |backends| given(&[("web", 1, backends)]);
    type Backends<'a> = &'a [(BackendAddress, u16, Admin)];
    let cases: &[(Backends<'_>, Backends<'_>, Backends<'_>, Backends<'_>, &[&str])] = &[
        // (configuration before, after), (in force before, after), conflicts
        // Untouched keys keep what lbctl set.
        (&[(A, 1, ENABLED)], &[(A, 1, ENABLED)], &[(A, 3, DRAINING)], &[(A, 3, DRAINING)], &[]),
        // A changed key is the configuration's; the other stays.
        (
            &[(A, 1, ENABLED)],
            &[(A, 5, ENABLED)],
            &[(A, 3, DRAINING)],
            &[(A, 5, DRAINING)],
            &["web 10.0.0.1: weight 5 of the configuration replaces 3, set by lbctl"],
        ),
        (
            &[(A, 1, ENABLED)],
            &[(A, 1, Admin::Disabled)],
            &[(A, 3, DRAINING)],
            &[(A, 3, Admin::Disabled)],
            &["web 10.0.0.1: state disabled of the configuration replaces draining, set by lbctl"],
        ),
        // They agree, or lbctl has set nothing.
        (&[(A, 1, ENABLED)], &[(A, 3, ENABLED)], &[(A, 3, ENABLED)], &[(A, 3, ENABLED)], &[]),
        (&[(A, 1, ENABLED)], &[(A, 3, ENABLED)], &[(A, 1, ENABLED)], &[(A, 3, ENABLED)], &[]),
        // A deadline is no part of the configuration, which is newer.
        (
            &[(A, 1, ENABLED)],
            &[(A, 1, DRAINING)],
            &[(A, 1, Admin::Draining { deadline: Some(UNIX_EPOCH) })],
            &[(A, 1, DRAINING)],
            &[
                "web 10.0.0.1: state draining of the configuration replaces draining until 1970-01-01T00:00:00Z, set by lbctl",
            ],
        ),
        // Removed by lbctl: it stays so until the configuration changes it.
        (&[(A, 1, ENABLED)], &[(A, 1, ENABLED)], &[], &[], &[]),
        (&[(A, 1, ENABLED)], &[], &[], &[], &[]),
        (
            &[(A, 1, ENABLED)],
            &[(A, 2, ENABLED)],
            &[],
            &[(A, 2, ENABLED)],
            &[
                "web 10.0.0.1: it was removed by lbctl, and is back: the configuration has changed it since",
            ],
        ),
        // Added by lbctl, and by the configuration since.
        (&[], &[], &[(A, 3, DRAINING)], &[(A, 3, DRAINING)], &[]),
        (&[], &[(A, 3, ENABLED)], &[(A, 3, ENABLED)], &[(A, 3, ENABLED)], &[]),
        (
            &[],
            &[(A, 1, ENABLED)],
            &[(A, 3, ENABLED)],
            &[(A, 1, ENABLED)],
            &["web 10.0.0.1: weight 1 of the configuration replaces 3, set by lbctl"],
        ),
        // On its way out, and back by the configuration.
        (&[], &[(A, 1, ENABLED)], &[(A, 3, REMOVING)], &[(A, 1, ENABLED)], &[]),
        // Gone from the configuration: it drains; what lbctl had drained or removed goes on so.
        (&[(A, 3, ENABLED)], &[], &[(A, 3, ENABLED)], &[(A, 3, REMOVING)], &[]),
        (&[(A, 3, ENABLED)], &[], &[(A, 3, REMOVING)], &[(A, 3, REMOVING)], &[]),
        (
            &[(A, 3, ENABLED)],
            &[],
            &[(A, 3, Admin::Draining { deadline: Some(UNIX_EPOCH) })],
            &[(A, 3, Admin::Removing { deadline: Some(UNIX_EPOCH) })],
            &[],
        ),
        (&[(A, 3, ENABLED)], &[], &[(A, 3, Admin::Down)], &[], &[]),
        (
            &[(A, 3, ENABLED), (B, 1, ENABLED)],
            &[(B, 1, ENABLED)],
            &[(A, 5, ENABLED), (B, 2, ENABLED)],
            &[(A, 5, REMOVING), (B, 2, ENABLED)],
            &[
                "web 10.0.0.1: the configuration has removed it, and with it what lbctl changed of it",
            ],
        ),
    ];
    for (before, after, runtime, expected, reported) in cases {
        let (b, a, r) = (web(*before), web(*after), web(*runtime));
        assert_eq!(
            conflicts(&b, &a, &r, &web(*expected)),
            *reported,
            "{before:?} {after:?} {runtime:?}"
        );
    }
}

#[test]
fn services_follow_the_same_rule() {
    let web = given(&[("web", 1, &[(A, 1, ENABLED)])]);
    let none = given(&[]);
    let changed = given(&[("web", 1, &[(A, 2, ENABLED)])]);
    // Removed by lbctl.
    assert_eq!(conflicts(&web, &web, &none, &none), [""; 0]);
    assert_eq!(conflicts(&web, &none, &none, &none), [""; 0]);
    assert_eq!(
        conflicts(&web, &changed, &none, &changed),
        ["web: it was removed by lbctl, and is back: the configuration has changed it since"]
    );
    // Removed by the configuration.
    assert_eq!(conflicts(&web, &none, &web, &none), [""; 0]);
    assert_eq!(
        conflicts(&web, &none, &changed, &none),
        ["web: the configuration has removed it, and with it what lbctl changed of it"]
    );
    // A backend that only drains since the configuration has removed it is no change by lbctl.
    let retired = given(&[("web", 1, &[(A, 1, ENABLED), (B, 1, REMOVING)])]);
    assert_eq!(conflicts(&web, &none, &retired, &none), [""; 0]);
    // Added by lbctl.
    assert_eq!(conflicts(&none, &none, &web, &web), [""; 0]);
    assert_eq!(conflicts(&none, &web, &web, &web), [""; 0]);
    let mut own = web.clone();
    let service = own.services.get_mut("web").expect("it is there");
    service.policy.check.kind = Kind::Tcp;
    service.backends = given(&[("web", 1, &[(B, 1, ENABLED)])]).services["web"].backends.clone();
    service.drain_deadline = Some(Duration::from_secs(90));
    let both = given(&[("web", 1, &[(A, 1, ENABLED), (B, 1, ENABLED)])]);
    assert_eq!(
        conflicts(&none, &web, &own, &both),
        [
            "web: drain_deadline none of the configuration replaces 1m30s, set by lbctl",
            "web: check none every 2s of the configuration replaces tcp every 2s, set by lbctl",
        ]
    );
}

#[test]
fn values_of_a_service_that_stands_for_the_configured_one_are_merged_by_key() {
    let before = given(&[("web", 1, &[(A, 1, ENABLED)])]);
    let mut runtime = before.clone();
    let service = runtime.services.get_mut("web").expect("it is there");
    (service.syn_budget, service.ring_slots) = (5, 1_009);
    let mut after = before.clone();
    after.services.get_mut("web").expect("it is there").syn_budget = 7;
    let mut expected = after.clone();
    expected.services.get_mut("web").expect("it is there").ring_slots = 1_009;
    assert_eq!(
        conflicts(&before, &after, &runtime, &expected),
        ["web: syn_budget 7 of the configuration replaces 5, set by lbctl"]
    );
}

#[test]
fn backends_of_another_address_can_not_drain() {
    let before = given(&[("web", 1, &[(A, 1, ENABLED)])]);
    let after = given(&[("web", 2, &[])]);
    assert_eq!(conflicts(&before, &after, &before, &after), [""; 0]);
}

#[test]
fn drains_have_the_service_s_deadline() {
    let mut before = given(&[("web", 1, &[(A, 1, ENABLED)])]);
    let mut after = given(&[("web", 1, &[])]);
    let deadline = Some(UNIX_EPOCH + Duration::from_secs(60));
    let mut expected = given(&[("web", 1, &[(A, 1, Admin::Removing { deadline })])]);
    for desired in [&mut before, &mut after, &mut expected] {
        let web = desired.services.get_mut("web").expect("it is there");
        web.drain_deadline = Some(Duration::from_secs(60));
    }
    assert_eq!(conflicts(&before, &after, &before, &expected), [""; 0]);
}

#[test]
fn what_the_configuration_does_not_say_of_an_added_backend_stays() {
    let none = given(&[("web", 1, &[])]);
    let added = given(&[("web", 1, &[(A, 3, DRAINING)])]);
    let after = given(&[("web", 1, &[(A, 1, ENABLED)])]);
    let merged = |before: &Desired, unsaid: &[&'static str]| {
        let unsaid = unsaid.iter().map(|key| ("web".to_owned(), A, *key)).collect();
        let merged = merge(before, &after, &added, UNIX_EPOCH, &unsaid);
        let backend = merged.desired.services["web"].backends[&A].clone();
        (backend.weight, backend.admin, merged.conflicts.len())
    };
    assert_eq!(merged(&none, &["state"]), (weight(1), DRAINING, 1));
    assert_eq!(merged(&none, &["state", "weight"]), (weight(3), DRAINING, 0));
    assert_eq!(merged(&none, &[]), (weight(1), ENABLED, 2));
    // A key that the configuration had is taken back by leaving it out.
    let had = given(&[("web", 1, &[(A, 1, Admin::Disabled)])]);
    assert_eq!(merged(&had, &["state"]).1, ENABLED);
}

#[test]
fn what_does_not_go_with_the_configuration_leaves() {
    let none = given(&[]);
    let mine = given(&[("mine", 1, &[(A, 1, ENABLED)])]);
    let theirs = given(&[("theirs", 1, &[(B, 1, ENABLED)])]);
    assert_eq!(
        conflicts(&none, &theirs, &mine, &theirs),
        [
            "mine: what lbctl changed of it does not go with the configuration: tcp 10.0.1.1:80 is its service theirs"
        ]
    );
    // Ranges of ports of which none is a part of the other, whichever name is first.
    let with_ports = |name: &str, ports: &str| {
        let mut desired = given(&[(name, 1, &[(A, 1, ENABLED)])]);
        let service = desired.services.get_mut(name).expect("it is there");
        let (vips, ports) = (service.key.vips(), ports.parse().expect(ports));
        service.key = ServiceKey::of(vips, ports, Protocol::Tcp);
        desired
    };
    for name in ["before", "zone"] {
        let theirs = with_ports("theirs", "8000-8100");
        assert_eq!(
            conflicts(&none, &theirs, &with_ports(name, "8050-8200"), &theirs),
            [format!(
                "{name}: what lbctl changed of it does not go with the configuration: tcp 10.0.1.1:8050-8200 has ports \
                 of its service theirs, tcp 10.0.1.1:8000-8100"
            )]
        );
        let part = with_ports(name, "8050");
        let mut both = theirs.clone();
        both.services.extend(part.services.clone());
        assert_eq!(conflicts(&none, &theirs, &part, &both), [""; 0]);
    }
    // A backend whose address has become a VIP.
    let vip = IpAddr::from([10, 0, 1, 2]);
    let before = given(&[("web", 1, &[])]);
    let runtime = given(&[("web", 1, &[(vip.into(), 1, ENABLED)])]);
    let after = given(&[("more", 2, &[]), ("web", 1, &[])]);
    assert_eq!(
        conflicts(&before, &after, &runtime, &after),
        [
            "web 10.0.1.2: what lbctl changed of it does not go with the configuration: 10.0.1.2 is a VIP"
        ]
    );
}

fn named(mut desired: Desired, names: &[(BackendAddress, &str)]) -> Desired {
    let web = desired.services.get_mut("web").expect("it is there");
    for (at, name) in names {
        web.backends.get_mut(at).expect("it is there").name = Some((*name).to_owned());
    }
    desired
}

#[test]
fn a_name_that_moves_to_another_address_leaves_the_one_that_drains() {
    for (old, new) in [(A, B), (B, A)] {
        let before = named(given(&[("web", 1, &[(old, 1, ENABLED)])]), &[(old, "web1")]);
        let after = named(given(&[("web", 1, &[(new, 1, ENABLED)])]), &[(new, "web1")]);
        let both = given(&[("web", 1, &[(old, 1, REMOVING), (new, 1, ENABLED)])]);
        assert_eq!(conflicts(&before, &after, &before, &named(both, &[(new, "web1")])), [""; 0]);
    }
}

#[test]
fn a_name_of_the_configuration_leaves_the_backend_that_lbctl_gave_it() {
    let before = given(&[("web", 1, &[])]);
    let after = named(given(&[("web", 1, &[(B, 1, ENABLED)])]), &[(B, "web1")]);
    let runtime = named(given(&[("web", 1, &[(A, 3, ENABLED)])]), &[(A, "web1")]);
    let both = given(&[("web", 1, &[(A, 3, ENABLED), (B, 1, ENABLED)])]);
    assert_eq!(
        conflicts(&before, &after, &runtime, &named(both, &[(B, "web1")])),
        ["web 10.0.0.1: name none of the configuration replaces web1, set by lbctl"]
    );
}

#[test]
fn a_backend_that_gets_a_port_or_loses_it_drains_beside_its_successor() {
    let ported = A.or_port(std::num::NonZeroU16::new(80));
    for (old, new) in [(A, ported), (ported, A)] {
        let before = given(&[("web", 1, &[(old, 1, ENABLED), (B, 1, ENABLED)])]);
        let after = given(&[("web", 1, &[(new, 1, ENABLED), (B, 1, ENABLED)])]);
        let runtime = given(&[("web", 1, &[(old, 1, ENABLED), (B, 1, DRAINING)])]);
        let both = given(&[("web", 1, &[(old, 1, REMOVING), (new, 1, ENABLED), (B, 1, DRAINING)])]);
        assert_eq!(conflicts(&before, &after, &runtime, &both), [""; 0]);
        let mut merged = merge(&before, &after, &runtime, UNIX_EPOCH, &Unsaid::new());
        merged.enforce_rules(&after, &crate::settings::Limits::default()).expect("it is possible");
        assert_eq!((merged.desired, merged.conflicts.len()), (both, 0));
        // One that lbctl has added gives way.
        let none = given(&[("web", 1, &[(B, 1, ENABLED)])]);
        let runtime = given(&[("web", 1, &[(old, 1, ENABLED), (B, 1, DRAINING)])]);
        let expected = given(&[("web", 1, &[(new, 1, ENABLED), (B, 1, DRAINING)])]);
        let found = conflicts(&none, &after, &runtime, &expected);
        assert_eq!(
            found,
            [format!(
                "web {old}: what lbctl changed of it does not go with the configuration: it is the backend {new}"
            )]
        );
    }
}

/// The keys of a state as a flat table, as naive as can be: (service, backend, key) -> value.
fn flat(given: &Desired) -> BTreeMap<(String, Option<BackendAddress>, String), String> {
    let mut table = BTreeMap::new();
    for (name, service) in &given.services {
        let mut put = |at: Option<BackendAddress>, key: &str, value: String| {
            table.insert((name.clone(), at, key.to_owned()), value);
        };
        let keys = keys::service(service);
        for (key, value) in
            keys.iter().filter(|(key, _)| !["vip", "port", "drain_deadline"].contains(key))
        {
            put(None, key, value.to_string());
        }
        put(None, "drain_deadline", format!("{:?}", service.drain_deadline));
        put(None, "address", service.key.to_string());
        for (at, backend) in &service.backends {
            put(Some(*at), "name", format!("{:?}", backend.name));
            put(Some(*at), "weight", format!("{:?}", backend.weight));
            put(Some(*at), "state", format!("{:?}", backend.admin));
            put(Some(*at), "backup", format!("{:?}", backend.backup));
            put(Some(*at), "check", format!("{:?}", backend.check));
        }
    }
    table
}

proptest! {
    #[test]
    fn without_a_change_of_the_configuration_nothing_changes(
        configured in any_desired(),
        runtime in any_desired(),
    ) {
        let merged = merge(&configured, &configured, &runtime, UNIX_EPOCH, &Unsaid::new());
        prop_assert_eq!(&merged.desired, &runtime);
        prop_assert_eq!(merged.conflicts, []);
    }

    #[test]
    fn without_changes_by_lbctl_the_configuration_is_in_force(
        before in any_desired(),
        after in any_desired(),
    ) {
        let merged = merge(&before, &after, &before, UNIX_EPOCH, &Unsaid::new());
        prop_assert_eq!(&merged.conflicts, &[]);
        // Besides backends that drain.
        let mut desired = merged.desired;
        for (name, service) in &mut desired.services {
            let configured = &after.services[name].backends;
            service.backends.retain(|at, backend| {
                configured.contains_key(at) || !matches!(backend.admin, Admin::Removing { .. })
            });
        }
        prop_assert_eq!(desired, after);
    }

    #[test]
    fn every_key_has_the_value_that_was_said_last(
        before in any_desired(),
        after in any_desired(),
        runtime in any_desired(),
    ) {
        let merged = merge(&before, &after, &runtime, UNIX_EPOCH, &Unsaid::new());
        let [b, a, r, m] = [&before, &after, &runtime, &merged.desired].map(flat);
        let there = |given: &Desired, name: &str, at: Option<BackendAddress>| {
            let service = given.services.get(name);
            service.is_some_and(|s| at.is_none_or(|at| s.backends.contains_key(&at)))
        };
        let known = |given: &Desired, name: &str, at: Option<BackendAddress>| match at {
            None => given.services.get(name).map(|service| format!("{service:?}")),
            Some(at) => given.services.get(name).and_then(|s| s.backends.get(&at)).map(|b| format!("{b:?}")),
        };
        for (key, value) in &m {
            let (name, at, word) = key;
            let expected = match (b.get(key), a.get(key), r.get(key)) {
                (old, Some(new), Some(now)) if old == Some(new) => now,
                (_, Some(new), _) => new,
                (None, None, Some(now)) => now,
                (Some(_), None, Some(now)) => {
                    // Gone from the configuration, and drains.
                    let drains = merged.desired.services[name].backends[&at.expect("a backend")].admin;
                    prop_assert!(matches!(drains, Admin::Removing { .. }), "{:?}", key);
                    if word == "state" { continue }
                    now
                }
                (old, None, None) => panic!("{key:?} of {old:?} came from nowhere"),
            };
            prop_assert_eq!(value, expected, "{:?}", key);
        }
        // A missing backend was removed by the last change.
        for key in b.keys().chain(a.keys()).chain(r.keys()).filter(|key| !m.contains_key(key)) {
            let (name, at, _) = key;
            if there(&merged.desired, name, *at) || !there(&merged.desired, name, None) && at.is_some() {
                continue;
            }
            match (known(&before, name, *at), known(&after, name, *at), known(&runtime, name, *at)) {
                (Some(old), Some(new), None) => prop_assert_eq!(old, new, "{:?}", key),
                (_, Some(_), _) | (None, None, Some(_)) => prop_assert!(false, "{:?} is missing", key),
                (_, None, _) => {}
            }
        }
        // A value of lbctl that has gone is named, and no other.
        for (key, now) in &r {
            let (name, at, word) = key;
            let (Some(new), true) = (a.get(key), m.contains_key(key)) else { continue };
            let lost = b.get(key) != Some(new) && b.get(key) != Some(now) && new != now;
            let leaving = at.is_some_and(|at| {
                matches!(runtime.services[name].backends[&at].admin, Admin::Removing { .. })
                    && !there(&before, name, Some(at))
            });
            let named = merged.conflicts.iter().any(|conflict| {
                let replaced = matches!(&conflict.ending, Ending::Replaced { key, .. } if key == word);
                replaced && conflict.service == *name && conflict.backend == *at
            });
            prop_assert_eq!(named, lost && !leaving, "{:?} {:?}", key, &merged.conflicts);
        }
        let overrides = Overrides::between(&after, &merged.desired);
        prop_assert_eq!(&overrides.apply(&after), &merged.desired);
        // The same configuration again changes nothing.
        let again = merge(&after, &after, &merged.desired, UNIX_EPOCH, &Unsaid::new());
        prop_assert_eq!(again.desired, merged.desired);
    }
}

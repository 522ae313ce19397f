use proptest::prelude::*;

use std::{net::IpAddr, time::Duration};

use super::*;
use crate::{
    check::Kind,
    desired::{Mode, ServiceKey},
};

pub(super) fn weight(weight: u16) -> Weight {
    weight.to_string().parse().expect("it is not zero")
}

/// Few values of each kind, so that three states often agree in some of them.
fn any_backend() -> impl Strategy<Value = Backend> {
    let admin = prop_oneof![
        4 => Just(Admin::Enabled),
        1 => Just(Admin::Disabled),
        1 => Just(Admin::Down),
        1 => Just(Admin::Draining { deadline: None }),
        1 => Just(Admin::Draining { deadline: Some(std::time::UNIX_EPOCH) }),
        1 => Just(Admin::Removing { deadline: None }),
    ];
    let check = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Box::new(Check { kind: Kind::Tcp, ..Check::default() }))),
        1 => Just(Some(Box::default())),
    ];
    let name = prop_oneof![3 => Just(None), 1 => Just(Some("a".to_owned())), 1 => Just(Some("b".to_owned()))];
    (name, 1u16..4, admin, any::<bool>(), check).prop_map(|(name, w, admin, backup, check)| {
        Backend { name, weight: weight(w), admin, backup, check }
    })
}

/// States whose services have addresses of their own, whatever their names.
pub(super) fn any_desired() -> impl Strategy<Value = Desired> {
    let backends = prop::collection::btree_map(0u8..3, any_backend(), 0..4);
    let service = (backends, 1u16..3, any::<bool>(), prop::option::of(1u64..3));
    prop::collection::btree_map(0u8..3, service, 0..4).prop_map(|services| {
        let mut desired = Desired::default();
        for (vip, (backends, port, second_choice, drain)) in services {
            let name = format!("s{vip}");
            let mut service = Service::new(IpAddr::from([10, 0, 1, vip]), port, Mode::Dsr);
            service.policy.second_choice = second_choice;
            let backends = backends.into_iter();
            service.backends = backends
                .map(|(at, backend)| {
                    // Two backends of a service have no name in common.
                    let name = backend.name.as_ref().map(|name| format!("{name}{at}"));
                    ([10, 0, 0, at].into(), Backend { name, ..backend })
                })
                .collect();
            service.drain_deadline = drain.map(Duration::from_secs);
            desired.services.insert(name, service);
        }
        desired
    })
}

#[test]
fn a_change_taken_back_leaves_no_trace() {
    let mut configured = Desired::default();
    let service = Service::new(IpAddr::from([10, 0, 1, 1]), 80, Mode::Dsr);
    configured.services.insert("web".into(), service);
    let overrides = Overrides::between(&configured, &configured);
    assert_eq!(overrides, Overrides::default());
}

#[test]
fn what_the_configuration_has_can_not_be_added() {
    let mine = Service::new(IpAddr::from([10, 0, 1, 1]), 80, Mode::Dsr);
    let added = ServiceOverride { added: Some(mine.clone()), ..Default::default() };
    let overrides = Overrides { services: [("mine".to_owned(), added)].into() };
    let other = ServiceKey { vip: IpAddr::from([10, 0, 1, 2]), ..mine.key };
    for (name, key) in [("theirs", mine.key), ("mine", other)] {
        let service = Service { key, ..mine.clone() };
        let configured = Desired { services: [(name.to_owned(), service)].into() };
        assert_eq!(overrides.apply(&configured), configured);
    }
}

proptest! {
    #[test]
    fn overrides_between_two_states_lead_from_one_to_the_other(
        configured in any_desired(),
        wanted in any_desired(),
    ) {
        let overrides = Overrides::between(&configured, &wanted);
        prop_assert_eq!(overrides.apply(&configured), wanted);
        let json = serde_json::to_string(&overrides).expect("it is JSON");
        prop_assert_eq!(serde_json::from_str::<Overrides>(&json).expect("it is JSON"), overrides);
    }
}

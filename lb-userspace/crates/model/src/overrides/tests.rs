use proptest::prelude::*;

use super::*;
use crate::{
    check::Kind,
    desired::{Mode, ServiceKey},
};

/// Services with the deadlines of their drains.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Given {
    pub(super) desired: Desired,
    pub(super) deadlines: BTreeMap<String, Duration>,
}

impl Given {
    pub(super) const fn intent(&self) -> Intent<'_> {
        Intent { desired: &self.desired, deadlines: &self.deadlines }
    }
}

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
    (1u16..4, admin, any::<bool>(), check).prop_map(|(w, admin, backup, check)| Backend {
        weight: weight(w),
        admin,
        backup,
        check,
    })
}

/// States whose services have addresses of their own, whatever their names.
pub(super) fn any_given() -> impl Strategy<Value = Given> {
    let backends = prop::collection::btree_map(0u8..3, any_backend(), 0..4);
    let service = (backends, 1u16..3, any::<bool>(), prop::option::of(1u64..3));
    prop::collection::btree_map(0u8..3, service, 0..4).prop_map(|services| {
        let mut given = Given::default();
        for (vip, (backends, port, second_choice, drain)) in services {
            let name = format!("s{vip}");
            let spec = ServiceSpec::new(IpAddr::from([10, 0, 1, vip]), port, Mode::Dsr);
            let mut service = spec.to_service();
            service.policy.second_choice = second_choice;
            let backends = backends.into_iter();
            service.backends =
                backends.map(|(at, backend)| (IpAddr::from([10, 0, 0, at]), backend)).collect();
            given.deadlines.extend(drain.map(|secs| (name.clone(), Duration::from_secs(secs))));
            given.desired.services.insert(name, service);
        }
        given
    })
}

#[test]
fn a_change_taken_back_leaves_no_trace() {
    let mut configured = Given::default();
    let service = ServiceSpec::new(IpAddr::from([10, 0, 1, 1]), 80, Mode::Dsr).to_service();
    configured.desired.services.insert("web".into(), service);
    let overrides = Overrides::between(configured.intent(), configured.intent());
    assert_eq!(overrides, Overrides::default());
}

#[test]
fn what_the_configuration_has_can_not_be_added() {
    let spec = ServiceSpec::new(IpAddr::from([10, 0, 1, 1]), 80, Mode::Dsr);
    let added = ServiceOverride { added: Some(spec.clone()), ..Default::default() };
    let overrides = Overrides { services: [("mine".to_owned(), added)].into() };
    let other = ServiceKey { vip: IpAddr::from([10, 0, 1, 2]), ..spec.key() };
    for (name, key) in [("theirs", spec.key()), ("mine", other)] {
        let service = Service { key, ..spec.to_service() };
        let configured = Given {
            desired: Desired { services: [(name.to_owned(), service)].into() },
            ..Default::default()
        };
        assert_eq!(overrides.apply(configured.intent()).0, configured.desired);
    }
}

proptest! {
    #[test]
    fn overrides_between_two_states_lead_from_one_to_the_other(
        configured in any_given(),
        wanted in any_given(),
    ) {
        let overrides = Overrides::between(configured.intent(), wanted.intent());
        let (desired, deadlines) = overrides.apply(configured.intent());
        prop_assert_eq!(Given { desired, deadlines }, wanted);
        let json = serde_json::to_string(&overrides).expect("it is JSON");
        prop_assert_eq!(serde_json::from_str::<Overrides>(&json).expect("it is JSON"), overrides);
    }
}

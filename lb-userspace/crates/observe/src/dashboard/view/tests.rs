use std::time::Duration;

use lb_api::status::{Connections, Drain, Node, Status};
use lb_model::{backend_address::BackendAddress, desired::Admin, seen::Condition};
use serde_json::json;

use super::*;
use crate::samples::Rates;

const BACKEND: BackendAddress =
    BackendAddress::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 11)));

fn sample(number: u64) -> Sample {
    let service: Service = serde_json::from_value(json!({
        "key": {"vip": "10.0.0.100", "port": 80, "protocol": "tcp"}, "mode": "dsr",
        "ring_slots": 1_009, "slots_in_flux": 9, "idle_timeout_secs": 900, "backends": {},
    }))
    .expect("a service");
    let deadline = Some(UNIX_EPOCH + Duration::from_secs(2_000));
    let backend = Backend {
        weight: 1,
        admin: Admin::Draining { deadline },
        condition: Condition::Up,
        base_slots: 9,
        pins: 3,
        pins_closing: 3,
        drain: Some(Drain {
            estimated: true,
            closed: false,
            local_connections: 2,
            silence_secs: 90,
            unseen: None,
            heard_secs: Some(95),
            ends_in_secs: Some(870),
        }),
        sent: Count { packets: 10, bytes: 1_000 },
        returned: Some(Count { packets: 20, bytes: 9_000 }),
        connections: Some(Connections { open: 1, accepted: 5, refused: 2 }),
        ..Backend::default()
    };
    let service = Service { backends: [(BACKEND, backend)].into(), ..service };
    let rate = Rate { packets: 2.4, bytes: 240.6, new_flows: 0.5 };
    let rates = ServiceRates { total: rate, backends: [(BACKEND, rate)].into() };
    let at = UNIX_EPOCH + Duration::from_millis(1_000_500);
    let status = Status {
        services: [("web".to_owned(), service)].into(),
        dropped: [("no_backend", 5), ("too_big", 0)]
            .map(|(reason, packets)| (reason.to_owned(), Count { packets, bytes: 0 }))
            .into(),
        node: Node { draining_since: Some(at) },
        ..Status::default()
    };
    let services = [("web".to_owned(), rates)].into();
    Sample { number, at, status, rates: Rates { node: rate, services, ..Rates::default() } }
}

#[test]
fn a_backend_is_told_with_its_word_its_rates_and_what_is_left_on_it() {
    let view = view(&sample(7));
    let backend = &view["services"]["web"]["backends"]["10.0.0.11"];
    for (name, value) in [
        ("state", json!("draining")),
        ("rate", json!([2, 241, 1])),
        ("total", json!([10, 1_000, 0])),
        ("returned", json!([20, 9_000])),
        ("connections", json!([1, 5, 2])),
        ("local", json!(2)),
        ("base_slots", json!(9)),
        ("pins", json!(3)),
        ("pins_closing", json!(3)),
        ("silent", json!(true)),
        ("drain_silence", json!(90)),
        ("unsynced", json!(false)),
        ("drain_ends_in", json!(870)),
        ("has_flows", json!(true)),
        ("deadline", json!(2_000_000)),
    ] {
        assert_eq!(backend[name], value, "{name}");
    }
    assert_eq!((&view["number"], &view["at"]), (&json!(7), &json!(1_000_500)));
    assert_eq!(view["draining_since"], 1_000_500);
    let dropped = json!({"no_backend": {"rate": [0, 0], "total": {"packets": 5, "bytes": 0}}});
    assert_eq!(view["dropped"], dropped, "reasons without packets are left out");
}

#[test]
fn nothing_is_null_which_would_mean_that_it_is_gone() {
    fn nulls(value: &Value) -> usize {
        match value {
            Value::Null => 1,
            Value::Object(members) => members.values().map(nulls).sum(),
            Value::Array(items) => items.iter().map(nulls).sum(),
            _ => 0,
        }
    }
    assert_eq!(nulls(&view(&sample(1))), 0);
}

#[test]
fn a_second_in_which_nothing_happens_is_told_in_few_bytes() {
    let patch = super::super::patch::between(&view(&sample(1)), &view(&sample(2)));
    assert_eq!(patch, Some(json!({"number": 2})));
}

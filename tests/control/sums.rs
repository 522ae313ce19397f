//! The sums of services, while their backends come and go.

use lb_api::status::{Count, Totals};
use lb_plane::BackendTotals;

use super::*;

fn count(engine: &mut Engine<Fake>, to: &str, packets: u64) {
    let sent = Count { packets, bytes: 100 * packets };
    let totals = BackendTotals { sent, new_flows: 1, ..BackendTotals::default() };
    let id = id(engine, to);
    engine.data_plane_mut().set_backend_totals(id, totals);
}

fn sums(engine: &Engine<Fake>) -> Totals {
    engine.status().unwrap().services["web"].totals
}

const A: &str = "10.0.0.11";
const B: &str = "10.0.0.12";

#[test]
fn the_sums_of_a_service_do_not_fall_when_a_backend_goes() {
    let mut engine = running(one_service(&[(A, 1), (B, 1)]));
    count(&mut engine, A, 5);
    count(&mut engine, B, 7);
    let all = Totals { sent: Count { packets: 12, bytes: 1_200 }, new_flows: 2 };
    assert_eq!(sums(&engine), all);
    for (secs, backends) in [(101, vec![(A, 1)]), (200, vec![(A, 1), (B, 1)]), (300, vec![(A, 1)])]
    {
        set(&mut engine, one_service(&backends));
        engine.reconcile(at(secs)).unwrap();
        assert_eq!(sums(&engine), all, "at {secs}");
    }
    let retired = engine.retired().clone();
    assert_eq!(retired.values().map(|sums| sums.sent.packets).collect::<Vec<_>>(), [7]);
    // The next lbd goes on from there.
    let mut engine = Engine::adopt(engine.into_data_plane(), &settings()).unwrap();
    engine.set_retired(retired);
    set(&mut engine, one_service(&[(A, 1)]));
    engine.reconcile(at(400)).unwrap();
    assert_eq!(sums(&engine), all);
}

#[test]
fn a_service_that_comes_back_begins_anew() {
    let mut engine = running(one_service(&[(A, 1)]));
    count(&mut engine, A, 5);
    set(&mut engine, Desired::default());
    engine.reconcile(at(101)).unwrap();
    assert!(engine.retired().is_empty());
    set(&mut engine, one_service(&[(A, 1)]));
    engine.reconcile(at(200)).unwrap();
    assert_eq!(sums(&engine), Totals::default());
}

#[test]
fn a_backend_that_goes_in_a_write_that_fails_is_counted_once() {
    let mut failures = 0;
    for n in 1.. {
        let mut engine = running(one_service(&[(A, 1), (B, 1)]));
        count(&mut engine, A, 5);
        count(&mut engine, B, 7);
        engine.data_plane_mut().fail_nth_write(n);
        set(&mut engine, one_service(&[(A, 1)]));
        let failed = engine.reconcile(at(101)).is_err();
        engine.reconcile(at(102)).unwrap();
        assert_eq!(sums(&engine).sent.packets, 12, "write {n}");
        failures += u64::from(failed);
        if !failed {
            break;
        }
    }
    assert!(failures > 1, "{failures}");
}

#[test]
fn a_backend_that_leaves_with_its_last_flow_is_counted_on() {
    let mut engine = running(one_service(&[(A, 1), (B, 1)]));
    count(&mut engine, A, 5);
    count(&mut engine, B, 7);
    edit(&mut engine, B, Admin::Removing { deadline: None });
    engine.reconcile(at(101)).unwrap();
    for secs in (110..=101 + 2 * IDLE).step_by(10) {
        engine.sweep(at(secs)).unwrap();
        assert_eq!(sums(&engine).sent.packets, 12, "at {secs}");
    }
    assert_eq!(id(&engine, B), 0, "it has left");
}

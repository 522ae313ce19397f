//! A router that gives way by an order, and one that takes over by it.

use lb_model::router::State;
use lb_vrrp::{
    Yield,
    fsm::{Event, ReceivedAdvertisement, Settings},
};

use crate::common::{Desk, SECOND, TENTH, advert, settings, skew};

#[test]
fn a_router_that_has_given_way_by_an_order_takes_over_when_the_other_one_falls() {
    let mut desk = Desk::active(settings());
    desk.does(Event::Yield(Yield::Requested));
    for _ in 0..600 {
        desk.receives(3, 90);
        desk.after(SECOND);
    }
    assert_eq!(desk.router.holds_back(desk.now).as_deref(), Some("it has given way by an order"));
    desk.receives(3, 40);
    assert_eq!(desk.router.holds_back(desk.now), None);
    assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
}

/// 10.0.0.3 had less than its configured priority before it was given way to: its fall was not received.
#[test]
fn an_order_to_give_way_ends_while_something_has_lowered_the_active_router() {
    let mut desk = Desk::active(settings());
    desk.does(Event::Yield(Yield::Requested));
    desk.receives(3, 90);
    assert_eq!(desk.router.holds_back(desk.now).as_deref(), Some("it has given way by an order"));
    desk.assess(|assessment| assessment.lowered_there = true);
    assert_eq!(desk.router.holds_back(desk.now), None);
    // It was well again in time.
    desk.assess(|assessment| assessment.lowered_there = false);
    desk.after(SECOND).receives(3, 90);
    assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
    desk.assess(|assessment| assessment.lowered_there = true);
    desk.after(SECOND).receives(3, 90);
    assert_eq!(desk.due(), Some(2 * SECOND + skew(SECOND)), "the timer runs on");
    assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
    let mut desk = Desk::backup(settings());
    desk.assess(|assessment| {
        (assessment.abstains, assessment.lowered_there) =
            (Some("main6 has given way".into()), true);
    });
    desk.receives(3, 90);
    assert_eq!(desk.router.holds_back(desk.now), None, "nor does that of another of its group");
}

#[test]
fn an_active_router_that_is_lowered_is_left_to_a_higher_one_to_the_flows_and_to_its_drain() {
    let mut desk = Desk::active(settings());
    desk.does(Event::Yield(Yield::Requested));
    desk.assess(|assessment| assessment.lowered_there = true);
    desk.receives(3, 101);
    desk.after(SECOND).receives(3, 101);
    assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)), "lowered or not, it is the higher one");
    desk.assess(|assessment| (assessment.lowered_there, assessment.drains_there) = (true, true));
    assert_eq!(desk.router.holds_back(desk.now).as_deref(), Some("it has given way by an order"));
    // One that begins learns the flows first.
    let mut desk = Desk::backup(settings());
    desk.assess(|assessment| {
        (assessment.holds_back, assessment.lowered_there) = (Some("unsynced".into()), true);
    });
    desk.receives(3, 90);
    assert_eq!(desk.router.holds_back(desk.now).as_deref(), Some("unsynced"));
    assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
}

#[test]
fn after_a_yield_it_waits_until_it_is_needed_and_is_itself_again_afterwards() {
    let mut desk = Desk::active(settings());
    desk.does(Event::Yield(Yield::Requested));
    desk.receives(3, 50);
    for _ in 0..10 {
        desk.after(SECOND).receives(3, 50);
    }
    assert_eq!(desk.router.holds_back(desk.now).as_deref(), Some("it has given way by an order"));
    assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
    assert_eq!(desk.after(TENTH).receives(4, 150).split(':').next(), Some("backup"));
    assert_eq!(desk.router.holds_back(desk.now), None);
}

#[test]
fn a_router_that_gave_way_as_its_node_was_to_leave_takes_over_again_when_the_node_stays() {
    let mut desk = Desk::active(settings());
    desk.does(Event::Yield(Yield::Advertised));
    desk.receives(3, 50);
    desk.assess(|assessment| assessment.draining = true);
    desk.after(SECOND).receives(3, 50);
    assert_eq!(desk.router.holds_back(desk.now).as_deref(), Some("the node is draining"));
    desk.assess(|assessment| assessment.draining = false);
    assert_eq!(desk.router.holds_back(desk.now), None);
    let due = desk.due().expect("it waits for the other to be silent");
    desk.after(TENTH).receives(3, 50);
    assert_eq!(desk.due(), Some(due - TENTH), "a lower one does not keep it from taking over");
    assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
}

#[test]
fn a_yield_that_nobody_answers_is_given_up_after_four_intervals() {
    let mut desk = Desk::active(settings());
    assert_eq!(desk.does(Event::Yield(Yield::Advertised)), "active: advertise 0");
    for _ in 0..3 {
        assert_eq!(desk.wait(), "active: advertise 0", "it is sent again, as it may be lost");
    }
    assert_eq!(desk.wait(), "active: advertise 100, not yielded");
    assert_eq!(desk.due(), Some(SECOND));
}

#[test]
fn a_yield_that_a_peer_was_asked_for_lasts_five_seconds_however_short_the_interval_is() {
    let mut desk = Desk::active(Settings { interval: TENTH / 10, ..settings() });
    desk.does(Event::Yield(Yield::Requested));
    let begun = desk.now;
    while desk.router.is_yielding() {
        desk.wait();
    }
    assert_eq!(desk.now - begun, 5 * SECOND);
    assert_eq!(desk.router.state(), State::Active);
}

#[test]
fn a_stopped_router_keeps_its_addresses_if_nobody_takes_over_unless_told_otherwise() {
    for (release, end) in [
        (false, "initialize: was active, stopped"),
        (true, "initialize: release, was active, stopped"),
    ] {
        let mut desk = Desk::active(settings());
        desk.does(Event::Stop { release });
        for _ in 0..3 {
            assert_eq!(desk.wait(), "active: advertise 0");
        }
        assert_eq!(desk.wait(), end);
        assert_eq!(desk.due(), None);
    }
}

#[test]
fn who_takes_over_by_order_bears_the_higher_one_until_it_must_have_heard() {
    let mut desk = Desk::backup(settings());
    desk.receives(3, 150);
    desk.does(Event::Take);
    for _ in 0..4 {
        let answer = desk.receives(3, 150);
        assert_eq!(answer, "active: advertise 100, announce once", "{:?}", desk.now - desk.start);
        desk.after(SECOND);
    }
    assert_eq!(desk.receives(3, 150), "backup: notice two, release, advertise 100, was active");
    let mut desk = Desk::backup(settings());
    desk.receives(3, 150);
    desk.does(Event::Take);
    let other = desk.receives(4, 150);
    assert!(other.starts_with("backup"), "another one was not asked to give way: {other}");
}

#[test]
fn who_takes_over_by_order_bears_the_higher_one_on_a_path_that_has_just_come_back() {
    let mut desk = Desk::backup(settings());
    desk.receives(3, 150);
    desk.does(Event::Take);
    let second = Event::Received(ReceivedAdvertisement { second_path: true, ..advert(33, 150) });
    for _ in 0..2 {
        assert_eq!(desk.does(second.clone()), "active: advertise 100, announce once");
        desk.after(SECOND);
    }
    let another = Event::Received(ReceivedAdvertisement { second_path: true, ..advert(4, 150) });
    assert!(desk.does(another).starts_with("backup"), "that one was not asked to give way");
}

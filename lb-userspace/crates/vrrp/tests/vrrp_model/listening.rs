//! How long a router listens that has not received an Active one's advertisement: after its start, and after a fault.

use lb_model::router::Version;
use lb_vrrp::fsm::{Assessment, Event, ReceivedAdvertisement, Settings};

use crate::{
    common::{Desk, SECOND, TENTH, advert, settings, skew},
    world::{LISTENING, Operation, Plan, World},
};

/// A router that advertises ten times a second and leaves lower ones alone.
fn fast() -> Settings {
    Settings { interval: TENTH, preempt: false, ..settings() }
}

#[test]
fn a_router_that_begins_listens_for_an_active_one_that_advertises_each_second() {
    let mut desk = Desk::backup(fast());
    assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
    desk.after(9 * TENTH);
    assert_eq!(desk.receives(3, 50), "backup: ");
    assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
    let mut desk = Desk::backup(fast());
    assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
    assert_eq!(desk.router.cause(), "nobody else is active");
}

#[test]
fn a_router_that_has_heard_the_active_one_counts_by_its_interval_at_once() {
    let often = |priority| {
        Event::Received(ReceivedAdvertisement { interval: TENTH, ..advert(3, priority) })
    };
    for (settings, priority) in [
        (fast(), 50),
        (fast(), 150),
        // It would take over from a lower one, and has no more to wait for.
        (Settings { preempt: true, ..fast() }, 50),
    ] {
        let mut desk = Desk::backup(settings);
        desk.after(TENTH).does(often(priority));
        assert_eq!(desk.due(), Some(3 * TENTH + skew(TENTH)));
    }
    let mut desk = Desk::backup(fast());
    desk.after(TENTH).does(often(0));
    assert_eq!(desk.due(), Some(skew(TENTH)), "it has left");
}

#[test]
fn a_router_with_a_longer_interval_or_of_version_2_listens_by_its_own() {
    for (version, interval) in [(Version::V3, 2 * SECOND), (Version::V2, SECOND)] {
        let desk = Desk::backup(Settings { version, interval, ..settings() });
        assert_eq!(desk.due(), Some(3 * interval + skew(interval)));
    }
}

#[test]
fn a_router_that_holds_what_a_predecessor_left_listens_for_a_moment_only() {
    let mut desk = Desk::new(fast());
    desk.does(Event::Startup { inherited: true });
    assert_eq!(desk.due(), Some(TENTH * 5 / 4));
}

#[test]
fn after_a_fault_a_router_listens_by_what_it_has_heard_and_else_as_one_that_begins() {
    let fault = |assessment: &mut Assessment| assessment.fault = Some("broken".into());
    let well = |assessment: &mut Assessment| assessment.fault = None;
    // It was Active, and does not know which router is by now.
    let mut desk = Desk::active(fast());
    desk.assess(fault);
    desk.after(SECOND).assess(well);
    assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
    for (interval, before) in [(TENTH, true), (TENTH, false), (SECOND, true), (SECOND, false)] {
        let advert = Event::Received(ReceivedAdvertisement { interval, ..advert(3, 150) });
        let mut desk = Desk::backup(fast());
        if before {
            desk.does(advert.clone());
        }
        desk.assess(fault);
        if !before {
            desk.does(advert);
        }
        desk.after(SECOND).assess(well);
        assert_eq!(desk.due(), Some(3 * interval + skew(interval)), "{interval:?}, {before}");
    }
}

/// An Active router that advertises each second, and a higher one, ten times a second, that is not to
/// take over; in different phases to each other.
fn beside_a_slower_one(phase: u32) -> World {
    let slow = Plan { priority: 100, interval: SECOND, preempt: false };
    let fast = Plan { priority: 150, interval: TENTH, preempt: false };
    let mut world = World::new(&[slow, fast], false, phase.into());
    world.does(0, &Operation::Start);
    world.run(LISTENING + phase * SECOND / 20);
    assert_eq!(world.holders(0), [0]);
    world
}

#[test]
fn starts_beside_an_active_router_that_advertises_each_second_take_over_nothing() {
    let takes_over = |phase: &u32| {
        let mut world = beside_a_slower_one(*phase);
        world.does(1, &Operation::Start);
        world.run(6 * SECOND);
        world.holders(0) != [0]
    };
    let took: Vec<_> = (0..20).filter(takes_over).collect();
    assert!(took.is_empty(), "{} of 20: {took:?}", took.len());
}

#[test]
fn recoveries_beside_an_active_router_that_advertises_each_second_take_over_nothing() {
    let takes_over = |phase: &u32| {
        let mut world = beside_a_slower_one(*phase);
        world.does(1, &Operation::Broken(true));
        world.does(1, &Operation::Start);
        world.does(1, &Operation::Broken(false));
        world.run(6 * SECOND);
        world.holders(0) != [0]
    };
    let took: Vec<_> = (0..20).filter(takes_over).collect();
    assert!(took.is_empty(), "{} of 20: {took:?}", took.len());
}

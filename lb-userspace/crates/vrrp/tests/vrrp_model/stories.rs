//! Whole stories of one router, and of nodes that nothing bad happens to.

use std::time::Duration;

use lb_model::router::{Announce, State, Version};
use lb_vrrp::{
    Yield,
    fsm::{Assessment, Event, ReceivedAdvertisement, Settings},
};

use crate::{
    common::{Desk, SECOND, TENTH, advert, settings, skew},
    world::{LISTENING, Operation, Plan, World},
};

#[test]
fn a_router_that_hears_priority_zero_waits_the_skew_time() {
    let mut desk = Desk::backup(settings());
    desk.receives(3, 150);
    assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
    desk.receives(3, 0);
    assert_eq!(desk.due(), Some(skew(SECOND)));
    desk.after(TENTH).receives(3, 0);
    assert_eq!(desk.due(), Some(skew(SECOND) - TENTH), "sent again, it is no later");
    desk.wait();
    assert_eq!(desk.router.cause(), "10.0.0.3 has left");
}

#[test]
fn priority_zero_of_one_that_is_not_active_is_nothing() {
    let mut desk = Desk::backup(settings());
    desk.receives(3, 150);
    desk.receives(4, 0);
    assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
}

#[test]
fn version_3_counts_by_the_interval_of_the_active_router_and_version_2_by_seconds() {
    let slow = ReceivedAdvertisement { interval: 2 * SECOND, ..advert(3, 150) };
    let mut desk = Desk::backup(settings());
    desk.does(Event::Received(slow));
    assert_eq!(desk.due(), Some(6 * SECOND + skew(2 * SECOND)));
    let v2 = Settings { version: Version::V2, interval: 2 * SECOND, ..settings() };
    let mut desk = Desk::backup(v2);
    desk.receives(3, 150);
    assert_eq!(desk.due(), Some(6 * SECOND + skew(SECOND)), "the own interval");
    desk.does(Event::Received(ReceivedAdvertisement { interval: 3 * SECOND, ..advert(3, 150) }));
    assert_eq!(desk.due(), Some(9 * SECOND + skew(SECOND)), "a longer one makes no two owners");
}

#[test]
fn a_higher_router_preempts_after_the_delay_only() {
    let mut desk = Desk::backup(Settings { preempt_delay: 5 * SECOND, ..settings() });
    for _ in 0..5 {
        desk.receives(3, 50);
        assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
        desk.after(SECOND);
    }
    while desk.due() > Some(Duration::ZERO) {
        desk.receives(3, 50);
        desk.after(desk.due().expect("it waits").min(SECOND));
    }
    assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
    assert_eq!(desk.router.cause(), "its priority 100 is higher than the 50 of 10.0.0.3");
    assert_eq!(
        desk.receives(3, 50),
        "active: advertise 100, announce once",
        "it is expected: no notice"
    );
    assert_eq!(desk.router.tally().two_active, 0);
}

#[test]
fn a_router_that_holds_back_hears_lower_ones_until_nothing_holds_it() {
    let mut desk = Desk::backup(settings());
    desk.assess(|assessment| assessment.holds_back = Some("unsynced".into()));
    for _ in 0..10 {
        desk.receives(3, 50);
        assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
        desk.after(SECOND);
    }
    assert_eq!(desk.router.holds_back(desk.now).as_deref(), Some("unsynced"));
    desk.assess(|assessment| assessment.holds_back = None);
    desk.receives(3, 50);
    assert_eq!(desk.due(), Some(2 * SECOND + skew(SECOND)), "the timer runs on");
}

#[test]
fn nothing_puts_a_router_off_that_hears_the_active_one_lower_its_priority() {
    for hold in [
        |assessment: &mut Assessment| assessment.holds_back = Some("unsynced".into()),
        |assessment: &mut Assessment| assessment.known_after = Some(0),
        |assessment: &mut Assessment| assessment.abstains = Some("main6 has given way".into()),
    ] {
        let mut desk = Desk::backup(settings());
        desk.assess(hold);
        desk.receives(3, 150);
        desk.after(SECOND).receives(3, 80);
        assert_eq!(desk.router.holds_back(desk.now), None);
        assert_eq!(desk.due(), Some(2 * SECOND + skew(SECOND)), "the timer runs on");
        // It has recovered in part.
        desk.after(SECOND).receives(3, 90);
        assert_eq!(desk.due(), Some(SECOND + skew(SECOND)));
        assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
        let cause = desk.router.cause();
        assert!(cause.contains("100 is higher than the 90 of 10.0.0.3"), "{cause}");
    }
}

#[test]
fn another_router_that_was_always_lower_has_not_fallen() {
    let mut desk = Desk::backup(settings());
    desk.assess(|assessment| assessment.holds_back = Some("unsynced".into()));
    desk.receives(3, 150);
    for _ in 0..10 {
        desk.after(SECOND).receives(4, 80);
        assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
    }
}

#[test]
fn a_node_that_drains_has_not_fallen_and_is_left_until_its_flows_are_known() {
    let mut desk = Desk::backup(settings());
    desk.assess(|assessment| assessment.holds_back = Some("unsynced".into()));
    desk.receives(3, 150);
    desk.assess(|assessment| assessment.drains_there = true);
    desk.after(SECOND).receives(3, 1);
    assert_eq!(desk.router.holds_back(desk.now).as_deref(), Some("unsynced"));
    assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
}

#[test]
fn flows_that_never_become_known_put_a_router_off_for_a_minute() {
    let mut desk = Desk::backup(settings());
    desk.assess(|assessment| assessment.holds_back = Some("unsynced".into()));
    for _ in 0..60 {
        desk.receives(3, 50);
        assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)));
        assert_eq!(desk.router.holds_back(desk.now).as_deref(), Some("unsynced"));
        desk.after(SECOND);
    }
    for _ in 0..2 {
        desk.receives(3, 50);
        assert_eq!(desk.router.holds_back(desk.now), None);
        desk.after(SECOND);
    }
    assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
    assert_eq!(
        desk.router.cause(),
        "its priority 100 is higher than the 50 of 10.0.0.3, though unsynced"
    );
}

#[test]
fn a_pair_fails_over_by_weight_without_sync_and_after_an_order() {
    let mut world = pair(150, 100);
    for node in [0, 1] {
        world.does(node, &Operation::Unsynced(true));
    }
    world.does(0, &Operation::Priority(50));
    let took = world.run_until(SECOND, |world| world.holders(0) == [1]);
    assert!(took <= 5 * TENTH, "{took:?}");
    let mut world = pair(150, 100);
    world.does(1, &Operation::Handover);
    world.run(5 * SECOND);
    assert_eq!(world.holders(0), [1]);
    world.does(1, &Operation::Priority(40));
    let took = world.run_until(SECOND, |world| world.holders(0) == [0]);
    assert!(took <= 5 * TENTH, "{took:?}");
}

#[test]
fn a_router_that_is_to_be_handed_over_to_says_when_it_would_preempt_and_waits() {
    let mut desk = Desk::backup(Settings { preempt_delay: 2 * SECOND, ..settings() });
    desk.assess(|assessment| assessment.handed_over = true);
    for second in 0..6 {
        desk.receives(3, 50);
        assert_eq!(desk.router.wants(desk.now), second >= 2, "after {second} s");
        assert_eq!(desk.due(), Some(3 * SECOND + skew(SECOND)), "it receives the lower one");
        desk.after(SECOND);
    }
    desk.assess(|assessment| assessment.handed_over = false);
    desk.receives(3, 50);
    assert!(!desk.router.wants(desk.now));
    assert_eq!(desk.due(), Some(2 * SECOND + skew(SECOND)), "in vain: the timer runs on");
}

#[test]
fn a_router_that_is_not_to_preempt_wants_nothing() {
    for change in [
        |assessment: &mut Assessment| assessment.holds_back = Some("unsynced".into()),
        |assessment: &mut Assessment| assessment.draining = true,
        |assessment: &mut Assessment| assessment.priority = 40,
    ] {
        let mut desk = Desk::backup(settings());
        desk.assess(|assessment| assessment.handed_over = true);
        desk.assess(change);
        desk.receives(3, 50);
        desk.after(SECOND);
        desk.receives(3, 50);
        assert!(!desk.router.wants(desk.now));
    }
}

#[test]
fn a_router_that_gives_way_to_a_higher_one_takes_over_again_when_it_is_the_higher_one() {
    let mut desk = Desk::active(settings());
    desk.does(Event::Yield(Yield::Outranked));
    desk.receives(3, 150);
    assert_eq!(desk.router.state(), State::Backup);
    assert_eq!(desk.router.holds_back(desk.now), None);
    desk.receives(3, 50);
    assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
}

#[test]
fn a_router_without_preemption_leaves_a_lower_one_alone_and_replaces_a_silent_one() {
    let mut desk = Desk::backup(Settings { preempt: false, ..settings() });
    for _ in 0..10 {
        desk.receives(3, 50);
        desk.after(SECOND);
    }
    assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
    assert_eq!(desk.router.cause(), "10.0.0.3 is silent");
}

#[test]
fn a_draining_router_is_the_last_but_takes_over_when_nobody_is_heard() {
    let mut desk = Desk::backup(settings());
    desk.assess(|assessment| assessment.draining = true);
    assert_eq!(desk.router.priority(), 1);
    desk.receives(3, 50);
    assert_eq!(desk.due(), Some(3 * SECOND + SECOND * 255 / 256));
    assert_eq!(desk.wait(), "active: advertise 1, hold, announce, was backup");
}

#[test]
fn after_a_transition_a_router_waits_until_it_is_told_what_flows_are_known() {
    let mut desk = Desk::active(settings());
    let now = desk.router.tally().transitions;
    desk.assess(|assessment| assessment.known_after = Some(now));
    // Another one has taken over while it was not run, and is lower.
    desk.after(10 * SECOND);
    desk.receives(3, 50);
    assert_eq!(desk.router.state(), State::Backup);
    for _ in 0..10 {
        desk.receives(3, 50);
        assert_eq!(desk.due(), Some(3 * SECOND + SECOND * 156 / 256), "it is received");
        desk.after(SECOND);
    }
    desk.assess(|assessment| assessment.known_after = Some(now + 1));
    desk.receives(3, 50);
    assert!(desk.due() < Some(3 * SECOND), "it is discarded: the timer runs out");
    assert_eq!(desk.wait(), "active: advertise 100, hold, announce, was backup");
}

#[test]
fn an_owner_is_active_at_once_but_not_while_it_is_to_leave() {
    let mut desk = Desk::new(settings());
    desk.assess(|assessment| assessment.priority = 255);
    assert_eq!(
        desk.does(Event::Startup { inherited: false }),
        "active: advertise 255, hold, announce, was initialize"
    );
    let mut desk = Desk::new(settings());
    desk.assess(|assessment| (assessment.priority, assessment.draining) = (255, true));
    assert_eq!(desk.does(Event::Startup { inherited: false }), "backup: was initialize");
}

#[test]
fn an_active_router_that_was_not_run_gives_way_to_any_that_it_then_hears() {
    let mut desk = Desk::active(settings());
    desk.after(4 * SECOND);
    assert_eq!(desk.receives(3, 50), "backup: release, advertise 0, notice stalled, was active");
    let mut desk = Desk::active(settings());
    desk.after(4 * SECOND);
    assert_eq!(desk.does(Event::Timer), "active: advertise 100, announce, notice stalled");
    assert_eq!(desk.receives(3, 50), "active: notice two, advertise 100, announce once");
}

#[test]
fn a_backup_router_that_was_not_run_listens_once_more_and_only_once() {
    let mut desk = Desk::backup(settings());
    desk.receives(3, 150);
    desk.after(20 * SECOND);
    assert_eq!(desk.does(Event::Timer), "backup: notice stalled");
    assert_eq!(desk.due(), Some(SECOND * 5 / 4));
    desk.after(20 * SECOND);
    assert_eq!(desk.does(Event::Timer), "active: advertise 100, hold, announce, was backup");
}

#[test]
fn one_sender_is_answered_twice_in_an_interval_and_then_at_its_end() {
    let mut desk = Desk::active(settings());
    assert_eq!(desk.receives(3, 50), "active: notice two, advertise 100, announce once");
    assert_eq!(desk.receives(3, 50), "active: advertise 100, announce once");
    assert_eq!(desk.after(TENTH).receives(3, 50), "active: ");
    assert_eq!(
        desk.receives(4, 50),
        "active: notice two, advertise 100, announce once",
        "another one"
    );
    assert_eq!(desk.due(), Some(SECOND - TENTH));
    assert_eq!(desk.wait(), "active: advertise 100, announce once");
    assert_eq!(desk.router.tally().two_active, 4);
}

#[test]
fn a_flood_of_others_that_say_they_are_active_is_counted_and_told_of_for_a_few() {
    let centis = Duration::from_millis(10);
    let mut desk = Desk::active(Settings { interval: centis, ..settings() });
    // A tenth of a second is long for it: it was not run in time, and no other router has advertised.
    assert!(desk.wait().contains("notice stalled"));
    let (mut notices, end) = (0, desk.now + SECOND);
    while desk.now < end {
        for from in 3..=255 {
            notices += desk.receives(from, 50).matches("notice").count();
        }
        let next = desk.now + centis;
        while desk.due().is_some_and(|due| desk.now + due <= next) {
            desk.wait();
        }
        desk.now = next;
    }
    assert_eq!(notices, 16);
    assert_eq!(desk.router.tally().two_active, 100 * 253);
    desk.after(10 * SECOND);
    // It was not run for so long that it gives way to the first one that advertises.
    assert!(desk.receives(3, 50).contains("notice stalled"));
}

#[test]
fn equal_priorities_on_the_second_path_are_decided_by_the_first_if_it_can() {
    let second = Event::Received(ReceivedAdvertisement { second_path: true, ..advert(3, 100) });
    let mut desk = Desk::active(settings());
    for _ in 0..2 {
        assert!(desk.does(second.clone()).starts_with("active"));
        desk.after(SECOND);
    }
    let mut alone = desk;
    assert!(alone.does(second).starts_with("backup"), "the first path does not decide");
    let mut desk = Desk::active(Settings { defers: true, ..settings() });
    assert!(desk.receives(3, 100).starts_with("active"), "the first of its group decides");
    assert!(desk.receives(3, 101).starts_with("backup"), "a higher priority is no question");
}

#[test]
fn addresses_are_announced_at_once_after_the_delay_and_from_time_to_time() {
    let announce = Announce { repeat: 1, delay: 5 * SECOND, refresh: 60 * SECOND };
    let mut desk = Desk::active(Settings { announce, ..settings() });
    let begin = desk.router.since();
    let mut announced = Vec::new();
    while desk.now < begin + 130 * SECOND {
        if desk.wait().contains("announce") {
            announced.push((desk.now - begin).as_secs());
        }
    }
    assert_eq!(announced, [5, 65, 125]);
}

#[test]
fn a_longer_interval_is_told_at_the_pace_of_the_shorter_one() {
    let mut desk = Desk::active(settings());
    let slow = Settings { interval: 10 * SECOND, ..settings() };
    assert_eq!(desk.configure(slow), "active: advertise 100");
    let mut waits = Vec::new();
    for _ in 0..4 {
        waits.extend(desk.due());
        desk.wait();
    }
    assert_eq!(waits, [SECOND, SECOND, SECOND, 10 * SECOND]);
}

#[test]
fn other_addresses_are_put_up_and_announced() {
    let mut desk = Desk::active(settings());
    let address = lb_model::router::VirtualAddress {
        address: [10, 0, 0, 100].into(),
        prefix: 32,
        interface: None,
        label: None,
        nodad: true,
        advertised: true,
    };
    let other = Settings { addresses: vec![address], ..settings() };
    assert_eq!(desk.configure(other.clone()), "active: advertise 100, hold, announce");
    assert_eq!(desk.configure(other), "active: ");
}

#[test]
fn a_router_that_does_not_hear_the_answers_is_told_the_link_ten_times_a_second_at_most() {
    let centis = Duration::from_millis(10);
    let mut desk = Desk::active(Settings { interval: centis, ..settings() });
    desk.now = desk.router.since();
    let (mut announced, mut last) = (0, desk.now);
    let end = desk.now + SECOND;
    while desk.now < end {
        let at = desk.now + centis / 2;
        while desk.router.deadline().is_some_and(|due| due <= at) {
            let done = desk.wait();
            announced += done.matches("announce").count();
        }
        desk.now = at;
        if desk.receives(3, 50).contains("announce once") {
            announced += 1;
            last = desk.now;
        }
    }
    assert!((10..=14).contains(&announced), "{announced} times");
    // The last answer of all is announced, too.
    while desk.now < end + SECOND {
        if desk.wait().contains("announce once") {
            last = desk.now;
        }
    }
    assert!(
        last > end - centis,
        "the last one {:?} before the end",
        end.checked_duration_since(last)
    );
}

fn pair(high: u8, low: u8) -> World {
    let plan = |priority| Plan { priority, interval: TENTH, preempt: true };
    let mut world = World::new(&[plan(high), plan(low)], false, 7);
    world.does(0, &Operation::Start);
    world.does(1, &Operation::Start);
    world.run(LISTENING);
    assert_eq!(world.holders(0), [0]);
    world
}

/// Lets time pass, and sees that the addresses are never nowhere.
fn always_assigned(world: &mut World, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        world.run(Duration::from_micros(50));
        assert!(!world.holders(0).is_empty(), "nobody holds: {:#?}", world.log);
    }
}

#[test]
fn a_handover_to_a_lower_router_and_back_leaves_no_gap() {
    let mut world = pair(150, 100);
    world.does(1, &Operation::Handover);
    always_assigned(&mut world, SECOND);
    assert_eq!((world.holders(0), world.announced[0]), (vec![1], Some((1, false))));
    always_assigned(&mut world, 10 * SECOND);
    assert_eq!(world.holders(0), [1], "it does not come back by itself");
    world.does(0, &Operation::Handover);
    always_assigned(&mut world, SECOND);
    assert_eq!((world.holders(0), world.announced[0]), (vec![0], Some((0, false))));
}

#[test]
fn a_stop_leaves_no_gap_and_takes_no_longer_than_a_skew() {
    let mut world = pair(150, 100);
    world.does(0, &Operation::Stop { release: false });
    let begin = world.now;
    while world.is_alive(0) {
        always_assigned(&mut world, Duration::from_millis(1));
    }
    assert!(world.now - begin < skew(TENTH) + Duration::from_millis(5));
    // Its last advertisement is under way.
    always_assigned(&mut world, Duration::from_millis(2));
    assert_eq!((world.holders(0), world.announced[0]), (vec![1], Some((1, false))));
}

#[test]
fn a_router_that_has_given_way_takes_over_when_its_peer_dies() {
    let mut world = pair(150, 100);
    world.does(1, &Operation::Handover);
    world.run(SECOND);
    world.does(1, &Operation::PowerOff);
    let took = world.run_until(SECOND, |world| world.holders(0) == [0]);
    assert!(took <= 4 * TENTH, "{took:?}");
}

#[test]
fn a_daemon_that_is_started_again_in_time_interrupts_nothing() {
    let mut world = pair(150, 100);
    world.does(0, &Operation::Crash);
    world.run(TENTH);
    world.does(0, &Operation::Start);
    always_assigned(&mut world, SECOND);
    assert_eq!((world.holders(0), world.state(1, 0)), (vec![0], State::Backup));
}

#[test]
fn two_that_both_take_over_come_to_an_end_of_it() {
    let mut world = pair(150, 100);
    world.does(0, &Operation::Take);
    world.does(1, &Operation::Take);
    always_assigned(&mut world, 6 * TENTH);
    assert_eq!(world.holders(0), [0]);
}

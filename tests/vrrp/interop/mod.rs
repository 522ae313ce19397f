//! `lbd` and Debian's keepalived as each other's peers: exactly one of them has the address, at all
//! times but the failover itself, and that takes the time of RFC 9568.

mod restarts;
mod testbed;

use std::time::Duration;

use anyhow::{Result, ensure};
use kit::{
    can_run,
    lab::{VIPS_V4, VIPS_V6},
    status::PairExt as _,
    wait,
};
use lb_model::router::State;
use testbed::{Change, Plan, ROUTER, Testbed, Who};

/// Everything that makes the address move, from the node with the higher priority to the other and back.
fn the_address_moves_as_the_protocol_has_it(plan: Plan) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (higher, lower) = (plan.higher, plan.higher.other());
    let high = plan.priority(higher);
    let mut testbed = Testbed::start(plan)?;
    testbed.step("nothing happens", higher, Change::None, |_| Ok(()))?;
    testbed.step("the lower one stops", higher, Change::None, |testbed| testbed.stop(lower))?;
    testbed.step("the lower one starts", higher, Change::None, |testbed| testbed.launch(lower))?;
    testbed.step("the higher one stops", lower, Change::Left, |testbed| testbed.stop(higher))?;
    testbed
        .step("the higher one starts", higher, Change::Taken, |testbed| testbed.launch(higher))?;
    testbed
        .step("the higher one is killed", lower, Change::Silent, |testbed| testbed.kill(higher))?;
    let change = Change::Returned(higher);
    testbed.step("the killed one starts", higher, change, |testbed| testbed.launch(higher))?;
    testbed.step("the lower one is killed", higher, Change::None, |testbed| testbed.kill(lower))?;
    testbed.step("the lower one starts again", higher, Change::None, |testbed| {
        testbed.launch(lower)
    })?;
    testbed.step("the higher one becomes the lowest", lower, Change::Taken, |testbed| {
        testbed.reload(higher, 50)
    })?;
    testbed.step("it becomes the higher one again", higher, Change::Taken, |testbed| {
        testbed.reload(higher, high)
    })?;
    let router = testbed.ours.poll_pair()?.router(ROUTER)?.clone();
    assert!(router.counters.sent > 0 && router.counters.received > 0, "{router:?}");
    assert_eq!((router.counters.auth_errors, router.counters.mismatches), (0, 0), "{router:?}");
    Ok(())
}

#[test]
fn lbd_leads_keepalived_over_ipv4() -> Result<()> {
    the_address_moves_as_the_protocol_has_it(Plan::new(VIPS_V4[0], Who::Ours))
}

#[test]
fn keepalived_leads_lbd_over_ipv4() -> Result<()> {
    the_address_moves_as_the_protocol_has_it(Plan::new(VIPS_V4[0], Who::Theirs))
}

#[test]
fn lbd_leads_keepalived_over_ipv6() -> Result<()> {
    the_address_moves_as_the_protocol_has_it(Plan::new(VIPS_V6[0], Who::Ours))
}

#[test]
fn keepalived_leads_lbd_over_ipv6() -> Result<()> {
    the_address_moves_as_the_protocol_has_it(Plan::new(VIPS_V6[0], Who::Theirs))
}

/// Without preemption, the holder of the address keeps it until it goes.
fn who_has_the_address_keeps_it(plan: Plan) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let plan = Plan { preempt: false, ..plan };
    let (higher, lower) = (plan.higher, plan.higher.other());
    let mut testbed = Testbed::start(plan)?;
    testbed.step("the higher one stops", lower, Change::Left, |testbed| testbed.stop(higher))?;
    testbed.step("the higher one starts", lower, Change::None, |testbed| testbed.launch(higher))?;
    testbed
        .step("the lower one is killed", higher, Change::Silent, |testbed| testbed.kill(lower))?;
    testbed.step("the killed one starts", higher, Change::Returned(lower), |testbed| {
        testbed.launch(lower)
    })
}

#[test]
fn without_preemption_the_owner_stays_lbd_being_the_higher_one() -> Result<()> {
    who_has_the_address_keeps_it(Plan::new(VIPS_V4[0], Who::Ours))
}

#[test]
fn without_preemption_the_owner_stays_keepalived_being_the_higher_one() -> Result<()> {
    who_has_the_address_keeps_it(Plan::new(VIPS_V6[0], Who::Theirs))
}

/// By unicast, and with nothing on the group.
fn unicast_does_as_multicast_does(plan: Plan) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let plan = Plan { unicast: true, ..plan };
    let (higher, lower) = (plan.higher, plan.higher.other());
    let mut testbed = Testbed::start(plan)?;
    testbed.step("the higher one stops", lower, Change::Left, |testbed| testbed.stop(higher))?;
    testbed
        .step("the higher one starts", higher, Change::Taken, |testbed| testbed.launch(higher))?;
    testbed
        .step("the higher one is killed", lower, Change::Silent, |testbed| testbed.kill(higher))?;
    testbed.step("the killed one starts", higher, Change::Returned(higher), |testbed| {
        testbed.launch(higher)
    })
}

#[test]
fn unicast_over_ipv4_does_as_multicast_does() -> Result<()> {
    unicast_does_as_multicast_does(Plan::new(VIPS_V4[0], Who::Theirs))
}

#[test]
fn unicast_over_ipv6_does_as_multicast_does() -> Result<()> {
    unicast_does_as_multicast_does(Plan::new(VIPS_V6[0], Who::Ours))
}

#[test]
fn unicast_over_ipv6_from_keepalived_does_as_multicast_does() -> Result<()> {
    unicast_does_as_multicast_does(Plan::new(VIPS_V6[0], Who::Theirs))
}

/// keepalived's default is a second.
#[test]
fn lbd_with_its_default_interval_waits_for_a_keepalived_with_its_own() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let interval = Duration::from_secs(1);
    let plan = Plan { interval, same_interval: false, ..Plan::new(VIPS_V4[0], Who::Theirs) };
    let mut testbed = Testbed::start(plan)?;
    testbed.step("nothing happens", Who::Theirs, Change::None, |_| Ok(()))?;
    testbed.step("keepalived is killed", Who::Ours, Change::Silent, |testbed| {
        testbed.kill(Who::Theirs)
    })?;
    let change = Change::Returned(Who::Theirs);
    testbed.step("the killed one starts", Who::Theirs, change, |testbed| {
        testbed.launch(Who::Theirs)
    })?;
    testbed.step("nothing more happens", Who::Theirs, Change::None, |_| Ok(()))
}

/// Version 2 counts in seconds, so the story is short.
fn version_2_with_a_password_moves_the_address(higher: Who) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let interval = Duration::from_secs(1);
    let plan = Plan { interval, password: Some("lbtest"), ..Plan::new(VIPS_V4[0], higher) };
    let lower = higher.other();
    let mut testbed = Testbed::start(plan)?;
    testbed.step("the higher one stops", lower, Change::Left, |testbed| testbed.stop(higher))?;
    testbed
        .step("the higher one starts", higher, Change::Taken, |testbed| testbed.launch(higher))?;
    testbed.step("the higher one is killed", lower, Change::Silent, |testbed| testbed.kill(higher))
}

#[test]
fn version_2_with_a_password_moves_the_address_from_lbd() -> Result<()> {
    version_2_with_a_password_moves_the_address(Who::Ours)
}

#[test]
fn version_2_with_a_password_moves_the_address_from_keepalived() -> Result<()> {
    version_2_with_a_password_moves_the_address(Who::Theirs)
}

#[test]
fn another_password_is_told_and_its_advertisements_are_not_taken() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let interval = Duration::from_secs(1);
    let plan = Plan { interval, password: Some("lbtest"), ..Plan::new(VIPS_V4[0], Who::Theirs) };
    let mut testbed = Testbed::start(plan.clone())?;
    let other = Plan { password: Some("another"), ..plan };
    testbed.replace_theirs(&other)?;
    wait::until(Duration::from_secs(10), "lbd reports it", || {
        let router = testbed.ours.poll_pair()?.router(ROUTER)?.clone();
        ensure!(router.counters.auth_errors > 0, "{router:?}");
        let events = testbed.ours.lbctl(&["events"])?;
        ensure!(events.contains("password") || events.contains("authentic"), "{events}");
        // It has accepted no advertisement of another Active one.
        ensure!(router.state == State::Active, "{router:?}");
        Ok(())
    })
}

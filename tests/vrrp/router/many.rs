//! As many routers as a link can have.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use kit::wait::until_true;
use lb_model::router::{Family, Router, State};

use super::testbed::{Node, SOON, Testbed, address_of, router, with_priority};

/// 255 of each family.
fn routers(priority: u8) -> Vec<Router> {
    let mut all = Vec::new();
    for vrid in 1..=255 {
        for family in [Family::V4, Family::V6] {
            let mut router = with_priority(&router(family, vrid), priority);
            router.interval = Duration::from_millis(500);
            router.addresses = vec![address_of(match family {
                Family::V4 => [10, 0, 1, vrid].into(),
                Family::V6 => [0xfd00, 0, 0, 0, 0, 0, 1, vrid.into()].into(),
            })];
            all.push(router);
        }
    }
    all
}

#[test]
fn all_routers_of_a_link_take_over_from_each_other() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.a.start(routers(150))?;
    testbed.a.wait_for(State::Active)?;
    testbed.b.start(routers(100))?;
    testbed.b.wait_for(State::Backup)?;
    // Its own, fd00::1 and a link-local one.
    let has = |node: &Node, addresses: usize| {
        until_true(SOON, "it has the addresses", || {
            Ok(node.addresses("eth0")?.len() == addresses + 3)
        })
    };
    has(&testbed.a, 510)?;
    has(&testbed.b, 0)?;
    testbed.a.stop(false)?;
    testbed.b.wait_for(State::Active)?;
    has(&testbed.b, 510)?;
    let causes: BTreeSet<_> =
        testbed.a.transitions().into_iter().map(|(_, one)| one.cause).collect();
    assert_eq!(testbed.a.addresses("eth0")?.len(), 3, "{causes:?}");
    Ok(())
}

//! Tracked objects: scripts, files, interfaces; and notification scripts.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use kit::wait::until_true;
use lb_model::router::{Family, State, Track, Tracked};
use lb_vrrp::NoticeKind;

use super::testbed::{SOON, Testbed, router, with_priority};

fn shell(path: &Path, lines: &str) -> Result<String> {
    fs::write(path, format!("#!/bin/sh\n{lines}\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(path.to_str().context("a path")?.to_owned())
}

#[test]
fn script_that_fails_lets_the_other_node_take_over() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let sick = folder.path().join("sick");
    let script = shell(&folder.path().join("check"), &format!("test ! -e {}", sick.display()))?;
    let mut testbed = Testbed::new()?;
    let mut tracked = router(Family::V4, 51);
    tracked.tracks.push(Track {
        what: Tracked::Script {
            command: vec![script],
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(5),
            rise: 2,
            fall: 2,
        },
        weight: 0,
    });
    testbed.a.start(vec![with_priority(&tracked, 150)])?;
    testbed.a.wait_for(State::Active)?;
    testbed.b.start(vec![router(Family::V4, 51)])?;
    fs::write(&sick, "")?;
    testbed.a.wait_for(State::Fault)?;
    testbed.b.wait_for(State::Active)?;
    fs::remove_file(&sick)?;
    testbed.a.wait_for(State::Active)?;
    testbed.b.wait_for(State::Backup)
}

#[test]
fn number_in_a_file_changes_the_priority() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("handicap");
    fs::write(&file, "0")?;
    let mut testbed = Testbed::new()?;
    let mut tracked = with_priority(&router(Family::V4, 51), 150);
    tracked.tracks.push(Track { what: Tracked::File(file.clone()), weight: 1 });
    testbed.a.start(vec![tracked])?;
    testbed.a.wait_for(State::Active)?;
    testbed.b.start(vec![router(Family::V4, 51)])?;
    fs::write(&file, "-100")?;
    testbed.b.wait_for(State::Active)?;
    testbed.a.wait_for(State::Backup)?;
    assert_eq!(testbed.a.router()?.priority, 50);
    fs::write(&file, "0")?;
    testbed.a.wait_for(State::Active)
}

#[test]
fn interface_that_is_tracked_is_one_more_that_must_be_up() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    testbed.a.namespace.ip("link add up0 type veth peer name down0\nlink set up0 up")?;
    let mut tracked = router(Family::V4, 51);
    tracked.tracks.push(Track { what: Tracked::Interface("up0".into()), weight: 0 });
    testbed.a.start(vec![tracked])?;
    testbed.a.wait_for(State::Fault)?;
    testbed.a.namespace.ip("link set down0 up")?;
    testbed.a.wait_for(State::Active)?;
    testbed.a.namespace.ip("link del up0")?;
    testbed.a.wait_for(State::Fault)
}

#[test]
fn router_whose_addresses_the_kernel_refuses_lets_the_other_take_over() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let mut testbed = Testbed::new()?;
    let mut elsewhere = router(Family::V6, 51);
    elsewhere.addresses[0].interface = Some("up0".into());
    for node in [&testbed.a, &testbed.b] {
        let pair = "link add up0 type veth peer name down0\nlink set up0 up\nlink set down0 up";
        node.namespace.ip(pair)?;
    }
    testbed.a.namespace.sysctl(&[("ipv6/conf/up0/disable_ipv6", "1")])?;
    testbed.b.start(vec![with_priority(&elsewhere, 100)])?;
    testbed.b.wait_for(State::Active)?;
    testbed.a.start(vec![with_priority(&elsewhere, 150)])?;
    testbed.a.wait_for_notice(NoticeKind::Track, "the kernel takes none of its addresses")?;
    testbed.a.wait_for(State::Fault)?;
    testbed.b.wait_for(State::Active)?;
    // It tries again, and does not take the addresses from the other for that.
    testbed.b.clear_reports();
    thread::sleep(Duration::from_secs(7));
    assert!(testbed.b.transitions().is_empty(), "{:?}", testbed.b.transitions());
    testbed.a.namespace.sysctl(&[("ipv6/conf/up0/disable_ipv6", "0")])?;
    testbed.a.wait_for(State::Active)?;
    testbed.b.wait_for(State::Backup)
}

#[test]
fn notify_program_hears_of_each_transition_in_order() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let line = format!("echo \"$* $LB_FROM $LB_VRID\" >> {}", log.display());
    let program = shell(&folder.path().join("notify"), &line)?;
    let mut testbed = Testbed::new()?;
    let mut router = router(Family::V4, 51);
    router.notify = Some(vec![program, "mine".into()]);
    testbed.a.start(vec![router])?;
    testbed.a.wait_for(State::Active)?;
    testbed.a.stop(true)?;
    let expected = "mine router r51-4 backup 100 initialize 51\n\
                    mine router r51-4 active 100 backup 51\n\
                    mine router r51-4 initialize 100 active 51\n";
    until_true(SOON, "the script has run for all", || {
        Ok(fs::read_to_string(&log).unwrap_or_default().lines().count() == 3)
    })?;
    assert_eq!(fs::read_to_string(&log)?, expected);
    Ok(())
}

#[test]
fn end_waits_for_notify_program_that_takes_seconds() -> Result<()> {
    if !kit::can_run() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let line =
        format!("test $LB_STATE != initialize || sleep 5; echo $LB_STATE >> {}", log.display());
    let program = shell(&folder.path().join("notify"), &line)?;
    let mut testbed = Testbed::new()?;
    let mut router = router(Family::V4, 51);
    router.notify = Some(vec![program]);
    testbed.a.start(vec![router])?;
    testbed.a.wait_for(State::Active)?;
    testbed.a.stop(true)?;
    assert_eq!(fs::read_to_string(&log)?, "backup\nactive\ninitialize\n");
    Ok(())
}

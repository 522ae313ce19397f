//! From one set of maps to another: nothing in them is lost, and no packet notices.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::bail;
use aya::maps::MapData;
use lb_common::abi::{self, ABI_VERSION, ConnectionKey, FlowKey, FlowValue, flow_flags};
use lb_control::engine::Engine;
use lb_datapath::{Step, Xdp};
use lb_model::{settings::Limits, time::Now};
use lb_plane::{Flows as _, Interfaces as _, Maps as _};

use super::{
    content::Content,
    older::{self, CLIENT_PORT, FLOWS, GAME, OlderKey, STEADY, WEB, older_flow, pinned},
    testbed::{LIMITS, Testbed, detach_link, ip, link_at},
    wire::{Frame, Kind, Wire},
};

/// Other limits than the ones that the maps were made with, so that every map changes.
pub const LARGER: Limits = Limits {
    services: 40,
    backends: 200,
    pins: 10_000,
    tracked_flows: 8_000,
    nat_connections: 8_000,
    connections: 8_000,
    fragments: 8_000,
    icmp_errors: abi::DEFAULT_ICMP_ERRORS,
};

pub const fn frame(kind: Kind, client: u16, to: u16) -> Frame {
    Frame { kind, client, port: CLIENT_PORT, to }
}

/// Frames of flows of every kind, with their backends if the frame decides them: few, since each is
/// sent by itself and may wait for a CPU.
pub fn flows() -> Vec<(Frame, Option<u16>)> {
    let mut flows = Vec::new();
    for client in (0..FLOWS).step_by(40) {
        flows.push((frame(Kind::Ack, client, WEB), Some(3)));
        flows.push((frame(Kind::Datagram, client, GAME), Some(3)));
        flows.push((frame(Kind::Ack, 9_000 + client, WEB), Some(1)));
        flows.push((frame(Kind::Ack, client, STEADY), None));
    }
    flows
}

/// Which backend each of these flows goes to.
pub fn decisions(wire: &Wire) -> BTreeMap<usize, u16> {
    let mut decided = BTreeMap::new();
    for (at, (frame, expected)) in flows().into_iter().enumerate() {
        let backend = wire.ask(frame).unwrap_or_else(|| panic!("{frame:?} did not come back"));
        assert!(expected.is_none_or(|expected| expected == backend), "{frame:?}: {backend}");
        decided.insert(at, backend);
    }
    assert!((1..=3).all(|id| decided.values().any(|&backend| backend == id)));
    decided
}

/// From the maps of an older layout, with `LIMITS`, to these.
fn from_layout(layout: u32, limits: Limits) {
    let Some(mut testbed) = Testbed::new() else { return };
    drop(older::start(&testbed.settings, layout));
    let wire = Wire::at("vb");
    let decided = decisions(&wire);
    let before = Content::of(&older::folder(&testbed.settings, layout));
    assert_eq!((before.rings.len(), before.pins.len()), (5, usize::from(FLOWS)));
    let pins = ["link-va", "link-vc"].map(|name| testbed.settings.pin_dir.join(name));
    let links = pins.each_ref().map(|pin| link_at(pin));

    testbed.settings.limits = limits;
    let data_plane = testbed.open();
    assert_eq!(data_plane.limits(), limits);
    assert_eq!(testbed.pinned(), testbed.whole());
    testbed.check_pins();
    assert_eq!(Content::of(&testbed.current()), before);
    for (pin, (link, program)) in pins.iter().zip(links) {
        let now = link_at(pin);
        assert!(now.0 == link && now.1 != program, "{now:?} was {:?}", (link, program));
    }
    assert_eq!(decisions(&wire), decided);
    // The engine reads the old daemon's entries.
    assert_eq!(data_plane.services().unwrap().len(), 5);
    assert_eq!(data_plane.backends().unwrap().keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert!(data_plane.services().unwrap().values().all(|service| service.flags == 0));
    let engine = Engine::adopt(data_plane, &testbed.settings).unwrap();
    assert!(engine.data_plane().interfaces().iter().all(|interface| interface.attached));
    drop(engine);
    // The next start adopts.
    drop(testbed.open());
    assert_eq!(decisions(&wire), decided);
}

#[test]
fn maps_of_layout_1_are_taken_over_whole() {
    from_layout(1, LIMITS);
}

#[test]
fn maps_of_layout_1_are_taken_over_into_larger_ones() {
    from_layout(1, LARGER);
}

#[test]
fn maps_of_layout_2_are_taken_over_whole() {
    from_layout(2, LIMITS);
}

#[test]
fn maps_of_layout_2_are_taken_over_into_larger_ones() {
    from_layout(2, LARGER);
}

#[test]
fn other_limits_at_a_restart_lose_nothing() {
    let Some(mut testbed) = Testbed::new() else { return };
    drop(older::start(&testbed.settings, older::LAST));
    drop(testbed.open());
    let wire = Wire::at("vb");
    let decided = decisions(&wire);
    let link = link_at(&testbed.settings.pin_dir.join("link-va")).0;
    for limits in [LARGER, Limits { pins: 4_000, ..LIMITS }] {
        testbed.settings.limits = limits;
        let before = Content::of(&testbed.current());
        assert_eq!(testbed.open().limits(), limits);
        assert_eq!(Content::of(&testbed.current()), before);
        assert_eq!(testbed.pinned(), testbed.whole());
        assert_eq!(decisions(&wire), decided);
    }
    assert_eq!(link_at(&testbed.settings.pin_dir.join("link-va")).0, link);
}

/// Maps of this layout that were made before the ones that a pair needs were added to it, and the marks of handshakes
/// took the place of a table.
#[test]
fn maps_that_lack_the_log_of_pins_get_it_and_lose_nothing() {
    const LATER: [&str; 4] = ["PIN_LOG", "PIN_LOG_HEADS", "PIN_LEASE", "HANDSHAKES"];
    let Some(mut testbed) = Testbed::new() else { return };
    drop(older::start(&testbed.settings, older::LAST));
    drop(testbed.open());
    let wire = Wire::at("vb");
    let decided = decisions(&wire);
    for limits in [LIMITS, LARGER] {
        LATER.iter().for_each(|name| fs::remove_file(testbed.current().join(name)).unwrap());
        let other = MapData::from_pin(testbed.current().join("FRAGMENTS")).unwrap();
        other.pin(testbed.current().join("OPENINGS")).unwrap();
        testbed.settings.limits = limits;
        let before = Content::of(&testbed.current());
        let mut data_plane = testbed.open();
        assert_eq!(data_plane.limits(), limits);
        assert_eq!(Content::of(&testbed.current()), before);
        assert!(LATER.iter().all(|name| testbed.current().join(name).exists()));
        assert_eq!(testbed.pinned(), testbed.whole());
        let mut noted = 0;
        assert!(data_plane.noted_pins(&mut |_| noted += 1).unwrap());
        assert_eq!(noted, 0);
        assert_eq!(decisions(&wire), decided);
    }
    // Nor are they flushed when nothing is attached.
    let before = Content::of(&testbed.current());
    for link in ["link-va", "link-vc"] {
        detach_link(&testbed.settings.pin_dir.join(link));
        fs::remove_file(testbed.settings.pin_dir.join(link)).unwrap();
    }
    LATER.iter().for_each(|name| fs::remove_file(testbed.current().join(name)).unwrap());
    drop(testbed.open());
    assert_eq!(Content::of(&testbed.current()).pins, before.pins);
}

#[test]
fn a_limit_that_is_too_small_for_what_lives_is_not_taken() {
    let Some(mut testbed) = Testbed::new() else { return };
    drop(older::start(&testbed.settings, older::LAST));
    // Ids up to 4 and 3, and 600 flows in each table, which leaves too little room at the end.
    testbed.settings.limits = Limits {
        services: 4,
        backends: 2,
        pins: 700,
        tracked_flows: 700,
        nat_connections: 700,
        connections: 700,
        fragments: 700,
        icmp_errors: abi::DEFAULT_ICMP_ERRORS,
    };
    let before = Content::of(&older::folder(&testbed.settings, older::LAST));
    // There are no connections in mode `nat`.
    assert_eq!(testbed.open().limits(), Limits { nat_connections: 700, ..LIMITS });
    assert_eq!(Content::of(&testbed.current()), before);
    // One limit may go down while another has to stay.
    testbed.settings.limits = Limits { services: 5, backends: 2, pins: 900, ..LIMITS };
    assert_eq!(testbed.open().limits(), Limits { services: 5, pins: 900, ..LIMITS });
    assert_eq!(Content::of(&testbed.current()), before);
}

#[test]
fn no_packet_meets_an_interface_without_a_program_and_each_is_counted() {
    let Some(mut testbed) = Testbed::new() else { return };
    drop(older::start(&testbed.settings, older::LAST));
    let before = Content::of(&older::folder(&testbed.settings, older::LAST));
    let end = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let wire = Wire::at("vb");
            let decided = decisions(&wire);
            let mut sent = decided.len();
            while !end.load(Ordering::Relaxed) {
                assert_eq!(decisions(&wire), decided);
                sent += decided.len();
            }
            sent
        });
        for limits in [LARGER, LIMITS] {
            testbed.settings.limits = limits;
            let opened = Xdp::open(&testbed.settings).map(drop);
            if opened.is_err() || load.is_finished() {
                end.store(true, Ordering::Relaxed);
                opened.unwrap();
            }
        }
        end.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    let after = Content::of(&testbed.current());
    assert_eq!(after.packets() - before.packets(), sent as u64);
    assert_eq!(after.verdicts, before.verdicts, "nothing was dropped or passed");
}

#[test]
fn what_the_old_program_does_after_the_copy_is_caught_up_on() {
    let Some(mut testbed) = Testbed::new() else { return };
    drop(older::start(&testbed.settings, older::LAST));
    let wire = Wire::at("vb");
    let old = older::folder(&testbed.settings, older::LAST);
    let next = testbed.current().with_file_name(format!("v{ABI_VERSION}-next"));
    let now = Now::read().mono_secs();
    let value = |backend, seen| FlowValue { backend, flags: flow_flags::ESTABLISHED, seen };
    let quic = |client: u16| ConnectionKey { id: [client as u8; 8], service: 3, reserved: 0 };
    let (newcomers, later) = (10_000..10_100, 11_000..11_100);
    testbed.settings.limits = LARGER;
    let mut swapped = 0;
    let opened = Xdp::open_by_steps(&testbed.settings, &mut |step| {
        match step {
            Step::Loaded => {
                // The old program opens flows, and a flow moves on.
                for client in newcomers.clone() {
                    assert_eq!(wire.ask(frame(Kind::Syn, client, WEB)), Some(2));
                    let at = wire.ask(frame(Kind::Datagram, client, GAME)).unwrap();
                    assert!((1..=3).contains(&at));
                }
                let mut pins = pinned::<OlderKey, FlowValue>(&old, "PINS");
                pins.insert(older_flow(5, CLIENT_PORT, 0), value(3, now + 30), 0).unwrap();
                let mut connections = pinned(&old, "CONNECTIONS");
                connections.insert(quic(200), value(1, now), 0).unwrap();
            }
            Step::Swapped => swapped += 1,
            _ => return Ok(()),
        }
        if step == Step::Swapped && swapped == 2 {
            // The new program opens some, too, and one on a tuple of which the old knows.
            for client in later.clone() {
                assert_eq!(wire.ask(frame(Kind::Syn, client, WEB)), Some(2));
            }
            let mut pins = pinned::<FlowKey, FlowValue>(&next, "PINS");
            pins.insert(older::flow(6, CLIENT_PORT, 0), value(2, now + 40), 0).unwrap();
            let mut pins = pinned::<OlderKey, FlowValue>(&old, "PINS");
            pins.insert(older_flow(6, CLIENT_PORT, 0), value(1, now + 35), 0).unwrap();
        }
        Ok(())
    });
    drop(opened.unwrap());
    let after = Content::of(&testbed.current());
    let pin = |client| after.pins[&older::flow(client, CLIENT_PORT, 0)];
    assert_eq!((pin(5), pin(6)), (value(3, now + 30), value(2, now + 40)));
    assert_eq!(after.connections[&quic(200)], value(1, now));
    assert_eq!(after.pins.len(), usize::from(FLOWS) + 200);
    for client in newcomers.clone() {
        assert!(after.tracked.contains_key(&older::flow(client, CLIENT_PORT, 2)), "{client}");
    }
    for client in newcomers.chain(later) {
        assert_eq!(wire.ask(frame(Kind::Ack, client, WEB)), Some(2), "{client}");
    }
}

#[test]
fn the_layout_of_a_newer_version_is_left_alone() {
    let Some(testbed) = Testbed::new() else { return };
    drop(older::start(&testbed.settings, older::LAST));
    let maps = older::folder(&testbed.settings, older::LAST);
    let newer = testbed.settings.pin_dir.join("v99999");
    fs::rename(&maps, &newer).unwrap();
    let (pinned, link) = (testbed.pinned(), link_at(&testbed.settings.pin_dir.join("link-va")));
    let error = format!("{:#}", Xdp::open(&testbed.settings).unwrap_err());
    assert!(error.contains("v99999") && error.contains("lbctl detach"), "{error}");
    assert_eq!(testbed.pinned(), pinned);
    assert_eq!(link_at(&testbed.settings.pin_dir.join("link-va")), link);
    decisions(&Wire::at("vb"));
    // A map of another type than its name's.
    fs::rename(&newer, &maps).unwrap();
    fs::rename(maps.join("PINS"), maps.join("kept")).unwrap();
    fs::rename(maps.join("VIPS"), maps.join("PINS")).unwrap();
    let error = format!("{:#}", Xdp::open(&testbed.settings).unwrap_err());
    assert!(error.contains("PINS: a map of type"), "{error}");
    assert_eq!(link_at(&testbed.settings.pin_dir.join("link-va")), link);
}

#[test]
fn a_migration_that_fails_leaves_what_ran() {
    let Some(mut testbed) = Testbed::new() else { return };
    drop(older::start(&testbed.settings, older::LAST));
    let wire = Wire::at("vb");
    let decided = decisions(&wire);
    let before = testbed.pinned();
    let link = link_at(&testbed.settings.pin_dir.join("link-va"));
    testbed.settings.limits = LARGER;
    for at in [Step::Made, Step::Copied, Step::Loaded] {
        let opened = Xdp::open_by_steps(&testbed.settings, &mut |step| {
            if step == at { bail!("made to fail") } else { Ok(()) }
        });
        assert!(format!("{:#}", opened.unwrap_err()).contains("made to fail"));
        assert_eq!(testbed.pinned(), before, "{at:?}");
        assert_eq!(link_at(&testbed.settings.pin_dir.join("link-va")), link, "{at:?}");
        assert_eq!(decisions(&wire), decided, "{at:?}");
    }
    // An interface that can't have the program.
    testbed.settings.interfaces.push("vx".into());
    let error = format!("{:#}", Xdp::open(&testbed.settings).unwrap_err());
    assert!(error.contains("interface vx"), "{error}");
    assert_eq!(
        (testbed.pinned(), link_at(&testbed.settings.pin_dir.join("link-va"))),
        (before, link)
    );
    testbed.settings.interfaces.pop();
    drop(testbed.open());
    assert_eq!(decisions(&wire), decided);
}

#[test]
fn interfaces_come_and_go_with_a_migration() {
    let Some(mut testbed) = Testbed::new() else { return };
    testbed.settings.interfaces = vec!["va".into()];
    drop(older::start(&testbed.settings, older::LAST));
    let (vb, vd) = (Wire::at("vb"), Wire::at("vd"));
    let decided = decisions(&vb);
    testbed.settings.interfaces = vec!["vc".into(), "va".into()];
    testbed.settings.limits = LARGER;
    drop(testbed.open());
    assert_eq!(decisions(&vb), decided);
    assert_eq!(vd.ask_by(&vb, frame(Kind::Ack, 7, WEB)), Some(3));
    testbed.settings.interfaces = vec!["vc".into()];
    testbed.settings.limits = LIMITS;
    drop(testbed.open());
    assert_eq!(testbed.pinned(), testbed.whole());
    assert_eq!(vd.ask_by(&vb, frame(Kind::Ack, 8, WEB)), Some(3));
}

#[test]
fn a_link_that_was_pinned_under_a_name_with_two_meanings_is_found() {
    let Some(mut testbed) = Testbed::new() else { return };
    testbed.add_pair("a.b", "far");
    testbed.add_pair("a_b", "away");
    testbed.settings.interfaces = vec!["a.b".into()];
    drop(older::start(&testbed.settings, older::LAST));
    assert_eq!(testbed.pinned(), ["link-a_b", "v2"]);
    let link = link_at(&testbed.settings.pin_dir.join("link-a_b")).0;
    testbed.settings.interfaces = vec!["a_b".into(), "a.b".into()];
    let data_plane = testbed.open();
    assert_eq!(testbed.pinned(), ["link-a%2eb", "link-a_b", "v3"]);
    assert_eq!(link_at(&testbed.settings.pin_dir.join("link-a%2eb")).0, link);
    assert!(data_plane.interfaces().iter().all(|interface| interface.attached));
    drop(data_plane);
    // One that no longer is configured goes, whatever its pin is called.
    testbed.settings.interfaces = vec!["a_b".into()];
    drop(testbed.open());
    assert_eq!(testbed.pinned(), ["link-a_b", "v3"]);
    ip(&["link", "del", "a.b"]);
}

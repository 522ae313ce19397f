//! The engine's results for a desired state: the maps in memory, golden files, and writes that
//! fail.

mod drains;
mod fixture;
mod health;
mod nat_drains;
mod pair;
mod starved;
mod sums;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
    time::SystemTime,
};

use lb_common::abi::{self, FlowKey, FlowValue, Owners, backend_flags, flow_flags};
use lb_control::{
    engine::{Engine, Outcome, Swept},
    reconcile::{self, Applied, MapWrite, PlanInputs},
};
use lb_model::{
    desired::{Admin, Desired, Mode, Protocol, Service, ServiceKey},
    flow::FlowRef,
    hop::{Neighbourhood, NextHop, Resolution, Want},
    seen::View,
    settings::Limits,
    time::Now,
};
use lb_plane::{Maps as _, fake::Fake};

use self::fixture::*;

#[test]
fn two_backends_of_one_address_are_told_apart_by_their_ports_through_drain_and_restart() {
    let (one, other) = ("10.0.0.11:6432", "10.0.0.11:6433");
    let mut engine = running(one_service(&[(one, 1), (other, 1)]));
    let ids = [id(&engine, one), id(&engine, other)];
    assert_ne!(ids[0], ids[1]);
    let owned =
        |engine: &Engine<Fake>, id| owners(engine).iter().filter(|o| o.current == id).count();
    assert_eq!(owned(&engine, ids[0]) + owned(&engine, ids[1]), SLOTS as usize);
    edit(&mut engine, one, Admin::Draining { deadline: None });
    engine.reconcile(at(101)).unwrap();
    assert_eq!([owned(&engine, ids[0]), owned(&engine, ids[1])], [0, SLOTS as usize]);
    // A start reads both back from the maps.
    let (desired, before) = (engine.desired().clone(), engine.data_plane().dump());
    let mut engine = Engine::adopt(engine.into_data_plane(), &settings()).unwrap();
    set(&mut engine, desired);
    engine.reconcile(at(102)).unwrap();
    assert_eq!([id(&engine, one), id(&engine, other)], ids);
    assert_eq!(engine.data_plane().dump(), before);
}

#[test]
fn maps_of_three_services_are_as_in_the_golden_file() {
    let engine = running(three_services());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/three_services.txt");
    let dump = engine.data_plane().dump();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &dump).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(dump, golden, "UPDATE_GOLDEN=1 writes {}", path.display());
}

#[test]
fn a_plan_writes_backends_then_rings_then_services_and_deletes_in_reverse() {
    let plan = |desired: &Desired, applied: &Applied, known: Option<&Neighbourhood>| {
        let settings = settings();
        let inputs = PlanInputs {
            desired,
            neighbourhood: known,
            unreached: &BTreeSet::new(),
            recovering: &BTreeSet::new(),
            view: &View::new(),
            ramps: &BTreeMap::new(),
            limits: Limits::default(),
            cpus: 2,
            pinning_paused: &BTreeSet::new(),
            peers: &BTreeSet::new(),
            virtual_macs: &BTreeSet::new(),
            tunnel: &settings.tunnel,
            seed: &settings.seed,
            now: at(1),
        };
        let rank = |change| match change {
            MapWrite::SetOwnMacs(_) => 0,
            MapWrite::PutBackend(..) => 1,
            MapWrite::SetPeerMacs(_) | MapWrite::PublishRing(..) | MapWrite::RetargetRing(..) => 2,
            MapWrite::PutVip(_) | MapWrite::PutService(..) => 3,
            MapWrite::DeleteService(_) => 4,
            MapWrite::DeleteVip(_) => 5,
            MapWrite::DeleteRing(_) => 6,
            MapWrite::ClearBackend(_) => 7,
        };
        let writes = reconcile::plan(&inputs, applied).writes;
        writes.into_iter().map(rank).collect::<Vec<_>>()
    };
    let engine = running(three_services());
    let known = reached(&engine);
    let made = plan(&three_services(), &Applied::default(), Some(&known));
    assert_eq!(made, [0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]);
    // All of it goes.
    let data_plane = engine.into_data_plane();
    let rings = (0..3).map(|id| (id, reconcile::Ring::default())).collect();
    let applied = Applied {
        services: data_plane.services().unwrap(),
        backends: data_plane.backends().unwrap(),
        vips: data_plane.vips().unwrap(),
        rings,
        ..Applied::default()
    };
    let gone = plan(&Desired::default(), &applied, None);
    assert_eq!(gone, [4, 4, 4, 5, 5, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7]);
}

#[test]
fn nothing_is_written_before_anything_is_desired_nor_twice() {
    let mut engine = Engine::adopt(Fake::new(Limits::default()), &settings()).unwrap();
    engine.reconcile(at(1)).unwrap();
    assert_eq!(engine.data_plane().writes(), 0);
    set(&mut engine, three_services());
    assert!(engine.reconcile(at(2)).unwrap().changes > 0);
    let writes = engine.data_plane().writes();
    assert_eq!(engine.reconcile(at(3)).unwrap(), Outcome::default());
    assert_eq!(engine.data_plane().writes(), writes);
}

#[test]
fn a_new_engine_adopts_everything_and_moves_nothing() {
    let mut engine = running(three_services());
    edit(&mut engine, "10.0.0.12", Admin::Draining { deadline: None });
    engine.reconcile(at(101)).unwrap();
    let (flow, value) = pin(7, id(&engine, "10.0.0.12"), 100);
    engine.data_plane_mut().add_flow(flow, value);
    let desired = engine.desired().clone();
    let before = engine.data_plane().dump();
    let mut engine = Engine::adopt(engine.into_data_plane(), &settings()).unwrap();
    // Nothing is known of next hops yet: the map's entries hold.
    engine.set_desired(desired);
    assert_eq!(engine.reconcile(at(200)).unwrap(), Outcome::default());
    hop(&mut engine, "10.0.0.11", pending());
    assert_eq!(engine.reconcile(at(201)).unwrap(), Outcome::default());
    assert_eq!(engine.sweep(at(202)).unwrap(), Swept::default());
    assert_eq!(engine.data_plane().dump(), before);
    assert!(engine.data_plane().flow(&flow).is_some());
}

#[test]
fn whichever_write_fails_the_next_call_does_the_rest() {
    let changed = || {
        let mut desired = three_services();
        desired.services.remove("dns");
        let web = desired.services.get_mut("web").unwrap();
        web.backends.remove(&address("10.0.0.13"));
        web.backends.get_mut(&address("10.0.0.11")).unwrap().admin = Admin::Down;
        web.backends.insert(address("10.0.0.14"), backend(3));
        desired.services.get_mut("far").unwrap().ring_slots = 127;
        desired
    };
    let story = |fail: Option<u64>| {
        let mut engine = engine_of(three_services(), Limits::default());
        if let Some(n) = fail {
            engine.data_plane_mut().fail_nth_write(n);
        }
        let mut failures = u64::from(engine.reconcile(at(100)).is_err());
        failures += u64::from(engine.reconcile(at(100)).is_err());
        set(&mut engine, changed());
        failures += u64::from(engine.reconcile(at(200)).is_err());
        failures += u64::from(engine.reconcile(at(200)).is_err());
        assert_eq!(engine.reconcile(at(200)).unwrap(), Outcome::default(), "write {fail:?}");
        (engine.data_plane().dump(), engine.data_plane().writes(), failures)
    };
    let (dump, writes, failures) = story(None);
    assert_eq!(failures, 0);
    for n in 1..=writes {
        let (after, _, failures) = story(Some(n));
        assert_eq!(failures, 1, "write {n}");
        assert!(after == dump, "write {n} has left other maps");
    }
}

#[test]
fn a_drained_backend_keeps_its_old_flows_until_it_is_quiet() {
    let mut engine = running(one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1)]));
    let (old, new) = (id(&engine, "10.0.0.11"), id(&engine, "10.0.0.12"));
    let had: Vec<_> = owners(&engine);
    edit(&mut engine, "10.0.0.11", Admin::Draining { deadline: None });
    let moved = engine.reconcile(at(1_000)).unwrap().slots_moved;
    assert_eq!(moved, had.iter().filter(|slot| slot.current == old).count() as u64);
    for (slot, before) in owners(&engine).into_iter().zip(&had) {
        let base = if before.current == old { old } else { 0 };
        assert_eq!(slot, Owners { current: new, base });
    }
    // One slot gets a packet of an old flow once more; the others are quiet.
    let noisy = had.iter().position(|slot| slot.current == old).unwrap();
    engine.data_plane().ring(0).unwrap()[noisy].touch_unpinned(abi::stamp(1_500));
    assert_eq!(engine.sweep(at(1_000 + IDLE)).unwrap().settled, 0);
    assert_eq!(engine.sweep(at(1_001 + IDLE)).unwrap().settled, moved - 1);
    assert_eq!(owners(&engine)[noisy].base, old);
    assert_eq!(engine.sweep(at(1_501 + IDLE)).unwrap().settled, 1);
    assert!(!engine.status().unwrap().services["web"].backends[&address("10.0.0.11")].has_flows());
    // Back in service it has its slots again.
    edit(&mut engine, "10.0.0.11", Admin::Enabled);
    engine.reconcile(at(3_000)).unwrap();
    assert!(owners(&engine).iter().zip(had).all(|(now, had)| now.current == had.current));
}

#[test]
fn a_removed_backend_leaves_when_its_last_flow_has_ended() {
    let mut engine = running(one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1)]));
    let old = id(&engine, "10.0.0.11");
    edit(&mut engine, "10.0.0.11", Admin::Removing { deadline: None });
    engine.reconcile(at(1_000)).unwrap();
    let quiet = 1_001 + IDLE;
    let (flow, value) = pin(7, old, quiet);
    engine.data_plane_mut().add_flow(flow, value);
    for second in quiet..quiet + 5 {
        assert!(engine.sweep(at(second)).unwrap().removed.is_empty());
    }
    let status = engine.status().unwrap();
    assert_eq!(status.services["web"].backends[&address("10.0.0.11")].pins, 1);
    assert_eq!(status.pins.used, 1);
    let ended = quiet + IDLE + 1;
    assert_eq!(
        engine.sweep(at(ended)).unwrap().removed,
        [("web".to_owned(), address("10.0.0.11"))]
    );
    assert!(engine.data_plane().flow(&flow).is_none());
    assert!(!engine.data_plane().backends().unwrap().contains_key(&old));
    // It is reported again, and not taken in again, until the operator's wish follows.
    assert_eq!(engine.reconcile(at(ended)).unwrap(), Outcome::default());
    assert_eq!(engine.sweep(at(ended + 1)).unwrap().removed.len(), 1);
    let without = one_service(&[("10.0.0.12", 1)]);
    set(&mut engine, without);
    assert_eq!(engine.reconcile(at(ended + 1)).unwrap(), Outcome::default());
    assert!(engine.sweep(at(ended + 2)).unwrap().removed.is_empty());
}

#[test]
fn a_tracked_service_keeps_its_flows_without_base_owners() {
    let mut desired = one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1)]);
    desired.services.get_mut("web").unwrap().key.protocol = Protocol::Udp;
    let mut engine = running(desired);
    let old = id(&engine, "10.0.0.11");
    let (FlowRef::Pin(key), value) = pin(7, old, 1_000) else { unreachable!() };
    engine.data_plane_mut().add_flow(FlowRef::Tracked(key), value);
    edit(&mut engine, "10.0.0.11", Admin::Removing { deadline: None });
    engine.reconcile(at(1_000)).unwrap();
    assert!(owners(&engine).iter().all(|slot| slot.current != old && slot.base == 0));
    for second in [1_001, 1_002, 1_000 + IDLE] {
        assert!(engine.sweep(at(second)).unwrap().removed.is_empty());
    }
    assert!(engine.data_plane().flow(&FlowRef::Tracked(key)).is_some());
    assert_eq!(engine.sweep(at(1_001 + IDLE)).unwrap().removed.len(), 1);
}

#[test]
fn a_deadline_ends_what_is_left() {
    let mut engine = running(one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1)]));
    let old = id(&engine, "10.0.0.11");
    edit(&mut engine, "10.0.0.11", Admin::Removing { deadline: Some(at(1_060).wall) });
    engine.reconcile(at(1_000)).unwrap();
    let (flow, value) = pin(7, old, 1_059);
    engine.data_plane_mut().add_flow(flow, value);
    engine.sweep(at(1_059)).unwrap();
    assert!(owners(&engine).iter().any(|slot| slot.base == old));
    assert!(engine.data_plane().flow(&flow).is_some());
    engine.sweep(at(1_060)).unwrap();
    assert!(owners(&engine).iter().all(|slot| slot.base == 0));
    assert!(engine.data_plane().flow(&flow).is_none());
    assert_eq!(engine.sweep(at(1_061)).unwrap().removed.len(), 1);
}

#[test]
fn a_backend_that_is_down_loses_slots_bases_and_pins_at_once() {
    let mut engine = running(one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1)]));
    let old = id(&engine, "10.0.0.11");
    edit(&mut engine, "10.0.0.11", Admin::Disabled);
    engine.reconcile(at(1_000)).unwrap();
    let (flow, value) = pin(7, old, 1_000);
    engine.data_plane_mut().add_flow(flow, value);
    engine.sweep(at(1_001)).unwrap();
    assert!(owners(&engine).iter().any(|slot| slot.base == old));
    edit(&mut engine, "10.0.0.11", Admin::Down);
    engine.reconcile(at(1_002)).unwrap();
    assert!(owners(&engine).iter().all(|slot| slot.base == 0 && slot.current != old));
    assert!(engine.data_plane().flow(&flow).is_none());
    let entry = engine.data_plane().backends().unwrap()[&old];
    assert_eq!(entry.flags & backend_flags::USABLE, 0);
}

#[test]
fn an_unreachable_backend_leaves_the_ring_and_a_silent_network_does_not_empty_it() {
    let mut engine = running(one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1)]));
    let lost = id(&engine, "10.0.0.11");
    let had = owners(&engine);
    // A probe that is not answered yet changes nothing.
    hop(&mut engine, "10.0.0.11", pending());
    assert_eq!(engine.reconcile(at(1_000)).unwrap(), Outcome::default());
    hop(&mut engine, "10.0.0.11", unreachable());
    engine.reconcile(at(1_001)).unwrap();
    assert!(owners(&engine).iter().all(|slot| slot.current != lost && slot.base != lost));
    hop(&mut engine, "10.0.0.11", pending());
    assert_eq!(engine.reconcile(at(1_002)).unwrap(), Outcome::default());
    // It returns; the other's flows in its slots stay.
    hop(
        &mut engine,
        "10.0.0.11",
        resolved(Want { address: address("10.0.0.11").ip, mode: Mode::Dsr }),
    );
    engine.reconcile(at(1_003)).unwrap();
    assert!(owners(&engine).iter().zip(&had).all(|(now, had)| now.current == had.current));
    // The link goes, and no backend is usable; it comes back, and all are presumed where they were
    // before they have answered. Nothing moves.
    let before = owners(&engine);
    for (state, flag) in [(unreachable(), 0), (pending(), backend_flags::USABLE)] {
        let mut all = reached(&engine);
        all.hops.values_mut().for_each(|hop| *hop = state.clone());
        engine.set_neighbourhood(all);
        assert_eq!(engine.reconcile(at(1_004)).unwrap().slots_moved, 0);
        let usable = engine.data_plane().backends().unwrap();
        assert!(usable.values().all(|entry| entry.flags & backend_flags::USABLE == flag));
    }
    hop(&mut engine, "10.0.0.11", pending());
    assert_eq!(engine.reconcile(at(1_005)).unwrap().slots_moved, 0);
    let all = reached(&engine);
    engine.set_neighbourhood(all);
    assert_eq!(engine.reconcile(at(1_006)).unwrap().slots_moved, 0);
    assert_eq!(owners(&engine), before);
}

#[test]
fn the_first_to_answer_after_an_outage_takes_no_flow_from_the_others() {
    let three = [("10.0.0.11", 1), ("10.0.0.12", 1), ("10.0.0.13", 1)];
    let mut engine = running(one_service(&three));
    edit(&mut engine, "10.0.0.13", Admin::Draining { deadline: None });
    engine.reconcile(at(900)).unwrap();
    let had = owners(&engine);
    let answered = |engine: &mut Engine<Fake>, these: &[&str], now| {
        let mut all = reached(engine);
        for (want, hop) in &mut all.hops {
            if !these.iter().any(|these| address(these).ip == want.address) {
                *hop = unreachable();
            }
        }
        engine.set_neighbourhood(all);
        engine.reconcile(at(now)).unwrap().slots_moved
    };
    assert_eq!(answered(&mut engine, &[], 1_000), 0);
    assert_eq!(answered(&mut engine, &["10.0.0.12"], 1_060), 0);
    // Packets for the others would else be answered by the first with a reset.
    let entries = engine.data_plane().backends().unwrap();
    assert!(entries.values().all(|entry| entry.flags & backend_flags::USABLE != 0));
    assert_eq!(answered(&mut engine, &["10.0.0.12", "10.0.0.11"], 1_061), 0);
    let all = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];
    assert_eq!(answered(&mut engine, &all, 1_062), 0);
    assert_eq!(owners(&engine), had, "owners and bases");
    // The link is back before the network behind it is: all are probed, and fail one by one.
    let each = |engine: &mut Engine<Fake>, states: [Resolution; 3], now| {
        let mut hops = reached(engine);
        hops.hops.values_mut().zip(states).for_each(|(hop, state)| *hop = state);
        engine.set_neighbourhood(hops);
        engine.reconcile(at(now)).unwrap().slots_moved
    };
    assert_eq!(answered(&mut engine, &[], 1_070), 0);
    assert_eq!(each(&mut engine, [pending(), pending(), pending()], 1_071), 0);
    assert_eq!(each(&mut engine, [pending(), unreachable(), pending()], 1_074), 0);
    assert_eq!(each(&mut engine, [unreachable(), unreachable(), pending()], 1_074), 0);
    assert_eq!(answered(&mut engine, &all, 1_090), 0);
    assert_eq!(owners(&engine), had, "owners and bases");
    // A backend that does not answer in time is lost.
    answered(&mut engine, &[], 1_100);
    answered(&mut engine, &["10.0.0.12"], 1_160);
    engine.sweep(at(1_164)).unwrap();
    assert_eq!(owners(&engine), had);
    engine.sweep(at(1_165)).unwrap();
    let left = id(&engine, "10.0.0.12");
    assert!(owners(&engine).iter().all(|slot| *slot == Owners { current: left, base: 0 }));
}

#[test]
fn a_drain_is_not_over_before_the_flows_of_its_last_second_are_counted() {
    let mut engine = running(one_service(&[("10.0.0.11", 1)]));
    engine.sweep(at(1_000)).unwrap();
    // In its slots it is not the first: its flows are pins, and none is counted yet.
    set(&mut engine, one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1)]));
    engine.reconcile(at(1_001)).unwrap();
    let (flow, value) = pin(7, id(&engine, "10.0.0.12"), 1_001);
    engine.data_plane_mut().add_flow(flow, value);
    edit(&mut engine, "10.0.0.12", Admin::Draining { deadline: None });
    engine.reconcile(at(1_001)).unwrap();
    let drained = |engine: &Engine<Fake>| {
        engine.status().unwrap().services["web"].backends[&address("10.0.0.12")].clone()
    };
    assert_eq!((drained(&engine).slots, drained(&engine).base_slots), (0, 0));
    assert!(drained(&engine).has_flows(), "one has just been opened");
    engine.sweep(at(1_002)).unwrap();
    assert_eq!((drained(&engine).pins, drained(&engine).pins_stale), (1, false));
    assert!(drained(&engine).has_flows());
    engine.sweep(at(1_002 + IDLE)).unwrap();
    assert!(!drained(&engine).has_flows());
}

#[test]
fn without_an_enabled_backend_new_flows_have_no_owner_and_old_ones_stay() {
    let mut engine = running(one_service(&[("10.0.0.11", 1)]));
    let old = id(&engine, "10.0.0.11");
    edit(&mut engine, "10.0.0.11", Admin::Draining { deadline: None });
    engine.reconcile(at(1_000)).unwrap();
    assert!(owners(&engine).iter().all(|slot| *slot == Owners { current: 0, base: old }));
}

#[test]
fn an_id_rests_before_it_is_given_anew() {
    let mut engine = running(one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1)]));
    let released = id(&engine, "10.0.0.11");
    set(&mut engine, one_service(&[("10.0.0.12", 1)]));
    engine.reconcile(at(1_000)).unwrap();
    set(&mut engine, one_service(&[("10.0.0.12", 1), ("10.0.0.13", 1)]));
    engine.reconcile(at(1_001)).unwrap();
    assert_ne!(id(&engine, "10.0.0.13"), released);
    for second in 1_002..1_006 {
        engine.sweep(at(second)).unwrap();
    }
    let all = one_service(&[("10.0.0.12", 1), ("10.0.0.13", 1), ("10.0.0.14", 1)]);
    set(&mut engine, all);
    engine.reconcile(at(1_006)).unwrap();
    assert_eq!(id(&engine, "10.0.0.14"), released);
}

#[test]
fn pins_end_when_idle_and_the_marks_of_slots_after_them() {
    let mut engine = running(one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1)]));
    let to = id(&engine, "10.0.0.12");
    edit(&mut engine, "10.0.0.11", Admin::Draining { deadline: None });
    engine.reconcile(at(1_000)).unwrap();
    engine.data_plane().ring(0).unwrap()[0].touch_pinned(abi::stamp(1_000));
    // A FIN or an RST may be forged: a flow with one is kept like the others.
    let closing = flow_flags::ESTABLISHED | flow_flags::CLOSING;
    let pins = [(1, 0, 75), (2, closing, IDLE), (3, flow_flags::ESTABLISHED, IDLE)];
    for (port, flags, ..) in pins {
        let (flow, value) = pin(port, to, 1_000);
        engine.data_plane_mut().add_flow(flow, FlowValue { flags, ..value });
    }
    let lives = |engine: &Engine<Fake>, port| {
        let (flow, _) = pin(port, to, 0);
        engine.data_plane().flow(&flow).is_some()
    };
    for (port, flags, kept) in pins {
        engine.sweep(at(1_000 + kept)).unwrap();
        assert!(lives(&engine, port), "flags {flags}");
        if port != 2 {
            let expired = engine.sweep(at(1_001 + kept)).unwrap().expired;
            assert_eq!(expired, if port == 1 { 1 } else { 2 });
            assert!(!lives(&engine, port), "flags {flags}");
        }
    }
    assert!(!lives(&engine, 2));
    let mark = |engine: &Engine<Fake>| engine.data_plane().ring(0).unwrap()[0].pinned();
    engine.sweep(at(1_002 + IDLE)).unwrap();
    assert_eq!(mark(&engine), abi::stamp(1_000));
    engine.sweep(at(1_003 + IDLE)).unwrap();
    assert_eq!(mark(&engine), 0);
}

#[test]
fn flows_that_have_only_sent_syns_end_sooner_in_a_table_half_full_and_no_other_does() {
    let desired = one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1)]);
    let mut engine = engine_of(desired, Limits { pins: 100, ..Limits::default() });
    engine.reconcile(at(100)).unwrap();
    let to = id(&engine, "10.0.0.12");
    edit(&mut engine, "10.0.0.11", Admin::Draining { deadline: None });
    engine.reconcile(at(1_000)).unwrap();
    let opens = |engine: &mut Engine<Fake>, ports: Range<u16>, at| {
        for port in ports {
            let (flow, value) = pin(port, to, at);
            engine.data_plane_mut().add_flow(flow, FlowValue { flags: 0, ..value });
        }
    };
    let used = |engine: &Engine<Fake>| engine.status().unwrap().pins.used;
    let (flow, value) = pin(1, to, 1_000);
    let established = FlowValue { flags: flow_flags::ESTABLISHED, ..value };
    engine.data_plane_mut().add_flow(flow, established);
    // Half of the room: they live as ever.
    opens(&mut engine, 2..51, 1_000);
    for second in 1_001..1_010 {
        engine.sweep(at(second)).unwrap();
    }
    assert_eq!(used(&engine), 50);
    // One more than that, and then only those are left that were sent within the last seconds.
    opens(&mut engine, 51..61, 1_010);
    for (second, left) in [(1_010, 60), (1_012, 11), (1_014, 11), (1_086, 1)] {
        engine.sweep(at(second)).unwrap();
        assert_eq!(used(&engine), left, "second {second}");
    }
    assert!(engine.data_plane().flow(&flow).is_some());
}

#[test]
fn what_has_no_room_is_named_and_the_rest_is_applied() {
    let limits = Limits { services: 2, backends: 5, ..Limits::default() };
    let mut engine = engine_of(three_services(), limits);
    let error = format!("{:#}", engine.reconcile(at(1)).unwrap_err());
    assert!(error.contains("`services` under [limits]") && error.contains("web"), "{error}");
    assert_eq!(engine.data_plane().services().unwrap().len(), 2);
    assert_eq!(engine.status().unwrap().last_error, Some(error));
    let limits = Limits { backends: 6, ..Limits::default() };
    let mut engine = engine_of(three_services(), limits);
    let error = format!("{:#}", engine.reconcile(at(1)).unwrap_err());
    assert!(error.contains("`backends` under [limits]") && error.contains("10.0.0.13"), "{error}");
    assert_eq!(engine.data_plane().backends().unwrap().len(), 6);
    assert_eq!(engine.data_plane().services().unwrap().len(), 3);
}

#[test]
fn a_thousand_backends_fit_a_plan_and_lose_one_cheaply() {
    let names: Vec<_> = (0..1_000).map(|n| format!("10.1.{}.{}", n / 250, n % 250 + 1)).collect();
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let with = |backends: &[(&str, u16)]| {
        let mut desired = one_service(backends);
        desired.services.get_mut("web").unwrap().ring_slots = abi::DEFAULT_RING_SLOTS;
        desired
    };
    let mut engine = running(with(&all));
    assert_eq!(engine.status().unwrap().backends_used.used, 1_000);
    set(&mut engine, with(&all[1..]));
    let moved = engine.reconcile(at(101)).unwrap().slots_moved;
    // Its own 65 or 66 slots, and about 1 % of the others'.
    assert!((65..1_400).contains(&moved), "{moved} slots moved");
}

#[test]
fn other_balancers_are_known_while_a_backend_is_on_this_node() {
    let peer = "10.0.0.6";
    let mac = |last| [2, 0, 0, 0, 0, last];
    let key = |last| abi::PeerKey { mac: mac(last), service: 0 };
    let mut engine = running(one_service(&[("10.0.0.5", 1), (peer, 1)]));
    engine.set_peers([address("10.0.0.7").ip].into());
    let peers = |engine: &Engine<Fake>| engine.data_plane().peer_macs().unwrap();
    let local = |engine: &Engine<Fake>| {
        let key = engine.desired().services["web"].key;
        engine.data_plane().services().unwrap()[&key].flags & abi::service_flags::LOCAL != 0
    };
    engine.reconcile(at(101)).unwrap();
    assert!(peers(&engine).is_empty() && !local(&engine), "no backend is here");

    hop(&mut engine, "10.0.0.5", Resolution::Resolved(NextHop::local()));
    engine.reconcile(at(102)).unwrap();
    let own = id(&engine, "10.0.0.5");
    // The other backend may be a balancer; the peer's way is wanted from here on.
    assert_eq!(peers(&engine), [(key(6), own)].into());
    assert!(local(&engine));
    assert!(engine.wants().contains(&Want { address: address("10.0.0.7").ip, mode: Mode::Dsr }));
    hop(&mut engine, "10.0.0.5", Resolution::Resolved(NextHop::local()));
    engine.reconcile(at(103)).unwrap();
    assert_eq!(peers(&engine), [(key(6), own), (key(7), own)].into());

    // An answer that is awaited takes nothing away.
    let mut neighbourhood = reached(&engine);
    let want = |at| Want { address: address(at).ip, mode: Mode::Dsr };
    neighbourhood.hops.insert(want("10.0.0.5"), Resolution::Resolved(NextHop::local()));
    neighbourhood.hops.insert(want("10.0.0.7"), pending());
    engine.set_neighbourhood(neighbourhood);
    engine.reconcile(at(103)).unwrap();
    assert_eq!(peers(&engine).len(), 2);

    // Drained or down, the backend is there for packets that others forward.
    edit(&mut engine, "10.0.0.5", Admin::Down);
    engine.reconcile(at(104)).unwrap();
    assert_eq!(peers(&engine).len(), 2);

    let data_plane = engine.into_data_plane();
    let mut engine = Engine::adopt(data_plane, &settings()).unwrap();
    let peers = engine.data_plane().peer_macs().unwrap();
    assert_eq!(peers.len(), 2, "a start finds them, and what comes meanwhile is delivered");
    set(&mut engine, one_service(&[(peer, 1)]));
    engine.reconcile(at(105)).unwrap();
    assert!(engine.data_plane().peer_macs().unwrap().is_empty(), "the backend is gone");
}

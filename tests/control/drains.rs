//! When a drain is over by estimate, and that the estimate moves nothing.

use lb_api::status::{self, Drain, Unseen};
use lb_control::engine::Role;

use super::*;

const CLOSED: u16 = flow_flags::ESTABLISHED | flow_flags::CLOSING;
/// The backend that drains.
const OLD: &str = "10.0.0.11";

/// Two backends, the first of which drains since second 1,000; swept once.
fn draining(deadline: Option<SystemTime>) -> Engine<Fake> {
    let mut engine = running(one_service(&[(OLD, 1), ("10.0.0.12", 1)]));
    engine.sweep(at(999)).unwrap();
    edit(&mut engine, OLD, Admin::Draining { deadline });
    engine.reconcile(at(1_000)).unwrap();
    assert!(!look(&engine).is_estimated_over(), "nobody has looked yet");
    engine.sweep(at(1_001)).unwrap();
    engine
}

fn look(engine: &Engine<Fake>) -> status::Backend {
    engine.status().unwrap().services["web"].backends[&address(OLD)].clone()
}

/// The drain at a second, by the sweep of it.
fn swept(engine: &mut Engine<Fake>, secs: u32) -> status::Backend {
    engine.sweep(at(secs)).unwrap();
    look(engine)
}

fn noisy_slot(engine: &Engine<Fake>) -> usize {
    let old = id(engine, OLD);
    owners(engine).iter().position(|slot| slot.base == old).unwrap()
}

#[test]
fn finished_connections_end_a_drain_by_estimate_and_move_nothing() {
    let mut engine = draining(None);
    let old = id(&engine, OLD);
    for port in 0..40 {
        let (flow, value) = pin(port, old, 1_010);
        engine.data_plane_mut().add_flow(flow, FlowValue { flags: CLOSED, ..value });
    }
    engine.data_plane().ring(0).unwrap()[noisy_slot(&engine)].touch_unpinned(abi::stamp(1_010));
    // The last ACK of a connection follows its FIN: they are not closed at once.
    let backend = swept(&mut engine, 1_014);
    assert_eq!((backend.pins, backend.pins_closing), (40, 0));
    let backend = swept(&mut engine, 1_015);
    assert_eq!((backend.pins, backend.pins_closing), (40, 40));
    let drain = Drain {
        silence_secs: 20,
        heard_secs: Some(5),
        ends_in_secs: Some(896),
        ..Drain::default()
    };
    assert_eq!(backend.drain, Some(drain));
    assert!(!swept(&mut engine, 1_029).is_estimated_over());
    let before = engine.data_plane().dump();
    let backend = swept(&mut engine, 1_030);
    assert!(backend.is_estimated_over() && backend.has_flows(), "{backend:?}");
    assert_eq!(backend.drain.unwrap().ends_in_secs, Some(881));
    assert_eq!(engine.data_plane().dump(), before);
    assert_eq!(engine.data_plane().flow_count(lb_model::flow::FlowTable::Pins), 40);
    // The certain end.
    let backend = swept(&mut engine, 1_011 + IDLE);
    assert!(!backend.has_flows() && !backend.is_estimated_over(), "{backend:?}");
}

#[test]
fn a_flow_that_sends_keeps_a_drain_from_its_estimated_end() {
    let mut engine = draining(None);
    let (slot, old) = (noisy_slot(&engine), id(&engine, OLD));
    let (half_closed, value) = pin(7, old, 1_001);
    for secs in (1_001..1_100).step_by(4) {
        // Now an older flow, then one whose client has closed its own direction only.
        if secs < 1_050 {
            engine.data_plane().ring(0).unwrap()[slot].touch_unpinned(abi::stamp(secs));
        } else {
            let value = FlowValue { seen: secs, flags: CLOSED, ..value };
            engine.data_plane_mut().add_flow(half_closed, value);
        }
        assert!(!swept(&mut engine, secs + 1).is_estimated_over(), "at {secs}");
    }
    // One that is open holds it up however silent it is, until its client closes it.
    engine.data_plane_mut().add_flow(half_closed, FlowValue { seen: 1_100, ..value });
    for secs in [1_119, 1_120, 1_300, 1_900] {
        let backend = swept(&mut engine, secs);
        assert!(!backend.is_estimated_over(), "at {secs}");
        assert_eq!((backend.pins, backend.pins_closing), (1, 0));
    }
    let closed = FlowValue { seen: 1_900, flags: CLOSED, ..value };
    engine.data_plane_mut().add_flow(half_closed, closed);
    let backend = swept(&mut engine, 1_905);
    assert_eq!((backend.pins, backend.pins_closing), (1, 1));
    assert!(!swept(&mut engine, 1_919).is_estimated_over(), "its client may wait for an answer");
    assert!(swept(&mut engine, 1_920).is_estimated_over());
}

#[test]
fn a_longer_silence_that_a_flow_has_broken_is_waited_for_twice() {
    let mut engine = draining(None);
    let slot = noisy_slot(&engine);
    let touch = |engine: &Engine<Fake>, secs| {
        engine.data_plane().ring(0).unwrap()[slot].touch_unpinned(abi::stamp(secs));
    };
    let run = |engine: &mut Engine<Fake>, secs: std::ops::Range<u32>| {
        secs.map(|secs| swept(engine, secs)).filter(status::Backend::is_estimated_over).count()
    };
    // A flow that sends each 15 seconds, when nothing but the least silence is known.
    assert_eq!(run(&mut engine, 1_002..1_016), 0);
    touch(&engine, 1_015);
    assert_eq!(run(&mut engine, 1_016..1_045), 0, "it may be late");
    assert_eq!(run(&mut engine, 1_045..1_046), 1);
    // After a longer one of 185 seconds.
    assert_eq!(run(&mut engine, 1_046..1_201), 155);
    touch(&engine, 1_200);
    assert_eq!(run(&mut engine, 1_201..1_570), 0);
    assert_eq!(run(&mut engine, 1_570..1_571), 1);
    // No more than the idle timeout is waited for.
    assert_eq!(run(&mut engine, 1_571..1_751), 180);
    touch(&engine, 1_750);
    assert_eq!(run(&mut engine, 1_751..2_650), 0);
    assert_eq!(run(&mut engine, 2_650..2_651), 1);
    assert!(!swept(&mut engine, 2_651).has_flows(), "proven");
}

#[test]
fn a_deadline_bounds_the_certain_end() {
    let mut engine = draining(Some(at(1_100).wall));
    assert_eq!(look(&engine).drain.unwrap().ends_in_secs, Some(99));
    assert!(swept(&mut engine, 1_020).is_estimated_over());
    let backend = swept(&mut engine, 1_101);
    assert!(!backend.has_flows(), "{backend:?}");
}

#[test]
fn who_does_not_hear_all_packets_of_a_service_makes_no_estimate() {
    for (role, unseen) in [(Role::Follows, Unseen::Synced), (Role::Shared, Unseen::Shared)] {
        let mut engine = draining(None);
        let key = engine.desired().services["web"].key;
        engine.set_roles([(key, role)].into(), at(1_001)).unwrap();
        let backend = swept(&mut engine, 1_300);
        let unknown = Drain { unseen: Some(unseen), ..Drain::default() };
        assert_eq!(backend.drain, Some(unknown), "{role:?}");
        assert!(!backend.is_estimated_over() && backend.has_flows(), "{role:?}");
        // A node that takes over has seen no packet before.
        engine.set_roles([(key, Role::Own)].into(), at(1_300)).unwrap();
        if role == Role::Follows {
            assert!(!swept(&mut engine, 1_319).is_estimated_over());
        }
        assert!(swept(&mut engine, 1_321).is_estimated_over(), "{role:?}");
    }
}

#[test]
fn a_backup_that_is_told_nothing_makes_no_estimate_and_begins_anew_as_the_active() {
    let mut engine = draining(None);
    let key = engine.desired().services["web"].key;
    engine.set_unsynced([key].into(), at(1_001));
    let unknown = Drain { unseen: Some(Unseen::Unsynced), ..Drain::default() };
    assert_eq!(look(&engine).drain, Some(unknown), "it need not look for that");
    for secs in [1_100, 1_002 + IDLE] {
        let backend = swept(&mut engine, secs);
        assert_eq!(backend.drain, Some(unknown), "at {secs}");
        assert!(backend.is_unsynced() && !backend.is_estimated_over(), "at {secs}");
    }
    assert!(!look(&engine).has_flows(), "no packet came for the idle timeout");
    let mut engine = draining(None);
    engine.set_unsynced([key].into(), at(1_001));
    assert!(!swept(&mut engine, 1_500).is_estimated_over());
    engine.set_unsynced([].into(), at(1_500));
    assert!(!look(&engine).is_unsynced());
    assert!(!swept(&mut engine, 1_519).is_estimated_over());
    assert!(swept(&mut engine, 1_520).is_estimated_over());
}

/// How many slots the backend that drains is the base owner of, and the other one of its own.
fn bases(engine: &Engine<Fake>) -> (usize, usize) {
    let (old, owners) = (id(engine, OLD), owners(engine));
    let of_old = owners.iter().filter(|slot| slot.base == old).count();
    (of_old, owners.iter().filter(|slot| slot.base != 0 && slot.base == slot.current).count())
}

#[test]
fn a_slot_that_a_packet_comes_for_while_it_is_written_keeps_its_base_owner() {
    let mut engine = draining(None);
    let (all, _) = bases(&engine);
    let quiet = 1_001 + IDLE;
    engine.data_plane_mut().touch_before_change(abi::stamp(quiet));
    assert!(swept(&mut engine, quiet).has_flows());
    assert_eq!(bases(&engine), (all, 0));
    swept(&mut engine, quiet + IDLE);
    assert_eq!(bases(&engine), (all, 0), "a flow may be there");
    assert!(!swept(&mut engine, quiet + IDLE + 1).has_flows());
    assert_eq!(bases(&engine), (0, 0));
}

#[test]
fn a_slot_that_a_packet_comes_for_while_it_begins_to_settle_keeps_its_base_owner() {
    let mut engine = draining(None);
    let (all, _) = bases(&engine);
    let mut quiet = 1_001 + IDLE;
    engine.export_changes(at(quiet)).unwrap();
    assert!(swept(&mut engine, quiet).has_flows());
    engine.data_plane_mut().touch_before_change(abi::stamp(quiet));
    engine.export_changes(at(quiet)).unwrap();
    assert_eq!(bases(&engine), (all, 0), "none was exported as settled");
    quiet += IDLE + 1;
    engine.export_changes(at(quiet)).unwrap();
    assert!(swept(&mut engine, quiet).has_flows());
    engine.export_changes(at(quiet)).unwrap();
    assert_eq!(bases(&engine), (0, all), "all were");
    engine.set_acknowledged(engine.export_number());
    engine.export_changes(at(quiet)).unwrap();
    assert_eq!(bases(&engine), (0, 0));
}

#[test]
fn slots_that_a_packet_comes_for_while_a_peer_is_late_with_them_are_not_taken_back() {
    for is_used in [false, true] {
        let mut engine = draining(None);
        let quiet = 1_001 + IDLE;
        engine.set_acknowledged(0);
        engine.export_changes(at(quiet)).unwrap();
        engine.sweep(at(quiet)).unwrap();
        engine.export_changes(at(quiet)).unwrap();
        let (_, settling) = bases(&engine);
        assert!(settling > 0);
        if is_used {
            // A flow has begun on their current owner.
            engine.data_plane_mut().touch_before_change(abi::stamp(quiet + 1));
        }
        engine.export_changes(at(quiet + 1)).unwrap();
        assert_eq!(bases(&engine).1, if is_used { settling } else { 0 });
    }
}

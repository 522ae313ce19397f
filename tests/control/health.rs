//! The engine and the backends' health: backends with new flows, backends with old flows.

use std::time::Duration;

use lb_api::status::Count;
use lb_common::abi::service_flags;
use lb_model::{
    backend_address::BackendAddress,
    check::{Check, Kind},
    policy::Policy,
    seen::{BackendKey, Condition, Seen, View},
};
use lb_plane::BackendTotals;

use super::*;

fn target(to: &str) -> BackendKey {
    let key = ServiceKey::new(address("10.0.0.100").ip, 80, Protocol::Tcp);
    BackendKey { service: key, backend: address(to) }
}

fn seen(condition: Condition) -> Seen {
    Seen { condition, ..Seen::default() }
}

/// Three backends of one weight, `web`, with this policy.
fn web(policy: Policy) -> Desired {
    let mut desired = one_service(&[("10.0.0.11", 1), ("10.0.0.12", 1), ("10.0.0.13", 1)]);
    desired.services.get_mut("web").unwrap().policy = policy;
    desired
}

/// Sets the view of the backends, and reconciles.
fn see(engine: &mut Engine<Fake>, now: Now, view: &[(&str, Seen)]) -> Outcome {
    let view: View = view.iter().map(|(to, seen)| (target(to), *seen)).collect();
    engine.set_view(view);
    engine.reconcile(now).unwrap()
}

/// Slots of each backend: as current and as base owner.
fn owned_slots(engine: &Engine<Fake>, to: &str) -> (usize, usize) {
    let id = id(engine, to);
    let owners = owners(engine);
    let count = |is: &dyn Fn(&Owners) -> bool| owners.iter().filter(|owners| is(owners)).count();
    (count(&|owners| owners.current == id), count(&|owners| owners.base == id))
}

fn is_usable(engine: &Engine<Fake>, to: &str) -> bool {
    let backends = engine.data_plane().backends().unwrap();
    backends[&id(engine, to)].flags & backend_flags::USABLE != 0
}

#[test]
fn a_soft_down_backend_gets_no_new_flows_and_keeps_the_ones_it_has() {
    let mut engine = running(web(Policy::default()));
    let (before, _) = owned_slots(&engine, "10.0.0.12");
    see(&mut engine, at(101), &[("10.0.0.12", seen(Condition::SoftDown))]);
    assert_eq!(owned_slots(&engine, "10.0.0.12"), (0, before));
    assert!(is_usable(&engine, "10.0.0.12"));
    // It is back: nothing is left of it.
    see(&mut engine, at(102), &[]);
    assert_eq!(owned_slots(&engine, "10.0.0.12"), (before, 0));
    assert!(owners(&engine).iter().all(|owners| owners.base == 0));
}

#[test]
fn flows_of_a_hard_down_backend_move_at_once() {
    let mut engine = running(web(Policy::default()));
    let (flow, value) = pin(7, id(&engine, "10.0.0.12"), 100);
    engine.data_plane_mut().add_flow(flow, value);
    see(&mut engine, at(101), &[("10.0.0.12", seen(Condition::HardDown))]);
    assert_eq!(owned_slots(&engine, "10.0.0.12"), (0, 0));
    assert!(!is_usable(&engine, "10.0.0.12"));
    engine.sweep(at(102)).unwrap();
    assert_eq!(engine.data_plane().flow(&flow), None, "its pins end");
    let status = engine.status().unwrap();
    let backend = &status.services["web"].backends[&address("10.0.0.12")];
    assert_eq!(backend.unusable.as_deref(), Some("it is down, and its flows move"));
    see(&mut engine, at(103), &[]);
    assert!(is_usable(&engine, "10.0.0.12") && owned_slots(&engine, "10.0.0.12").0 > 0);
}

#[test]
fn soft_down_becomes_hard_down_and_its_base_is_cleared() {
    let mut engine = running(web(Policy::default()));
    see(&mut engine, at(101), &[("10.0.0.12", seen(Condition::SoftDown))]);
    assert!(owned_slots(&engine, "10.0.0.12").1 > 0);
    see(&mut engine, at(102), &[("10.0.0.12", seen(Condition::HardDown))]);
    assert_eq!(owned_slots(&engine, "10.0.0.12"), (0, 0));
}

#[test]
fn when_all_are_down_nobody_gets_new_flows_and_the_old_ones_stay() {
    let mut engine = running(web(Policy::default()));
    let before = owners(&engine);
    let all = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];
    let down = all.map(|to| (to, seen(Condition::SoftDown)));
    see(&mut engine, at(101), &down);
    let after = owners(&engine);
    assert!(after.iter().zip(&before).all(|(a, b)| a.current == 0 && a.base == b.current));
    assert!(!engine.standings()[&target("10.0.0.11").service].ready);
    see(&mut engine, at(102), &[]);
    assert_eq!(owners(&engine), before);
}

#[test]
fn in_panic_checks_are_ignored_for_choosing() {
    let policy = Policy { panic_threshold: 50, ..Policy::default() };
    let mut engine = running(web(policy));
    let before = owners(&engine);
    let soft = seen(Condition::SoftDown);
    see(&mut engine, at(101), &[("10.0.0.11", soft)]);
    assert_eq!(owned_slots(&engine, "10.0.0.11").0, 0);
    see(&mut engine, at(102), &[("10.0.0.11", soft), ("10.0.0.12", seen(Condition::HardDown))]);
    assert_eq!(owners(&engine), before);
    let standing = engine.status().unwrap().services["web"].standing;
    assert!(standing.panic && standing.up == 1 && standing.enabled == 3, "{standing:?}");
    assert!(is_usable(&engine, "10.0.0.12"));
}

#[test]
fn a_backup_serves_only_when_no_other_is_up() {
    let mut desired = web(Policy::default());
    let backends = &mut desired.services.get_mut("web").unwrap().backends;
    backends.get_mut(&address("10.0.0.13")).unwrap().backup = true;
    let mut engine = running(desired);
    assert_eq!(owned_slots(&engine, "10.0.0.13"), (0, 0));
    let soft = seen(Condition::SoftDown);
    see(&mut engine, at(101), &[("10.0.0.11", soft)]);
    assert_eq!(owned_slots(&engine, "10.0.0.13"), (0, 0));
    see(&mut engine, at(102), &[("10.0.0.11", soft), ("10.0.0.12", soft)]);
    assert_eq!(owned_slots(&engine, "10.0.0.13").0, SLOTS as usize);
    see(&mut engine, at(103), &[("10.0.0.11", soft)]);
    assert_eq!(owned_slots(&engine, "10.0.0.13").0, 0);
    assert!(is_usable(&engine, "10.0.0.13"), "it keeps the flows that it got meanwhile");
}

#[test]
fn a_held_backend_waits_unless_nobody_else_is_up() {
    let mut engine = running(web(Policy::default()));
    let held_back = Seen { held: true, ..Seen::default() };
    see(&mut engine, at(101), &[("10.0.0.12", held_back)]);
    assert_eq!(owned_slots(&engine, "10.0.0.12").0, 0);
    let soft = seen(Condition::SoftDown);
    let view = [("10.0.0.11", soft), ("10.0.0.12", held_back), ("10.0.0.13", soft)];
    see(&mut engine, at(102), &view);
    assert_eq!(owned_slots(&engine, "10.0.0.12").0, SLOTS as usize);
}

#[test]
fn a_suspect_keeps_its_slots_and_is_marked_for_the_program() {
    let mut engine = running(web(Policy::default()));
    let before = owners(&engine);
    let suspect = Seen { suspect: true, ..Seen::default() };
    see(&mut engine, at(101), &[("10.0.0.12", suspect)]);
    assert_eq!(owners(&engine), before);
    let flags = |engine: &Engine<Fake>| {
        let backends = engine.data_plane().backends().unwrap();
        ["10.0.0.11", "10.0.0.12"].map(|to| backends[&id(engine, to)].flags)
    };
    let (usable, suspect) = (backend_flags::USABLE, backend_flags::SUSPECT);
    assert_eq!(flags(&engine), [usable, usable | suspect]);
    see(&mut engine, at(102), &[]);
    assert_eq!(flags(&engine), [usable, usable]);
}

#[test]
fn a_backend_that_is_soft_down_is_marked_for_the_program_but_in_panic() {
    let policy = Policy { panic_threshold: 50, ..Policy::default() };
    let mut engine = running(web(policy));
    let flags = |engine: &Engine<Fake>| {
        let backends = engine.data_plane().backends().unwrap();
        ["10.0.0.11", "10.0.0.12"].map(|to| backends[&id(engine, to)].flags)
    };
    let (usable, soft_down) = (backend_flags::USABLE, backend_flags::SOFT_DOWN);
    let soft = seen(Condition::SoftDown);
    see(&mut engine, at(101), &[("10.0.0.12", soft)]);
    assert_eq!(flags(&engine), [usable, usable | soft_down]);
    see(&mut engine, at(102), &[]);
    assert_eq!(flags(&engine), [usable, usable]);
    see(&mut engine, at(103), &[("10.0.0.12", seen(Condition::HardDown))]);
    assert_eq!(flags(&engine), [usable, 0], "nothing is sent there at all");
    see(&mut engine, at(104), &[("10.0.0.12", soft), ("10.0.0.13", soft)]);
    assert!(owned_slots(&engine, "10.0.0.12").0 > 0, "panic");
    assert_eq!(flags(&engine), [usable, usable], "it takes new flows");
}

#[test]
fn the_second_choice_is_the_service_s() {
    for (second_choice, expected) in [(true, service_flags::SECOND_CHOICE), (false, 0)] {
        let policy = Policy { second_choice, ..Policy::default() };
        let engine = running(web(policy));
        let services = engine.data_plane().services().unwrap();
        assert_eq!(services.values().next().unwrap().flags, expected);
    }
}

fn millis(millis: u64) -> Now {
    Now { mono: Duration::from_millis(millis), ..at(100) }
}

#[test]
fn a_backend_that_is_back_takes_its_share_in_steps() {
    let policy = Policy { slow_start: Duration::from_secs(10), ..Policy::default() };
    let mut engine = running(web(policy));
    let whole = owned_slots(&engine, "10.0.0.12").0;
    let others = |engine: &Engine<Fake>| owned_slots(engine, "10.0.0.11").0;
    see(&mut engine, millis(101_000), &[("10.0.0.12", seen(Condition::SoftDown))]);
    see(&mut engine, millis(102_000), &[]);
    let tenth = owned_slots(&engine, "10.0.0.12").0;
    // A tenth of a share beside two whole ones.
    assert!((10..=14).contains(&tenth), "{tenth} of {SLOTS} slots");
    let backend = engine.status().unwrap().services["web"].backends[&address("10.0.0.12")].clone();
    assert!(backend.slow_start_permille.is_some());
    let mut last = tenth;
    for step in 1..=9 {
        engine.watch(millis(102_000 + step * 1_000 - 1)).unwrap();
        let now = millis(102_000 + step * 1_000);
        assert!(engine.has_stepped(now));
        let (owned, moved) = (others(&engine), engine.reconcile(now).unwrap().slots_moved);
        let slots = owned_slots(&engine, "10.0.0.12").0;
        assert!(slots > last && moved < u64::from(SLOTS) / 8, "step {step}: {last} -> {slots}");
        assert!(others(&engine) <= owned);
        last = slots;
        engine.watch(now).unwrap();
        assert!(!engine.has_stepped(millis(102_000 + step * 1_000 + 1)));
    }
    assert_eq!(last, whole);
    // Nothing is left to do.
    assert_eq!(engine.reconcile(millis(200_000)).unwrap(), Outcome::default());
}

#[test]
fn a_first_start_and_the_last_one_standing_take_the_whole_share_at_once() {
    let policy = Policy { slow_start: Duration::from_secs(10), ..Policy::default() };
    let mut engine = running(web(policy));
    let shares = ["10.0.0.11", "10.0.0.12", "10.0.0.13"].map(|to| owned_slots(&engine, to).0);
    assert!(shares.iter().all(|share| (82..=86).contains(share)), "{shares:?}");
    let soft = seen(Condition::SoftDown);
    let all = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];
    see(&mut engine, millis(101_000), &all.map(|to| (to, soft)));
    see(&mut engine, millis(102_000), &[(all[0], soft), (all[1], soft)]);
    assert_eq!(owned_slots(&engine, all[2]).0, SLOTS as usize);
}

#[test]
fn silence_towards_one_backend_is_a_suspicion() {
    let mut engine = running(web(Policy::default()));
    let ids = ["10.0.0.11", "10.0.0.12", "10.0.0.13"].map(|to| id(&engine, to));
    let mut found = Vec::new();
    for step in 0..12_u64 {
        for id in ids {
            // From the fifth step on, the second backend's clients send SYNs only.
            let answered = if id == ids[1] { step.min(5) } else { step };
            let (syns, packets) = (step * 7, step * 7 + answered * 28);
            let sent = Count { packets, bytes: 0 };
            let totals = BackendTotals { sent, new_flows: syns, ..BackendTotals::default() };
            engine.data_plane_mut().set_backend_totals(id, totals);
        }
        let suspicions = engine.watch(millis(100_000 + step * 100)).unwrap();
        found.push(suspicions.into_iter().map(|s| s.target).collect::<Vec<_>>());
    }
    assert!(found[..7].iter().all(Vec::is_empty), "{found:?}");
    assert_eq!(found[7], [target("10.0.0.12")], "{found:?}");
}

#[test]
fn pins_of_second_choices_are_counted_within_two_seconds() {
    let mut engine = running(web(Policy::default()));
    engine.watch(at(130)).unwrap();
    engine.sweep(at(131)).unwrap();
    let second = id(&engine, "10.0.0.12");
    let (flow, value) = pin(7, second, 131);
    engine.data_plane_mut().add_flow(flow, value);
    engine.data_plane().ring(0).unwrap()[5].touch_pinned(abi::stamp(131));
    let totals = BackendTotals { second_choices: 1, ..BackendTotals::default() };
    engine.data_plane_mut().set_backend_totals(second, totals);
    engine.watch(at(132)).unwrap();
    engine.sweep(at(132)).unwrap();
    engine.sweep(at(133)).unwrap();
    let status = engine.status().unwrap();
    assert_eq!(status.services["web"].backends[&address("10.0.0.12")].pins, 1);
}

#[test]
fn a_new_engine_knows_who_was_down() {
    let check = Check { kind: Kind::Tcp, ..Check::default() };
    let desired = web(Policy { check, ..Policy::default() });
    let mut engine = running(desired.clone());
    let (soft, hard) = (seen(Condition::SoftDown), seen(Condition::HardDown));
    let view = [("10.0.0.12", soft), ("10.0.0.13", hard)];
    see(&mut engine, at(101), &view);
    let before = owners(&engine);
    let mut engine = Engine::adopt(engine.into_data_plane(), &settings()).unwrap();
    set(&mut engine, desired);
    let adopted = engine.adopted_view();
    let up = [("10.0.0.11", Seen::default())];
    assert_eq!(adopted, up.iter().chain(&view).map(|(to, seen)| (target(to), *seen)).collect());
    engine.set_view(adopted);
    engine.reconcile(at(102)).unwrap();
    assert_eq!(owners(&engine), before);
}

#[test]
fn a_new_engine_knows_which_backup_was_down() {
    let check = Check { kind: Kind::Tcp, ..Check::default() };
    let mut desired = web(Policy { check, ..Policy::default() });
    let backends = &mut desired.services.get_mut("web").unwrap().backends;
    for to in ["10.0.0.12", "10.0.0.13"] {
        backends.get_mut(&address(to)).unwrap().backup = true;
    }
    let adopted = |view: &[(&str, Seen)]| {
        let mut engine = running(desired.clone());
        see(&mut engine, at(101), view);
        let mut engine = Engine::adopt(engine.into_data_plane(), &settings()).unwrap();
        set(&mut engine, desired.clone());
        let seen = engine.adopted_view();
        ["10.0.0.11", "10.0.0.12", "10.0.0.13"].map(|to| seen[&target(to)].condition)
    };
    let (up, soft) = (Condition::Up, Condition::SoftDown);
    assert_eq!(adopted(&[]), [up, up, up]);
    let view = [("10.0.0.11", seen(soft)), ("10.0.0.13", seen(soft))];
    assert_eq!(adopted(&view), [soft, up, soft]);
}

#[test]
fn whichever_write_fails_while_health_changes_the_next_reconciliation_converges() {
    let view = [("10.0.0.12", seen(Condition::HardDown)), ("10.0.0.13", seen(Condition::SoftDown))];
    let changed = |engine: &mut Engine<Fake>| {
        engine.set_view(view.iter().map(|(to, seen)| (target(to), *seen)).collect());
    };
    let mut whole = running(web(Policy::default()));
    let start = whole.data_plane().writes();
    changed(&mut whole);
    whole.reconcile(at(101)).unwrap();
    let writes = whole.data_plane().writes() - start;
    assert!(writes >= 2, "{writes}");
    for n in 1..=writes {
        let mut engine = running(web(Policy::default()));
        changed(&mut engine);
        engine.data_plane_mut().fail_nth_write(n);
        assert!(engine.reconcile(at(101)).is_err(), "write {n}");
        engine.reconcile(at(101)).unwrap();
        assert_eq!(engine.data_plane().dump(), whole.data_plane().dump(), "write {n}");
    }
}

#[test]
fn ten_thousand_backends_that_flap_at_random_for_a_minute_cost_no_flow_and_converge() {
    let count = 10_000_u32;
    let address = |n: u32| BackendAddress::from((0x0a01_0000 + n).to_be_bytes());
    let mut service = service("10.0.0.100", &[]);
    service.ring_slots = 65_537;
    service.backends = (0..count).map(|n| (address(n), backend(1))).collect();
    let desired = Desired { services: [("web".to_owned(), service)].into() };
    let limits = Limits { backends: 12_000, ..Limits::default() };
    let mut engine = engine_of(desired, limits);
    engine.reconcile(at(100)).unwrap();
    let first = owners(&engine);
    let key = target("10.0.0.11").service;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut view = View::new();
    // Every flow is older than the flapping: a slot's flows stay with its first owner.
    for second in 1..=60 {
        for _ in 0..500 {
            let backend = address((next() % u64::from(count)) as u32);
            let condition = if next() % 2 == 0 { Condition::SoftDown } else { Condition::Up };
            view.insert(BackendKey { service: key, backend }, seen(condition));
        }
        engine.set_view(view.clone());
        engine.reconcile(at(100 + second)).unwrap();
        for (slot, first) in owners(&engine).iter().zip(&first) {
            let older = if slot.base == 0 { slot.current } else { slot.base };
            assert_eq!(older, first.current, "second {second}");
        }
    }
    engine.set_view(View::new());
    engine.reconcile(at(161)).unwrap();
    assert_eq!(owners(&engine), first);
}

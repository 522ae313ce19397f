//! Drains in mode `nat`, where the program sees both directions: a drain ends with its last connection.

use lb_common::abi::{NatConnectionKey, NatConnectionValue, nat_connection};
use lb_control::engine::Role;
use lb_plane::{BackendTotals, Flows as _};

use super::*;

/// The backend that drains.
const OLD: &str = "10.0.0.11";

/// Two backends in mode `nat`, counted for longer than the idle timeout; the first drains since second 2,000.
fn draining() -> Engine<Fake> {
    let mut engine = counted();
    edit(&mut engine, OLD, Admin::Draining { deadline: None });
    engine.reconcile(at(2_000)).unwrap();
    engine
}

fn counted() -> Engine<Fake> {
    let mut desired = one_service(&[(OLD, 1), ("10.0.0.12", 1)]);
    desired.services.get_mut("web").unwrap().mode = Mode::Nat;
    let mut engine = running(desired);
    engine.sweep(at(101)).unwrap();
    engine
}

fn connection(engine: &Engine<Fake>, port: u16) -> NatConnectionKey {
    let (backend, target) = (id(engine, OLD), 80.into());
    NatConnectionKey { client: [9; 16], port: port.into(), backend, target, reserved: 0 }
}

/// Notes a connection by what backend and client have sent, as the program would.
fn note(engine: &mut Engine<Fake>, port: u16, seen: u32, (client, backend): (u32, u32)) {
    let key = connection(engine, port);
    let value = NatConnectionValue { seen, acknowledged: 0, client, backend };
    engine.data_plane_mut().put_nat_connection(key, value);
}

const OPEN: (u32, u32) = (0, 0);
const CLOSED: (u32, u32) = (nat_connection::client_flags::FIN, nat_connection::backend_flags::FIN);

fn swept(engine: &mut Engine<Fake>, secs: u32) -> lb_api::status::Backend {
    engine.sweep(at(secs)).unwrap();
    engine.status().unwrap().services["web"].backends[&address(OLD)].clone()
}

fn open(backend: &lb_api::status::Backend) -> u64 {
    backend.connections.unwrap().open
}

fn known(engine: &Engine<Fake>) -> usize {
    let mut count = 0;
    engine.data_plane().nat_connections(&mut |_, _| count += 1).unwrap();
    count
}

#[test]
fn a_drain_ends_moments_after_the_last_connection_and_not_before() {
    let mut engine = draining();
    for port in 0..3 {
        note(&mut engine, port, 1_990, OPEN);
    }
    let pinned = pin(0, id(&engine, OLD), 1_990);
    engine.data_plane_mut().add_flow(pinned.0, pinned.1);
    // Silent as they are, they are there.
    let backend = swept(&mut engine, 2_100);
    assert_eq!((open(&backend), backend.is_estimated_over()), (3, false));
    for port in 0..3 {
        note(&mut engine, port, 2_200, CLOSED);
        let backend = swept(&mut engine, 2_201);
        assert_eq!((open(&backend), backend.is_estimated_over()), (2 - u64::from(port), false));
    }
    // Their last packets.
    assert!(!swept(&mut engine, 2_202).is_estimated_over());
    let backend = swept(&mut engine, 2_203);
    assert!(backend.is_estimated_over() && backend.drain.unwrap().closed, "{backend:?}");
    // No flow moves for it.
    assert!(backend.has_flows() && engine.data_plane().flow(&pinned.0).is_some());
    assert!(!swept(&mut engine, 2_001 + IDLE).has_flows());
}

#[test]
fn a_connection_that_is_silent_for_the_idle_timeout_holds_up_no_drain() {
    let mut engine = draining();
    note(&mut engine, 1, 2_000, OPEN);
    assert_eq!(open(&swept(&mut engine, 2_000 + IDLE)), 1);
    let backend = swept(&mut engine, 2_001 + IDLE);
    assert_eq!((open(&backend), backend.has_flows()), (0, false));
    assert_eq!(known(&engine), 0);
}

/// Whether the backend that drains has no flow left, or is removed, within five seconds.
fn leaves(engine: &mut Engine<Fake>, from: u32) -> bool {
    (from..from + 5).any(|secs| {
        let removed = engine.sweep(at(secs)).unwrap().removed;
        let status = engine.status().unwrap();
        let backend = status.services["web"].backends.get(&address(OLD));
        !removed.is_empty() || backend.is_some_and(|backend| !backend.has_flows())
    })
}

#[test]
fn a_drain_and_a_removal_wait_for_connections_of_the_node_until_the_deadline() {
    for deadline in [None, Some(at(5_000).wall)] {
        for admin in [Admin::Draining { deadline }, Admin::Removing { deadline }] {
            let mut engine = counted();
            let old = id(&engine, OLD);
            engine.data_plane_mut().local_connections.insert(old, 2);
            edit(&mut engine, OLD, admin);
            engine.reconcile(at(2_000)).unwrap();
            for secs in [2_001, 2_100, 2_000 + 2 * IDLE] {
                let backend = swept(&mut engine, secs);
                assert!(backend.has_flows() && !backend.is_estimated_over(), "{backend:?}");
                assert_eq!(backend.drain.unwrap().local_connections, 2);
            }
            assert!(!leaves(&mut engine, 4_000), "{admin:?}");
            assert_eq!(leaves(&mut engine, 6_000), deadline.is_some(), "{admin:?}: the deadline");
            engine.data_plane_mut().local_connections.clear();
            assert!(leaves(&mut engine, 7_000), "{admin:?}");
        }
    }
}

#[test]
fn a_drain_does_not_end_by_counts_that_may_lack_connections() {
    // Nothing was counted for the idle timeout.
    let mut engine = counted();
    edit(&mut engine, OLD, Admin::Draining { deadline: None });
    engine.reconcile(at(102)).unwrap();
    let until = |engine: &mut Engine<Fake>, secs: Range<u32>| {
        secs.into_iter().find(|secs| swept(engine, *secs).drain.is_some_and(|drain| drain.closed))
    };
    assert_eq!(until(&mut engine, 103..102 + IDLE), None);
    assert!(until(&mut draining(), 2_001..2_010).is_some(), "in itself");

    // Its packets went to another node until a moment ago.
    let mut engine = draining();
    let key = engine.desired().services["web"].key;
    engine.set_roles([(key, Role::Follows)].into(), at(2_001)).unwrap();
    engine.set_roles([(key, Role::Own)].into(), at(2_011)).unwrap();
    assert_eq!(until(&mut engine, 2_012..2_011 + IDLE), None);

    // Others get some of them.
    let mut engine = draining();
    engine.set_roles([(key, Role::Shared)].into(), at(2_001)).unwrap();
    assert_eq!(until(&mut engine, 2_002..2_100), None);

    // Answers took another way: one SYN of many had none by this node, within the idle timeout.
    for (unanswered, waits) in [(1_950, true), (1_000, false)] {
        let mut engine = counted();
        let totals = |new_flows, accepted| BackendTotals {
            new_flows,
            syn_retransmissions: 3,
            accepted,
            refused: 1,
            ..BackendTotals::default()
        };
        let old = id(&engine, OLD);
        engine.data_plane_mut().set_backend_totals(old, totals(10, 6));
        engine.sweep(at(900)).unwrap();
        engine.data_plane_mut().set_backend_totals(old, totals(20, 15));
        engine.sweep(at(unanswered)).unwrap();
        edit(&mut engine, OLD, Admin::Draining { deadline: None });
        engine.reconcile(at(2_000)).unwrap();
        assert_eq!(until(&mut engine, 2_001..2_100).is_none(), waits, "{unanswered}");
    }

    // The table was full.
    let mut engine = engine_of(counted().desired().clone(), few_connections());
    engine.reconcile(at(100)).unwrap();
    for port in 0..u16::try_from(few_connections().nat_connections).unwrap() {
        note(&mut engine, port, 1_990, CLOSED);
    }
    engine.sweep(at(1_991)).unwrap();
    edit(&mut engine, OLD, Admin::Draining { deadline: None });
    engine.reconcile(at(2_000)).unwrap();
    assert_eq!(until(&mut engine, 2_001..1_991 + IDLE), None);
}

fn few_connections() -> Limits {
    Limits { nat_connections: 16, ..Limits::default() }
}

#[test]
fn what_is_over_is_forgotten_and_what_may_still_get_packets_is_not() {
    let mut engine = counted();
    let gone = NatConnectionKey { backend: 77, ..connection(&engine, 9) };
    engine.data_plane_mut().put_nat_connection(gone, NatConnectionValue::default());
    let opening = nat_connection::backend_flags::OPENING;
    let given_up = opening | 6 << nat_connection::backend_flags::SYN_ACKS_SHIFT;
    for (port, state) in [(1, OPEN), (2, CLOSED), (3, (0, opening)), (4, (0, given_up))] {
        note(&mut engine, port, 2_000, state);
    }
    // The other four; with the one that does not repeat its SYN-ACK.
    assert_eq!((open(&swept(&mut engine, 2_010)), known(&engine)), (2, 4));
    assert_eq!((open(&swept(&mut engine, 2_070)), known(&engine)), (2, 2));
    assert_eq!((open(&swept(&mut engine, 2_010 + IDLE)), known(&engine)), (0, 0));
}

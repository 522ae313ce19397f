//! Two nodes, as the engine and the core see them: whatever happens to rings, and whichever takes over,
//! no flow that was exported changes its backend.

mod shared;
mod takeover;
pub mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::abi;
use lb_control::engine::{Engine, Role};
use lb_model::{
    desired::{Admin, ServiceKey},
    entry,
    flow::FlowTable,
    seen::Condition,
    settings::Limits,
};
use lb_plane::{Maps as _, fake::Fake};
use lb_sync::{
    Record,
    record::{Flow, Pin},
};
use proptest::prelude::*;

use self::world::*;
use crate::{address, at, edit, pin, set, settings};

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_flow_that_was_told_of_moves_whoever_takes_over(
        service in prop::sample::select(vec![web(), wide()]),
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut pair = Pair::of(service);
        for event in events {
            pair.handle(event)?;
        }
        pair.send(5)?;
    }
}

#[test]
fn news_are_told_once() {
    let mut pair = pinned_pair();
    assert_eq!(pair.export(), []);
    pair.send(5).unwrap();
    let established: usize = pair
        .export()
        .iter()
        .map(|record| match record {
            Record::Pins { pins, .. } => pins.len(),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(established, pair.nodes[0].pins());
    pair.send(5).unwrap();
    assert_eq!(pair.export(), []);
}

#[test]
fn notes_that_were_written_over_are_made_up_for_by_a_walk() {
    let mut pair = Pair::new();
    pair.edit(0, Admin::Draining { deadline: None });
    (0..25_000).for_each(|_| pair.open());
    assert!(pair.nodes[0].pins() > abi::PIN_NOTES as usize);
    pair.sync();
    assert_eq!(pair.nodes[0].pins(), pair.nodes[1].pins());
}

#[test]
fn nothing_ends_at_who_follows_and_all_of_it_where_it_is_active() {
    let mut pair = pinned_pair();
    let pins = pair.nodes[1].pins();
    // The follower receives no packets, but nor does anything expire there.
    for _ in 0..3 * IDLE {
        pair.now += 1;
        let now = pair.at();
        pair.nodes[1].engine.sweep(now).unwrap();
        pair.sync();
    }
    let in_flux = |node: &Node| node.engine.status().unwrap().services["web"].slots_in_flux;
    assert_eq!((pair.nodes[1].pins(), in_flux(&pair.nodes[1])), (pins, in_flux(&pair.nodes[0])));
    pair.wait(8);
    assert_eq!((pair.nodes[0].pins(), in_flux(&pair.nodes[0])), (0, 0));
    pair.sync();
    assert_eq!((pair.nodes[1].pins(), in_flux(&pair.nodes[1])), (0, 0));
}

#[test]
fn what_a_full_history_does_not_name_goes_when_it_has_ended() {
    let mut pair = pinned_pair();
    let pins = pair.nodes[0].pins();
    let (stray, value) = pin(9, 2, START);
    pair.nodes[1].engine.data_plane_mut().add_flow(stray, value);
    pair.resync(3);
    assert_eq!(pair.nodes[1].pins(), pins + 1, "what was known holds until all has come");
    pair.resync(usize::MAX);
    assert_eq!(pair.nodes[1].pins(), pins);
    assert_eq!(pair.nodes[1].engine.data_plane().flow(&stray), None);
}

#[test]
fn a_takeover_writes_nothing() {
    let mut pair = pinned_pair();
    let writes = pair.nodes[1].engine.data_plane().writes();
    pair.take_over();
    let now = pair.at();
    assert_eq!(pair.nodes[1].engine.reconcile(now).unwrap().changes, 0);
    assert_eq!(pair.nodes[1].engine.data_plane().writes(), writes);
    pair.send(5).unwrap();
}

#[test]
fn what_can_not_be_learnt_is_told_once_and_breaks_nothing() {
    let mut pair = pinned_pair();
    let (service, now) = (web(), pair.at());
    let before = pair.nodes[1].engine.data_plane().dump();
    let nobody = address("10.0.9.9");
    let flow = Flow::Pinned(address("192.0.2.9").ip, 9, abi::Destination::ONLY);
    let pins = vec![Pin { flow, backend: nobody, flags: 0, idle: Duration::ZERO }];
    let ring =
        Record::Ring { service, slots: 251, members: vec![(address(BACKENDS[1]), 1)], digest: 1 };
    let small = Record::Ring { service, slots: 127, members: vec![], digest: 1 };
    let whole = || Record::ring_is_whole(service);
    let other = ServiceKey { port: 81, ..service };
    let records = vec![
        Record::Pins { service, pins },
        ring,
        whole(),
        small,
        whole(),
        Record::Ended { service: other, flows: vec![flow] },
    ];
    let follower = &mut pair.nodes[1].engine;
    let roles = [(service, Role::Follows), (other, Role::Follows)];
    follower.set_roles(roles.into(), now).unwrap();
    let errors = follower.import(records.clone(), now).unwrap();
    assert_eq!(
        errors,
        [
            "tcp 10.0.0.100:81: there is no such service here",
            "web: backend 10.0.9.9 is not known here",
            "web: the peer's ring has 127 slots, and 251 here",
            "web: the peer's ring is not what its backends and this node's seed make of it",
        ]
    );
    assert_eq!(follower.import(records, now).unwrap(), Vec::<String>::new());
    assert_eq!(follower.data_plane().dump(), before);
    pair.take_over();
    pair.send(5).unwrap();
}

#[test]
fn pins_that_find_no_room_are_told_and_the_others_hold() {
    let mut pair = Pair::new();
    pair.edit(0, Admin::Draining { deadline: None });
    (0..200).for_each(|_| pair.open());
    let limits = Limits { pins: 5, ..Limits::default() };
    let mut small = Engine::adopt(Fake::new(limits), &settings()).unwrap();
    set(&mut small, pair.nodes[0].engine.desired().clone());
    let now = pair.at();
    small.reconcile(now).unwrap();
    small.set_roles([(web(), Role::Follows)].into(), now).unwrap();
    let history = pair.nodes[0].engine.export_all(now).unwrap();
    let errors = small.import(history, now).unwrap();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("web: no room for all pins of the peer"), "{errors:?}");
    assert_eq!(small.data_plane().flow_count(FlowTable::Pins), 5);
    assert_eq!(small.take_rejected(), [web()].into(), "it does not have all");
}

#[test]
fn nodes_that_share_a_service_tell_each_other_of_pins_and_who_joins_of_base_owners() {
    let mut pair = pinned_pair();
    let shared = || BTreeMap::from([(web(), Role::Shared)]);
    let now = pair.at();
    pair.nodes.iter_mut().for_each(|node| node.engine.set_roles(shared(), now).unwrap());
    // One starts with nothing.
    pair.nodes[1] = Node::new();
    let wanted = pair.nodes[0].engine.desired().clone();
    set(&mut pair.nodes[1].engine, wanted);
    pair.nodes[1].engine.reconcile(now).unwrap();
    pair.nodes[1].engine.set_roles(shared(), now).unwrap();
    let history = pair.nodes[0].engine.export_all(now).unwrap();
    assert_eq!(pair.nodes[1].engine.import(history, now).unwrap(), Vec::<String>::new());
    // Every flow is known at both, and one that is born at the one is known at the other.
    let clients: Vec<_> = pair.clients.iter().map(|(client, known)| (*client, *known)).collect();
    for (client, known) in clients {
        assert_eq!(pair.nodes[1].send(&frame(client, ACK, 7), now), Some(known.backend));
    }
    pair.nodes[1].engine.export_changes(now).unwrap();
    pair.nodes[1].engine.lease_pins(None);
    let before = pair.nodes[1].pins();
    let born: Vec<_> = (20_000..20_200_u16)
        .map(|client| (client, pair.nodes[1].send(&frame(client, SYN, client.into()), now)))
        .collect();
    assert!(pair.nodes[1].pins() > before);
    let records = pair.nodes[1].engine.export_changes(now).unwrap();
    assert_eq!(pair.nodes[0].engine.import(records, now).unwrap(), Vec::<String>::new());
    for (client, backend) in born {
        assert_eq!(pair.nodes[0].send(&frame(client, ACK, 7), now), backend, "{client}");
    }
}

#[test]
fn a_virtual_mac_stays_beside_the_node_s_own() {
    const VIRTUAL: [u8; 6] = [0, 0, 0x5e, 0, 1, 51];
    let own = [2, 0, 0, 0, 0, 1];
    let mut engine = Node::new().engine;
    engine.set_virtual_mac(VIRTUAL, true).unwrap();
    assert_eq!(engine.data_plane().own_macs().unwrap(), [own, VIRTUAL]);
    engine.reconcile(at(START)).unwrap();
    assert_eq!(engine.data_plane().own_macs().unwrap(), [own, VIRTUAL]);
    for last in 1..15 {
        engine.set_virtual_mac([0, 0, 0x5e, 0, 2, last], true).unwrap();
    }
    let full = engine.set_virtual_mac([0, 0, 0x5e, 0, 2, 99], true).unwrap_err().to_string();
    assert!(full.starts_with("there is room for 16 MAC addresses"), "{full}");
    engine.set_virtual_mac(VIRTUAL, false).unwrap();
    engine.reconcile(at(START)).unwrap();
    let macs = engine.data_plane().own_macs().unwrap();
    assert!(macs.len() == 15 && !macs.contains(&VIRTUAL));
}

#[test]
fn the_lease_of_another_process_ends_with_the_first_reconciliation() {
    let node = Node::new();
    let mut engine = node.engine;
    engine.lease_pins(Some(Duration::from_secs(5)));
    assert_eq!(engine.data_plane().leased_until(), 5_000_000_000);
    engine.reconcile(at(START)).unwrap();
    assert_eq!(engine.data_plane().leased_until(), 5_000_000_000);
    let mut engine = Engine::adopt(engine.into_data_plane(), &settings()).unwrap();
    set(&mut engine, desired());
    engine.reconcile(at(START)).unwrap();
    assert_eq!(engine.data_plane().leased_until(), 0);
}

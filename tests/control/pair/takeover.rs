//! The state that a takeover must find: pins that come late, flows that were exported in time, and a
//! history that has waited for long.

use lb_common::abi::{FlowValue, stamp};
use lb_model::{backend_address::BackendAddress, desired::Protocol, flow::FlowRef};

use super::*;

/// The flows of the pins in some records.
fn pinned(records: &[Record]) -> Vec<Flow> {
    let pins = records.iter().map(|record| match record {
        Record::Pins { pins, .. } => pins.as_slice(),
        _ => &[],
    });
    pins.flatten().map(|pin| pin.flow).collect()
}

#[test]
fn pins_that_come_late_are_taken_by_who_has_taken_over_where_it_knows_none() {
    let mut pair = pinned_pair();
    (0..100).for_each(|_| pair.open());
    // The other one has become Active; this one exports the rest, and then follows.
    let mut late = pair.export();
    let flows = pinned(&late);
    assert!(flows.len() > 5, "{late:?}");
    pair.clients.values_mut().for_each(|client| client.known = true);
    pair.take_over();
    let now = pair.at();
    // One of them has come again to the new Active, which has sent it elsewhere.
    let Flow::Pinned(source, port, _) = flows[0] else { panic!("{flows:?}") };
    let key = abi::FlowKey::new(entry::address(source), port.into(), 0);
    let own = FlowValue { backend: 4, flags: 0, seen: now.mono_secs() };
    pair.nodes[1].engine.data_plane_mut().add_flow(FlowRef::Pin(key), own);
    pair.clients.remove(&port);
    // Nothing else of it counts any more.
    let (service, before) = (web(), pair.nodes[1].engine.data_plane().dump());
    let members = vec![(address(BACKENDS[1]), 1)];
    late.push(Record::Ring { service, slots: 251, members, digest: 1 });
    late.push(Record::ring_is_whole(service));
    late.push(Record::Bases { service, bases: Vec::new() });
    late.push(Record::Ended { service, flows: flows[1..].to_vec() });
    let new_active = &mut pair.nodes[1].engine;
    assert_eq!(new_active.import(late.clone(), now).unwrap(), Vec::<String>::new());
    assert_eq!(new_active.data_plane().dump(), before);
    assert_eq!(new_active.data_plane().flow(&FlowRef::Pin(key)), Some(own));
    pair.send(5).unwrap();
    // They are exported to its follower, once.
    let exported: BTreeSet<_> = pinned(&pair.export()).into_iter().collect();
    assert!(flows[1..].iter().all(|flow| exported.contains(flow)), "{exported:?}");
    let new_active = &mut pair.nodes[1].engine;
    new_active.import(late, now).unwrap();
    assert_eq!(new_active.export_changes(now).unwrap(), []);
}

#[test]
fn flows_of_a_tracked_service_are_told_with_the_change_of_its_ring() {
    let mut desired = desired();
    desired.services.get_mut("web").unwrap().key.protocol = Protocol::Udp;
    let mut engine = Engine::adopt(Fake::new(Limits::default()), &settings()).unwrap();
    set(&mut engine, desired);
    engine.reconcile(at(START)).unwrap();
    engine.export_changes(at(START)).unwrap();
    let to = crate::id(&engine, BACKENDS[0]);
    let add = |engine: &mut Engine<Fake>, port: u16| {
        let (FlowRef::Pin(key), value) = pin(port, to, START) else { unreachable!() };
        engine.data_plane_mut().add_flow(FlowRef::Tracked(key), value);
    };
    (1..=60).for_each(|port| add(&mut engine, port));
    let now = at(START + 1);
    engine.sweep(now).unwrap();
    let before = pinned(&engine.export_changes(now).unwrap());
    assert!(!before.is_empty() && before.len() < 60, "the ring would send some there anyway");
    edit(&mut engine, BACKENDS[0], Admin::Draining { deadline: None });
    engine.reconcile(now).unwrap();
    let after = pinned(&engine.export_changes(now).unwrap());
    assert_eq!(before.len() + after.len(), 60, "all of them, and each once");
    // Flows that have begun since are exported before a handover, without waiting for the next walk.
    add(&mut engine, 61);
    assert_eq!(engine.export_changes(now).unwrap(), []);
    engine.survey(now).unwrap();
    assert_eq!(pinned(&engine.export_changes(now).unwrap()).len(), 1);
}

#[test]
fn who_follows_keeps_more_flows_fresh_than_one_look_has_time_for() {
    let mut node = Node::new();
    node.engine.set_roles([(web(), Role::Follows)].into(), at(START)).unwrap();
    let flows: Vec<_> = (0..60_000_u16).map(|port| pin(port, 2, START)).collect();
    for (flow, value) in &flows {
        node.engine.data_plane_mut().add_flow(*flow, *value);
    }
    let end = START + 3 * IDLE;
    (START..=end).for_each(|second| drop(node.engine.sweep(at(second)).unwrap()));
    let seen = |flow| node.engine.data_plane().flow(flow).map(|value| value.seen);
    let stale = flows.iter().filter(|(flow, _)| seen(flow).is_none_or(|seen| seen < end - IDLE));
    assert_eq!(stale.count(), 0);
}

#[test]
fn marks_of_pins_outlast_any_time_at_who_follows() {
    let mut node = Node::new();
    node.engine.set_roles([(web(), Role::Follows)].into(), at(START)).unwrap();
    node.engine.data_plane().ring(0).unwrap()[7].touch_pinned(stamp(START));
    let marked = |node: &Node| node.engine.data_plane().ring(0).unwrap()[7].pinned() != 0;
    (START..START + 5 * IDLE).for_each(|second| drop(node.engine.sweep(at(second)).unwrap()));
    assert!(marked(&node));
    // It goes like any other when nothing has used it since the takeover.
    let taken = START + 5 * IDLE;
    node.engine.set_roles([(web(), Role::Own)].into(), at(taken)).unwrap();
    (taken..=taken + IDLE).for_each(|second| drop(node.engine.sweep(at(second)).unwrap()));
    assert!(marked(&node));
    (taken + IDLE..taken + 4 * IDLE)
        .for_each(|second| drop(node.engine.sweep(at(second)).unwrap()));
    assert!(!marked(&node));
}

#[test]
fn who_follows_nobody_keeps_all_whatever_it_sees_of_backends() {
    let mut pair = pinned_pair();
    pair.send(5).unwrap();
    // It was Active, and loses its link: it sees no backend any more.
    let now = pair.at();
    pair.nodes[0].engine.set_roles([(web(), Role::Follows)].into(), now).unwrap();
    let see_all = |pair: &mut Pair, condition| {
        (0..BACKENDS.len()).for_each(|backend| pair.see(0, backend, condition));
    };
    see_all(&mut pair, Condition::HardDown);
    for _ in 0..5 * IDLE {
        pair.now += 1;
        let now = pair.at();
        pair.nodes[0].engine.sweep(now).unwrap();
    }
    see_all(&mut pair, Condition::Up);
    // No other node was there. All clients have kept silent for as long.
    let now = pair.at();
    pair.nodes[0].engine.set_roles([(web(), Role::Own)].into(), now).unwrap();
    pair.send(5).unwrap();
    (0..IDLE).for_each(|_| {
        pair.now += 1;
        let now = pair.at();
        pair.nodes[0].engine.sweep(now).unwrap();
    });
    pair.send(5).unwrap();
}

#[test]
fn a_pin_that_can_not_be_written_costs_no_other() {
    let mut pair = pinned_pair();
    (0..100).for_each(|_| pair.open());
    let records = pair.export();
    let (before, exported) = (pair.nodes[1].pins(), pinned(&records).len());
    let now = pair.at();
    let follower = &mut pair.nodes[1].engine;
    follower.data_plane_mut().fail_nth_write(1);
    follower.import(records.clone(), now).unwrap_err();
    assert_eq!(follower.data_plane().flow_count(FlowTable::Pins), before + exported - 1);
    assert_eq!(follower.take_rejected(), [web()].into(), "it must be sent again");
    follower.import(records, now).unwrap();
    assert_eq!(follower.data_plane().flow_count(FlowTable::Pins), before + exported);
    assert_eq!(follower.take_rejected(), BTreeSet::new());
}

#[test]
fn flows_of_a_backend_that_only_the_other_node_knew_are_wanted_again_when_it_is_known_here() {
    let mut pair = pinned_pair();
    let before = pair.nodes[1].pins();
    let mut desired = pair.nodes[0].engine.desired().clone();
    let backends = &mut desired.services.get_mut("web").unwrap().backends;
    let new = address("10.0.0.16");
    let one = backends.values().next().cloned().unwrap();
    backends.insert(new, lb_model::desired::Backend { admin: Admin::Enabled, ..one });
    let now = pair.at();
    // The operator adds it where the clients are.
    set(&mut pair.nodes[0].engine, desired.clone());
    pair.nodes[0].engine.reconcile(now).unwrap();
    (0..400).for_each(|_| pair.open());
    let history = pair.nodes[0].engine.export_all(now).unwrap();
    let follower = &mut pair.nodes[1].engine;
    let errors = follower.import(history.clone(), now).unwrap();
    assert_eq!(errors, ["web: backend 10.0.0.16 is not known here"]);
    let refused = pinned(&history).len() - follower.data_plane().flow_count(FlowTable::Pins);
    assert!(refused > 5, "{refused}");
    assert_eq!(follower.take_newly_known(), BTreeSet::new());
    assert_eq!(follower.take_rejected(), BTreeSet::new(), "nothing of it could be taken");
    // And on the other node.
    set(follower, desired);
    follower.reconcile(now).unwrap();
    assert_eq!(follower.take_newly_known(), [web()].into());
    assert_eq!(follower.take_newly_known(), BTreeSet::new(), "once");
    follower.begin_import(&[web()].into());
    assert_eq!(follower.import(history.clone(), now).unwrap(), Vec::<String>::new());
    assert_eq!(pair.nodes[1].pins(), pinned(&history).len());
    assert!(pair.nodes[1].pins() > before);
    pair.clients.values_mut().for_each(|client| client.known = true);
    pair.take_over();
    pair.send(5).unwrap();
}

/// No client sends anything for so long that flows have ended, as the nodes see at the end.
fn be_silent(pair: &mut Pair) {
    for _ in 0..=IDLE {
        pair.sync();
        pair.now += 1;
        let now = pair.at();
        pair.nodes.iter_mut().for_each(|node| drop(node.engine.sweep(now).unwrap()));
    }
}

/// A pair that has just exported slots that settle, which the follower has not imported. For long no client
/// has sent anything.
fn settling_pair() -> Pair {
    let mut pair = Pair::new();
    pair.edit(0, Admin::Draining { deadline: None });
    be_silent(&mut pair);
    let (flux, own) = in_flux(&pair.nodes[0]);
    assert!(flux > 10 && own == 0);
    pair.late = true;
    pair.sync();
    assert_eq!(queued_bases(&pair), vec![None; flux]);
    pair
}

/// Slots with a base owner, and those of them that are their own.
fn in_flux(node: &Node) -> (usize, usize) {
    let ring = node.engine.data_plane().ring(0).unwrap();
    let owners = ring.iter().map(abi::Slot::owners).filter(|owners| owners.base != 0);
    let own = owners.clone().filter(|owners| owners.base == owners.current);
    (owners.count(), own.count())
}

/// The base owners that were exported, and that the follower has not imported.
fn queued_bases(pair: &Pair) -> Vec<Option<BackendAddress>> {
    let records = pair.queue.iter().flat_map(|(_, _, records)| records);
    let bases = records.map(|record| match record {
        Record::Bases { bases, .. } => bases.as_slice(),
        _ => &[],
    });
    bases.flatten().map(|base| base.backend).collect()
}

/// Clients come that can't be pinned.
fn open_unpinned(pair: &mut Pair) {
    let before = pair.active().pins();
    (0..400).for_each(|_| pair.open());
    assert_eq!(pair.active().pins(), before);
}

#[test]
fn a_flow_that_begins_unpinned_while_slots_settle_is_where_a_peer_looks_that_takes_over() {
    let mut pair = settling_pair();
    let (flux, own) = in_flux(&pair.nodes[0]);
    assert!(own == flux, "exported records hold here as well");
    // The daemon is dead, and packets go on until the peer takes over.
    pair.now += LEASE + 1;
    open_unpinned(&mut pair);
    pair.take_over();
    assert_eq!(in_flux(&pair.nodes[1]), (0, 0));
    pair.send(5).unwrap();
}

#[test]
fn what_a_peer_is_late_with_settles_later_and_flows_begin_at_the_base_owner_again() {
    let mut pair = settling_pair();
    let (flux, _) = in_flux(&pair.nodes[0]);
    pair.now += LEASE + 1;
    pair.sync();
    assert_eq!(in_flux(&pair.nodes[0]), (flux, 0));
    let queued = queued_bases(&pair);
    assert!(queued.len() == 2 * flux && queued[flux..].iter().all(Option::is_some), "{queued:?}");
    open_unpinned(&mut pair);
    assert!(pair.clients.values().any(|client| client.backend == address(BACKENDS[0])));
    // It takes over without having taken any of it in: all is as it was.
    let mut hasty = settling_pair();
    hasty.queue.clear();
    hasty.clients = pair.clients.clone();
    hasty.take_over();
    hasty.send(5).unwrap();
    // Or with all of it.
    pair.take_over();
    pair.send(5).unwrap();
}

#[test]
fn slots_in_which_flows_have_begun_unpinned_are_not_taken_back() {
    let mut pair = settling_pair();
    let (flux, _) = in_flux(&pair.nodes[0]);
    pair.now += LEASE + 1;
    open_unpinned(&mut pair);
    pair.sync();
    let (_, own) = in_flux(&pair.nodes[0]);
    assert!(own > 0 && own < flux, "{own} of {flux}");
    pair.send(5).unwrap();
    // They settle when the peer knows.
    pair.late = false;
    pair.sync();
    assert_eq!(in_flux(&pair.nodes[0]), (flux - own, 0));
    pair.take_over();
    pair.send(5).unwrap();
}

#[test]
fn no_slot_is_told_to_settle_while_pinning_is_paused() {
    let mut pair = settling_pair();
    pair.late = false;
    pair.sync();
    pair.edit(1, Admin::Draining { deadline: None });
    pair.sync();
    pair.late = true;
    pair.active().engine.pause_pinning(&[web()].into()).unwrap();
    be_silent(&mut pair);
    // A node that takes over does not wait for these.
    pair.sync();
    assert_eq!(queued_bases(&pair), []);
    pair.active().engine.pause_pinning(&BTreeSet::new()).unwrap();
    pair.sync();
    assert!(!queued_bases(&pair).is_empty());
}

//! The history of a pair, as the daemon requests it, sends it and waits for it.

use std::{net::IpAddr, sync::atomic::Ordering, time::Duration};

use lb_api::event::Kind;
use lb_common::abi::{Destination, FlowKey, FlowValue, flow_flags};
use lb_control::engine::Role;
use lb_model::{entry, router::State, time::Now};
use lb_sync::{
    Mark, Record,
    record::{Flow, Pin},
};

use crate::{
    cli::lbctl,
    common::{Place, Running, eventually},
    fakes::Recorded,
    pair::{PEER, PEER_ADDRESS, all, main, messages, peer_state, recorded, role, web},
};

/// Whether the router may not preempt, since flows of the peer are missing.
fn is_unsynced(lbd: &Running, place: &Place) -> bool {
    lbd.script
        .recorder
        .external_state()
        .is_some_and(|external| external.unsynced.contains(&main(place).key))
}

/// A node that is Backup, with all flows of its peer, so that it may preempt.
async fn synced_backup(place: &Place) -> Running {
    let lbd = place.start().await;
    lbd.script.becomes(&main(place), State::Backup, "it begins");
    lbd.script.joins(PEER, peer_state(&lbd, place, State::Active).await);
    lbd.script.is_synced(PEER);
    eventually("it may preempt", async || !is_unsynced(&lbd, place)).await;
    lbd
}

#[tokio::test]
async fn history_follows_who_is_active() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let (main, web) = (main(&place), web(&place));
    eventually("it is kept", async || role(&lbd, &place) == Some(Role::Follows)).await;
    lbd.script.becomes(&main, State::Backup, "it begins");
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Backup).await);
    let record = Record::Ended { service: web, flows: Vec::new() };
    // No node is active: the peer's records do not count, and are requested when it is.
    lbd.script.is_synced(PEER);
    lbd.script.report(lb_sync::Report::Records(PEER, vec![record.clone()], Mark::default()));
    lbd.script
        .report(lb_sync::Report::NodeState(PEER, peer_state(&lbd, &place, State::Active).await));
    let wants =
        |recorded: &Recorded| matches!(recorded, Recorded::RequestTransfer(PEER)).then_some(());
    recorded(&lbd, "all is asked for again", wants).await;
    let learnt = |recorded: &Recorded| recorded.learns().then(|| recorded.clone());
    assert_eq!(lbd.script.recorder.of(learnt), []);
    let unsynced = || is_unsynced(&lbd, &place);
    assert!(unsynced(), "it does not preempt");
    lbd.script.recorder.take();
    lbd.script.is_synced(PEER);
    lbd.script.report(lb_sync::Report::Records(PEER, vec![record.clone()], Mark::default()));
    assert_eq!(
        recorded(&lbd, "it is learnt", learnt).await,
        Recorded::learn(std::slice::from_ref(&record))
    );
    let forgotten = |recorded: &Recorded| (*recorded == Recorded::forget(web)).then_some(());
    assert_eq!(lbd.script.recorder.of(forgotten), [()]);
    eventually("it may preempt", async || !unsynced()).await;
    assert_eq!(lbd.script.recorder.of(wants), [], "nothing is missing");
    // It takes over: imported records are its own.
    lbd.script.becomes(&main, State::Active, "the other one is gone");
    eventually("it is its own", async || role(&lbd, &place) == Some(Role::Own)).await;
    lbd.script.recorder.take();
    lbd.script.report(lb_sync::Report::Records(PEER, vec![record], Mark::default()));
    lbd.script.report(lb_sync::Report::TransferRequested(PEER));
    let sent =
        |recorded: &Recorded| matches!(recorded, Recorded::SendTransfer(PEER, _)).then_some(());
    recorded(&lbd, "the other one gets it", sent).await;
    assert_eq!(lbd.script.recorder.of(learnt), [], "what is late does not count");
    lbd.stop().await;
}

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

/// The program pins the client's flow from this port to a backend of the first service.
fn pin(place: &Place, port: u16) {
    let key = FlowKey::new(entry::address(CLIENT), port.into(), 0);
    let seen = Now::read().mono_secs();
    place.remote.pin(key, FlowValue { backend: 1, flags: flow_flags::ESTABLISHED, seen });
}

/// Whether the pin of the client's flow from this port is among these.
fn has_pin(records: &[Record], port: u16) -> bool {
    let flow = Flow::Pinned(CLIENT, port, Destination::ONLY);
    records.iter().any(|record| {
        matches!(record, Record::Pins { pins, .. } if pins.iter().any(|pin| pin.flow == flow))
    })
}

/// The same pin, as a peer sends it.
fn pins(place: &Place, port: u16) -> Record {
    let flow = Flow::Pinned(CLIENT, port, Destination::ONLY);
    let backend = IpAddr::from([10, 0, 0, 11]);
    let pin = Pin { flow, backend: backend.into(), flags: 0, idle: Duration::ZERO };
    Record::Pins { service: web(place), pins: vec![pin] }
}

#[tokio::test]
async fn the_last_pins_are_told_before_the_service_is_another_node_s() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let main = main(&place);
    lbd.script.becomes(&main, State::Active, "no advertisement was received");
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Backup).await);
    eventually("it is its own", async || role(&lbd, &place) == Some(Role::Own)).await;
    lbd.script
        .report(lb_sync::Report::NodeState(PEER, peer_state(&lbd, &place, State::Active).await));
    // Both are active for longer than a handover takes.
    let both = async || !messages(&lbd, Kind::VrrpTwoActive).await.is_empty();
    eventually("both are active", both).await;
    let publishes = |port| {
        move |recorded: &Recorded| match recorded {
            Recorded::Publish(records) if has_pin(records, port) => Some(()),
            _ => None,
        }
    };
    pin(&place, 2);
    recorded(&lbd, "a pin is published at once", publishes(2)).await;
    lbd.script.recorder.take();
    pin(&place, 1);
    lbd.script.becomes(&main, State::Backup, "10.0.0.3 has the higher priority");
    eventually("it follows", async || role(&lbd, &place) == Some(Role::Follows)).await;
    let follows = Recorded::role(web(&place), Role::Follows);
    let calls = lbd.script.recorder.of(|recorded| match recorded {
        recorded if publishes(2)(recorded).is_some() => Some("all pins"),
        recorded if publishes(1)(recorded).is_some() => Some("the last pin"),
        recorded => (*recorded == follows).then_some("it follows"),
    });
    let expected = ["the last pin", "all pins", "it follows"];
    assert_eq!(calls, expected, "no other node knows what it has pinned meanwhile");
    lbd.stop().await;
}

#[tokio::test]
async fn a_peer_that_comes_back_is_told_what_was_pinned_without_it() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let main = main(&place);
    lbd.script.becomes(&main, State::Active, "no advertisement was received");
    eventually("it is its own", async || role(&lbd, &place) == Some(Role::Own)).await;
    pin(&place, 1);
    // The other node was active as well, and its advertisement comes before its session is there.
    lbd.script.becomes(&main, State::Backup, "10.0.0.3 has the higher priority");
    eventually("it is kept", async || role(&lbd, &place) == Some(Role::Follows)).await;
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Active).await);
    lbd.script.report(lb_sync::Report::TransferRequested(PEER));
    let sent = |recorded: &Recorded| match recorded {
        Recorded::SendTransfer(PEER, records) => Some(records.clone()),
        _ => None,
    };
    assert!(has_pin(&recorded(&lbd, "it is sent", sent).await, 1));
    lbd.stop().await;
}

#[tokio::test]
async fn pins_that_come_after_a_takeover_are_taken_and_nothing_else() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    lbd.script.becomes(&main(&place), State::Active, "10.0.0.3 has left");
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Backup).await);
    eventually("it is its own", async || role(&lbd, &place) == Some(Role::Own)).await;
    let pins = pins(&place, 1);
    let ended = Record::Ended { service: web(&place), flows: Vec::new() };
    lbd.script.report(lb_sync::Report::Records(PEER, vec![ended, pins.clone()], Mark::default()));
    let learnt = |recorded: &Recorded| recorded.learns().then(|| recorded.clone());
    assert_eq!(recorded(&lbd, "they are learnt", learnt).await, Recorded::learn(&[pins]));
    lbd.stop().await;
}

#[tokio::test]
async fn what_a_peer_has_told_before_this_node_is_active_is_taken_first() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let main = main(&place);
    lbd.script.becomes(&main, State::Backup, "it begins");
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Active).await);
    lbd.script.is_synced(PEER);
    let learnt = || lbd.script.recorder.of(|recorded| recorded.learns().then_some(())).len();
    for turn in 1..=16 {
        eventually("it follows", async || role(&lbd, &place) == Some(Role::Follows)).await;
        // Both wait when the daemon looks.
        let record = Record::Ended { service: web(&place), flows: Vec::new() };
        lbd.script.report(lb_sync::Report::Records(PEER, vec![record], Mark::default()));
        lbd.script.becomes(&main, State::Active, "the other one is silent");
        eventually("it is its own", async || role(&lbd, &place) == Some(Role::Own)).await;
        assert_eq!(learnt(), turn);
        lbd.script.becomes(&main, State::Backup, "an advertisement was received");
    }
    lbd.stop().await;
}

#[tokio::test]
async fn a_node_does_not_preempt_before_it_has_the_flows_of_who_is_heard() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let main = main(&place);
    lbd.script.becomes(&main, State::Backup, "eth0 is up");
    let unsynced = || is_unsynced(&lbd, &place);
    let at = |count| move |external: &lb_vrrp::ExternalState| external.transitions["main"] == count;
    let reported = async |count: u64| {
        eventually("it is reported", async || {
            lbd.script.recorder.external_state().as_ref().is_some_and(at(count))
        })
        .await;
    };
    reported(1).await;
    assert!(unsynced(), "no peer is there to send flows");
    // The session is there again before the peer sends its new state.
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Backup).await);
    lbd.script.is_synced(PEER);
    lbd.script.receive_advertisements(&main, PEER_ADDRESS);
    lbd.script.becomes(&main, State::Fault, "eth0 is down");
    lbd.script.becomes(&main, State::Backup, "eth0 is up");
    reported(3).await;
    assert!(unsynced(), "it is Active by now, and has not sent its flows");
    lbd.script
        .report(lb_sync::Report::NodeState(PEER, peer_state(&lbd, &place, State::Active).await));
    let wants =
        |recorded: &Recorded| matches!(recorded, Recorded::RequestTransfer(PEER)).then_some(());
    recorded(&lbd, "all is asked for", wants).await;
    assert!(unsynced());
    lbd.script.is_synced(PEER);
    eventually("it may preempt", async || !unsynced()).await;
    lbd.script.report(lb_sync::Report::Lost(PEER, "it is silent".into()));
    eventually("it may not", async || unsynced()).await;
    lbd.stop().await;
}

#[tokio::test]
async fn a_peer_with_the_name_of_this_node_is_told_of() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let own = "lb1".to_owned();
    lbd.script.change(PEER, |status| status.node = Some(own.clone()));
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Backup).await);
    let text = format!("calls itself {own}, as this node does: set `node` under [sync]");
    eventually("it is an event", async || {
        messages(&lbd, Kind::VrrpMismatch).await.iter().any(|event| event.ends_with(&text))
    })
    .await;
    let shown = lbctl(&place, "vrrp status").await.out;
    assert!(shown.contains("PROBLEM: peer ") && shown.contains(&text), "{shown}");
    lbd.script.change(PEER, |status| status.node = Some("another".into()));
    let shown = lbctl(&place, "vrrp status").await.out;
    assert!(!shown.contains("calls itself"), "{shown}");
    lbd.stop().await;
}

#[tokio::test]
async fn what_can_not_be_taken_is_missing_and_asked_for_again() {
    let mut place = Place::new(&all());
    // There is no room for any pin.
    place.limits.pins = 0;
    let lbd = synced_backup(&place).await;
    let unsynced = || is_unsynced(&lbd, &place);
    lbd.script.recorder.take();
    lbd.script.report(lb_sync::Report::Records(PEER, vec![pins(&place, 1)], Mark::default()));
    eventually("it may not", async || unsynced()).await;
    assert_eq!(
        messages(&lbd, Kind::PeerUnsynced).await,
        ["flows of web that lb2 has are missing here"]
    );
    assert!(lbctl(&place, "sync status -o json").await.out.contains("\"complete_here\": false"));
    let lacks = |recorded: &Recorded| matches!(recorded, Recorded::Lack(PEER, true)).then_some(());
    recorded(&lbd, "lbd reports to the peer that they are missing here", lacks).await;
    let wants =
        |recorded: &Recorded| matches!(recorded, Recorded::RequestTransfer(PEER)).then_some(());
    recorded(&lbd, "it is asked for them", wants).await;
    lbd.script.is_synced(PEER);
    eventually("it may again", async || !unsynced()).await;
    let has = |recorded: &Recorded| matches!(recorded, Recorded::Lack(PEER, false)).then_some(());
    recorded(&lbd, "lbd reports to the peer that they are here", has).await;
    lbd.stop().await;
}

#[tokio::test]
async fn flows_of_a_backend_that_is_added_here_last_are_asked_for_before_it_may_preempt() {
    let place = Place::new(&all());
    let lbd = synced_backup(&place).await;
    let unsynced = || is_unsynced(&lbd, &place);
    let backend = IpAddr::from([10, 0, 0, 19]);
    let flow = Flow::Pinned(IpAddr::from([192, 0, 2, 1]), 1, Destination::ONLY);
    let pin = Pin { flow, backend: backend.into(), flags: 0, idle: Duration::ZERO };
    let pins = Record::Pins { service: web(&place), pins: vec![pin] };
    lbd.script.report(lb_sync::Report::Records(PEER, vec![pins], Mark::default()));
    let refused = async || messages(&lbd, Kind::PeerRefused).await;
    eventually("it is not known", async || !refused().await.is_empty()).await;
    assert_eq!(refused().await, ["lb2: web: backend 10.0.0.19 is not known here"]);
    assert!(!unsynced(), "there may never be such a backend here");
    lbd.script.recorder.take();
    assert_eq!(lbctl(&place, "backend add web 10.0.0.19").await.code, Some(0));
    let wants =
        |recorded: &Recorded| matches!(recorded, Recorded::RequestTransfer(PEER)).then_some(());
    recorded(&lbd, "it is asked for them", wants).await;
    eventually("it may not", async || unsynced()).await;
    assert_eq!(
        messages(&lbd, Kind::PeerUnsynced).await,
        ["flows of web that lb2 has are missing here"]
    );
    lbd.script.is_synced(PEER);
    eventually("it may again", async || !unsynced()).await;
    lbd.stop().await;
}

#[tokio::test]
async fn a_history_that_could_not_be_read_is_told_later() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Backup).await);
    place.remote.failing_walks.store(true, Ordering::SeqCst);
    lbd.script.report(lb_sync::Report::TransferRequested(PEER));
    // The message after it is received.
    lbd.script.report(lb_sync::Report::Complete(PEER, false));
    lbctl(&place, "sync status").await;
    place.remote.failing_walks.store(false, Ordering::SeqCst);
    let sent =
        |recorded: &Recorded| matches!(recorded, Recorded::SendTransfer(PEER, _)).then_some(());
    recorded(&lbd, "it is sent", sent).await;
    lbd.stop().await;
}

#[tokio::test]
async fn pins_are_leased_while_a_peer_is_told_of_them() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let leased_until = || Duration::from_nanos(place.remote.leased_until.load(Ordering::SeqCst));
    lbctl(&place, "status").await;
    assert_eq!(leased_until(), Duration::ZERO, "there is no peer");
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Backup).await);
    eventually("they are leased", async || !leased_until().is_zero()).await;
    // No other node knows pins that are made after the daemon's death.
    let mut longest = Duration::ZERO;
    for _ in 0..100 {
        longest = longest.max(leased_until().saturating_sub(Now::read().mono));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!((15..=30).contains(&longest.as_millis()), "{longest:?}");
    lbd.script.report(lb_sync::Report::Lost(PEER, "it is silent".into()));
    eventually("they are always made", async || leased_until().is_zero()).await;
    assert_eq!(messages(&lbd, Kind::PeerLost).await, ["peer lb2 is gone"]);
    lbd.stop().await;
}

#[tokio::test]
async fn no_pin_is_made_while_a_peer_is_late_with_what_it_is_told_but_for_a_while() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    lbd.script.becomes(&main(&place), State::Active, "no advertisement was received");
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Backup).await);
    lbd.script.is_synced(PEER);
    let ends = || place.remote.leased_until.load(Ordering::SeqCst);
    let renewed = async || {
        let before = ends();
        tokio::time::sleep(Duration::from_millis(100)).await;
        ends() > before
    };
    eventually("pins are leased", renewed).await;
    lbd.script.be_slow(true, 0);
    pin(&place, 4242);
    let published = |recorded: &Recorded| matches!(recorded, Recorded::Publish(records) if has_pin(records, 4242));
    recorded(&lbd, "it is exported", |recorded| published(recorded).then_some(())).await;
    let end = ends();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ends(), end, "the lease ends with what the peer does not know");
    lbd.script.be_slow(false, u64::MAX);
    eventually("the peer knows all, and pins are leased again", renewed).await;
    lbd.script.be_slow(true, 0);
    lbd.stop().await;
}

#[tokio::test]
async fn what_a_peer_tells_is_acknowledged_when_it_is_learnt() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let main = main(&place);
    lbd.script.becomes(&main, State::Backup, "it begins");
    lbd.script.receive_advertisements(&main, PEER_ADDRESS);
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Active).await);
    lbd.script.is_synced(PEER);
    lbd.script.report(lb_sync::Report::Records(PEER, vec![pins(&place, 1)], Mark::default()));
    recorded(&lbd, "it is acknowledged", |recorded| {
        matches!(recorded, Recorded::Acknowledge(PEER, _)).then_some(())
    })
    .await;
    let order = lbd.script.recorder.of(|recorded| match recorded {
        recorded if recorded.learns() => Some("learnt"),
        Recorded::Acknowledge(..) => Some("took"),
        _ => None,
    });
    assert_eq!(order, ["learnt", "took"]);
    lbd.stop().await;
}

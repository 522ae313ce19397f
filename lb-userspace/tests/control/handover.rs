//! Addresses that move on purpose: by `lbctl vrrp failover`, by a drain, at the end.

use std::{net::IpAddr, time::Duration};

use lb_api::{event::Kind, status::Status};
use lb_daemon::daemon::{Ended, Signal};
use lb_model::router::State;
use lb_vrrp::{Order, Yield};
use tokio::task::JoinHandle;

use crate::{
    cli::{Ran, lbctl, lbctl_command},
    common::{Place, Running, WEB, events, eventually},
    fakes::Recorded,
    pair::{PEER, PEER_ADDRESS, ROUTER, SYNC, all, main, peer_state, recorded, web},
};

/// Runs lbctl while the test goes on.
fn begin(place: &Place, line: &str) -> JoinHandle<Ran> {
    let mut command = lbctl_command(&place.socket(), line);
    tokio::task::spawn_blocking(move || command.output().expect("it runs").into())
}

/// A node that is active, with a peer that knows its flows.
async fn pair(place: &Place) -> Running {
    let lbd = place.start().await;
    lbd.script.becomes(&main(place), State::Active, "no advertisement was received");
    lbd.script.joins(PEER, peer_state(&lbd, place, State::Backup).await);
    lbd.script.is_synced(PEER);
    let synced = async || {
        let peers: Vec<lb_api::status::Peer> =
            lbd.client.get("/v1/peers").await.expect("it answers");
        peers[0].session.complete_here && peers[0].session.complete_there
    };
    eventually("they are synced", synced).await;
    lbd.script.recorder.take();
    lbd
}

/// The steps of a handover, in order.
fn steps(lbd: &Running) -> Vec<Recorded> {
    lbd.script.recorder.of(|recorded| match recorded {
        Recorded::RequestTakeover(..) | Recorded::Answer(..) | Recorded::Detach => {
            Some(recorded.clone())
        }
        recorded if recorded.pauses_pinning() => Some(recorded.clone()),
        Recorded::Order(Order::Yield(..) | Order::Take(_) | Order::Stop { .. }) => {
            Some(recorded.clone())
        }
        _ => None,
    })
}

async fn requested(lbd: &Running) {
    recorded(lbd, "the request is sent to the peer", |recorded| {
        matches!(recorded, Recorded::RequestTakeover(..)).then_some(())
    })
    .await;
}

/// The peer takes over, and its advertisement is received.
fn takes_over(lbd: &Running, place: &Place) {
    let main = main(place);
    lbd.script.report(lb_sync::Report::Answer(PEER, Ok(())));
    lbd.script.yielded(&main, Ok(PEER_ADDRESS));
    lbd.script.becomes(&main, State::Backup, "10.0.0.3 has taken over");
}

async fn handovers(lbd: &Running) -> Vec<String> {
    let events = events(&lbd.client).await.into_iter();
    let of = events.filter(|event| event.body.kind == Kind::VrrpHandover);
    of.map(|event| event.body.message).collect()
}

#[tokio::test]
async fn a_peer_takes_over_when_it_knows_all_flows() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    let (key, web) = (main(&place).key, web(&place));
    let dry = lbctl(&place, "vrrp failover main --dry-run").await;
    assert_eq!(
        dry.out,
        "dry run, nothing was changed; this would happen: main handed over\n  main goes to lb2, which has all flows\n  no flow moves\n"
    );
    assert_eq!(steps(&lbd), []);
    let failover = begin(&place, "vrrp failover main");
    requested(&lbd).await;
    assert_eq!(
        steps(&lbd),
        [
            Recorded::pause_pinning([web]),
            // Before the request to the other one: its advertisement may come at once.
            Recorded::Order(Order::Yield(key, Yield::Requested)),
            Recorded::RequestTakeover(PEER, vec![key]),
        ]
    );
    let before = lbd.script.recorder.of(|recorded| match recorded {
        Recorded::Engine(_) | Recorded::RequestTakeover(..) => {
            (!recorded.pauses_pinning()).then(|| recorded.surveys())
        }
        _ => None,
    });
    assert_eq!(before, [true, false], "flows of the last second are exported as well");
    let busy = lbctl(&place, "vrrp failover --all").await;
    assert_eq!(busy.err, "lbctl: a handover is under way; wait for its end\n");
    takes_over(&lbd, &place);
    let ran = failover.await.expect("no panic");
    assert!(
        ran.out.starts_with("main handed over\n  main: lb2 (10.0.0.3) has it, after "),
        "{ran:?}"
    );
    assert_eq!(ran.code, Some(0));
    assert_eq!(steps(&lbd).len(), 3, "nothing is pinned until it is active again");
    lbd.script.becomes(&main(&place), State::Active, "it has come back");
    recorded(&lbd, "pins are made again", |recorded| {
        (*recorded == Recorded::pause_pinning([])).then_some(())
    })
    .await;
    lbd.stop().await;
}

#[tokio::test]
async fn a_peer_that_would_preempt_is_handed_to_when_it_has_all_flows() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    let (key, web) = (main(&place).key, web(&place));
    let mut higher = peer_state(&lbd, &place, State::Backup).await;
    let router = higher.routers.get_mut(&key).expect("it is there");
    (router.priority, router.wants) = (150, true);
    lbd.script.report(lb_sync::Report::NodeState(PEER, higher.clone()));
    lbctl(&place, "status").await;
    assert_eq!(steps(&lbd), [], "its priority is no higher");
    higher.routers.get_mut(&key).expect("it is there").priority = 151;
    lbd.script.report(lb_sync::Report::NodeState(PEER, higher.clone()));
    requested(&lbd).await;
    assert_eq!(
        steps(&lbd),
        [
            Recorded::pause_pinning([web]),
            Recorded::Order(Order::Yield(key, Yield::Outranked)),
            Recorded::RequestTakeover(PEER, vec![key]),
        ]
    );
    takes_over(&lbd, &place);
    let reported = async || handovers(&lbd).await.len() == 1;
    eventually("it is reported", reported).await;
    let handovers = handovers(&lbd).await;
    assert!(
        handovers[0].starts_with("main is handed over: lb2 (10.0.0.3) has it"),
        "{handovers:?}"
    );
    lbd.stop().await;
}

#[tokio::test]
async fn a_peer_that_would_preempt_and_does_not_take_over_is_not_asked_again_at_once() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    let key = main(&place).key;
    let mut higher = peer_state(&lbd, &place, State::Backup).await;
    let router = higher.routers.get_mut(&key).expect("it is there");
    (router.priority, router.wants) = (200, true);
    lbd.script.report(lb_sync::Report::NodeState(PEER, higher));
    requested(&lbd).await;
    lbd.script.report(lb_sync::Report::Answer(PEER, Err("it drains".into())));
    lbd.script.yielded(&main(&place), Err("no advertisement was received"));
    eventually("it is reported", async || handovers(&lbd).await.len() == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let requests = lbd
        .script
        .recorder
        .of(|recorded| matches!(recorded, Recorded::RequestTakeover(..)).then_some(()));
    assert_eq!(requests.len(), 1);
    lbd.stop().await;
}

#[tokio::test]
async fn a_router_below_whose_place_a_peer_hands_over_preempts_when_that_is_in_vain() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let main = main(&place);
    lbd.script.becomes(&main, State::Backup, "it begins");
    lbd.script.receive_advertisements(&main, PEER_ADDRESS);
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Active).await);
    lbd.script.is_synced(PEER);
    let waits = |waits: bool| {
        let external = lbd.script.recorder.external_state();
        external.is_some_and(|external| external.handed_over.contains(&main.key) == waits)
    };
    eventually("it does not preempt by itself", async || waits(true)).await;
    lbd.script.wants(&main);
    let sent = || {
        lbd.script
            .recorder
            .node_state()
            .is_some_and(|node_state| node_state.routers[&main.key].wants)
    };
    eventually("it is sent to the peer", async || sent()).await;
    eventually("it does after a while", async || waits(false)).await;
    lbd.stop().await;
}

#[tokio::test]
async fn peers_say_that_something_has_lowered_them_and_routers_know_it_of_the_active_one() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let main = main(&place);
    lbd.script.becomes(&main, State::Backup, "it begins");
    let mut lowered = peer_state(&lbd, &place, State::Backup).await;
    lowered.routers.get_mut(&main.key).expect("it is there").lowered = true;
    lbd.script.joins(PEER, lowered.clone());
    lbctl(&place, "status").await;
    let known = || {
        lbd.script
            .recorder
            .external_state()
            .is_some_and(|external| !external.lowered_peers.is_empty())
    };
    assert!(!known(), "it is not active");
    lowered.routers.get_mut(&main.key).expect("it is there").state = State::Active;
    lbd.script.report(lb_sync::Report::NodeState(PEER, lowered));
    eventually("it is known", async || known()).await;
    lbd.script
        .report(lb_sync::Report::NodeState(PEER, peer_state(&lbd, &place, State::Active).await));
    eventually("it is over", async || !known()).await;
    lbd.script.is_lowered(&main);
    let sent = || {
        lbd.script
            .recorder
            .node_state()
            .is_some_and(|node_state| node_state.routers[&main.key].lowered)
    };
    eventually("it is sent to the peer", async || sent()).await;
    lbd.stop().await;
}

#[tokio::test]
async fn a_peer_that_has_not_said_yet_that_it_has_the_last_news_can_be_asked() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    lbd.script.change(PEER, |status| status.complete_there = false);
    let dry = lbctl(&place, "vrrp failover main --dry-run").await;
    assert!(dry.out.contains("main goes to lb2, which has all flows"), "{dry:?}");
    lbd.script.change(PEER, |status| status.follows = false);
    let dry = lbctl(&place, "vrrp failover main --dry-run").await;
    assert!(dry.out.contains("main goes to lb2, when it has all flows"), "{dry:?}");
    lbd.script.report(lb_sync::Report::Lost(PEER, "it is silent".into()));
    lbctl(&place, "status").await;
    let dry = lbctl(&place, "vrrp failover main --dry-run").await;
    assert!(dry.out.contains("main is given up by an advertisement"), "{dry:?}");
    lbd.stop().await;
}

#[tokio::test]
async fn pins_are_made_again_when_the_router_goes_that_was_handed_over() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    let failover = begin(&place, "vrrp failover main");
    requested(&lbd).await;
    takes_over(&lbd, &place);
    assert_eq!(failover.await.expect("no panic").code, Some(0));
    lbd.script.recorder.take();
    place.configure(&format!("{WEB}{SYNC}"));
    assert_eq!(lbctl(&place, "config reload").await.code, Some(0));
    recorded(&lbd, "pins are made again", |recorded| {
        (*recorded == Recorded::pause_pinning([])).then_some(())
    })
    .await;
    lbd.stop().await;
}

#[tokio::test]
async fn a_service_that_the_peer_has_otherwise_is_handed_over_for_who_says_yes() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    let mut unlike = peer_state(&lbd, &place, State::Backup).await;
    unlike.fingerprint.services.remove(&web(&place));
    lbd.script.report(lb_sync::Report::NodeState(PEER, unlike));
    let received = async || lbctl(&place, "vrrp status").await.out.contains("is no service there");
    eventually("it is received", received).await;
    let lost = "the flows of web break: lb2 has the service otherwise";
    let dry = lbctl(&place, "vrrp failover main --dry-run").await;
    assert!(dry.out.contains(&format!("\n  main goes to lb2\n  {lost}\n")), "{dry:?}");
    let refused = lbctl(&place, "vrrp failover main").await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains(lost) && refused.err.contains("--yes"), "{refused:?}");
    assert_eq!(steps(&lbd), []);
    let failover = begin(&place, "vrrp failover main --yes");
    requested(&lbd).await;
    takes_over(&lbd, &place);
    assert_eq!(failover.await.expect("no panic").code, Some(0));
    assert!(handovers(&lbd).await.iter().any(|message| message == lost));
    lbd.stop().await;
}

#[tokio::test]
async fn a_peer_that_refuses_leaves_everything_as_it_is() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    let failover = begin(&place, "vrrp failover --all");
    requested(&lbd).await;
    lbd.script.report(lb_sync::Report::Answer(PEER, Err("it is draining itself".into())));
    // Messages after the answer are received.
    let leaves =
        lb_sync::NodeState { draining: true, ..peer_state(&lbd, &place, State::Backup).await };
    lbd.script.report(lb_sync::Report::NodeState(PEER, leaves));
    let seen = async || lbctl(&place, "vrrp status").await.out.contains(", draining");
    eventually("it is received", seen).await;
    lbd.script.yielded(&main(&place), Err("no other router has become active"));
    let ran = failover.await.expect("no panic");
    assert_eq!(
        ran.err,
        "lbctl: main stays here: lb2 does not take it: it is draining itself; nothing was interrupted; see 'lbctl vrrp status' on both nodes\n"
    );
    assert_eq!(ran.code, Some(1));
    let withdrawn = |recorded: &Recorded| (*recorded == Recorded::Withdraw(PEER)).then_some(());
    assert_eq!(lbd.script.recorder.of(withdrawn).len(), 1, "it does not take over any more");
    assert_eq!(steps(&lbd).last(), Some(&Recorded::pause_pinning([])), "pins are made again");
    let messages = handovers(&lbd).await;
    assert_eq!(
        messages,
        ["main is not handed over, and stays: lb2 does not take it: it is draining itself"]
    );
    lbd.stop().await;
}

#[tokio::test]
async fn a_peer_that_goes_while_it_is_asked_is_told_of() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    let failover = begin(&place, "vrrp failover main");
    requested(&lbd).await;
    lbd.script.report(lb_sync::Report::Lost(PEER, "it is silent".into()));
    let lost = |event: &lb_api::event::Event| event.body.kind == Kind::PeerLost;
    eventually("it is gone", async || events(&lbd.client).await.iter().any(lost)).await;
    lbd.script.yielded(&main(&place), Err("no other router has become active"));
    let ran = failover.await.expect("no panic");
    assert!(ran.err.contains("main stays here: lb2 does not take it: it is gone"), "{ran:?}");
    lbd.stop().await;
}

#[tokio::test]
async fn without_a_peer_others_are_told_by_an_advertisement() {
    let place = Place::new(&format!("{WEB}{ROUTER}"));
    let lbd = place.start().await;
    let key = main(&place).key;
    for (line, expected) in [
        ("vrrp failover", "lbctl: name the virtual routers to hand over, or pass --all\n"),
        ("vrrp failover mian", "lbctl: no virtual router mian; did you mean main?\n"),
        (
            "vrrp failover main",
            "lbctl: main is not active here: it is in state initialize; run this on the node that is active; see 'lbctl vrrp status'\n",
        ),
        (
            "vrrp failover --all",
            "lbctl: no virtual router is active here; run this on the node that is active; see 'lbctl vrrp status'\n",
        ),
    ] {
        assert_eq!(lbctl(&place, line).await.err, expected, "{line}");
    }
    lbd.script.becomes(&main(&place), State::Active, "no advertisement was received");
    let yields = |recorded: &Recorded| {
        (*recorded == Recorded::Order(Order::Yield(key, Yield::Advertised))).then_some(())
    };
    for (by, code, expected) in [
        (
            Err("nobody else is there"),
            1,
            "main stays here: nobody else is there; nothing was interrupted",
        ),
        (Ok(IpAddr::from([10, 0, 0, 9])), 0, "main handed over\n  main: 10.0.0.9 has it, after "),
    ] {
        lbd.script.recorder.take();
        eventually("it is active", async || {
            lbctl(&place, "vrrp failover main --dry-run").await.code == Some(0)
        })
        .await;
        let failover = begin(&place, "vrrp failover main");
        recorded(&lbd, "the router yields", yields).await;
        lbd.script.yielded(&main(&place), by);
        let ran = failover.await.expect("no panic");
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(format!("{}{}", ran.out, ran.err).contains(expected), "{ran:?}");
    }
    lbd.stop().await;
}

#[tokio::test]
async fn this_node_takes_over_only_what_it_can_serve() {
    let place = Place::new(&all());
    let lbd = place.start().await;
    let key = main(&place).key;
    lbd.script.joins(PEER, peer_state(&lbd, &place, State::Active).await);
    let answers = |lbd: &Running| {
        lbd.script.recorder.of(|recorded| match recorded {
            Recorded::Answer(PEER, answer) => Some(answer.clone()),
            _ => None,
        })
    };
    let ask = async |expected: Result<(), &str>| {
        lbd.script.recorder.take();
        lbd.script.report(lb_sync::Report::TakeOver(PEER, vec![key]));
        eventually("it is answered", async || !answers(&lbd).is_empty()).await;
        assert_eq!(answers(&lbd), [expected.map_err(str::to_owned)]);
    };
    ask(Err("main does not take part there yet")).await;
    let is = async |kind| events(&lbd.client).await.iter().any(|event| event.body.kind == kind);
    lbd.script.becomes(&main(&place), State::Fault, "eth0 is down");
    eventually("it is in fault", async || is(Kind::VrrpFault).await).await;
    ask(Err("main is in fault there")).await;
    lbd.script.becomes(&main(&place), State::Backup, "eth0 is up");
    eventually("it is backup", async || is(Kind::VrrpBackup).await).await;
    ask(Err("not all flows of main are known there")).await;
    lbd.script.is_synced(PEER);
    let take = |recorded: &Recorded| (*recorded == Recorded::Order(Order::Take(key))).then_some(());
    assert_eq!(lbd.script.recorder.of(take), []);
    ask(Ok(())).await;
    assert_eq!(steps(&lbd), [Recorded::Order(Order::Take(key)), Recorded::Answer(PEER, Ok(()))]);
    assert_eq!(
        handovers(&lbd).await.last().map(String::as_str),
        Some("this node takes main over from lb2")
    );
    lbctl(&place, "node drain").await;
    ask(Err("the node is draining itself")).await;
    lbd.stop().await;
}

#[tokio::test]
async fn a_node_that_drains_hands_over_first_and_does_not_come_back() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    let drain = begin(&place, "node drain");
    requested(&lbd).await;
    let draining =
        || lbd.script.recorder.external_state().is_some_and(|external| external.draining);
    assert!(!draining(), "the request is sent to the peer, and does not preempt by itself");
    takes_over(&lbd, &place);
    let ran = drain.await.expect("no panic");
    assert!(
        ran.out.starts_with("this node drains\n  main: lb2 (10.0.0.3) has it, after "),
        "{ran:?}"
    );
    assert!(!ran.out.contains("nothing takes over by itself"), "{ran:?}");
    eventually("it does not preempt", async || draining()).await;
    assert_eq!(lbctl(&place, "node enable").await.code, Some(0));
    eventually("it may", async || !draining()).await;
    lbd.stop().await;
}

#[tokio::test]
async fn a_vip_that_no_router_holds_is_moved_by_hand() {
    let place = Place::new(&format!("{WEB}{}", ROUTER.replace("0.100", "0.101")));
    let lbd = place.start().await;
    let ran = lbctl(&place, "node drain").await;
    assert!(
        ran.out.contains("nothing takes over by itself: no virtual router holds 10.0.0.100;"),
        "{ran:?}"
    );
    lbd.stop().await;
}

#[tokio::test]
async fn the_end_hands_over_first_and_leaves_addresses_that_nobody_takes() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    lbd.script.hold_end();
    let key = main(&place).key;
    lbd.signals.send(Signal::Stop).await.expect("it runs");
    requested(&lbd).await;
    // It answers until the end.
    let _: Status = lbd.client.get("/v1/status").await.expect("it answers");
    takes_over(&lbd, &place);
    let stop = Recorded::Order(Order::Stop { release: false });
    recorded(&lbd, "the routers end", |recorded| (*recorded == stop).then_some(())).await;
    assert_eq!(
        steps(&lbd),
        [
            Recorded::pause_pinning([web(&place)]),
            Recorded::Order(Order::Yield(key, Yield::Requested)),
            Recorded::RequestTakeover(PEER, vec![key]),
            stop,
        ]
    );
    assert!(!lbd.task.is_finished());
    lbd.script.vrrp.send(lb_vrrp::Report::Stopped).expect("lbd receives it");
    assert_eq!(lbd.task.await.expect("no panic").expect("no error"), Ended::Stopped);
}

#[tokio::test]
async fn who_asks_twice_for_the_end_does_not_wait() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    lbd.script.hold_end();
    for _ in 0..2 {
        lbd.signals.send(Signal::Stop).await.expect("it runs");
    }
    let ended = tokio::time::timeout(Duration::from_secs(2), lbd.task).await.expect("at once");
    assert_eq!(ended.expect("no panic").expect("no error"), Ended::Stopped);
}

#[tokio::test]
async fn routers_that_do_not_end_hold_the_end_up_for_a_while() {
    let place = Place::new(&format!("{WEB}{ROUTER}"));
    let lbd = place.start().await;
    lbd.script.hold_end();
    lbd.signals.send(Signal::Stop).await.expect("it runs");
    let ended =
        tokio::time::timeout(Duration::from_secs(20), lbd.task).await.expect("not for ever");
    assert_eq!(ended.expect("no panic").expect("no error"), Ended::Stopped);
}

#[tokio::test]
async fn detach_takes_the_addresses_off_before_the_program() {
    let place = Place::new(&format!("{WEB}{ROUTER}"));
    let lbd = place.start().await;
    lbd.script.becomes(&main(&place), State::Active, "no advertisement was received");
    let ran = lbctl(&place, "detach --yes").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let recorder = lbd.script.recorder.clone();
    assert_eq!(lbd.task.await.expect("no panic").expect("no error"), Ended::Detached);
    let last = recorder.of(|recorded| match recorded {
        Recorded::Order(Order::Stop { .. }) | Recorded::Detach => Some(recorded.clone()),
        _ => None,
    });
    assert_eq!(last, [Recorded::Order(Order::Stop { release: true }), Recorded::Detach]);
}

#[tokio::test]
async fn routers_of_a_group_go_together() {
    let six = ROUTER.replace("\"main\"", "\"six\"").replace("10.0.0.100", "fd00::100");
    let group = "[[sync_group]]\nname = \"both\"\nrouters = [\"main\", \"six\"]\n";
    let place = Place::new(&format!("{WEB}{ROUTER}{six}{group}{SYNC}"));
    let lbd = place.start().await;
    let routers = crate::pair::config(&place).routers.routers;
    for router in &routers {
        lbd.script.becomes(router, State::Active, "no advertisement was received");
    }
    let mut peer = peer_state(&lbd, &place, State::Backup).await;
    for router in peer.routers.values_mut() {
        router.state = State::Backup;
    }
    lbd.script.joins(PEER, peer);
    lbd.script.is_synced(PEER);
    eventually("they are synced", async || {
        let dry = lbctl(&place, "vrrp failover main --dry-run").await;
        dry.out.contains("main, six goes to lb2")
    })
    .await;
    lbd.script.recorder.take();
    let failover = begin(&place, "vrrp failover six");
    requested(&lbd).await;
    let keys: Vec<_> = routers.iter().map(|router| router.key).collect();
    assert_eq!(
        steps(&lbd)[1..],
        [
            Recorded::Order(Order::Yield(keys[0], Yield::Requested)),
            Recorded::RequestTakeover(PEER, keys)
        ]
    );
    for router in &routers {
        lbd.script.yielded(router, Ok(PEER_ADDRESS));
    }
    let ran = failover.await.expect("no panic");
    assert!(ran.out.starts_with("main, six handed over\n"), "{ran:?}");
    lbd.stop().await;
}

#[tokio::test]
async fn detach_on_the_active_node_of_a_pair_says_that_the_peer_takes_over() {
    let place = Place::new(&all());
    let lbd = pair(&place).await;
    let ran = lbctl(&place, "detach --dry-run").await;
    assert!(ran.out.contains("\n  main goes to lb2, which has all flows\n"), "{ran:?}");
    assert!(!ran.out.contains("break"), "{ran:?}");
    assert!(ran.out.contains("\n  no flow moves\n"), "{ran:?}");
    let ran = lbctl(&place, "detach").await;
    assert!(ran.err.contains("on this node; another node goes on with all services"), "{ran:?}");
    lbd.stop().await;
    // A node alone has no peer that goes on.
    let place = Place::new(WEB);
    let lbd = place.start().await;
    let ran = lbctl(&place, "detach").await;
    assert!(ran.err.contains("the connections of all services break"), "{ran:?}");
    lbd.stop().await;
}

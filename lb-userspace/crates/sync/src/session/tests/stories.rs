//! What happens in one case.

use std::time::Duration;

use super::{Links, World, pins, ring, router};
use crate::{Mark, NodeState, PeerId, Report, RouterState, session::Event};

const PEER: PeerId = PeerId(0);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Two nodes that have joined.
fn pair() -> World {
    let mut world = World::new(2, false, 7, Links::SOUND);
    world.run(millis(50));
    for node in 0..2 {
        assert_eq!(world.reports(node).last(), Some(&Report::Complete(PEER, true)));
    }
    world
}

#[test]
fn nodes_join_within_milliseconds_and_tell_facts_before_they_want_history() {
    let mut world = World::new(2, false, 7, Links::SOUND);
    world.run(millis(20));
    let reports = [
        Report::Joined(PEER),
        Report::NodeState(PEER, NodeState::default()),
        Report::TransferRequested(PEER),
        Report::TransferBegins(PEER),
        Report::Records(PEER, Vec::new(), Mark(1)),
        Report::Complete(PEER, true),
    ];
    for node in 0..2 {
        assert_eq!(world.reports(node), reports);
    }
}

#[test]
fn a_change_of_facts_is_told_within_ten_milliseconds() {
    let mut world = pair();
    let node_state = RouterState {
        state: lb_model::router::State::Active,
        priority: 150,
        wants: false,
        lowered: false,
        source: None,
        fingerprint: 1,
        interval_centis: 100,
        addresses: 2,
    };
    for priority in [150, 151, 152] {
        let node_state = RouterState { priority, ..node_state.clone() };
        let routers = [(router(51), node_state)].into();
        let node_state = NodeState { routers, draining: false, ..NodeState::default() };
        world.set_state(0, node_state.clone());
        world.run(millis(10));
        assert_eq!(world.reports(1), [Report::NodeState(PEER, node_state)]);
    }
}

#[test]
fn news_that_nothing_follows_are_repaired_when_they_are_lost() {
    let mut world = pair();
    world.cut(0, 1, millis(5));
    world.publish(0, vec![pins(0..10, 1)]);
    world.run(millis(30));
    let reports = world.reports(1);
    assert!(matches!(&reports[..], [Report::Records(PEER, ..)]), "{reports:?}");
    assert_eq!(world.status(0)[0].counters.retransmissions, 1);
}

#[test]
fn news_are_taken_when_the_peers_daemon_says_so() {
    let mut world = pair();
    world.slow = true;
    world.publish(0, vec![pins(0..10, 1)]);
    world.run(millis(150));
    let reports = world.reports(1);
    let Some(Report::Records(PEER, _, mark)) = reports.first() else { panic!("{reports:?}") };
    assert_eq!(world.acknowledged(0), 0, "they have arrived, and nothing more");
    world.handle(1, Event::Acknowledge(PEER, *mark));
    world.run(millis(7));
    assert_eq!(world.acknowledged(0), 1);
}

#[test]
fn a_lost_word_that_news_are_taken_is_said_again_by_a_heartbeat() {
    let mut world = pair();
    world.cut(1, 0, millis(20));
    world.publish(0, vec![pins(0..10, 1)]);
    world.run(millis(20));
    assert_eq!(world.acknowledged(0), 0);
    world.run(millis(100));
    assert_eq!(world.acknowledged(0), 1);
}

#[test]
fn who_gets_no_news_is_not_waited_for() {
    let mut world = pair();
    world.slow = true;
    world.publish(0, vec![pins(0..10, 1)]);
    world.run(millis(20));
    assert_eq!(world.acknowledged(0), 0);
    world.cut(1, 0, millis(2000));
    world.run(millis(1200));
    assert_eq!(world.acknowledged(0), 1, "the peer is gone");
    world.publish(0, vec![pins(0..10, 1)]);
    assert_eq!(world.acknowledged(0), 2, "nobody is there");
}

#[test]
fn what_is_missing_for_long_makes_the_history_incomplete() {
    let mut world = pair();
    world.cut(1, 0, millis(300));
    world.cut(0, 1, millis(5));
    world.publish(0, vec![pins(0..10, 1)]);
    world.run(millis(200));
    assert_eq!(world.reports(1), [Report::Complete(PEER, false)]);
    world.run(millis(400));
    let reports = world.reports(1);
    let complete = Report::Complete(PEER, true);
    assert!(
        matches!(&reports[..], [Report::Records(..), last] if *last == complete),
        "{reports:?}"
    );
}

#[test]
fn a_peer_that_says_nothing_is_lost_and_joins_again() {
    let mut world = pair();
    world.cut(1, 0, millis(2000));
    world.run(millis(1200));
    let reports = world.reports(0);
    assert_eq!(reports, [Report::Lost(PEER, "it has sent nothing for 1000 ms".into())]);
    world.publish(0, vec![pins(0..10, 1)]);
    world.converge();
}

#[test]
fn a_peer_that_starts_anew_is_told_at_once() {
    let mut world = pair();
    world.restart(1, false);
    world.run(millis(20));
    let reports = world.reports(0);
    assert_eq!(
        reports[..2],
        [Report::Lost(PEER, "it has started anew".into()), Report::Joined(PEER)]
    );
    world.converge();
}

#[test]
fn a_peer_that_says_goodbye_is_told_at_once() {
    let mut world = pair();
    world.restart(1, true);
    world.run(millis(1));
    assert_eq!(world.reports(0)[0], Report::Lost(PEER, "it has ended".into()));
    world.converge();
}

#[test]
fn a_takeover_waits_for_what_was_published_before() {
    let mut world = pair();
    world.cut(0, 1, millis(40));
    world.publish(0, vec![ring(500, 3), pins(0..90, 1)]);
    world.run(millis(35));
    world.request_takeover(0, 1);
    world.run(millis(200));
    let reports = world.reports(1);
    let is_take_over = |report: &Report| matches!(report, Report::TakeOver(..));
    let at = reports.iter().position(is_take_over).expect("it is reported");
    assert!(
        reports[..at].iter().any(|report| matches!(report, Report::Records(..))),
        "{reports:?}"
    );
    assert_eq!(world.reports(0), [Report::Answer(PEER, Ok(()))]);
}

#[test]
fn a_takeover_that_was_withdrawn_is_told_to_nobody() {
    let mut world = pair();
    world.cut(0, 1, millis(40));
    world.publish(0, vec![pins(0..90, 1)]);
    world.run(millis(35));
    world.request_takeover(0, 1);
    // The request has come, and what is before it has not.
    world.run(millis(6));
    world.withdraw(0, 1);
    world.run(millis(2_000));
    let reports = world.reports(1);
    assert!(reports.iter().any(|report| matches!(report, Report::Records(..))), "{reports:?}");
    assert!(!reports.iter().any(|report| matches!(report, Report::TakeOver(..))), "{reports:?}");
    assert_eq!(world.reports(0), []);
    // The next one is another one.
    world.request_takeover(0, 1);
    world.run(millis(100));
    assert!(matches!(&world.reports(1)[..], [Report::TakeOver(..)]));
}

#[test]
fn a_peer_follows_while_the_last_news_are_on_their_way() {
    let mut world = pair();
    for number in 0..20 {
        world.publish(0, vec![pins(number..number + 1, 1)]);
        let [status] = &world.status(0)[..] else { panic!("one peer") };
        assert!(status.follows && !status.complete_there, "{status:?}");
        world.run(millis(10));
    }
    world.run(millis(300));
    assert!(world.status(0)[0].complete_there);
}

#[test]
fn who_could_not_take_all_says_so() {
    let mut world = pair();
    world.publish(0, vec![pins(0..10, 1)]);
    world.run(millis(300));
    let [known, lacking] = [false, true].map(|lacks| {
        world.lack(1, 0, lacks);
        world.run(millis(300));
        let [status] = &world.status(0)[..] else { panic!("one peer") };
        (status.complete_there, status.follows)
    });
    assert_eq!((known, lacking), ((true, true), (false, false)));
    world.lack(1, 0, false);
    world.run(millis(300));
    assert!(world.status(0)[0].complete_there);
}

#[test]
fn a_node_that_goes_on_from_a_snapshot_is_heard_again() {
    let mut world = pair();
    // Far more than it sends after that.
    world.run(millis(30_000));
    world.restore(0);
    world.run(millis(4_000));
    for node in [0, 1] {
        assert!(world.status(node)[0].connected, "{:?}", world.status(node));
    }
}

#[test]
fn all_comes_again_for_who_has_not_taken_it() {
    let mut world = pair();
    world.publish(0, vec![pins(0..10, 1)]);
    world.run(millis(20));
    world.reports(1);
    world.request_transfer(1, 0);
    // All is requested from the daemon once in a second.
    world.run(millis(1_100));
    let reports = world.reports(1);
    assert_eq!(reports[..2], [Report::Complete(PEER, false), Report::TransferBegins(PEER)]);
    assert!(matches!(&reports[2..], [Report::Records(..), Report::Complete(PEER, true)]));
    // While it is on its way, it comes once more after that.
    world.publish(0, vec![ring(500, 3), pins(0..5_000, 1)]);
    world.run(millis(50));
    world.request_transfer(1, 0);
    let mut begun = 0;
    for _ in 0..1_100 {
        world.run(millis(1));
        begun += world.reports(1).iter().filter(|is| **is == Report::TransferBegins(PEER)).count();
        if begun == 1 {
            break;
        }
    }
    world.request_transfer(1, 0);
    world.run(millis(2_000));
    begun += world.reports(1).iter().filter(|is| **is == Report::TransferBegins(PEER)).count();
    assert_eq!(begun, 2);
    world.converge();
}

#[test]
fn a_takeover_request_to_nobody_is_answered() {
    let mut world = World::new(2, false, 7, Links::SOUND);
    world.request_takeover(0, 1);
    assert_eq!(world.reports(0), [Report::Answer(PEER, Err("it is not there".into()))]);
}

#[test]
fn a_takeover_request_to_a_peer_that_is_gone_is_answered() {
    let mut world = pair();
    world.cut(0, 1, millis(5000));
    world.cut(1, 0, millis(5000));
    world.request_takeover(0, 1);
    world.run(millis(1500));
    let reports = world.reports(0);
    assert!(matches!(&reports[..], [Report::Answer(_, Err(_)), Report::Lost(..)]), "{reports:?}");
}

#[test]
fn a_peer_that_takes_nothing_costs_nothing_and_gets_all_later() {
    let mut world = World::new(2, false, 7, Links::SOUND);
    world.rate = 100_000;
    world.restart(0, false);
    world.run(millis(500));
    world.reports(0);
    // Ten times what the rate lets through, for ten seconds.
    for step in 0..1000 {
        world.publish(0, (0..12).map(|part| pins(part * 90..part * 90 + 90, step % 9)).collect());
        world.run(millis(10));
        let (log, peers) = world.kept(0);
        assert!(log <= 4096 && peers[0] <= 4096 + 512, "{log} {peers:?}");
    }
    let wanted = world.reports(0);
    let wanted = wanted.iter().filter(|report| **report == Report::TransferRequested(PEER)).count();
    assert!((1..=11).contains(&wanted), "{wanted}");
    assert!(world.sent < 2000, "{} datagrams", world.sent);
    // The log alone, at this rate.
    world.run(Duration::from_secs(60));
    world.converge();
}

#[test]
fn a_node_that_stood_still_hears_what_waits_before_it_gives_anybody_up() {
    let mut world = World::new(2, false, 7, Links::SOUND);
    world.run(millis(50));
    world.reports(0);
    world.freeze(0, millis(900));
    world.run(millis(1500));
    assert_eq!(world.reports(0), []);
}

#[test]
fn what_a_peer_has_said_before_it_gave_this_node_up_is_not_taken_for_all() {
    let mut world = pair();
    world.reports(0);
    world.freeze(0, millis(3_000));
    // It arrives, and waits.
    world.publish(1, vec![pins(0..10, 1)]);
    world.run(millis(1_500));
    assert!(matches!(world.reports(1).last(), Some(Report::Lost(PEER, _))));
    // These are reported to no peer.
    world.publish(1, vec![pins(10..20, 1)]);
    world.run(millis(1_550));
    let reports = world.reports(0);
    let why = "this node has not run for 1000 ms";
    assert_eq!(reports.first(), Some(&Report::Lost(PEER, why.into())), "{reports:?}");
    let is = |wanted: fn(&Report) -> bool| reports.iter().position(wanted);
    let joined = is(|report| matches!(report, Report::Joined(_))).expect("it is there again");
    let records =
        is(|report| matches!(report, Report::Records(..))).expect("it reports everything");
    assert!(joined < records, "{reports:?}");
    world.converge();
}

/// The round trip that is measured next holds the time in which the peer stood still.
#[test]
fn a_transfer_goes_on_soon_after_its_receiver_stood_still() {
    for seed in 0..200 {
        let links = Links { loss_percent: 20, ..Links::SOUND };
        let mut world = World::new(2, false, seed, links);
        world.publish(0, vec![ring(500, 3), pins(0..1_000, 1)]);
        world.run(millis(15 + seed % 10));
        world.freeze(1, millis(900));
        world.run(millis(2_900));
        let [status] = &world.status(1)[..] else { panic!("one peer") };
        assert!(status.complete_here, "seed {seed}, two seconds later: {status:?}");
    }
}

use super::*;

const MS: Duration = Duration::from_millis(1);
const B: Backend = Backend { service: 0, host: 1 };

/// Operations that were begun at these milliseconds, and took ten.
fn log(ops: &[(u32, Op)]) -> Log {
    let done = ops.iter().map(|&(at, op)| Done { op, began: at * MS, ended: Some((at + 10) * MS) });
    Log { done: done.collect(), troubles: Vec::new() }
}

fn history(ops: &[(u32, Op)]) -> History {
    History::of(&log(ops))
}

/// A connection to [`B`] that was answered at once and broke.
fn reset(opened: u32, ended: u32) -> Life {
    Life {
        service: 0,
        port: 1,
        host: Some(1),
        opened: opened * MS,
        connected: Some((opened + 10) * MS),
        answered: Some((opened + 20) * MS),
        last_received: ended * MS,
        ended: ended * MS,
        kind: "test",
        end: Err(Failure::Reset),
    }
}

/// A connection that never came to be.
fn refused(opened: u32, ended: u32) -> Life {
    let end = Err(Failure::Refused);
    Life { host: None, connected: None, answered: None, end, ..reset(opened, ended) }
}

fn why(ops: &[(u32, Op)], life: &Life) -> Option<Reason> {
    excuse(&history(ops), &Observations::default(), life)
}

#[test]
fn with_nothing_done_nothing_may_break() {
    assert_eq!(why(&[], &reset(0, 60_000)), None);
    assert_eq!(why(&[], &refused(0, 10)), None);
}

#[test]
fn a_connection_to_a_killed_nginx_may_break_and_no_other() {
    let ops = [(5_000, Op::Kill(1)), (8_000, Op::Revive(1))];
    assert_eq!(why(&ops, &reset(1_000, 5_010)), Some(Reason::Killed));
    assert_eq!(why(&ops, &reset(1_000, 40_000)), Some(Reason::Killed), "silent until then");
    assert_eq!(why(&ops, &reset(1_000, 4_000)), None, "before");
    assert_eq!(why(&ops, &reset(9_000, 30_000)), None, "after");
    assert_eq!(why(&ops, &Life { host: Some(2), ..reset(1_000, 5_010) }), None, "another host");
}

#[test]
fn a_dead_nginx_may_refuse_until_the_checks_know() {
    let ops = [(5_000, Op::Kill(1)), (60_000, Op::Revive(1))];
    assert_eq!(why(&ops, &refused(5_500, 5_510)), Some(Reason::Undetected));
    assert_eq!(why(&ops, &refused(20_000, 20_010)), None);
    let ops = [ops[0], (20_000, Op::Enable(B)), ops[1]];
    assert_eq!(why(&ops, &refused(20_020, 20_030)), Some(Reason::Undetected), "it was asked for");
}

#[test]
fn a_backend_sends_by_its_own_address_once_it_was_removed_and_only_what_had_moved() {
    let none = Observations::default();
    let left = |ops: &[(u32, Op)], at: u32| may_be_left(&history(ops), &none, B, at * MS);
    let cut = [(1_000, Op::Cut(1)), (2_000, Op::Mend(1)), (5_000, Op::Remove(B))];
    assert!(!left(&cut, 4_000), "it is still there");
    assert!(left(&cut, 6_000));
    assert!(!left(&cut[2..], 6_000), "its removal has waited for its connections");
    let added = [cut[0], cut[1], cut[2], (7_000, Op::Add(B, 1))];
    assert!(left(&added, 6_000) && !left(&added, 8_000));
    assert!(left(&[(1_000, Op::ForceOut(B))], 2_000));
    assert!(!left(&[(1_000, Op::ForceDown(B))], 2_000), "it is disabled, and there");
    assert!(left(&[(1_000, Op::ForceDown(B)), (2_000, Op::Remove(B))], 3_000));
    let other = Backend { host: 2, ..B };
    assert!(!may_be_left(&history(&cut), &none, other, 6_000 * MS));
    let moved = Moved { node: 0, backend: B, span: Span::since(3_000 * MS) };
    let seen = Observations { moved: vec![moved], ..Observations::default() };
    assert!(may_be_left(&history(&cut[2..]), &seen, B, 6_000 * MS));
}

#[test]
fn drains_removals_and_weights_break_nothing() {
    let ops = [
        (1_000, Op::Drain(B, None)),
        (2_000, Op::Enable(B)),
        (3_000, Op::Weight(B, 7)),
        (4_000, Op::Disable(B)),
        (5_000, Op::Enable(B)),
        (6_000, Op::Remove(B)),
        (7_000, Op::Add(B, 1)),
        (8_000, Op::Freeze(1)),
        (9_000, Op::Thaw(1)),
    ];
    assert_eq!(why(&ops, &reset(0, 30_000)), None);
}

#[test]
fn force_breaks_what_lives_and_nothing_later() {
    for op in [Op::ForceDown(B), Op::ForceOut(B)] {
        let ops = [(5_000, op)];
        assert_eq!(why(&ops, &reset(1_000, 9_000)), Some(Reason::Forced));
        assert_eq!(why(&ops, &reset(6_000, 9_000)), None);
        let other = Life { service: 1, ..reset(1_000, 9_000) };
        assert_eq!(why(&ops, &other), None, "another service of the host");
    }
}

#[test]
fn a_node_that_was_away_may_move_flows_when_it_is_told() {
    let mut log = log(&[(5_000, Op::ForceDown(B))]);
    log.done[0].ended = Some(9_000 * MS);
    let life = reset(8_000, 9_500);
    let judge = |log: &Log| excuse(&History::of(log), &Observations::default(), &life);
    assert_eq!(judge(&log), Some(Reason::Forced));
    log.done[0].ended = None;
    assert_eq!(judge(&log), Some(Reason::Forced));
}

#[test]
fn a_drained_connection_may_break_at_the_deadline_and_not_before() {
    let ops = [(1_000, Op::Drain(B, Some(10_000 * MS)))];
    assert_eq!(why(&ops, &reset(500, 8_000)), None);
    assert_eq!(why(&ops, &reset(500, 12_000)), Some(Reason::Deadline));
    let ops = [ops[0], (5_000, Op::Enable(B))];
    assert_eq!(why(&ops, &reset(500, 12_000)), None, "it was enabled in time");
}

#[test]
fn a_cut_cable_breaks_only_what_a_node_has_moved() {
    let history = history(&[(5_000, Op::Cut(1)), (9_000, Op::Mend(1))]);
    let life = reset(1_000, 11_000);
    assert_eq!(excuse(&history, &Observations::default(), &life), None);
    let at = |from: u32| Moved {
        node: 0,
        backend: B,
        span: Span { from: from * MS, until: (from + 2_000) * MS },
    };
    let observations = |from| Observations { moved: vec![at(from)], ..Observations::default() };
    assert_eq!(excuse(&history, &observations(6_000), &life), Some(Reason::Moved));
    assert!(!unfounded(&history, &observations(6_000), &at(6_000)));
    // A node's word alone excuses nothing.
    let late = reset(21_000, 31_000);
    assert_eq!(excuse(&history, &observations(30_000), &late), None);
    assert!(unfounded(&history, &observations(30_000), &at(30_000)));
}

#[test]
fn the_flows_of_a_dead_nginx_stay() {
    let history = history(&[(5_000, Op::Kill(1)), (20_000, Op::Revive(1))]);
    let moved = Moved { node: 0, backend: B, span: Span::since(8_000 * MS) };
    assert!(unfounded(&history, &Observations::default(), &moved));
}

#[test]
fn a_node_that_comes_back_may_find_a_host_cut_off_that_was_not_when_it_left() {
    let cut = |from| history(&[(from, Op::Cut(1)), (from + 6_000, Op::Mend(1))]);
    let span = Span { from: 5_000 * MS, until: 14_000 * MS };
    let observations = Observations {
        moved: vec![Moved { node: 0, backend: B, span }],
        ..Observations::default()
    };
    let why = |cut: &History, life: &Life| excuse(cut, &observations, life);
    assert_eq!(why(&cut(7_000), &reset(1_000, 13_500)), Some(Reason::Moved));
    assert_eq!(why(&cut(7_000), &reset(1_000, 6_000)), None, "before it was cut off");
    assert_eq!(why(&cut(16_000), &reset(1_000, 18_000)), None, "the node had found it by then");
    assert_eq!(why(&history(&[]), &reset(1_000, 13_500)), None, "it was not cut off at all");
}

#[test]
fn a_cable_that_was_cut_for_too_long_may_cost_the_clients_patience() {
    let cut = |until| [(5_000, Op::Cut(1)), (until, Op::Mend(1))];
    let life = Life { end: Err(Failure::TimedOut), ..reset(1_000, 50_000) };
    assert_eq!(why(&cut(11_000), &life), None);
    assert_eq!(why(&cut(30_000), &life), Some(Reason::Patience));
    assert_eq!(why(&cut(30_000), &reset(1_000, 50_000)), None, "a reset is no lack of patience");
}

#[test]
fn a_syn_sent_again_to_a_backend_that_comes_back_may_be_reset() {
    let ops = [(5_000, Op::Cut(1)), (6_000, Op::Mend(1))];
    let new = |opened, ended| Life { end: Err(Failure::Reset), ..refused(opened, ended) };
    assert_eq!(why(&ops, &new(6_700, 7_720)), Some(Reason::Raced));
    let there = |at: u32| Life { connected: Some(at * MS), ..new(6_700, 7_720) };
    assert_eq!(why(&ops, &there(7_710)), Some(Reason::Raced));
    assert_eq!(why(&ops, &there(6_710)), None, "its first SYN was answered");
    let late = Life { ended: 9_000 * MS, ..there(7_710) };
    assert_eq!(why(&ops, &late), None, "it was there for long");
    assert_eq!(why(&ops, &new(4_500, 5_600)), None, "the cable is still cut");
    let frozen = [(5_000, Op::Freeze(1)), (6_000, Op::Thaw(1))];
    assert_eq!(why(&frozen, &new(6_700, 7_720)), None, "its kernel has answered all the time");
    assert_eq!(why(&ops, &new(6_700, 7_000)), None, "it was not sent again");
    assert_eq!(why(&ops, &new(12_000, 13_020)), None, "the backend is back for long");
    assert_eq!(why(&ops, &reset(6_700, 7_720)), None, "one that was answered is not new");
    assert_eq!(why(&ops, &refused(6_700, 7_720)), None, "nobody refuses it");
}

#[test]
fn while_nobody_is_there_new_connections_may_fail() {
    let all = (0..HOSTS).map(|host| (5_000, Op::Drain(Backend { service: 0, host }, None)));
    let mut ops: Vec<_> = all.collect();
    assert_eq!(why(&ops, &refused(6_000, 46_000)), Some(Reason::NoBackend));
    assert_eq!(why(&ops, &reset(6_000, 46_000)), None, "one that was answered is not new");
    ops.pop();
    assert_eq!(why(&ops, &refused(6_000, 46_000)), None);
}

#[test]
fn wrong_bytes_are_never_excused() {
    let life = Life { end: Err(Failure::Wrong("other bytes".into())), ..reset(1_000, 5_010) };
    assert_eq!(why(&[(5_000, Op::Kill(1))], &life), None);
}

/// A trouble of a node from the fifth second to the ninth, and a takeover by another one shortly after
/// its begin.
fn struck(op: Op, node: usize) -> (History, Observations) {
    let span = Span { from: 5_000 * MS, until: 9_000 * MS };
    let log = Log { troubles: vec![Trouble { op, span }], ..Log::default() };
    let observations =
        Observations { takeovers: vec![(node, 5_400 * MS)], ..Observations::default() };
    (History::of(&log), observations)
}

#[test]
fn a_flow_of_the_last_moment_before_a_death_may_break_and_no_older_one() {
    let (history, observations) = struck(Op::Slay(0), 1);
    assert_eq!(excuse(&history, &observations, &reset(5_000, 6_000)), Some(Reason::Untold));
    assert_eq!(excuse(&history, &observations, &reset(4_950, 6_000)), Some(Reason::Untold));
    assert_eq!(excuse(&history, &observations, &reset(4_000, 6_000)), None);
    assert_eq!(excuse(&history, &observations, &reset(5_390, 8_000)), None, "past the lease");
    let (history, observations) = struck(Op::Slay(1), 1);
    assert_eq!(
        excuse(&history, &observations, &reset(5_000, 6_000)),
        None,
        "the one that died came back"
    );
}

#[test]
fn a_connection_of_nat_over_ipv6_may_break_while_an_lbd_that_had_its_vip_hangs_and_no_other() {
    let nat_v6 = |ended| Life { service: 5, ..reset(1_000, ended) };
    let (history, observations) = struck(Op::Stall(0), 1);
    assert_eq!(excuse(&history, &observations, &nat_v6(8_000)), Some(Reason::Claimed));
    assert_eq!(excuse(&history, &observations, &nat_v6(4_000)), None, "before");
    assert_eq!(
        excuse(&history, &observations, &Life { service: 4, ..nat_v6(8_000) }),
        None,
        "IPv4"
    );
    assert_eq!(excuse(&history, &observations, &Life { service: 1, ..nat_v6(8_000) }), None, "dsr");
    let (history, observations) = struck(Op::Slay(0), 1);
    assert_eq!(excuse(&history, &observations, &nat_v6(8_000)), None, "dead");
}

#[test]
fn what_begins_while_both_are_active_may_break_and_nothing_older() {
    let (history, observations) = struck(Op::Part(true, true), 1);
    assert_eq!(excuse(&history, &observations, &reset(7_000, 8_000)), Some(Reason::Parted));
    assert_eq!(excuse(&history, &observations, &reset(4_000, 8_000)), None);
    assert_eq!(excuse(&history, &observations, &reset(11_000, 12_000)), None);
    let (mut history, observations) = struck(Op::Part(true, false), 1);
    history.heals.push(8_500 * MS);
    assert_eq!(
        excuse(&history, &observations, &reset(7_000, 8_000)),
        None,
        "each node sent its flows to the other"
    );
    let changed = |opened| excuse(&history, &observations, &reset(opened, opened + 1_000));
    assert_eq!(changed(5_390), Some(Reason::Parted), "clients go to the other node");
    assert_eq!(changed(8_480), Some(Reason::Parted), "and come back");
    assert_eq!(changed(10_000), None);
    assert_eq!(
        excuse(&history, &Observations::default(), &reset(8_480, 9_000)),
        None,
        "one was Active"
    );
    let (history, _) = struck(Op::Part(true, true), 1);
    assert_eq!(
        excuse(&history, &Observations::default(), &reset(7_000, 8_000)),
        None,
        "one was Active"
    );
}

#[test]
fn a_planned_handover_breaks_nothing() {
    for op in [Op::HandOver, Op::Stop(0)] {
        let (history, observations) = struck(op, 1);
        assert_eq!(excuse(&history, &observations, &reset(5_000, 6_000)), None, "{op}");
    }
}

#[test]
fn a_takeover_takes_a_fault_or_a_busy_machine() {
    let (history, mut observations) = struck(Op::Slay(0), 1);
    assert!(!uncalled(&history, &observations, 5_400 * MS));
    assert!(uncalled(&history, &observations, 30_000 * MS));
    observations.stalls.insert(29_500 * MS, 400 * MS);
    assert!(!uncalled(&history, &observations, 30_000 * MS));
    observations.stalls.insert(29_500 * MS, 40 * MS);
    assert!(uncalled(&history, &observations, 30_000 * MS));
}

#[test]
fn a_new_connection_goes_to_who_takes_new_flows() {
    let history = history(&[
        (5_000, Op::Drain(B, None)),
        (20_000, Op::Enable(B)),
        (30_000, Op::ForceDown(B)),
    ]);
    let mut observations = Observations::default();
    let answer = |observations: &Observations, opened| {
        may_answer(&history, observations, &reset(opened, opened + 100))
    };
    assert_eq!(answer(&observations, 1_000), Answer::Right);
    assert_eq!(answer(&observations, 5_100), Answer::Right, "just then");
    assert_eq!(answer(&observations, 10_000), Answer::Wrong);
    assert_eq!(answer(&observations, 25_000), Answer::Right);
    assert_eq!(answer(&observations, 35_000), Answer::Wrong);
    // Without a lease of pins, the base owner has to take it: one that has flows.
    observations.stalls.extend([(9_990 * MS, 40 * MS), (34_990 * MS, 40 * MS)]);
    assert_eq!(answer(&observations, 10_000), Answer::BaseOwner);
    assert_eq!(answer(&observations, 35_000), Answer::Wrong);
}

#[test]
fn a_backend_that_left_and_came_back_while_a_node_was_away_takes_new_flows() {
    let mut log = log(&[(5_000, Op::Drain(B, None)), (7_000, Op::Enable(B))]);
    log.done[0].ended = Some(9_000 * MS);
    log.done[1].ended = Some(9_010 * MS);
    let answer = |opened| {
        may_answer(&History::of(&log), &Observations::default(), &reset(opened, opened + 100))
    };
    for opened in [1_000, 8_000, 20_000] {
        assert_eq!(answer(opened), Answer::Right, "{opened}");
    }
}

#[test]
fn whatever_is_not_done_yet_there_is_a_judgement() {
    for seed in 0..20 {
        let mut random = crate::random::Random::new(seed);
        let mut log = Log::default();
        for step in crate::plan::Plan::new(seed).take(300) {
            let ended = (!random.one_in(4)).then(|| step.at + 10 * MS);
            log.done.push(Done { op: step.op, began: step.at, ended });
            if step.op.strikes_a_node() {
                let span = Span { from: step.at, until: ended.unwrap_or(Duration::MAX) };
                log.troubles.push(Trouble { op: step.op, span });
            }
        }
        let history = History::of(&log);
        let mut reasons = std::collections::BTreeSet::new();
        for at in (0..300_000).step_by(500) {
            for life in [reset(at, at + 900), refused(at, at + 1_200)] {
                reasons.insert(excuse(&history, &Observations::default(), &life));
                let _ = may_answer(&history, &Observations::default(), &life);
            }
        }
        assert!(reasons.len() > 2, "{reasons:?}");
    }
}

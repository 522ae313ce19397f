//! Whole stories.

use super::*;

fn conditions(bench: &Bench) -> Vec<Condition> {
    let changes = bench.actions.iter().filter_map(|action| match action {
        Action::Report(Some(change)) => Some(change.to),
        _ => None,
    });
    changes.collect()
}

#[test]
fn server_that_dies_and_comes_back_is_down_after_fall_and_up_after_rise() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    assert_eq!(bench.until_probe(), ms(1_999), "the interval");
    bench.answer(refused());
    assert_eq!(bench.until_probe(), ms(499), "the fast interval");
    bench.answer(refused());
    assert_eq!(bench.condition(), Condition::Up);
    let actions = bench.answer(refused());
    let [Action::Report(Some(change))] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(change.to, Condition::SoftDown);
    assert_eq!(change.cause, "3 failures in a row: connection refused");
    assert_eq!(bench.until_probe(), ms(2_999), "the interval of those that are down");
    bench.answer(Outcome::Up);
    assert_eq!(bench.until_probe(), ms(499), "the fast interval");
    bench.answer(Outcome::Up);
    assert_eq!(bench.condition(), Condition::Up);
    assert_eq!(bench.until_probe(), ms(1_999), "the interval");
}

#[test]
fn host_that_is_silent_for_all_of_fall_is_hard_down() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    for _ in 0..3 {
        bench.answer_after(ms(1_000), silent());
    }
    assert_eq!(conditions(&bench), [Condition::HardDown]);
    for outcome in [Outcome::Up, refused(), wrong(), silent(), Outcome::Up, Outcome::Up] {
        bench.answer(outcome);
    }
    assert_eq!(conditions(&bench), [Condition::HardDown, Condition::Up], "hard until it is up");
}

#[test]
fn flows_of_a_host_whose_address_resolves_move_only_if_clients_call_it_silent() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    (0..10).for_each(|_| drop(bench.answer_after(ms(1_000), resolves())));
    assert_eq!(conditions(&bench), [Condition::SoftDown]);
    bench.handle(suspected());
    (0..3).for_each(|_| drop(bench.answer_after(ms(1_000), resolves())));
    assert_eq!(conditions(&bench), [Condition::SoftDown, Condition::HardDown]);
    (0..2).for_each(|_| drop(bench.answer(Outcome::Up)));
    (0..10).for_each(|_| drop(bench.answer_after(ms(1_000), resolves())));
    assert_eq!(bench.condition(), Condition::SoftDown, "that needs new evidence");
}

#[test]
fn flows_stay_whatever_a_host_answers() {
    for answer in [refused(), wrong()] {
        let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
        bench.answer(Outcome::Up);
        for _ in 0..10 {
            bench.answer(silent());
            bench.answer(silent());
            bench.answer(answer.clone());
        }
        assert_eq!(conditions(&bench), [Condition::SoftDown], "{answer:?}");
    }
}

#[test]
fn backend_refuses_while_it_is_down_and_its_last_answer_was_a_refusal() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    let refuses = |bench: &mut Bench, outcome| {
        let actions = bench.answer(outcome);
        let seen = bench.machine.seen();
        (seen.condition, seen.refuses, actions.iter().any(|to| matches!(to, Action::Report(_))))
    };
    let (up, down) = (Condition::Up, Condition::SoftDown);
    assert_eq!(refuses(&mut bench, refused()), (up, false, false), "it is not down");
    assert_eq!(refuses(&mut bench, refused()), (up, false, false));
    assert_eq!(refuses(&mut bench, refused()), (down, true, true));
    for other in [wrong(), silent(), Outcome::Up] {
        assert_eq!(refuses(&mut bench, other), (down, false, true), "it is reported");
        assert_eq!(refuses(&mut bench, refused()), (down, true, true));
    }
    bench.answer(Outcome::Up);
    assert_eq!(refuses(&mut bench, Outcome::Up), (up, false, true));
}

#[test]
fn host_that_falls_silent_while_it_is_down_loses_its_flows_after_fall() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    (0..3).for_each(|_| drop(bench.answer(refused())));
    for probes in 1..3 {
        bench.answer_after(ms(1_000), silent());
        assert_eq!((bench.condition(), bench.machine.silent()), (Condition::SoftDown, probes));
        assert_eq!(bench.until_probe(), ms(0), "as soon as the fast interval lets it");
    }
    let actions = bench.answer_after(ms(1_000), silent());
    let [Action::Report(Some(change))] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(change.to, Condition::HardDown);
    assert_eq!(change.cause, "3 questions in a row without any answer: no answer");
}

#[test]
fn flows_stay_while_no_other_backend_answers_and_after_the_first_one_does() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    let (took, before) = (ms(1_000), bench.now);
    let unanswered = |bench: &mut Bench, others_answered| {
        bench.until_probe();
        bench.now += took;
        bench.handle(Event::Answered { outcome: silent(), took, others_answered });
    };
    (0..20).for_each(|_| unanswered(&mut bench, Some(before)));
    assert_eq!(conditions(&bench), [Condition::SoftDown]);
    // The network is mended while a probe is under way that was lost.
    let mended = bench.now + ms(500);
    unanswered(&mut bench, Some(mended));
    bench.answer(Outcome::Up);
    bench.answer(Outcome::Up);
    assert_eq!(conditions(&bench), [Condition::SoftDown, Condition::Up]);
}

#[test]
fn answers_of_others_before_and_after_an_outage_of_all_move_no_flows() {
    let check = Check { fall: NonZeroU8::new(2).unwrap(), ..check(Kind::Tcp) };
    let mut bench = Bench::new(check, Condition::Up);
    let took = ms(1_000);
    let unanswered = |bench: &mut Bench, others_answered: Option<Duration>| {
        bench.until_probe();
        let others_answered = others_answered.map(|after| bench.now + after);
        bench.now += took;
        bench.handle(Event::Answered { outcome: silent(), took, others_answered });
        others_answered
    };
    for _ in 0..3 {
        bench.answer(Outcome::Up);
        // Another one's last answer was still in flight; it is the last for the next probe as well.
        let last =
            unanswered(&mut bench, Some(ms(1))).map(|at| at.duration_since(bench.now - took));
        assert_eq!(last, Some(ms(1)));
        bench.until_probe();
        let stale = bench.now - took;
        bench.now += took;
        bench.handle(Event::Answered { outcome: silent(), took, others_answered: Some(stale) });
        assert_eq!(bench.condition(), Condition::SoftDown, "one answer proves that once");
        unanswered(&mut bench, None);
        unanswered(&mut bench, Some(ms(900)));
        assert_eq!(bench.condition(), Condition::SoftDown, "the others were mended sooner");
        bench.answer(Outcome::Up);
        bench.answer(Outcome::Up);
        assert_eq!(bench.condition(), Condition::Up);
    }
    assert!(!conditions(&bench).contains(&Condition::HardDown));
}

#[test]
fn flows_that_are_to_move_do_so_whenever_their_backend_is_down() {
    for answer in [refused(), wrong(), silent()] {
        let mut bench = Bench::moving(check(Kind::Tcp));
        bench.answer(Outcome::Up);
        (0..3).for_each(|_| drop(bench.answer(answer.clone())));
        assert_eq!(conditions(&bench), [Condition::HardDown], "{answer:?}");
    }
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(wrong());
    let on_down = OnDown::Move;
    let check = Box::new(check(Kind::Tcp));
    bench.handle(Event::Reconfigured { check, half_life: HALF_LIFE, on_down });
    assert_eq!(conditions(&bench), [Condition::SoftDown, Condition::HardDown], "by a reload");
}

#[test]
fn backend_that_starts_down_needs_rise() {
    let check = Check { start: Start::Down, ..check(Kind::Tcp) };
    let mut bench = Bench::new(check.clone(), Condition::SoftDown);
    bench.answer(Outcome::Up);
    assert_eq!(bench.condition(), Condition::SoftDown);
    bench.answer(Outcome::Up);
    assert_eq!(bench.condition(), Condition::Up);
}

#[test]
fn adopted_backend_that_was_up_takes_fall_failures_to_go_down() {
    let mut bench = Bench::adopted(check(Kind::Tcp), Condition::Up);
    assert!(!bench.machine.is_assumed());
    bench.answer(silent());
    bench.answer(refused());
    assert_eq!(bench.condition(), Condition::Up, "one lost packet after a restart ejects nobody");
    bench.answer(silent());
    assert_eq!(conditions(&bench), [Condition::SoftDown]);
}

#[test]
fn adopted_backend_that_was_down_takes_rise_good_answers_to_come_up() {
    for initial in [Condition::SoftDown, Condition::HardDown] {
        let mut bench = Bench::adopted(check(Kind::Tcp), initial);
        bench.answer(Outcome::Up);
        assert_eq!(bench.condition(), initial);
        bench.answer(Outcome::Up);
        assert_eq!(bench.condition(), Condition::Up, "{initial:?}");
    }
}

#[test]
fn dead_host_is_found_by_suspicion_in_a_fraction_of_the_interval() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    bench.now += ms(700);
    let suspected_at = bench.now;
    assert_eq!(bench.handle(suspected())[0], Action::Probe { timeout: ms(200) });
    let actions = bench.answer_after(ms(200), silent());
    assert_eq!(actions[0], Action::Probe { timeout: ms(200) }, "at once");
    assert!(bench.machine.seen().suspect);
    bench.answer_after(ms(200), silent());
    assert_eq!(bench.condition(), Condition::SoftDown);
    assert!(!bench.machine.seen().suspect);
    assert_eq!(bench.now - suspected_at, ms(400));
    // Its flows move when three probes had their whole time.
    (0..2).for_each(|_| drop(bench.answer_after(ms(1_000), silent())));
    assert_eq!(bench.condition(), Condition::SoftDown);
    bench.answer_after(ms(1_000), silent());
    assert_eq!(bench.condition(), Condition::HardDown);
    assert!(bench.now - suspected_at < ms(4_000), "{:?}", bench.now - suspected_at);
}

#[test]
fn refusal_after_a_suspicion_decides_alone() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    bench.handle(suspected());
    bench.answer(refused());
    assert_eq!(conditions(&bench), [Condition::SoftDown]);
}

#[test]
fn suspicion_never_takes_more_answers_than_fall() {
    let once = Check { fall: NonZeroU8::MIN, ..check(Kind::Tcp) };
    let mut bench = Bench::new(once, Condition::Up);
    bench.answer(Outcome::Up);
    bench.handle(suspected());
    bench.answer(silent());
    assert_eq!(conditions(&bench), [Condition::SoftDown]);
}

#[test]
fn lost_packet_in_a_port_scan_ejects_nobody() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    bench.actions.clear();
    for _ in 0..20 {
        bench.handle(suspected());
        bench.answer_after(ms(200), silent());
        bench.handle(suspected());
        bench.answer(Outcome::Up);
        assert_eq!((bench.machine.seen(), bench.machine.against()), (Seen::default(), 0));
        bench.now += Duration::from_secs(1);
    }
    assert!(conditions(&bench).is_empty());
}

#[test]
fn slow_backend_has_longer_to_clear_itself() {
    for (latency, patience) in [(1, 200), (30, 600), (400, 1_000)] {
        let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
        bench.answer_after(ms(latency), Outcome::Up);
        assert_eq!(bench.handle(suspected())[0], Action::Probe { timeout: ms(patience) });
    }
    let quick = Check { timeout: ms(50), ..check(Kind::Tcp) };
    let mut bench = Bench::new(quick, Condition::Up);
    bench.answer(Outcome::Up);
    assert_eq!(bench.handle(suspected())[0], Action::Probe { timeout: ms(50) });
}

#[test]
fn lossy_clients_cost_two_questions_a_second_and_eject_nobody() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    let end = bench.now + Duration::from_secs(60);
    bench.actions.clear();
    while bench.now < end {
        bench.now += ms(10);
        bench.handle(suspected());
        bench.handle(Event::Due);
        if bench.machine.pending.is_some() {
            bench.answer(Outcome::Up);
        }
    }
    assert!(conditions(&bench).is_empty());
    let probes =
        bench.actions.iter().filter(|action| matches!(action, Action::Probe { .. })).count();
    assert!((100..=120).contains(&probes), "{probes}");
}

#[test]
fn unchecked_backend_is_suspect_for_a_second_after_the_last_suspicion() {
    let mut bench = Bench::new(check(Kind::None), Condition::Up);
    assert_eq!(bench.machine.deadline(), None);
    bench.handle(suspected());
    bench.now += ms(900);
    bench.handle(suspected());
    bench.now += ms(999);
    assert!(bench.handle(Event::Due).is_empty(), "it was renewed");
    assert!(bench.machine.seen().suspect);
    bench.now += ms(1);
    assert_eq!(bench.handle(Event::Due), [Action::Report(None)]);
    assert!(!bench.machine.seen().suspect);
    assert_eq!(bench.machine.deadline(), None);
}

#[test]
fn what_cannot_be_asked_changes_nothing_and_is_asked_less_and_less() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    bench.answer(silent());
    bench.answer(silent());
    let mut waits = Vec::new();
    for _ in 0..5 {
        bench.answer(unknown());
        waits.push(bench.until_probe());
    }
    assert_eq!(waits, [ms(500), ms(1_000), ms(2_000), ms(2_000), ms(2_000)]);
    assert_eq!((bench.condition(), bench.machine.against()), (Condition::Up, 2));
    bench.answer(silent());
    assert_eq!(bench.condition(), Condition::HardDown, "and the count goes on");
}

#[test]
fn silence_while_the_process_slept_counts_only_if_it_is_repeated() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.until_probe();
    bench.now += Duration::from_secs(3_600);
    bench.handle(Event::Slept);
    assert!(bench.handle(Event::Due).is_empty(), "the answer may be there");
    bench.handle(Event::Answered { outcome: silent(), took: ms(1_000), others_answered: None });
    assert_eq!(bench.condition(), Condition::Up);
    assert_eq!(bench.until_probe(), ms(0), "it is asked again at once");
    // Else a process that never gets to run in time would find no backend dead.
    bench.now += ms(1_000);
    bench.handle(Event::Slept);
    bench.handle(Event::Answered { outcome: silent(), took: ms(1_000), others_answered: None });
    assert_eq!(bench.condition(), Condition::SoftDown);
}

#[test]
fn refusal_while_the_process_slept_counts() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.until_probe();
    bench.now += Duration::from_secs(10);
    bench.handle(Event::Slept);
    bench.handle(Event::Answered { outcome: refused(), took: ms(1), others_answered: None });
    assert_eq!(bench.condition(), Condition::SoftDown);
}

#[test]
fn question_that_never_ends_is_a_failure() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.until_probe();
    bench.now = bench.machine.deadline().expect("it is overdue one day");
    let actions = bench.handle(Event::Due);
    assert_eq!(actions[0], Action::Abandon);
    assert_eq!(conditions(&bench), [Condition::SoftDown]);
    bench.until_probe();
}

#[test]
fn flapping_backend_is_held_when_it_is_up_and_let_go_in_time() {
    let once = Check { rise: NonZeroU8::MIN, fall: NonZeroU8::MIN, ..check(Kind::Tcp) };
    let mut bench = Bench::new(once, Condition::Up);
    for _ in 0..3 {
        bench.answer(refused());
        bench.answer(Outcome::Up);
        assert!(!bench.machine.seen().held);
    }
    bench.answer(refused());
    assert_eq!(bench.machine.release(), None, "who is down is not held");
    bench.answer(Outcome::Up);
    assert_eq!(bench.machine.seen(), Seen { held: true, ..Seen::default() });
    let release = bench.machine.release().expect("it is held");
    bench.actions.clear();
    while bench.machine.seen().held {
        bench.now = bench.machine.deadline().expect("it is let go").max(bench.now);
        bench.handle(Event::Due);
        if bench.machine.pending.is_some() {
            bench.answer(Outcome::Up);
        }
    }
    assert_eq!(bench.actions.iter().filter(|a| **a == Action::Report(None)).count(), 1);
    assert!(bench.now >= release, "let go early");
    assert!(bench.now - release < ms(10), "let go {:?} late", bench.now - release);
}

#[test]
fn other_timing_keeps_what_was_counted() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    for outcome in [Outcome::Up, silent(), silent()] {
        bench.answer(outcome);
    }
    let faster = Check { fast_interval: ms(100), interval: ms(400), ..check(Kind::Tcp) };
    let (half_life, on_down) = (HALF_LIFE, OnDown::Keep);
    bench.handle(Event::Reconfigured { check: Box::new(faster), half_life, on_down });
    assert_eq!(bench.machine.against(), 2);
    assert_eq!(bench.until_probe(), ms(100));
    bench.answer(silent());
    assert_eq!(bench.condition(), Condition::HardDown);
}

#[test]
fn wrong_question_takes_fall_answers_to_bring_a_backend_down() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    let check = check(Kind::Http(Default::default()));
    let (half_life, on_down) = (HALF_LIFE, OnDown::Keep);
    bench.handle(Event::Reconfigured { check: Box::new(check), half_life, on_down });
    assert!(bench.until_probe() < ms(500), "it is asked soon");
    bench.answer(wrong());
    bench.answer(wrong());
    assert_eq!(bench.condition(), Condition::Up);
    bench.answer(wrong());
    assert_eq!(bench.condition(), Condition::SoftDown);
}

#[test]
fn intervals_vary_by_the_jitter_and_otherwise_in_each_machine() {
    let jittery = Check { jitter: 10, ..check(Kind::Tcp) };
    let intervals = |seed| {
        let now = Instant::now();
        let mut bench = Bench::new(jittery.clone(), Condition::Up);
        let (on_down, initial) = (OnDown::Keep, Condition::Up);
        bench.machine =
            Machine::new(jittery.clone(), HALF_LIFE, on_down, initial, false, now, seed);
        bench.now = now;
        let interval = |_| {
            bench.answer_after(Duration::ZERO, Outcome::Up);
            bench.until_probe()
        };
        (0..1_000).map(interval).collect::<Vec<_>>()
    };
    let (one, same, other) = (intervals(1), intervals(1), intervals(2));
    assert_eq!(one, same);
    assert_ne!(one, other);
    let (least, most) = (one.iter().min().expect("many"), one.iter().max().expect("many"));
    assert!((ms(1_800)..ms(1_820)).contains(least), "{least:?}");
    assert!((ms(2_180)..=ms(2_200)).contains(most), "{most:?}");
    let mean = one.iter().sum::<Duration>() / 1_000;
    assert!((ms(1_980)..ms(2_020)).contains(&mean), "{mean:?}");
}

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
    assert_eq!(bench.until_asked(), ms(1_999), "the interval");
    bench.answer(refused());
    assert_eq!(bench.until_asked(), ms(499), "the fast interval");
    bench.answer(refused());
    assert_eq!(bench.condition(), Condition::Up);
    let actions = bench.answer(refused());
    let [Action::Report(Some(change))] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(change.to, Condition::HardDown);
    assert_eq!(change.cause, "3 failures in a row: connection refused");
    assert_eq!(bench.until_asked(), ms(2_999), "the interval of those that are down");
    bench.answer(Outcome::Up);
    assert_eq!(bench.until_asked(), ms(499), "the fast interval");
    bench.answer(Outcome::Up);
    assert_eq!(bench.condition(), Condition::Up);
    assert_eq!(bench.until_asked(), ms(1_999), "the interval");
}

#[test]
fn hard_down_stays_hard_until_it_is_up() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    for outcome in [silent(), refused(), silent(), Outcome::Up, silent(), Outcome::Up, Outcome::Up]
    {
        bench.answer(outcome);
    }
    assert_eq!(conditions(&bench), [Condition::SoftDown, Condition::HardDown, Condition::Up]);
}

#[test]
fn backend_that_starts_down_needs_rise() {
    let check = Check { start: Start::Down, ..check(Kind::Tcp) };
    let mut bench = Bench::new(check.clone(), Condition::SoftDown);
    bench.answer(Outcome::Up);
    assert_eq!(bench.condition(), Condition::SoftDown);
    bench.answer(Outcome::Up);
    assert_eq!(bench.condition(), Condition::Up);
    // What an earlier process found out is not what `start` says, and one answer confirms it.
    for initial in [Condition::Up, Condition::HardDown] {
        let mut bench = Bench::new(check.clone(), initial);
        bench.answer(Outcome::Up);
        assert_eq!(bench.condition(), Condition::Up, "{initial:?}");
    }
}

#[test]
fn adopted_backend_that_was_down_is_up_at_its_first_good_answer() {
    for initial in [Condition::SoftDown, Condition::HardDown] {
        let mut bench = Bench::new(check(Kind::Tcp), initial);
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
    assert_eq!(bench.tell(suspected())[0], Action::Ask { timeout: ms(200) });
    bench.answer_after(ms(200), silent());
    assert_eq!(bench.condition(), Condition::SoftDown);
    assert!(!bench.machine.seen().suspect);
    assert_eq!(bench.now - suspected_at, ms(200));
}

#[test]
fn slow_backend_has_longer_to_clear_itself() {
    for (latency, patience) in [(1, 200), (30, 600), (400, 1_000)] {
        let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
        bench.answer_after(ms(latency), Outcome::Up);
        assert_eq!(bench.tell(suspected())[0], Action::Ask { timeout: ms(patience) });
    }
    let quick = Check { timeout: ms(50), ..check(Kind::Tcp) };
    let mut bench = Bench::new(quick, Condition::Up);
    bench.answer(Outcome::Up);
    assert_eq!(bench.tell(suspected())[0], Action::Ask { timeout: ms(50) });
}

#[test]
fn lossy_clients_cost_two_questions_a_second_and_eject_nobody() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    let end = bench.now + Duration::from_secs(60);
    bench.actions.clear();
    while bench.now < end {
        bench.now += ms(10);
        bench.tell(suspected());
        bench.tell(Event::Due);
        if bench.machine.is_asking() {
            bench.answer(Outcome::Up);
        }
    }
    assert!(conditions(&bench).is_empty());
    let asked = bench.actions.iter().filter(|action| matches!(action, Action::Ask { .. })).count();
    assert!((100..=120).contains(&asked), "{asked}");
}

#[test]
fn unchecked_backend_is_suspect_for_a_second_after_the_last_suspicion() {
    let mut bench = Bench::new(check(Kind::None), Condition::Up);
    assert_eq!(bench.machine.deadline(), None);
    bench.tell(suspected());
    bench.now += ms(900);
    bench.tell(suspected());
    bench.now += ms(999);
    assert!(bench.tell(Event::Due).is_empty(), "it was renewed");
    assert!(bench.machine.seen().suspect);
    bench.now += ms(1);
    assert_eq!(bench.tell(Event::Due), [Action::Report(None)]);
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
        waits.push(bench.until_asked());
    }
    assert_eq!(waits, [ms(500), ms(1_000), ms(2_000), ms(2_000), ms(2_000)]);
    assert_eq!((bench.condition(), bench.machine.against()), (Condition::Up, 2));
    bench.answer(silent());
    assert_eq!(bench.condition(), Condition::SoftDown, "and the count goes on");
}

#[test]
fn silence_while_the_process_slept_counts_only_if_it_is_repeated() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.until_asked();
    bench.now += Duration::from_secs(3_600);
    bench.tell(Event::Slept);
    assert!(bench.tell(Event::Due).is_empty(), "the answer may be there");
    bench.tell(Event::Answered { outcome: silent(), took: ms(1_000) });
    assert_eq!(bench.condition(), Condition::Up);
    assert_eq!(bench.until_asked(), ms(0), "it is asked again at once");
    // Else a process that never gets to run in time would find nobody dead.
    bench.now += ms(1_000);
    bench.tell(Event::Slept);
    bench.tell(Event::Answered { outcome: silent(), took: ms(1_000) });
    assert_eq!(bench.condition(), Condition::SoftDown);
}

#[test]
fn refusal_while_the_process_slept_counts() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.until_asked();
    bench.now += Duration::from_secs(10);
    bench.tell(Event::Slept);
    bench.tell(Event::Answered { outcome: refused(), took: ms(1) });
    assert_eq!(bench.condition(), Condition::HardDown);
}

#[test]
fn question_that_never_ends_is_a_failure() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.until_asked();
    bench.now = bench.machine.deadline().expect("it is overdue one day");
    let actions = bench.tell(Event::Due);
    assert_eq!(actions[0], Action::Abandon);
    assert_eq!(conditions(&bench), [Condition::SoftDown]);
    bench.until_asked();
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
        bench.tell(Event::Due);
        if bench.machine.is_asking() {
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
    let half_life = HALF_LIFE;
    bench.tell(Event::Reconfigured { check: Box::new(faster), half_life });
    assert_eq!(bench.machine.against(), 2);
    assert_eq!(bench.until_asked(), ms(100));
    bench.answer(silent());
    assert_eq!(bench.condition(), Condition::SoftDown);
}

#[test]
fn wrong_question_takes_fall_answers_to_bring_a_backend_down() {
    let mut bench = Bench::new(check(Kind::Tcp), Condition::Up);
    bench.answer(Outcome::Up);
    let check = check(Kind::Http(Default::default()));
    bench.tell(Event::Reconfigured { check: Box::new(check), half_life: HALF_LIFE });
    assert!(bench.until_asked() < ms(500), "it is asked soon");
    bench.answer(silent());
    bench.answer(silent());
    assert_eq!(bench.condition(), Condition::Up);
    bench.answer(silent());
    assert_eq!(bench.condition(), Condition::SoftDown);
}

#[test]
fn intervals_vary_by_the_jitter_and_otherwise_in_each_machine() {
    let jittery = Check { jitter: 10, ..check(Kind::Tcp) };
    let intervals = |seed| {
        let now = Instant::now();
        let mut bench = Bench::new(jittery.clone(), Condition::Up);
        bench.machine = Machine::new(jittery.clone(), HALF_LIFE, Condition::Up, now, seed);
        bench.now = now;
        let ask = |_| {
            bench.answer_after(Duration::ZERO, Outcome::Up);
            bench.until_asked()
        };
        (0..1_000).map(ask).collect::<Vec<_>>()
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

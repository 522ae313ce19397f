//! Every state and every event.

use std::collections::BTreeSet;

use super::*;

/// Names of the states; each but the last two waits for an answer.
const STATES: [&str; 11] = [
    "up",
    "failing",
    "soft",
    "mute",
    "rising",
    "hard",
    "assumed",
    "suspect",
    "silent",
    "unchecked",
    "doubted",
];

fn state(name: &str) -> Bench {
    let checked = |initial| Bench::new(check(Kind::Tcp), initial);
    let mut bench = checked(Condition::Up);
    let answers: &[Outcome] = match name {
        "up" | "suspect" | "silent" => &[Outcome::Up],
        "failing" => &[Outcome::Up, silent()],
        "soft" => &[refused()],
        "mute" => &[refused(), silent(), silent()],
        "rising" => &[refused(), Outcome::Up],
        "hard" => &[refused(), silent(), silent(), silent()],
        _ => &[],
    };
    for answer in answers {
        bench.answer(answer.clone());
    }
    match name {
        "suspect" => {
            bench.handle(suspected());
        }
        "silent" => {
            bench.handle(suspected());
            bench.answer(silent());
        }
        "unchecked" => bench = Bench::new(check(Kind::None), Condition::Up),
        "doubted" => {
            bench = Bench::new(check(Kind::None), Condition::Up);
            bench.handle(suspected());
        }
        _ => {
            bench.until_probe();
        }
    }
    bench.now += ms(100);
    bench
}

fn event(name: &str, now: Instant) -> Event {
    let (took, others_answered) = (ms(100), Some(now));
    let answered = |outcome| Event::Answered { outcome, took, others_answered };
    let configured = |kind| Event::Reconfigured {
        check: Box::new(check(kind)),
        half_life: HALF_LIFE,
        on_down: OnDown::Keep,
    };
    match name {
        "good" => answered(Outcome::Up),
        "silent" => answered(silent()),
        "refused" => answered(refused()),
        "unknown" => answered(unknown()),
        "suspected" => suspected(),
        "due" => Event::Due,
        "interrupted" => Event::Interrupted,
        "slept" => Event::Slept,
        "off" => configured(Kind::None),
        "other" => configured(Kind::Dns(Default::default())),
        _ => unreachable!("no event {name}"),
    }
}

/// What the machine has become and what it wants, in words.
fn words(bench: &Bench, actions: &[Action]) -> String {
    let machine = &bench.machine;
    let mut words = vec![format!("{:?}", machine.seen().condition)];
    if machine.against() > 0 {
        words.push(format!("-{}", machine.against()));
    }
    if machine.is_assumed() {
        words.push("?".into());
    }
    if machine.seen().suspect {
        words.push("suspect".into());
    }
    let actions = actions.iter().map(|action| match action {
        Action::Probe { timeout } => format!("ask {}", timeout.as_millis()),
        Action::Abandon => "abandon".into(),
        Action::Report(None) => "report".into(),
        Action::Report(Some(change)) => format!("{:?}: {}", change.to, change.cause),
    });
    let actions: Vec<_> = actions.collect();
    let next = machine.deadline().map_or_else(
        || "never".into(),
        |at| at.saturating_duration_since(bench.now).as_millis().to_string(),
    );
    let next = if machine.pending.is_some() { "asking".into() } else { next };
    // When within the fast interval another probe is first sent is up to chance.
    let is_exact = ["0", "never", "asking"].contains(&next.as_str());
    let was_abandoned = actions.first().is_some_and(|action| action == "abandon");
    let next = if was_abandoned && !is_exact { "soon".into() } else { next };
    format!("{}; {}; {next}", words.join(" "), actions.join(", "))
}

#[test]
fn every_state_takes_every_event_as_the_table_says() {
    let table = [
        ("up", "good", "Up; ; 1900"),
        ("up", "silent", "Up -1; ; 400"),
        ("up", "refused", "Up -1; ; 400"),
        ("up", "unknown", "Up; ; 500"),
        ("up", "suspected", "Up suspect; ask 200, report; asking"),
        ("up", "due", "Up; ; asking"),
        ("up", "interrupted", "Up; abandon; 0"),
        ("up", "slept", "Up; ; asking"),
        ("up", "off", "Up ?; abandon; never"),
        ("up", "other", "Up; abandon; soon"),
        ("failing", "good", "Up; ; 1900"),
        ("failing", "silent", "Up -2; ; 400"),
        ("failing", "refused", "Up -2; ; 400"),
        ("failing", "unknown", "Up -1; ; 500"),
        ("failing", "suspected", "Up -1 suspect; ask 200, report; asking"),
        ("failing", "due", "Up -1; ; asking"),
        ("failing", "interrupted", "Up -1; abandon; 0"),
        ("failing", "slept", "Up -1; ; asking"),
        ("failing", "off", "Up ?; abandon; never"),
        ("failing", "other", "Up; abandon; soon"),
        ("soft", "good", "SoftDown -1; report; 400"),
        ("soft", "silent", "SoftDown; report; 400"),
        ("soft", "refused", "SoftDown; ; 2900"),
        ("soft", "unknown", "SoftDown; ; 500"),
        ("soft", "suspected", "SoftDown; ; asking"),
        ("soft", "due", "SoftDown; ; asking"),
        ("soft", "interrupted", "SoftDown; abandon; 0"),
        ("soft", "slept", "SoftDown; ; asking"),
        ("soft", "off", "Up ?; abandon, Up: it is not checked any more; never"),
        ("soft", "other", "SoftDown; abandon, report; soon"),
        ("mute", "good", "SoftDown -1; report; 400"),
        (
            "mute",
            "silent",
            "HardDown; HardDown: 3 questions in a row without any answer: no answer; 2900",
        ),
        ("mute", "refused", "SoftDown; report; 2900"),
        ("mute", "unknown", "SoftDown; ; 500"),
        ("mute", "suspected", "SoftDown; ; asking"),
        ("mute", "due", "SoftDown; ; asking"),
        ("mute", "interrupted", "SoftDown; abandon; 0"),
        ("mute", "slept", "SoftDown; ; asking"),
        ("mute", "off", "Up ?; abandon, Up: it is not checked any more; never"),
        ("mute", "other", "SoftDown; abandon, report; soon"),
        ("rising", "good", "Up; Up: 2 good answers in a row; 1900"),
        ("rising", "silent", "SoftDown; report; 400"),
        ("rising", "refused", "SoftDown; report; 2900"),
        ("rising", "unknown", "SoftDown -1; ; 500"),
        ("rising", "suspected", "SoftDown -1; ; asking"),
        ("rising", "due", "SoftDown -1; ; asking"),
        ("rising", "interrupted", "SoftDown -1; abandon; 0"),
        ("rising", "slept", "SoftDown -1; ; asking"),
        ("rising", "off", "Up ?; abandon, Up: it is not checked any more; never"),
        ("rising", "other", "SoftDown; abandon; soon"),
        ("hard", "good", "HardDown -1; report; 400"),
        ("hard", "silent", "HardDown; ; 2900"),
        ("hard", "refused", "HardDown; report; 2900"),
        ("hard", "unknown", "HardDown; ; 500"),
        ("hard", "suspected", "HardDown; ; asking"),
        ("hard", "due", "HardDown; ; asking"),
        ("hard", "interrupted", "HardDown; abandon; 0"),
        ("hard", "slept", "HardDown; ; asking"),
        ("hard", "off", "Up ?; abandon, Up: it is not checked any more; never"),
        ("hard", "other", "HardDown; abandon, report; soon"),
        ("assumed", "good", "Up; ; 1900"),
        ("assumed", "silent", "SoftDown; SoftDown: no answer; 400"),
        ("assumed", "refused", "SoftDown; SoftDown: connection refused; 2900"),
        ("assumed", "unknown", "Up ?; ; 500"),
        ("assumed", "suspected", "Up ? suspect; ask 1000, report; asking"),
        ("assumed", "due", "Up ?; ; asking"),
        ("assumed", "interrupted", "Up ?; abandon; 0"),
        ("assumed", "slept", "Up ?; ; asking"),
        ("assumed", "off", "Up ?; abandon; never"),
        ("assumed", "other", "Up ?; abandon; soon"),
        ("suspect", "good", "Up; report; 1900"),
        ("suspect", "silent", "Up -1 suspect; ask 200, report; asking"),
        (
            "suspect",
            "refused",
            "SoftDown; SoftDown: connection refused; asked because clients repeat their SYNs; 2900",
        ),
        ("suspect", "unknown", "Up suspect; ; 500"),
        ("suspect", "suspected", "Up suspect; ; asking"),
        ("suspect", "due", "Up suspect; ; asking"),
        ("suspect", "interrupted", "Up suspect; abandon; 0"),
        ("suspect", "slept", "Up suspect; ; asking"),
        ("suspect", "off", "Up ?; abandon, report; never"),
        ("suspect", "other", "Up suspect; abandon; 0"),
        ("silent", "good", "Up; report; 1900"),
        (
            "silent",
            "silent",
            "SoftDown; SoftDown: 2 failures in a row: no answer; \
             asked because clients repeat their SYNs; 400",
        ),
        (
            "silent",
            "refused",
            "SoftDown; SoftDown: 2 failures in a row: connection refused; \
             asked because clients repeat their SYNs; 2900",
        ),
        ("silent", "unknown", "Up -1 suspect; ; 500"),
        ("silent", "suspected", "Up -1 suspect; ; asking"),
        ("silent", "due", "Up -1 suspect; ; asking"),
        ("silent", "interrupted", "Up -1 suspect; abandon; 0"),
        ("silent", "slept", "Up -1 suspect; ; asking"),
        ("silent", "off", "Up ?; abandon, report; never"),
        ("silent", "other", "Up suspect; abandon, report; 0"),
        ("unchecked", "good", "Up ?; ; never"),
        ("unchecked", "silent", "Up ?; ; never"),
        ("unchecked", "refused", "Up ?; ; never"),
        ("unchecked", "unknown", "Up ?; ; never"),
        ("unchecked", "suspected", "Up ? suspect; report; 1000"),
        ("unchecked", "due", "Up ?; ; never"),
        ("unchecked", "interrupted", "Up ?; ; never"),
        ("unchecked", "slept", "Up ?; ; never"),
        ("unchecked", "off", "Up ?; ; never"),
        ("unchecked", "other", "Up ?; ; 0..500"),
        ("doubted", "good", "Up ? suspect; ; 900"),
        ("doubted", "silent", "Up ? suspect; ; 900"),
        ("doubted", "refused", "Up ? suspect; ; 900"),
        ("doubted", "unknown", "Up ? suspect; ; 900"),
        ("doubted", "suspected", "Up ? suspect; ; 1000"),
        ("doubted", "due", "Up ? suspect; ; 900"),
        ("doubted", "interrupted", "Up ? suspect; ; 900"),
        ("doubted", "slept", "Up ? suspect; ; 900"),
        ("doubted", "off", "Up ? suspect; ; 900"),
        ("doubted", "other", "Up ? suspect; report; 0"),
    ];
    let pairs: BTreeSet<_> = table.iter().map(|(state, event, _)| (*state, *event)).collect();
    assert_eq!(pairs.len(), STATES.len() * 10, "each pair once");
    let wrong: Vec<_> = table
        .iter()
        .filter_map(|&(name, happens, expected)| {
            let mut bench = state(name);
            let actions = bench.handle(event(happens, bench.now));
            let is = words(&bench, &actions);
            let is_near = expected.strip_suffix("0..500").is_some_and(|expected| {
                let left = is.strip_prefix(expected).and_then(|ms| ms.parse::<u32>().ok());
                left.is_some_and(|ms| ms < 500)
            });
            (is != expected && !is_near).then(|| format!("{name}, {happens}: {is}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

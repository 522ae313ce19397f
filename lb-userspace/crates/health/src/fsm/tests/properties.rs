//! What holds for any history.

use proptest::prelude::*;

use super::*;

/// What may happen next.
#[derive(Clone, Debug)]
enum Happens {
    /// Time passes, and a due event is handled.
    Wait(u64),
    Answer(Outcome),
    Suspected,
    Interrupted,
    Slept,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => (0..4_000u64).prop_map(Happens::Wait),
        3 => Just(Happens::Answer(Outcome::Up)),
        2 => Just(Happens::Answer(silent())),
        1 => Just(Happens::Answer(resolves())),
        1 => Just(Happens::Answer(refused())),
        1 => Just(Happens::Answer(wrong())),
        1 => Just(Happens::Answer(unknown())),
        1 => Just(Happens::Suspected),
        1 => Just(Happens::Interrupted),
        1 => Just(Happens::Slept),
    ]
}

fn checks() -> impl Strategy<Value = Check> {
    (1..4u8, 1..5u8, any::<bool>(), 0..30u8).prop_map(|(rise, fall, is_down, jitter)| Check {
        rise: NonZeroU8::new(rise).expect("not zero"),
        fall: NonZeroU8::new(fall).expect("not zero"),
        start: if is_down { Start::Down } else { Start::Up },
        jitter,
        ..check(Kind::Tcp)
    })
}

/// An answer as the naive reader of the history sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Read {
    is_good: bool,
    is_refusal: bool,
    /// It is silence: of a probe that had its whole time, or of one after a suspicion.
    silence: Option<bool>,
}

/// What was thought of the backend before an answer.
#[derive(Clone, Copy, Debug)]
struct Before {
    is_suspect: bool,
    is_assumed: bool,
}

/// The naive reader: the answers that count, oldest first.
#[derive(Default)]
struct History {
    answers: Vec<Read>,
    forgiven: bool,
    /// Whether clients have called it silent since the last good answer.
    blamed: bool,
}

impl History {
    fn streak(&self, is_good: bool) -> usize {
        self.answers.iter().rev().take_while(|read| read.is_good == is_good).count()
    }

    /// The probes in a row that had their whole time and no answer of any kind.
    fn silence(&self) -> usize {
        let last = self.answers.iter().rev().map_while(|read| read.silence);
        last.filter(|had_its_time| *had_its_time).count()
    }

    /// Whether the last answers explain the change.
    fn explains(&self, from: Condition, to: Condition, check: &Check, before: Before) -> bool {
        let Some(last) = self.answers.last() else { return false };
        let Before { is_suspect, is_assumed } = before;
        match (from, to) {
            (Condition::Up, Condition::Up) => false,
            (Condition::Up, down) => {
                let streak = self.streak(false);
                let enough = is_assumed
                    || (is_suspect && (last.is_refusal || streak >= 2))
                    || streak >= usize::from(check.fall.get());
                let is_silent = self.silence() >= usize::from(check.fall.get());
                !last.is_good && enough && is_silent == (down == Condition::HardDown)
            }
            (_, Condition::Up) => {
                let is_first = self.answers.len() == 1 && is_assumed;
                is_first || self.streak(true) >= usize::from(check.rise.get())
            }
            (Condition::SoftDown, Condition::HardDown) => {
                self.silence() >= usize::from(check.fall.get())
            }
            _ => false,
        }
    }
}

proptest! {
    #[test]
    fn every_change_is_explained_by_the_last_answers(
        check in checks(),
        is_adopted in any::<bool>(),
        initial in prop_oneof![
            Just(Condition::Up), Just(Condition::SoftDown), Just(Condition::HardDown)
        ],
        story in prop::collection::vec(happens(), 1..200),
    ) {
        let new = if is_adopted { Bench::adopted } else { Bench::new };
        let mut bench = new(check.clone(), initial);
        let mut history = History::default();
        let mut slept = false;
        for happens in story {
            let from = bench.condition();
            let before = Before {
                is_suspect: bench.machine.seen().suspect,
                is_assumed: bench.machine.is_assumed(),
            };
            let was_waiting = bench.machine.pending.is_some();
            let actions = match happens.clone() {
                Happens::Wait(millis) => {
                    // Not beyond the moment when an answer is overdue.
                    let until = bench.now + ms(millis);
                    let deadline = bench.machine.deadline().filter(|_| was_waiting);
                    bench.now = deadline.map_or(until, |at| until.min(at - ms(1)));
                    bench.handle(Event::Due)
                }
                Happens::Answer(outcome) => {
                    let (took, others_answered) = (ms(5), Some(bench.now));
                    bench.handle(Event::Answered { outcome, took, others_answered })
                }
                Happens::Suspected => {
                    history.blamed = true;
                    bench.handle(suspected())
                }
                Happens::Interrupted => bench.handle(Event::Interrupted),
                Happens::Slept => bench.handle(Event::Slept),
            };
            if let (Happens::Answer(outcome), true) = (&happens, was_waiting) {
                let is_late = [silent(), resolves(), wrong()].contains(outcome);
                let forgiven = is_late && slept && !history.forgiven;
                match outcome {
                    Outcome::Unknown { .. } => {}
                    _ if forgiven => history.forgiven = true,
                    _ => {
                        history.forgiven = false;
                        history.blamed &= *outcome != Outcome::Up;
                        let is_silence = *outcome == silent()
                            || *outcome == resolves() && history.blamed;
                        history.answers.push(Read {
                            is_good: *outcome == Outcome::Up,
                            is_refusal: *outcome == refused(),
                            silence: is_silence.then_some(!before.is_suspect),
                        });
                    }
                }
            }
            slept = match happens {
                Happens::Slept => bench.machine.pending.is_some(),
                _ if actions.iter().any(|action| matches!(action, Action::Probe { .. })) => false,
                _ => slept,
            };
            let to = bench.condition();
            let changes: Vec<_> = actions
                .iter()
                .filter_map(|action| match action {
                    Action::Report(Some(change)) => Some((change.from, change.to)),
                    _ => None,
                })
                .collect();
            if from == to {
                prop_assert!(changes.is_empty(), "{changes:?}");
            } else {
                prop_assert_eq!(changes, vec![(from, to)]);
                prop_assert!(matches!(happens, Happens::Answer(_)), "{happens:?}");
                prop_assert!(history.explains(from, to, &check, before), "{from:?} to {to:?}");
            }
            // Nor does it overlook an answer.
            if to == Condition::Up {
                let bad = history.streak(false);
                prop_assert!(bad < usize::from(check.fall.get()) , "{bad} failures and up");
            } else {
                let good = history.streak(true);
                prop_assert!(good < usize::from(check.rise.get()), "{good} good answers and down");
                let silent = history.silence();
                prop_assert!(
                    to == Condition::HardDown || silent < usize::from(check.fall.get()),
                    "silent {silent} times and its flows stay"
                );
            }
            prop_assert!(bench.machine.deadline().is_some(), "it is never forgotten");
            prop_assert!(!bench.machine.seen().suspect || to == Condition::Up);
        }
    }

    #[test]
    fn questions_are_as_far_apart_as_the_shortest_interval_allows(
        check in checks(),
        outcomes in prop::collection::vec(
            (prop_oneof![Just(Outcome::Up), Just(silent()), Just(refused()), Just(unknown())],
             0..1_000u64),
            1..100),
    ) {
        let least = check.fast_interval.mul_f64(1.0 - f64::from(check.jitter) / 100.0);
        let mut bench = Bench::new(check.clone(), Condition::Up);
        let mut last = None;
        for (outcome, took) in outcomes {
            bench.until_probe();
            if let Some(last) = last.replace(bench.now) {
                prop_assert!(bench.now - last >= least, "{:?}", bench.now - last);
            }
            for action in bench.actions.drain(..) {
                if let Action::Probe { timeout } = action {
                    prop_assert_eq!(timeout, check.timeout);
                }
            }
            bench.answer_after(ms(took), outcome);
        }
    }
}

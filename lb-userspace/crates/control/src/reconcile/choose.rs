//! The backends of a service that take new flows, by their health: a pure function.

use lb_api::status::Standing;
use lb_model::{
    policy::Policy,
    seen::{Condition, Seen},
};

/// A backend, as far as choosing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The operator lets it take new flows.
    pub(super) enabled: bool,
    /// It serves only when no other can.
    pub(super) backup: bool,
    /// It can be sent to.
    pub(super) reached: bool,
    /// Its health.
    pub(super) seen: Seen,
}

impl Candidate {
    const fn is_possible(self) -> bool {
        self.enabled && self.reached
    }

    fn is_up(self) -> bool {
        self.is_possible() && self.seen.condition == Condition::Up
    }

    fn is_sound(self) -> bool {
        self.is_up() && !self.seen.held
    }
}

/// The backends that take new flows, in the order of `candidates`, and how the service stands.
///
/// Backups serve when no other backend is up. One that is held back for flapping serves rather than
/// none, and rather than a backup. Panic is for the backends that are no backups: when fewer of
/// them are up than the threshold requires, all that can be reached serve, since it is likelier that
/// the check is wrong, or that the few that are left would break under the load of all.
pub(super) fn choose(policy: &Policy, candidates: &[Candidate]) -> (Vec<bool>, Standing) {
    let all = |these: &dyn Fn(Candidate) -> bool| -> Vec<bool> {
        candidates.iter().map(|candidate| these(*candidate)).collect()
    };
    let count = |these: &dyn Fn(Candidate) -> bool| {
        let count = candidates.iter().filter(|candidate| these(**candidate)).count();
        u16::try_from(count).unwrap_or(u16::MAX)
    };
    let of_rank = |backup: bool, c: Candidate| c.backup == backup;
    let primaries = count(&|c| c.enabled && !c.backup);
    let primaries_up = count(&|c| c.is_sound() && !c.backup);
    let threshold = u32::from(policy.panic_threshold) * u32::from(primaries);
    let few = u32::from(primaries_up) * 100 < threshold;
    let panic = few && (primaries_up > 0 || count(&|c| c.is_up() && c.backup) == 0);
    let mut chosen = if panic {
        all(&|c| c.is_possible() && !c.backup)
    } else {
        let ways: [&dyn Fn(Candidate) -> bool; 4] = [
            &|c| c.is_sound() && of_rank(false, c),
            &|c| c.is_up() && of_rank(false, c),
            &|c| c.is_sound() && of_rank(true, c),
            &|c| c.is_up() && of_rank(true, c),
        ];
        let mut ways = ways.into_iter().map(all);
        ways.find(|chosen| chosen.contains(&true)).unwrap_or_default()
    };
    chosen.resize(candidates.len(), false);
    let on_backups = chosen.iter().zip(candidates).any(|(chosen, c)| *chosen && c.backup);
    let each = || candidates.iter().zip(&chosen);
    let count_of = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    let up = count_of(each().filter(|(c, chosen)| c.is_sound() || (**chosen && c.is_up())).count());
    let serves = |c: &Candidate, chosen: bool| c.is_sound() || (chosen && !c.seen.silent);
    let serving = count_of(each().filter(|(c, chosen)| serves(c, **chosen)).count());
    let standing = Standing {
        up,
        serving,
        enabled: count(&|c| c.enabled),
        panic,
        on_backups,
        ready: up >= policy.min_healthy,
    };
    (chosen, standing)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `u` up, `s` soft down, `q` soft down and silent, `h` hard down, `d` held (damped), `x` unreached, `o` off; a capital
    /// letter for a backup.
    fn candidate(sign: char) -> Candidate {
        let condition = match sign.to_ascii_lowercase() {
            's' | 'q' => Condition::SoftDown,
            'h' => Condition::HardDown,
            _ => Condition::Up,
        };
        let held = sign.eq_ignore_ascii_case(&'d');
        let silent = matches!(sign.to_ascii_lowercase(), 'q' | 'h');
        Candidate {
            enabled: !sign.eq_ignore_ascii_case(&'o'),
            backup: sign.is_ascii_uppercase(),
            reached: !sign.eq_ignore_ascii_case(&'x'),
            seen: Seen { condition, held, silent, ..Seen::default() },
        }
    }

    fn chosen(policy: &Policy, signs: &str) -> (String, Standing) {
        let candidates: Vec<_> = signs.chars().map(candidate).collect();
        let (chosen, standing) = choose(policy, &candidates);
        (chosen.iter().map(|chosen| if *chosen { '+' } else { '-' }).collect(), standing)
    }

    fn policy(panic_threshold: u8, min_healthy: u16) -> Policy {
        Policy { panic_threshold, min_healthy, ..Policy::default() }
    }

    #[test]
    fn those_that_are_up_serve_then_the_held_then_the_backups() {
        for (signs, expected) in [
            ("", ""),
            ("uuu", "+++"),
            ("ush", "+--"),
            ("uxo", "+--"),
            ("ssh", "---"),
            ("udU", "+--"),
            ("sdU", "-+-"),
            ("shU", "--+"),
            ("xoUU", "--++"),
            ("sSD", "--+"),
            ("sSX", "---"),
        ] {
            assert_eq!(chosen(&policy(0, 1), signs).0, expected, "{signs}");
        }
    }

    #[test]
    fn in_panic_checks_are_ignored_and_reach_is_not() {
        for (signs, expected, panic) in [
            ("uuss", "++--", false),
            ("usss", "++++", true),
            ("ushx", "+++-", true),
            ("shxo", "++--", true),
            ("ssU", "--+", false),
            ("ussU", "+++-", true),
            ("ssS", "++-", true),
        ] {
            let (chosen, standing) = chosen(&policy(50, 1), signs);
            assert_eq!((chosen.as_str(), standing.panic), (expected, panic), "{signs}");
        }
    }

    #[test]
    fn a_service_is_ready_with_as_many_as_it_needs() {
        let standing = |signs| chosen(&policy(0, 2), signs).1;
        assert!(standing("uus").ready && standing("uU").ready);
        assert!(!standing("uss").ready && !standing("udx").ready);
        assert_eq!((standing("uusoU").up, standing("uusoU").enabled), (3, 4));
        assert!(standing("sU").on_backups && !standing("uU").on_backups);
        assert!(chosen(&policy(0, 0), "s").1.ready);
    }

    #[test]
    fn backends_that_serve_count_though_they_are_held_back_and_in_panic_though_their_checks_fail() {
        let counts = |threshold, signs| {
            let standing = chosen(&policy(threshold, 1), signs).1;
            (standing.up, standing.serving, standing.ready)
        };
        assert_eq!(counts(0, "dd"), (2, 2, true), "all are held back, and serve");
        assert_eq!(counts(0, "ud"), (1, 1, true), "the other one serves");
        assert_eq!(counts(0, "ssU"), (1, 1, true), "a backup serves");
        assert_eq!(counts(0, "uU"), (2, 2, true), "a backup would");
        assert_eq!(counts(50, "ss"), (0, 2, false), "in panic");
        assert_eq!(counts(50, "sqh"), (0, 1, false), "in panic, and some are not reached");
        assert_eq!(counts(50, "qq"), (0, 0, false), "in panic, and none is");
        assert_eq!(counts(0, "ss"), (0, 0, false));
    }

    proptest! {
        #[test]
        fn someone_serves_whenever_one_can(signs in "[usqhdxoUSQHDXO]{0,8}", threshold in 0_u8..=100) {
            let (chosen, standing) = chosen(&policy(threshold, 1), &signs);
            let candidates: Vec<_> = signs.chars().map(candidate).collect();
            prop_assert_eq!(
                chosen.contains('+'),
                candidates.iter().any(|c| c.is_up())
                    || (standing.panic && candidates.iter().any(|c| c.is_possible() && !c.backup))
            );
            for (chosen, candidate) in chosen.chars().zip(candidates) {
                prop_assert!(chosen == '-' || candidate.is_possible());
                prop_assert!(chosen == '-' || standing.panic || candidate.is_up());
            }
        }
    }
}

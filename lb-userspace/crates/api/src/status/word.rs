//! What a backend does at a moment, in one word.

use std::time::Duration;

use lb_model::{desired::Admin, seen::Condition, units::format_duration};

use super::Backend;

/// What a backend does: what the operator said of it, or else what is found out about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// It serves.
    Up,
    /// It serves when no other backend can.
    Backup,
    /// It serves, and its clients find it silent.
    Suspect,
    /// It is up, and gets nothing yet since it was down too often.
    Held,
    /// It gets no new flows and keeps the ones it has.
    Draining,
    /// It drains, and leaves its service then.
    Removing,
    /// It gets no new flows, for as long as the operator likes.
    Disabled,
    /// It does not serve.
    Down,
    /// It is not known how to send to it.
    Unresolved,
}

impl Word {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Up,
        Self::Backup,
        Self::Suspect,
        Self::Held,
        Self::Draining,
        Self::Removing,
        Self::Disabled,
        Self::Down,
        Self::Unresolved,
    ];

    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Backup => "backup",
            Self::Suspect => "suspect",
            Self::Held => "held",
            Self::Draining => "draining",
            Self::Removing => "removing",
            Self::Disabled => "disabled",
            Self::Down => "down",
            Self::Unresolved => "unresolved",
        }
    }

    /// A letter for it, where there are many of them.
    #[must_use]
    pub const fn letter(self) -> u8 {
        match self {
            Self::Up => b'u',
            Self::Backup => b'b',
            Self::Suspect => b's',
            Self::Held => b'h',
            Self::Draining => b'd',
            Self::Removing => b'r',
            Self::Disabled => b'o',
            Self::Down => b'x',
            Self::Unresolved => b'n',
        }
    }
}

impl Backend {
    /// What it does.
    #[must_use]
    pub const fn word(&self) -> Word {
        match (self.admin, self.condition) {
            (Admin::Draining { .. }, _) => Word::Draining,
            (Admin::Removing { .. }, _) => Word::Removing,
            (Admin::Disabled, _) => Word::Disabled,
            (Admin::Down, _) | (Admin::Enabled, Condition::HardDown) => Word::Down,
            (Admin::Enabled, _) if self.unusable.is_some() => Word::Unresolved,
            (Admin::Enabled, Condition::SoftDown) => Word::Down,
            (Admin::Enabled, Condition::Up) if self.held => Word::Held,
            (Admin::Enabled, Condition::Up) if self.suspect => Word::Suspect,
            (Admin::Enabled, Condition::Up) if self.backup => Word::Backup,
            (Admin::Enabled, Condition::Up) => Word::Up,
        }
    }

    /// Why it is not simply up, if more is known than the [word](Self::word) says.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        let last = || self.check.as_ref()?.last.clone().filter(|last| last != "ok");
        let serves = self.admin == Admin::Enabled;
        match self.condition {
            Condition::HardDown if serves => last().or_else(|| Some("it does not answer".into())),
            _ if self.unusable.is_some() => self.unusable.clone(),
            Condition::SoftDown if serves => last(),
            Condition::Up if serves && self.held => {
                let left = self.check.as_ref().and_then(|check| check.held_secs);
                let left = left.map(|secs| format_duration(Duration::from_secs(secs)));
                let left = left.map(|left| format!("; held for {left}"));
                Some(format!("it flapped{}", left.unwrap_or_default()))
            }
            Condition::Up if serves && self.egress_fault.is_some() => self.egress_fault.clone(),
            Condition::Up if serves && self.suspect => Some("its clients find it silent".into()),
            Condition::Up if serves => {
                let share = self.slow_start_permille?;
                Some(format!("slow start, {} % of its share", share / 10))
            }
            _ if self.is_unsynced() => Some("only the Active sees its flows".into()),
            _ if self.drains() && !self.has_flows() => Some("no flow left".into()),
            _ => None,
        }
    }

    /// Whether it gives its flows up: it drains, and leaves or not.
    #[must_use]
    pub const fn drains(&self) -> bool {
        matches!(self.admin, Admin::Draining { .. } | Admin::Removing { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_word_has_a_letter_of_its_own() {
        let letters: BTreeSet<u8> = Word::ALL.iter().map(|word| word.letter()).collect();
        assert_eq!(letters.len(), Word::ALL.len());
        assert!(letters.iter().all(u8::is_ascii_lowercase), "capitals say that a check failed");
    }

    #[test]
    fn what_the_operator_said_comes_before_what_is_found_out() {
        let down = Backend { condition: Condition::SoftDown, ..Backend::default() };
        let deadline = None;
        for (admin, word) in [
            (Admin::Enabled, Word::Down),
            (Admin::Draining { deadline }, Word::Draining),
            (Admin::Removing { deadline }, Word::Removing),
            (Admin::Disabled, Word::Disabled),
            (Admin::Down, Word::Down),
        ] {
            assert_eq!(Backend { admin, ..down.clone() }.word(), word);
        }
    }

    #[test]
    fn what_is_found_out_is_told_by_what_it_does_to_clients() {
        let unusable = Some("neighbour 10.0.0.7 does not answer".to_owned());
        let up = Backend::default();
        let hard = Backend { condition: Condition::HardDown, ..up.clone() };
        for (backend, word) in [
            (up.clone(), Word::Up),
            (Backend { backup: true, ..up.clone() }, Word::Backup),
            (Backend { suspect: true, backup: true, ..up.clone() }, Word::Suspect),
            (Backend { held: true, suspect: true, ..up.clone() }, Word::Held),
            (Backend { unusable: unusable.clone(), ..up }, Word::Unresolved),
            (Backend { unusable, ..hard }, Word::Down),
        ] {
            assert_eq!(backend.word(), word, "{backend:?}");
        }
    }

    #[test]
    fn the_reason_is_that_of_the_word() {
        let drained = Admin::Draining { deadline: None };
        let unseen = Some(crate::status::Unseen::Unsynced);
        let drain = Some(crate::status::Drain { unseen, ..Default::default() });
        let unusable = Some("neighbour 10.0.0.7 does not answer".to_owned());
        let up = Backend::default();
        for (backend, why) in [
            (up.clone(), None),
            (Backend { unusable, ..up.clone() }, Some("neighbour 10.0.0.7 does not answer")),
            (Backend { held: true, ..up.clone() }, Some("it flapped")),
            (Backend { suspect: true, ..up.clone() }, Some("its clients find it silent")),
            (Backend { condition: Condition::HardDown, ..up.clone() }, Some("it does not answer")),
            (
                Backend { slow_start_permille: Some(300), ..up.clone() },
                Some("slow start, 30 % of its share"),
            ),
            (Backend { admin: drained, held: true, ..up.clone() }, Some("no flow left")),
            (Backend { admin: drained, pins: 1, ..up.clone() }, None),
            (
                Backend { admin: drained, drain, ..up.clone() },
                Some("only the Active sees its flows"),
            ),
            (Backend { drain, ..up }, None),
        ] {
            assert_eq!(backend.why().as_deref(), why, "{backend:?}");
        }
    }
}

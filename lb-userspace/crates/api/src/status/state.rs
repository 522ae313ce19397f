//! The state of a backend, as a name and with its reason.

use std::time::Duration;

use lb_model::{desired::Admin, seen::Condition, units::format_duration};

use super::Backend;

/// The state of a backend: what the operator wants of it comes before what lbd has found out about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendState {
    /// It serves.
    Up,
    /// It serves when no other backend can.
    Backup,
    /// It serves, and its clients' packets suggest that it is silent.
    Suspect,
    /// It is up, and gets nothing yet since it was down too often.
    Held,
    /// It gets no new flows and keeps the ones it has.
    Draining,
    /// It drains, and leaves its service then.
    Removing,
    /// It gets no new flows, for as long as the operator likes.
    Disabled,
    /// The operator has taken it down: its flows have moved.
    TakenDown,
    /// Its checks fail.
    Down,
    /// It is not known how to send to it.
    Unresolved,
}

impl BackendState {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Up,
        Self::Backup,
        Self::Suspect,
        Self::Held,
        Self::Draining,
        Self::Removing,
        Self::Disabled,
        Self::TakenDown,
        Self::Down,
        Self::Unresolved,
    ];

    /// Its name, as lbctl and the dashboard show it.
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
            Self::TakenDown | Self::Down => "down",
            Self::Unresolved => "unresolved",
        }
    }

    /// A letter for its name, where many states are in a row.
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
            Self::TakenDown | Self::Down => b'x',
            Self::Unresolved => b'n',
        }
    }
}

impl Backend {
    /// Its state.
    #[must_use]
    pub const fn state(&self) -> BackendState {
        match (self.admin, self.condition) {
            (Admin::Draining { .. }, _) => BackendState::Draining,
            (Admin::Removing { .. }, _) => BackendState::Removing,
            (Admin::Disabled, _) => BackendState::Disabled,
            (Admin::Down, _) => BackendState::TakenDown,
            (Admin::Enabled, Condition::HardDown) => BackendState::Down,
            (Admin::Enabled, _) if self.unusable.is_some() => BackendState::Unresolved,
            (Admin::Enabled, Condition::SoftDown) => BackendState::Down,
            (Admin::Enabled, Condition::Up) if self.held => BackendState::Held,
            (Admin::Enabled, Condition::Up) if self.suspect => BackendState::Suspect,
            (Admin::Enabled, Condition::Up) if self.backup => BackendState::Backup,
            (Admin::Enabled, Condition::Up) => BackendState::Up,
        }
    }

    /// Why it is in its [state](Self::state), if more is known.
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

    /// Whether the operator has it drain, to be removed then or not.
    #[must_use]
    pub const fn drains(&self) -> bool {
        self.admin.drains()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_name_has_a_letter_of_its_own() {
        let names: BTreeSet<_> = BackendState::ALL.iter().map(|state| state.name()).collect();
        let letters: BTreeSet<u8> = BackendState::ALL.iter().map(|state| state.letter()).collect();
        assert_eq!(letters.len(), names.len());
        assert!(letters.iter().all(u8::is_ascii_lowercase), "capitals are for failed checks");
    }

    #[test]
    fn what_the_operator_said_comes_before_what_is_found_out() {
        let down = Backend { condition: Condition::SoftDown, ..Backend::default() };
        let deadline = None;
        for (admin, state) in [
            (Admin::Enabled, BackendState::Down),
            (Admin::Draining { deadline }, BackendState::Draining),
            (Admin::Removing { deadline }, BackendState::Removing),
            (Admin::Disabled, BackendState::Disabled),
            (Admin::Down, BackendState::TakenDown),
        ] {
            assert_eq!(Backend { admin, ..down.clone() }.state(), state);
        }
    }

    #[test]
    fn what_is_found_out_is_told_by_what_it_does_to_clients() {
        let unusable = Some("neighbour 10.0.0.7 does not answer".to_owned());
        let up = Backend::default();
        let hard = Backend { condition: Condition::HardDown, ..up.clone() };
        for (backend, state) in [
            (up.clone(), BackendState::Up),
            (Backend { backup: true, ..up.clone() }, BackendState::Backup),
            (Backend { suspect: true, backup: true, ..up.clone() }, BackendState::Suspect),
            (Backend { held: true, suspect: true, ..up.clone() }, BackendState::Held),
            (Backend { unusable: unusable.clone(), ..up }, BackendState::Unresolved),
            (Backend { unusable, ..hard }, BackendState::Down),
        ] {
            assert_eq!(backend.state(), state, "{backend:?}");
        }
    }

    #[test]
    fn the_reason_is_that_of_the_state() {
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

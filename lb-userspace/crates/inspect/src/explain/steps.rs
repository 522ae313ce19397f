//! The steps of an explanation.

use super::Step;

/// The steps so far, without duplicates.
#[derive(Default)]
pub(super) struct Steps(pub Vec<Step>);

impl Steps {
    pub(super) fn add(&mut self, about: &str, text: String) {
        let step = Step { about: about.into(), text };
        if !self.0.contains(&step) {
            self.0.push(step);
        }
    }
}

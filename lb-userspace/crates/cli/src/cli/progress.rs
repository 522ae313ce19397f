//! How far a command is that takes long: a line that is written over on a terminal, elsewhere nothing.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// How often it is written.
pub(super) const SHOWN: Duration = Duration::from_millis(200);

/// The line, on standard error; taken back when this is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    is_terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), shown: None }
    }

    /// Shows how far it is, unless that was a moment ago.
    pub(super) fn show(&mut self, text: impl FnOnce() -> String) {
        if !self.is_terminal || self.shown.is_some_and(|shown| shown.elapsed() < SHOWN) {
            return;
        }
        self.shown = Some(Instant::now());
        // Progress that can't be shown is no reason to stop.
        let _ = write!(io::stderr().lock(), "\r\x1b[K{}", on_one_line(&text()));
    }
}

/// As much of a text as the terminal's width takes: wrapped text can't be overwritten.
pub(super) fn on_one_line(text: &str) -> String {
    let columns = crossterm::terminal::size().map_or(80, |(columns, _)| columns);
    fitting(text, columns.into())
}

fn fitting(text: &str, columns: usize) -> String {
    match text.chars().count() < columns {
        true => text.to_owned(),
        false => text.chars().take(columns.saturating_sub(4)).chain("...".chars()).collect(),
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_would_wrap_is_cut() {
        assert_eq!(fitting("draining", 80), "draining");
        assert_eq!(fitting("draining for 10s", 16), "draining for...");
        assert_eq!(fitting("draining", 2), "...");
    }
}

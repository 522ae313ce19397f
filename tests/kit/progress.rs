//! How far something is that takes long: on a terminal a line that changes, elsewhere a line for each
//! step. Both go to standard error.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// Characters of the line that changes: one that wraps could not be taken back.
const WIDTH: usize = 79;

/// Steps of which some are done.
#[derive(Debug)]
pub struct Progress {
    steps: usize,
    done: usize,
    started: Instant,
    is_terminal: bool,
}

impl Progress {
    /// As many steps, of which none is done.
    #[must_use]
    pub fn new(steps: usize) -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self { steps, done: 0, started: Instant::now(), is_terminal }
    }

    /// Prints the next step.
    pub fn begin(&self, doing: &str) {
        let line = line(self.done, self.steps, self.started.elapsed(), doing);
        // A failed write is no reason to stop.
        let _ = match self.is_terminal {
            true => write!(io::stderr(), "\r\x1b[K{line}"),
            false => writeln!(io::stderr(), "{line}"),
        };
        let _ = io::stderr().flush();
    }

    /// The step is done; a result is printed, and stays as a line.
    pub fn end(&mut self, result: Option<&str>) {
        self.done += 1;
        self.clear();
        if let Some(result) = result {
            eprintln!("[{}/{}] {result}", self.done, self.steps);
        }
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `[3/12] lb, killed; 40 s, about 2 min left`.
fn line(done: usize, steps: usize, elapsed: Duration, doing: &str) -> String {
    let mut line = format!("[{}/{steps}] {doing}", done + 1);
    if done > 0 {
        let left = elapsed.mul_f64(steps.saturating_sub(done) as f64 / done as f64);
        line += &format!("; {}, about {} left", time(elapsed), time(left));
    }
    line.chars().take(WIDTH).collect()
}

fn time(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..120 => format!("{secs} s"),
        secs => format!("{} min", (secs + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_by_what_was_done() {
        let secs = Duration::from_secs;
        assert_eq!(line(0, 12, secs(0), "lb, killed"), "[1/12] lb, killed");
        assert_eq!(line(4, 12, secs(40), "lb, killed"), "[5/12] lb, killed; 40 s, about 80 s left");
        assert_eq!(line(1, 12, secs(60), "x"), "[2/12] x; 60 s, about 11 min left");
        assert_eq!(line(0, 2, secs(0), &"long ".repeat(40)).chars().count(), WIDTH);
    }
}

//! The writes of the maps by [`Daemon::reconcile`]: when they may be, and how they went.

use std::time::{Duration, Instant};

use anyhow::Result;
use lb_api::{
    event::{EventBody, Kind},
    status::Writes,
};
use lb_control::engine::Outcome;
use lb_plane::DataPlane;

use super::{Daemon, START, pace::Pace};

/// The state of the writes of the maps.
#[derive(Default)]
pub(super) struct Writing {
    pace: Pace,
    /// Whether an input has come since the maps were written.
    is_due: bool,
    /// Whether maps were written for this batch of inputs.
    wrote: bool,
    /// Whether the maps were ever as they should be.
    succeeded: bool,
    error: Option<String>,
    totals: Writes,
}

impl Writing {
    /// An input has come that may change the maps.
    pub(super) const fn set_due(&mut self) {
        self.is_due = true;
    }

    pub(super) const fn is_due(&self) -> bool {
        self.is_due
    }

    /// Until when inputs wait for more of them, to be written together; none: they don't.
    pub(super) fn rest(&self, now: Instant) -> Option<Instant> {
        self.pace.rest(now)
    }

    /// Whether the maps were ever as they should be.
    pub(super) const fn has_succeeded(&self) -> bool {
        self.succeeded
    }

    /// The error of the last write, or of the last sweep.
    pub(super) const fn error(&self) -> Option<&String> {
        self.error.as_ref()
    }

    /// All writes since the start.
    pub(super) const fn totals(&self) -> &Writes {
        &self.totals
    }

    /// A batch of inputs begins.
    pub(super) const fn begin_batch(&mut self) {
        self.wrote = false;
    }

    /// The batch that began at this moment has ended.
    pub(super) fn end_batch(&mut self, began: Instant) {
        if self.wrote {
            self.pace.wrote(began, Instant::now());
        }
    }

    /// Counts a write of the maps; the error, if it failed.
    fn record_written(&mut self, done: Result<Outcome>, took: Duration) -> Option<String> {
        self.is_due = false;
        self.totals.duration.add(took);
        match done {
            Ok(Outcome { changes, slots_moved, .. }) => {
                self.totals.changes += changes as u64;
                self.totals.slots_moved += slots_moved;
                if changes > 0 {
                    self.wrote = true;
                    tracing::debug!(changes, slots = slots_moved, "maps written");
                }
                self.succeeded = true;
                None
            }
            Err(error) => {
                self.wrote = true;
                self.totals.failed += 1;
                Some(format!("{error:#}"))
            }
        }
    }
}

impl<D: DataPlane> Daemon<D> {
    /// Writes the maps as the plan says, and stores the error, if that fails.
    pub(super) fn reconcile(&mut self) {
        let error = self.try_reconcile();
        self.set_write_error(error);
    }

    /// Writes the maps as the plan says; the error, if that fails.
    pub(super) fn try_reconcile(&mut self) -> Option<String> {
        let begun = Instant::now();
        let done = self.engine.reconcile(self.now());
        let error = self.writing.record_written(done, begun.elapsed());
        self.on_new_backends();
        let events = self.health.on_standings(self.engine.standings(), self.store.desired());
        self.record(events);
        if self.engine.retired() != self.store.written_sums() {
            self.keep();
        }
        error
    }

    /// Sets the error of the last write of the maps, or none; an event if that has changed.
    pub(super) fn set_write_error(&mut self, error: Option<String>) {
        let events = match (&error, self.writing.error()) {
            (Some(error), before) if before != Some(error) => {
                self.effects.notifier.status(&format!("the maps can't be written: {error}"));
                let message = "the maps can't be written; trying again each second";
                Some(EventBody::new(Kind::MapsFailing, message, error.as_str()))
            }
            (None, Some(error)) => {
                self.effects.notifier.status(&self.ready_line());
                let cause = format!("it did not work before: {error}");
                Some(EventBody::new(Kind::MapsWritten, "the maps are written again", cause))
            }
            _ => None,
        };
        self.record(events);
        self.writing.error = error;
    }

    /// Ends the start, once: when the maps are written, or could not be for a while.
    pub(super) fn get_ready(&mut self) {
        if self.writing.error.is_some() && self.started.elapsed() < START {
            return;
        }
        let Some(ready) = self.ready.take() else { return };
        let line = self.ready_line();
        self.effects.notifier.ready(&line);
        self.record_event(EventBody::new(Kind::Started, line, "lbd was started"));
        // The receiver may be gone.
        let _ = ready.send(());
    }
}

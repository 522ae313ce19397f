//! The maps as they are written, and what is said of it.

use std::time::Instant;

use lb_api::event::{Kind, News};
use lb_datapath::DataPlane;

use super::{Daemon, START};

impl<D: DataPlane> Daemon<D> {
    pub(super) fn reconcile(&mut self) {
        let error = self.write();
        self.note(error);
    }

    /// Writes the maps; what that met with.
    pub(super) fn write(&mut self) -> Option<String> {
        self.stale = false;
        let begun = Instant::now();
        let done = self.engine.reconcile(self.now());
        self.writes.duration.add(begun.elapsed());
        let error = match done {
            Ok(outcome) => {
                self.writes.changes += outcome.changes as u64;
                self.writes.slots_moved += outcome.slots_moved;
                if outcome.changes > 0 {
                    self.wrote = true;
                    tracing::debug!(
                        changes = outcome.changes,
                        slots = outcome.slots_moved,
                        "maps written"
                    );
                }
                self.serves = true;
                None
            }
            Err(error) => {
                self.wrote = true;
                self.writes.failed += 1;
                Some(format!("{error:#}"))
            }
        };
        self.meet_backends();
        let news = self.health.stand(self.engine.standings(), &self.desired);
        news.into_iter().for_each(|news| self.effects.events.record(news));
        if *self.engine.retired() != self.kept_sums {
            self.keep();
        }
        error
    }

    /// Remembers how the last write of maps went, and tells of it when that is new.
    pub(super) fn note(&mut self, error: Option<String>) {
        let news = match (&error, &self.last_error) {
            (Some(error), before) if before.as_ref() != Some(error) => {
                self.effects.notifier.status(&format!("the maps can't be written: {error}"));
                let message = "the maps can't be written; trying again each second";
                Some(News::new(Kind::MapsFailing, message, error.as_str()))
            }
            (None, Some(error)) => {
                self.effects.notifier.status(&self.ready_line());
                let cause = format!("it did not work before: {error}");
                Some(News::new(Kind::MapsWritten, "the maps are written again", cause))
            }
            _ => None,
        };
        news.into_iter().for_each(|news| self.effects.events.record(news));
        self.last_error = error;
    }

    /// Says once that the start is over: when the maps are written, or could not be for a while.
    pub(super) fn get_ready(&mut self) {
        if self.last_error.is_some() && self.started.elapsed() < START {
            return;
        }
        let Some(ready) = self.ready.take() else { return };
        let line = self.ready_line();
        self.effects.notifier.ready(&line);
        self.effects.events.record(News::new(Kind::Started, line, "lbd was started"));
        // Nobody may be waiting.
        let _ = ready.send(());
    }
}

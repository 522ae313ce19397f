//! Reads of the configuration's file and those that it names, and writes to it: on a thread of its
//! own, since a disk may take any time over it.
//!
//! One piece of work is done after the other, in the order of the requests. The daemon's task goes on
//! with each result.

use std::{
    collections::VecDeque,
    io,
    sync::mpsc::{Sender, channel},
    thread,
    time::Instant,
};

use lb_config::{Config, Error};
use lb_plane::DataPlane;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::Daemon;

/// The work of the thread.
type Work<D> = Box<dyn FnOnce() -> Effect<D> + Send>;
/// The work of the daemon's task with its result.
type Effect<D> = Box<dyn FnOnce(&mut Daemon<D>) + Send>;

/// Where work is handed over to the thread.
pub(super) struct Files<D> {
    thread: Sender<Work<D>>,
    done: UnboundedReceiver<Effect<D>>,
    waiting: VecDeque<Work<D>>,
    is_busy: bool,
}

impl<D: DataPlane> Files<D> {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// There is no room for a thread.
    pub(super) fn start() -> io::Result<Self> {
        let (thread, work) = channel::<Work<D>>();
        let (effects, done) = unbounded_channel();
        let run = move || {
            for work in work {
                if effects.send(work()).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("lbd-config".into()).spawn(run)?;
        Ok(Self { thread, done, waiting: VecDeque::new(), is_busy: false })
    }

    /// Whether nothing is under way.
    pub(super) const fn is_idle(&self) -> bool {
        !self.is_busy
    }

    /// The result of the work that ends next; none: the thread has ended.
    pub(super) async fn done(&mut self) -> Option<Effect<D>> {
        self.done.recv().await
    }

    fn go_on(&mut self) {
        if self.is_busy {
            return;
        }
        if let Some(work) = self.waiting.pop_front() {
            self.is_busy = true;
            // A thread that has ended is found by `done`.
            let _ = self.thread.send(work);
        }
    }
}

impl<D: DataPlane> Daemon<D> {
    /// Has the configuration's file read, and goes on with the result.
    pub(super) fn with_config(
        &mut self,
        effect: impl FnOnce(&mut Self, Result<Config, Error>) + Send + 'static,
    ) {
        let file = self.store.file().to_owned();
        self.on_disk(move || Config::load(&file), effect);
    }

    /// Has the thread do `work` after all that was requested before, and goes on with the result.
    pub(super) fn on_disk<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
        effect: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        self.files.waiting.push_back(joined(work, effect));
        self.files.go_on();
    }

    /// The same before all that waits, as the rest of what is under way.
    pub(super) fn next_on_disk<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
        effect: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        self.files.waiting.push_front(joined(work, effect));
        self.files.go_on();
    }

    /// Goes on with the result of a piece of work.
    pub(super) fn take_up(&mut self, effect: Effect<D>) {
        let started = Instant::now();
        self.writing.begin_batch();
        effect(self);
        self.files.is_busy = false;
        self.files.go_on();
        self.writing.end_batch(started);
    }
}

fn joined<D: DataPlane, T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    effect: impl FnOnce(&mut Daemon<D>, T) + Send + 'static,
) -> Work<D> {
    Box::new(move || {
        let found = work();
        Box::new(move |daemon: &mut Daemon<D>| effect(daemon, found))
    })
}

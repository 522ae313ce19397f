//! Writes the state file on a thread of its own, since a disk may take any time over it.
//!
//! Only the latest state waits. A caller that needs a state on disk waits for its number, and not for ever.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

use super::State;

/// How long an answer waits for the disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a write may take until it counts as failing.
const LONGEST: Duration = Duration::from_secs(5);

/// Where states are handed over to the thread that writes them.
#[derive(Debug)]
pub(crate) struct Writer {
    pending: Arc<Pending>,
    outcomes: watch::Receiver<Outcome>,
    posted: u64,
}

/// How a write went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The number of the state; 0: none was written.
    number: u64,
    /// The error, if it failed.
    pub error: Option<String>,
}

#[derive(Debug, Default)]
struct Pending {
    content: Mutex<Content>,
    comes: Condvar,
}

#[derive(Debug, Default)]
struct Content {
    next: Option<(u64, State)>,
    /// When the write that is under way began.
    began: Option<Instant>,
    is_closed: bool,
}

impl Writer {
    /// Starts the thread, which writes to `path`.
    ///
    /// # Errors
    ///
    /// There is no room for a thread.
    pub fn start(path: &Path) -> io::Result<Self> {
        let pending = Arc::new(Pending::default());
        let (reported, outcomes) = watch::channel(Outcome::default());
        let (own, path) = (Arc::clone(&pending), path.to_owned());
        let write = move || write_all(&own, &path, &reported);
        lb_threads::spawn("lbd-state", write)?;
        Ok(Self { pending, outcomes, posted: 0 })
    }

    /// Has a state written, in the place of one that waits.
    pub(crate) fn post(&mut self, state: State) -> Kept {
        self.posted += 1;
        let mut content = self.pending.content.lock().unwrap_or_else(PoisonError::into_inner);
        content.next = Some((self.posted, state));
        drop(content);
        self.pending.comes.notify_one();
        self.last()
    }

    /// The state that was posted last.
    #[must_use]
    pub(crate) fn last(&self) -> Kept {
        Kept { number: self.posted, outcomes: self.outcomes.clone() }
    }

    /// How the last write went, if one has ended since the last call; else that the one under way takes too long.
    pub fn outcome(&mut self, now: Instant) -> Option<Outcome> {
        if self.outcomes.has_changed().unwrap_or(false) {
            return Some(self.outcomes.borrow_and_update().clone());
        }
        let began = self.pending.content.lock().unwrap_or_else(PoisonError::into_inner).began?;
        (now.saturating_duration_since(began) > LONGEST).then(|| Outcome {
            number: self.outcomes.borrow().number,
            error: Some(format!("the disk has not taken it for more than {} s", LONGEST.as_secs())),
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.pending.content.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
        self.pending.comes.notify_one();
    }
}

/// A state that is to be kept.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    number: u64,
    outcomes: watch::Receiver<Outcome>,
}

impl Kept {
    /// Waits until it is written, for a second at most; the warning to print if it is not.
    pub(crate) async fn note(mut self) -> Option<String> {
        let number = self.number;
        let written = timeout(PATIENCE, self.outcomes.wait_for(|done| done.number >= number)).await;
        match written {
            Ok(Ok(outcome)) => outcome.error.as_ref().map(|error| {
                format!("this is not kept over a restart of lbd, until it can be written: {error}")
            }),
            Ok(Err(_)) => Some("this is not kept over a restart of lbd: it has ended".into()),
            Err(_) => Some(format!(
                "this is applied and not kept yet: the disk has not taken the state file within {} s, and a \
                 restart of lbd may lose it until then",
                PATIENCE.as_secs()
            )),
        }
    }
}

fn write_all(pending: &Pending, path: &Path, reported: &watch::Sender<Outcome>) {
    loop {
        let content = pending.content.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |content: &mut Content| content.next.is_none() && !content.is_closed;
        let content = pending.comes.wait_while(content, waits);
        let mut content = content.unwrap_or_else(PoisonError::into_inner);
        let Some((number, state)) = content.next.take() else { return };
        content.began = Some(Instant::now());
        drop(content);
        let error = super::save(path, &state).err().map(|error| format!("{error:#}"));
        pending.content.lock().unwrap_or_else(PoisonError::into_inner).began = None;
        reported.send_replace(Outcome { number, error });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::CString,
        fs,
        os::{
            fd::AsRawFd as _,
            unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
        },
    };

    use lb_api::status::Node;

    use super::*;
    use crate::state_file::{Loaded, load};

    #[tokio::test]
    async fn a_disk_that_stalls_holds_nobody_up_and_gets_the_latest_state() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("state.json");
        let mut writer = Writer::start(&path).expect("a thread");
        assert_eq!(writer.post(State::default()).note().await, None);
        // An open of a pipe for writing waits for a reader.
        let pipe = dir.path().join("state.json.partial");
        let name = CString::new(pipe.as_os_str().as_bytes()).expect("no zero in it");
        // SAFETY: the string lives, and ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let at = |secs| State {
            node: Node { draining_since: Some(std::time::UNIX_EPOCH + Duration::from_secs(secs)) },
            ..State::default()
        };
        let first = writer.post(at(1)).note().await.expect("it is not kept yet");
        assert!(first.starts_with("this is applied and not kept yet"), "{first}");
        let failing = |outcome: Option<Outcome>| outcome.and_then(|outcome| outcome.error);
        assert_eq!(failing(writer.outcome(Instant::now())), None, "it may still end in time");
        let later = || Instant::now() + LONGEST;
        let error = failing(writer.outcome(later())).expect("it takes too long");
        assert!(error.contains("more than 5 s"), "{error}");
        assert_eq!(failing(writer.outcome(later())), Some(error), "as long as it is under way");
        let kept: Vec<_> = (2..100).map(|secs| writer.post(at(secs))).collect();
        // The write that hangs goes on, and fails, as a pipe can't be synced. Its name is gone by then: the next
        // write must not meet with it.
        let by_path = fs::File::options()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(&pipe)
            .expect("it is there");
        fs::remove_file(&pipe).expect("it is ours");
        let reader =
            fs::File::open(format!("/proc/self/fd/{}", by_path.as_raw_fd())).expect("it is open");
        for kept in kept {
            assert_eq!(kept.note().await, None, "the last one counts for all");
        }
        drop(reader);
        assert_eq!(failing(writer.outcome(later())), None, "it has ended");
        assert_eq!(failing(writer.outcome(later())), None, "nothing is under way");
        assert_eq!(load(&path).expect("it is read"), Loaded::State(at(99)));
    }
}

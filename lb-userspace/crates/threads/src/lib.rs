//! Threads and tasks that last as long as the process: one that panics ends it.
//!
//! An `lbd` that went on without its health checks, its scripts or its writer of the state would look alive and
//! decide by what has long changed. Ended with [`FAILURE`], it is started again by systemd a second later, forwarding
//! goes on meanwhile, and so do the addresses of virtual routers (`release` of lb-vrrp).
//!
//! What serves one request or one connection is none of these: its panic ends that request.
//!
//! [`systemd`] reports the process's state to systemd.

pub mod systemd;

use std::{
    future::Future,
    io, mem, process,
    thread::{self, JoinHandle},
};

/// The exit status.
const FAILURE: i32 = 1;

/// Starts a thread.
///
/// # Errors
///
/// There is no room for one.
pub fn spawn(
    name: &'static str,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(move || {
        let guard = Guard(name);
        work();
        mem::forget(guard);
    })
}

/// The same of a task, for a runtime to run.
pub async fn lasting<T>(name: &'static str, work: impl Future<Output = T>) -> T {
    let guard = Guard(name);
    let outcome = work.await;
    mem::forget(guard);
    outcome
}

/// Ends the process when it is dropped by a panic. A task that is aborted drops it without one.
struct Guard(&'static str);

impl Drop for Guard {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(
                thread = self.0,
                "a thread has panicked; lbd ends, to be started again"
            );
            process::exit(FAILURE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command, time::Duration};

    use super::*;

    /// Set for a run of this program in which one of them panics.
    const PANICS: &str = "LB_TEST_THREAD_PANICS";

    #[test]
    fn a_panic_of_a_lasting_thread_or_task_ends_the_process() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        match env::var(PANICS).as_deref() {
            Ok("thread") => drop(spawn("test", || panic!("in a test")).expect("it starts").join()),
            Ok("task") => runtime().expect("it starts").block_on(async {
                let task = tokio::spawn(lasting("test", async { panic!("in a test") }));
                let _: Result<(), _> = task.await;
            }),
            Ok("aborted") => runtime().expect("it starts").block_on(async {
                let task = tokio::spawn(lasting("test", std::future::pending::<()>()));
                tokio::time::sleep(Duration::from_millis(1)).await;
                task.abort();
                task.await.expect_err("it is aborted");
            }),
            _ => {
                let this = env::current_exe().expect("it is a file");
                let name = "tests::a_panic_of_a_lasting_thread_or_task_ends_the_process";
                for (what, code) in [("thread", 1), ("task", 1), ("aborted", 0)] {
                    let mut run = Command::new(&this);
                    run.args(["--exact", name, "--nocapture"]).env(PANICS, what);
                    let ended = run.output().expect("it runs");
                    assert_eq!(ended.status.code(), Some(code), "{what}: {ended:?}");
                }
            }
        }
    }
}

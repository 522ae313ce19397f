//! What takes time is done by another thread: scripts and notify programs, reading files, making
//! devices, the packet filter.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_threads::lasting;
use tokio::{
    runtime,
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval},
};

use super::filter;
use crate::{
    macvlan::{Device, Devices},
    notify_program::{Call, Caller},
    observe::files,
    scripts::{Ended, Script, run},
};

/// How often files are read.
const FILES: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Job {
    /// Run these, and no others.
    Scripts(Vec<Script>),
    /// Read these, and no others.
    Files(BTreeSet<PathBuf>),
    /// Run the notify program of a transition.
    Notify(Call),
    /// These devices are to be there, and no others of ours.
    Devices(Vec<Device>),
    /// These addresses are not to be taken.
    Filter(Vec<IpAddr>),
    /// Report when all before this was done, and the notify programs have ended.
    Mark,
}

/// What has come of it.
#[derive(Debug)]
pub(crate) enum JobResult {
    /// A run has ended.
    Script {
        /// The routers that track it.
        routers: Vec<String>,
        /// The program.
        command: Vec<String>,
        /// How.
        result: Result<(), String>,
    },
    /// The numbers in all files; sent when one has changed.
    Files(BTreeMap<PathBuf, Result<i64, String>>),
    /// A notify program has not ended well.
    NotifyFailed { router: String, why: String },
    /// Devices are as far as possible what they are to be; what does not work.
    Devices(Vec<String>),
    /// Whether the filter is as it is to be.
    Filter(Result<(), String>),
    /// [`Job::Mark`].
    Mark,
}

/// Starts the thread; it ends when the last sender of jobs is dropped.
///
/// # Errors
///
/// If there can be no thread.
pub fn start(send: impl Fn(JobResult) + Clone + Send + 'static) -> Result<UnboundedSender<Job>> {
    let (jobs, queue) = mpsc::unbounded_channel();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make a runtime for scripts")?;
    lb_threads::spawn("lb-vrrp-help", move || runtime.block_on(work(queue, send)))
        .context("start the thread for scripts")?;
    Ok(jobs)
}

async fn work(mut jobs: UnboundedReceiver<Job>, send: impl Fn(JobResult) + Clone + Send + 'static) {
    let mut scripts: Vec<(Script, Task)> = Vec::new();
    let mut watching: Option<Task> = None;
    let mut devices: Option<Devices> = None;
    let failed = send.clone();
    let mut caller = Caller::new(move |router: &str, why| {
        failed(JobResult::NotifyFailed { router: router.to_owned(), why });
    });
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Scripts(wanted) => {
                scripts.retain(|(script, _)| wanted.contains(script));
                for script in wanted {
                    if !scripts.iter().any(|(one, _)| *one == script) {
                        let run = repeat(script.clone(), send.clone());
                        let task = Task(tokio::spawn(lasting("tracked script", run)));
                        scripts.push((script, task));
                    }
                }
            }
            Job::Files(wanted) => {
                let watch = || {
                    let watch = watch(wanted.clone(), send.clone());
                    Task(tokio::spawn(lasting("tracked files", watch)))
                };
                watching = (!wanted.is_empty()).then(watch);
            }
            Job::Notify(call) => caller.call(call),
            Job::Devices(wanted) => {
                let problems = match &mut devices {
                    Some(devices) => devices.bring_about(&wanted),
                    None => match Devices::open() {
                        Ok(opened) => devices.insert(opened).bring_about(&wanted),
                        Err(error) => vec![format!("{error:#}")],
                    },
                };
                send(JobResult::Devices(problems));
            }
            Job::Filter(closed) => send(JobResult::Filter(filter::apply(&closed).await)),
            Job::Mark => {
                let (idle, send) = (caller.idle(), send.clone());
                tokio::spawn(lasting("mark", async move {
                    idle.await;
                    send(JobResult::Mark);
                }));
            }
        }
    }
    drop((scripts, watching));
    caller.end().await;
}

async fn repeat(script: Script, send: impl Fn(JobResult)) {
    let mut ticks = interval(script.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let result = match run(&script.command, &[], script.timeout).await {
            Ended::Well => Ok(()),
            Ended::Badly(why) => Err(why),
        };
        let (routers, command) = (script.routers.clone(), script.command.clone());
        send(JobResult::Script { routers, command, result });
    }
}

async fn watch(paths: BTreeSet<PathBuf>, send: impl Fn(JobResult)) {
    let mut before = None;
    let mut ticks = interval(FILES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let paths = paths.clone();
        // A file of a network may take its time.
        let Ok(numbers) = spawn_blocking(move || files::read(&paths)).await else { continue };
        if before.as_ref() != Some(&numbers) {
            send(JobResult::Files(numbers.clone()));
            before = Some(numbers);
        }
    }
}

/// A task that ends when this is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command, thread};

    use super::*;

    /// Set for a run of this program that only has the helper, which panics.
    const PANICS: &str = "LB_TEST_HELPER_PANICS";

    #[test]
    fn a_panic_of_the_helper_ends_the_process() {
        if env::var_os(PANICS).is_some() {
            let jobs = start(|_| panic!("in a test")).expect("it starts");
            jobs.send(Job::Files(["/nonexistent".into()].into())).expect("it runs");
            // The process ends before, or goes on half dead.
            thread::sleep(Duration::from_secs(5));
            return;
        }
        let this = env::current_exe().expect("it is a file");
        let name = "thread::helper::tests::a_panic_of_the_helper_ends_the_process";
        let run =
            Command::new(this).args(["--exact", name, "--nocapture"]).env(PANICS, "1").output();
        let ended = run.expect("it runs");
        // 0 and 101 are those of tests.
        assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
    }
}

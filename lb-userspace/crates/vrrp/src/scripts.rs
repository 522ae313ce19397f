//! Programs that check whether something is well, and how they and others are run.
//!
//! How many runs make a difference is counted by [`super::machine`].

use std::{process::Stdio, time::Duration};

use lb_model::router::{Router, Tracked};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{process::Command, time::timeout};

/// A program that is run again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// How often it is run.
    pub interval: Duration,
    /// How long it may take.
    pub timeout: Duration,
    /// The routers that track it.
    pub routers: Vec<String>,
}

/// The programs that these routers track, each once.
#[must_use]
pub(crate) fn scripts(routers: &[Router]) -> Vec<Script> {
    let mut scripts: Vec<Script> = Vec::new();
    for router in routers {
        for track in &router.tracks {
            let Tracked::Script { command, interval, timeout, .. } = &track.what else { continue };
            let same = scripts.iter_mut().find(|one| {
                one.command == *command && one.interval == *interval && one.timeout == *timeout
            });
            match same {
                Some(script) if script.routers.contains(&router.name) => {}
                Some(script) => script.routers.push(router.name.clone()),
                None => scripts.push(Script {
                    command: command.clone(),
                    interval: *interval,
                    timeout: *timeout,
                    routers: vec![router.name.clone()],
                }),
            }
        }
    }
    scripts
}

/// A program's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With status 0.
    Well,
    /// Otherwise; for people.
    Badly(String),
}

/// Runs a program to its end, or kills it and everything that it has started when its time is over.
///
/// What it writes is lost, and it reads nothing.
pub async fn run(command: &[String], environment: &[(&str, String)], limit: Duration) -> Ended {
    let Some((program, arguments)) = command.split_first() else {
        return Ended::Badly("there is no program".to_owned());
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own: what it has started is killed with it, and a Ctrl-C is not for it.
    command.process_group(0).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ended::Badly(format!("{program}: {error}")),
    };
    let group = Running(child.id());
    match timeout(limit, child.wait()).await {
        Ok(Ok(status)) => {
            group.has_ended();
            if status.success() {
                Ended::Well
            } else {
                Ended::Badly(format!("{program}: {status}"))
            }
        }
        Ok(Err(error)) => Ended::Badly(format!("{program}: {error}")),
        Err(_) => {
            drop(group);
            let _ = child.wait().await;
            Ended::Badly(format!("{program}: killed, as it took longer than {limit:?}"))
        }
    }
}

/// A process group that is killed when this is dropped.
struct Running(Option<u32>);

impl Running {
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            // Its leader has not been waited for, so the number is not another group's.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU8, time::Instant};

    use super::*;
    use crate::thread::test_router;
    use lb_model::router::{Family, RouterKey, Track};

    fn shell(line: &str) -> Vec<String> {
        ["/bin/sh", "-c", line].map(str::to_owned).to_vec()
    }

    #[test]
    fn script_that_several_routers_track_is_run_once() {
        let track = |interval| Track {
            what: Tracked::Script {
                command: shell("true"),
                interval: Duration::from_secs(interval),
                timeout: Duration::from_secs(1),
                rise: 1,
                fall: 1,
            },
            weight: 0,
        };
        let vrid = |n| NonZeroU8::new(n).expect("not 0");
        let mut routers = [1, 2, 3].map(|n| {
            test_router(&format!("r{n}"), RouterKey { family: Family::V4, vrid: vrid(n) })
        });
        routers[0].tracks = vec![track(1), track(1)];
        routers[1].tracks = vec![track(2)];
        routers[2].tracks = vec![track(1)];
        let scripts = scripts(&routers);
        let who: Vec<_> = scripts.iter().map(|script| script.routers.join(" ")).collect();
        assert_eq!(who, ["r1 r3", "r2"]);
    }

    #[tokio::test]
    async fn status_0_alone_is_well() {
        let limit = Duration::from_secs(30);
        assert_eq!(run(&shell("exit 0"), &[], limit).await, Ended::Well);
        let Ended::Badly(why) = run(&shell("exit 3"), &[], limit).await else {
            panic!("status 3 is none of success")
        };
        assert!(why.contains("exit status: 3"), "{why}");
        let missing = run(&["/nowhere/check".to_owned()], &[], limit).await;
        assert!(matches!(missing, Ended::Badly(why) if why.contains("/nowhere/check")));
        let environment = [("LB_STATE", "active".to_owned())];
        assert_eq!(run(&shell("test $LB_STATE = active"), &environment, limit).await, Ended::Well);
    }

    #[tokio::test]
    async fn program_that_takes_too_long_is_killed_with_what_it_has_started() {
        let folder = tempfile::tempdir().expect("make a folder");
        let file = folder.path().join("pid");
        // The shell waits for a child that would outlive it.
        let line = format!("sleep 600 & echo $! > {}; wait", file.display());
        let began = Instant::now();
        let ended = run(&shell(&line), &[], Duration::from_millis(500)).await;
        assert!(matches!(ended, Ended::Badly(why) if why.contains("took longer")));
        assert!(began.elapsed() < Duration::from_secs(60));
        let pid = std::fs::read_to_string(&file).expect("the child's pid");
        let stat = format!("/proc/{}/stat", pid.trim());
        let deadline = Instant::now() + Duration::from_secs(10);
        // Killed, it may still be there to be waited for.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z")) {
            assert!(Instant::now() < deadline, "what it has started lives");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

//! The notify programs: lbd runs an operator's program at a router's transitions.
//!
//! A program is called as `PROGRAM [ARGUMENT...] router NAME STATE PRIORITY`, the order that
//! keepalived's `notify` has; `STATE` is `initialize`, `fault`, `backup` or `active`. The
//! environment has more: `LB_ROUTER`, `LB_STATE`, `LB_FROM` (the state before), `LB_CAUSE`,
//! `LB_PRIORITY`, `LB_FAMILY` (`ipv4` or `ipv6`), `LB_VRID`, `LB_INTERFACE` and `LB_GROUP` (empty if
//! it is in none).
//!
//! Transitions of one router are passed on one after the other, in their order; those of several routers
//! at the same time. A program has 30 seconds; then it is killed with all that it has started. The
//! end of `lbd` waits 10 seconds for all of them together.

use std::{collections::BTreeMap, time::Duration};

use lb_model::router::{Family, Router};
use tokio::{
    sync::{
        mpsc::{self, UnboundedSender},
        watch,
    },
    task::JoinSet,
};
use tracing::debug;

use super::{
    Transition,
    scripts::{Ended, run},
};

/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the end of `lbd` waits for all programs, and for what else is done last. With the handover
/// before, that is less than the unit's `TimeoutStopSec` and than `lbctl detach` waits.
pub const LIMIT_AT_END: Duration = Duration::from_secs(10);

/// One call of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The router.
    pub router: String,
    /// The program and all of its arguments.
    pub command: Vec<String>,
    /// What its environment has besides.
    pub environment: Vec<(&'static str, String)>,
}

impl Call {
    /// The call for a transition, if the router has a program for that.
    #[must_use]
    pub(crate) fn of(
        router: &Router,
        group: Option<&str>,
        transition: &Transition,
        priority: u8,
    ) -> Option<Self> {
        let mut command = router.notify.clone()?;
        let state = transition.to.name();
        command.extend(["router", &router.name, state, &priority.to_string()].map(str::to_owned));
        let family = match router.key.family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let environment = vec![
            ("LB_ROUTER", router.name.clone()),
            ("LB_STATE", state.to_owned()),
            ("LB_FROM", transition.from.name().to_owned()),
            ("LB_CAUSE", transition.cause.clone()),
            ("LB_PRIORITY", priority.to_string()),
            ("LB_FAMILY", family.to_owned()),
            ("LB_VRID", router.key.vrid.to_string()),
            ("LB_INTERFACE", router.interface.clone()),
            ("LB_GROUP", group.unwrap_or_default().to_owned()),
        ];
        Some(Self { router: router.name.clone(), command, environment })
    }
}

/// Makes calls, in order for each router.
pub(crate) struct Caller<F> {
    queues: BTreeMap<String, UnboundedSender<Call>>,
    tasks: JoinSet<()>,
    /// How many calls have not ended.
    open: watch::Sender<usize>,
    failed: F,
}

impl<F: Fn(&str, String) + Clone + Send + 'static> Caller<F> {
    /// `failed` is called for each call that does not end well: the router and why.
    pub fn new(failed: F) -> Self {
        Self { queues: BTreeMap::new(), tasks: JoinSet::new(), open: watch::Sender::new(0), failed }
    }

    /// Makes a call when those of the same router before it have ended.
    pub(crate) fn call(&mut self, call: Call) {
        let queue = self.queues.entry(call.router.clone()).or_insert_with(|| {
            let (queue, mut calls) = mpsc::unbounded_channel::<Call>();
            let (failed, open) = (self.failed.clone(), self.open.clone());
            self.tasks.spawn(async move {
                while let Some(call) = calls.recv().await {
                    debug!(router = call.router, command = ?call.command, "notify");
                    if let Ended::Badly(why) = run(&call.command, &call.environment, LIMIT).await {
                        failed(&call.router, why);
                    }
                    open.send_modify(|open| *open -= 1);
                }
            });
            queue
        });
        self.open.send_modify(|open| *open += 1);
        // The task ends only after its queue.
        let _ = queue.send(call);
    }

    /// Ends when no call is under way.
    pub(crate) fn idle(&self) -> impl Future<Output = ()> + Send + use<F> {
        let mut open = self.open.subscribe();
        async move {
            // Without a caller there is no call.
            let _ = open.wait_for(|open| *open == 0).await;
        }
    }

    /// Waits until all calls were made and have ended.
    pub(crate) async fn end(mut self) {
        self.queues.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::{
        num::NonZeroU8,
        sync::{Arc, Mutex},
    };

    use super::*;
    use lb_model::router::{RouterKey, State};

    fn call(router: &str, line: String) -> Call {
        let command = vec!["/bin/sh".to_owned(), "-c".to_owned(), line];
        Call { router: router.to_owned(), command, environment: Vec::new() }
    }

    #[tokio::test]
    async fn calls_of_one_router_are_made_one_after_the_other() {
        let folder = tempfile::tempdir().expect("make a folder");
        let log = folder.path().join("log");
        let mut caller = Caller::new(|_: &str, why| panic!("{why}"));
        for n in 0..5 {
            // The earlier ones take longer, so that the order of their ends would be another.
            let line = format!(
                "echo begin {n} >> {log}; sleep 0.{}; echo end {n} >> {log}",
                5 - n,
                log = log.display()
            );
            caller.call(call("main", line));
        }
        caller.end().await;
        let expected: String = (0..5).map(|n| format!("begin {n}\nend {n}\n")).collect();
        assert_eq!(std::fs::read_to_string(&log).expect("the log"), expected);
    }

    #[tokio::test]
    async fn it_is_idle_when_the_last_call_has_ended() {
        let folder = tempfile::tempdir().expect("make a folder");
        let log = folder.path().join("log");
        let mut caller = Caller::new(|_: &str, why| panic!("{why}"));
        caller.idle().await;
        for _ in 0..2 {
            caller.call(call("main", format!("sleep 0.1; echo done >> {}", log.display())));
        }
        caller.idle().await;
        assert_eq!(std::fs::read_to_string(&log).expect("the log"), "done\ndone\n");
    }

    #[tokio::test]
    async fn routers_do_not_wait_for_each_other() {
        let folder = tempfile::tempdir().expect("make a folder");
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("make a pipe");
        let mut caller = Caller::new(|_: &str, why| panic!("{why}"));
        // Each waits for the other at the pipe.
        caller.call(call("one", format!("echo hello > {}", pipe.display())));
        caller.call(call("other", format!("read word < {}", pipe.display())));
        tokio::time::timeout(Duration::from_secs(20), caller.end()).await.expect("both end");
    }

    #[tokio::test]
    async fn call_that_fails_is_told_and_the_next_is_made() {
        let failures = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&failures);
        let mut caller = Caller::new(move |router: &str, why| {
            recorded.lock().expect("no panic").push(format!("{router}: {why}"));
        });
        caller.call(call("main", "exit 1".into()));
        caller.call(call("main", "exit 2".into()));
        caller.end().await;
        let failures = failures.lock().expect("no panic").clone();
        assert_eq!(failures.len(), 2);
        assert!(failures[1].starts_with("main: ") && failures[1].contains("status: 2"));
    }

    #[test]
    fn program_gets_name_state_and_priority_after_its_own_arguments() {
        let key = RouterKey { family: Family::V6, vrid: NonZeroU8::new(51).expect("not 0") };
        let mut router = crate::thread::test_router("main", key);
        let transition = Transition {
            router: "main".into(),
            key,
            from: State::Backup,
            to: State::Active,
            cause: "nobody was heard".into(),
        };
        assert_eq!(Call::of(&router, None, &transition, 150), None);
        router.notify = Some(vec!["/bin/notify".into(), "-v".into()]);
        let call = Call::of(&router, Some("all"), &transition, 150).expect("there is a program");
        let words = ["/bin/notify", "-v", "router", "main", "active", "150"];
        assert_eq!(call.command, words);
        for (name, value) in [("LB_FROM", "backup"), ("LB_FAMILY", "ipv6"), ("LB_GROUP", "all")] {
            assert!(call.environment.contains(&(name, value.to_owned())), "{name}");
        }
    }
}
